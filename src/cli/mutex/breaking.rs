//! `baton mutex break`: an operator ends a holder.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::wish::reason;
use crate::cli::failure::{Failure, code, complain};
use crate::cli::time_limit;
use crate::mutex::breaking::{self, BreakError, Breaking};
use crate::mutex::{MutexName, Party};
use crate::snapshot;

const EXAMPLES: &str = "\
Examples:
  baton mutex status log
  baton mutex break log --holder 1795624862042 --reason 'hangs since 2:40, see OPS-117'

Exit status: 0 when the holder is gone, 1 when that ticket does not hold the mutex (any more), 70 when
what holds it can't be ended.";

/// End the holder of a mutex, with its whole process tree, so that the next one gets it
///
/// It works only on the ticket that you name, as `mutex status` shows it, and only while it holds. The
/// processes are asked to end (SIGTERM), and killed after a grace. A script of an agent is cancelled by
/// its supervisor. Who broke it and why is kept beside the mutex.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BreakArgs {
    /// The mutex
    name: MutexName,
    /// The ticket of the holder, as `mutex status` shows it
    #[arg(long, value_name = "TICKET")]
    holder: u64,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// How long the processes have after they were asked. Default: 15s
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    grace: Option<Duration>,
}

pub(super) fn break_hold(args: BreakArgs, root: &Path) -> Result<ExitCode, Failure> {
    if args.reason.trim().is_empty() {
        return Err(Failure::usage("the reason is empty"));
    }
    let BreakArgs { name, holder: ticket, reason, grace } = args;
    let grace = grace.unwrap_or(breaking::GRACE);
    let wanted = Breaking { name, ticket, reason, grace };
    let holder = breaking::break_hold(root, &wanted)?;
    let party = Party { who: holder.who, exclusive: holder.mode.is_exclusive() };
    complain(&format!("baton: broken: {}", snapshot::describe(&party)));
    Ok(ExitCode::SUCCESS)
}

impl From<BreakError> for Failure {
    fn from(error: BreakError) -> Self {
        match error {
            BreakError::Mutex(error) => error.into(),
            BreakError::NotHolding { ref name, .. } => {
                let hint = format!("`baton mutex status {name}` shows who holds it");
                Self::new(code::REFUSED, error).hint(hint)
            }
            BreakError::Own(_) => Self::new(code::REFUSED, error)
                .hint("end the script, or release the mutex, instead"),
            BreakError::Record { .. } | BreakError::StillThere(_) | BreakError::System(_) => {
                Self::new(code::INTERNAL, error)
            }
        }
    }
}
