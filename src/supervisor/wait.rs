//! The first stage: in the lines of the mutexes, until all are held or the wait is over.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use super::job::Report;
use super::{Signals, Stop, SuperviseError, Supervision};
use crate::mutex::{Advance, Claimant, Hold};
use crate::script::OutcomeKind;

/// How the wait ended.
pub(super) enum Waited {
    /// All mutexes are held.
    Held(Box<Hold>),
    /// The script never starts.
    Over(OutcomeKind),
    /// It starts later, by another supervisor. Nothing is held any more.
    SteppedBack,
}

impl Supervision {
    /// Waits in the lines of the job's mutexes.
    pub(super) fn wait(&mut self) -> Result<Waited, SuperviseError> {
        let deadline = self.job.queue_time.and_then(|(left, _)| Instant::now().checked_add(left));
        let who = Claimant { pid: std::process::id(), ..self.job.claimant.clone() };
        let mut hold = Hold::join(&self.job.mutexes, &self.job.claims, who, true)?;
        let (mut told, mut is_joined) = (Vec::new(), false);
        loop {
            let advance = hold.advance()?;
            if !is_joined && hold.has_joined() {
                // From now on the agent may let the next one join.
                self.report(&Report::Joined)?;
                is_joined = true;
            }
            // Also when all is held: who was to stop, or came too late, is not started.
            if let Some(over) = self.wait_is_over(deadline) {
                hold.release()?;
                return Ok(over);
            }
            match advance {
                Advance::Held => return Ok(Waited::Held(Box::new(hold))),
                Advance::Blocked => {
                    let blocked = hold.blocked()?;
                    if blocked != told {
                        self.tell(&Report::Waiting { blocked: blocked.clone() });
                        told = blocked;
                    }
                }
                Advance::NothingNew => {}
            }
            let step_back = self.signals.step_back.as_fd();
            let descriptors: Vec<BorrowedFd<'_>> = hold.descriptors().chain([step_back]).collect();
            self.sleep(&descriptors, deadline.into_iter().chain(hold.look_again()).min())?;
        }
    }

    fn wait_is_over(&self, deadline: Option<Instant>) -> Option<Waited> {
        // Before the cancel: the agent knows of both.
        if Signals::take(&self.signals.step_back) {
            return Some(Waited::SteppedBack);
        }
        match self.stop() {
            // The machine goes down, most likely: the script is queued as it was.
            Some(Stop::Unsaid) => return Some(Waited::SteppedBack),
            Some(Stop::Said(reason)) => {
                let while_queued = self.job.restart.is_none();
                return Some(Waited::Over(OutcomeKind::Cancelled { while_queued, reason }));
            }
            None => {}
        }
        let (_, limit) = self.job.queue_time?;
        let over = Instant::now() >= deadline?;
        over.then_some(Waited::Over(OutcomeKind::QueueTimedOut { limit }))
    }
}
