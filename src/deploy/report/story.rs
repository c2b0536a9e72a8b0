//! Pure: events become a story.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::{Absence, Job, MAX_LINES, Package, Story, Target};
use crate::deploy::event::{Event, State, Transfer, What};

pub(super) fn hear(runs: &mut Vec<Story>, event: &Event) {
    let Event { at, run, what } = event;
    if let What::Began { project, environment, tenant, release, targets, .. } = what {
        let release = release.as_ref().map(|release| format!(" {release}")).unwrap_or_default();
        let tenant = tenant.as_ref().map(|tenant| format!(" for {tenant}")).unwrap_or_default();
        let title = format!("{project}{release} to {environment}{tenant}");
        let targets = targets.iter().map(|name| Target {
            name: name.clone(),
            result: None,
            how: String::new(),
            packages: Vec::new(),
            jobs: Vec::new(),
        });
        let story = Story {
            run: run.clone(),
            title,
            began: *at,
            ended: None,
            turn: None,
            has_turn: None,
            verdict: None,
            ending: None,
            targets: targets.collect(),
        };
        runs.push(story);
        return;
    }
    if let Some(story) = runs.iter_mut().find(|story| story.run == *run) {
        story.hear(*at, what);
    }
}

impl Story {
    fn hear(&mut self, at: Timestamp, what: &What) {
        match what {
            What::Began { .. } | What::Paused { .. } | What::Answered { .. } => {}
            What::WaitsForTurn { reason } => {
                let since = self.turn.as_ref().map_or(at, |(since, _)| *since);
                self.turn = Some((since, reason.clone()));
            }
            What::HasTurn => self.has_turn = Some(at),
            What::LeftOut { target, why } => {
                if let Some(target) = self.target(target) {
                    target.how.clone_from(why);
                }
            }
            What::Package { target, package, version, transfer } => {
                let name = format!("{package} {version}");
                if let Some(target) = self.target(target) {
                    target.hear_package(at, name, transfer);
                }
            }
            What::Job { target, step, attempt, state, .. } => {
                if let Some(target) = self.target(target) {
                    target.job(at, step, *attempt).hear(at, state);
                }
            }
            What::Output { target, step, stream, line } => {
                let target = self.target(target);
                let job =
                    target.and_then(|t| t.jobs.iter_mut().rev().find(|job| job.step == *step));
                if let Some(job) = job {
                    if job.lines.len() == MAX_LINES {
                        job.lines.pop_front();
                        job.dropped_lines += 1;
                    }
                    job.lines.push_back((*stream, line.clone()));
                }
            }
            What::Ends { why } => self.ending = Some(why.clone()),
            What::Over { result, targets } => {
                self.verdict = Some(*result);
                self.ended = Some(at);
                for told in targets {
                    if let Some(target) = self.target(&told.target) {
                        target.result = Some(told.result);
                        target.how.clone_from(&told.how);
                    }
                }
            }
        }
    }

    fn target(&mut self, name: &str) -> Option<&mut Target> {
        self.targets.iter_mut().find(|target| target.name == name)
    }
}

impl Target {
    fn hear_package(&mut self, at: Timestamp, name: String, transfer: &Transfer) {
        let known = self.packages.iter().position(|package| package.name == name);
        let place = known.unwrap_or_else(|| {
            let (how, is_failed) = (String::new(), false);
            self.packages.push(Package { name, began: at, ended: None, how, is_failed });
            self.packages.len() - 1
        });
        let package = &mut self.packages[place];
        match transfer {
            Transfer::Sends { .. } | Transfer::Away { .. } => {}
            Transfer::Done { total, sent } => {
                package.ended = Some(at);
                package.how = format!("{sent} of {total} bytes were sent");
            }
            Transfer::Failed { why } => {
                package.ended = Some(at);
                package.is_failed = true;
                package.how.clone_from(why);
            }
        }
    }

    fn job(&mut self, at: Timestamp, step: &str, attempt: u32) -> &mut Job {
        let known = self.jobs.iter().position(|job| job.step == step && job.attempt == attempt);
        let place = known.unwrap_or_else(|| {
            self.jobs.push(Job {
                step: step.to_owned(),
                attempt,
                queued: at,
                started: None,
                ended: None,
                waited_for: String::new(),
                result: None,
                how: String::new(),
                absences: Vec::new(),
                lines: VecDeque::new(),
                dropped_lines: 0,
            });
            self.jobs.len() - 1
        });
        &mut self.jobs[place]
    }
}

impl Job {
    fn hear(&mut self, at: Timestamp, state: &State) {
        if !matches!(state, State::Away { .. } | State::Interrupted { .. }) {
            self.back(at);
        }
        match state {
            State::Waits { reason, .. } => self.waited_for.clone_from(reason),
            State::Runs | State::Progress { .. } => {
                self.started.get_or_insert(at);
            }
            State::Away { since, why, .. } => self.away(*since, why),
            State::Interrupted { why } => self.away(at, why),
            State::Back { .. } => {}
            State::TriedAgain { how, .. } => {
                self.result = Some(crate::deploy::event::JobResult::Failed);
                self.how.clone_from(how);
                self.ended = Some(at);
            }
            State::Ended { result, how, queued_at, started_at, ended_at } => {
                self.result = Some(*result);
                self.how.clone_from(how);
                // The agent's own times; the clock there may be another one, so only when they fit.
                let fits = |time: &Timestamp| (self.queued..=at).contains(time);
                self.started = started_at.filter(fits).or(self.started);
                self.ended = Some(ended_at.filter(fits).unwrap_or(at));
                self.queued = queued_at.filter(fits).unwrap_or(self.queued);
            }
        }
    }

    /// Told again and again; the last reason counts.
    fn away(&mut self, since: Timestamp, why: &str) {
        match self.absences.last_mut().filter(|absence| absence.until.is_none()) {
            Some(absence) => why.clone_into(&mut absence.why),
            None => self.absences.push(Absence { since, until: None, why: why.to_owned() }),
        }
    }

    /// Whatever is heard comes from an agent that is there, or is the end.
    fn back(&mut self, at: Timestamp) {
        if let Some(absence) = self.absences.last_mut() {
            absence.until.get_or_insert(at);
        }
    }
}
