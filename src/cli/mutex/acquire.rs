//! `baton mutex acquire` and `baton mutex release`: a mutex for scripts that can't wrap a command.

use std::num::NonZeroU32;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::run::{at_most, describe, reason};
use crate::cli::failure::{Failure, code, complain};
use crate::cli::screen::write_out;
use crate::cli::{interval, time_limit};
use crate::mutex::holder::{Patience, Wish};
use crate::mutex::keeper::{self, AcquireError, ReleaseError, Tied};
use crate::mutex::{Blocked, Claim, Mode, MutexName, status};

/// The exit status when there is nobody to hold it for, or nothing to release.
const NOT_HELD: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  token=$(baton mutex acquire log)
  date >> /var/log/deploy.log
  baton mutex release log \"$token\"

  token=$(baton mutex acquire --for-pid $$ --timeout 5m log || echo none)

Exit status: 0 when it is held; 75 when it was not obtained in time, 1 when the process has ended
for which it was to be held, 70 when the mutex folder can't be used.";

/// Acquire a mutex and print a token, with which it is released
///
/// For scripts that can't wrap a command. The mutex is free again when it is released, or when the
/// script ends, however it ends. The token is the fencing number as well: it only grows.
///
/// The script is the process that calls this. In `$(… || …)`, in a pipe, or behind sudo or timeout,
/// another process calls it, which ends at once: say --for-pid $$ there.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AcquireArgs {
    /// The mutex
    name: MutexName,
    /// The process at whose end the mutex is free. Default: the one that calls this
    #[arg(long, value_name = "PID")]
    for_pid: Option<u32>,
    /// Hold it together with others that are shared
    #[arg(long, short)]
    shared: bool,
    /// Like --shared, and while it is held, at most N hold it, this one included
    #[arg(long, value_name = "N", value_parser = at_most)]
    at_most: Option<NonZeroU32>,
    /// Give up after so long
    #[arg(long, value_name = "TIME", value_parser = time_limit, conflicts_with = "no_wait")]
    timeout: Option<Duration>,
    /// Give up at once
    #[arg(long, short)]
    no_wait: bool,
    /// Why, for those who wait behind
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = reason)]
    reason: String,
    /// The exit status when the mutex was not obtained in time
    #[arg(long, short = 'E', value_name = "N", default_value_t = code::BUSY)]
    conflict_exit_code: u8,
    /// How often to tell about a wait in which nothing changes
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = interval)]
    remind: Duration,
    /// Don't tell about waits
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn acquire(args: AcquireArgs, root: &Path) -> Result<ExitCode, Failure> {
    let tied = args.for_pid.map_or_else(Tied::caller, Tied::process)?;
    if args.for_pid == Some(std::process::id()) {
        return Err(Failure::usage("--for-pid names this command itself, which ends at once"));
    }
    // What is wrong with the folder is said here, with hints.
    status::os_lock_path(root, &args.name)?;
    let mode = match args.at_most {
        Some(n) => Mode::AtMost(n),
        None if args.shared => Mode::Shared,
        None => Mode::Exclusive,
    };
    let patience = match args.timeout {
        Some(limit) => Patience::Limited(limit),
        None if args.no_wait => Patience::None,
        None => Patience::Unlimited,
    };
    let claims = vec![Claim { name: args.name, mode }];
    let (reason, remind, is_told) = (args.reason, args.remind, !args.quiet);
    let wish = Wish { claims, patience, reason, remind, is_told, warn_after: None };
    let tell = |blocked: &[Blocked]| {
        if !args.quiet {
            complain(&format!("baton: {}", describe(blocked)));
        }
    };
    let kept = match keeper::acquire(root, wish, &tied, tell) {
        Ok(Ok(kept)) => kept,
        Ok(Err(busy)) => {
            let text = anyhow::anyhow!("not obtained: {}", describe(&busy));
            return Err(Failure::new(args.conflict_exit_code, text));
        }
        Err(error @ AcquireError::Deadlock(_)) => {
            let failure = Failure::new(args.conflict_exit_code, error);
            return Err(failure.hint("release the one that is held first"));
        }
        Err(error) => return Err(error.into()),
    };
    match write_out(format!("{}\n", kept.ticket()).as_bytes()) {
        Ok(()) => kept.confirm()?,
        Err(error) => {
            kept.give_back();
            return Err(error.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Release a mutex with the token that `acquire` printed
///
/// When it returns the next one may have the mutex. It is an error when the mutex is not held with
/// this token: it was released already, or the script has ended.
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// The mutex
    name: MutexName,
    /// What `baton mutex acquire` printed
    token: String,
}

pub(super) fn release(args: &ReleaseArgs, root: &Path) -> Result<ExitCode, Failure> {
    let Ok(ticket) = args.token.parse() else {
        let text = anyhow::anyhow!("{:?} is no token", args.token);
        return Err(Failure::new(NOT_HELD, text).hint("`baton mutex acquire` prints one"));
    };
    keeper::release(root, &args.name, ticket)?;
    Ok(ExitCode::SUCCESS)
}

impl From<AcquireError> for Failure {
    fn from(error: AcquireError) -> Self {
        match error {
            AcquireError::NoParent => {
                Self::new(NOT_HELD, error).hint("name the process to hold it for: --for-pid $$")
            }
            AcquireError::Process { .. } | AcquireError::Over(_) => Self::new(NOT_HELD, error),
            AcquireError::Deadlock(_)
            | AcquireError::Failed(_)
            | AcquireError::Gone
            | AcquireError::Start(_) => Self::new(code::INTERNAL, error),
        }
    }
}

impl From<ReleaseError> for Failure {
    fn from(error: ReleaseError) -> Self {
        match error {
            ReleaseError::NoTicket { ref name, .. } => {
                let hint = format!("`baton mutex status {name}` shows the tickets");
                Self::new(NOT_HELD, error).hint(hint)
            }
            ReleaseError::NotKept { .. } => Self::new(NOT_HELD, error)
                .hint("it is given back when the command or script that has it ends"),
            ReleaseError::Waits { .. } => Self::new(NOT_HELD, error),
            ReleaseError::Mutex(error) => error.into(),
            ReleaseError::Keeper { .. } => Self::new(code::INTERNAL, error),
        }
    }
}
