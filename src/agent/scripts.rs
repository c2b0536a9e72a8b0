//! What clients ask about scripts: start, get. Lists are in [`super::list`], ends in [`super::end`].

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{Instrument as _, debug, info, warn};

use super::{Agent, AgentError};
use crate::mutex::MutexName;
use crate::script::{Isolation, Phase, ScriptId};
use crate::snapshot::{LeaseStanding, Snapshot};
use crate::spec::{Spec, What};
use crate::store::{Accepted, Record};
use crate::values::Progress;
use crate::wire::{Stored, decode_stored, encode_spec};

/// What is shown of a script whose request can't be read any more.
const DAMAGED: &str = "(its request in the database is damaged)";

impl Agent {
    /// Accepts a script; it is on disk when this returns. The same request again gives the same
    /// script, as it stands.
    ///
    /// # Errors
    /// When the agent drains or stops, the queue is full, the id was used for another request, or the disk
    /// refuses.
    pub async fn start(&self, spec: Spec) -> Result<Snapshot, AgentError> {
        let id = spec.script_id.clone();
        let spec = Arc::new(spec);
        if let Some(known) = self.known(&spec).await? {
            return Ok(known);
        }
        self.check_lease(&spec).await?;
        // From here on the script has its place. Nobody is told before it is on disk.
        let now = Timestamp::now();
        let arrival = {
            let mut table = self.table();
            if table.get(&id).is_some() {
                None
            } else if let Some(refusal) = table.lease_refusal(&spec) {
                return Err(refusal);
            } else if table.stops_by.is_some() && !table.is_part_of_what_runs(&spec) {
                return Err(AgentError::Stopping);
            } else if let Some(drain) = table.drain.clone()
                && !table.is_part_of_what_runs(&spec)
            {
                return Err(AgentError::Draining(drain));
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
        if !spec.sensitive.is_empty()
            && let Err(error) = self.secrets_key().await
        {
            // Later it might be too late to make one.
            drop(self.table().remove(id));
            self.queue_changed();
            return Err(error);
        }
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
        match self.stored(self.inner.store.accept(record)).await {
            Ok(Accepted::New) => {}
            Ok(Accepted::Existing(record)) => {
                drop(self.table().remove(id));
                self.queue_changed();
                return self.same_request(spec, *record).await;
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
            table.note_waits(id);
            table.snapshot(id)
        };
        info!("accepted");
        // Not in the usual log: the first line of a script may hold a secret.
        debug!(summary = spec.summary(), "accepted");
        self.queue_changed();
        self.limit_queue_time(spec, now);
        self.watch_lease(spec);
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
            Some(record) => self.same_request(spec, record).await.map(Some),
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

    async fn same_request(&self, spec: &Spec, record: Record) -> Result<Snapshot, AgentError> {
        let stored = stored(&record)?;
        let fields = if stored.is_erased() {
            stored.differences(spec, self.secrets_key().await?)
        } else {
            stored.spec.differences(spec)
        };
        if fields.is_empty() {
            return Ok(stored_snapshot(record));
        }
        Err(AgentError::IdConflict { id: record.id, fields })
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
            Some(record) => Ok(stored_snapshot(record)),
            None => Err(AgentError::NotFound(id.clone())),
        }
    }
}

/// How a script of the store stands. One whose request is damaged is shown without it.
pub(super) fn stored_snapshot(record: Record) -> Snapshot {
    let spec = stored(&record).map(|stored| stored.spec);
    if let Err(error) = &spec {
        warn!(script_id = %record.id, error = crate::text::chain(error), "shown in part");
    }
    let (spec, progress) = (spec.ok(), last_progress(&record.phase));
    let lease = spec.as_ref().and_then(|spec| spec.lease.clone());
    let lease_standing = match spec.as_ref().map(|spec| &spec.what) {
        Some(What::Lease(terms)) => Some(LeaseStanding { terms: terms.clone(), expires_at: None }),
        Some(What::Body { .. } | What::Program(_)) | None => None,
    };
    let mutex = spec.as_ref().map(|spec| spec.mutex.clone());
    Snapshot {
        script_id: record.id,
        phase: record.phase,
        labels: record.labels,
        isolation: spec.as_ref().map_or(Isolation::Exclusive, |spec| spec.isolation),
        mutex: mutex.or(record.mutex.parse().ok()).unwrap_or_else(MutexName::machine),
        exclusive_key: spec.as_ref().and_then(|spec| spec.exclusive_key.clone()),
        waits: Vec::new(),
        queued_at: record.queued_at,
        started_at: record.started_at,
        ended_at: record.ended_at,
        output_bytes: record.output_bytes,
        stuck: Vec::new(),
        halted: None,
        summary: spec.map_or_else(|| DAMAGED.to_owned(), |spec| spec.summary()),
        progress,
        lease,
        lease_standing,
    }
}

/// How far a script was at its end.
fn last_progress(phase: &Phase) -> Option<Progress> {
    match phase {
        Phase::Done(outcome) => outcome.values.progress.clone(),
        Phase::Queued | Phase::Waiting | Phase::Running | Phase::Stopping => None,
    }
}

pub(super) fn stored(record: &Record) -> Result<Stored, AgentError> {
    decode_stored(&record.request)
        .map_err(|source| AgentError::StoredRequest { id: record.id.clone(), source })
}
