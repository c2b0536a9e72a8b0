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
use support::{Gate, World, exited, finish, spawn};

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

/// A process that holds the mutex until the gate is opened.
fn holder(world: &World, gate: &Gate) -> Child {
    let text = format!("echo on; {}", gate.wait());
    let mut command = mutex(world, &["run", "log", "--", "sh", "-c", &text]);
    let mut child = spawn(command.stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "on\n");
    child
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

fn fence(world: &World) -> u64 {
    let words = ["run", "log", "--", "sh", "-c", "echo $BATON_MUTEX_FENCE"];
    let (code, out, told) = finish(&mut mutex(world, &words));
    assert_eq!(code, 0, "{told}");
    out.trim().parse().unwrap()
}

#[test]
fn rule_1_numbers_grow_whatever_the_clock_did() {
    let world = World::new();
    let counter = used(&world).join("next");
    // In 1970, and in the year 2100.
    for last in [7, 4_102_444_800_000] {
        support::write(&counter, &format!("{last:020}"));
        assert_eq!((fence(&world), fence(&world)), (last + 1, last + 2));
    }
    // A number that no clock and no counting gives is none.
    for damaged in
        [&u64::MAX.to_string(), "9007199254740991", "99999999999999999999", "-1", "", "x"]
    {
        let gate = world.gate();
        let held = fence(&world) + 1;
        let mut holder = holder(&world, &gate);
        support::write(&counter, damaged);
        let (code, _, told) =
            finish(&mut mutex(&world, &["run", "--no-wait", "log", "--", "true"]));
        assert_eq!(code, 75, "{damaged:?} overtakes nobody: {told}");
        gate.open();
        assert!(holder.wait().unwrap().success());
        let next = fence(&world);
        assert!(next > held && next < 1 << 53, "{damaged:?}: {next} after {held}");
    }
}

#[test]
fn times_of_another_clock_are_shown_as_none() {
    let world = World::new();
    let folder = used(&world);
    let path = folder.join("line/0000000001.x");
    for time in ["2100-01-01T00:00:00Z", "9999-12-30T22:00:00Z", "-009999-01-02T01:59:59Z"] {
        let text = format!(
            r#"{{"pid":1,"user":"root","command":"later","waits_since":"{time}","holds_since":"{time}"}}"#
        );
        support::write(&path, &text);
        let live = Locked::new(&path);
        let (code, out, told) = finish(&mut mutex(&world, &["status", "log"]));
        assert_eq!(code, 0, "{told}");
        assert!(
            out.contains("later") && (time.starts_with('-') || out.contains(" 0.0s ")),
            "{out}"
        );
        assert_eq!(status(&world)["holders"][0]["pid"], 1);
        let (code, _, told) = finish(&mut mutex(&world, &["run", "-n", "log", "--", "true"]));
        assert!(code == 75 && told.contains("later"), "{told}");
        drop(live);
    }
    // What was done in the future is done.
    assert_eq!(finish(&mut mutex(&world, &["once", "key", "--", "true"])).0, 0);
    support::write(&world.mutexes().join("once.key/done"), "2100-01-01T00:00:00Z");
    let once = ["once", "--within", "1h", "key", "--", "false"];
    assert_eq!(finish(&mut mutex(&world, &once)).0, 0);
}

/// What of a file a stranger's write would change.
fn traits(path: &Path) -> (Vec<u8>, u32, i64, i64) {
    let found = path.metadata().unwrap();
    (std::fs::read(path).unwrap(), found.mode(), found.mtime(), found.mtime_nsec())
}

fn fifo(path: &Path) {
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), 0).unwrap();
}

#[test]
fn links_pipes_and_folders_in_the_place_of_a_file_are_refused_and_nothing_outside_is_touched() {
    let world = World::new();
    let folder = used(&world);
    let (victim, nowhere) = (world.path("victim"), world.path("nowhere"));
    support::write(&victim, "precious");
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o644)).unwrap();
    let before = traits(&victim);
    let link = |to: &Path, at: &Path| std::os::unix::fs::symlink(to, at).unwrap();
    let kinds: [&dyn Fn(&Path); 4] =
        [&|at| link(&victim, at), &|at| link(&nowhere, at), &|at| fifo(at), &|at| {
            std::fs::create_dir(at).unwrap()
        }];
    for name in ["guard", "next", "os.lock", "line/0000000001.x"] {
        for (number, put) in kinds.iter().enumerate() {
            let path = folder.join(name);
            drop(std::fs::remove_file(&path));
            put(&path);
            for words in
                [&["run", "log", "--", "true"][..], &["acquire", "log"], &["append", "log", "out"]]
            {
                let since = Instant::now();
                // `append` reads what it is to write before it needs the mutex.
                let mut command = mutex(&world, words);
                let input = File::open(&victim).unwrap();
                let (code, _, told) = finish(command.current_dir(world.path("")).stdin(input));
                let what = format!("{number} as {name}, {words:?}: {code} {told}");
                assert!(since.elapsed() < AT_ONCE, "{what}");
                let text = format!("{} is not a plain file", path.display());
                assert!(code == 70 && told.contains(&text), "{what}");
                assert!(words[0] == "acquire" || told.contains("hint:"), "{what}");
            }
            // Looking at it is as harmless.
            let (code, _, told) = finish(&mut mutex(&world, &["status", "log"]));
            assert_eq!(code, if name.starts_with("line") { 70 } else { 0 }, "{told}");
            if number == 3 {
                std::fs::remove_dir(&path).unwrap();
            } else {
                std::fs::remove_file(&path).unwrap();
            }
            assert_eq!(tickets(&folder), [""; 0], "{number} as {name}");
            assert_eq!(traits(&victim), before, "{number} as {name}");
            assert!(!nowhere.exists() && !world.path("out").exists(), "{number} as {name}");
            fence(&world);
        }
    }
}

#[test]
fn a_link_in_the_place_of_a_folder_is_refused_and_a_pipe_as_a_record_is_not_read() {
    let world = World::new();
    let folder = used(&world);
    let outside = world.path("outside");
    std::fs::create_dir(&outside).unwrap();
    for at in [folder.join("line"), world.mutexes().join("other")] {
        drop(std::fs::remove_dir(&at));
        std::os::unix::fs::symlink(&outside, &at).unwrap();
        let name = if at.ends_with("line") { "log" } else { "other" };
        for words in [&["run", name, "--", "true"][..], &["path", name], &["status", name]] {
            let (code, _, told) = finish(&mut mutex(&world, words));
            assert!(code == 70 && told.contains("is not a plain folder"), "{words:?}: {told}");
        }
        std::fs::remove_file(&at).unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
    assert_eq!(finish(&mut mutex(&world, &["once", "key", "--", "true"])).0, 0);
    let done = world.mutexes().join("once.key/done");
    std::fs::remove_file(&done).unwrap();
    fifo(&done);
    let (code, _, told) = finish(&mut mutex(&world, &["once", "key", "--", "true"]));
    assert!(code == 70 && told.contains("is not a plain file"), "{told}");
    assert_eq!(tickets(&world.mutexes().join("once.key")), [""; 0]);
    fifo(&folder.join("breaks"));
    fence(&world);
    assert_eq!(finish(&mut mutex(&world, &["status", "log"])).0, 0);
}

#[test]
fn rule_8_a_lock_file_that_was_removed_lets_nobody_of_baton_overlap_or_overtake() {
    let world = World::new();
    let folder = used(&world);
    let (lock, log) = (folder.join("os.lock"), world.path("order"));
    let gate = world.gate();
    let mut first = holder(&world, &gate);
    std::fs::remove_file(&lock).unwrap();
    let busy = || finish(&mut mutex(&world, &["run", "--no-wait", "log", "--", "true"]));
    assert_eq!(busy().0, 75);
    let says = |word: &str| {
        let text = format!(
            "flock -n '{}' echo free >> {log}; echo {word} >> {log}",
            lock.display(),
            log = log.display()
        );
        let mut waiter =
            Waiter::start(&mut mutex(&world, &["run", "log", "--", "sh", "-c", &text]));
        assert!(waiter.told().contains("waiting"));
        waiter
    };
    let waiters = [says("second"), says("third")];
    // The one that they would have made.
    drop(std::fs::remove_file(&lock));
    gate.open();
    assert!(first.wait().unwrap().success());
    assert_eq!(waiters.map(Waiter::end), [0, 0]);
    assert_eq!(support::lines(&log), ["second", "third"], "and the lock at the path was held");

    // A program outside baton has the lock whose file is removed: it is waited for all the same.
    let outsider = Locked::new(&lock);
    let waiter = says("fourth");
    std::fs::remove_file(&lock).unwrap();
    assert_eq!(busy().0, 75);
    drop(outsider);
    assert_eq!(waiter.end(), 0);
    assert_eq!(support::lines(&log), ["second", "third", "fourth"]);
}

#[test]
fn rule_8_a_guard_that_was_removed_holds_nobody_up_and_nobody_overtakes() {
    let world = World::new();
    let guard = used(&world).join("guard");
    // Held, and somebody waits for it.
    let stuck = Locked::new(&guard);
    let mut late = Waiter::start(&mut mutex(&world, &["run", "log", "--", "true"]));
    assert!(late.told().contains("stopped while it joined"));
    std::fs::remove_file(&guard).unwrap();
    let since = Instant::now();
    fence(&world);
    assert!(since.elapsed() < AT_ONCE, "a new one was made");
    drop(stuck);
    assert_eq!(late.end(), 0);

    // The mutex is held, and somebody waits for it.
    let (gate, log) = (world.gate(), world.path("order"));
    let mut first = holder(&world, &gate);
    let waiters = [("second", 1), ("third", 2)].map(|(word, position)| {
        std::fs::remove_file(&guard).unwrap();
        let text = format!("echo {word} >> {}", log.display());
        let mut waiter =
            Waiter::start(&mut mutex(&world, &["run", "log", "--", "sh", "-c", &text]));
        let told = waiter.told();
        assert!(told.contains(&format!("position {position}:")), "{told}");
        waiter
    });
    gate.open();
    assert!(first.wait().unwrap().success());
    assert_eq!(waiters.map(Waiter::end), [0, 0]);
    assert_eq!(support::lines(&log), ["second", "third"]);
}

#[test]
fn a_name_that_is_none_is_refused_by_every_command_with_the_limit() {
    let world = World::new();
    let long = "x".repeat(251);
    let key = "x".repeat(81);
    let commands = |name: &str| {
        let words: [&[&str]; 8] = [
            &["run", name, "--", "true"],
            &["run", "good", name, "--", "true"],
            &["acquire", name],
            &["release", name, "1"],
            &["status", name],
            &["path", name],
            &["append", name, "/dev/null"],
            &["break", name, "--holder", "1", "--reason", "test"],
        ];
        words.map(|words| (mutex(&world, words), format!("{words:?}")))
    };
    let bad =
        [(long.as_str(), "250"), ("", "empty"), ("../x", "A-Z"), (".x", "dot"), ("a b", "A-Z")];
    for (name, says) in bad {
        for (mut command, words) in commands(name) {
            let (code, out, told) = finish(&mut command);
            assert!(code == 2 && told.contains(says) && out.is_empty(), "{words}: {code} {told}");
        }
    }
    for (key, says) in [(key.as_str(), "80"), ("", "empty"), ("a\nb", "control")] {
        let (code, _, told) = finish(&mut mutex(&world, &["once", key, "--", "true"]));
        assert!(code == 2 && told.contains(says), "{key:?}: {code} {told}");
    }
    assert!(!world.mutexes().exists(), "nothing was made");
    // The longest name is one.
    for (mut command, words) in commands(&long[1..]).into_iter().take(3) {
        let (code, _, told) = finish(&mut command);
        assert_eq!(code, 0, "{words}: {told}");
    }
    let (code, _, told) = finish(&mut mutex(&world, &["once", &"/".repeat(80), "--", "true"]));
    assert_eq!(code, 0, "{told}");
}
