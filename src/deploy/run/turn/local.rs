//! The turn on one orchestrating machine: a named mutex, held by this process alone. It is free when the
//! process ends, however.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::oneshot;

use super::TurnError;
use crate::mutex::{Advance, Blocked, Claim, Claimant, Hold, Mode, MutexName};

/// The mutex is held until this is dropped.
#[derive(Debug)]
pub(in crate::deploy::run) struct Kept {
    /// Its other end is watched by the thread that holds the mutex.
    _keeps: UnixStream,
}

/// Waits for the turn. `on_wait` is told of those in the way, at once and on changes.
///
/// # Cancel safety
/// When it is dropped, the place in the line is given up.
///
/// # Errors
/// When the mutex can't be used.
pub(super) async fn take(
    root: &Path,
    name: MutexName,
    who: Claimant,
    on_wait: impl Fn(&[Blocked]) + Send + 'static,
) -> Result<Kept, TurnError> {
    let (keeps, watched) = UnixStream::pair()?;
    let (had, told) = oneshot::channel();
    let claim = Claim { name, mode: Mode::Exclusive };
    let root: PathBuf = root.to_owned();
    // A thread of its own: a turn lasts longer than what the pool of blocking tasks is for.
    let thread = std::thread::Builder::new().name("turn".to_owned());
    thread.spawn(move || hold(&root, claim, who, &watched, on_wait, had))?;
    told.await.map_err(|_| TurnError::Ended)??;
    Ok(Kept { _keeps: keeps })
}

fn hold(
    root: &Path,
    claim: Claim,
    who: Claimant,
    watched: &UnixStream,
    on_wait: impl Fn(&[Blocked]),
    had: oneshot::Sender<Result<(), TurnError>>,
) {
    let waited = Hold::join(root, &[claim], who, true)
        .map_err(TurnError::from)
        .and_then(|hold| wait(hold, watched, on_wait));
    match waited {
        Ok(Some(hold)) => {
            if had.send(Ok(())).is_ok() {
                // Until the other end is gone.
                sleep(&[watched.as_fd()], None).unwrap_or_default();
            }
            // What can't be removed is dead when this process ends.
            hold.release().unwrap_or_default();
        }
        Ok(None) => {}
        Err(error) => drop(had.send(Err(error))),
    }
}

/// `None` when nobody wants it any more.
fn wait(
    mut hold: Hold,
    watched: &UnixStream,
    on_wait: impl Fn(&[Blocked]),
) -> Result<Option<Hold>, TurnError> {
    let mut told = Vec::new();
    loop {
        match hold.advance()? {
            Advance::Held => return Ok(Some(hold)),
            Advance::Blocked => {
                let blocked = hold.blocked()?;
                if blocked != told {
                    on_wait(&blocked);
                    told = blocked;
                }
            }
            Advance::NothingNew => {}
        }
        let more: Vec<BorrowedFd<'_>> = hold.descriptors().chain([watched.as_fd()]).collect();
        let gone = sleep(&more, hold.look_again())?;
        if gone {
            hold.release()?;
            return Ok(None);
        }
    }
}

/// Sleeps until one of them is ready; says whether the last one is.
fn sleep(descriptors: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<bool> {
    let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match rustix::event::poll(&mut polled, left.as_ref()) {
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(polled.last().is_some_and(|last| !last.revents().is_empty())),
    }
}
