//! What is told of a deployment while it goes on: for the terminal, for `--json` (one object a line), and
//! for the record of the run.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::script::Stream;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// In which run.
    pub run: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// The first one.
    Began {
        /// The project's name.
        project: String,
        /// The environment's name.
        environment: String,
        /// The tenant's name.
        tenant: Option<String>,
        /// The release.
        release: Option<String>,
        /// The targets' names, in order.
        targets: Vec<String>,
        /// The steps' names, in order.
        steps: Vec<String>,
    },
    /// Another deployment with the same tag goes first.
    WaitsForTurn {
        /// For whom, in words.
        reason: String,
    },
    /// No other deployment with the same tag runs now.
    HasTurn,
    /// A target takes no part any more.
    LeftOut {
        /// Its name.
        target: String,
        /// Why, in words.
        why: String,
    },
    /// A package goes to a target.
    Package {
        /// The target's name.
        target: String,
        /// The package's id.
        package: String,
        /// Its version.
        version: String,
        /// How far it is.
        transfer: Transfer,
    },
    /// A step on a target.
    Job {
        /// The target's name.
        target: String,
        /// The step's name.
        step: String,
        /// The step's place, from 1.
        number: u32,
        /// Which attempt, from 1.
        attempt: u32,
        /// How it stands now.
        state: State,
    },
    /// A line of a script's output.
    Output {
        /// The target's name.
        target: String,
        /// The step's name.
        step: String,
        /// Where it was written.
        stream: Stream,
        /// The line without its end; what is not UTF-8 is replaced. The agent has overwritten secrets.
        line: String,
    },
    /// Somebody has to let it go on.
    Paused {
        /// The step's name.
        step: String,
        /// What that person is told.
        message: String,
    },
    /// Somebody answered.
    Answered {
        /// The step's name.
        step: String,
        /// Who, and what they said; in words.
        by: String,
        /// Whether it goes on.
        goes_on: bool,
    },
    /// It ends before its end: nothing for success starts any more.
    Ends {
        /// Why, in words.
        why: String,
    },
    /// The last one.
    Over {
        /// How it ended.
        result: Verdict,
        /// Each target and how it stands, in order.
        targets: Vec<TargetResult>,
    },
}

/// How far a package is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "transfer", rename_all = "kebab-case")]
pub enum Transfer {
    /// On its way.
    Sends {
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The agent is away, and waited for; told again once a minute.
    Away {
        /// Since when.
        since: Timestamp,
        /// Until when it is waited for.
        until: Timestamp,
        /// Why, in words.
        why: String,
    },
    /// It is there.
    Done {
        /// Bytes in all.
        total: u64,
        /// Bytes that had to be sent.
        sent: u64,
    },
    /// It could not be brought there.
    Failed {
        /// Why, in words.
        why: String,
    },
}

/// How a step on a target stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// It is in the agent's queue, or in the machine's line.
    Waits {
        /// The place among those who wait: 1 is next.
        position: u32,
        /// For whom, in words; may be empty.
        reason: String,
        /// The first of them, in few words; may be empty.
        #[serde(default)]
        behind: String,
    },
    /// It runs.
    Runs,
    /// How far it says that it is.
    Progress {
        /// From 0 to 100.
        percent: u8,
        /// What it says.
        text: String,
    },
    /// The agent is away, and waited for; told again once a minute.
    Away {
        /// Since when.
        since: Timestamp,
        /// Until when it is waited for.
        until: Timestamp,
        /// Why, in words.
        why: String,
    },
    /// The agent is back.
    Back {
        /// Since when it was away.
        since: Timestamp,
    },
    /// The connection was lost: what versions before [`State::Away`] wrote, so it is read.
    Interrupted {
        /// Why, in words.
        why: String,
    },
    /// It failed and is tried again after so long.
    TriedAgain {
        /// How it failed, in words.
        how: String,
        /// In seconds.
        after_seconds: u64,
    },
    /// It has ended.
    Ended {
        /// How.
        result: JobResult,
        /// The same in words.
        how: String,
        /// When the agent accepted it.
        queued_at: Option<Timestamp>,
        /// When it started to run.
        started_at: Option<Timestamp>,
        /// When it ended.
        ended_at: Option<Timestamp>,
    },
}

/// How a step on a target ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobResult {
    /// As it should.
    Succeeded,
    /// Otherwise.
    Failed,
    /// It was not begun, since the target was busy.
    Skipped,
    /// It was cancelled.
    Cancelled,
}

/// How a deployment ended, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// On all targets that took part.
    Succeeded,
    /// Some targets failed, no more than may.
    Partly,
    /// It ended before its end, or all of it failed.
    Failed,
    /// A person stopped it.
    Cancelled,
}

/// How a target stands at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetResult {
    /// Its name.
    pub target: String,
    /// Whether all of it is done there.
    pub result: TargetVerdict,
    /// In words; may be empty.
    pub how: String,
}

/// Whether a deployment is done on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetVerdict {
    /// All of it.
    Succeeded,
    /// Something failed.
    Failed,
    /// It took no part.
    LeftOut,
    /// It took no part, since an earlier run has done all of it.
    DoneBefore,
    /// It was not come to, or not to its end.
    Unfinished,
}
