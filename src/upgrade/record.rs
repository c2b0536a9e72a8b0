//! The record of an upgrade: `<state>/upgrade/record.json`. It survives the agent, the guard and the machine.
//!
//! ```text
//!            Swapped           Starting            Healthy
//! Swapping ──────────► Swapped ─────────► Starting ────────► Done(upgraded)
//!    └────────────────────┴──────────────────┴─► TakingBack ───► Done(rolled back)
//!                        TakeBack                      TakenBack
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{UpgradeError, failed};
use crate::mutex::os;
use crate::process::ProcessId;

/// The version of this file's form. Fields that are not known are left alone.
const FORMAT: u32 = 1;

/// An upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of the file's form.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Its id.
    pub id: String,
    /// The program that is replaced.
    pub program: PathBuf,
    /// The version that ran.
    pub from: String,
    /// The version that came.
    pub to: String,
    /// The SHA-256 of the program that came.
    pub sha256: String,
    /// Who asked for it.
    pub caller: String,
    /// When.
    pub begun_at: Timestamp,
    /// When the agent that is replaced was started: the one that comes is another one.
    pub replaced_started_at: Timestamp,
    /// How long the new one may take until it serves.
    pub health_limit: Duration,
    /// The agent's socket.
    pub socket: PathBuf,
    /// The agent's process; it stays the same when the agent becomes the new program.
    pub agent: ProcessId,
    /// Where it stands.
    pub stage: Stage,
}

/// Where an upgrade stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// The program is about to be replaced.
    Swapping,
    /// It is replaced; the old one still runs.
    Swapped,
    /// The agent becomes the new program.
    Starting,
    /// The old program is put back.
    TakingBack {
        /// Why.
        reason: String,
    },
    /// It is over.
    Done {
        /// How.
        ended: Ended,
        /// When.
        at: Timestamp,
    },
}

/// How an upgrade ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ended", rename_all = "snake_case")]
pub enum Ended {
    /// The new version serves.
    Upgraded,
    /// The old version is back.
    RolledBack {
        /// Why.
        reason: String,
    },
}

/// What happens to an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The new program is at its path.
    Swapped,
    /// The agent is about to become it.
    Starting,
    /// The new version serves.
    Healthy,
    /// It is not to be.
    TakeBack(String),
    /// The old program is at its path again, and nothing of the new one runs as the agent.
    TakenBack,
}

/// Two of agent, guard and operator disagree about an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not follow on {stage}")]
pub struct IllegalStage {
    stage: String,
    event: String,
}

impl Stage {
    /// Where it stands after an event.
    ///
    /// # Errors
    /// When the event can't follow.
    pub fn next(self, event: Event, at: Timestamp) -> Result<Self, IllegalStage> {
        match (self, event) {
            (Self::Swapping, Event::Swapped) => Ok(Self::Swapped),
            (Self::Swapped, Event::Starting) => Ok(Self::Starting),
            // Swapped: the old agent was killed there, and who supervises has started the new one.
            (Self::Swapped | Self::Starting, Event::Healthy) => {
                Ok(Self::Done { ended: Ended::Upgraded, at })
            }
            (Self::Swapping | Self::Swapped | Self::Starting, Event::TakeBack(reason)) => {
                Ok(Self::TakingBack { reason })
            }
            // The first reason is the one on record.
            (stage @ Self::TakingBack { .. }, Event::TakeBack(_)) => Ok(stage),
            (Self::TakingBack { reason }, Event::TakenBack) => {
                Ok(Self::Done { ended: Ended::RolledBack { reason }, at })
            }
            (
                stage @ Self::Swapping,
                event @ (Event::Starting | Event::Healthy | Event::TakenBack),
            )
            | (stage @ Self::Swapped, event @ (Event::Swapped | Event::TakenBack))
            | (
                stage @ Self::Starting,
                event @ (Event::Swapped | Event::Starting | Event::TakenBack),
            )
            | (
                stage @ Self::TakingBack { .. },
                event @ (Event::Swapped | Event::Starting | Event::Healthy),
            )
            | (stage @ Self::Done { .. }, event) => {
                Err(IllegalStage { stage: format!("{stage:?}"), event: format!("{event:?}") })
            }
        }
    }

    /// Whether it is over.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. })
    }
}

impl Record {
    /// The form of the records that this program writes.
    pub fn format() -> u32 {
        FORMAT
    }
}

/// The folder of an upgrade: `<state>/upgrade`.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder below a state folder.
    pub fn of(state: &Path) -> Self {
        Self { path: state.join("upgrade") }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn create(&self) -> Result<(), UpgradeError> {
        crate::durable::create_dir_all(&self.path, 0o700).map_err(failed(&self.path))
    }

    fn record(&self) -> PathBuf {
        self.path.join("record.json")
    }

    /// Where a program comes in.
    pub(super) fn incoming(&self) -> PathBuf {
        self.path.join("program")
    }

    /// The last upgrade, if there was one.
    ///
    /// # Errors
    /// When it can't be read, or a newer program wrote it in a form that is not known.
    pub fn read(&self) -> Result<Option<Record>, UpgradeError> {
        let path = self.record();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(&path)(e)),
        };
        let record: Record = serde_json::from_slice(&text)
            .map_err(|e| UpgradeError::Record(format!("{}: {e}", path.display())))?;
        if record.format > FORMAT {
            let text = format!("{} has form {}", path.display(), record.format);
            return Err(UpgradeError::Record(format!("{text}, {FORMAT} is known: a newer one")));
        }
        Ok(Some(record))
    }

    /// Begins a record, in place of the last one.
    ///
    /// # Errors
    /// When the disk refuses, or the last one is not over.
    pub fn begin(&self, record: &Record) -> Result<(), UpgradeError> {
        let _lock = self.lock("record.lock")?;
        if let Some(last) = self.read()?.filter(|last| !last.stage.is_done()) {
            return Err(UpgradeError::InProgress(Some(last.to)));
        }
        self.write(record)
    }

    /// Tells the record of an event; returns what it says now.
    ///
    /// # Durability
    /// On disk when it returns.
    ///
    /// # Errors
    /// When the disk refuses, there is no record, or the event can't follow.
    pub fn apply(&self, event: Event) -> Result<Record, UpgradeError> {
        let _lock = self.lock("record.lock")?;
        let none = || UpgradeError::Record("there is none".to_owned());
        let record = self.read()?.ok_or_else(none)?;
        let record =
            Record { stage: record.stage.clone().next(event, Timestamp::now())?, ..record };
        self.write(&record)?;
        Ok(record)
    }

    /// Names another process as the agent: one that was started when the record was there already.
    ///
    /// # Errors
    /// When the disk refuses, or there is no record.
    pub fn name_agent(&self, agent: ProcessId) -> Result<Record, UpgradeError> {
        let _lock = self.lock("record.lock")?;
        let none = || UpgradeError::Record("there is none".to_owned());
        let record = Record { agent, ..self.read()?.ok_or_else(none)? };
        self.write(&record)?;
        Ok(record)
    }

    fn write(&self, record: &Record) -> Result<(), UpgradeError> {
        let path = self.record();
        let text = serde_json::to_vec_pretty(record)
            .map_err(|e| UpgradeError::Record(format!("can't be written: {e}")))?;
        crate::durable::replace_file(&path, &text, 0o600).map_err(failed(&path))
    }

    /// The guard's lock, for who is to be the guard; `None`: another one lives.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn become_guard(&self) -> Result<Option<File>, UpgradeError> {
        let (path, file) = self.open_lock("guard")?;
        let is_ours = os::try_lock_exclusive(&file).map_err(failed(&path))?;
        Ok(is_ours.then_some(file))
    }

    /// Whether a guard lives.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn is_guarded(&self) -> Result<bool, UpgradeError> {
        Ok(self.become_guard()?.is_none())
    }

    /// Waits until no guard lives.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn await_guard_end(&self) -> Result<(), UpgradeError> {
        self.lock("guard").map(drop)
    }

    fn lock(&self, name: &str) -> Result<File, UpgradeError> {
        let (path, file) = self.open_lock(name)?;
        os::lock_exclusive(&file).map_err(failed(&path))?;
        Ok(file)
    }

    fn open_lock(&self, name: &str) -> Result<(PathBuf, File), UpgradeError> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed(&path))?;
        Ok((path, file))
    }
}

fn first_format() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            format: FORMAT,
            id: "1".to_owned(),
            program: "/usr/bin/baton".into(),
            from: "0.1.0".to_owned(),
            to: "0.2.0".to_owned(),
            sha256: "00".to_owned(),
            caller: "ci".to_owned(),
            begun_at: Timestamp::UNIX_EPOCH,
            replaced_started_at: Timestamp::UNIX_EPOCH,
            health_limit: Duration::from_secs(30),
            socket: "/run/baton/agent.sock".into(),
            agent: crate::process::Process::read(std::process::id()).unwrap().id(),
            stage: Stage::Swapping,
        }
    }

    fn name(stage: &Stage) -> &'static str {
        match stage {
            Stage::Swapping => "swapping",
            Stage::Swapped => "swapped",
            Stage::Starting => "starting",
            Stage::TakingBack { .. } => "taking back",
            Stage::Done { ended: Ended::Upgraded, .. } => "upgraded",
            Stage::Done { ended: Ended::RolledBack { .. }, .. } => "rolled back",
        }
    }

    #[test]
    fn what_follows_on_what() {
        let at = Timestamp::UNIX_EPOCH;
        let stages = [
            Stage::Swapping,
            Stage::Swapped,
            Stage::Starting,
            Stage::TakingBack { reason: "x".to_owned() },
            Stage::Done { ended: Ended::Upgraded, at },
        ];
        let events = [
            Event::Swapped,
            Event::Starting,
            Event::Healthy,
            Event::TakeBack("y".to_owned()),
            Event::TakenBack,
        ];
        let row = |stage: &Stage| {
            let cells = events
                .iter()
                .map(|event| stage.clone().next(event.clone(), at).as_ref().map_or("-", name));
            format!("{}: {}\n", name(stage), cells.collect::<Vec<_>>().join(", "))
        };
        let table: String = stages.iter().map(row).collect();
        assert_eq!(
            table,
            "swapping: swapped, -, -, taking back, -\n\
             swapped: -, starting, upgraded, taking back, -\n\
             starting: -, -, upgraded, taking back, -\n\
             taking back: -, -, -, taking back, rolled back\n\
             upgraded: -, -, -, -, -\n"
        );
    }

    #[test]
    fn a_record_is_kept_one_at_a_time_and_a_newer_form_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::of(root.path());
        folder.create().unwrap();
        assert_eq!(folder.read().unwrap(), None);
        folder.begin(&record()).unwrap();
        assert_eq!(folder.read().unwrap(), Some(record()));
        let error = folder.begin(&record()).unwrap_err();
        assert!(matches!(error, UpgradeError::InProgress(Some(to)) if to == "0.2.0"));
        folder.apply(Event::TakeBack("no".to_owned())).unwrap();
        let done = folder.apply(Event::TakenBack).unwrap();
        assert_eq!(name(&done.stage), "rolled back");
        folder.begin(&Record { format: FORMAT + 1, ..record() }).unwrap();
        assert!(folder.read().unwrap_err().to_string().contains("is known"));
    }

    #[test]
    fn there_is_one_guard() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::of(root.path());
        folder.create().unwrap();
        assert!(!folder.is_guarded().unwrap());
        let lock = folder.become_guard().unwrap();
        assert!(lock.is_some() && folder.is_guarded().unwrap());
        assert!(folder.become_guard().unwrap().is_none());
    }
}
