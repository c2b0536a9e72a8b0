//! `baton mutex acquire` and `baton mutex release`: a mutex for scripts that can't wrap a command.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::run::describe;
use super::wish::WishArgs;
use crate::cli::failure::{Failure, code, complain};
use crate::cli::screen::write_out;
use crate::mutex::keeper::{self, AcquireError, ReleaseError, Tied};
use crate::mutex::{Blocked, MutexName, status};

/// The exit status when there is nobody to hold it for, or nothing to release.
const NOT_HELD: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  token=$(baton mutex acquire log --for-pid $$)
  date >> /var/log/deploy.log
  baton mutex release log \"$token\"

  token=$(baton mutex acquire --timeout 5m --for-pid $$ log || echo none)

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
    #[command(flatten)]
    wish: WishArgs,
}

pub(super) fn acquire(args: AcquireArgs, root: &Path) -> Result<ExitCode, Failure> {
    let tied = args.for_pid.map_or_else(Tied::caller, Tied::process)?;
    if args.for_pid == Some(std::process::id()) {
        return Err(Failure::usage("--for-pid names this command itself, which ends at once"));
    }
    // What is wrong with the folder is said here, with hints.
    status::os_lock_path(root, &args.name)?;
    let wish = args.wish.wish([args.name]);
    // The keeper tells only if it is to.
    let tell = |blocked: &[Blocked]| complain(&format!("baton: {}", describe(blocked)));
    let kept = match keeper::acquire(root, wish, &tied, tell) {
        Ok(Ok(kept)) => kept,
        Ok(Err(busy)) => {
            let text = anyhow::anyhow!("not obtained: {}", describe(&busy));
            return Err(Failure::new(args.wish.conflict_exit_code, text));
        }
        Err(error @ AcquireError::Deadlock(_)) => {
            let failure = Failure::new(args.wish.conflict_exit_code, error);
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
