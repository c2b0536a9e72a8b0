//! What the agent knows of leases beside what it knows of scripts: when one expires, how it ends, and which
//! scripts may run under it. The rules stand in [`super::lease`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::AgentError;
use super::table::{Living, Table};
use crate::mutex::Party;
use crate::script::{OutcomeKind, Phase, ScriptId};
use crate::snapshot::{LeaseStanding, Wait, clock};
use crate::spec::{LeaseTerms, OnLeaseEnd, Spec, What};
use crate::supervisor::job::LeaseEnd;

/// What the agent knows of a lease beside what it knows of a script.
#[derive(Debug)]
pub(super) struct Term {
    ttl: Duration,
    /// When something was last heard of its client.
    heard: Instant,
    /// The same for people.
    heard_at: Timestamp,
    pub(super) end: Option<Ending>,
}

/// How a lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) end: LeaseEnd,
    pub(super) reason: String,
    pub(super) on_end: OnLeaseEnd,
}

impl Term {
    pub(super) fn begin(terms: &LeaseTerms) -> Self {
        let (heard, heard_at) = (Instant::now(), Timestamp::now());
        Self { ttl: terms.ttl, heard, heard_at, end: None }
    }

    /// Hears of its client, or says how it ended.
    pub(super) fn renew(&mut self) -> Result<(), String> {
        if let Some(ending) = &self.end {
            return Err(ending.describe());
        }
        (self.heard, self.heard_at) = (Instant::now(), Timestamp::now());
        Ok(())
    }

    pub(super) fn expires(&self) -> Instant {
        self.heard + self.ttl
    }

    /// How it ends when it has expired (rule 3).
    pub(super) fn expiry(&self) -> Option<Ending> {
        let is_over = self.end.is_none() && Instant::now() >= self.expires();
        let (ttl, since) = (humantime::format_duration(self.ttl), clock(self.heard_at));
        let reason =
            || format!("its client vanished: nothing was heard of it for {ttl}, since {since}");
        is_over.then(|| Ending {
            end: LeaseEnd::Expired,
            reason: reason(),
            on_end: OnLeaseEnd::Cancel,
        })
    }
}

impl Living {
    pub(super) fn lease_terms(&self) -> Option<&LeaseTerms> {
        match &self.spec.what {
            What::Lease(terms) => Some(terms),
            What::Body { .. } | What::Program(_) => None,
        }
    }

    /// How it stands as a lease, if it is one.
    pub(super) fn lease_standing(&self) -> Option<LeaseStanding> {
        let terms = self.lease_terms()?.clone();
        let lasting = self.term.as_ref().filter(|term| term.end.is_none());
        let expires_at = lasting.and_then(|term| term.heard_at.checked_add(term.ttl).ok());
        Some(LeaseStanding { terms, expires_at })
    }

    /// Whether scripts may run under it now.
    pub(super) fn is_open_lease(&self) -> bool {
        self.phase == Phase::Running && self.is_lasting_lease()
    }

    /// Whether scripts may name it: it is open, or waits.
    fn is_lasting_lease(&self) -> bool {
        self.term.as_ref().is_some_and(|term| term.end.is_none())
    }

    /// How it is to end as a lease, and its scripts.
    pub(super) fn lease_end(&self) -> Option<(LeaseEnd, OnLeaseEnd)> {
        let ending = self.term.as_ref()?.end.as_ref()?;
        Some((ending.end, ending.on_end))
    }

    /// How it ends, once it is to stop before it has run.
    pub(super) fn stopped(&self, reason: String) -> OutcomeKind {
        let while_queued = self.restart.is_none();
        match self.term.as_ref().and_then(|term| term.end.as_ref()) {
            Some(ending) => ending.end.outcome(while_queued, ending.reason.clone()),
            None => OutcomeKind::Cancelled { while_queued, reason },
        }
    }
}

/// Whether a script may be started now. An open lease is what runs: it goes on to its end, with all its
/// scripts, also when nothing else is started.
pub(super) fn may_start(
    all: &HashMap<ScriptId, Living>,
    id: &ScriptId,
    starts_nothing: bool,
) -> bool {
    match all.get(id).map(|living| &living.spec.lease) {
        Some(Some(lease)) => all.get(lease).is_some_and(Living::is_open_lease),
        Some(None) | None => !starts_nothing,
    }
}

impl Table {
    /// The lease of a script, while it is not open.
    pub(super) fn unopened(&self, living: &Living) -> Option<&Living> {
        let lease = self.get(living.spec.lease.as_ref()?)?;
        (!lease.is_open_lease()).then_some(lease)
    }

    /// What the lease of a script waits for, and the lease.
    pub(super) fn waits_for_lease(&self, living: &Living) -> Vec<Wait> {
        let Some(lease) = self.unopened(living) else {
            return Vec::new();
        };
        let mut waits = self.waits_in_queue(&lease.spec.script_id, lease);
        if waits.is_empty() {
            waits.push(self.outsiders(&lease.spec.mutex, &[], lease));
        }
        for wait in &mut waits {
            wait.ahead.push(Party { who: lease.claimant(), exclusive: true });
            wait.ahead_count += 1;
            wait.position += 1;
        }
        waits
    }

    /// Whether nothing more is started under the lease of this script.
    pub(super) fn is_lease_over(&self, living: &Living) -> bool {
        let lease = living.spec.lease.as_ref();
        lease.is_some_and(|lease| !self.get(lease).is_some_and(Living::is_lasting_lease))
    }

    /// Why a new script can't run under the lease that it names; `None` also when that isn't here any more.
    pub(super) fn lease_refusal(&self, spec: &Spec) -> Option<AgentError> {
        let id = spec.lease.as_ref()?;
        let lease = self.get(id)?;
        let Some(term) = &lease.term else {
            return Some(AgentError::LeaseNotFound(id.clone()));
        };
        if let Some(ending) = &term.end {
            return Some(AgentError::LeaseEnded { id: id.clone(), reason: ending.describe() });
        }
        let (given, mutex) = (&spec.mutex, &lease.spec.mutex);
        let differs = || AgentError::LeaseMutex { id: id.clone(), mutex: mutex.clone() };
        (given != mutex).then(differs)
    }

    /// Whether a new script is taken though the agent drains (rule 2).
    pub(super) fn is_part_of_what_runs(&self, spec: &Spec) -> bool {
        let lease = spec.lease.as_ref().and_then(|lease| self.get(lease));
        lease.is_some_and(Living::is_open_lease)
    }

    /// The scripts of a lease that are not done.
    pub(super) fn scripts_of(&self, lease: &ScriptId) -> Vec<ScriptId> {
        let own = self.all().filter(|living| living.spec.lease.as_ref() == Some(lease));
        own.map(|living| living.spec.script_id.clone()).collect()
    }
}

impl Ending {
    pub(super) fn describe(&self) -> String {
        match self.end {
            LeaseEnd::Lost => self.reason.clone(),
            end @ (LeaseEnd::Closed | LeaseEnd::Expired | LeaseEnd::Cancelled) => {
                end.outcome(false, self.reason.clone()).to_string()
            }
        }
    }
}
