//! Pure: what the agent alone knows of a script that ends: how long and for whom it waited, how often it ran.

use std::time::Duration;

use jiff::Timestamp;

use super::table::Living;
use crate::script::{Outcome, Restart, Waited};

impl Living {
    /// Adds to how it ended what only the agent knows: how long and for whom it waited, how often it ran.
    pub(super) fn complete(
        &self,
        outcome: Outcome,
        started_at: Option<Timestamp>,
        ended_at: Timestamp,
    ) -> Outcome {
        let attempts = self.attempts.max(u32::from(started_at.is_some()));
        let first = started_at.filter(|_| attempts <= 1);
        let never = (attempts == 0).then_some(ended_at);
        let time = first.map(|at| self.waited_until(at)).or(self.waited);
        let time = time.or(never.map(|at| self.waited_until(at)));
        let waited = time.map(|time| Waited { time, blockers: self.blockers.clone() });
        Outcome { waited, attempts, ..outcome }
    }

    /// Takes what an earlier run of the agent left: its last start, and its last wish for a restart of the
    /// machine.
    pub(super) fn recover(&mut self, started_at: Option<Timestamp>, restart: Option<Restart>) {
        self.attempts = restart.as_ref().map_or(0, |restart| restart.attempt);
        let first = started_at.filter(|_| restart.is_none());
        self.waited = first.map(|at| self.waited_until(at));
        self.started_at = started_at.filter(|_| restart.is_some());
        self.restart = restart;
    }

    /// How long it had waited at a time.
    pub(super) fn waited_until(&self, time: Timestamp) -> Duration {
        Duration::try_from(time - self.queued_at).unwrap_or_default()
    }
}
