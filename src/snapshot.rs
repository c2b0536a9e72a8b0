//! Pure: how a script stands, as outsiders see it: phase, waits, times.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::mutex::{ExclusiveKey, MutexName, Party};
use crate::script::{Drain, Isolation, Labels, Outcome, Phase, ScriptId, Straggler, Waited};
use crate::spec::LeaseTerms;
use crate::values::{Progress, Values};

/// How a script stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub script_id: ScriptId,
    /// Where it stands.
    pub phase: Phase,
    /// Its labels.
    pub labels: Labels,
    /// Its claim on the mutex.
    pub isolation: Isolation,
    /// The mutex that its isolation is about.
    pub mutex: MutexName,
    /// Its exclusive key.
    pub exclusive_key: Option<ExclusiveKey>,
    /// What it waits for.
    pub waits: Vec<Wait>,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// When it started to run.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How many bytes of output there are so far.
    pub output_bytes: u64,
    /// Its processes that were killed and are still there.
    pub stuck: Vec<Straggler>,
    /// Its supervisor's process, when that was asked to stop the script and is stopped itself.
    pub halted: Option<u32>,
    /// What runs, in one line.
    pub summary: String,
    /// How far it says that it is, or was at its end.
    pub progress: Option<Progress>,
    /// The lease that it runs under.
    pub lease: Option<ScriptId>,
    /// How it stands as a lease, if it is one.
    pub lease_standing: Option<LeaseStanding>,
}

/// How a lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStanding {
    /// What it was opened with.
    pub terms: LeaseTerms,
    /// When it expires if its client stays silent; `None` when it has ended.
    pub expires_at: Option<Timestamp>,
}

impl Snapshot {
    /// The same without what it gave back and for whom it waited: a list of many has no room for that.
    #[must_use]
    pub fn without_values(self) -> Self {
        let phase = match self.phase {
            Phase::Done(outcome) => Phase::Done(Outcome {
                values: Values::default(),
                waited: outcome.waited.map(|waited| Waited { blockers: Vec::new(), ..waited }),
                ..outcome
            }),
            phase @ (Phase::Queued | Phase::Waiting | Phase::Running | Phase::Stopping) => phase,
        };
        Self { phase, ..self }
    }

    /// Whether anything but the amount of output is different.
    pub fn differs(&self, other: &Self) -> bool {
        let same_output = Self { output_bytes: other.output_bytes, ..self.clone() };
        same_output != *other
    }
}

/// Something that a script waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// The mutex.
    pub mutex: MutexName,
    /// The place among those who wait: 1 is next.
    pub position: u32,
    /// Those who hold the mutex; the first of them are named.
    pub holders: Vec<Party>,
    /// How many hold it.
    pub holder_count: u32,
    /// Those who wait before; the first of them are named.
    pub ahead: Vec<Party>,
    /// How many wait before.
    pub ahead_count: u32,
    /// Whether a program that knows only the plain OS lock holds it.
    pub foreign: bool,
    /// Why the agent starts nothing, whoever holds it.
    pub drain: Option<Drain>,
    /// The restart of the machine that comes first.
    pub restart: Option<AwaitedRestart>,
}

/// A restart of the machine that a script waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwaitedRestart {
    /// Since when.
    pub since: Timestamp,
    /// Why, for people; may be empty.
    pub reason: String,
    /// The script's attempt that runs after it; 0: another script asked for it.
    pub attempt: u32,
    /// Why the agent's command did not restart the machine; empty: it is not known to have failed.
    pub problem: String,
}

impl Wait {
    /// The wait in words: who holds the mutex, since when, how many are before.
    pub fn reason(&self) -> String {
        self.reason_of(&format!("`{}`", self.mutex))
    }

    /// The same, of a mutex that people know by something else than its name.
    pub fn reason_of(&self, what: &str) -> String {
        if let Some(restart) = &self.restart {
            return describe_restart(restart);
        }
        let mut text = String::new();
        if let Some(drain) = &self.drain {
            write!(text, "{}", describe_drain(drain)).unwrap_or_default();
            if self.holders.is_empty() && !self.foreign {
                return text;
            }
            text.push_str("; ");
        }
        write!(text, "{what} ").unwrap_or_default();
        let (named, more) = match self.holders.first() {
            Some(first) => (describe(first), self.holder_count.saturating_sub(1)),
            None if self.foreign => ("a program outside baton".to_owned(), 0),
            None => return text + "is about to be free",
        };
        // Writing into a String can't fail.
        write!(text, "is held by {named}").unwrap_or_default();
        match more {
            0 => {}
            1 => text.push_str(" and 1 other"),
            more => write!(text, " and {more} others").unwrap_or_default(),
        }
        match self.ahead_count {
            0 => {}
            1 => text.push_str("; 1 waits before"),
            count => write!(text, "; {count} wait before").unwrap_or_default(),
        }
        text
    }
}

/// A claimant in words.
pub fn describe(party: &Party) -> String {
    let who = &party.who;
    let mut text = match &who.script_id {
        Some(id) => format!("script {id}"),
        None => format!("pid {}", who.pid),
    };
    let labels: Vec<_> = who.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut more = vec![who.command.clone(), labels.join(" "), who.user.clone()];
    more.retain(|more| !more.is_empty());
    if !more.is_empty() {
        write!(text, " ({})", more.join(", ")).unwrap_or_default();
    }
    if let Some(since) = who.holds_since {
        write!(text, " since {}", clock(since)).unwrap_or_default();
    }
    if let Some(until) = who.lease_expires_at {
        write!(text, " until {} unless renewed", clock(until)).unwrap_or_default();
    }
    if !who.reason.is_empty() {
        write!(text, ": {}", who.reason).unwrap_or_default();
    }
    text
}

/// A drain in words.
pub fn describe_drain(drain: &Drain) -> String {
    let mut text = format!("the agent drains since {}, by {}", clock(drain.since), drain.by);
    if !drain.reason.is_empty() {
        write!(text, ": {}", drain.reason).unwrap_or_default();
    }
    text
}

/// A restart of the machine that is waited for, in words.
pub fn describe_restart(restart: &AwaitedRestart) -> String {
    let since = clock(restart.since);
    let mut text = match restart.attempt {
        0 => format!("the machine is to be restarted first, a script asked for it at {since}"),
        attempt => format!(
            "it waits for the machine to be restarted since {since}, then attempt {attempt} runs"
        ),
    };
    if !restart.reason.is_empty() {
        write!(text, ": {}", restart.reason).unwrap_or_default();
    }
    if !restart.problem.is_empty() {
        write!(text, "; the agent could not restart it: {}", restart.problem).unwrap_or_default();
    }
    text
}

/// A time in the local time zone, for people.
pub fn clock(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutex::Claimant;

    fn party(id: &str) -> Party {
        let who = Claimant {
            script_id: Some(id.to_owned()),
            command: "make".to_owned(),
            ..Claimant::default()
        };
        Party { who, exclusive: true }
    }

    #[test]
    fn a_wait_says_who_holds_and_how_many_are_before() {
        let mut wait = Wait {
            mutex: MutexName::machine(),
            position: 1,
            holders: vec![party("a")],
            holder_count: 1,
            ahead: Vec::new(),
            ahead_count: 0,
            foreign: false,
            drain: None,
            restart: None,
        };
        assert_eq!(wait.reason(), "`machine` is held by script a (make)");
        wait.holders.push(party("b"));
        wait.holder_count = 2;
        wait.ahead_count = 3;
        assert_eq!(
            wait.reason(),
            "`machine` is held by script a (make) and 1 other; 3 wait before"
        );
        wait.holders.clear();
        wait.foreign = true;
        wait.ahead_count = 0;
        assert_eq!(wait.reason(), "`machine` is held by a program outside baton");
        let drain = Drain {
            since: Timestamp::UNIX_EPOCH,
            by: "ci".to_owned(),
            reason: "kernel".to_owned(),
        };
        let drains = describe_drain(&drain);
        assert!(drains.ends_with(", by ci: kernel"), "{drains}");
        wait.drain = Some(drain);
        assert!(wait.reason().ends_with("kernel; `machine` is held by a program outside baton"));
        wait.foreign = false;
        assert_eq!(wait.reason(), drains);
        let restart = |attempt, problem: &str| {
            let (reason, problem) = ("kernel".to_owned(), problem.to_owned());
            AwaitedRestart { since: Timestamp::UNIX_EPOCH, reason, attempt, problem }
        };
        wait.restart = Some(restart(2, ""));
        let reason = wait.reason();
        assert!(reason.starts_with("it waits for the machine to be restarted since "), "{reason}");
        assert!(reason.ends_with(", then attempt 2 runs: kernel"), "{reason}");
        let reason = describe_restart(&restart(0, "not found"));
        assert!(reason.starts_with("the machine is to be restarted first, a script"), "{reason}");
        assert!(
            reason.ends_with(": kernel; the agent could not restart it: not found"),
            "{reason}"
        );
    }
}
