//! A locked file, and the command that runs under it.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;
use signal_hook::consts::SIGCHLD;

use super::Line;
use super::subject::is_errno;
use crate::mutex::deadlock::{self, HELD_VARIABLE};
use crate::mutex::{Hold, os, status, unix};

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
            let mut child = spawn(command).map_err(RunError::NotStarted)?;
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

/// Starts a program; a text without `#!` is given to the shell, as execvp(3) does.
#[expect(clippy::disallowed_methods, reason = "a protected command, as in mutex::holder")]
fn spawn(command: &mut Command) -> io::Result<Child> {
    match command.spawn() {
        Err(e) if is_errno(&e, &[Errno::NOEXEC]) => {
            let Some(program) = find(Path::new(command.get_program())) else {
                return Err(e);
            };
            let mut shell = Command::new("/bin/sh");
            shell.arg(program).args(command.get_args());
            for (name, value) in command.get_envs() {
                value.map(|value| shell.env(name, value));
            }
            unix::inherit_signals(&mut shell);
            shell.spawn()
        }
        other => other,
    }
}

/// The file of a program that was found in the PATH.
fn find(program: &Path) -> Option<PathBuf> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return Some(program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(program));
    found.find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
}
