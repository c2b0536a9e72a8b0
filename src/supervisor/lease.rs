//! A lease's second stage, in place of a script: its mutexes are held and lent to the supervisors of its
//! scripts, until it is told to stop.
//!
//! 1. It decides nothing about time and order: the agent does.
//! 2. Told to stop, it lends nothing more. It ends when no borrower is connected any more; only then
//!    the mutexes are given back.
//! 3. A borrower that is gone without having said that all of its own has ended was killed. Its tree may
//!    live: then the places are left to that tree, and not given back for it.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};

use jiff::Timestamp;

use super::job::{LeaseEnd, Report};
use super::{Signals, Stop, SuperviseError, Supervision, grip};
use crate::crash;
use crate::mutex::lend::RETURNED;
use crate::mutex::{Hold, MutexName};
use crate::script::OutcomeKind;
use crate::text::chain;

/// How a lease's time as a holder ended.
pub(super) struct Held {
    pub(super) kind: OutcomeKind,
    pub(super) started_at: Option<Timestamp>,
    /// Whether what it holds may be given back for all (rule 3).
    pub(super) is_returned: bool,
}

/// The supervisor of a script that runs under the lease.
struct Borrower {
    stream: UnixStream,
    has_returned: bool,
}

impl Supervision {
    /// Holds and lends until it is to stop.
    pub(super) fn hold_lease(&mut self, hold: &Hold) -> Held {
        let opened = self.open_lease();
        let started_at = opened.is_ok().then(Timestamp::now);
        let mut counter = Counter { borrowers: Vec::new(), is_deserted: false };
        let kind = opened.and_then(|listener| {
            self.tell(&Report::Started { leader: None });
            self.lend(hold, &listener, &mut counter)
        });
        let kind = kind.unwrap_or_else(|error| {
            // Who has borrowed goes on, and keeps the places.
            counter.is_deserted |= !counter.borrowers.is_empty();
            OutcomeKind::Lost { reason: format!("its supervisor failed: {}", chain(&error)) }
        });
        Held { kind, started_at, is_returned: !counter.is_deserted }
    }

    fn open_lease(&mut self) -> Result<UnixListener, SuperviseError> {
        // That it holds is on disk before anybody borrows.
        self.journal.sync()?;
        self.workspace.sync()?;
        let path = self.workspace.lease_socket();
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
        let listener = grip::at(&self.workspace, |path| UnixListener::bind(path))?;
        // The folder is closed to others anyway.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        crash::point("lease open");
        Ok(listener)
    }

    fn lend(
        &mut self,
        hold: &Hold,
        listener: &UnixListener,
        counter: &mut Counter,
    ) -> Result<OutcomeKind, SuperviseError> {
        let mutex = self.job.claims.first().map(|claim| claim.name.clone());
        loop {
            counter.accept(listener, hold, mutex.as_ref());
            counter.hear();
            Signals::take(&self.signals.child);
            if let Some(stop) = self.stop() {
                return self.stop_lending(&stop, listener, counter);
            }
            let streams = counter.borrowers.iter().map(|borrower| borrower.stream.as_fd());
            let descriptors: Vec<_> = streams.chain([listener.as_fd()]).collect();
            self.sleep(&descriptors, None)?;
        }
    }

    /// Rule 2.
    fn stop_lending(
        &mut self,
        stop: &Stop,
        listener: &UnixListener,
        counter: &mut Counter,
    ) -> Result<OutcomeKind, SuperviseError> {
        self.tell(&Report::Stopping);
        while !counter.borrowers.is_empty() {
            let streams = counter.borrowers.iter().map(|borrower| borrower.stream.as_fd());
            let descriptors: Vec<_> = streams.collect();
            self.sleep(&descriptors, None)?;
            // It is told already.
            for told in [&self.signals.stop, &self.signals.child] {
                Signals::take(told);
            }
            counter.hear();
            // Those who ask now hear that nothing is lent.
            while listener.accept().is_ok() {}
        }
        let end = self.cancel().and_then(|cancel| cancel.lease);
        Ok(match (stop, end) {
            (Stop::Said(reason), Some((end, _))) => end.outcome(false, reason.clone()),
            (Stop::Said(reason), None) => LeaseEnd::Cancelled.outcome(false, reason.clone()),
            (Stop::Unsaid, _) => {
                OutcomeKind::Lost { reason: "its supervisor was told to stop".to_owned() }
            }
        })
    }
}

/// Those who have borrowed.
struct Counter {
    borrowers: Vec<Borrower>,
    /// Whether one was killed (rule 3).
    is_deserted: bool,
}

impl Counter {
    /// Lends to all who ask.
    fn accept(&mut self, listener: &UnixListener, hold: &Hold, mutex: Option<&MutexName>) {
        while let Ok((stream, _)) = listener.accept() {
            // What is sent is short: it fits into an empty socket.
            if stream.set_nonblocking(true).is_ok() && hold.lend(&stream, mutex).is_ok() {
                self.borrowers.push(Borrower { stream, has_returned: false });
            }
        }
    }

    /// Hears who has returned what was lent, and who is gone.
    fn hear(&mut self) {
        let is_deserted = &mut self.is_deserted;
        self.borrowers.retain_mut(|borrower| {
            let is_there = borrower.is_there();
            *is_deserted |= !is_there && !borrower.has_returned;
            is_there
        });
    }
}

impl Borrower {
    fn is_there(&mut self) -> bool {
        let mut bytes = [0_u8; 16];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(length) => self.has_returned |= bytes[..length].ends_with(RETURNED),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}
