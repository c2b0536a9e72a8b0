//! What becomes of a script that asks for a restart of the machine, to be run again after it.
//!
//! ```text
//! reboot.json, exit 0 ──► the tree is ended ──► resume.json ──► its place is kept ──► the machine goes down
//! or its exit code                                                   └── cancelled ──► outcome.json
//! ```
//!
//! 1. Only how the script ends decides: a wish is void when it exits with another code, by a signal, or
//!    is stopped.
//! 2. The mutexes stay held until the machine goes down: whoever waits behind it does not overtake it,
//!    an agent's scripts as little as people at a shell.
//! 3. A SIGTERM without a `cancel.json` is the machine going down: nothing is recorded then.

use jiff::Timestamp;

use super::job::{Job, Reboot, Report};
use super::{Signals, SuperviseError, Supervision};
use crate::script::{MAX_ATTEMPTS, Outcome, OutcomeKind, Restart, StartProblem};
use crate::text::chain;

/// What a script asked for by the way in which it ended.
pub(super) enum Asked {
    /// Nothing: this is how it ended.
    Nothing(Outcome),
    /// A restart of the machine, and another run.
    Restart(Restart),
}

/// Why the script wants a restart, if it does (rule 1).
fn reason(job: &Job, kind: &OutcomeKind, wish: Option<Reboot>) -> Option<String> {
    let OutcomeKind::Exited { code } = kind else {
        return None;
    };
    let wish = wish.filter(|wish| wish.attempt == job.attempt() && *code == 0);
    let by_code = job.reboot_exit_code.is_some_and(|reboot| i32::from(reboot.get()) == *code);
    let reason = wish.map(|wish| wish.reason);
    reason.or(by_code.then(|| format!("it exited with {code}"))).filter(|_| job.may_resume)
}

impl Supervision {
    /// What the script asked for.
    pub(super) fn asked_restart(&self, outcome: Outcome) -> Asked {
        let wish = self.workspace.read_json(&self.workspace.reboot()).ok().flatten();
        let Some(reason) = reason(&self.job, &outcome.kind, wish) else {
            return Asked::Nothing(outcome);
        };
        let attempt = self.job.attempt();
        if attempt >= MAX_ATTEMPTS {
            let reason = format!(
                "it asked for a restart of the machine in attempt {attempt}, which is the last"
            );
            let kind = OutcomeKind::NotStarted { cause: StartProblem::Agent, reason };
            return Asked::Nothing(Outcome { kind, ..outcome });
        }
        let (boot_id, since) = (self.job.boot_id.clone(), Timestamp::now());
        let dropped = self.journal.dropped();
        Asked::Restart(Restart { attempt, boot_id, since, reason, dropped })
    }

    /// Puts the wish on disk and keeps the script's place.
    pub(super) fn await_restart(
        &mut self,
        restart: Restart,
        started_at: Option<Timestamp>,
    ) -> Result<(), SuperviseError> {
        self.workspace.use_reserve();
        // Output that can't be kept must not cost the wish.
        self.journal.sync().unwrap_or_default();
        if let Err(error) = self.workspace.write_json(&self.workspace.resume(), &restart) {
            let reason = format!("its wish for a restart can't be kept: {}", chain(&error));
            return self.record(OutcomeKind::Lost { reason }.into(), started_at);
        }
        // As far as there is some: the wish is kept already.
        self.workspace.reserve().unwrap_or_default();
        self.keep_place(restart, started_at)
    }

    /// Waits for the end of the machine's run, or a cancel (rules 2 and 3).
    pub(super) fn keep_place(
        &mut self,
        restart: Restart,
        started_at: Option<Timestamp>,
    ) -> Result<(), SuperviseError> {
        self.tell(&Report::AwaitsRestart { restart });
        loop {
            let is_told = Signals::take(&self.signals.stop);
            if let Some(cancel) = self.cancel() {
                let kind = OutcomeKind::Cancelled { while_queued: false, reason: cancel.reason };
                return self.record(kind.into(), started_at);
            }
            if is_told {
                return Ok(());
            }
            Signals::take(&self.signals.child);
            self.sleep(&[], None)?;
        }
    }
}
