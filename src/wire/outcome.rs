//! Outcomes: `Outcome` and [`Outcome`].

use super::{WireError, from_duration, to_duration, v1};
use crate::script::{Outcome, OutcomeKind, StartProblem, Straggler, Stream};

impl From<Outcome> for v1::Outcome {
    fn from(Outcome { kind, stragglers, output_dropped_bytes }: Outcome) -> Self {
        use v1::outcome::Kind;
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
        };
        let straggler = |Straggler { pid, command }| v1::Straggler { pid, command };
        let stragglers = stragglers.into_iter().map(straggler).collect();
        Self { kind: Some(kind), stragglers, output_dropped_bytes }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = WireError;

    fn try_from(message: v1::Outcome) -> Result<Self, WireError> {
        use v1::outcome::Kind;
        let limit = |time: Option<prost_types::Duration>| {
            time.and_then(from_duration).ok_or(WireError::Field("outcome.limit"))
        };
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
        };
        let straggler = |v1::Straggler { pid, command }| Straggler { pid, command };
        let stragglers = message.stragglers.into_iter().map(straggler).collect();
        Ok(Self { kind, stragglers, output_dropped_bytes: message.output_dropped_bytes })
    }
}

impl From<StartProblem> for v1::NotStartedCause {
    fn from(cause: StartProblem) -> Self {
        match cause {
            StartProblem::NotFound => Self::NotFound,
            StartProblem::NotExecutable => Self::NotExecutable,
            StartProblem::Agent => Self::Agent,
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
            OutcomeKind::Lost { reason: reason() },
        ] {
            let straggler = Straggler { pid: 7, command: "sleep 1".to_owned() };
            let outcome = Outcome { kind, stragglers: vec![straggler], output_dropped_bytes: 5 };
            assert_eq!(Outcome::try_from(v1::Outcome::from(outcome.clone())).unwrap(), outcome);
        }
    }
}
