//! A locked file, and the command that runs under it.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::SIGCHLD;

use super::Line;
use crate::mutex::deadlock::{self, HELD_VARIABLE};
use crate::mutex::{Hold, holder, os, status, unix};

/// Why a command has no exit status.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("not started")]
    NotStarted(#[source] io::Error),
    /// Its end could not be waited for.
    #[error("its end was not seen")]
    Wait(#[source] io::Error),
}

/// A locked file.
#[derive(Debug)]
#[must_use = "the lock ends with it"]
pub struct Locked {
    pub(super) file: File,
    pub(super) place: Place,
}

/// What stands in a line for it.
#[derive(Debug)]
pub(super) enum Place {
    None,
    /// A place in the line of the file's path.
    InLine(Hold),
    /// The mutex of which the file is the plain lock: locked through the hold.
    Mutex(Hold, Line),
}

impl Place {
    fn hold(&self) -> Option<&Hold> {
        match self {
            Self::None => None,
            Self::InLine(hold) | Self::Mutex(hold, _) => Some(hold),
        }
    }

    /// Gives it back, also for those who inherited it. Nobody is left to be told of an error.
    pub(super) fn leave(self) {
        match self {
            Self::None => {}
            Self::InLine(hold) | Self::Mutex(hold, _) => hold.release().unwrap_or_default(),
        }
    }
}

impl Locked {
    /// Leaves the line. A lock on an inherited descriptor stays.
    pub fn leave(self) {
        drop(self.file);
        self.place.leave();
    }

    /// Runs a command to its end. Unless `close`, it inherits the lock: what it leaves running keeps
    /// the file locked.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn run(self, command: &mut Command, close: bool) -> Result<ExitStatus, RunError> {
        let ended = self.prepare(command, close).map_err(RunError::NotStarted).and_then(|()| {
            let mut child = holder::start(command).map_err(RunError::NotStarted)?;
            child.wait().map_err(RunError::Wait)
        });
        // First the lock, then the place: who is next finds the lock free.
        drop(self.file);
        match self.place {
            Place::Mutex(hold, line) if !close => {
                let tickets = hold.tickets();
                drop(hold);
                // What nobody inherited is dead now.
                status::remove_dead(&line.root, &line.name, &tickets).unwrap_or_default();
            }
            place @ (Place::None | Place::InLine(_) | Place::Mutex(..)) => place.leave(),
        }
        ended
    }

    /// Becomes the command, to which lock and place belong from then on. Returns only why it could
    /// not.
    pub fn exec(self, command: &mut Command) -> io::Error {
        let error = match self.prepare(command, false) {
            Ok(()) => command.exec(),
            Err(error) => error,
        };
        self.leave();
        error
    }

    fn prepare(&self, command: &mut Command, close: bool) -> io::Result<()> {
        if os::not_ignored(&[SIGCHLD]).is_empty() {
            // A signal with a handler is at its default in the command, and its end can be waited for.
            signal_hook::flag::register(SIGCHLD, Arc::new(AtomicBool::new(false)))?;
        }
        unix::inherit_signals(command);
        if let Some(hold) = self.place.hold() {
            command.env(HELD_VARIABLE, deadlock::to_variable(&hold.held()));
        }
        if close {
            return Ok(());
        }
        match &self.place {
            Place::Mutex(hold, _) => hold.make_inheritable().map_err(io::Error::other),
            Place::None => inherit(&self.file),
            Place::InLine(hold) => {
                inherit(&self.file)?;
                hold.make_inheritable().map_err(io::Error::other)
            }
        }
    }
}

fn inherit(file: &File) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?)
}
