//! Draining: the agent finishes what runs, takes nothing new, and keeps its queue.
//!
//! 1. It is on disk before it is told, and stays so over restarts, until Resume.
//! 2. What runs goes on to its end. What stands with a supervisor in the machine's line is not
//!    started either: the supervisor is asked to step back, and the script is in the queue again, in
//!    its old place. Only the supervisor knows whether it has started the script; then it goes on.
//! 3. Nothing new is accepted, observers included: whoever drains a machine wants it to come to rest.
//!    A known script that is sent again is no new one.
//! 4. The first drain is the one on record.

use jiff::Timestamp;
use tracing::{Instrument as _, info};

use super::{Agent, AgentError, Status};
use crate::script::{Drain, ScriptId};

impl Agent {
    /// Takes nothing new from now on, and starts nothing.
    ///
    /// # Errors
    /// When that can't be remembered; then nothing has changed.
    pub async fn drain(&self, by: String, reason: String) -> Result<Status, AgentError> {
        self.change_drain(Some(Drain { since: Timestamp::now(), by, reason })).await
    }

    /// Takes and starts scripts again, in their order.
    ///
    /// # Errors
    /// When that can't be remembered; then nothing has changed.
    pub async fn resume(&self) -> Result<Status, AgentError> {
        self.change_drain(None).await
    }

    /// Changes it whole, whether or not somebody waits for that.
    async fn change_drain(&self, drain: Option<Drain>) -> Result<Status, AgentError> {
        let agent = self.clone();
        let change = async move { agent.change_drain_now(drain).await };
        let changing = self.inner.tasks.spawn(change.in_current_span());
        changing.await.unwrap_or(Err(AgentError::Stopping))
    }

    async fn change_drain_now(&self, drain: Option<Drain>) -> Result<Status, AgentError> {
        // One at a time: the store and the table say the same.
        let _one = self.inner.draining.lock().await;
        let before = self.status();
        if before.drain.is_some() == drain.is_some() {
            return Ok(before);
        }
        self.stored(self.inner.store.set_drain(drain.clone())).await?;
        let reason = drain.as_ref().map(|drain| &drain.reason);
        let drains = drain.is_some();
        info!(drains, reason, "what the agent takes has changed");
        self.table().drain = drain;
        if drains {
            self.step_back_all();
        }
        self.queue_changed();
        Ok(self.status())
    }

    /// Asks all supervisors that may not have started their scripts to step back (rule 2). The last in
    /// the line first: each knows of it before one in front of it can make room.
    pub(super) fn step_back_all(&self) {
        let ids = self.table().last_first();
        for id in ids {
            self.step_back(&id);
        }
    }

    /// The same of one. Who is about to get its assignment does not get it.
    fn step_back(&self, id: &ScriptId) {
        // First in the queue, so that nobody takes the place that it gives up.
        if self.table().step_back(id) {
            self.inner.supervisors.step_back(id);
        }
    }
}
