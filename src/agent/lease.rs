//! Leases: scripts that run nothing, and hold their mutexes for others.
//!
//! ```text
//! waits ──► open ──► ending: no new scripts, its last ones end ──► its supervisor gives the mutexes back
//! ```
//!
//! 1. A lease has its place, its record and its supervisor as a script does. What is more is here: who
//!    may run under it, when it expires, and how it ends.
//! 2. A script under a lease stands in the lease's own line and is launched while the lease is open, also
//!    while the agent drains: an open lease is what runs, and goes on to its end.
//! 3. Time is measured by a monotonic clock, from the last word of the client. After a restart of the
//!    agent it begins anew: the client could not reach it meanwhile.
//! 4. A lease that ends is never open again: that is on disk (`cancel.json`) before anybody is told. Its
//!    supervisor is told when its last script has ended, processes that a killed one left included.
//! 5. When a lease's supervisor was killed, what runs under it goes on and keeps the mutexes; the lease
//!    ends then.

use std::io::ErrorKind;
use std::pin::Pin;

use tracing::{Instrument as _, info, info_span, warn};

use super::table::Living;
use super::term::{Ending, Term};
use super::{Agent, AgentError};
use crate::script::{Event, OutcomeKind, Phase, ScriptId, StartProblem};
use crate::snapshot::Snapshot;
use crate::spec::{OnLeaseEnd, Spec, What};
use crate::supervisor::job::{Cancel, LeaseEnd};
use crate::workspace::WorkspaceError;

impl Agent {
    /// Accepts a lease, or renews it when it is sent again.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn open_lease(&self, spec: Spec) -> Result<Snapshot, AgentError> {
        let id = spec.script_id.clone();
        self.start(spec).await?;
        if let Some(term) = self.table().get_mut(&id).and_then(|living| living.term.as_mut()) {
            // One that ended is shown as it is.
            term.renew().unwrap_or_default();
        }
        self.get(&id).await
    }

    /// Hears of a lease's client.
    ///
    /// # Errors
    /// When the lease ended, or there is none.
    pub async fn renew_lease(&self, id: &ScriptId) -> Result<Snapshot, AgentError> {
        self.settled(id).await;
        let renewed = {
            let mut table = self.table();
            let term = table.get_mut(id).and_then(|living| living.term.as_mut());
            term.map(Term::renew)
        };
        match renewed {
            Some(Ok(())) => {}
            Some(Err(reason)) => return Err(AgentError::LeaseEnded { id: id.clone(), reason }),
            None => return Err(self.ended_lease(id).await?.1),
        }
        self.get(id).await
    }

    /// Ends a lease because its client says so.
    ///
    /// # Errors
    /// When there is none, or that can't be written down.
    pub async fn close_lease(
        &self,
        id: &ScriptId,
        on_end: OnLeaseEnd,
        reason: String,
    ) -> Result<Snapshot, AgentError> {
        self.settled(id).await;
        let is_here = self.table().get(id).is_some_and(|living| living.term.is_some());
        if !is_here {
            return self.ended_lease(id).await?.0;
        }
        self.end_lease(id, Ending { end: LeaseEnd::Closed, reason, on_end }).await?;
        self.get(id).await
    }

    /// The leases that have not ended, in order of arrival.
    pub fn leases(&self) -> Vec<Snapshot> {
        let table = self.table();
        let all = table.snapshots(0).map(|(_, snapshot)| snapshot);
        all.filter(|snapshot| snapshot.lease_standing.is_some()).collect()
    }

    /// How a lease that isn't in the table stands, and why nothing runs under it.
    async fn ended_lease(
        &self,
        id: &ScriptId,
    ) -> Result<(Result<Snapshot, AgentError>, AgentError), AgentError> {
        let unknown = || AgentError::LeaseNotFound(id.clone());
        let snapshot = match self.get(id).await {
            Ok(snapshot) => snapshot,
            Err(AgentError::NotFound(_)) => return Ok((Err(unknown()), unknown())),
            Err(error) => return Err(error),
        };
        let ended = match (&snapshot.lease_standing, &snapshot.phase) {
            (Some(_), Phase::Done(outcome)) => Some(outcome.kind.to_string()),
            _ => None,
        };
        Ok(match ended {
            Some(reason) => (Ok(snapshot), AgentError::LeaseEnded { id: id.clone(), reason }),
            None => (Err(unknown()), unknown()),
        })
    }

    /// Refuses a script whose lease isn't in the table.
    pub(super) async fn check_lease(&self, spec: &Spec) -> Result<(), AgentError> {
        let Some(lease) = &spec.lease else {
            return Ok(());
        };
        self.settled(lease).await;
        if self.table().get(lease).is_some() {
            return Ok(());
        }
        Err(self.ended_lease(lease).await?.1)
    }

    /// From now on it is watched whether a lease's client lives.
    pub(super) fn watch_lease(&self, spec: &Spec) {
        let What::Lease(terms) = &spec.what else {
            return;
        };
        let id = spec.script_id.clone();
        if let Some(living) = self.table().get_mut(&id) {
            living.term.get_or_insert_with(|| Term::begin(terms));
        }
        let (agent, span) = (self.clone(), info_span!(parent: None, "lease", script_id = %id));
        let watch = async move {
            tokio::select! {
                () = agent.expire(&id) => {}
                () = agent.is_over(&id) => {}
            }
        };
        self.spawn(watch.instrument(span));
    }

    /// Ends a lease when it has expired.
    async fn expire(&self, id: &ScriptId) {
        loop {
            let (until, ending) = match self.table().get(id).and_then(|living| living.term.as_ref())
            {
                Some(term) if term.end.is_none() => (term.expires(), term.expiry()),
                Some(_) | None => return,
            };
            let Some(ending) = ending else {
                tokio::time::sleep_until(until.into()).await;
                continue;
            };
            if let Err(error) = self.end_lease(id, ending).await {
                warn!(error = crate::text::chain(&error), "its end is not written down");
            }
            return;
        }
    }

    /// Cancels a lease; says whether it is one.
    pub(super) async fn cancel_lease(
        &self,
        id: &ScriptId,
        reason: &str,
    ) -> Result<bool, AgentError> {
        let is_lease = self.table().get(id).is_some_and(|living| living.term.is_some());
        if is_lease {
            let (end, reason) = (LeaseEnd::Cancelled, reason.to_owned());
            self.end_lease(id, Ending { end, reason, on_end: OnLeaseEnd::Cancel }).await?;
        }
        Ok(is_lease)
    }

    /// Ends a lease (rule 4). The first end is the one on record; a later one may still cancel what runs.
    async fn end_lease(&self, id: &ScriptId, ending: Ending) -> Result<(), AgentError> {
        let (decided, was_queued) = {
            let mut table = self.table();
            let Some(living) = table.get_mut(id).filter(|living| !living.phase.is_done()) else {
                return Ok(());
            };
            let Some(term) = living.term.as_mut() else {
                return Ok(());
            };
            let decided = term.end.get_or_insert_with(|| ending.clone());
            if ending.on_end == OnLeaseEnd::Cancel {
                decided.on_end = OnLeaseEnd::Cancel;
            }
            let decided = decided.clone();
            living.stop.get_or_insert_with(|| decided.reason.clone());
            let was_queued = living.phase == Phase::Queued;
            if was_queued && !table.queue.remove(id) {
                // Whoever took it out of the queue records its end.
                return Ok(());
            }
            (decided, was_queued)
        };
        info!(reason = decided.describe(), "the lease ends");
        if was_queued {
            let kind = decided.end.outcome(true, decided.reason.clone());
            return self.finish_queued(id, kind).await;
        }
        let written = match self.write_cancel(id, decided.reason.clone()).await {
            // It is just being launched: whoever does that finds the end in the table.
            Err(AgentError::Workspace(WorkspaceError::File { source, .. }))
                if source.kind() == ErrorKind::NotFound =>
            {
                Ok(())
            }
            // When the disk refuses, it ends all the same; whoever closes it hears of that, and may do
            // it again.
            written => written,
        };
        self.table().apply(id, Event::Stop)?;
        self.queue_changed();
        self.wind_up_lease(id, decided.reason);
        written
    }

    /// Ends its scripts, then tells its supervisor.
    fn wind_up_lease(&self, id: &ScriptId, reason: String) {
        let (agent, id) = (self.clone(), id.clone());
        let wind_up = async move {
            agent.end_scripts(&id).await;
            agent.tell_supervisor_to_stop(&id, reason).await;
        };
        self.spawn(wind_up.in_current_span());
    }

    /// Ends the scripts of a lease that ends: those in the queue at once, the others as it says. Returns
    /// when the last one is over.
    pub(super) fn end_scripts<'a>(
        &'a self,
        lease: &'a ScriptId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let mut changes = self.changes();
            loop {
                changes.mark_unchanged();
                let scripts = self.table().scripts_of(lease);
                if scripts.is_empty() {
                    return;
                }
                for id in scripts {
                    self.settled(&id).await;
                    if let Err(error) = self.end_script(lease, &id).await {
                        warn!(script_id = %id, error = crate::text::chain(&error), "can't be ended");
                    }
                }
                // An error: the agent has ended.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    async fn end_script(&self, lease: &ScriptId, id: &ScriptId) -> Result<(), AgentError> {
        let (ending, is_queued, is_stopping) = {
            let mut table = self.table();
            let term = table.get(lease).and_then(|living| living.term.as_ref());
            let ending = term.and_then(|term| term.end.clone());
            let Some(living) = table.get(id) else {
                return Ok(());
            };
            let is_queued = living.phase == Phase::Queued;
            let is_stopping = living.stop.is_some();
            (ending, is_queued && table.queue.remove(id), is_stopping)
        };
        let end = ending.as_ref().map_or_else(|| "lost".to_owned(), Ending::describe);
        let reason = format!("its lease {lease} ended: {end}");
        if is_queued {
            let kind = OutcomeKind::NotStarted { cause: StartProblem::Lease, reason };
            return self.finish_queued(id, kind).await;
        }
        let is_to_stop = ending.is_some_and(|ending| ending.on_end == OnLeaseEnd::Cancel);
        if is_to_stop && !is_stopping {
            self.cancel(id, reason, None).await?;
        }
        Ok(())
    }

    /// A lease ends however it does: nothing more runs under it, and what runs is waited for (rule 5).
    pub(super) async fn lease_is_over(&self, id: &ScriptId, outcome: &OutcomeKind) {
        {
            let mut table = self.table();
            let Some(term) = table.get_mut(id).and_then(|living| living.term.as_mut()) else {
                return;
            };
            let (end, on_end) = (LeaseEnd::Lost, OnLeaseEnd::Wait);
            term.end.get_or_insert_with(|| Ending { end, reason: outcome.to_string(), on_end });
        }
        self.queue_changed();
        self.end_scripts(id).await;
    }

    /// How a lease ended whose supervisor was killed.
    pub(super) fn lost_lease(&self, id: &ScriptId, reason: String) -> OutcomeKind {
        let table = self.table();
        let term = table.get(id).and_then(|living| living.term.as_ref());
        match term.and_then(|term| term.end.clone()) {
            Some(ending) => ending.end.outcome(false, ending.reason),
            None => OutcomeKind::Lost { reason },
        }
    }

    /// Goes on with a lease of an earlier run of the agent, or with its end.
    pub(super) fn recover_lease(&self, spec: &Spec, cancel: Option<Cancel>) {
        let What::Lease(terms) = &spec.what else {
            return;
        };
        let mut term = Term::begin(terms);
        if let Some(living) = self.table().get_mut(&spec.script_id) {
            if let Some(Cancel { reason, lease: Some((end, on_end)), .. }) = cancel {
                living.stop = Some(reason.clone());
                term.end = Some(Ending { end, reason, on_end });
            }
            living.term = Some(term);
        }
        self.watch_lease(spec);
    }

    /// Goes on with the leases that were ending, and with the scripts of those that are gone.
    pub(super) fn recover_leases(&self) -> Result<(), AgentError> {
        let (ending, orphans) = {
            let table = self.table();
            let end = |living: &Living| {
                let ending = living.term.as_ref()?.end.as_ref()?;
                let is_launched = living.phase != Phase::Queued;
                is_launched.then(|| (living.spec.script_id.clone(), ending.reason.clone()))
            };
            let ending: Vec<(ScriptId, String)> = table.all().filter_map(end).collect();
            let orphaned = |living: &&Living| {
                let lease = living.spec.lease.as_ref();
                lease.is_some_and(|lease| table.get(lease).is_none())
            };
            let lease = |living: &Living| living.spec.lease.clone();
            let orphans: Vec<ScriptId> = table.all().filter(orphaned).filter_map(lease).collect();
            (ending, orphans)
        };
        for (id, reason) in ending {
            self.table().apply(&id, Event::Stop)?;
            self.wind_up_lease(&id, reason);
        }
        for lease in orphans {
            let agent = self.clone();
            self.spawn(async move { agent.end_scripts(&lease).await });
        }
        Ok(())
    }
}
