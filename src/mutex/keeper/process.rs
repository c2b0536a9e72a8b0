//! The keeper itself: what `baton keep` runs.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};

use super::{Task, Tied, Word, os, sleep};
use crate::mutex::holder::{self, HolderError, Notice};
use crate::mutex::{Claimant, Hold, MutexError};
use crate::text::chain;

/// Runs `baton keep`: does the task that is on standard input. Only for the start of a process:
/// it closes all descriptors but the standard ones.
pub fn main() -> ExitCode {
    crate::process::close_inherited();
    // EPERM: it leads a session already.
    rustix::process::setsid().map(drop).unwrap_or_default();
    // A folder that is in use can't be unmounted. `/` can always be entered.
    std::env::set_current_dir("/").unwrap_or_default();
    let word = match keep() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(HolderError::Mutex(error @ MutexError::Deadlock(_))) => Word::Deadlock(chain(&error)),
        Err(error) => Word::Failed(chain(&error)),
    };
    // Nobody may be left to hear it.
    say(&word).unwrap_or_default();
    ExitCode::FAILURE
}

fn keep() -> Result<(), HolderError> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Ok(());
    }
    let Task { root, wish, pid, what } = serde_json::from_str(&line).map_err(io::Error::from)?;
    let asked = register_signals()?;
    let Ok(tied) = Tied::process(pid) else {
        return Ok(say(&Word::Over)?);
    };
    let who = Claimant { kept_for: Some(pid), ..holder::claimant(&wish, what) };
    let mut hold = Hold::join(&root, &wish.claims, who, wish.is_told)?;
    let stdin = io::stdin();
    let watched = [stdin.as_fd(), tied.descriptor.as_fd(), asked.as_fd()];
    // A starter that hears nothing more is gone: that is watched.
    let mut tell = |notice: Notice<'_>| {
        if let Notice::Waits(blocked) = notice {
            say(&Word::Waits(blocked.to_vec())).unwrap_or_default();
        }
    };
    match holder::wait(&mut hold, &wish, &watched, &mut tell) {
        Ok(None) => {}
        Ok(Some(busy)) => {
            hold.release()?;
            return Ok(say(&if tied.has_ended() { Word::Over } else { Word::Busy(busy) })?);
        }
        Err(error) => {
            // What can't be removed is dead all the same.
            hold.release().unwrap_or_default();
            return Err(error);
        }
    }
    let ticket = hold.tickets().first().map_or(0, |held| held.ticket);
    if say(&Word::Held(ticket)).is_ok() && is_confirmed(&watched)? {
        sleep(&watched[1..], None)?;
    }
    Ok(hold.release()?)
}

/// Becomes readable when this process is asked to give the mutex back. What asks a whole tree to stop
/// is ignored (rule 5).
fn register_signals() -> io::Result<UnixStream> {
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let (asked, writer) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGUSR1, writer)?;
    Ok(asked)
}

fn say(word: &Word) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// Waits until the token is known to the caller; says whether it is (rule 3).
fn is_confirmed(watched: &[BorrowedFd<'_>; 3]) -> io::Result<bool> {
    sleep(watched, None)?;
    // Its starter is gone, or the script is: no byte comes.
    let orders = watched[0];
    Ok(os::is_readable(orders) && io::stdin().lock().read(&mut [0])? == 1)
}
