//! A mutex that is held by a token: for scripts that can't wrap a command. It needs no agent.
//!
//! ```text
//! script ── baton mutex acquire ──► keeper: stands in the line, holds      (a process of its own)
//!    │            │ ◄── held 17 ────── │
//!    │ ◄── 17 ──  │ ─── kept ────────► │ sleeps until the script ends
//!    ├── baton mutex release 17 ─────► │ gives back, ends
//! ```
//!
//! 1. The token is the ticket's number: the fencing number.
//! 2. The keeper is tied to a process. When that ends, however it ends, the mutex is free.
//! 3. Until the token is printed the mutex is not kept: who is killed while it waits leaves nobody in
//!    the line, and a token that nobody got holds nothing.
//! 4. The keeper has nothing of the caller's but its environment: no descriptor, no terminal, no
//!    folder.
//! 5. Asking a whole tree to stop (SIGTERM) does not free the mutex while the script still cleans up:
//!    only the script's end and `release` do.
//!
//! `release` tells the keeper by SIGUSR1 and returns when the keeper has ended, so the next one may
//! have the mutex already.

mod process;
mod release;

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::holder::Wish;
use super::survivors::CLAIMS_VARIABLE;
use super::{Blocked, os};
use crate::process::{self as processes, Process};
use crate::text::shorten;

pub use process::main;
pub use release::{ReleaseError, release};

/// What a keeper is to do: the line that it reads.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    root: PathBuf,
    wish: Wish,
    /// The process that it is tied to.
    pid: u32,
    /// That process, for people.
    what: String,
}

/// What a keeper says, a line each.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// It waits, for these.
    Waits(Vec<Blocked>),
    /// It holds the mutex, with this ticket.
    Held(u64),
    /// It gave up; these were in the way.
    Busy(Vec<Blocked>),
    /// It gave up: the process that it is tied to has ended.
    Over,
    /// It would wait for itself.
    Deadlock(String),
    /// Something else went wrong.
    Failed(String),
}

/// Why a mutex could not be acquired.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// There is nobody to hold it for.
    #[error("the process that called this has ended")]
    NoParent,
    /// The process that it is to be held for can't be watched.
    #[error("process {pid}")]
    Process {
        /// Which process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process that it is to be held for has ended.
    #[error("process {0} has ended")]
    Over(u32),
    /// The claim would wait for itself (rule 9 of [`crate::mutex`]).
    #[error("{0}")]
    Deadlock(String),
    /// The keeper failed.
    #[error("{0}")]
    Failed(String),
    /// The keeper was killed.
    #[error("the keeper of the mutex was killed")]
    Gone,
    /// No keeper could be started.
    #[error("keeper of the mutex")]
    Start(#[source] io::Error),
}

/// The process for which a mutex is held.
#[derive(Debug)]
pub struct Tied {
    pid: u32,
    /// Readable when it has ended.
    descriptor: OwnedFd,
}

impl Tied {
    /// The process that called this one: its parent; or the first one above that is no subshell which
    /// writes into the same pipe. That of `$(… 2>/dev/null)` ends at once: who reads the token is above.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn caller() -> Result<Self, AcquireError> {
        let output = |pid: &str| std::fs::read_link(format!("/proc/{pid}/fd/1")).ok();
        let pipe = output("self").filter(|path| path.to_string_lossy().starts_with("pipe:"));
        let is_between = |process: &Process| {
            let above = || Process::read(process.parent);
            let is_subshell = || above().is_some_and(|above| process.is_copy_of(&above));
            pipe.is_some() && output(&process.pid.to_string()) == pipe && is_subshell()
        };
        let mut processes = processes::ancestors();
        let own = processes.next().ok_or(AcquireError::NoParent)?;
        let caller = processes.find(|process| !is_between(process));
        let caller = caller.ok_or(AcquireError::NoParent)?;
        // Who adopts orphans is no caller; in a session that is not ours it is one of those.
        if caller.pid == 1 || caller.session != own.session {
            return Err(AcquireError::NoParent);
        }
        Self::process(caller.pid)
    }

    /// The process with this id.
    ///
    /// # Errors
    /// When there is none, or it can't be watched.
    pub fn process(pid: u32) -> Result<Self, AcquireError> {
        let failed = |source| AcquireError::Process { pid, source };
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let id = id.ok_or_else(|| failed(rustix::io::Errno::SRCH.into()))?;
        let descriptor = pidfd_open(id, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        Ok(Self { pid, descriptor })
    }

    fn has_ended(&self) -> bool {
        os::is_readable(self.descriptor.as_fd())
    }
}

/// A mutex that a keeper holds. It is given back unless it is [confirmed](Kept::confirm).
#[derive(Debug)]
pub struct Kept {
    ticket: u64,
    keeper: Keeper,
}

impl Kept {
    /// The token.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// The token is known: from now on the keeper keeps the mutex.
    ///
    /// # Errors
    /// When the keeper was killed meanwhile.
    pub fn confirm(mut self) -> Result<(), AcquireError> {
        self.keeper.orders.write_all(b"k").map_err(|_| AcquireError::Gone)
    }

    /// Gives the mutex back; it is free when this returns.
    pub fn give_back(self) {
        self.keeper.end();
    }
}

/// A keeper, as its starter sees it.
#[derive(Debug)]
struct Keeper {
    process: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
}

impl Keeper {
    fn start(task: &Task) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // Not a part of the caller's tree, for the mutexes that are held there.
        command.env_remove(CLAIMS_VARIABLE);
        command.arg("keep").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        #[expect(clippy::disallowed_methods, reason = "this is the home of keepers")]
        let mut process = command.spawn()?;
        let (Some(mut orders), Some(words)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut line = serde_json::to_vec(task)?;
        line.push(b'\n');
        orders.write_all(&line)?;
        Ok(Self { process, orders, words: BufReader::new(words) })
    }

    fn next_word(&mut self) -> Result<Word, AcquireError> {
        let mut line = Vec::new();
        self.words.read_until(b'\n', &mut line).map_err(AcquireError::Start)?;
        serde_json::from_slice(&line).map_err(|_| AcquireError::Gone)
    }

    /// Lets it give up, and waits until it has left the line.
    fn end(mut self) {
        drop(self.orders);
        self.process.wait().map(drop).unwrap_or_default();
    }
}

/// Acquires the mutex of `wish` for the process `tied`, or returns who is in the way when the time is
/// over. `tell` hears who is in the way: at once, on each change, and as a reminder.
///
/// # Errors
/// When the mutex can't be used, the claim would wait for itself, or the process has ended.
pub fn acquire(
    root: &Path,
    wish: Wish,
    tied: &Tied,
    mut tell: impl FnMut(&[Blocked]),
) -> Result<Result<Kept, Vec<Blocked>>, AcquireError> {
    // The keeper leaves the folder.
    let root = std::path::absolute(root).map_err(AcquireError::Start)?;
    let what = format!("for pid {}: {}", tied.pid, command_line(tied.pid).join(" "));
    let task = Task { root, wish, pid: tied.pid, what: shorten(what.trim_end(), 80) };
    let mut keeper = Keeper::start(&task).map_err(AcquireError::Start)?;
    let ended = loop {
        match keeper.next_word() {
            Ok(Word::Waits(blocked)) => tell(&blocked),
            // It lives since before the keeper found it: the keeper has no other with its id.
            Ok(Word::Held(ticket)) if !tied.has_ended() => {
                return Ok(Ok(Kept { ticket, keeper }));
            }
            Ok(Word::Held(_) | Word::Over) => break Err(AcquireError::Over(tied.pid)),
            Ok(Word::Busy(blocked)) => break Ok(Err(blocked)),
            Ok(Word::Deadlock(text)) => break Err(AcquireError::Deadlock(text)),
            Ok(Word::Failed(text)) => break Err(AcquireError::Failed(text)),
            Err(error) => break Err(error),
        }
    };
    keeper.end();
    ended
}

/// Sleeps until one of the descriptors is readable, or the deadline; says whether one is. Signals that
/// mean nothing do not end it.
fn sleep(descriptors: &[BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        if descriptors.iter().any(|descriptor| os::is_readable(*descriptor)) {
            return Ok(true);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(false);
        }
        os::sleep(descriptors.iter().copied(), deadline)?;
    }
}

/// The words of a process's command line; none when it has ended.
fn command_line(pid: u32) -> Vec<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0);
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}
