//! Ending all processes below this one, which adopts those whose parents end.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::mutex::os;
use crate::process::{self, Process};

/// How long what was killed is waited for: it may be in a system call that nothing ends.
const LIMIT: Duration = Duration::from_secs(10);
/// How long until those are looked for that were started in the meantime.
const NEXT_LOOK: Duration = Duration::from_millis(50);

/// Makes this process the one that adopts what its descendants leave.
pub(super) fn adopt() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Asks all to stop; one that is stopped goes on to hear it.
pub(super) fn ask_all() {
    for process in process::below(std::process::id()) {
        process.signal(Signal::TERM);
        process.signal(Signal::CONT);
    }
}

/// Reaps what was adopted and has ended, except `leader`.
pub(super) fn reap_adopted(leader: u32) {
    let me = std::process::id();
    let below = process::below(me).into_iter().filter(Process::is_zombie);
    for process in below.filter(|process| process.parent == me && process.pid != leader) {
        process.reap();
    }
}

/// Reaps all that have ended; whether none is left.
pub(super) fn have_ended() -> bool {
    let left = process::below(std::process::id());
    left.into_iter().all(|process| process.is_zombie() && process.reap())
}

/// Kills all; returns those that did not end within a limit.
pub(super) fn kill_all() -> io::Result<Vec<Process>> {
    let until = Instant::now() + LIMIT;
    loop {
        let left = process::below(std::process::id());
        let left: Vec<_> =
            left.into_iter().filter(|process| !(process.is_zombie() && process.reap())).collect();
        if left.is_empty() || Instant::now() >= until {
            return Ok(left);
        }
        let mut dying: Vec<OwnedFd> =
            left.iter().filter_map(|process| process.signal(Signal::KILL)).collect();
        dying.retain(|descriptor| !os::is_readable(descriptor.as_fd()));
        let next = Instant::now() + NEXT_LOOK;
        os::sleep(dying.iter().map(OwnedFd::as_fd), Some(next.min(until)))?;
    }
}
