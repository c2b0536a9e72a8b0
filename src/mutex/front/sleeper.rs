//! Waiting for the lock of a file no longer than one wants to.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use rustix::fs::FlockOperation;

/// A thread that sleeps in the lock of a file. It ends with its process.
pub(super) struct Sleeper(Receiver<()>);

impl Sleeper {
    /// Sleeps until the lock of `file` can be had, then closes `file`. When the caller has the same
    /// open file, the lock stays with it.
    pub(super) fn start(file: File, exclusive: bool) -> io::Result<Self> {
        let operation =
            if exclusive { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
        let (bell, heard) = channel();
        let sleep = move || {
            // An error wakes as well: the waiter tries for itself and meets it there.
            super::subject::flock(&file, operation).unwrap_or_default();
            drop(file);
            // Nobody may listen any more.
            bell.send(()).unwrap_or_default();
        };
        std::thread::Builder::new().name("sleeper".to_owned()).spawn(sleep)?;
        Ok(Self(heard))
    }

    /// Sleeps until the lock can be had; no when `until` comes before.
    pub(super) fn sleep(&self, until: Option<Instant>) -> bool {
        let Some(until) = until else {
            // A thread that is gone wakes as well.
            self.0.recv().unwrap_or_default();
            return true;
        };
        let left = until.saturating_duration_since(Instant::now());
        self.0.recv_timeout(left) != Err(RecvTimeoutError::Timeout)
    }
}
