//! Pure: how an agent stands, as outsiders see it.

use jiff::Timestamp;

use crate::script::Drain;
use crate::upgrade;

/// How many scripts there are in which phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// In the agent's queue.
    pub queued: u32,
    /// Launched, and in the machine's line.
    pub waiting: u32,
    /// Running or stopping.
    pub running: u32,
}

/// How an agent stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// How busy it is.
    pub counts: Counts,
    /// Why it takes nothing new, if it drains.
    pub drain: Option<Drain>,
    /// Why its database takes no change, if it was so the last time.
    pub store_problem: Option<StoreProblem>,
    /// When it ends at the latest, if it stops.
    pub stops_by: Option<Timestamp>,
    /// The last upgrade of its program.
    pub upgrade: Option<upgrade::Record>,
}

/// That the database takes no change: the disk is full or read-only, say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreProblem {
    /// Since when.
    pub since: Timestamp,
    /// Why, for people.
    pub reason: String,
}
