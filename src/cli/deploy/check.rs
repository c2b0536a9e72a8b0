//! `baton deploy check`: whether a project's file is right.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::cli::failure::{Failure, code};
use crate::cli::screen::{write_json, write_out};
use crate::deploy::load::{self, LoadError};

/// Check a project's file and run nothing
///
/// Everything that can be known without machines: keys, values, names, scopes, ties, script files. Secrets
/// are not read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton deploy check web.toml
  baton deploy check web.toml --targets targets.toml --json

Exit status: 0 when all is right, else 1.")]
pub(super) struct CheckArgs {
    /// The project's file
    project: PathBuf,
    /// Check this file of machines too
    #[arg(long, value_name = "FILE")]
    targets: Option<PathBuf>,
    /// Print what is wrong as JSON, one a line
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let project = load::project(&args.project);
    let targets = args.targets.as_deref().map(load::targets).transpose();
    let name = project.as_ref().map(|project| project.name.clone()).unwrap_or_default();
    let errors: Vec<LoadError> = project.err().into_iter().chain(targets.err()).collect();
    if errors.is_empty() {
        let file = args.project.display();
        if !args.json {
            write_out(format!("{file}: project {name} is right\n").as_bytes())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.json {
        let failures = errors.into_iter().map(Failure::from);
        return Err(Failure::several(code::REFUSED, failures.collect()));
    }
    for error in errors {
        match error {
            LoadError::Problems(problems) => {
                for problem in problems.iter() {
                    write_json(&json!(problem))?;
                }
            }
            LoadError::File { path, source } => {
                write_json(&json!({"file": path, "message": source.to_string()}))?;
            }
        }
    }
    Ok(ExitCode::from(code::REFUSED))
}
