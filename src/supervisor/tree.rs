//! The process tree of one script: starting it, signalling all of it, seeing that it is gone.
//!
//! The supervisor is a child subreaper: whatever a script starts stays among the supervisor's
//! descendants, also after a double fork or `setsid`. Children are reaped by their own id, never by
//! `waitpid(-1)`, and the tree is gone when the kernel says that there are no children.

use std::ffi::OsStr;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus};

use super::course::LeaderEnd;
use super::job::Job;
use crate::mutex::os;
use crate::process::{self, Process};
use crate::script::{Fate, OutcomeKind, StartProblem, Straggler};

/// How much a pipe takes before the script waits for its reader: the most that an ordinary user may
/// ask for.
const PIPE_BYTES: usize = 1024 * 1024;
/// How many stragglers are named; the others are ended all the same.
const MAX_NAMED_STRAGGLERS: usize = 16;

/// Why a script could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// There is no such program in the script's PATH, or at its path.
    #[error("`{0}` not found")]
    ProgramNotFound(String),
    /// There is no such folder.
    #[error("working directory {} not found", .0.display())]
    DirectoryNotFound(PathBuf),
    /// It is there, but no program for this user.
    #[error("`{0}` is not executable")]
    NotExecutable(String),
    /// The system refused to execute it.
    #[error("`{program}` could not be started: {error}")]
    Refused {
        /// The program.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// Something of baton's failed before.
    #[error("{0}")]
    Agent(String),
}

impl From<StartError> for OutcomeKind {
    fn from(error: StartError) -> Self {
        let cause = match &error {
            StartError::ProgramNotFound(_) | StartError::DirectoryNotFound(_) => {
                StartProblem::NotFound
            }
            StartError::NotExecutable(_) | StartError::Refused { .. } => {
                StartProblem::NotExecutable
            }
            StartError::Agent(_) => StartProblem::Agent,
        };
        Self::NotStarted { cause, reason: error.to_string() }
    }
}

/// A started script.
#[derive(Debug)]
pub(super) struct Tree {
    leader: Pid,
    /// Whether the leader was reaped: from then on its id may be another process's.
    leader_is_reaped: bool,
}

/// The reading ends of a script's outputs.
pub(super) struct Pipes {
    pub(super) stdout: PipeReader,
    pub(super) stderr: PipeReader,
}

impl Tree {
    /// Starts the script, with what it is told about its mutexes in its environment.
    pub(super) fn start(
        job: &Job,
        mutexes: Vec<(String, String)>,
    ) -> Result<(Self, Pipes), StartError> {
        let agent = |text: &str| StartError::Agent(text.to_owned());
        let (name, arguments) = job.command.split_first().ok_or_else(|| agent("nothing to run"))?;
        if !job.directory.is_dir() {
            return Err(StartError::DirectoryNotFound(job.directory.clone()));
        }
        let program = find_program(name, job.environment.get("PATH"))?;
        let no_pipe = |e: io::Error| StartError::Agent(format!("no pipe for its output: {e}"));
        let (stdout, stdout_writer) = pipe().map_err(no_pipe)?;
        let (stderr, stderr_writer) = pipe().map_err(no_pipe)?;
        let mut command = Command::new(program);
        command
            .arg0(name)
            .args(arguments)
            .env_clear()
            .envs(&job.environment)
            .envs(mutexes)
            .current_dir(&job.directory)
            .stdin(Stdio::null())
            .stdout(stdout_writer)
            .stderr(stderr_writer)
            // A group of its own, by posix_spawn: pre_exec would fork.
            .process_group(0);
        // Inherited, so it is this process's for that moment; between fork and exec nothing runs here.
        if let Some(count) = job.open_files {
            process::limit_open_files(count);
        }
        #[expect(clippy::disallowed_methods, reason = "this is the home of scripts")]
        let spawned = command.spawn();
        if job.open_files.is_some() {
            process::raise_open_files();
        }
        let child =
            spawned.map_err(|error| StartError::Refused { program: name.clone(), error })?;
        let leader = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let leader = leader.ok_or_else(|| agent("the system gave no process id"))?;
        Ok((Self { leader, leader_is_reaped: false }, Pipes { stdout, stderr }))
    }

    /// The process that was started.
    pub(super) fn leader(&self) -> u32 {
        self.leader.as_raw_nonzero().get().cast_unsigned()
    }

    /// Reaps the leader if it has ended; says so once.
    pub(super) fn leader_end(&mut self) -> io::Result<Option<LeaderEnd>> {
        if self.leader_is_reaped {
            return Ok(None);
        }
        let ended = rustix::process::waitpid(Some(self.leader), WaitOptions::NOHANG)?;
        self.leader_is_reaped = ended.is_some();
        Ok(ended.and_then(|(_, status)| leader_end(status)))
    }

    /// Whether all of it has ended.
    pub(super) fn has_ended(&self) -> io::Result<bool> {
        Ok(self.leader_is_reaped && !has_children()?)
    }

    /// Sends SIGTERM to every process of the tree; one that is stopped goes on to hear it.
    pub(super) fn ask(&self) {
        // The group at once first, so that a pipeline hears it together.
        rustix::process::kill_process_group(self.leader, Signal::TERM).unwrap_or_default();
        rustix::process::kill_process_group(self.leader, Signal::CONT).unwrap_or_default();
        let leader = self.leader();
        for process in below_this().into_iter().filter(|process| process.group != leader) {
            process.signal(Signal::TERM);
            process.signal(Signal::CONT);
        }
    }

    /// Sends SIGKILL to every process of the tree.
    pub(super) fn force() {
        for process in below_this() {
            process.signal(Signal::KILL);
        }
    }

    /// The processes that are left.
    pub(super) fn stragglers(fate: Fate) -> Vec<Straggler> {
        let living = below_this().into_iter().filter(|process| !process.is_zombie());
        let straggler = |p: Process| Straggler { pid: p.pid, command: p.command_line(), fate };
        living.take(MAX_NAMED_STRAGGLERS).map(straggler).collect()
    }

    /// Kills whatever is left; returns what becomes readable as it ends, or `None` when all of it is gone.
    pub(super) fn kill() -> io::Result<Option<Vec<OwnedFd>>> {
        while has_children()? {
            let (mut dying, mut reaped) = (Vec::new(), false);
            for process in below_this() {
                // One that looks dead may only have lost its first thread.
                if process.is_zombie() && process.reap() {
                    reaped = true;
                } else if let Some(descriptor) = process.signal(Signal::KILL) {
                    dying.push(descriptor);
                }
            }
            // Who is dead and not to be reaped has a parent that does not end: that one is waited for.
            dying.retain(|descriptor| !os::is_readable(descriptor.as_fd()));
            if !reaped {
                return Ok(Some(dying));
            }
        }
        Ok(None)
    }
}

/// Reaps children that the script left to the supervisor, except `leader`.
pub(super) fn reap_orphans(leader: u32) {
    let me = std::process::id();
    let zombies = below_this().into_iter().filter(Process::is_zombie);
    for process in zombies.filter(|process| process.parent == me && process.pid != leader) {
        process.reap();
    }
}

fn leader_end(status: WaitStatus) -> Option<LeaderEnd> {
    let exited = status.exit_status().map(LeaderEnd::Exited);
    exited.or_else(|| status.terminating_signal().map(LeaderEnd::Signalled))
}

fn pipe() -> io::Result<(PipeReader, io::PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    // Best effort: over the user's quota the kernel refuses, and the default size works as well.
    rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES).unwrap_or_default();
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((reader, writer))
}

/// Finds a program in the script's own PATH.
fn find_program(name: &str, path: Option<&String>) -> Result<PathBuf, StartError> {
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        let path = path.map_or("", String::as_str);
        std::env::split_paths(OsStr::new(path)).map(|folder| folder.join(name)).collect()
    };
    let found: Vec<PathBuf> = candidates.into_iter().filter(|path| path.is_file()).collect();
    match found.iter().find(|path| is_executable(path)) {
        Some(program) => Ok(program.clone()),
        None if found.is_empty() => Err(StartError::ProgramNotFound(name.to_owned())),
        None => Err(StartError::NotExecutable(name.to_owned())),
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.permissions().mode() & 0o111 != 0)
}

/// Whether this process has any children, also ones that wait to be reaped.
fn has_children() -> io::Result<bool> {
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match rustix::process::waitid(WaitId::All, peek) {
        Err(rustix::io::Errno::CHILD) => Ok(false),
        Err(e) => Err(e.into()),
        Ok(_) => Ok(true),
    }
}

/// All processes below this one, in no order.
fn below_this() -> Vec<Process> {
    process::below(std::process::id())
}
