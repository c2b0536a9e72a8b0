//! Mutexes in tests: who holds, who waits, what is in the folder.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::{Gate, World, finish, spawn};

/// What takes longer hangs, also on a noisy machine.
pub const AT_ONCE: Duration = Duration::from_secs(15);

pub fn mutex(world: &World, words: &[&str]) -> Command {
    let mut command = world.baton();
    command.arg("mutex").args(words);
    command
}

/// A mutex `log` that was used once: its folder is there.
pub fn used(world: &World) -> PathBuf {
    let (code, _, told) = finish(&mut mutex(world, &["run", "log", "--", "true"]));
    assert_eq!(code, 0, "{told}");
    world.mutexes().join("log")
}

/// Locks a file as any program may. Given back explicitly: a process that is just being started may
/// have the descriptor still.
pub struct Locked(File);

impl Locked {
    pub fn new(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        Self(file)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        flock(&self.0, FlockOperation::Unlock).unwrap();
    }
}

/// `baton mutex run …` with what it tells.
pub struct Waiter {
    pub child: Child,
    told: BufReader<ChildStderr>,
}

impl Waiter {
    pub fn start(command: &mut Command) -> Self {
        let mut child = spawn(command.stderr(Stdio::piped()));
        let told = BufReader::new(child.stderr.take().unwrap());
        Self { child, told }
    }

    pub fn told(&mut self) -> String {
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        line
    }

    pub fn end(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

/// A process that holds the mutex until the gate is opened.
pub fn holder(world: &World, gate: &Gate) -> Child {
    let text = format!("echo on; {}", gate.wait());
    let mut command = mutex(world, &["run", "log", "--", "sh", "-c", &text]);
    let mut child = spawn(command.stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "on\n");
    child
}

/// The tickets in the line of a mutex, living or dead.
pub fn tickets(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder.join("line")).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn status(world: &World) -> serde_json::Value {
    let (code, out, told) = finish(&mut mutex(world, &["status", "log", "--json"]));
    assert_eq!(code, 0, "{told}");
    serde_json::from_str(&out).unwrap()
}

pub fn fence(world: &World) -> u64 {
    let words = ["run", "log", "--", "sh", "-c", "echo $BATON_MUTEX_FENCE"];
    let (code, out, told) = finish(&mut mutex(world, &words));
    assert_eq!(code, 0, "{told}");
    out.trim().parse().unwrap()
}
