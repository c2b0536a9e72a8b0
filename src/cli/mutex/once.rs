//! `baton mutex once`: a command that the first caller runs and the others wait for.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Args;

use super::run::{describe, ended, teller};
use crate::cli::failure::{Failure, code, complain};
use crate::cli::time_limit;
use crate::mutex::ExclusiveKey;
use crate::mutex::holder::{Patience, Wish};
use crate::mutex::once::{self, Once};
use crate::snapshot;

const EXAMPLES: &str = "\
Examples:
  baton mutex once migrate/web -- ./migrate.sh      the first runs it, the others wait for it
  baton mutex once --within 1h apt-update -- apt-get update
  baton mutex once --reset migrate/web

Exit status: the command's own; 0 when it was done before; 75 when it was not obtained in time.";

/// Run a command once: the first caller runs it, the others wait and then go on
///
/// It is done when the command exits with 0; after a failure the next caller tries. That it is done is
/// kept in the mutex folder: for root, until the machine is restarted.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct OnceArgs {
    /// What is done: free text, for example migrate/web
    key: ExclusiveKey,
    /// Forget that it was done, instead of running a command
    #[arg(long, conflicts_with_all = ["command", "within"])]
    reset: bool,
    /// Run it again when it was done longer ago. Default: never
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    within: Option<Duration>,
    /// Give up after waiting so long for who runs it
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    timeout: Option<Duration>,
    /// Don't tell about waits, nor that it was done before
    #[arg(long, short)]
    quiet: bool,
    /// The command
    #[arg(value_name = "COMMAND", last = true, required_unless_present = "reset")]
    command: Vec<OsString>,
}

pub(super) fn once(args: &OnceArgs, root: &Path) -> Result<ExitCode, Failure> {
    let patience = args.timeout.map_or(Patience::Unlimited, Patience::Limited);
    let wish = Wish { patience, is_told: !args.quiet, ..Wish::of(vec![once::claim(&args.key)]) };
    let Some((program, arguments)) = args.command.split_first() else {
        return match once::reset(root, &args.key, &wish, teller(&wish))? {
            None => Ok(ExitCode::SUCCESS),
            Some(busy) => {
                let text = anyhow::anyhow!("not obtained: {}", describe(&busy));
                Err(Failure::new(code::BUSY, text))
            }
        };
    };
    let mut command = Command::new(program);
    command.args(arguments).env("BATON_MUTEX_DIR", root);
    match once::once(root, &args.key, &wish, args.within, &mut command, teller(&wish))? {
        Once::Ran(ran) => ended(ran, program, code::BUSY),
        Once::Done { at } => {
            if !args.quiet {
                complain(&format!("baton: done already, at {}", snapshot::clock(at)));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
