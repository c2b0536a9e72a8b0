//! The process beside an upgrade of the agent. It is the old program, started by the old agent, and outlives it: it
//! sees whether the new one serves, and puts the old one back when it doesn't.
//!
//! ```text
//!  record: swapped ──► starting ──► who answers on the socket? ──► the new version ──► upgraded
//!              │           │                 │
//!              │           │                 └ nobody in time, or the process has ended ─┐
//!              └───────────┴── the agent hangs, or has ended ──────────────────────────────┤
//!                                                                                        ▼
//!      rolled back ◄── the old version answers ◄── who supervises, or the guard, starts it ◄── the old program is
//!                                                                      put back, what hangs is killed
//! ```
//!
//! 1. It watches when the agent is told so, before the program is replaced.
//! 2. Health is a call: `Info` on the agent's own socket, answered by the new version.
//! 3. What it is about to do is in the record first. Another guard, or the next agent, goes on with it.
//! 4. It kills only what is the agent and runs another file than the one that was put back.
//! 5. Who supervises the agent (systemd, runit) is left to start it; only when nobody does, the guard does, with the
//!    arguments and the environment of the agent that it watched. A service of systemd it never starts: that may have
//!    been stopped, and systemd would not know that agent.

mod agent;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::crash;
use crate::filewatch::{FileWatch, FileWatcher, register};
use crate::process::ProcessId;
use crate::upgrade::{self, Event, Folder, GUARD_READY, Record, Stage, UpgradeError};
use agent::WatchedAgent;

/// How long the old agent may take to end: its streams are told, its database is closed.
const STOP_LIMIT: Duration = Duration::from_mins(1);
/// How often the socket is asked beside the times at which it changes: a call may have hung, and nothing tells when
/// an agent that listens is ready.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long who supervises has to start the old agent. systemd waits between two starts as its unit says.
const RESTART_LIMIT: Duration = Duration::from_secs(5);
/// The same below a service of systemd that may be a wrapper of the agent.
const WRAPPED_RESTART_LIMIT: Duration = Duration::from_mins(1);
/// How long the old agent may take to serve then.
const RECOVERY_LIMIT: Duration = Duration::from_mins(1);

/// Runs `baton guard STATE ARGUMENT…`: the arguments are those of the agent. Only for the start of a process: it
/// closes all descriptors but the standard ones.
pub fn main(words: &[OsString]) -> ExitCode {
    crate::process::close_inherited();
    // EPERM: it leads a session already.
    rustix::process::setsid().map(drop).unwrap_or_default();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let Some((state, arguments)) = words.split_first() else {
        error!("guard: the state folder is missing");
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let guarded = runtime.map_err(upgrade::failed(&PathBuf::from(state))).and_then(|runtime| {
        let folder = Folder::of(&PathBuf::from(state));
        runtime.block_on(guard(folder, PathBuf::from(state), arguments.to_vec()))
    });
    match guarded {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = crate::text::chain(&error), "guard of the upgrade failed");
            ExitCode::FAILURE
        }
    }
}

async fn guard(
    folder: Folder,
    state: PathBuf,
    arguments: Vec<OsString>,
) -> Result<(), UpgradeError> {
    // Another one lives: one is enough.
    let Some(_lock) = folder.become_guard()? else {
        return Ok(());
    };
    let none = || UpgradeError::Record("there is none to guard".to_owned());
    let record = folder.read()?.ok_or_else(none)?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let watcher = FileWatcher::start(&tasks, stop).map_err(upgrade::failed(folder.path()))?;
    let sockets = record.socket.parent().map(PathBuf::from).unwrap_or_default();
    let guard = Guard {
        changes: watcher.watch(folder.path()).map_err(upgrade::failed(folder.path()))?,
        sockets: watcher.watch(&sockets).map_err(upgrade::failed(&sockets))?,
        process: crate::process::living(record.agent).and_then(|fd| register(fd).ok()),
        agent: WatchedAgent { state, arguments, program: record.program.clone() },
        folder,
        record,
    };
    tell_ready();
    crash::point("guard watches");
    guard.see_through().await
}

/// Rule 1. An agent that is gone hears nothing.
fn tell_ready() {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    out.write_all(GUARD_READY.as_bytes()).and_then(|()| out.flush()).unwrap_or_default();
}

struct Guard {
    folder: Folder,
    record: Record,
    agent: WatchedAgent,
    /// The agent's process, while it lives.
    process: Option<AsyncFd<OwnedFd>>,
    /// Rings when the record changes.
    changes: FileWatch,
    /// Rings when a socket comes or goes.
    sockets: FileWatch,
}

/// What is noticed while it watches.
enum Noticed {
    Change,
    Ended,
    Late,
}

/// What becomes of the upgrade.
enum Verdict {
    /// Somebody else has settled it.
    Settled,
    Healthy,
    TakeBack(String),
}

impl Guard {
    async fn see_through(mut self) -> Result<(), UpgradeError> {
        let mut verdict = self.until_it_starts().await?;
        if verdict.is_none() {
            verdict = Some(self.until_it_serves().await?);
        }
        match verdict.unwrap_or(Verdict::Settled) {
            Verdict::Settled => Ok(()),
            Verdict::Healthy => {
                self.folder.apply(Event::Healthy)?;
                info!(to = self.record.to, "upgraded");
                Ok(())
            }
            Verdict::TakeBack(reason) => self.take_back(reason).await,
        }
    }

    /// Waits until the old agent becomes the new one; `None` when it does.
    async fn until_it_starts(&mut self) -> Result<Option<Verdict>, UpgradeError> {
        let end = Instant::now() + STOP_LIMIT;
        loop {
            self.reread()?;
            match &self.record.stage {
                Stage::Starting => return Ok(None),
                Stage::Done { .. } => return Ok(Some(Verdict::Settled)),
                // An earlier guard, or the agent, has not come to the end of it.
                Stage::TakingBack { reason } => {
                    return Ok(Some(Verdict::TakeBack(reason.clone())));
                }
                // Who supervises the agent has started the new one by now, or does in a moment.
                Stage::Swapped if self.process.is_none() => return Ok(None),
                Stage::Swapping if self.process.is_none() => {
                    let reason = "the agent ended before its program was replaced".to_owned();
                    return Ok(Some(Verdict::TakeBack(reason)));
                }
                Stage::Swapping | Stage::Swapped => {}
            }
            match self.notice(end).await {
                Noticed::Change => {}
                Noticed::Ended => self.process = None,
                Noticed::Late => {
                    let reason = format!("the old agent did not end within {STOP_LIMIT:?}");
                    return Ok(Some(Verdict::TakeBack(reason)));
                }
            }
        }
    }

    /// Waits until the new version serves (rule 2).
    async fn until_it_serves(&mut self) -> Result<Verdict, UpgradeError> {
        let limit = self.record.health_limit;
        let (begun, end) = (Instant::now(), Instant::now() + limit);
        // Otherwise it was replaced by who supervises, in another process.
        let is_same_process = self.record.stage == Stage::Starting;
        loop {
            self.reread()?;
            match &self.record.stage {
                Stage::Done { .. } => return Ok(Verdict::Settled),
                Stage::TakingBack { reason } => return Ok(Verdict::TakeBack(reason.clone())),
                Stage::Swapping | Stage::Swapped | Stage::Starting => {}
            }
            if is_same_process && self.process.is_none() {
                let after = humantime::format_duration(whole_ms(begun.elapsed()));
                return Ok(Verdict::TakeBack(format!("the new version ended after {after}")));
            }
            let asked = tokio::time::timeout_at(end, agent::info(&self.record.socket)).await;
            match asked {
                Ok(Some(info)) if agent::is_new(&info, &self.record) => {
                    return Ok(Verdict::Healthy);
                }
                _ => {}
            }
            let next = end.min(Instant::now() + ASK_AGAIN);
            match self.notice(next).await {
                Noticed::Change => {}
                Noticed::Ended => self.process = None,
                Noticed::Late if next < end => {}
                Noticed::Late => {
                    let limit = humantime::format_duration(limit);
                    let reason = format!("the new version did not serve within {limit}");
                    return Ok(Verdict::TakeBack(reason));
                }
            }
        }
    }

    /// Puts the old program back and sees that an agent of it serves.
    async fn take_back(&mut self, reason: String) -> Result<(), UpgradeError> {
        warn!(to = self.record.to, reason, "upgrade is taken back");
        // Rule 3.
        self.record = self.folder.apply(Event::TakeBack(reason))?;
        crash::point("guard takes back");
        upgrade::put_back(&self.record.program, &self.record.sha256)?;
        crash::point("guard has put back");
        self.agent.end_others(self.record.agent);
        self.await_old().await;
        self.reread()?;
        // The agent may have come to the end of it too.
        if !self.record.stage.is_done() {
            self.folder.apply(Event::TakenBack)?;
        }
        warn!(from = self.record.from, "upgrade was rolled back");
        Ok(())
    }

    /// Rule 5.
    async fn await_old(&mut self) {
        let starter = Starter::of(self.record.agent);
        let patience = match starter {
            Starter::Systemd | Starter::Unknown => RESTART_LIMIT,
            Starter::Wrapper => WRAPPED_RESTART_LIMIT,
        };
        if self.serves_again(Instant::now() + patience).await {
            return;
        }
        if starter == Starter::Systemd {
            return warn!("the agent does not serve yet; systemd starts it unless it was stopped");
        }
        match self.agent.start() {
            Ok(pid) => info!(pid, "nobody has started the agent; the guard has"),
            Err(error) => return error!(%error, "the old agent can't be started"),
        }
        if !self.serves_again(Instant::now() + RECOVERY_LIMIT).await {
            error!("the old agent does not serve");
        }
    }

    async fn serves_again(&mut self, end: Instant) -> bool {
        loop {
            let asked = tokio::time::timeout_at(end, agent::info(&self.record.socket)).await;
            if asked.ok().flatten().is_some_and(|info| info.version == self.record.from) {
                return true;
            }
            let next = end.min(Instant::now() + ASK_AGAIN);
            tokio::select! {
                () = self.sockets.changed() => {}
                () = tokio::time::sleep_until(next) => if next >= end {
                    return false;
                },
            }
        }
    }

    async fn notice(&mut self, end: Instant) -> Noticed {
        tokio::select! {
            () = self.changes.changed() => Noticed::Change,
            () = self.sockets.changed() => Noticed::Change,
            () = ended(self.process.as_ref()) => Noticed::Ended,
            () = tokio::time::sleep_until(end) => Noticed::Late,
        }
    }

    fn reread(&mut self) -> Result<(), UpgradeError> {
        let record = self.folder.read()?.filter(|record| record.id == self.record.id);
        let gone = || UpgradeError::Record("it is another one".to_owned());
        self.record = record.ok_or_else(gone)?;
        Ok(())
    }
}

/// Who starts the agent when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Starter {
    /// It is the process of a service, and systemd alone decides whether it runs.
    Systemd,
    /// Something in a service started it: a wrapper, which is started again, or a terminal, which starts nothing.
    Wrapper,
    /// Perhaps nobody.
    Unknown,
}

impl Starter {
    /// By the environment of the agent, which is the guard's.
    fn of(agent: ProcessId) -> Self {
        let is_main =
            std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == agent.pid.to_string());
        // Before version 248 of systemd there is only the former.
        if std::env::var_os("NOTIFY_SOCKET").is_some() || is_main {
            Self::Systemd
        } else if std::env::var_os("INVOCATION_ID").is_some() {
            Self::Wrapper
        } else {
            Self::Unknown
        }
    }
}

/// Returns when a process has ended; never when there is none.
async fn ended(process: Option<&AsyncFd<OwnedFd>>) {
    match process {
        Some(process) => drop(process.readable().await),
        None => std::future::pending().await,
    }
}

fn whole_ms(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
