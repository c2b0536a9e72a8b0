//! Promise: a named mutex survives every crash: whoever is killed or stopped, wherever it stands, no
//! mutex is stuck, none is free too early, and the line keeps its order.
//!
//! `BATON_TEST_MUTEX_KILLS` says how many kills at a random instant are tried (default 60).

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]
#![allow(clippy::print_stdout, reason = "what is left out is said")]

#[path = "support/random.rs"]
mod random;
mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use baton::mutex::os::try_lock_exclusive;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use random::Random;
use support::run::{Run, await_end, lives, named_process, now};
use support::{DEADLINE, World, finish, lines, signal, spawn};

/// Whether a tool that knows only the plain OS lock could have it.
fn plain_lock_is_free(world: &World, name: &str) -> bool {
    take_plain_lock(world, name).is_some()
}

/// The plain OS lock, taken as another tool would.
fn take_plain_lock(world: &World, name: &str) -> Option<PlainLock> {
    let file = File::open(world.mutexes().join(name).join("os.lock")).unwrap();
    try_lock_exclusive(&file).unwrap().then_some(PlainLock(file))
}

struct PlainLock(File);

impl Drop for PlainLock {
    fn drop(&mut self) {
        // Explicitly: a process that another test is just starting has the open file too.
        rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock).unwrap();
    }
}

fn tickets(world: &World, name: &str) -> usize {
    std::fs::read_dir(world.mutexes().join(name).join("line")).unwrap().count()
}

/// Rule 6.
#[test]
fn a_killed_wrapper_s_mutex_is_held_until_the_last_process_of_its_command_has_ended() {
    for mode in ["-q", "-q --shared", "-q --at-most 3"] {
        let world = World::new();
        let (gate, deep) = (world.gate(), world.gate());
        let log = world.path("log").display().to_string();
        // A daemon, as far as a script can make one: a session of its own, and no parent.
        let text = format!(
            "(setsid sh -c \"echo deep \\$\\$; {}; echo deep >> {log}\" &); echo on $$; {}",
            deep.wait(),
            gate.wait()
        );
        let mut holder = Run::start(&world, &format!("{mode} m"), &text);
        let mut said = [holder.line(), holder.line()];
        said.sort();
        let [daemon, command] = said.map(|line| named_process(&line));
        let waiter = Run::waiter(&world, "m", "waiter");
        holder.kill();
        assert_eq!((now(&world, "m"), plain_lock_is_free(&world, "m")), (75, false), "{mode}");
        gate.open();
        await_end(&command);
        assert!(lives(&daemon));
        assert_eq!((now(&world, "m"), plain_lock_is_free(&world, "m")), (75, false), "{mode}");
        // Its own and the waiter's: dead ones were removed just now.
        assert_eq!(tickets(&world, "m"), 2, "{mode}");
        deep.open();
        assert_eq!(waiter.end(), 0);
        assert_eq!(lines(&world.path("log")), ["deep", "waiter"]);
        assert_eq!((now(&world, "m"), plain_lock_is_free(&world, "m")), (0, true), "{mode}");
    }
}

/// A command line that goes on as `sh -c` of this text without any descriptor or, then, variable.
fn without(what: &str, text: &str) -> String {
    let environment = if what == "variables" { "{}" } else { "os.environ" };
    let program = format!(
        "import os, sys; os.closerange(3, 4096); \
         os.execve(\"/bin/sh\", [\"sh\", \"-c\", sys.argv[1]], {environment})"
    );
    format!("python3 -c '{program}' '{text}'")
}

/// Rule 6.
#[test]
fn who_closed_all_descriptors_keeps_a_killed_wrapper_s_mutex_all_the_same() {
    let world = World::new();
    let gate = world.gate();
    let deep = without("descriptors", &format!("echo deep $$; {}", gate.wait()));
    let mut holder = Run::start(&world, "-q m", &format!("{deep} & echo on $$; wait"));
    // Left by its parent: found by its environment.
    let mut said = [holder.line(), holder.line()];
    said.sort();
    let [_, command] = said.map(|line| named_process(&line));
    let waiter = Run::waiter(&world, "m", "waiter");
    holder.kill();
    rustix::process::pidfd_send_signal(&command, Signal::KILL).unwrap();
    await_end(&command);
    assert_eq!((now(&world, "m"), tickets(&world, "m")), (75, 2));
    gate.open();
    assert_eq!(waiter.end(), 0);
    assert_eq!((now(&world, "m"), tickets(&world, "m")), (0, 0));
}

/// Rule 6.
#[test]
fn a_command_that_cleared_its_environment_too_keeps_it_as_long_as_it_lives() {
    let world = World::new();
    let gate = world.gate();
    let text = format!("exec {}", without("variables", &format!("echo on $$; {}", gate.wait())));
    let mut holder = Run::start(&world, "-q m", &text);
    let command = named_process(&holder.line());
    let waiter = Run::waiter(&world, "m", "waiter");
    holder.kill();
    assert_eq!((now(&world, "m"), tickets(&world, "m")), (75, 2));
    gate.open();
    await_end(&command);
    assert_eq!(waiter.end(), 0);
    assert_eq!((now(&world, "m"), tickets(&world, "m")), (0, 0));
}

/// Rule 6.
#[test]
fn redirections_of_the_command_do_not_give_its_place_away() {
    let world = World::new();
    let gate = world.gate();
    let closed: String = (3..255).fold(String::new(), |text, fd| text + &format!(" {fd}>&-"));
    let text = format!("exec{closed}; echo on; {}", gate.wait());
    let mut command = world.baton();
    command.args(["mutex", "run", "log", "--", "bash", "-c", &text]).stdout(Stdio::piped());
    let mut wrapper = spawn(&mut command);
    let mut out = BufReader::new(wrapper.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    signal(&wrapper, Signal::KILL);
    wrapper.wait().unwrap();
    let busy = ["mutex", "run", "--no-wait", "log", "--", "true"];
    assert_eq!(finish(world.baton().args(busy)).0, 75);
    gate.open();
    assert_eq!(finish(world.baton().args(["mutex", "run", "log", "--", "true"])).0, 0);
}

#[test]
fn what_a_command_left_running_holds_nothing() {
    for mode in ["a", "--shared a", "b a"] {
        let world = World::new();
        let gate = world.gate();
        let text = format!("({}) > /dev/null 2>&1 & echo left $!", gate.wait());
        let mut holder = Run::start(&world, mode, &text);
        let straggler = named_process(&holder.line());
        assert_eq!(holder.end(), 0);
        for name in ["a", "b"].into_iter().filter(|name| mode.contains(name)) {
            assert_eq!((now(&world, name), tickets(&world, name)), (0, 0), "{mode}");
            assert!(plain_lock_is_free(&world, name), "{mode}");
        }
        assert!(lives(&straggler));
        gate.open();
        await_end(&straggler);
    }
}

#[test]
fn killed_waiters_leave_the_line_and_the_others_keep_their_order() {
    for (killed, expected) in [
        (&[1][..], &["0", "2", "3"][..]),
        (&[0], &["1", "2", "3"]),
        (&[3], &["0", "1", "2"]),
        (&[2, 0], &["1", "3"]),
        (&[0, 1, 2, 3], &[]),
    ] {
        let world = World::new();
        let gate = world.gate();
        let holder = Run::holder(&world, "m", &gate);
        let mut waiters: Vec<_> =
            (0..4).map(|number| Some(Run::waiter(&world, "m", &number.to_string()))).collect();
        for number in killed {
            waiters[*number].take().unwrap().kill();
        }
        assert_eq!(now(&world, "m"), 75);
        gate.open();
        assert_eq!(holder.end(), 0);
        assert!(waiters.into_iter().flatten().all(|waiter| waiter.end() == 0));
        assert_eq!(lines(&world.path("log")), expected, "without {killed:?}");
        assert_eq!((now(&world, "m"), tickets(&world, "m")), (0, 0));
    }
}

/// Rule 5: who is next waits for the plain OS lock; killed there, it keeps nobody from it.
#[test]
fn a_waiter_that_is_killed_while_it_waits_for_the_plain_lock_holds_up_nobody() {
    let world = World::new();
    assert_eq!(now(&world, "m"), 0);
    let gate = world.gate();
    let path = world.mutexes().join("m/os.lock");
    let text = format!("echo on; {}", gate.wait());
    let mut foreign = Run::of(Command::new("flock").arg(path).args(["sh", "-c", &text]));
    assert_eq!(foreign.line(), "on");
    let mut first = Run::waiter(&world, "m", "first");
    let mut second = Run::waiter(&world, "m", "second");
    first.kill();
    let told = second.told();
    assert!(told.contains("position 1"), "it is next now: {told}");
    assert_eq!((now(&world, "m"), lines(&world.path("log")).len()), (75, 0));
    gate.open();
    assert_eq!((foreign.end(), second.end()), (0, 0));
    assert_eq!(lines(&world.path("log")), ["second"]);
    assert_eq!((now(&world, "m"), tickets(&world, "m")), (0, 0));
}

#[test]
fn a_shared_holder_that_is_killed_takes_nothing_from_the_others() {
    let world = World::new();
    let gates = [world.gate(), world.gate(), world.gate()];
    let [mut first, second, third] =
        [0, 1, 2].map(|number: usize| Run::holder(&world, "-s m", &gates[number]));
    let alone = Run::waiter(&world, "m", "alone");
    let late = Run::waiter(&world, "-s m", "late");
    first.kill();
    gates[1].open();
    assert_eq!(second.end(), 0);
    gates[2].open();
    assert_eq!(third.end(), 0);
    // The command of the killed wrapper holds it still, beside nobody.
    assert_eq!((now(&world, "m"), lines(&world.path("log")).len()), (75, 0));
    assert!(!plain_lock_is_free(&world, "m"));
    gates[0].open();
    assert_eq!((alone.end(), late.end()), (0, 0));
    assert_eq!(lines(&world.path("log")), ["alone", "late"]);
}

/// Rule 7.
#[test]
fn a_holder_of_two_that_is_killed_keeps_both_and_then_frees_both() {
    let world = World::new();
    let gate = world.gate();
    let mut holder = Run::start(&world, "b a", &format!("echo on $$; {}", gate.wait()));
    let command = named_process(&holder.line());
    let [of_a, of_b, of_both] =
        ["a", "b", "a b"].map(|names| Run::waiter(&world, names, names.trim()));
    holder.kill();
    assert_eq!(["a", "b", "a b"].map(|names| now(&world, names)), [75; 3]);
    // kill -9 of the rest of it.
    rustix::process::pidfd_send_signal(&command, Signal::KILL).unwrap();
    assert_eq!([of_a, of_b, of_both].map(Run::end), [0; 3]);
    assert_eq!(lines(&world.path("log"))[2], "a b");
    assert_eq!((now(&world, "a b"), tickets(&world, "a"), tickets(&world, "b")), (0, 0, 0));
}

/// Rule 2, at every instant of a claim's life.
#[test]
fn killed_at_any_instant_it_leaves_no_mutex_stuck() {
    let kills = std::env::var("BATON_TEST_MUTEX_KILLS").map_or(60, |text| text.parse().unwrap());
    let seed = Random::seed("BATON_TEST_MUTEX_SEED");
    let mut random = Random::new(seed);
    let world = World::new();
    let claims = ["-q m", "-q --shared m", "-q n m", "-q --at-most 2 --timeout 1ms m"];
    let claim = |words: &str| {
        let mut command = world.baton();
        command.args(["mutex", "run"]).args(words.split(' ')).args(["--", "true"]);
        command
    };
    // How long a whole claim takes here and now.
    let start = Instant::now();
    assert!((0..5).all(|_| finish(&mut claim("n m")).0 == 0));
    let life_us = u64::try_from(start.elapsed().as_micros() / 5).unwrap().max(4000);
    let mut killed = 0;
    for number in 0..kills {
        // Every other one waits: for the line, or for the plain lock.
        let outside = (number % 4 == 1).then(|| take_plain_lock(&world, "m").unwrap());
        let gate = world.gate();
        let holder = (number % 4 == 3).then(|| Run::holder(&world, "m", &gate));
        let mut child = spawn(claim(random.pick(&claims)).stderr(Stdio::null()));
        let until = Instant::now() + Duration::from_micros(random.between(0, life_us));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().signal() == Some(9));
        drop(outside);
        gate.open();
        assert!(holder.is_none_or(|holder| holder.end() == 0));
        // What the killed one had started may still be about to end.
        let (code, _, told) = finish(&mut claim("--timeout 30s m n"));
        assert_eq!(code, 0, "kill {number}, BATON_TEST_MUTEX_SEED={seed}: {told}");
        assert_eq!((tickets(&world, "m"), tickets(&world, "n")), (0, 0), "{number}, {seed}");
        assert!(plain_lock_is_free(&world, "m"), "{number}, {seed}");
    }
    assert!(killed > kills / 10, "only {killed} of {kills} were killed in time");
}

/// Order is a promise: who is stopped keeps its place, and holds up nobody before it.
#[test]
fn a_stopped_waiter_keeps_its_place_until_it_goes_on_or_is_killed() {
    for is_killed in [false, true] {
        let world = World::new();
        let gate = world.gate();
        let holder = Run::holder(&world, "m", &gate);
        let [first, mut stopped, third] =
            ["first", "stopped", "third"].map(|name| Run::waiter(&world, "m", name));
        stop(&stopped);
        gate.open();
        assert_eq!((holder.end(), first.end()), (0, 0));
        // The stopped one is next, and nobody goes past it.
        assert_eq!((now(&world, "m"), lines(&world.path("log"))), (75, vec!["first".to_owned()]));
        let expected = if is_killed {
            stopped.kill();
            &["first", "third"][..]
        } else {
            signal(&stopped.child, Signal::CONT);
            assert_eq!(stopped.end(), 0);
            &["first", "stopped", "third"]
        };
        assert_eq!(third.end(), 0);
        assert_eq!(lines(&world.path("log")), expected);
    }
}

/// Stops a waiter, and waits until it is.
fn stop(run: &Run) {
    signal(&run.child, Signal::STOP);
    let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(run.pid()), stopped).unwrap().unwrap();
}

/// Rule 4: nothing that happens elsewhere wakes a waiter, nor does the time.
#[test]
fn a_waiter_is_asleep() {
    let world = World::new();
    let gate = world.gate();
    let holder = Run::holder(&world, "m", &gate);
    for mode in ["-q m", "m", "-q --shared m", "-q --timeout 1h m"] {
        let waiter = Run::start(&world, &format!("--remind 1h {mode}"), "exit 5");
        let pid = waiter.pid();
        let traffic = || assert_eq!(now(&world, "other"), 0);
        let give_up = Instant::now() + DEADLINE;
        // Its sleeper is there, and nothing moves any more.
        loop {
            let before = switches(pid);
            traffic();
            if before.len() == 2 && before == switches(pid) {
                break;
            }
            assert!(Instant::now() < give_up, "it does not fall asleep: {mode}");
        }
        let before = switches(pid);
        (0..30).for_each(|_| traffic());
        assert_eq!(before, switches(pid), "{mode}");
        assert_eq!(system_calls(pid, traffic), [""; 0], "{mode}");
        // Its place is given back.
        signal(&waiter.child, Signal::TERM);
        assert_eq!(waiter.end(), 143);
    }
    gate.open();
    assert_eq!(holder.end(), 0);
}

/// How often each thread of a process was taken from a processor, or gave it away.
fn switches(pid: Pid) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).unwrap();
    let switches = tasks.map(|task| {
        let path = task.unwrap().path();
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        (path.display().to_string(), counts.collect::<Vec<_>>().join(" "))
    });
    switches.collect()
}

/// What strace, where it is, sees of a process during the traffic: calls that return.
fn system_calls(pid: Pid, traffic: impl Fn()) -> Vec<String> {
    let mut command = Command::new("strace");
    command.args(["-f", "-p", &pid.as_raw_pid().to_string()]);
    if Command::new("strace").arg("-V").output().is_err() {
        println!("no strace: only the switches were counted");
        return Vec::new();
    }
    let mut strace = Run::of(&mut command);
    let told = strace.told();
    if !told.contains("attached") {
        println!("strace can't attach: {told}");
        return Vec::new();
    }
    (0..10).for_each(|_| traffic());
    signal(&strace.child, Signal::INT);
    let mut calls = Vec::new();
    loop {
        let line = strace.told();
        if line.is_empty() {
            break;
        }
        // One that only lasts has no result.
        if line.contains(" = ") {
            calls.push(line);
        }
    }
    strace.end();
    calls
}

/// Rule 1.
#[test]
fn the_command_finds_its_fencing_numbers_and_they_only_grow() {
    let world = World::new();
    let text = "echo $BATON_MUTEX_FENCE $BATON_MUTEX_FENCE_A $BATON_MUTEX_FENCE_B";
    let mut highest = [0, 0];
    for turn in 0..6 {
        let words = ["b a", "--shared b a", "--at-most 2 b a"][turn % 3];
        let mut run = Run::start(&world, words, text);
        let numbers: Vec<u64> =
            run.line().split(' ').map(|number| number.parse().unwrap()).collect();
        assert_eq!(run.end(), 0);
        assert_eq!(numbers[0], numbers[2], "the number of the first name");
        assert!(numbers[1] > highest[0] && numbers[2] > highest[1], "{numbers:?}, {highest:?}");
        highest = [numbers[1], numbers[2]];
        // A claim that is killed took a number too, and the counter may be lost.
        let gate = world.gate();
        let mut holder = Run::holder(&world, "a b", &gate);
        let waiter = Run::waiter(&world, "a b", "waiter");
        holder.kill();
        gate.open();
        assert_eq!(waiter.end(), 0);
        if turn == 3 {
            std::fs::remove_dir_all(world.mutexes().join("a")).unwrap();
        }
    }
}
