//! How scripts end: cancel, the limit of the time in the queue, recording an end.
//!
//! Whoever takes a script out of the queue, or sees its supervisor end, records its end; nobody else.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{Instrument as _, info, info_span, warn};

use super::{Agent, AgentError};
use crate::process::Process;
use crate::script::{Event, Outcome, OutcomeKind, Phase, ScriptId};
use crate::snapshot::Snapshot;
use crate::spec::Spec;
use crate::store::ScriptUpdate;
use crate::supervisor::job::{Cancel, Job};

/// How often it is looked at the supervisor of a script that was asked to stop and has not ended.
const LOOK_AT_SUPERVISOR: Duration = Duration::from_secs(2);

/// Where a script stood when it was asked to stop.
enum Asked {
    /// In the queue, which it has left now.
    Left(String),
    /// In the queue, which it left before; its end is being recorded.
    Leaving,
    /// Its supervisor is to stop it.
    Launched(String),
}

impl Agent {
    /// Asks a script to stop, wherever it stands. With `abandon`, the reason, it also gives its mutexes back
    /// even though processes of it can't be ended. That is on record: in its outcome, and in the log of
    /// the next holder.
    ///
    /// # Errors
    /// When there is no such script or the request can't be written down.
    pub async fn cancel(
        &self,
        id: &ScriptId,
        reason: String,
        abandon: Option<String>,
    ) -> Result<Snapshot, AgentError> {
        self.settled(id).await;
        if self.cancel_lease(id, &reason).await? {
            return self.get(id).await;
        }
        let asked = {
            let mut table = self.table();
            let living = table.get_mut(id).filter(|living| !living.phase.is_done());
            let asked = living.map(|living| {
                // The first reason is the one on record.
                let reason = living.stop.get_or_insert(reason).clone();
                // Nor does a later request without it take it back.
                living.abandon = living.abandon.take().or(abandon);
                (living.phase == Phase::Queued, reason)
            });
            asked.map(|(queued, reason)| match (queued, queued && table.queue.remove(id)) {
                // It has left the line here and now, so it can't be launched.
                (true, true) => Asked::Left(reason),
                (true, false) => Asked::Leaving,
                (false, _) => Asked::Launched(reason),
            })
        };
        match asked {
            Some(Asked::Left(reason)) => {
                info!(reason, "cancelled before it ran");
                let restart = self.table().get(id).map(|living| living.restart.is_some());
                let while_queued = restart != Some(true);
                let kind = OutcomeKind::Cancelled { while_queued, reason };
                self.finish_queued(id, kind).await?;
            }
            Some(Asked::Leaving) => self.is_over(id).await,
            Some(Asked::Launched(reason)) => {
                info!(reason, "asked to stop");
                self.tell_to_stop(id, reason).await?;
            }
            None => {}
        }
        self.get(id).await
    }

    /// Records the end of a script that was taken out of the queue, whether or not somebody waits
    /// for that.
    pub(super) async fn finish_queued(
        &self,
        id: &ScriptId,
        kind: OutcomeKind,
    ) -> Result<(), AgentError> {
        let (agent, id) = (self.clone(), id.clone());
        let finish = async move { agent.finish(&id, kind.into(), None, Timestamp::now()).await };
        let finishing = self.inner.tasks.spawn(finish.in_current_span());
        finishing.await.unwrap_or(Err(AgentError::Stopping))
    }

    /// Says why, then that it is to stop. May be said again: only the first counts.
    pub(super) async fn tell_supervisor_to_stop(&self, id: &ScriptId, reason: String) {
        // The folder may not be made yet: whoever makes it finds the wish in the table.
        if let Err(error) = self.write_cancel(id, reason).await {
            warn!(error = crate::text::chain(&error), "cancel is not written down");
        }
        self.inner.supervisors.stop(id);
    }

    /// Writes down why it is to stop.
    pub(super) async fn write_cancel(
        &self,
        id: &ScriptId,
        reason: String,
    ) -> Result<(), AgentError> {
        let workspace = self.workspace(id);
        let cancel = self.table().get(id).map(|living| {
            let (abandon, lease) = (living.abandon.clone(), living.lease_end());
            Cancel { reason, abandon, lease }
        });
        let write = move || workspace.write_json(&workspace.cancel(), &cancel);
        Ok(super::blocking(write).await??)
    }

    async fn tell_to_stop(&self, id: &ScriptId, reason: String) -> Result<(), AgentError> {
        self.tell_supervisor_to_stop(id, reason.clone()).await;
        let was_stopping = self.table().get(id).is_some_and(|l| l.phase == Phase::Stopping);
        if !was_stopping {
            self.spawn(self.clone().watch_stopping(id.clone()));
        }
        self.table().apply(id, Event::Stop)?;
        self.queue_changed();
        let update = ScriptUpdate { stop_reason: Some(reason), ..ScriptUpdate::of(id.clone()) };
        Ok(self.stored(self.inner.store.update(update)).await?)
    }

    /// Tells a supervisor once more to stop its script.
    pub(super) fn stop_again(&self, id: &ScriptId) {
        self.inner.supervisors.stop(id);
        self.spawn(self.clone().watch_stopping(id.clone()));
    }

    /// Tells, as long as a script stops, whether its supervisor is stopped itself: who waits for its end is
    /// not to wonder.
    async fn watch_stopping(self, id: ScriptId) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_AT_SUPERVISOR) => {}
                () = self.is_over(&id) => return,
            }
            let workspace = self.workspace(&id);
            let look = move || {
                let job: Option<Job> = workspace.read_json(&workspace.job()).ok().flatten();
                let supervisor = job.and_then(|job| Process::read(job.supervisor));
                supervisor.filter(Process::is_stopped).map(|process| process.pid)
            };
            let halted = super::blocking(look).await.unwrap_or_default();
            if let Some(living) = self.table().get_mut(&id)
                && living.halted != halted
            {
                living.halted = halted;
                living.changed.send_replace(());
            }
        }
    }

    /// Stops all scripts and waits until they are done.
    pub(super) async fn stop_all(&self, reason: &str) {
        let mut changes = self.changes();
        let mut asked = HashSet::new();
        loop {
            let living: Vec<ScriptId> =
                self.table().queue.after(0).map(|(_, id)| id.clone()).collect();
            if living.is_empty() {
                return;
            }
            for id in living.into_iter().filter(|id| asked.insert(id.clone())) {
                let span = info_span!("script", script_id = %id);
                if let Err(error) = self.cancel(&id, reason.to_owned(), None).instrument(span).await
                {
                    warn!(script_id = %id, %error, "can't be stopped");
                }
            }
            changes.changed().await.unwrap_or_default();
        }
    }

    /// Records how a script ended, then lets everybody know.
    pub(super) async fn finish(
        &self,
        id: &ScriptId,
        outcome: Outcome,
        started_at: Option<Timestamp>,
        ended_at: Timestamp,
    ) -> Result<(), AgentError> {
        self.lease_is_over(id, &outcome.kind).await;
        let (outcome, output_bytes) = match self.table().get(id) {
            Some(living) => (living.complete(outcome, started_at, ended_at), living.output_bytes),
            None => (outcome, 0),
        };
        info!(outcome = %outcome.kind, "done");
        let request = self.erase_secrets(id).await;
        let erases = request.is_some();
        let update = ScriptUpdate {
            request,
            phase: Some(Phase::Done(outcome)),
            started_at,
            ended_at: Some(ended_at),
            output_bytes: Some(output_bytes),
            ..ScriptUpdate::of(id.clone())
        };
        self.record_end(update).await?;
        if erases {
            self.secrets_erased();
        }
        let living = self.table().remove(id);
        self.queue_changed();
        self.inner.ended.notify_one();
        // Dropped last: those who wait for its end find it in the store.
        drop(living);
        Ok(())
    }

    /// Ends a script that still is in the agent's queue when its time in the queue is over. Once
    /// it is launched, its supervisor looks at the time.
    pub(super) fn limit_queue_time(&self, spec: &Arc<Spec>, queued_at: Timestamp) {
        let Some(limit) = spec.queue_time_limit else {
            return;
        };
        let waited = Duration::try_from(Timestamp::now() - queued_at);
        let left = limit.saturating_sub(waited.unwrap_or_default());
        let (agent, id) = (self.clone(), spec.script_id.clone());
        // Of its own: it outlives the call.
        let span = info_span!(parent: None, "script", script_id = %id);
        let expire = async move {
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = agent.is_over(&id) => return,
            }
            let expired = {
                let mut table = agent.table();
                let queued = table
                    .get(&id)
                    .filter(|living| living.phase == Phase::Queued && living.stop.is_none())
                    // One that ran does not wait for its first turn.
                    .is_some_and(|living| living.restart.is_none());
                // Whoever takes it out of the queue records its end.
                queued && table.queue.remove(&id)
            };
            let outcome = OutcomeKind::QueueTimedOut { limit }.into();
            if expired && let Err(error) = agent.finish(&id, outcome, None, Timestamp::now()).await
            {
                warn!(%error, "the end is not recorded");
            }
        };
        self.spawn(expire.instrument(span));
    }

    /// Returns when the script is done.
    pub(super) async fn is_over(&self, id: &ScriptId) {
        let changes = self.table().get(id).map(|living| living.changed.subscribe());
        if let Some(mut changes) = changes {
            // Its sender goes with the script.
            while changes.changed().await.is_ok() {}
        }
    }
}
