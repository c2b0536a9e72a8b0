//! Promise: what a mutex can't do it says at once and clearly: a stuck guard, thousands in a line, a
//! clock that jumps, a bad name, a folder that can't be written.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]
#![allow(clippy::print_stderr, reason = "what is left out is said")]

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use support::line::{AT_ONCE, Locked, Waiter, fence, holder, mutex, status, tickets, used};
use support::{World, exited, finish};

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
        let took = |_| {
            let since = Instant::now();
            let (code, out, _) = finish(&mut mutex(&world, words));
            assert!(code == 0 && out.contains("nobody"), "{out}");
            since.elapsed()
        };
        // One that was held up by other work says nothing.
        let took = (0..5).map(took).min().unwrap();
        assert!(took < baton::mutex::hold::GUARD_PATIENCE, "{took:?}");
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
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
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

#[test]
fn rule_1_numbers_grow_whatever_the_clock_did() {
    let world = World::new();
    let counter = used(&world).join("next");
    // In 1970, and in the year 2100.
    for last in [7, 4_102_444_800_000] {
        support::write(&counter, &format!("{last}.x"));
        assert_eq!((fence(&world), fence(&world)), (last + 1, last + 2));
    }
    // A number that no clock and no counting gives is none.
    for damaged in
        ["18446744073709551615.x", "9007199254740991.x", "99999999999999999999.s", "-1.x", "7", ""]
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

/// A small file system as the folder of the mutexes, unmounted at the end.
struct Small(PathBuf);

impl Small {
    /// `None` where this may not be done.
    fn mount(world: &World, options: &str) -> Option<Self> {
        let path = world.mutexes();
        std::fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "baton-test"]).arg(&path).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(path));
        }
        eprintln!("skipped: no file system may be mounted here");
        None
    }

    fn remount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(&self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[test]
fn a_read_only_folder_is_said_and_can_be_looked_at() {
    let world = World::new();
    let Some(small) = Small::mount(&world, "size=2m,mode=755") else {
        return;
    };
    let folder = used(&world);
    small.remount("ro");
    for name in ["log", "other"] {
        let path = world.mutexes().join(name).display().to_string();
        for words in [&["run", name, "--", "true"][..], &["acquire", name]] {
            let (code, _, told) = finish(&mut mutex(&world, words));
            assert!(code == 70 && told.contains(&path), "{words:?}: {code} {told}");
            assert!(told.contains("Read-only file system"), "{told}");
            assert!(words[0] == "acquire" || told.contains("hint: its file system"), "{told}");
        }
    }
    assert_eq!(tickets(&folder), [""; 0]);
    for words in [&["status"][..], &["status", "log"], &["status", "other"], &["path", "log"]] {
        let (code, _, told) = finish(&mut mutex(&world, words));
        assert_eq!(code, 0, "{words:?}: {told}");
    }
    small.remount("rw");
    fence(&world);
}

/// Fills a file system; what fills it is to be removed again.
fn exhaust(small: &Small) -> PathBuf {
    use std::io::Write as _;
    let path = small.0.join("ballast");
    let mut file = File::create(&path).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    path
}

#[test]
fn a_full_disk_is_said_leaves_no_ticket_and_disturbs_neither_holder_nor_waiter() {
    let world = World::new();
    let Some(small) = Small::mount(&world, "size=256k,nr_inodes=64,mode=755") else {
        return;
    };
    let folder = used(&world);
    let (gate, log) = (world.gate(), world.path("order"));
    let mut first = holder(&world, &gate);
    let text = format!("echo second >> {}", log.display());
    let mut waiter = Waiter::start(&mut mutex(&world, &["run", "log", "--", "sh", "-c", &text]));
    assert!(waiter.told().contains("position 1:"));
    let standing = tickets(&folder);
    assert_eq!(standing.len(), 2);
    let refused = |name: &str| {
        let words = ["run", name, "--", "sh", "-c", &format!("echo no >> {}", log.display())];
        let (code, _, told) = finish(&mut mutex(&world, &words));
        assert!(code == 70 && told.contains("No space left"), "{name}: {code} {told}");
        let path = world.mutexes().join(name).display().to_string();
        assert!(told.contains(&path) && told.contains("hint: make room"), "{told}");
    };
    let ballast = exhaust(&small);
    refused("other");
    refused("log");
    assert_eq!(tickets(&folder), standing);
    assert_eq!(tickets(&world.mutexes().join("other")), [""; 0]);
    let seen = status(&world);
    assert_eq!(seen["holders"][0]["pid"], first.id());
    assert_eq!(seen["waiters"][0]["pid"], waiter.child.id());
    gate.open();
    assert!(first.wait().unwrap().success());
    assert_eq!(waiter.end(), 0, "a place is enough, also when the disk is full");
    assert_eq!(support::lines(&log), ["second"]);
    std::fs::remove_file(ballast).unwrap();

    // No file can be made, though there is room.
    let files = (0..).map(|number| small.0.join(format!("file{number}")));
    let files: Vec<_> = files.take_while(|path| File::create(path).is_ok()).collect();
    refused("log");
    refused("third");
    assert_eq!(tickets(&folder), [""; 0]);
    for path in files {
        std::fs::remove_file(path).unwrap();
    }
    for name in ["log", "other", "third"] {
        let (code, _, told) = finish(&mut mutex(&world, &["run", "-n", name, "--", "true"]));
        assert_eq!(code, 0, "{told}");
    }
}
