//! `baton package`: bringing packages to machines, and installing them there.

mod install;
mod list;
mod send;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::failure::Failure;
use crate::config::Directories;
use crate::config::directories::DirectoryOverrides;

const EXAMPLES: &str = "\
Examples:
  baton package send build/ --id shop --version 1.4.2 --target web-1
  baton run --target web-1 -c 'baton package install shop 1.4.2 --to /opt'
  baton package list --target web-1
  baton package remove shop 1.3.0 --target web-1

Only what changed is sent: files are cut where their content says so, and what the agent
has of them, of whatever version or package, is not sent again.";

/// Bring packages to machines, and install them there
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PackageArgs {
    #[command(subcommand)]
    command: PackageCommand,
}

#[derive(Debug, Subcommand)]
enum PackageCommand {
    Send(send::SendArgs),
    Install(install::InstallArgs),
    List(list::ListArgs),
    Remove(list::RemoveArgs),
}

pub(super) fn package(args: PackageArgs, set: DirectoryOverrides) -> Result<ExitCode, Failure> {
    match args.command {
        // Inside scripts: it needs no home and no runtime.
        PackageCommand::Install(args) => install::install(args, set),
        PackageCommand::Send(args) => {
            super::asynchronous(send::send(args, Directories::resolve(set)?))
        }
        PackageCommand::List(args) => {
            super::asynchronous(list::list(args, Directories::resolve(set)?))
        }
        PackageCommand::Remove(args) => {
            super::asynchronous(list::remove(args, Directories::resolve(set)?))
        }
    }
}
