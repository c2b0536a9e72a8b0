//! Stopping: before the agent ends it takes nothing new, starts nothing more, and waits a while for what runs.
//!
//! 1. It is not on disk, as a drain is: the next run of the agent takes scripts again.
//! 2. What stands in the machine's line steps back and is in the queue again, as for a drain. A lease that is open
//!    is what runs, with all its scripts.
//! 3. What still runs when the wait is over goes on with its supervisor, and the next run finds it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tracing::info;

use super::Agent;

impl Agent {
    /// Takes nothing new from now on, starts nothing, and waits until nothing runs, at most so long.
    ///
    /// # Cancel safety
    /// May be dropped: it goes on taking and starting nothing.
    pub async fn wind_down(&self, limit: Duration) {
        let until = Timestamp::now() + SignedDuration::try_from(limit).unwrap_or_default();
        self.table().stops_by = Some(until);
        self.step_back_all();
        self.queue_changed();
        let is_at_rest = tokio::time::timeout(limit, self.comes_to_rest()).await.is_ok();
        let running = self.status().counts.running;
        info!(is_at_rest, running, "the wait for what runs is over");
    }

    async fn comes_to_rest(&self) {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let counts = self.status().counts;
            if counts.running + counts.waiting == 0 {
                return;
            }
            // The agent, which rings, outlives this.
            changes.changed().await.unwrap_or_default();
        }
    }

    /// Returns when the agent's parts have answered: its table can be had, its store says something. Each
    /// takes as long as it takes.
    pub async fn makes_progress(&self) {
        drop(self.table());
        // What the store says is another matter: the disk may be full.
        drop(self.inner.store.max_seq().await);
    }
}
