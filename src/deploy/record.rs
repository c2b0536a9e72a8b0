//! What the orchestrating machine keeps of a run: its events, without output, in
//! `<state>/deployments/<run>/events.jsonl`; and the answer to its pause.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::event::{Event, TargetVerdict, What};
use super::plan::{MAX_RUN_BYTES, Plan};
use crate::durable;
use crate::format::{self, FormatError, Newer};
use crate::script::{NameError, check_name};

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is none of this run.
    #[error("run {0:?} is not known here")]
    Unknown(String),
    /// It can't be a run's id.
    #[error("run id {id:?}")]
    Id {
        /// The id.
        id: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// It is a run of something else.
    #[error("run {run:?} is one of {what}")]
    Another {
        /// The run.
        run: String,
        /// What it deploys, in words.
        what: String,
    },
    /// It asks nothing.
    #[error("run {0:?} does not wait for a go-ahead now")]
    NotPaused(String),
    /// It was not come to its end.
    #[error("run {0:?} did not come to its end")]
    Unfinished(String),
    /// A newer baton wrote it.
    #[error("{}", path.display())]
    Newer {
        /// Its file.
        path: PathBuf,
        /// How new.
        source: Newer,
    },
    /// A file of it can't be used.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The record of a run.
#[derive(Debug)]
pub struct Record {
    folder: PathBuf,
    events: File,
}

/// An answer to a pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who answered, in words.
    pub by: String,
    /// Whether it goes on.
    pub goes_on: bool,
}

fn folder(state: &Path, run: &str) -> Result<PathBuf, RecordError> {
    match check_name(run, MAX_RUN_BYTES) {
        Ok(()) => Ok(state.join("deployments").join(run)),
        Err(source) => Err(RecordError::Id { id: run.to_owned(), source }),
    }
}

/// The events of a run, as text; nothing when it is not known.
fn events(state: &Path, run: &str) -> Result<Option<String>, RecordError> {
    let path = folder(state, run)?.join("events.jsonl");
    match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => {
            let text = other.map_err(at(&path))?;
            // One without this line is of the first version.
            let head = text.lines().next().unwrap_or_default().as_bytes();
            match format::check_json(format::DEPLOYMENT, head) {
                Err(FormatError::Newer(source)) => Err(RecordError::Newer { path, source }),
                Ok(()) | Err(FormatError::Json(_)) => Ok(Some(text)),
            }
        }
    }
}

/// What a run began with, or one of this plan would.
#[derive(PartialEq, Eq)]
struct Beginning {
    project: String,
    environment: String,
    tenant: Option<String>,
    release: Option<String>,
}

impl Beginning {
    /// Of a run that is known, and its steps.
    fn of(state: &Path, run: &str) -> Result<Option<(Self, Vec<String>)>, RecordError> {
        let text = events(state, run)?.unwrap_or_default();
        let began = |line: &str| {
            let event = serde_json::from_str::<Event>(line).ok()?;
            let What::Began { project, environment, tenant, release, steps, .. } = event.what
            else {
                return None;
            };
            Some((Self { project, environment, tenant, release }, steps))
        };
        Ok(text.lines().find_map(began))
    }

    fn of_plan(plan: &Plan) -> Self {
        let Plan { project, environment, tenant, release, .. } = plan.clone();
        Self { project, environment, tenant, release }
    }

    fn refuse(&self, run: &str, more: &str) -> RecordError {
        let Self { project, environment, tenant, release } = self;
        let release = release.as_ref().map(|release| format!(" {release}")).unwrap_or_default();
        let tenant = tenant.as_ref().map(|tenant| format!(" for {tenant}")).unwrap_or_default();
        let what = format!("{project}{release} to {environment}{tenant}{more}");
        RecordError::Another { run: run.to_owned(), what }
    }
}

/// Says whether a run, if it is known, is one of this plan: the same project, environment, tenant and release.
///
/// # Errors
/// When it is one of something else.
pub fn check_same(state: &Path, run: &str, plan: &Plan) -> Result<(), RecordError> {
    match Beginning::of(state, run)? {
        Some((began, _)) if began != Beginning::of_plan(plan) => Err(began.refuse(run, "")),
        _ => Ok(()),
    }
}

/// The same, for a run that is to go on: its steps are the same ones too. Scripts are found again by their
/// steps' places.
///
/// # Errors
/// When it is one of something else.
pub fn check_goes_on(state: &Path, run: &str, plan: &Plan) -> Result<(), RecordError> {
    check_same(state, run, plan)?;
    match Beginning::of(state, run)? {
        Some((began, steps)) if !plan.steps().map(|step| &step.name).eq(&steps) => {
            Err(began.refuse(run, &format!(" with the steps {}", steps.join(", "))))
        }
        _ => Ok(()),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::File { path, source }
}

impl Record {
    /// The record of a run, new or gone on with.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn open(state: &Path, run: &str) -> Result<Self, RecordError> {
        let folder = folder(state, run)?;
        durable::create_dir_all(&folder, 0o700).map_err(at(&folder))?;
        let path = folder.join("events.jsonl");
        let mut events = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(at(&path))?;
        if events.metadata().map_err(at(&path))?.len() == 0 {
            let head = format::line(format::DEPLOYMENT);
            events.write_all(head.as_bytes()).map_err(at(&path))?;
        }
        Ok(Self { folder, events })
    }

    /// Adds an event. Output stays with the agents.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add(&mut self, event: &Event) -> io::Result<()> {
        if matches!(event.what, What::Output { .. }) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.events.write_all(&line)
    }

    /// Its folder: an answer appears there.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The targets on which a run has done all, with a remark for people.
///
/// # Errors
/// When there is no such run here, or it did not come to its end.
pub fn done_targets(state: &Path, run: &str) -> Result<BTreeMap<String, String>, RecordError> {
    let text = events(state, run)?.ok_or_else(|| RecordError::Unknown(run.to_owned()))?;
    let over = |line: &str| match serde_json::from_str::<Event>(line).ok()?.what {
        What::Over { targets, .. } => Some(targets),
        What::Began { .. }
        | What::WaitsForTurn { .. }
        | What::HasTurn
        | What::LeftOut { .. }
        | What::Package { .. }
        | What::Job { .. }
        | What::Output { .. }
        | What::Paused { .. }
        | What::Answered { .. }
        | What::Ends { .. } => None,
    };
    let targets = text.lines().rev().find_map(over);
    let targets = targets.ok_or_else(|| RecordError::Unfinished(run.to_owned()))?;
    let done = targets.into_iter().filter_map(|target| match target.result {
        TargetVerdict::Succeeded => Some((target.target, format!("done in run {run}"))),
        TargetVerdict::DoneBefore => Some((target.target, target.how)),
        TargetVerdict::Failed | TargetVerdict::LeftOut | TargetVerdict::Unfinished => None,
    });
    Ok(done.collect())
}

/// A question that is asked, until it is dropped: only then an answer counts.
#[derive(Debug)]
pub struct Question {
    folder: PathBuf,
}

impl Question {
    /// Asks in the folder of a record. What was answered before is no answer.
    ///
    /// # Errors
    /// When the question can't be written.
    pub fn ask(folder: &Path) -> io::Result<Self> {
        let question = Self { folder: folder.to_owned() };
        question.forget();
        durable::replace_file(&question_path(folder), b"", 0o600)?;
        Ok(question)
    }

    /// The answer, if there is one.
    pub fn answer(&self) -> Option<Answer> {
        serde_json::from_slice(&std::fs::read(answer_path(&self.folder)).ok()?).ok()
    }

    fn forget(&self) {
        // The question first: an answer that comes in between is forgotten too.
        std::fs::remove_file(question_path(&self.folder)).unwrap_or_default();
        std::fs::remove_file(answer_path(&self.folder)).unwrap_or_default();
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Answers a run's pause.
///
/// # Errors
/// When there is no such run here, it asks nothing now, or the answer can't be written.
pub fn answer(state: &Path, run: &str, answer: &Answer) -> Result<(), RecordError> {
    let folder = folder(state, run)?;
    if !folder.is_dir() {
        return Err(RecordError::Unknown(run.to_owned()));
    }
    if !question_path(&folder).exists() {
        return Err(RecordError::NotPaused(run.to_owned()));
    }
    let path = answer_path(&folder);
    let text = serde_json::to_vec(answer).map_err(io::Error::from).map_err(at(&path))?;
    durable::replace_file(&path, &text, 0o600).map_err(at(&path))
}

fn question_path(folder: &Path) -> PathBuf {
    folder.join("question")
}

fn answer_path(folder: &Path) -> PathBuf {
    folder.join("answer.json")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::event::{TargetResult, Verdict};
    use super::*;

    #[test]
    fn a_run_that_came_to_its_end_says_which_targets_are_done() {
        let state = tempfile::tempdir().unwrap();
        assert!(matches!(done_targets(state.path(), "r"), Err(RecordError::Unknown(_))));
        let mut record = Record::open(state.path(), "r").unwrap();
        let mut add =
            |what| record.add(&Event { at: Timestamp::now(), run: "r".to_owned(), what }).unwrap();
        add(What::HasTurn);
        assert!(matches!(done_targets(state.path(), "r"), Err(RecordError::Unfinished(_))));
        let target = |name: &str, result| TargetResult {
            target: name.to_owned(),
            result,
            how: String::new(),
        };
        let targets =
            vec![target("a", TargetVerdict::Succeeded), target("b", TargetVerdict::Unfinished)];
        add(What::Over { result: Verdict::Failed, targets });
        let done = done_targets(state.path(), "r").unwrap();
        assert_eq!(done.into_iter().collect::<Vec<_>>(), [("a".into(), "done in run r".into())]);
    }

    #[test]
    fn an_answer_counts_only_while_it_is_asked_for() {
        let state = tempfile::tempdir().unwrap();
        let given = Answer { by: "ann".to_owned(), goes_on: true };
        let reply = || answer(state.path(), "r", &given);
        assert!(matches!(reply(), Err(RecordError::Unknown(_))));
        let record = Record::open(state.path(), "r").unwrap();
        assert!(matches!(reply(), Err(RecordError::NotPaused(_))));
        let question = Question::ask(record.folder()).unwrap();
        assert_eq!(question.answer(), None);
        reply().unwrap();
        assert_eq!(question.answer(), Some(given.clone()));
        // Killed here, it is asked again.
        std::mem::forget(question);
        let question = Question::ask(record.folder()).unwrap();
        assert_eq!(question.answer(), None);
        drop(question);
        assert!(matches!(reply(), Err(RecordError::NotPaused(_))));
    }
}
