//! `baton config`: what an agent is told by its file, the environment and flags.

mod check;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::check::CheckArgs;
use self::show::ShowArgs;
use super::failure::Failure;
use super::screen::write_out;
use crate::config::{Directories, Origin, TEMPLATE};

const EXAMPLES: &str = "\
Examples:
  baton config show                       every key, its value, and where that comes from
  baton config show retention             the keys of one table
  baton config show --target web-1 --json
  baton config check                      what the agent of this machine would be told
  baton config check new.toml && mv new.toml /etc/baton/agent.toml && baton agent reload
  baton config example > agent.toml       every key, with its default and what it means";

/// Show, check and explain the configuration of an agent
///
/// A flag wins over the environment, the environment over agent.toml, the file over the default. Every key
/// has a variable: BATON_ and its name in capitals, with _ for the dot of a table, for example
/// BATON_QUEUE_LENGTH or BATON_RETENTION_MAX_AGE.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    Show(ShowArgs),
    Check(CheckArgs),
    /// Print agent.toml as it is before anybody changes it: each key, its default, what it means
    Example,
}

pub(super) fn config(args: ConfigArgs, folders: Directories) -> Result<ExitCode, Failure> {
    match args.command {
        ConfigCommand::Show(args) => super::asynchronous(show::show(args, folders)),
        ConfigCommand::Check(args) => check::check(args, &folders),
        ConfigCommand::Example => {
            write_out(TEMPLATE.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Where a value comes from, as JSON.
fn origin_json(origin: &Origin) -> Value {
    match origin {
        Origin::Default => json!({"kind": "default"}),
        Origin::File { path, line } => json!({"kind": "file", "path": path, "line": line}),
        Origin::Variable(name) => json!({"kind": "environment", "variable": name}),
        Origin::Flag(name) => json!({"kind": "flag", "flag": name}),
    }
}

/// Says which variables look like those of keys.
fn warn_of(mistyped: &[(String, String)]) {
    for (name, hint) in mistyped {
        super::failure::complain(&format!("warning: {name} is not known; {hint}"));
    }
}
