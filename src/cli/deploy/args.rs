//! The command line of `baton deploy`.

#![expect(let_underscore_drop, reason = "clap's own code for a group that need not be there")]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::check::CheckArgs;
use crate::cli::reach::away_limit;
use crate::deploy::run::Busy;

const EXAMPLES: &str = "\
Examples:
  baton deploy check web.toml                                is the file right?
  baton deploy web.toml --environment Test --dry-run         what would run where
  baton deploy web.toml -e Live --release 1.4.2              roll a release out
  baton deploy web.toml -e Live --only web-2                 on one target
  baton deploy web.toml -e Live --report report.html         with a page to read
  baton deploy web.toml -e Live --continue-from 20261126-0215-3fa9
  baton deploy web.toml -e Test --demo-targets 3             on machines to try it on

The first Ctrl-C starts nothing more and cancels what runs, the second leaves at once. Killed, it goes
on with the same command and --run RUN: what ran is found and does not run again.
Exit status: 0 succeeded, 3 some targets failed and may, 1 failed, 130 stopped, 2 usage.
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
    GoAhead(GoAheadArgs),
}

/// Let a deployment go on that waits for somebody's go-ahead
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton deploy go-ahead 20261126-0215-3fa9
  baton deploy go-ahead 20261126-0215-3fa9 --refuse")]
pub(super) struct GoAheadArgs {
    /// Its run, as it says
    pub(super) run: String,
    /// End it there instead
    #[arg(long)]
    pub(super) refuse: bool,
}

/// What becomes of a target whose machine is busy.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum IfBusy {
    /// Its steps wait their turn
    Wait,
    /// It is left out
    Skip,
    /// It has failed
    Fail,
}

impl From<IfBusy> for Busy {
    fn from(what: IfBusy) -> Self {
        match what {
            IfBusy::Wait => Self::Wait,
            IfBusy::Skip => Self::Skip,
            IfBusy::Fail => Self::Fail,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The project's file. Of several, each begins when the one before stands in line on its targets
    #[arg(required = true, value_name = "PROJECT")]
    pub(super) projects: Vec<PathBuf>,
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
    /// Start so many agents on this machine, each as if it were a machine of its own, for this deployment
    /// only; they stand for the first targets of the file
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(super) demo_targets: Option<u32>,
    /// Show what would run where, and run nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// What becomes of a target whose machine is busy
    #[arg(long, value_name = "WHAT", value_enum, default_value = "wait")]
    pub(super) if_busy: IfBusy,
    /// Wait so long for an agent that is away, whatever the files say, for example while its machine starts
    /// again. Default: what the files say, else 10m
    #[arg(long, value_name = "TIME", value_parser = away_limit)]
    pub(super) away_limit: Option<Duration>,
    /// Leave out the targets on which this run has done all
    #[arg(long, value_name = "RUN")]
    pub(super) continue_from: Option<String>,
    /// The run's name: again the same, it goes on where it was killed. Default: a new one
    #[arg(long, value_name = "RUN")]
    pub(super) run: Option<String>,
    /// Write a page that shows who waited and ran when, with the logs
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<PathBuf>,
    /// Print events (with --dry-run: the plan) as JSON, one a line, secrets left out
    #[arg(long)]
    pub(super) json: bool,
}
