//! The agent that a guard watches: asked, ended, started.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tracing::warn;

use crate::client::{Client, connect};
use crate::process::{self, Process, ProcessId};
use crate::upgrade::{self, Record};
use crate::wire::{from_timestamp, v1};

/// How long one question may take: an agent may hang.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long what was killed is waited for.
const DEATH_LIMIT: Duration = Duration::from_secs(10);
/// The variables by which two agents of one program and one command line may differ.
const VARIABLES: [&str; 5] =
    ["BATON_STATE_DIR", "BATON_RUNTIME_DIR", "BATON_CONFIG_DIR", "BATON_INSTANCE", "HOME"];

/// How an agent is started, and known.
#[derive(Debug)]
pub(super) struct WatchedAgent {
    /// Its state folder.
    pub(super) state: PathBuf,
    /// Its arguments.
    pub(super) arguments: Vec<OsString>,
    /// Its program.
    pub(super) program: PathBuf,
}

/// What the agent on a socket says of itself; `None` when it says nothing.
pub(super) async fn info(socket: &Path) -> Option<v1::InfoResponse> {
    let ask = async { Client::new(connect::unix(socket).await.ok()?).info().await.ok() };
    tokio::time::timeout(ANSWER_LIMIT, ask).await.ok().flatten()
}

/// Whether it is the version that came, and another agent than the one that was replaced.
pub(super) fn is_new(info: &v1::InfoResponse, record: &Record) -> bool {
    let started_at = info.started_at.and_then(from_timestamp);
    info.version == record.to && started_at != Some(record.replaced_started_at)
}

impl WatchedAgent {
    /// Kills what is the agent and runs another file than the one at the program's path (rule 4), and waits for its
    /// end.
    pub(super) fn end_others(&self, known: ProcessId) {
        let known = Process::read(known.pid).filter(|process| process.id() == known);
        let holder = self.lock_holder();
        let found = process::all().filter(|process| self.is_like(process));
        for process in known.into_iter().chain(holder).chain(found) {
            if !upgrade::runs_another(&self.program, process.pid) {
                continue;
            }
            warn!(pid = process.pid, "the agent is ended");
            if let Some(descriptor) = process.signal(Signal::KILL) {
                process::await_end(descriptor.as_fd(), DEATH_LIMIT);
            }
        }
    }

    /// Who says that it has the state folder.
    fn lock_holder(&self) -> Option<Process> {
        let pid = std::fs::read_to_string(self.state.join("agent.lock")).ok()?;
        let process = Process::read(pid.trim().parse().ok()?)?;
        // The number may be somebody else's by now.
        self.has_arguments(&process).then_some(process)
    }

    fn is_like(&self, process: &Process) -> bool {
        let same = |name: &str| {
            let theirs = process.variable(name).ok().flatten();
            theirs == std::env::var(name).ok()
        };
        self.has_arguments(process) && VARIABLES.iter().all(|name| same(name))
    }

    fn has_arguments(&self, process: &Process) -> bool {
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
        // Its name; and what follows the last NUL is nothing.
        words.next();
        let words: Vec<_> = words.collect();
        words.split_last().is_some_and(|(_, words)| words == self.arguments)
    }

    /// Starts it as it was started before.
    pub(super) fn start(&self) -> io::Result<u32> {
        let log = io::stderr().as_fd().try_clone_to_owned()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::from(log));
        #[expect(clippy::disallowed_methods, reason = "nobody else starts the agent again")]
        let child = command.spawn()?;
        Ok(child.id())
    }
}
