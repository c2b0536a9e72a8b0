//! `baton mutex run` as a test follows it: its lines, its end, what it holds up.

use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{DEADLINE, Gate, World, finish, spawn};

/// `baton mutex run … -- sh -c TEXT`.
pub struct Run {
    pub child: Child,
    out: BufReader<ChildStdout>,
    told: BufReader<ChildStderr>,
}

impl Run {
    pub fn start(world: &World, words: &str, text: &str) -> Self {
        let mut command = world.baton();
        command.args(["mutex", "run"]).args(words.split(' ')).args(["--", "sh", "-c", text]);
        Self::of(&mut command)
    }

    pub fn of(command: &mut Command) -> Self {
        let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let out = BufReader::new(child.stdout.take().unwrap());
        let told = BufReader::new(child.stderr.take().unwrap());
        Self { child, out, told }
    }

    /// One that holds when this returns.
    pub fn holder(world: &World, words: &str, gate: &Gate) -> Self {
        let mut run = Self::start(world, words, &format!("echo on; {}", gate.wait()));
        assert_eq!(run.line(), "on");
        run
    }

    /// One that waits in line when this returns; when it holds, it writes a line and ends.
    pub fn waiter(world: &World, words: &str, line: &str) -> Self {
        let text = format!("echo {line} >> {}", world.path("log").display());
        let mut run = Self::start(world, words, &text);
        let told = run.told();
        assert!(told.starts_with("baton: waiting"), "{told}");
        run
    }

    /// The next line that the command writes.
    pub fn line(&mut self) -> String {
        read_line(&mut self.out)
    }

    /// The next line that the caller is told.
    pub fn told(&mut self) -> String {
        read_line(&mut self.told)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// kill -9 of the wrapper alone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit status as a shell has it.
    pub fn end(mut self) -> i32 {
        await_end(&process(self.pid()));
        let status = self.child.wait().unwrap();
        status.code().or(status.signal().map(|signal| 128 + signal)).unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // What a failed test left running.
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

fn read_line(from: &mut BufReader<impl Read + AsFd>) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        assert!(!from.buffer().is_empty() || wait(from.get_ref(), DEADLINE), "no line: {line:?}");
        let byte = from.fill_buf().unwrap().first().copied();
        from.consume(byte.iter().count());
        let Some(byte) = byte else { break };
        line.push(byte);
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

/// Waits until the descriptor is readable; whether it is.
pub fn wait(descriptor: &impl AsFd, limit: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let limit = Timespec::try_from(limit).unwrap();
    rustix::event::poll(&mut polled, Some(&limit)).unwrap() == 1
}

pub fn process(pid: Pid) -> OwnedFd {
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

pub fn await_end(process: &OwnedFd) {
    assert!(wait(process, DEADLINE), "it lives");
}

pub fn lives(process: &OwnedFd) -> bool {
    !wait(process, Duration::ZERO)
}

/// The process whose id a command wrote behind a word.
pub fn named_process(line: &str) -> OwnedFd {
    let pid = line.split(' ').nth(1).unwrap().parse().unwrap();
    process(Pid::from_raw(pid).unwrap())
}

/// What `--no-wait` says of these mutexes.
pub fn now(world: &World, names: &str) -> i32 {
    let mut command = world.baton();
    command.args(["mutex", "run", "--no-wait"]).args(names.split(' ')).args(["--", "true"]);
    finish(&mut command).0
}
