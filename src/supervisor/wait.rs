//! The first stage: in the lines of the mutexes, until all are held or the wait is over.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use super::grip::Grip;
use super::job::Report;
use super::{Signals, Stop, SuperviseError, Supervision, job};
use crate::mutex::{Advance, Claimant, Hold};
use crate::script::{OutcomeKind, StartProblem};

/// How the wait ended.
pub(super) enum Waited {
    /// All mutexes are held.
    Held(Grip),
    /// The script never starts.
    Over(OutcomeKind),
    /// It starts later, by another supervisor. Nothing is held any more.
    SteppedBack,
}

impl Supervision {
    /// Takes the job's mutexes, or borrows them.
    pub(super) fn claim(&mut self) -> Result<Waited, SuperviseError> {
        match &self.job.lease {
            job::Lease::Under(lease) => self.borrow(lease),
            job::Lease::None | job::Lease::Itself => self.wait(),
        }
    }

    fn borrow(&self, lease: &Path) -> Result<Waited, SuperviseError> {
        let Some(grip) = Grip::borrow(lease)? else {
            let (cause, reason) = (StartProblem::Lease, "its lease has ended".to_owned());
            return Ok(Waited::Over(OutcomeKind::NotStarted { cause, reason }));
        };
        // Its time in the queue is over by now, or not counted any more.
        if let Some(over) = self.wait_is_over(None) {
            grip.release()?;
            return Ok(over);
        }
        Ok(Waited::Held(grip))
    }

    /// Waits in the lines of the job's mutexes.
    fn wait(&mut self) -> Result<Waited, SuperviseError> {
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
                Advance::Held => return Ok(Waited::Held(Grip::Own(Box::new(hold)))),
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
                if let Some((end, _)) = self.cancel().and_then(|cancel| cancel.lease) {
                    return Some(Waited::Over(end.outcome(while_queued, reason)));
                }
                return Some(Waited::Over(OutcomeKind::Cancelled { while_queued, reason }));
            }
            None => {}
        }
        let (_, limit) = self.job.queue_time?;
        let over = Instant::now() >= deadline?;
        over.then_some(Waited::Over(OutcomeKind::QueueTimedOut { limit }))
    }
}
