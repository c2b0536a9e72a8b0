//! Working plans off before somebody's eyes: a table on a terminal, lines elsewhere, JSON for programs.

mod ask;
mod demo;
mod lines;
mod show;
mod table;
mod view;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::failure::{Failure, code, complain};
use super::reach::CLIENT;
use super::screen::write_out;
use crate::config::Directories;
use crate::config::client::ClientConfig;
use crate::deploy::event::{Event, Verdict, What};
use crate::deploy::plan::Plan;
use crate::deploy::record::{self, Answer, Record, RecordError};
use crate::deploy::report::Report;
use crate::deploy::run::{Busy, GoAhead, Options, Run, RunError};
use crate::mutex::Claimant;
use crate::trust::Identity;
pub(super) use demo::DemoTargets;
use show::Show;

/// The exit status of a roll-out that some targets failed, no more than may.
const PARTLY: u8 = 3;
/// How many events may wait to be shown.
const MAX_EVENTS: usize = 1024;

/// How plans are worked off.
pub(super) struct Wish {
    /// The run's id; a new one when there is none.
    pub(super) run: Option<String>,
    pub(super) if_busy: Busy,
    /// The run whose targets that are done are left out.
    pub(super) continue_from: Option<String>,
    pub(super) json: bool,
    /// Where the page goes.
    pub(super) report: Option<PathBuf>,
}

/// Works plans off and shows it. Of several, each begins when the one before stands in the lines of its
/// first targets.
pub(super) async fn work_off(
    plans: Vec<Plan>,
    wish: Wish,
    folders: &Directories,
) -> Result<ExitCode, Failure> {
    let identity = Arc::new(Identity::load_or_create(&folders.config, CLIENT)?);
    let leave_out = leave_out(&plans, &wish, folders)?;
    let (events, mut told) = mpsc::channel(MAX_EVENTS);
    let stop = CancellationToken::new();
    let mut show = Show::new(wish.json);
    let terminal = ask::Terminal::of(show.is_table());
    let (mut records, mut waiting) = (BTreeMap::new(), VecDeque::new());
    for plan in plans {
        let id = wish.run.clone().unwrap_or_else(|| new_id(&records));
        let record = Record::open(&folders.state, &id)?;
        show.expect(&plan, &id);
        let asker: Arc<dyn GoAhead> =
            Arc::new(ask::Asker::new(&id, record.folder(), show.is_table(), terminal.clone())?);
        records.insert(id.clone(), record);
        let options = Options {
            if_busy: wish.if_busy,
            leave_out: leave_out.clone(),
            mutexes: folders.mutex.clone(),
            etcd_ca: ClientConfig::load(&folders.config)?.coordination.etcd_ca,
            summary: summary(&plan, &id),
        };
        let first = plan.waves.first().map_or(0, |wave| wave.targets.len());
        let people = (asker, events.clone());
        let run = Run::new(plan, id, options, Arc::clone(&identity), people, stop.clone())?;
        waiting.push_back(Waiting { run, first });
    }
    drop(events);
    mind_signals(stop)?;
    if let Some(path) = &wish.report {
        // What can't be written is told before anything starts.
        write_report(path, &Report::default())?;
    }
    let mut told_all = Told { show, records, report: Report::default(), wish };
    let mut working = Working { waiting, ..Working::default() };
    working.begin_next();
    let mut frames = tokio::time::interval(table::FRAME);
    loop {
        tokio::select! {
            event = told.recv() => match event {
                Some(event) => {
                    working.hear(&event);
                    tokio::task::block_in_place(|| told_all.hear(&event))?;
                }
                None => break,
            },
            Some(ended) = working.running.join_next() => working.ended(ended),
            _ = frames.tick(), if told_all.show.is_table() => told_all.show.draw(),
        }
    }
    let verdict = working.verdict().await;
    told_all.finish()?;
    Ok(exit_code(verdict?))
}

/// The targets that an earlier run has done; a run that is named must be one of this deployment.
fn leave_out(
    plans: &[Plan],
    wish: &Wish,
    folders: &Directories,
) -> Result<BTreeMap<String, String>, Failure> {
    for plan in plans {
        if let Some(run) = &wish.run {
            record::check_goes_on(&folders.state, run, plan)?;
        }
        if let Some(run) = &wish.continue_from {
            record::check_same(&folders.state, run, plan)?;
        }
    }
    Ok(match &wish.continue_from {
        Some(run) => record::done_targets(&folders.state, run)?,
        None => BTreeMap::new(),
    })
}

/// Lets a run's pause go on, or ends the run there.
pub(super) fn answer(run: &str, goes_on: bool, folders: &Directories) -> Result<ExitCode, Failure> {
    let by = Claimant::this_process(String::new()).user;
    record::answer(&folders.state, run, &Answer { by, goes_on })?;
    let word = if goes_on { "goes on" } else { "ends" };
    write_out(format!("run {run} {word}\n").as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A run that has not begun.
struct Waiting {
    run: Run,
    /// How many targets its first wave has.
    first: usize,
}

/// The runs of this command.
#[derive(Default)]
struct Working {
    waiting: VecDeque<Waiting>,
    running: JoinSet<(String, Result<Verdict, RunError>)>,
    worst: Option<Verdict>,
    /// Why a run could not begin.
    failure: Option<Failure>,
    /// The last one that began, how many targets its first wave has, and those of which was heard.
    last: String,
    first: usize,
    heard: HashSet<String>,
}

impl Working {
    fn begin_next(&mut self) {
        if let Some(Waiting { run, first }) = self.waiting.pop_front() {
            run.id().clone_into(&mut self.last);
            self.first = first;
            self.heard.clear();
            self.running.spawn(async move { (run.id().to_owned(), run.work().await) });
        }
    }

    fn hear(&mut self, event: &Event) {
        if event.run != self.last {
            return;
        }
        let stands = match &event.what {
            What::Job { target, .. } | What::LeftOut { target, .. } => {
                self.heard.insert(target.clone());
                self.heard.len() >= self.first
            }
            What::WaitsForTurn { .. } | What::Over { .. } => true,
            What::Began { .. }
            | What::HasTurn
            | What::Package { .. }
            | What::Output { .. }
            | What::Paused { .. }
            | What::Answered { .. }
            | What::Ends { .. } => false,
        };
        if stands {
            self.begin_next();
        }
    }

    /// A run that could not begin tells no last event: the next one begins all the same.
    fn ended(&mut self, ended: Result<(String, Result<Verdict, RunError>), JoinError>) {
        let failure = match ended {
            Ok((_, Ok(verdict))) => {
                self.worst = self.worst.max(Some(verdict));
                return;
            }
            Ok((run, Err(error))) => {
                if run == self.last {
                    self.begin_next();
                }
                Failure::from(error)
            }
            Err(error) => {
                self.begin_next();
                Failure::new(code::INTERNAL, error)
            }
        };
        self.failure.get_or_insert(failure);
    }

    /// The worst one.
    async fn verdict(mut self) -> Result<Verdict, Failure> {
        while let Some(ended) = self.running.join_next().await {
            self.ended(ended);
        }
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self.worst.unwrap_or(Verdict::Succeeded)),
        }
    }
}

fn exit_code(verdict: Verdict) -> ExitCode {
    ExitCode::from(match verdict {
        Verdict::Succeeded => 0,
        Verdict::Partly => PARTLY,
        Verdict::Failed => 1,
        Verdict::Cancelled => code::CANCELLED,
    })
}

/// Sorts by time, is short enough to be typed, and is none of `others`.
fn new_id(others: &BTreeMap<String, Record>) -> String {
    loop {
        let now = Timestamp::now().to_zoned(jiff::tz::TimeZone::system());
        let chance = uuid::Uuid::now_v7().simple().to_string();
        let id = format!("{}-{}", now.strftime("%Y%m%d-%H%M%S"), &chance[chance.len() - 4..]);
        if !others.contains_key(&id) {
            return id;
        }
    }
}

/// What others are told who wait for this deployment.
fn summary(plan: &Plan, run: &str) -> String {
    let release = plan.release.as_ref().map(|release| format!(" {release}")).unwrap_or_default();
    format!("deploys {}{release} to {}, run {run}", plan.project, plan.environment)
}

/// The first Ctrl-C stops the roll-out, the second leaves at once.
fn mind_signals(stop: CancellationToken) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.is_cancelled() {
                complain("baton: leaving; what runs goes on: baton list on the targets");
                std::process::exit(i32::from(code::CANCELLED));
            }
            stop.cancel();
            complain(
                "baton: nothing more starts, what runs is cancelled; once more to leave at once",
            );
        }
    }));
    Ok(())
}

/// Everybody who is told.
struct Told {
    show: Show,
    records: BTreeMap<String, Record>,
    report: Report,
    wish: Wish,
}

impl Told {
    fn hear(&mut self, event: &Event) -> Result<(), Failure> {
        if self.wish.report.is_some() {
            self.report.hear(event);
        }
        let record = self.records.get_mut(&event.run);
        if let Some(Err(error)) = record.map(|record| record.add(event)) {
            complain(&format!("baton: the record of the run can't be written: {error}"));
        }
        match self.show.hear(event) {
            Err(failure) if failure.is_broken_pipe() => {
                complain("baton: nobody reads the output; the deployment goes on");
                self.show.be_silent();
                Ok(())
            }
            other => other,
        }
    }

    fn finish(self) -> Result<(), Failure> {
        let Self { show, report, wish, .. } = self;
        write_out(show.finish().as_bytes())?;
        if let Some(path) = &wish.report {
            match write_report(path, &report) {
                Ok(()) => complain(&format!("baton: the report is in {}", path.display())),
                // How the deployment ended is worth more.
                Err(failure) => drop(failure.report()),
            }
        }
        Ok(())
    }
}

fn write_report(path: &Path, report: &Report) -> Result<(), Failure> {
    crate::durable::replace_file(path, report.html().as_bytes(), 0o644).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("report {}", path.display()));
        Failure::new(code::USAGE, error)
    })
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match &error {
            RunError::Turn { .. } => Self::new(code::INTERNAL, error),
            RunError::Id { .. } => Self::new(code::USAGE, error),
        }
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        match &error {
            RecordError::Unknown(_) => Self::new(code::USAGE, error)
                .hint("runs are known where they were started, by the user who did"),
            RecordError::Unfinished(run) => {
                let hint = format!("go on with it: the same command and --run {run}");
                Self::new(code::USAGE, error).hint(hint)
            }
            RecordError::Another { .. } => Self::new(code::USAGE, error)
                .hint("a deployment of something else is a run of its own"),
            RecordError::NotPaused(_) | RecordError::Id { .. } => Self::new(code::USAGE, error),
            RecordError::File { .. } | RecordError::Newer { .. } => {
                Self::new(code::INTERNAL, error)
            }
        }
    }
}
