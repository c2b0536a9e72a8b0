//! A world of its own for each test: folders, real agents, real scripts, the public client. Nothing
//! here sleeps: what a test waits for is an event, with a deadline.

#![allow(dead_code, unreachable_pub, clippy::missing_panics_doc, reason = "each test uses a part")]
#![allow(clippy::must_use_candidate, clippy::return_self_not_must_use, reason = "tests only")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails here")]

pub mod cable;
pub mod disk;
pub mod etcd;
pub mod line;
pub mod old;

pub mod relay;
pub mod run;
pub mod secret;
pub mod site;
pub mod standstill;
pub mod talker;
pub mod versions;

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use baton::client::{Client, ClientError, Following, Heard, connect};
use baton::script::{Isolation, Outcome, OutcomeKind, Phase, ScriptId};
use baton::snapshot::Snapshot;
use baton::spec::Spec;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long a test waits for anything: long, since these machines are noisy.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// The built command.
pub const BATON: &str = env!("CARGO_BIN_EXE_baton");

/// Waits for something, with the deadline.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(DEADLINE, future).await else {
        panic!("waited too long for {what}");
    };
    value
}

/// Folders of a test. The mutexes are common to all agents in it.
pub struct World {
    root: tempfile::TempDir,
    count: AtomicU32,
}

impl World {
    pub fn new() -> Self {
        // Short: a socket's path has a limit.
        let root = tempfile::Builder::new().prefix("bt").tempdir_in("/tmp").unwrap();
        Self { root, count: AtomicU32::new(0) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn mutexes(&self) -> PathBuf {
        self.path("mutex")
    }

    fn number(&self) -> u32 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    /// The command with folders of its own, apart from the mutexes.
    pub fn baton(&self) -> Command {
        self.baton_at(&format!("client{}", self.number()))
    }

    /// The command with the folders of `name`.
    pub fn baton_at(&self, name: &str) -> Command {
        let mut command = Command::new(BATON);
        for (variable, folder) in [
            ("BATON_CONFIG_DIR", self.path(name).join("config")),
            ("BATON_STATE_DIR", self.path(name).join("state")),
            ("BATON_RUNTIME_DIR", self.path(name).join("run")),
            ("BATON_MUTEX_DIR", self.mutexes()),
        ] {
            command.env(variable, folder);
        }
        command.stdin(Stdio::null()).env("NO_COLOR", "1");
        command
    }

    /// A running agent with folders of its own.
    pub async fn agent(&self) -> TestAgent {
        self.agent_at(&format!("agent{}", self.number()), &["--listen", "none"]).await
    }

    /// A running agent with the folders of `name`.
    pub async fn agent_at(&self, name: &str, arguments: &[&str]) -> TestAgent {
        let mut command = self.baton_at(name);
        command.args(["agent", "run"]).args(arguments);
        self.await_agent(name, command).await
    }

    /// A running agent of another copy of the program.
    pub async fn agent_of(&self, program: &Path, name: &str) -> TestAgent {
        let like = self.baton_at(name);
        let mut command = Command::new(program);
        let variables = like.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(variables).args(["agent", "run", "--listen", "none"]).stdin(Stdio::null());
        self.await_agent(name, command).await
    }

    /// A running agent that, or whose supervisor, dies once at a [point](baton::crash).
    pub async fn agent_to_crash(&self, name: &str, point: &str) -> TestAgent {
        let due = self.path("due");
        drop(File::create(&due).unwrap());
        let mut command = self.baton_at(name);
        command.args(["agent", "run", "--listen", "none"]);
        command.env(baton::crash::VARIABLE, format!("{point}={}", due.display()));
        self.await_agent(name, command).await
    }

    /// The agent that a command brings, when it serves.
    pub async fn await_agent(&self, name: &str, mut command: Command) -> TestAgent {
        command.stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let read = tokio::task::spawn_blocking(move || {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                let length = log.read_line(&mut line).unwrap();
                assert_ne!(length, 0, "the agent ended: {}", lines.concat());
                let serves = line.contains("the agent serves");
                lines.push(line);
                if serves {
                    break;
                }
            }
            // From now on the log is read and kept out of the way.
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        });
        soon("the agent to serve", read).await.unwrap();
        let folder = self.path(name);
        let channel = connect::unix(&folder.join("run/agent.sock")).await.unwrap();
        TestAgent { name: name.to_owned(), folder, child, client: Client::new(channel) }
    }

    /// Something that a script waits at until it is opened.
    pub fn gate(&self) -> Gate {
        let path = self.path(&format!("gate{}", self.number()));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        // Open for both: what is written stays until it is read.
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Gate { path, file }
    }
}

/// Starts a process of a test.
#[expect(clippy::disallowed_methods, reason = "tests start real processes")]
pub fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap()
}

/// Writes a file of a test.
#[expect(clippy::disallowed_methods, reason = "a test's file need not survive a crash")]
pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// Sends a signal to a process of a test.
pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Runs a command to its end: exit status, stdout, stderr.
pub fn finish(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A named pipe at which scripts wait.
pub struct Gate {
    path: PathBuf,
    file: File,
}

impl Gate {
    /// Shell text that waits until the gate is opened, once for each opening.
    pub fn wait(&self) -> String {
        format!("read -r _ < '{}'", self.path.display())
    }

    /// Lets one script through.
    pub fn open(&self) {
        (&self.file).write_all(b"\n").unwrap();
    }

    /// Shell text that tells the test something.
    pub fn say(&self) -> String {
        format!("echo > '{}'", self.path.display())
    }

    /// Waits until a script says so.
    pub async fn is_said(&self) {
        let mut file = self.file.try_clone().unwrap();
        let read = tokio::task::spawn_blocking(move || file.read_exact(&mut [0]));
        soon("a script's word", read).await.unwrap().unwrap();
    }

    /// Writes into the pipe until it takes no more.
    pub fn fill(&self) {
        rustix::io::ioctl_fionbio(&self.file, true).unwrap();
        while (&self.file).write(&[b'x'; 4096]).is_ok() {}
    }
}

/// A running agent.
pub struct TestAgent {
    pub name: String,
    pub folder: PathBuf,
    child: Child,
    pub client: Client,
}

impl TestAgent {
    /// A script that will be exclusive unless it is told otherwise.
    pub fn script(&self, text: impl Into<String>) -> Draft {
        Draft { client: self.client.clone(), spec: spec(&text.into()) }
    }

    /// Kills the agent: it can't do anything about it.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself.
    pub async fn ends(&mut self) {
        let pid = Pid::from_raw(self.pid().cast_signed()).unwrap();
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        tokio::task::spawn_blocking(move || await_end(&descriptor)).await.unwrap();
        self.child.wait().unwrap();
    }

    /// The agent's own process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        // What a failed test left running is ended; a supervisor that is asked ends its script.
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
        for script in std::fs::read_dir(self.folder.join("state/scripts")).into_iter().flatten() {
            let pid = std::fs::read_to_string(script.unwrap().path().join("supervisor"));
            let pid = pid.ok().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
            if let Some(pid) = pid.filter(|pid| is_supervisor(*pid)) {
                kill_process(pid, Signal::TERM).unwrap_or_default();
            }
        }
    }
}

/// Kills the supervisor of a workspace, and waits for its end.
pub fn end_supervisor(workspace: &Path) {
    let pid = std::fs::read_to_string(workspace.join("supervisor")).unwrap();
    kill(pid.trim().parse().unwrap());
}

/// Kills a process of a test that is not its child, and waits for its end.
pub fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    let descriptor = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    await_end(&descriptor);
}

fn await_end(process: &OwnedFd) {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    let limit = Timespec::try_from(DEADLINE).unwrap();
    assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 1, "it lives");
}

/// A process of a test that was stopped.
pub struct Stopped {
    pid: Pid,
    descriptor: OwnedFd,
}

impl Stopped {
    pub fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.cast_signed()).unwrap();
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self { pid, descriptor }
    }

    /// Lets it go on, and waits for its end.
    pub fn go_on_to_the_end(self) {
        kill_process(self.pid, Signal::CONT).unwrap();
        await_end(&self.descriptor);
    }
}

/// The supervisor that an agent keeps ready.
pub fn spare(agent: u32) -> u32 {
    let tasks = std::fs::read_dir(format!("/proc/{agent}/task")).unwrap();
    let children: Vec<u32> = tasks
        .flat_map(|task| {
            let text = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap();
            text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
        })
        .collect();
    assert_eq!(children.len(), 1, "{children:?}");
    children[0]
}

fn is_supervisor(pid: Pid) -> bool {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
    line.is_ok_and(|line| line.ends_with(b"supervise\0"))
}

/// A script that runs alone on this machine.
pub fn spec(text: &str) -> Spec {
    Spec::of_body(text.to_owned(), "bash")
}

/// A script that is about to be started.
pub struct Draft {
    client: Client,
    pub spec: Spec,
}

impl Draft {
    /// A script that a client is about to start.
    pub fn of(client: Client, spec: Spec) -> Self {
        Self { client, spec }
    }

    pub fn shared(mut self) -> Self {
        self.spec.isolation = Isolation::Shared { at_most: None };
        self
    }

    pub fn at_most(mut self, n: u32) -> Self {
        self.spec.isolation = Isolation::Shared { at_most: NonZeroU32::new(n) };
        self
    }

    pub fn observer(mut self) -> Self {
        self.spec.isolation = Isolation::Observer;
        self
    }

    pub fn id(mut self, id: &str) -> Self {
        self.spec.script_id = id.parse().unwrap();
        self
    }

    pub fn key(mut self, key: &str) -> Self {
        self.spec.exclusive_key = Some(key.parse().unwrap());
        self
    }

    pub fn mutex(mut self, name: &str) -> Self {
        self.spec.mutex = name.parse().unwrap();
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Spec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Starts it; accepted when this returns.
    pub async fn start(self) -> Started {
        self.try_start().await.unwrap()
    }

    pub async fn try_start(self) -> Result<Started, ClientError> {
        let Self { client, spec } = self;
        let id = soon("Start", client.start(spec)).await?.script_id;
        Ok(Started { client, id })
    }

    /// Starts it and waits for its end.
    pub async fn outcome(self) -> Outcome {
        self.start().await.outcome().await
    }
}

/// A script that was started.
pub struct Started {
    pub client: Client,
    pub id: ScriptId,
}

impl Started {
    /// Follows it until `wanted` holds of it.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let mut following = self.client.watch(self.id.clone(), 0, true);
        let search = async {
            while let Some(heard) = following.next().await.unwrap() {
                if let Heard::Script(script) = heard
                    && wanted(&script)
                {
                    return *script;
                }
            }
            panic!("{} ended before it was {what}", self.id);
        };
        soon(what, search).await
    }

    /// Follows it until it has written so many bytes.
    pub async fn has_written(&self, bytes: u64) {
        let mut following = self.client.watch(self.id.clone(), 0, true);
        let read = async {
            while following.offset() < bytes {
                let heard = following.next().await.unwrap();
                assert!(heard.is_some(), "{} ended before it wrote {bytes} bytes", self.id);
            }
        };
        soon("output", read).await;
    }

    pub async fn is_running(&self) -> Snapshot {
        self.until("running", |script| script.phase == Phase::Running).await
    }

    pub async fn is_waiting(&self) -> Snapshot {
        self.until("waiting", |script| !script.waits.is_empty()).await
    }

    pub async fn is_done(&self) -> Snapshot {
        self.until("done", |script| script.phase.is_done()).await
    }

    pub async fn outcome(&self) -> Outcome {
        let Phase::Done(outcome) = self.is_done().await.phase else {
            unreachable!("is_done waits for the end");
        };
        outcome
    }

    /// Its whole output, stdout and stderr as they came.
    pub async fn output(&self) -> Vec<u8> {
        output(self.client.watch(self.id.clone(), 0, true)).await
    }
}

/// All output that is heard.
pub async fn output(mut following: Following) -> Vec<u8> {
    let mut all = Vec::new();
    let read = async {
        while let Some(heard) = following.next().await.unwrap() {
            if let Heard::Output { data, .. } = heard {
                all.extend_from_slice(&data);
            }
        }
    };
    soon("the whole output", read).await;
    all
}

/// Whether it ran and exited with this code.
pub fn exited(outcome: &Outcome, code: i32) -> bool {
    outcome.kind == OutcomeKind::Exited { code }
}

/// The reason with which an agent refused.
pub fn reason(error: &ClientError) -> &str {
    match error {
        ClientError::Refused { reason, .. } => reason,
        ClientError::Connect(_)
        | ClientError::Broken(_)
        | ClientError::Away(_)
        | ClientError::Wire(_) => {
            panic!("not refused: {error}")
        }
    }
}

/// The lines that scripts appended to a file.
pub fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Asks an agent to stop a script.
pub async fn cancel(script: &Started, reason: &str) {
    soon("Cancel", script.client.cancel(&script.id, reason.to_owned())).await.unwrap();
}
