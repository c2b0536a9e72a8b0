//! Promise: what a mutex can't do it says at once and clearly: a stuck guard, thousands in a line, a
//! clock that jumps, strange files, a cleaner, other users. Nobody overlaps, nothing outside is touched.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use support::{World, exited, finish, spawn};

/// What is in no way slow, on a noisy machine.
const AT_ONCE: Duration = Duration::from_millis(1500);

fn mutex(world: &World, words: &[&str]) -> Command {
    let mut command = world.baton();
    command.arg("mutex").args(words);
    command
}

/// A mutex `log` that was used once: its folder is there.
fn used(world: &World) -> PathBuf {
    let (code, _, told) = finish(&mut mutex(world, &["run", "log", "--", "true"]));
    assert_eq!(code, 0, "{told}");
    world.mutexes().join("log")
}

/// Locks a file as any program may. Given back explicitly: a process that is just being started may
/// have the descriptor still.
struct Locked(File);

impl Locked {
    fn new(path: &Path) -> Self {
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
struct Waiter {
    child: Child,
    told: BufReader<ChildStderr>,
}

impl Waiter {
    fn start(command: &mut Command) -> Self {
        let mut child = spawn(command.stderr(Stdio::piped()));
        let told = BufReader::new(child.stderr.take().unwrap());
        Self { child, told }
    }

    fn told(&mut self) -> String {
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        line
    }

    fn end(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

/// The tickets in the line of a mutex, living or dead.
fn tickets(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder.join("line")).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn status(world: &World) -> serde_json::Value {
    let (code, out, told) = finish(&mut mutex(world, &["status", "log", "--json"]));
    assert_eq!(code, 0, "{told}");
    serde_json::from_str(&out).unwrap()
}

/// A process that is stopped while it joins a line keeps the line as it is.
#[tokio::test]
async fn who_sits_in_a_guard_is_named_and_can_be_waited_for_or_not() {
    let world = World::new();
    let folder = used(&world);
    let guard = Locked::new(&folder.join("guard"));
    let me = format!("pid {}", std::process::id());
    for patience in [&["--no-wait"][..], &["--timeout", "50ms"]] {
        let words = [&["run"], patience, &["log", "--", "true"]].concat();
        let since = Instant::now();
        let (code, _, told) = finish(&mut mutex(&world, &words));
        let took = since.elapsed();
        assert_eq!(code, 75, "{told}");
        assert!(told.contains(&me) && told.contains("stopped while it joined"), "{told}");
        let limit = baton::mutex::hold::GUARD_PATIENCE;
        assert!(took >= limit && took < limit + AT_ONCE, "{took:?}");
    }
    for words in [&["status", "log"][..], &["status"]] {
        let since = Instant::now();
        let (code, out, _) = finish(&mut mutex(&world, words));
        assert!(code == 0 && out.contains("nobody") && since.elapsed() < AT_ONCE, "{out}");
    }
    let mut waiter = Waiter::start(&mut mutex(&world, &["run", "log", "--", "true"]));
    let told = waiter.told();
    assert!(told.contains("waiting, position 1") && told.contains(&me), "{told}");

    let agent = world.agent().await;
    let script = agent.script("true").mutex("log").start().await;
    let waits = script.is_waiting().await.waits;
    assert_eq!(waits[0].holders[0].who.pid, std::process::id(), "{waits:?}");
    support::cancel(&script, "not now").await;
    let outcome = script.outcome().await;
    assert!(!exited(&outcome, 0), "{outcome:?}");

    assert_eq!(tickets(&folder), [""; 0], "nobody has a place");
    drop(guard);
    assert_eq!(waiter.end(), 0);
    assert_eq!(finish(&mut mutex(&world, &["run", "--no-wait", "log", "--", "true"])).0, 0);
}

/// How many tickets, each kept by an open file of this test, there may be here; for one test at a time.
fn many(wanted: usize) -> (usize, MutexGuard<'static, ()>) {
    static OPEN_FILES: Mutex<()> = Mutex::new(());
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// For the other tests of this file, and for what the test itself has open.
    const OTHERS: usize = 500;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let possible = maximum.map_or(usize::MAX, |maximum| usize::try_from(maximum).unwrap());
    let number = wanted.min(possible.saturating_sub(OTHERS));
    if number < wanted {
        eprintln!(
            "only {number} tickets instead of {wanted}: the system allows no more open files"
        );
    }
    (number, OPEN_FILES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Tickets before all that baton makes, each locked.
fn fill(folder: &Path, number: usize, mode: &str) -> Vec<Locked> {
    let live = |number| {
        let path = folder.join(format!("line/{number:010}.{mode}"));
        let mut options = OpenOptions::new();
        drop(options.write(true).create_new(true).mode(0o600).open(&path).unwrap());
        Locked::new(&path)
    };
    (1..=number).map(live).collect()
}

/// `baton mutex …` in a process that may have few files open.
fn frugal(world: &World, words: &str) -> Command {
    let like = world.baton();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n 64; exec {} mutex {words}", support::BATON)]);
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null());
    command
}

#[test]
fn ten_thousand_in_a_line_keep_their_order_and_cost_no_files() {
    let world = World::new();
    let folder = used(&world);
    let (number, _alone) = many(10_000);
    let mut line = fill(&folder, number, "x");
    for mode in ["", "--shared"] {
        let since = Instant::now();
        let words = format!("run {mode} --timeout 100ms log -- true");
        let (code, _, told) = finish(&mut frugal(&world, &words));
        println!("run {mode} behind {number}: {:?}", since.elapsed());
        assert_eq!(code, 75, "{told}");
        assert!(told.contains(&format!("waiting, position {number}:")), "{told}");
        assert!(told.contains(&format!("{} wait before", number - 1)), "{told}");
        assert!(since.elapsed() < 4 * AT_ONCE, "{:?}", since.elapsed());
    }
    let since = Instant::now();
    let (code, out, told) = finish(&mut frugal(&world, "status log --json"));
    println!("status of {number}: {:?}", since.elapsed());
    assert_eq!(code, 0, "{told}");
    let seen: serde_json::Value = serde_json::from_str(&out).unwrap();
    let count = |what: &str| seen[what].as_array().unwrap().len();
    assert_eq!((count("holders"), count("waiters")), (1, number - 1));

    let mut waiter = Waiter::start(&mut frugal(&world, "run --remind 50ms log -- true"));
    assert!(waiter.told().contains(&format!("position {number}:")));
    let last = line.pop().unwrap();
    drop(line);
    // The others are gone: it is next, and still waits for the last one.
    while !waiter.told().contains("position 1:") {}
    assert!(waiter.child.try_wait().unwrap().is_none());
    drop(last);
    assert_eq!(waiter.end(), 0);
    assert_eq!(tickets(&folder), [""; 0], "the dead are removed");
}

#[test]
fn an_exclusive_claim_waits_for_the_last_of_thousands_that_hold_together() {
    let world = World::new();
    let folder = used(&world);
    let (number, _alone) = many(2_000);
    let mut line = fill(&folder, number, "s");
    let seen = status(&world);
    assert_eq!(seen["holders"].as_array().unwrap().len(), number);
    let (code, _, told) = finish(&mut frugal(&world, "run --shared --no-wait log -- true"));
    assert_eq!(code, 0, "one more holds with them: {told}");

    let mut waiter = Waiter::start(&mut frugal(&world, "run --remind 50ms log -- true"));
    let told = waiter.told();
    assert!(told.contains("waiting, position 1:"), "{told}");
    let (code, _, told) = finish(&mut frugal(&world, "run --shared --no-wait log -- true"));
    assert!(code == 75 && told.contains("position 2:"), "nobody overtakes: {told}");
    let first = line.remove(0);
    drop(line);
    while waiter.told().contains("others") {}
    assert!(waiter.child.try_wait().unwrap().is_none());
    drop(first);
    assert_eq!(waiter.end(), 0);
    assert_eq!(tickets(&folder), [""; 0], "the dead are removed");
}
