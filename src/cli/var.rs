//! `baton var`: inside a script of a deployment, the values of its variables. It asks nobody: they are in
//! the script's environment.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::failure::{Failure, code};
use super::screen::write_out;
use crate::deploy::problem::did_you_mean;
use crate::deploy::variables::{PREFIX, environment_name};

/// Inside a script of a deployment: the variables that it was given
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  port=$(baton var get Web.Port)
  echo \"$VAR_WEB_PORT\"                 the same, without a process

The name in the environment is VAR_ and the variable's name in capitals, with _ for everything
that is no letter and no digit.
Exit status: 0, or 1 when the variable is not set.")]
pub(super) struct VarArgs {
    #[command(subcommand)]
    command: VarCommand,
}

#[derive(Debug, Subcommand)]
enum VarCommand {
    /// Print a variable's value
    Get {
        /// The variable's name, as deploy.toml has it
        name: String,
    },
}

pub(super) fn var(args: &VarArgs) -> Result<ExitCode, Failure> {
    let VarCommand::Get { name } = &args.command;
    let own = environment_name(name);
    if let Some(value) = std::env::var_os(&own) {
        let value = std::os::unix::ffi::OsStringExt::into_vec(value);
        write_out(&[&value, b"\n".as_slice()].concat())?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = format!("variable {name:?} is not set: {own} is not in the environment");
    let known: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    let hint = did_you_mean(&own, known.iter().map(String::as_str));
    let scope =
        "a script sees the variables whose scope it is in: baton deploy … --dry-run shows them";
    let hint = hint.unwrap_or_else(|| scope.to_owned());
    Err(Failure::new(code::REFUSED, anyhow::Error::msg(text)).hint(hint))
}
