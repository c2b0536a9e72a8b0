//! Outcomes: `Outcome` and [`Outcome`].

use super::{WireError, from_duration, to_duration, v1};
use crate::script::{
    Blocker, DropCause, Fate, Outcome, OutcomeKind, StartProblem, Straggler, StragglerPolicy,
    Stream, Waited,
};
use crate::values::{Remark, Values};

impl From<Outcome> for v1::Outcome {
    fn from(outcome: Outcome) -> Self {
        use v1::outcome::Kind;
        let Outcome {
            kind,
            stragglers,
            output_dropped_bytes,
            output_drop_cause,
            values,
            waited,
            attempts,
        } = outcome;
        let kind = match kind {
            OutcomeKind::Exited { code } => Kind::Exited(v1::Exited { code }),
            OutcomeKind::Signalled { signal } => Kind::Signalled(v1::Signalled { signal }),
            OutcomeKind::Cancelled { while_queued, reason } => {
                Kind::Cancelled(v1::Cancelled { while_queued, reason })
            }
            OutcomeKind::TimedOut { limit } => {
                Kind::TimedOut(v1::TimedOut { limit: Some(to_duration(limit)) })
            }
            OutcomeKind::QueueTimedOut { limit } => {
                Kind::QueueTimedOut(v1::QueueTimedOut { limit: Some(to_duration(limit)) })
            }
            OutcomeKind::NotStarted { cause, reason } => {
                let cause = v1::NotStartedCause::from(cause).into();
                Kind::NotStarted(v1::NotStarted { reason, cause })
            }
            OutcomeKind::Lost { reason } => Kind::Lost(v1::Lost { reason }),
            OutcomeKind::LeaseClosed { reason } => Kind::LeaseClosed(v1::LeaseClosed { reason }),
            OutcomeKind::LeaseExpired { reason } => Kind::LeaseExpired(v1::LeaseExpired { reason }),
        };
        let stragglers = stragglers.into_iter().map(v1::Straggler::from).collect();
        let cause = output_drop_cause.map_or(v1::OutputDropCause::Unspecified, Into::into);
        // The progress is the script's.
        let Values { outputs, remarks, remarks_dropped, progress: _ } = values;
        Self {
            kind: Some(kind),
            stragglers,
            output_dropped_bytes,
            output_drop_cause: cause.into(),
            outputs: outputs.into_iter().collect(),
            remarks: remarks.into_iter().map(v1::Remark::from).collect(),
            remarks_dropped,
            waited: waited.as_ref().map(|waited| to_duration(waited.time)),
            waited_for: waited
                .into_iter()
                .flat_map(|waited| waited.blockers)
                .map(v1::WaitedFor::from)
                .collect(),
            attempts,
        }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = WireError;

    fn try_from(message: v1::Outcome) -> Result<Self, WireError> {
        use v1::outcome::Kind;
        let limit = |time: Option<prost_types::Duration>| {
            time.and_then(from_duration).ok_or(WireError::Field("outcome.limit"))
        };
        let output_drop_cause = drop_cause(message.output_drop_cause());
        let kind = match message.kind.ok_or(WireError::Field("outcome.kind"))? {
            Kind::Exited(v1::Exited { code }) => OutcomeKind::Exited { code },
            Kind::Signalled(v1::Signalled { signal }) => OutcomeKind::Signalled { signal },
            Kind::Cancelled(v1::Cancelled { while_queued, reason }) => {
                OutcomeKind::Cancelled { while_queued, reason }
            }
            Kind::TimedOut(message) => OutcomeKind::TimedOut { limit: limit(message.limit)? },
            Kind::QueueTimedOut(message) => {
                OutcomeKind::QueueTimedOut { limit: limit(message.limit)? }
            }
            Kind::NotStarted(message) => OutcomeKind::NotStarted {
                cause: message.cause().try_into()?,
                reason: message.reason,
            },
            Kind::Lost(v1::Lost { reason }) => OutcomeKind::Lost { reason },
            Kind::LeaseClosed(v1::LeaseClosed { reason }) => OutcomeKind::LeaseClosed { reason },
            Kind::LeaseExpired(v1::LeaseExpired { reason }) => OutcomeKind::LeaseExpired { reason },
        };
        let stragglers = message.stragglers.into_iter().map(Straggler::from).collect();
        let blockers = message.waited_for.into_iter().map(Blocker::from).collect();
        let waited = message.waited.and_then(from_duration).map(|time| Waited { time, blockers });
        let values = Values {
            outputs: message.outputs.into_iter().collect(),
            remarks: message.remarks.into_iter().map(Remark::from).collect(),
            remarks_dropped: message.remarks_dropped,
            progress: None,
        };
        Ok(Self {
            kind,
            stragglers,
            output_dropped_bytes: message.output_dropped_bytes,
            output_drop_cause,
            values,
            waited,
            attempts: message.attempts,
        })
    }
}

impl From<Blocker> for v1::WaitedFor {
    fn from(Blocker { mutex, script_id, pid, user, command }: Blocker) -> Self {
        Self { mutex, script_id, pid, user, command }
    }
}

impl From<v1::WaitedFor> for Blocker {
    fn from(message: v1::WaitedFor) -> Self {
        let v1::WaitedFor { mutex, script_id, pid, user, command } = message;
        Self { mutex, script_id, pid, user, command }
    }
}

impl From<Straggler> for v1::Straggler {
    fn from(Straggler { pid, command, fate }: Straggler) -> Self {
        Self { pid, command, fate: v1::StragglerFate::from(fate).into() }
    }
}

impl From<v1::Straggler> for Straggler {
    fn from(message: v1::Straggler) -> Self {
        Self { fate: message.fate().into(), pid: message.pid, command: message.command }
    }
}

impl From<Fate> for v1::StragglerFate {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Ended => Self::Ended,
            Fate::Kept => Self::Kept,
            Fate::Abandoned => Self::Abandoned,
        }
    }
}

impl From<v1::StragglerFate> for Fate {
    fn from(fate: v1::StragglerFate) -> Self {
        match fate {
            v1::StragglerFate::Unspecified | v1::StragglerFate::Ended => Self::Ended,
            v1::StragglerFate::Kept => Self::Kept,
            v1::StragglerFate::Abandoned => Self::Abandoned,
        }
    }
}

impl From<DropCause> for v1::OutputDropCause {
    fn from(cause: DropCause) -> Self {
        match cause {
            DropCause::Limit => Self::Limit,
            DropCause::FreeSpace => Self::FreeSpace,
            DropCause::Disk => Self::Disk,
        }
    }
}

/// Why output was not kept; `None`: nothing was said.
pub(crate) fn drop_cause(cause: v1::OutputDropCause) -> Option<DropCause> {
    match cause {
        v1::OutputDropCause::Unspecified => None,
        v1::OutputDropCause::Limit => Some(DropCause::Limit),
        v1::OutputDropCause::FreeSpace => Some(DropCause::FreeSpace),
        v1::OutputDropCause::Disk => Some(DropCause::Disk),
    }
}

impl From<v1::StragglerPolicy> for StragglerPolicy {
    fn from(policy: v1::StragglerPolicy) -> Self {
        match policy {
            v1::StragglerPolicy::Unspecified | v1::StragglerPolicy::End => Self::End,
            v1::StragglerPolicy::Keep => Self::Keep,
        }
    }
}

impl From<StartProblem> for v1::NotStartedCause {
    fn from(cause: StartProblem) -> Self {
        match cause {
            StartProblem::NotFound => Self::NotFound,
            StartProblem::NotExecutable => Self::NotExecutable,
            StartProblem::Agent => Self::Agent,
            StartProblem::Lease => Self::Lease,
        }
    }
}

impl TryFrom<v1::NotStartedCause> for StartProblem {
    type Error = WireError;

    fn try_from(cause: v1::NotStartedCause) -> Result<Self, WireError> {
        match cause {
            v1::NotStartedCause::NotFound => Ok(Self::NotFound),
            v1::NotStartedCause::NotExecutable => Ok(Self::NotExecutable),
            v1::NotStartedCause::Agent => Ok(Self::Agent),
            v1::NotStartedCause::Lease => Ok(Self::Lease),
            v1::NotStartedCause::Unspecified => Err(WireError::Field("outcome.cause")),
        }
    }
}

impl From<Stream> for v1::Stream {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

impl TryFrom<v1::Stream> for Stream {
    type Error = WireError;

    fn try_from(stream: v1::Stream) -> Result<Self, WireError> {
        match stream {
            v1::Stream::Stdout => Ok(Self::Stdout),
            v1::Stream::Stderr => Ok(Self::Stderr),
            v1::Stream::Unspecified => Err(WireError::Field("output.stream")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::values::{Place, Problem};

    #[test]
    fn every_outcome_survives_the_wire() {
        let limit = Duration::from_millis(1500);
        let reason = || "because".to_owned();
        for kind in [
            OutcomeKind::Exited { code: 3 },
            OutcomeKind::Signalled { signal: 9 },
            OutcomeKind::Cancelled { while_queued: true, reason: reason() },
            OutcomeKind::TimedOut { limit },
            OutcomeKind::QueueTimedOut { limit },
            OutcomeKind::NotStarted { cause: StartProblem::NotFound, reason: reason() },
            OutcomeKind::NotStarted { cause: StartProblem::NotExecutable, reason: reason() },
            OutcomeKind::NotStarted { cause: StartProblem::Agent, reason: reason() },
            OutcomeKind::NotStarted { cause: StartProblem::Lease, reason: reason() },
            OutcomeKind::Lost { reason: reason() },
            OutcomeKind::LeaseClosed { reason: reason() },
            OutcomeKind::LeaseExpired { reason: reason() },
        ] {
            let mut values = Values::default();
            values.set(Place::File(1), "version", "1.2");
            values.remark(Place::Message(7), Problem::Sensitive, "password");
            let straggler = |fate| Straggler { pid: 7, command: "sleep 1".to_owned(), fate };
            let blocker = Blocker {
                mutex: "machine".to_owned(),
                script_id: "a".to_owned(),
                pid: 7,
                user: "root".to_owned(),
                command: "deploy".to_owned(),
            };
            let outcome = Outcome {
                waited: Some(Waited { time: limit, blockers: vec![blocker] }),
                attempts: 2,
                kind,
                stragglers: [Fate::Ended, Fate::Kept, Fate::Abandoned].map(straggler).to_vec(),
                output_dropped_bytes: 5,
                output_drop_cause: Some(DropCause::FreeSpace),
                values,
            };
            assert_eq!(Outcome::try_from(v1::Outcome::from(outcome.clone())).unwrap(), outcome);
        }
    }
}
