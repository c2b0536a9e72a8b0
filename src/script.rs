//! Pure: the nouns of the field. What a script is called, how it may claim a mutex, where it stands
//! and how it ended. No I/O, no clock.
//!
//! ```text
//! Queued ──launched──► Waiting ──started──► Running ──stop──► Stopping ──ended──► Done(outcome)
//!    │                    ▲ asked for a restart │                                     ▲
//!    │                    └─────────────────────┘                                     │
//!    └───────────── stop, ended ──────────────────────────────────────────────────────┘
//! ```

mod restart;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::values::Values;

pub use restart::{MAX_ATTEMPTS, Restart};

mod waited;

pub use waited::{Blocker, MAX_BLOCKERS, Waited};

/// Why a name was refused; the text names the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("is empty")]
    Empty,
    /// It has more bytes than its limit.
    #[error("has {length} bytes, the limit is {limit}")]
    TooLong {
        /// How many it has.
        length: usize,
        /// How many it may have.
        limit: usize,
    },
    /// It has a character that it must not have.
    #[error("has the character {0:?}; allowed are {1}")]
    Character(char, &'static str),
    /// It starts with a dot, so it would be hidden, or would be `.` or `..`.
    #[error("starts with a dot")]
    LeadingDot,
    /// It starts with a dash, so a command line would take it for an option.
    #[error("starts with a dash")]
    LeadingDash,
}

/// Checks a name that becomes one component of a path.
///
/// # Errors
/// When it is empty, longer than `limit` bytes, starts with a dot or a dash, or has a character other
/// than `A-Z a-z 0-9 . _ -`.
pub fn check_name(name: &str, limit: usize) -> Result<(), NameError> {
    const ALLOWED: &str = "A-Z a-z 0-9 . _ -";
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > limit {
        return Err(NameError::TooLong { length: name.len(), limit });
    }
    if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        return Err(NameError::Character(bad, ALLOWED));
    }
    if name.starts_with('.') {
        return Err(NameError::LeadingDot);
    }
    if name.starts_with('-') {
        return Err(NameError::LeadingDash);
    }
    Ok(())
}

/// Checks a free text that is shown on one line.
///
/// # Errors
/// When it is longer than `limit` bytes or has a control character (a newline, NUL, …).
pub fn check_text(text: &str, limit: usize) -> Result<(), NameError> {
    if text.len() > limit {
        return Err(NameError::TooLong { length: text.len(), limit });
    }
    match text.chars().find(|c| c.is_control()) {
        Some(bad) => Err(NameError::Character(bad, "all but control characters")),
        None => Ok(()),
    }
}

/// A name as a part of an environment variable's: `my-key` becomes `MY_KEY`.
pub fn variable(name: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(upper).collect()
}

/// A script's name, chosen by the client; it makes Start idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScriptId(String);

impl ScriptId {
    /// How many bytes it may have: it is a folder's name, with room for a suffix.
    pub const MAX_LEN: usize = 128;

    /// A new id that sorts by time: a UUID, version 7.
    pub fn random() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ScriptId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text, Self::MAX_LEN)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ScriptId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        check_name(&text, Self::MAX_LEN)?;
        Ok(Self(text))
    }
}

impl From<ScriptId> for String {
    fn from(id: ScriptId) -> Self {
        id.0
    }
}

impl fmt::Display for ScriptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Free keys and values that are shown wherever a script is named: project, environment, tenant …
pub type Labels = BTreeMap<String, String>;

/// A script's claim on its mutex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Runs alone.
    Exclusive,
    /// Bypass: runs beside others that are shared.
    Shared {
        /// While it holds the mutex, at most this many do, itself included; `None`: no limit.
        at_most: Option<NonZeroU32>,
    },
    /// Takes no mutex at all and never waits.
    Observer,
}

/// Where a script stands; this is what is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", content = "outcome", rename_all = "snake_case")]
pub enum Phase {
    /// In the agent's queue.
    Queued,
    /// Its supervisor was started and waits in the machine's line.
    Waiting,
    /// It runs.
    Running,
    /// It was asked to stop and has not ended yet.
    Stopping,
    /// It ended, or never started.
    Done(Outcome),
}

/// What moves a script from phase to phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its supervisor is about to be started.
    Launched,
    /// Its supervisor died before it started anything, so the script is back in the queue.
    Requeued,
    /// It started to run.
    Started,
    /// It ended so that it is run again after a restart of the machine, for which it waits.
    AskedRestart,
    /// It was asked to stop.
    Stop,
    /// It ended.
    Ended(Outcome),
}

/// An event that can't happen where the script stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a script that is {phase} can't be {event}")]
pub struct IllegalTransition {
    /// Where it stands.
    pub phase: &'static str,
    /// What was said to have happened.
    pub event: &'static str,
}

impl Phase {
    /// The phase after `event`.
    ///
    /// # Errors
    /// When the event can't happen in this phase.
    pub fn next(self, event: Event) -> Result<Self, IllegalTransition> {
        match (self, event) {
            (Self::Queued, Event::Launched) => Ok(Self::Waiting),
            (Self::Waiting, Event::Requeued) => Ok(Self::Queued),
            (Self::Waiting, Event::Started) => Ok(Self::Running),
            // It keeps its place in the line. One that is to stop ends as soon as it hears of that.
            (Self::Waiting | Self::Running, Event::AskedRestart) => Ok(Self::Waiting),
            (Self::Stopping, Event::AskedRestart) => Ok(Self::Stopping),
            (Self::Waiting | Self::Running, Event::Stop) => Ok(Self::Stopping),
            // The request to stop crossed the start; it still stands.
            (Self::Stopping, Event::Started | Event::Stop) => Ok(Self::Stopping),
            (
                Self::Queued | Self::Waiting | Self::Running | Self::Stopping,
                Event::Ended(outcome),
            ) => Ok(Self::Done(outcome)),
            // A stop that arrives late is no error: the client could not know.
            (done @ Self::Done(_), Event::Stop) => Ok(done),
            (
                phase @ (Self::Queued | Self::Running),
                event @ (Event::Requeued | Event::Started),
            )
            | (
                phase @ (Self::Waiting | Self::Running | Self::Stopping | Self::Done(_)),
                event @ Event::Launched,
            )
            // A queued script has nothing to stop: it ends at once instead.
            | (phase @ Self::Queued, event @ (Event::Stop | Event::AskedRestart))
            | (phase @ Self::Stopping, event @ Event::Requeued)
            | (
                phase @ Self::Done(_),
                event @ (Event::Requeued | Event::Started | Event::AskedRestart | Event::Ended(_)),
            ) => Err(IllegalTransition { phase: phase.name(), event: event.name() }),
        }
    }

    /// The phase in one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Done(_) => "done",
        }
    }

    /// Whether it ended.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }
}

impl Event {
    /// The event in one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Launched => "launched",
            Self::Requeued => "requeued",
            Self::Started => "started",
            Self::AskedRestart => "asked",
            Self::Stop => "stopped",
            Self::Ended(_) => "ended",
        }
    }
}

/// How a script ended, and what was noticed on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub kind: OutcomeKind,
    /// Processes that were left when it ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stragglers: Vec<Straggler>,
    /// Bytes of output that were not kept.
    #[serde(default)]
    pub output_dropped_bytes: u64,
    /// Why, when there are any: the first reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_drop_cause: Option<DropCause>,
    /// What it gave back.
    #[serde(default, skip_serializing_if = "Values::is_empty")]
    pub values: Values,
    /// How long it waited and for whom, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<Waited>,
    /// How often it ran: more than once when it asked for restarts of the machine. 0: never, or not known.
    #[serde(default)]
    pub attempts: u32,
}

/// Why output was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropCause {
    /// The script's limit was reached.
    Limit,
    /// The disk had less room than the agent leaves for others.
    FreeSpace,
    /// The disk refused it: it was full.
    Disk,
}

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "its limit was reached",
            Self::FreeSpace => "the disk was nearly full",
            Self::Disk => "the disk was full",
        })
    }
}

impl From<OutcomeKind> for Outcome {
    fn from(kind: OutcomeKind) -> Self {
        Self {
            kind,
            stragglers: Vec::new(),
            output_dropped_bytes: 0,
            output_drop_cause: None,
            values: Values::default(),
            waited: None,
            attempts: 0,
        }
    }
}

/// How a script ended. An exit code exists only if the script exited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OutcomeKind {
    /// It exited by itself.
    Exited {
        /// Its exit code, 0 to 255.
        code: i32,
    },
    /// A signal from elsewhere ended it.
    Signalled {
        /// The signal's number.
        signal: i32,
    },
    /// It was cancelled.
    Cancelled {
        /// Whether it never started to run.
        while_queued: bool,
        /// The reason that was given; empty when none was.
        reason: String,
    },
    /// It ran longer than its run time limit.
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// It waited longer than its queue time limit; it never ran.
    QueueTimedOut {
        /// The limit.
        limit: Duration,
    },
    /// It could not be started.
    NotStarted {
        /// Why, for programs.
        cause: StartProblem,
        /// Why, for people.
        reason: String,
    },
    /// What became of it isn't known.
    Lost {
        /// Why, for people.
        reason: String,
    },
    /// It was a lease, and was closed.
    LeaseClosed {
        /// The reason that was given; empty when none was.
        reason: String,
    },
    /// It was a lease, and its client vanished.
    LeaseExpired {
        /// Since when, for people.
        reason: String,
    },
}

/// Why a script could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartProblem {
    /// Its program, interpreter or working directory is not there.
    NotFound,
    /// Its program or interpreter is there and can't be executed.
    NotExecutable,
    /// Something of baton's failed: the mutex folder or the workspace, say.
    Agent,
    /// The lease that it was to run under ended before.
    Lease,
}

impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with {code}"),
            Self::Signalled { signal } => write!(f, "ended by signal {signal}"),
            Self::Cancelled { while_queued, reason } => {
                f.write_str(if *while_queued { "cancelled before it ran" } else { "cancelled" })?;
                if reason.is_empty() { Ok(()) } else { write!(f, ": {reason}") }
            }
            Self::TimedOut { limit } => {
                write!(f, "stopped at its time limit of {}", humantime::format_duration(*limit))
            }
            Self::QueueTimedOut { limit } => write!(
                f,
                "not run: it waited longer than its limit of {}",
                humantime::format_duration(*limit)
            ),
            Self::NotStarted { reason, .. } => write!(f, "not started: {reason}"),
            Self::Lost { reason } => write!(f, "lost: {reason}"),
            Self::LeaseClosed { reason } if reason.is_empty() => f.write_str("closed"),
            Self::LeaseClosed { reason } => write!(f, "closed: {reason}"),
            Self::LeaseExpired { reason } => write!(f, "expired: {reason}"),
        }
    }
}

/// Why an agent takes nothing new, and starts nothing that is queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Since when.
    pub since: Timestamp,
    /// Who asked for it.
    pub by: String,
    /// Why, for people; may be empty.
    pub reason: String,
}

/// A process that was left when its script ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Straggler {
    /// Its process id.
    pub pid: u32,
    /// Its command line, cut to 256 characters.
    pub command: String,
    /// What became of it.
    #[serde(default)]
    pub fate: Fate,
}

/// What became of a process that was left when its script ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It was ended.
    #[default]
    Ended,
    /// It goes on, as the request asked.
    Kept,
    /// It could not be ended, and an operator gave up waiting for it.
    Abandoned,
}

/// What becomes of processes that are left when their script ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StragglerPolicy {
    /// They are ended.
    #[default]
    End,
    /// They go on.
    Keep,
}

/// One of a script's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases() -> Vec<Phase> {
        let done = OutcomeKind::Exited { code: 0 }.into();
        vec![Phase::Queued, Phase::Waiting, Phase::Running, Phase::Stopping, Phase::Done(done)]
    }

    fn events() -> Vec<Event> {
        let ended = OutcomeKind::Exited { code: 1 }.into();
        vec![
            Event::Launched,
            Event::Requeued,
            Event::Started,
            Event::AskedRestart,
            Event::Stop,
            Event::Ended(ended),
        ]
    }

    #[test]
    fn the_table_of_phases_is_this_one() {
        let mut table = String::new();
        for phase in phases() {
            for event in events() {
                let next = phase.clone().next(event.clone());
                let name = next.map_or("-", |p| p.name());
                table += &[phase.name(), event.name(), name].join(" ");
                table.push('\n');
            }
        }
        let expected = "\
queued launched waiting\nqueued requeued -\nqueued started -\nqueued asked -\nqueued stopped -\nqueued ended done
waiting launched -\nwaiting requeued queued\nwaiting started running\nwaiting asked waiting\nwaiting stopped stopping\nwaiting ended done
running launched -\nrunning requeued -\nrunning started -\nrunning asked waiting\nrunning stopped stopping\nrunning ended done
stopping launched -\nstopping requeued -\nstopping started stopping\nstopping asked stopping\nstopping stopped stopping\nstopping ended done
done launched -\ndone requeued -\ndone started -\ndone asked -\ndone stopped done\ndone ended -\n";
        assert_eq!(table, expected);
    }

    #[test]
    fn the_first_outcome_is_the_one_on_record() {
        let done = Phase::Done(OutcomeKind::Exited { code: 0 }.into());
        assert_eq!(done.clone().next(Event::Stop), Ok(done.clone()));
        done.next(Event::Ended(OutcomeKind::Exited { code: 1 }.into())).unwrap_err();
    }

    #[test]
    fn a_script_id_is_one_safe_path_component() {
        for good in ["a", "web-1.2_x", &"x".repeat(128), "A..b"] {
            assert!(good.parse::<ScriptId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".x", "a/b", "a\0b", "a\nb", "ä", "a b", &"x".repeat(129)] {
            assert!(bad.parse::<ScriptId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_recorded_phase_reads_back() {
        for phase in phases() {
            let text = serde_json::to_string(&phase).unwrap();
            assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), phase, "{text}");
        }
    }
}
