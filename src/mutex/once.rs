//! Running a command once: the first caller runs it, the others wait and then go on. It needs no
//! agent.
//!
//! 1. Done means that the command exited with 0, and that this is on disk.
//! 2. A run that failed, or whose caller was killed, lets the next caller try.
//! 3. Done is kept until it is reset, or for a time that each caller says.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;

use super::holder::{self, HolderError, Notice, Ran, Wish};
use super::{Blocked, Claim, ExclusiveKey, Mode, MutexName, os};
use crate::durable;

/// What came of it.
#[derive(Debug)]
pub enum Once {
    /// This caller ran the command.
    Ran(Ran),
    /// It was done before.
    Done {
        /// When.
        at: Timestamp,
    },
}

/// The claim under which something runs once.
pub fn claim(key: &ExclusiveKey) -> Claim {
    Claim { name: MutexName::for_once(key), mode: Mode::Exclusive }
}

/// Runs the command unless it is done already (and was, if `within` says so, that short a time ago).
/// `tell` hears who is in the way.
///
/// # Errors
/// When the mutex folder can't be used, a system call fails, or the disk refuses to keep that it is
/// done.
pub fn once(
    root: &Path,
    key: &ExclusiveKey,
    wish: &Wish,
    within: Option<Duration>,
    command: &mut Command,
    mut tell: impl FnMut(Notice<'_>),
) -> Result<Once, HolderError> {
    let path = done_path(root, key);
    let hold = match holder::acquire(root, wish, holder::command_line(command), &mut tell)? {
        Ok(hold) => hold,
        Err(busy) => return Ok(Once::Ran(Ran::Busy(busy))),
    };
    let done = done_at(&path).map(|at| at.filter(|at| is_fresh(*at, within)));
    if let Some(done) = done.transpose() {
        hold.release()?;
        return done.map(|at| Once::Done { at });
    }
    let note = |ran: &Ran| match ran {
        Ran::Ended(status) if status.success() => {
            durable::replace_file(&path, Timestamp::now().to_string().as_bytes(), 0o600)
        }
        Ran::Ended(_) | Ran::Busy(_) | Ran::NotStarted(_) => Ok(()),
    };
    Ok(Once::Ran(holder::run_held(hold, wish, command, tell, note)?))
}

/// Forgets that it was done; waits for who runs it just now. Who is in the way when the time is over
/// is returned.
///
/// # Errors
/// When the mutex folder can't be used or the file not be removed.
pub fn reset(
    root: &Path,
    key: &ExclusiveKey,
    wish: &Wish,
    tell: impl FnMut(Notice<'_>),
) -> Result<Option<Vec<Blocked>>, HolderError> {
    let hold = match holder::acquire(root, wish, "reset".to_owned(), tell)? {
        Ok(hold) => hold,
        Err(busy) => return Ok(Some(busy)),
    };
    let removed = match std::fs::remove_file(done_path(root, key)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    hold.release()?;
    removed?;
    Ok(None)
}

fn done_path(root: &Path, key: &ExclusiveKey) -> PathBuf {
    root.join(MutexName::for_once(key).as_str()).join("done")
}

/// When it was done; a file with something else is none.
fn done_at(path: &Path) -> Result<Option<Timestamp>, HolderError> {
    let Some(file) = os::open_to_read(path)? else {
        return Ok(None);
    };
    Ok(io::read_to_string(file)?.trim().parse().ok())
}

/// A time in the future, of a clock that went back, is fresh.
fn is_fresh(at: Timestamp, within: Option<Duration>) -> bool {
    let age = Duration::try_from(Timestamp::now() - at).unwrap_or_default();
    within.is_none_or(|within| age < within)
}
