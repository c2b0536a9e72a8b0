//! What clients ask about scripts: start, get, list. How they end is in [`super::end`].

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tracing::{Instrument as _, debug, info};

use super::{Agent, AgentError};
use crate::script::{Phase, ScriptId};
use crate::snapshot::Snapshot;
use crate::spec::Spec;
use crate::store::{Accepted, DoneCursor, DoneFilter, Record};
use crate::wire::{decode_spec, encode_spec};

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
    pub(super) async fn settled(&self, id: &ScriptId) {
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
            stuck: Vec::new(),
            summary: spec.summary(),
        })
    }
}

pub(super) fn stored_spec(record: &Record) -> Result<Spec, AgentError> {
    decode_spec(&record.request)
        .map_err(|source| AgentError::StoredRequest { id: record.id.clone(), source })
}
