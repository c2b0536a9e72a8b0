//! Pure: an event in a line, for logs.

use jiff::Timestamp;

use crate::cli::show::{between, span};
use crate::client::Away;
use crate::deploy::event::{Event, JobResult, State, Transfer, Verdict, What};

/// The line; nothing for what a log need not tell.
pub(super) fn line(event: &Event) -> Option<String> {
    Some(match &event.what {
        What::Began { project, environment, targets, .. } => {
            let count = targets.len();
            let noun = if count == 1 { "target" } else { "targets" };
            format!("{project} to {environment}: {count} {noun}, run {}", event.run)
        }
        What::WaitsForTurn { reason } => format!("waits for its turn: {reason}"),
        What::HasTurn => return None,
        What::LeftOut { target, why } => format!("{target}: left out: {why}"),
        What::Package { target, package, version, transfer } => match transfer {
            Transfer::Sends { .. } => return None,
            Transfer::Done { total, sent } => {
                format!("{target}: package {package} {version}: {sent} of {total} bytes sent")
            }
            Transfer::Away { since, until, why } => {
                let away = away(*since, *until, why).at(event.at);
                format!("{target}: package {package} {version}: the agent is {away}")
            }
            Transfer::Failed { why } => format!("{target}: package {package} {version}: {why}"),
        },
        What::Job { target, step, attempt, state, .. } => {
            let attempt = match attempt {
                1 => String::new(),
                attempt => format!(" (attempt {attempt})"),
            };
            format!("{target}: {step}{attempt}: {}", self::state(state, event.at))
        }
        What::Output { target, line, .. } => format!("{target} | {line}"),
        What::Paused { step, message } => format!("{step}: {message}"),
        What::Answered { step, by, goes_on } => {
            let word = if *goes_on { "goes on" } else { "is refused" };
            format!("{step}: {word}, says {by}")
        }
        What::Ends { why } => format!("ends: {why}"),
        What::Over { result, .. } => verdict(*result).to_owned(),
    })
}

/// An agent that is away.
pub(super) fn away(since: Timestamp, until: Timestamp, why: &str) -> Away {
    Away { since, until, why: why.to_owned() }
}

/// How a step stands at a moment, in words.
pub(super) fn state(state: &State, now: Timestamp) -> String {
    match state {
        State::Waits { position: 0, .. } => "starting".to_owned(),
        State::Waits { position, reason, .. } => format!("waits, position {position}: {reason}"),
        State::Runs => "running".to_owned(),
        State::Progress { percent, text } => format!("{percent}% {text}").trim_end().to_owned(),
        State::Away { since, until, why } => {
            format!("the agent is {}", away(*since, *until, why).at(now))
        }
        State::Back { since } => {
            format!("the agent is back after {}", span(between(*since, now)))
        }
        State::Interrupted { why } => format!("the connection is lost, it is tried again: {why}"),
        State::TriedAgain { how, after_seconds } => {
            format!("{how}; tried again after {after_seconds}s")
        }
        State::Ended { result, how, .. } => {
            let word = result_word(*result);
            if how.is_empty() { word.to_owned() } else { format!("{word}: {how}") }
        }
    }
}

/// How a step ended, in a word.
pub(super) fn result_word(result: JobResult) -> &'static str {
    match result {
        JobResult::Succeeded => "succeeded",
        JobResult::Failed => "failed",
        JobResult::Skipped => "skipped",
        JobResult::Cancelled => "cancelled",
    }
}

/// How a deployment ended, in words.
pub(super) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Succeeded => "succeeded",
        Verdict::Partly => "succeeded in part",
        Verdict::Failed => "failed",
        Verdict::Cancelled => "cancelled",
    }
}
