//! What passes between the agent and a supervisor, as JSON in the workspace and the journal.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::journal;
use crate::mutex::{Blocked, Claim, Claimant};
use crate::process::ProcessId;
use crate::script::{
    DropCause, Outcome, OutcomeKind, Restart, ScriptId, Straggler, StragglerPolicy,
};
use crate::spec::OnLeaseEnd;
use crate::values::Progress;

/// The one line that a supervisor reads from its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The workspace with the job.
    pub workspace: PathBuf,
    /// Must be the job's: a supervisor that comes late finds another one there and does nothing.
    pub token: String,
    /// Whether the script ends when the standard input does: its owner is gone.
    pub tied: bool,
}

/// All that a supervisor must know, in `job.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The script.
    pub script_id: ScriptId,
    /// See [`Assignment::token`].
    pub token: String,
    /// The process of the supervisor that gets the assignment: it is written before that can act.
    pub supervisor: u32,
    /// The program and its arguments, one by one.
    pub command: Vec<String>,
    /// The script's whole environment.
    pub environment: BTreeMap<String, String>,
    /// Where it starts.
    pub directory: PathBuf,
    /// The folder of the named mutexes.
    pub mutexes: PathBuf,
    /// The mutexes to hold.
    pub claims: Vec<Claim>,
    /// What others are told about who holds them.
    pub claimant: Claimant,
    /// What is left of the queue time limit, and the whole of it.
    pub queue_time: Option<(Duration, Duration)>,
    /// The run time limit.
    pub run_time_limit: Option<Duration>,
    /// The time between asking and forcing.
    pub grace: Duration,
    /// How much output is kept.
    pub output: journal::Limits,
    /// How many files the script may open (the soft limit); `None`: as many as its supervisor.
    #[serde(default)]
    pub open_files: Option<u64>,
    /// Variables of the environment whose values are overwritten in the output.
    #[serde(default)]
    pub sensitive: Vec<String>,
    /// What becomes of processes that are left at its end.
    pub stragglers: StragglerPolicy,
    /// The run of the machine in which it was launched.
    pub boot_id: String,
    /// Whether service messages in its output are understood.
    #[serde(default)]
    pub service_messages: bool,
    /// Whether the script may ask for a restart of the machine: its agent and its workspace are there after it.
    #[serde(default)]
    pub may_resume: bool,
    /// The exit code by which it asks.
    #[serde(default)]
    pub reboot_exit_code: Option<NonZeroU8>,
    /// That its last attempt asked.
    #[serde(default)]
    pub restart: Option<Restart>,
    /// What it has to do with a lease.
    #[serde(default)]
    pub lease: Lease,
}

/// What a job has to do with a lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lease {
    /// Nothing.
    #[default]
    None,
    /// It is one: it holds its mutexes for others and runs nothing.
    Itself,
    /// It runs under the one in this workspace.
    Under(PathBuf),
}

/// How a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseEnd {
    /// It was closed.
    Closed,
    /// Its client vanished.
    Expired,
    /// It was cancelled.
    Cancelled,
    /// Its supervisor was killed.
    Lost,
}

impl LeaseEnd {
    /// How the lease ended. `while_queued`: it never was open.
    pub fn outcome(self, while_queued: bool, reason: String) -> OutcomeKind {
        match self {
            Self::Closed => OutcomeKind::LeaseClosed { reason },
            Self::Expired => OutcomeKind::LeaseExpired { reason },
            Self::Cancelled => OutcomeKind::Cancelled { while_queued, reason },
            Self::Lost => OutcomeKind::Lost { reason },
        }
    }
}

impl Job {
    /// Which attempt runs, or is to run when the machine was restarted; from 1.
    pub fn attempt(&self) -> u32 {
        self.restart.as_ref().map_or(1, Restart::next_attempt)
    }

    /// The restart of the machine that has not happened yet: until then the script only keeps its place.
    pub fn awaited(&self) -> Option<&Restart> {
        self.restart.as_ref().filter(|restart| restart.boot_id == self.boot_id)
    }
}

/// A script's wish for a restart of the machine, in `reboot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reboot {
    /// Which attempt wished so: the wish of an earlier one is fulfilled.
    pub attempt: u32,
    /// For people; may be empty.
    pub reason: String,
}

/// Why a script is to stop, in `cancel.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// For people; may be empty.
    pub reason: String,
    /// Why its mutexes are given back though processes of it can't be ended, once an operator said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandon: Option<String>,
    /// How it ends, when it is a lease, and what becomes of its scripts until then. Written before they are
    /// told; the supervisor is told when they have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<(LeaseEnd, OnLeaseEnd)>,
}

/// What a supervisor says while it works: the events in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// It goes on with the journal of an earlier launch: what comes before is not its own.
    Launched {
        /// That of its job.
        token: String,
    },
    /// It has its places in all lines. From now on the order is settled.
    Joined,
    /// It waits, for these.
    Waiting {
        /// One for each mutex that is not free yet.
        blocked: Vec<Blocked>,
    },
    /// It holds all mutexes and is about to start the script: from now on it may have run.
    Starting {
        /// The run of the machine; empty when an older baton wrote it.
        #[serde(default)]
        boot_id: String,
    },
    /// The script runs.
    Started {
        /// Its process, which leads its process group; `None` when it has ended already.
        leader: Option<ProcessId>,
    },
    /// The script was asked to stop.
    Stopping,
    /// The script has ended so that it is run again after a restart of the machine. Its place in the lines
    /// is kept until then.
    AwaitsRestart {
        /// As in `resume.json`.
        restart: Restart,
    },
    /// Processes of it were killed and are still there: nothing can end them. The mutexes stay held.
    Stuck {
        /// Which.
        processes: Vec<Straggler>,
    },
    /// Here output is missing: told when the first is dropped, with the rest before output comes after it,
    /// and at the end.
    OutputDropped {
        /// Why.
        cause: DropCause,
        /// How many bytes of the whole output so far.
        bytes: u64,
        /// How many at this place, beside those that were told before.
        #[serde(default)]
        here: u64,
    },
    /// It said how far it is.
    Progress(Progress),
}

/// How it ended, in `outcome.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// How.
    pub outcome: Outcome,
    /// When the script started; `None` when it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
}
