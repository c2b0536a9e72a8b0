//! What is told becomes the state of a table: one line a target.

use std::time::Duration;

use jiff::Timestamp;

use super::lines;
use crate::cli::show::{Table, between, span};
use crate::deploy::event::{Event, JobResult, State, TargetVerdict, Transfer, Verdict, What};
use crate::deploy::plan::Plan;
use crate::text::shorten;

/// How wide columns are at most.
const NAME: usize = 18;
const STEP: usize = 20;
const STATE: usize = 14;

/// All targets of a run.
pub(super) struct View {
    project: String,
    title: String,
    run: String,
    began: Timestamp,
    over: Option<(Verdict, Timestamp)>,
    ending: Option<String>,
    steps: usize,
    targets: Vec<Target>,
}

struct Target {
    name: String,
    step: String,
    number: u32,
    state: Stand,
    line: String,
    waits_since: Option<Timestamp>,
    runs_since: Option<Timestamp>,
    waited: Duration,
    ran: Duration,
    verdict: Option<TargetVerdict>,
    how: String,
}

/// How a target stands.
enum Stand {
    Fresh,
    Sends { done: u64, total: u64 },
    Waits { position: u32 },
    Runs { percent: Option<u8> },
    Away { since: Timestamp },
    Between,
    Failed,
    LeftOut,
}

impl View {
    pub(super) fn new(plan: &Plan, run: &str) -> Self {
        let release = plan.release.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        let targets = plan.targets.iter().map(|target| Target {
            name: target.name.clone(),
            step: String::new(),
            number: 0,
            state: Stand::Fresh,
            line: String::new(),
            waits_since: None,
            runs_since: None,
            waited: Duration::ZERO,
            ran: Duration::ZERO,
            verdict: None,
            how: String::new(),
        });
        Self {
            project: plan.project.clone(),
            title: format!("{}{release} to {}", plan.project, plan.environment),
            run: run.to_owned(),
            began: Timestamp::now(),
            over: None,
            ending: None,
            steps: plan.steps().count(),
            targets: targets.collect(),
        }
    }

    pub(super) fn project(&self) -> &str {
        &self.project
    }

    pub(super) fn run(&self) -> &str {
        &self.run
    }

    pub(super) fn hear(&mut self, event: &Event) {
        let Event { at, what, .. } = event;
        let name = match what {
            What::LeftOut { target, .. }
            | What::Package { target, .. }
            | What::Job { target, .. }
            | What::Output { target, .. } => target,
            What::Ends { why } => {
                self.ending = Some(why.clone());
                return;
            }
            What::Over { result, targets } => {
                self.over = Some((*result, *at));
                for (target, told) in self.targets.iter_mut().zip(targets) {
                    target.verdict = Some(told.result);
                    target.how.clone_from(&told.how);
                }
                return;
            }
            What::Began { .. }
            | What::WaitsForTurn { .. }
            | What::HasTurn
            | What::Paused { .. }
            | What::Answered { .. } => return,
        };
        let Some(target) = self.targets.iter_mut().find(|target| target.name == *name) else {
            return;
        };
        target.hear(*at, what);
    }

    /// The table, no larger than so many lines and columns.
    pub(super) fn lines(&self, rows: usize, columns: usize, now: Timestamp) -> Vec<String> {
        let mut lines = vec![self.head(now)];
        let room = rows.saturating_sub(lines.len() + 1).max(1);
        let mut shown: Vec<&Target> = self.targets.iter().collect();
        // What goes on comes first when there is no room for all.
        if shown.len() > room {
            shown.sort_by_key(|target| target.rank());
        }
        let width = self.targets.iter().map(|target| target.name.chars().count()).max();
        let width = width.unwrap_or(0).min(NAME);
        lines.extend(shown.iter().take(room).map(|target| target.draw(self.steps, width, now)));
        if let Some(hidden) = shown.len().checked_sub(room).filter(|hidden| *hidden > 0) {
            lines.push(format!("… and {hidden} more"));
        }
        lines.iter().map(|line| shorten(line, columns)).collect()
    }

    fn head(&self, now: Timestamp) -> String {
        let count = |wanted: &dyn Fn(&Target) -> bool| {
            self.targets.iter().filter(|target| wanted(target)).count()
        };
        let running = count(&|t| matches!(t.state, Stand::Runs { .. } | Stand::Sends { .. }));
        let waiting = count(&|t| matches!(t.state, Stand::Waits { .. }));
        let failed = count(&|t| matches!(t.state, Stand::Failed));
        let mut text = format!("{}: {} targets", self.title, self.targets.len());
        for (count, word) in [(running, "running"), (waiting, "waiting"), (failed, "failed")] {
            if count > 0 {
                text = format!("{text}, {count} {word}");
            }
        }
        format!("{text}, {}", span(between(self.began, now)))
    }

    /// What is left on the screen.
    pub(super) fn summary(&self) -> String {
        let mut table = Table::new(&["TARGET", "RESULT", "WAITED", "RAN", ""]);
        for target in &self.targets {
            let word = match target.verdict {
                Some(TargetVerdict::Succeeded) => "succeeded",
                Some(TargetVerdict::Failed) => "failed",
                Some(TargetVerdict::LeftOut) => "left out",
                Some(TargetVerdict::DoneBefore) => "done before",
                Some(TargetVerdict::Unfinished) | None => "unfinished",
            };
            let (name, how) = (target.name.clone(), target.how.clone());
            table.row(vec![name, word.to_owned(), span(target.waited), span(target.ran), how]);
        }
        let (verdict, took) = match self.over {
            Some((verdict, at)) => (lines::verdict(verdict), span(between(self.began, at))),
            None => ("not over", String::new()),
        };
        let why = self.ending.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let mut text = format!("{}{} {verdict} after {took}{why}\n", table.render(), self.title);
        if self.over.is_some_and(|(verdict, _)| verdict != Verdict::Succeeded) {
            let hint = "hint: for the targets that are left: --continue-from ";
            text.extend([hint, &self.run, "\n"]);
        }
        text
    }
}

impl Target {
    fn hear(&mut self, at: Timestamp, what: &What) {
        match what {
            What::LeftOut { why, .. } => {
                self.state = Stand::LeftOut;
                self.line.clone_from(why);
            }
            What::Package { package, version, transfer, .. } => {
                self.step = format!("{package} {version}");
                self.hear_package(transfer);
            }
            What::Job { step, number, state, .. } => {
                self.step.clone_from(step);
                self.number = *number;
                self.hear_step(state, at);
            }
            What::Output { line, .. } if !line.trim().is_empty() => self.line.clone_from(line),
            What::Output { .. }
            | What::Began { .. }
            | What::WaitsForTurn { .. }
            | What::HasTurn
            | What::Paused { .. }
            | What::Answered { .. }
            | What::Ends { .. }
            | What::Over { .. } => {}
        }
    }

    fn hear_package(&mut self, transfer: &Transfer) {
        match transfer {
            Transfer::Sends { done, total } => {
                self.state = Stand::Sends { done: *done, total: *total };
            }
            Transfer::Away { since, until, why } => self.away(*since, *until, why),
            Transfer::Done { .. } => self.state = Stand::Between,
            Transfer::Failed { why } => {
                self.state = Stand::Failed;
                self.line.clone_from(why);
            }
        }
    }

    fn hear_step(&mut self, state: &State, at: Timestamp) {
        match state {
            State::Waits { position, reason, behind } => {
                self.waits_since.get_or_insert(at);
                self.state = Stand::Waits { position: *position };
                self.line.clone_from(if behind.is_empty() { reason } else { behind });
            }
            State::Runs => self.begin(at, None),
            State::Progress { percent, text } => {
                self.begin(at, Some(*percent));
                if !text.is_empty() {
                    self.line.clone_from(text);
                }
            }
            State::Away { since, until, why } => self.away(*since, *until, why),
            // How it stands is told next.
            State::Back { .. } | State::Interrupted { .. } => self.line = lines::state(state, at),
            State::TriedAgain { .. } => {
                self.end(at);
                self.state = Stand::Between;
                self.line = lines::state(state, at);
            }
            State::Ended { result, how, .. } => {
                self.end(at);
                self.state = match result {
                    JobResult::Succeeded => Stand::Between,
                    JobResult::Failed | JobResult::Cancelled => Stand::Failed,
                    JobResult::Skipped => Stand::LeftOut,
                };
                if !how.is_empty() {
                    self.line.clone_from(how);
                }
            }
        }
    }

    fn away(&mut self, since: Timestamp, until: Timestamp, why: &str) {
        self.state = Stand::Away { since };
        // How long is told beside it.
        self.line = format!("the agent is {}", lines::away(since, until, why).at(since));
    }

    fn begin(&mut self, at: Timestamp, percent: Option<u8>) {
        if let Some(since) = self.waits_since.take() {
            self.waited += between(since, at);
            self.line.clear();
        }
        self.runs_since.get_or_insert(at);
        self.state = Stand::Runs { percent };
    }

    fn end(&mut self, at: Timestamp) {
        if let Some(since) = self.waits_since.take() {
            self.waited += between(since, at);
        }
        if let Some(since) = self.runs_since.take() {
            self.ran += between(since, at);
        }
    }

    /// What is of more interest comes first.
    fn rank(&self) -> u8 {
        match self.state {
            Stand::Failed => 0,
            Stand::Runs { .. } | Stand::Sends { .. } | Stand::Away { .. } => 1,
            Stand::Waits { .. } => 2,
            Stand::Between => 3,
            Stand::Fresh => 4,
            Stand::LeftOut => 5,
        }
    }

    fn draw(&self, steps: usize, width: usize, now: Timestamp) -> String {
        let name = shorten(&self.name, width);
        let step = match self.number {
            0 => self.step.clone(),
            number => format!("{number}/{steps} {}", self.step),
        };
        let state = shorten(&self.state_text(now), STATE);
        format!("{name:width$}  {state:STATE$}  {:STEP$}  {}", shorten(&step, STEP), self.line)
    }

    fn state_text(&self, now: Timestamp) -> String {
        let since =
            |time: Option<Timestamp>| span(time.map_or(Duration::ZERO, |t| between(t, now)));
        match self.state {
            Stand::Fresh => String::new(),
            Stand::Sends { done, total } => {
                let percent = (done.saturating_mul(100)).checked_div(total).unwrap_or(100);
                let full = usize::try_from(percent / 14).unwrap_or(0).min(7);
                format!("[{}{}] {percent}%", "#".repeat(full), "-".repeat(7 - full))
            }
            Stand::Waits { position: 0 } => "starts".to_owned(),
            Stand::Waits { position } => format!("waits #{position} {}", since(self.waits_since)),
            Stand::Runs { percent: Some(percent) } => format!("runs {percent}%"),
            Stand::Runs { percent: None } => format!("runs {}", since(self.runs_since)),
            Stand::Away { since } => format!("away {}", span(between(since, now))),
            Stand::Between => "done so far".to_owned(),
            Stand::Failed => "failed".to_owned(),
            Stand::LeftOut => "left out".to_owned(),
        }
    }
}
