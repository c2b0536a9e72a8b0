//! The command line of `baton deploy`.

#![expect(let_underscore_drop, reason = "clap's own code for a group that need not be there")]

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::check::CheckArgs;

const EXAMPLES: &str = "\
Examples:
  baton deploy web.toml --environment Test --dry-run         what would run where
  baton deploy web.toml -e Live --release 1.4.2 --dry-run    for a release
  baton deploy web.toml -e Live --only web-2 --dry-run       on one target
  baton deploy check web.toml                                is the file right?

Files, variables and their scopes: docs/deploy.md.";

/// Roll a project out over machines
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DeployArgs {
    #[command(subcommand)]
    pub(super) command: Option<DeployCommand>,
    #[command(flatten)]
    pub(super) run: Option<RunArgs>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeployCommand {
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The project's file
    pub(super) project: PathBuf,
    /// The environment
    #[arg(long, short, value_name = "NAME")]
    pub(super) environment: String,
    /// The tenant
    #[arg(long, value_name = "NAME")]
    pub(super) tenant: Option<String>,
    /// The release: #{Octopus.Release.Number}
    #[arg(long, value_name = "VERSION")]
    pub(super) release: Option<String>,
    /// Only targets with this role, or only this target; role:NAME or target:NAME when it is both
    #[arg(long, value_name = "ROLE|TARGET")]
    pub(super) only: Option<String>,
    /// The file that the machines are in. Default: targets.toml of the configuration folder
    #[arg(long, value_name = "FILE")]
    pub(super) targets: Option<PathBuf>,
    /// Show what would run where, and run nothing
    #[arg(long, required = true)]
    pub(super) dry_run: bool,
    /// Print the plan as JSON, secrets left out
    #[arg(long)]
    pub(super) json: bool,
}
