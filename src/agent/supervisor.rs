//! The agent's end of a supervisor: one is kept ready, each is told what to do, any can be told to
//! stop.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncWriteExt as _;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStdin, Command};

use super::Settings;
use crate::crash;
use crate::filewatch::register;
use crate::format;
use crate::script::ScriptId;
use crate::supervisor::job::Assignment;

/// The variables of the agent that a script sees too.
const PASSED_ON: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "USER"];

/// All supervisors of this agent.
#[derive(Debug)]
pub(super) struct Supervisors {
    program: PathBuf,
    tied: bool,
    /// Started ahead: it only waits for its assignment.
    spare: Mutex<Option<Ready>>,
    living: Mutex<HashMap<ScriptId, Arc<OwnedFd>>>,
}

/// A supervisor that waits for its assignment.
#[derive(Debug)]
pub(super) struct Ready {
    child: Child,
    stdin: ChildStdin,
    pid: Pid,
}

impl Ready {
    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }
}

/// A supervisor at work.
#[derive(Debug)]
pub(super) struct Supervisor {
    process: Process,
    /// Kept open for a script that ends with the agent.
    _owner: Option<ChildStdin>,
}

#[derive(Debug)]
enum Process {
    /// Started by this run of the agent.
    Child(Child),
    /// Started by an earlier one.
    Found(AsyncFd<OwnedFd>),
}

impl Supervisors {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            program: settings.program.clone(),
            tied: settings.tied,
            spare: Mutex::new(None),
            living: Mutex::new(HashMap::new()),
        }
    }

    /// A supervisor to assign work to: the one that was started ahead, if it still lives.
    pub(super) fn ready(&self) -> io::Result<Ready> {
        let spare = lock(&self.spare).take();
        if let Some(mut spare) = spare
            && spare.child.try_wait()?.is_none()
        {
            return Ok(spare);
        }
        self.spawn()
    }

    /// Sets a supervisor on a workspace; `None` when the script is not wanted to start after all.
    pub(super) async fn assign(
        &self,
        id: &ScriptId,
        mut ready: Ready,
        assignment: Assignment,
        is_wanted: impl Fn() -> bool,
    ) -> io::Result<Option<Supervisor>> {
        let mut line = format::to_json(format::WORKSPACE, &assignment)?;
        line.push(b'\n');
        // It isn't reaped before its end is awaited, so the id still is its own.
        let descriptor = pidfd_open(ready.pid, PidfdFlags::empty())?;
        // First known, then asked, then set on it: whoever changes his mind now finds it, and later
        // than that nobody else has got its place yet.
        lock(&self.living).insert(id.clone(), Arc::new(descriptor));
        let written = if is_wanted() { Some(ready.stdin.write_all(&line).await) } else { None };
        match written {
            Some(Ok(())) => {
                let owner = self.tied.then_some(ready.stdin);
                Ok(Some(Supervisor { process: Process::Child(ready.child), _owner: owner }))
            }
            Some(Err(error)) if is_wanted() => {
                self.ended(id);
                Err(error)
            }
            // What it was told before its assignment may have ended it.
            Some(Err(_)) | None => {
                self.ended(id);
                Ok(None)
            }
        }
    }

    /// Takes over a supervisor of an earlier run of the agent.
    pub(super) fn take_over(&self, id: &ScriptId, descriptor: OwnedFd) -> io::Result<Supervisor> {
        let copy = descriptor.try_clone()?;
        lock(&self.living).insert(id.clone(), Arc::new(descriptor));
        Ok(Supervisor { process: Process::Found(register(copy)?), _owner: None })
    }

    /// Starts the next one ahead.
    pub(super) fn keep_one_ready(&self) -> io::Result<()> {
        let mut spare = lock(&self.spare);
        if spare.is_none() {
            *spare = Some(self.spawn()?);
        }
        Ok(())
    }

    /// Lets the one that was kept ready go.
    pub(super) fn keep_none_ready(&self) {
        // Its standard input ends, so it does.
        drop(lock(&self.spare).take());
    }

    /// Tells a script's supervisor to stop it. Nothing happens when there is none.
    pub(super) fn stop(&self, id: &ScriptId) {
        self.tell(id, Signal::TERM);
    }

    /// Tells a script's supervisor not to start it now. One that has started it goes on.
    pub(super) fn step_back(&self, id: &ScriptId) {
        self.tell(id, Signal::USR1);
    }

    fn tell(&self, id: &ScriptId, signal: Signal) {
        if let Some(descriptor) = lock(&self.living).get(id) {
            // ESRCH: it has ended already.
            pidfd_send_signal(descriptor.as_ref(), signal).unwrap_or_default();
        }
    }

    /// A supervisor has ended.
    pub(super) fn ended(&self, id: &ScriptId) {
        drop(lock(&self.living).remove(id));
    }

    fn spawn(&self) -> io::Result<Ready> {
        match Self::spawn_program(&self.program) {
            // The file was moved or removed, by an upgrade say: this process still is the program.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Self::spawn_program(Path::new("/proc/self/exe"))
            }
            other => other,
        }
    }

    fn spawn_program(program: &Path) -> io::Result<Ready> {
        let mut command = Command::new(program);
        let passed_on = PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        command
            .arg("supervise")
            .env_clear()
            .envs(passed_on)
            .envs(std::env::var_os(crash::VARIABLE).map(|point| (crash::VARIABLE, point)))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .current_dir("/");
        #[expect(clippy::disallowed_methods, reason = "this is the home of supervisors")]
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().ok_or_else(|| io::Error::other("no standard input"))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| io::Error::other("no process id"))?;
        Ok(Ready { child, stdin, pid })
    }
}

impl Supervisor {
    /// Waits until the supervisor has ended; says how, if it was started by this run of the agent.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(super) async fn ended(&mut self) -> Option<ExitStatus> {
        match &mut self.process {
            Process::Child(child) => child.wait().await.ok(),
            Process::Found(descriptor) => {
                drop(descriptor.readable().await);
                None
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
