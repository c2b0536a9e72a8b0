//! Giving back by the token.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::sleep;
use crate::mutex::status::{self, Standing};
use crate::mutex::{MutexError, MutexName};

/// How long `release` waits for the keeper's end, which takes a moment unless it is stopped.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// Why a mutex could not be released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// There is no such ticket.
    #[error(
        "no ticket {ticket} in the line of `{name}`: released already, or its script has ended"
    )]
    NoTicket {
        /// Which mutex.
        name: MutexName,
        /// Which ticket.
        ticket: u64,
    },
    /// The ticket does not hold the mutex.
    #[error("ticket {ticket} still waits for `{name}`")]
    Waits {
        /// Which mutex.
        name: MutexName,
        /// Which ticket.
        ticket: u64,
    },
    /// Somebody else's ticket: it is given back at the end of a command or script.
    #[error(
        "ticket {ticket} of `{name}` was not acquired by a token: pid {pid} ({command}) has it"
    )]
    NotKept {
        /// Which mutex.
        name: MutexName,
        /// Which ticket.
        ticket: u64,
        /// The process that has it.
        pid: u32,
        /// What it is.
        command: String,
    },
    /// The mutex can't be used.
    #[error(transparent)]
    Mutex(#[from] MutexError),
    /// The keeper can't be told.
    #[error("keeper of the mutex (pid {pid})")]
    Keeper {
        /// Its process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Gives back what was acquired with the ticket `ticket`; the mutex is free when this returns.
///
/// # Errors
/// When there is no such ticket, it does not hold the mutex, or it was not acquired by a token.
pub fn release(root: &Path, name: &MutexName, ticket: u64) -> Result<(), ReleaseError> {
    let pid = kept(root, name, ticket)?.who.pid;
    let failed = |source| ReleaseError::Keeper { pid, source };
    let no_process = || failed(rustix::io::Errno::SRCH.into());
    let id = Pid::from_raw(pid.cast_signed()).ok_or_else(no_process)?;
    let keeper = match pidfd_open(id, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => None,
        other => Some(other.map_err(|e| failed(e.into()))?),
    };
    // It has the ticket: the descriptor is the keeper's, not that of another process with its id.
    let standing = kept(root, name, ticket)?;
    let is_keeper = standing.who.pid == pid && status::is_kept_by(root, name, &standing, pid)?;
    let keeper = keeper.filter(|_| is_keeper).ok_or_else(no_process)?;
    pidfd_send_signal(&keeper, Signal::USR1).map_err(|e| failed(e.into()))?;
    if sleep(&[keeper.as_fd()], Instant::now().checked_add(RELEASE_LIMIT)).map_err(failed)? {
        Ok(())
    } else {
        Err(failed(io::ErrorKind::TimedOut.into()))
    }
}

/// The ticket in the line, if it was acquired by a token and holds the mutex.
fn kept(root: &Path, name: &MutexName, ticket: u64) -> Result<Standing, ReleaseError> {
    let line = status::status(root, name)?.line;
    let Some(standing) = line.into_iter().find(|standing| standing.ticket == ticket) else {
        return Err(ReleaseError::NoTicket { name: name.clone(), ticket });
    };
    if standing.who.kept_for.is_none() {
        let (pid, command) = (standing.who.pid, standing.who.command);
        return Err(ReleaseError::NotKept { name: name.clone(), ticket, pid, command });
    }
    // Not by its place: a plain lock file that a cleaner removed lets it look like the first waiter.
    if standing.who.holds_since.is_none() {
        return Err(ReleaseError::Waits { name: name.clone(), ticket });
    }
    Ok(standing)
}
