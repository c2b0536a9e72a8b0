//! Changes of the store, and whether it takes them: whoever looks at the agent is told while it does not.
//!
//! 1. A change that the disk refuses is a problem, whoever wished for it.
//! 2. It is over when the store takes a change and no end of a script waits to be recorded.
//! 3. For that nobody need wish for a change: one that changes nothing is tried until then.

use std::time::Duration;

use jiff::Timestamp;
use tracing::error;

use super::{Agent, AgentError, StoreProblem};
use crate::store::{ScriptUpdate, StoreError};

/// How long to wait before a change that was refused is tried again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a change that changes nothing is tried. It is small, and may find room where a request did not:
/// who looks is to see that there was a problem all the same.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Whether the store takes changes.
#[derive(Debug, Default)]
pub(super) struct StoreStanding {
    /// Why not.
    pub(super) problem: Option<StoreProblem>,
    /// How many ends wait to be recorded.
    unrecorded: usize,
}

impl Agent {
    /// Makes a change; lets everybody know whether the store takes it.
    pub(super) async fn stored<T>(
        &self,
        change: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let result = change.await;
        match &result {
            Ok(_) => self.store_takes(),
            Err(error @ (StoreError::Sql(_) | StoreError::Commit(_))) => self.store_refuses(error),
            // Not the disk.
            Err(
                StoreError::Open { .. }
                | StoreError::Newer { .. }
                | StoreError::Migrate { .. }
                | StoreError::Copy { .. }
                | StoreError::Row(_)
                | StoreError::Closed,
            ) => {}
        }
        result
    }

    /// Puts an end into the store, as often as that takes: the disk may be full for a while.
    pub(super) async fn record_end(&self, update: ScriptUpdate) -> Result<(), AgentError> {
        let (mut pause, mut refused) = (FIRST_PAUSE, 0);
        loop {
            match self.inner.store.update(update.clone()).await {
                Err(error @ StoreError::Closed) if self.inner.stop.is_cancelled() => {
                    return Err(error.into());
                }
                // Its state goes with the command: nobody waits for a disk here.
                Err(error) if self.inner.settings.tied => return Err(error.into()),
                Err(error) => {
                    error!(error = crate::text::chain(&error), "the end is not recorded yet");
                    self.table().store.unrecorded += 1 - refused;
                    refused = 1;
                    self.store_refuses(&error);
                }
                Ok(()) => {
                    self.table().store.unrecorded -= refused;
                    self.store_takes();
                    return Ok(());
                }
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    fn store_refuses(&self, error: &StoreError) {
        let reason = crate::text::chain(error);
        let before = {
            let mut table = self.table();
            let before = table.store.problem.clone();
            let since = before.as_ref().map_or_else(Timestamp::now, |known| known.since);
            table.store.problem = Some(StoreProblem { since, reason: reason.clone() });
            before
        };
        if before.is_none() {
            self.spawn(self.clone().try_store());
        }
        if before.is_none_or(|before| before.reason != reason) {
            self.queue_changed();
        }
    }

    fn store_takes(&self) {
        let is_over = {
            let mut table = self.table();
            table.store.unrecorded == 0 && table.store.problem.take().is_some()
        };
        if is_over {
            self.queue_changed();
        }
    }

    /// Rule 3.
    async fn try_store(self) {
        while self.table().store.problem.is_some() {
            tokio::time::sleep(TRY_AGAIN).await;
            if self.inner.store.try_change().await.is_ok() {
                self.store_takes();
            }
        }
    }
}
