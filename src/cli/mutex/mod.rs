//! `baton mutex`: named mutexes for people and scripts. No agent is needed.

mod acquire;
mod append;
mod breaking;
mod fleet;
mod once;
mod run;
mod status;
mod watch;
mod wish;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub(super) use run::{RunArgs, run};

use super::failure::Failure;
use super::screen::write_out;
use crate::config::Directories;
use crate::config::directories::DirectoryOverrides;
use crate::mutex::MutexName;
pub(super) use run::{exit_code, wait_of};
pub(super) use status::outsider;

/// Protect commands with named mutexes that all processes of the machine share
#[derive(Debug, Args)]
#[command(after_help = run::EXAMPLES)]
pub(super) struct MutexArgs {
    #[command(subcommand)]
    command: MutexCommand,
}

#[derive(Debug, Subcommand)]
enum MutexCommand {
    Run(RunArgs),
    Acquire(acquire::AcquireArgs),
    Release(acquire::ReleaseArgs),
    Status(status::StatusArgs),
    Append(append::AppendArgs),
    Once(once::OnceArgs),
    Break(breaking::BreakArgs),
    /// Print the path of a mutex's plain lock file, for flock(1) and other tools
    ///
    /// Who locks that file (flock, exclusive or shared) excludes and is excluded; for example:
    /// flock "$(baton mutex path log)" -c 'date >> log'
    Path {
        /// The mutex
        name: MutexName,
    },
}

pub(super) fn mutex(args: MutexArgs, set: DirectoryOverrides) -> Result<ExitCode, Failure> {
    if let MutexCommand::Run(args) = &args.command {
        return run(args, set);
    }
    let root = &Directories::mutex_folder(set.clone())?;
    match args.command {
        MutexCommand::Run(args) => run(&args, set),
        MutexCommand::Acquire(args) => acquire::acquire(args, root),
        MutexCommand::Release(args) => acquire::release(&args, root),
        MutexCommand::Once(args) => once::once(&args, root),
        MutexCommand::Break(args) => breaking::break_hold(args, root),
        MutexCommand::Append(args) => append::append(args, root),
        MutexCommand::Status(args) => status::status(&args, root),
        MutexCommand::Path { name } => {
            let path = crate::mutex::status::os_lock_path(root, &name)?;
            write_out(format!("{}\n", path.display()).as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
