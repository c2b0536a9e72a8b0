//! The signals that come to a process that holds for a command, as events.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use signal_hook::consts::{SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use tokio::io::unix::AsyncFd;

use crate::filewatch::register;
use crate::mutex::holder::Signals;

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Its number.
    pub signal: i32,
    /// Whether the whole process group was told too: it came from the terminal.
    pub is_told: bool,
}

impl Heard {
    /// Whether it ends a process that has no handler for it.
    pub fn is_end(self) -> bool {
        matches!(self.signal, SIGHUP | SIGINT | SIGQUIT | SIGTERM | SIGUSR1 | SIGUSR2 | SIGALRM)
    }
}

/// Hears all signals that a command may be sent.
pub struct Inbox {
    signals: Signals,
    waker: AsyncFd<OwnedFd>,
    heard: VecDeque<Heard>,
}

impl Inbox {
    /// From now on none of them ends this process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn open() -> io::Result<Self> {
        let signals = Signals::register()?;
        let waker = register(signals.descriptor().try_clone_to_owned()?)?;
        Ok(Self { signals, waker, heard: VecDeque::new() })
    }

    /// The next one.
    ///
    /// # Errors
    /// When the runtime ends.
    ///
    /// # Cancel safety
    /// May be dropped at any time; none is lost.
    pub async fn next(&mut self) -> io::Result<Heard> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Ok(heard);
            }
            // Cleared before they are taken: one that comes in between wakes again.
            self.waker.readable().await?.clear_ready();
            let taken = self.signals.take().filter(|(signal, _)| *signal != SIGCHLD);
            self.heard.extend(taken.map(|(signal, is_told)| Heard { signal, is_told }));
        }
    }
}
