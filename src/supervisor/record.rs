//! The last stage: how the script ended is put on disk.
//!
//! 1. A disk that refuses is asked again for [`PATIENCE`]: what is full or read-only may be mended, and
//!    an outcome that is known must not be lost for a moment's sake. The mutexes stay held meanwhile.
//! 2. After that the exit status says why ([`Unwritten`]): there is no file left to say it in.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::job::{Ending, Report};
use super::{SuperviseError, Supervision, returns};
use crate::crash;
use crate::script::Outcome;
use crate::workspace::{WorkspaceError, is_lack};

/// How long it is tried to write the outcome.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait before it is tried again.
const PAUSE: Duration = Duration::from_millis(250);

/// Why an outcome is not on disk: what the exit status of a supervisor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwritten {
    /// The disk was full, or the user's part of it.
    NoRoom,
    /// The file system was read-only.
    ReadOnly,
    /// Another error.
    Refused,
}

impl Unwritten {
    /// The exit status; none that sysexits(3), a shell or a panic has.
    pub fn status(self) -> u8 {
        match self {
            Self::NoRoom => 90,
            Self::ReadOnly => 91,
            Self::Refused => 92,
        }
    }

    /// What an exit status says; `None`: something else.
    pub fn of(status: i32) -> Option<Self> {
        let all = [Self::NoRoom, Self::ReadOnly, Self::Refused];
        all.into_iter().find(|why| i32::from(why.status()) == status)
    }

    pub(super) fn from_error(error: &WorkspaceError) -> Self {
        let kind = match error {
            WorkspaceError::File { source, .. } => source.kind(),
            WorkspaceError::Newer { .. } | WorkspaceError::Damaged { .. } => {
                io::ErrorKind::InvalidData
            }
        };
        if kind == io::ErrorKind::ReadOnlyFilesystem {
            Self::ReadOnly
        } else if is_lack(error) {
            Self::NoRoom
        } else {
            Self::Refused
        }
    }
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoom => "the disk was full",
            Self::ReadOnly => "the file system was read-only",
            Self::Refused => "the disk refused it",
        })
    }
}

impl Supervision {
    /// Puts the outcome on disk.
    pub(super) fn record(
        &mut self,
        mut outcome: Outcome,
        started_at: Option<Timestamp>,
    ) -> Result<(), SuperviseError> {
        self.workspace.use_reserve();
        if let Some((cause, bytes)) = self.journal.dropped() {
            outcome.output_dropped_bytes = bytes;
            outcome.output_drop_cause = Some(cause);
            self.tell(&Report::OutputDropped { cause, bytes, here: self.journal.untold() });
        }
        // The outcome must be known even if the output can't be kept.
        let synced = self.journal.sync();
        let ending = Ending { outcome, started_at, ended_at: Timestamp::now() };
        crash::point("before outcome");
        self.write(&ending).map_err(SuperviseError::Outcome)?;
        crash::point("after outcome");
        Ok(synced?)
    }

    /// Rule 1. Nobody waits for a disk when the command that ran the script is gone.
    fn write(&self, ending: &Ending) -> Result<(), WorkspaceError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.write_once(ending) {
                Err(_) if Instant::now() < until && !self.signals.owner_is_gone() => {
                    std::thread::sleep(PAUSE);
                }
                other => return other,
            }
        }
    }

    fn write_once(&self, ending: &Ending) -> Result<(), WorkspaceError> {
        let path = self.workspace.outcome();
        self.workspace.write_json(&path, ending).or_else(|error| {
            // How it ended counts more than what it gave back.
            let lighter = returns::without_values(ending.clone()).ok_or(error)?;
            self.workspace.write_json(&path, &lighter)
        })
    }
}
