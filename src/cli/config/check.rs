//! `baton config check`: whether an agent would take a configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{origin_json, warn_of};
use crate::cli::failure::{Failure, code};
use crate::cli::screen::{write_json, write_out};
use crate::config::{ConfigError, Directories, Layers, Overrides, Problem, Sources};

/// Check a configuration: all that is wrong, each with its line
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  baton config check
  baton config check new.toml
  baton config check --json new.toml

Exit status: 0 it is right, 1 it is not.")]
pub(super) struct CheckArgs {
    /// The file, without the environment. Default: agent.toml of this machine, and the environment
    file: Option<PathBuf>,
    /// Print what is wrong as JSON, one problem a line
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: CheckArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    let CheckArgs { file, json } = args;
    let (sources, layers) = match file {
        None => {
            let sources = Sources::of(&folders.config, Overrides::default());
            let layers = sources.read();
            (sources, layers)
        }
        Some(path) => {
            let sources = Sources::file(path);
            // One that is named is to be there.
            let there = std::fs::metadata(sources.path());
            let there = there
                .map_err(|source| ConfigError::File { path: sources.path().to_owned(), source });
            let layers = there.and_then(|_| sources.read_with([]));
            (sources, layers)
        }
    };
    match layers {
        Ok(layers) => {
            if !json {
                tell(&sources, &layers)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(ConfigError::Invalid(problems)) if json => {
            for problem in problems.iter() {
                write_json(&problem_json(problem))?;
            }
            Ok(ExitCode::from(code::REFUSED))
        }
        Err(error) => Err(Failure::from(error).with_code(code::REFUSED)),
    }
}

fn tell(sources: &Sources, layers: &Layers) -> Result<(), Failure> {
    warn_of(&layers.mistyped);
    let path = sources.path().display();
    let text = if sources.path().exists() {
        format!("{path} is right: {} keys are set\n", layers.set_keys())
    } else {
        format!("{path} is not there; {} keys are set elsewhere\n", layers.set_keys())
    };
    Ok(write_out(text.as_bytes())?)
}

fn problem_json(problem: &Problem) -> serde_json::Value {
    let Problem { origin, key, value, message, hint } = problem;
    json!({
        "from": origin_json(origin),
        "key": key,
        "value": value,
        "message": message,
        "hint": hint,
    })
}
