//! How a script stands: `Script`, `Wait`, `Claimant`, `Draining` and [`Snapshot`], [`Wait`],
//! [`Party`], [`Drain`].

use jiff::Timestamp;

use super::{WireError, from_duration, from_timestamp, to_duration, to_timestamp, v1};
use crate::mutex::{Claimant, Party};
use crate::script::{Drain, Isolation, Outcome, Phase, Straggler};
use crate::snapshot::{AwaitedRestart, LeaseStanding, Snapshot, Wait};
use crate::spec::LeaseTerms;

impl From<Snapshot> for v1::Script {
    fn from(snapshot: Snapshot) -> Self {
        let (phase, outcome) = match snapshot.phase {
            Phase::Queued => (v1::Phase::Queued, None),
            Phase::Waiting => (v1::Phase::Waiting, None),
            Phase::Running => (v1::Phase::Running, None),
            Phase::Stopping => (v1::Phase::Stopping, None),
            Phase::Done(outcome) => (v1::Phase::Done, Some(outcome.into())),
        };
        Self {
            script_id: snapshot.script_id.into(),
            phase: phase.into(),
            labels: snapshot.labels.into_iter().collect(),
            isolation: Some(snapshot.isolation.into()),
            mutex: snapshot.mutex.into(),
            exclusive_key: snapshot.exclusive_key.map(String::from).unwrap_or_default(),
            waits: snapshot.waits.into_iter().map(v1::Wait::from).collect(),
            outcome,
            queued_at: Some(to_timestamp(snapshot.queued_at)),
            started_at: snapshot.started_at.map(to_timestamp),
            ended_at: snapshot.ended_at.map(to_timestamp),
            output_bytes: snapshot.output_bytes,
            stuck: snapshot.stuck.into_iter().map(v1::Straggler::from).collect(),
            halted_supervisor: snapshot.halted.unwrap_or_default(),
            summary: snapshot.summary,
            progress: snapshot.progress.map(v1::Progress::from),
            lease: snapshot.lease.map(String::from).unwrap_or_default(),
            lease_standing: snapshot.lease_standing.map(v1::LeaseStanding::from),
        }
    }
}

impl TryFrom<v1::Script> for Snapshot {
    type Error = WireError;

    fn try_from(message: v1::Script) -> Result<Self, WireError> {
        let phase = match message.phase() {
            v1::Phase::Queued => Phase::Queued,
            v1::Phase::Waiting => Phase::Waiting,
            v1::Phase::Running => Phase::Running,
            v1::Phase::Stopping => Phase::Stopping,
            v1::Phase::Done => {
                let outcome = message.outcome.ok_or(WireError::Field("script.outcome"))?;
                Phase::Done(Outcome::try_from(outcome)?)
            }
            v1::Phase::Unspecified => return Err(WireError::Field("script.phase")),
        };
        let key = message.exclusive_key;
        let waits = message.waits.into_iter().map(Wait::try_from).collect::<Result<_, _>>()?;
        Ok(Self {
            script_id: message
                .script_id
                .parse()
                .map_err(|_| WireError::Field("script.script_id"))?,
            phase,
            labels: message.labels.into_iter().collect(),
            isolation: message.isolation.map_or(Isolation::Exclusive, Isolation::from),
            mutex: message.mutex.parse().map_err(|_| WireError::Field("script.mutex"))?,
            exclusive_key: if key.is_empty() { None } else { key.parse().ok() },
            waits,
            queued_at: message
                .queued_at
                .and_then(from_timestamp)
                .ok_or(WireError::Field("script.queued_at"))?,
            started_at: message.started_at.and_then(from_timestamp),
            ended_at: message.ended_at.and_then(from_timestamp),
            output_bytes: message.output_bytes,
            stuck: message.stuck.into_iter().map(Straggler::from).collect(),
            halted: (message.halted_supervisor > 0).then_some(message.halted_supervisor),
            summary: message.summary,
            progress: message.progress.and_then(|progress| progress.try_into().ok()),
            lease: message.lease.parse().ok(),
            lease_standing: message.lease_standing.map(LeaseStanding::try_from).transpose()?,
        })
    }
}

impl From<LeaseStanding> for v1::LeaseStanding {
    fn from(LeaseStanding { terms, expires_at }: LeaseStanding) -> Self {
        Self { terms: Some(terms.into()), expires_at: expires_at.map(to_timestamp) }
    }
}

impl TryFrom<v1::LeaseStanding> for LeaseStanding {
    type Error = WireError;

    fn try_from(message: v1::LeaseStanding) -> Result<Self, WireError> {
        let terms = message.terms.ok_or(WireError::Field("lease_standing.terms"))?;
        let expires_at = message.expires_at.and_then(from_timestamp);
        Ok(Self { terms: terms.try_into()?, expires_at })
    }
}

impl From<LeaseTerms> for v1::LeaseTerms {
    fn from(LeaseTerms { ttl, reason }: LeaseTerms) -> Self {
        Self { ttl: Some(to_duration(ttl)), reason }
    }
}

impl TryFrom<v1::LeaseTerms> for LeaseTerms {
    type Error = WireError;

    fn try_from(v1::LeaseTerms { ttl, reason }: v1::LeaseTerms) -> Result<Self, WireError> {
        let ttl = ttl.and_then(from_duration).ok_or(WireError::Field("lease_terms.ttl"))?;
        Ok(Self { ttl, reason })
    }
}

impl From<Wait> for v1::Wait {
    fn from(wait: Wait) -> Self {
        let reason = wait.reason();
        let Wait {
            mutex,
            position,
            holders,
            holder_count,
            ahead,
            ahead_count,
            foreign,
            drain,
            restart,
        } = wait;
        Self {
            mutex: mutex.into(),
            position,
            holders: holders.into_iter().map(v1::Claimant::from).collect(),
            ahead: ahead.into_iter().map(v1::Claimant::from).collect(),
            ahead_count,
            holder_count,
            reason,
            foreign,
            draining: drain.map(v1::Draining::from),
            restart: restart.map(v1::AwaitedRestart::from),
        }
    }
}

impl TryFrom<v1::Wait> for Wait {
    type Error = WireError;

    fn try_from(message: v1::Wait) -> Result<Self, WireError> {
        Ok(Self {
            mutex: message.mutex.parse().map_err(|_| WireError::Field("wait.mutex"))?,
            position: message.position,
            foreign: message.foreign,
            holders: message.holders.into_iter().map(Party::from).collect(),
            ahead: message.ahead.into_iter().map(Party::from).collect(),
            ahead_count: message.ahead_count,
            holder_count: message.holder_count,
            drain: message.draining.map(Drain::from),
            restart: message.restart.map(AwaitedRestart::from),
        })
    }
}

impl From<Drain> for v1::Draining {
    fn from(Drain { since, by, reason }: Drain) -> Self {
        Self { since: Some(to_timestamp(since)), by, reason }
    }
}

impl From<v1::Draining> for Drain {
    fn from(v1::Draining { since, by, reason }: v1::Draining) -> Self {
        let since = since.and_then(from_timestamp).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { since, by, reason }
    }
}

impl From<AwaitedRestart> for v1::AwaitedRestart {
    fn from(restart: AwaitedRestart) -> Self {
        let AwaitedRestart { since, reason, attempt, problem } = restart;
        Self { since: Some(to_timestamp(since)), reason, attempt, problem }
    }
}

impl From<v1::AwaitedRestart> for AwaitedRestart {
    fn from(message: v1::AwaitedRestart) -> Self {
        let v1::AwaitedRestart { since, reason, attempt, problem } = message;
        let since = since.and_then(from_timestamp).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { since, reason, attempt, problem }
    }
}

impl From<Party> for v1::Claimant {
    fn from(Party { who, exclusive }: Party) -> Self {
        let since = who.holds_since.unwrap_or(who.waits_since);
        Self {
            script_id: who.script_id.unwrap_or_default(),
            pid: who.pid,
            user: who.user,
            command: who.command,
            labels: who.labels.into_iter().collect(),
            exclusive,
            since: Some(to_timestamp(since)),
            reason: who.reason,
            lease_expires_at: who.lease_expires_at.map(to_timestamp),
        }
    }
}

impl From<v1::Claimant> for Party {
    fn from(message: v1::Claimant) -> Self {
        let since = message.since.and_then(from_timestamp);
        let who = Claimant {
            pid: message.pid,
            user: message.user,
            script_id: (!message.script_id.is_empty()).then_some(message.script_id),
            command: message.command,
            labels: message.labels.into_iter().collect(),
            reason: message.reason,
            claim: String::new(),
            within: Vec::new(),
            kept_for: None,
            leader: None,
            warn_after_ms: None,
            lease_expires_at: message.lease_expires_at.and_then(from_timestamp),
            waits_since: since.unwrap_or(Timestamp::UNIX_EPOCH),
            holds_since: since,
        };
        Self { who, exclusive: message.exclusive }
    }
}
