//! Pure: what is told of deployments becomes one page: who waited and who ran when on which target, and the
//! logs below. The page holds all that it needs; it is made for reading in a browser, without scripts.

mod page;
mod story;

use std::collections::VecDeque;

use jiff::Timestamp;

use super::event::{Event, JobResult, TargetVerdict, Verdict};
use crate::script::Stream;

/// How many lines of a step's output are kept: the last ones.
const MAX_LINES: usize = 2000;

/// What is known of one or more deployments.
#[derive(Debug, Default)]
pub struct Report {
    runs: Vec<Story>,
}

/// One deployment.
#[derive(Debug)]
struct Story {
    run: String,
    title: String,
    began: Timestamp,
    ended: Option<Timestamp>,
    /// Since when, and for whom, it waits for its turn.
    turn: Option<(Timestamp, String)>,
    /// When it had it.
    has_turn: Option<Timestamp>,
    verdict: Option<Verdict>,
    ending: Option<String>,
    targets: Vec<Target>,
}

#[derive(Debug)]
struct Target {
    name: String,
    result: Option<TargetVerdict>,
    how: String,
    packages: Vec<Package>,
    jobs: Vec<Job>,
}

#[derive(Debug)]
struct Package {
    name: String,
    began: Timestamp,
    ended: Option<Timestamp>,
    how: String,
    is_failed: bool,
}

/// One attempt of a step on a target.
#[derive(Debug)]
struct Job {
    step: String,
    attempt: u32,
    queued: Timestamp,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    /// For whom it waited last, in words.
    waited_for: String,
    result: Option<JobResult>,
    how: String,
    absences: Vec<Absence>,
    lines: VecDeque<(Stream, String)>,
    dropped_lines: usize,
}

/// A time in which the agent was away.
#[derive(Debug)]
struct Absence {
    since: Timestamp,
    /// `None`: it is still away.
    until: Option<Timestamp>,
    why: String,
}

impl Report {
    /// Adds what is told.
    pub fn hear(&mut self, event: &Event) {
        story::hear(&mut self.runs, event);
    }

    /// The page.
    pub fn html(&self) -> String {
        page::page(&self.runs)
    }
}

#[cfg(test)]
mod tests;
