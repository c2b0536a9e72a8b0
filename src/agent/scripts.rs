//! What clients ask about scripts: start, get, list, cancel, forget.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use super::{Agent, AgentError};
use crate::script::{Event, Outcome, OutcomeKind, Phase, ScriptId};
use crate::snapshot::Snapshot;
use crate::spec::Spec;
use crate::store::{Accepted, DoneCursor, DoneFilter, Record, ScriptUpdate, StoreError};
use crate::supervisor::job::Cancel;
use crate::wire::{decode_spec, encode_spec};

/// How long to wait before an end that was not recorded is recorded again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Which scripts a list has.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Whether those who are not done are in it, by the name of their phase; `None`: all of them.
    pub phases: Option<Vec<&'static str>>,
    /// Labels that they must have.
    pub labels: BTreeMap<String, String>,
}

/// A place in a list: just behind a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListCursor {
    /// One that is not done; the number of its arrival.
    Living(u64),
    /// One that is done.
    Done(DoneCursor),
}

/// Where a script stood when it was asked to stop.
enum Asked {
    /// In the queue, which it has left now.
    Left(String),
    /// In the queue, which it left before; its end is being recorded.
    Leaving,
    /// Its supervisor is to stop it.
    Launched(String),
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// The scripts.
    pub scripts: Vec<Snapshot>,
    /// Where the next page starts; `None`: this is the last.
    pub next: Option<ListCursor>,
}

impl ListFilter {
    fn wants(&self, phase: &'static str) -> bool {
        self.phases.as_ref().is_none_or(|phases| phases.contains(&phase))
    }

    fn matches(&self, snapshot: &Snapshot) -> bool {
        self.wants(snapshot.phase.name())
            && self.labels.iter().all(|(key, value)| snapshot.labels.get(key) == Some(value))
    }
}

impl Agent {
    /// Accepts a script; it is on disk when this returns. The same request again gives the same
    /// script, as it stands.
    ///
    /// # Errors
    /// When the queue is full, the id was used for another request, or the disk refuses.
    pub async fn start(&self, spec: Spec) -> Result<Snapshot, AgentError> {
        let id = spec.script_id.clone();
        let spec = Arc::new(spec);
        if let Some(known) = self.known(&spec).await? {
            return Ok(known);
        }
        // From here on the script has its place. Nobody is told before it is on disk.
        let now = Timestamp::now();
        let arrival = {
            let mut table = self.table();
            if table.get(&id).is_some() {
                None
            } else {
                Some(table.reserve(Arc::clone(&spec), now)?)
            }
        };
        let Some(arrival) = arrival else {
            // Somebody was quicker with the same id.
            return self.known(&spec).await?.ok_or(AgentError::NotFound(id));
        };
        // A client that goes away must not leave a half-accepted script behind.
        let agent = self.clone();
        let accepting = async move { agent.accept(&spec, arrival, now).await };
        let accepting = self.inner.tasks.spawn(accepting.in_current_span());
        accepting.await.unwrap_or(Err(AgentError::Stopping))
    }

    async fn accept(
        &self,
        spec: &Arc<Spec>,
        arrival: u64,
        now: Timestamp,
    ) -> Result<Snapshot, AgentError> {
        let id = &spec.script_id;
        let record = Record {
            id: id.clone(),
            seq: arrival,
            request: encode_spec(spec),
            phase: Phase::Queued,
            labels: spec.labels.clone(),
            mutex: spec.mutex.to_string(),
            queued_at: now,
            started_at: None,
            ended_at: None,
            stop_reason: None,
            output_bytes: 0,
        };
        match self.inner.store.accept(record).await {
            Ok(Accepted::New) => {}
            Ok(Accepted::Existing(record)) => {
                drop(self.table().remove(id));
                self.queue_changed();
                return self.same_request(spec, &record);
            }
            Err(error) => {
                drop(self.table().remove(id));
                self.queue_changed();
                return Err(error.into());
            }
        }
        let snapshot = {
            let mut table = self.table();
            table.accept(id);
            table.snapshot(id)
        };
        info!("accepted");
        // Not in the usual log: the first line of a script may hold a secret.
        debug!(summary = spec.summary(), "accepted");
        self.queue_changed();
        self.limit_queue_time(spec, now);
        snapshot.ok_or_else(|| AgentError::NotFound(id.clone()))
    }

    /// The script with this id, if there is one already.
    async fn known(&self, spec: &Spec) -> Result<Option<Snapshot>, AgentError> {
        let id = &spec.script_id;
        self.settled(id).await;
        if let Some(living) = self.table().get(id) {
            let fields = living.spec.differences(spec);
            if !fields.is_empty() {
                return Err(AgentError::IdConflict { id: id.clone(), fields });
            }
        }
        if let Some(snapshot) = self.table().snapshot(id) {
            return Ok(Some(snapshot));
        }
        match self.inner.store.get(id).await? {
            Some(record) => self.same_request(spec, &record).map(Some),
            None => Ok(None),
        }
    }

    /// Waits until the script, if there is one, is on disk or refused.
    async fn settled(&self, id: &ScriptId) {
        loop {
            let changed = {
                let table = self.table();
                let unsettled = table.get(id).filter(|living| !living.accepted);
                unsettled.map(|living| living.changed.subscribe())
            };
            match changed {
                // An error means that it isn't there any more.
                Some(mut changed) => changed.changed().await.unwrap_or_default(),
                None => return,
            }
        }
    }

    fn same_request(&self, spec: &Spec, record: &Record) -> Result<Snapshot, AgentError> {
        let stored = stored_spec(record)?;
        let fields = stored.differences(spec);
        if fields.is_empty() {
            return self.from_record(record);
        }
        Err(AgentError::IdConflict { id: record.id.clone(), fields })
    }

    /// How a script stands.
    ///
    /// # Errors
    /// When there is no such script.
    pub async fn get(&self, id: &ScriptId) -> Result<Snapshot, AgentError> {
        if let Some(snapshot) = self.table().snapshot(id) {
            return Ok(snapshot);
        }
        match self.inner.store.get(id).await? {
            Some(record) => self.from_record(&record),
            None => Err(AgentError::NotFound(id.clone())),
        }
    }

    /// A page of scripts: first those that are not done in order of arrival, then the others,
    /// newest first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn list(
        &self,
        filter: &ListFilter,
        after: Option<ListCursor>,
        limit: usize,
    ) -> Result<Page, AgentError> {
        let mut scripts = Vec::new();
        let after_done = match after {
            Some(ListCursor::Done(cursor)) => Some(cursor),
            Some(ListCursor::Living(_)) | None => {
                let from = if let Some(ListCursor::Living(arrival)) = after { arrival } else { 0 };
                let table = self.table();
                let found = table.snapshots(from).filter(|(_, script)| filter.matches(script));
                for (arrival, script) in found {
                    scripts.push(script);
                    if scripts.len() == limit {
                        return Ok(Page { scripts, next: Some(ListCursor::Living(arrival)) });
                    }
                }
                None
            }
        };
        if !filter.wants("done") {
            return Ok(Page { scripts, next: None });
        }
        let room = limit - scripts.len();
        let done = DoneFilter { labels: filter.labels.clone() };
        let records = self.inner.store.done_page(done, after_done, room + 1).await?;
        let last = records.get(room).and_then(|_| records[..room].last());
        let next = last.map(|record| ListCursor::Done(DoneCursor::of(record)));
        for record in records.iter().take(room) {
            scripts.push(self.from_record(record)?);
        }
        Ok(Page { scripts, next })
    }

    /// Asks a script to stop, wherever it stands.
    ///
    /// # Errors
    /// When there is no such script or the request can't be written down.
    pub async fn cancel(&self, id: &ScriptId, reason: String) -> Result<Snapshot, AgentError> {
        self.settled(id).await;
        let asked = {
            let mut table = self.table();
            let living = table.get_mut(id).filter(|living| !living.phase.is_done());
            let asked = living.map(|living| {
                // The first reason is the one on record.
                let reason = living.stop.get_or_insert(reason).clone();
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
                let kind = OutcomeKind::Cancelled { while_queued: true, reason };
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
    async fn finish_queued(&self, id: &ScriptId, kind: OutcomeKind) -> Result<(), AgentError> {
        let (agent, id) = (self.clone(), id.clone());
        let finish = async move { agent.finish(&id, kind.into(), None, Timestamp::now()).await };
        let finishing = self.inner.tasks.spawn(finish.in_current_span());
        finishing.await.unwrap_or(Err(AgentError::Stopping))
    }

    /// Says why, then that it is to stop. May be said again: only the first counts.
    pub(super) async fn tell_supervisor_to_stop(&self, id: &ScriptId, reason: String) {
        let workspace = self.workspace(id);
        let cancel = Cancel { reason };
        let write = move || workspace.write_json(&workspace.cancel(), &cancel);
        // The folder may not be made yet: whoever makes it finds the wish in the table.
        if let Ok(Err(error)) = super::blocking(write).await {
            warn!(error = crate::text::chain(&error), "cancel is not written down");
        }
        self.inner.supervisors.stop(id);
    }

    async fn tell_to_stop(&self, id: &ScriptId, reason: String) -> Result<(), AgentError> {
        self.tell_supervisor_to_stop(id, reason.clone()).await;
        self.table().apply(id, Event::Stop)?;
        self.queue_changed();
        let update = ScriptUpdate { stop_reason: Some(reason), ..ScriptUpdate::of(id.clone()) };
        Ok(self.inner.store.update(update).await?)
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
                if let Err(error) = self.cancel(&id, reason.to_owned()).instrument(span).await {
                    warn!(script_id = %id, %error, "can't be stopped");
                }
            }
            changes.changed().await.unwrap_or_default();
        }
    }

    /// Removes a script that is done.
    ///
    /// # Errors
    /// When it is not done, or there is no such script.
    pub async fn forget(&self, id: &ScriptId) -> Result<(), AgentError> {
        let _one = self.inner.forgetting.lock().await;
        if !self.get(id).await?.phase.is_done() {
            return Err(AgentError::NotDone(id.clone()));
        }
        // Its end is told before the store has it: without it the script would be run again.
        self.is_over(id).await;
        let workspace = self.workspace(id);
        super::blocking(move || workspace.remove()).await??;
        self.inner.store.forget(id).await?;
        info!("forgotten");
        Ok(())
    }

    /// Records how a script ended, then lets everybody know.
    pub(super) async fn finish(
        &self,
        id: &ScriptId,
        outcome: Outcome,
        started_at: Option<Timestamp>,
        ended_at: Timestamp,
    ) -> Result<(), AgentError> {
        let output_bytes = self.table().get(id).map_or(0, |living| living.output_bytes);
        info!(outcome = %outcome.kind, "done");
        let update = ScriptUpdate {
            phase: Some(Phase::Done(outcome)),
            started_at,
            ended_at: Some(ended_at),
            output_bytes: Some(output_bytes),
            ..ScriptUpdate::of(id.clone())
        };
        self.record_end(update).await?;
        let living = self.table().remove(id);
        self.queue_changed();
        // Dropped last: those who wait for its end find it in the store.
        drop(living);
        Ok(())
    }

    /// Puts an end into the store, as often as that takes: the disk may be full for a while.
    async fn record_end(&self, update: ScriptUpdate) -> Result<(), AgentError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.inner.store.update(update.clone()).await {
                Err(error @ StoreError::Closed) if self.inner.stop.is_cancelled() => {
                    return Err(error.into());
                }
                // Its state goes with the command: nobody waits for a disk here.
                Err(error) if self.inner.settings.tied => return Err(error.into()),
                Err(error) => {
                    error!(error = crate::text::chain(&error), "the end is not recorded yet");
                }
                Ok(()) => return Ok(()),
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
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
                    .is_some_and(|living| living.phase == Phase::Queued && living.stop.is_none());
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
    async fn is_over(&self, id: &ScriptId) {
        let changes = self.table().get(id).map(|living| living.changed.subscribe());
        if let Some(mut changes) = changes {
            // Its sender goes with the script.
            while changes.changed().await.is_ok() {}
        }
    }

    /// How a script of the store stands.
    #[expect(clippy::unused_self, clippy::wrong_self_convention, reason = "reads as a method")]
    fn from_record(&self, record: &Record) -> Result<Snapshot, AgentError> {
        let spec = stored_spec(record)?;
        Ok(Snapshot {
            script_id: record.id.clone(),
            phase: record.phase.clone(),
            labels: spec.labels.clone(),
            isolation: spec.isolation,
            mutex: spec.mutex.clone(),
            exclusive_key: spec.exclusive_key.clone(),
            waits: Vec::new(),
            queued_at: record.queued_at,
            started_at: record.started_at,
            ended_at: record.ended_at,
            output_bytes: record.output_bytes,
            summary: spec.summary(),
        })
    }
}

pub(super) fn stored_spec(record: &Record) -> Result<Spec, AgentError> {
    decode_spec(&record.request)
        .map_err(|source| AgentError::StoredRequest { id: record.id.clone(), source })
}
