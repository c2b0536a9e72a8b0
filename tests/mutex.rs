//! Promise: named mutexes for any process: who would wait for itself is told so at once.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use support::talker::Talker;
use support::{World, finish, spawn};

/// `baton mutex run NAME` with a shell text.
fn run(world: &World, name: &str, text: &str) -> Talker {
    Talker::start(world.baton().args(["mutex", "run", name, "--", "sh", "-c", text]))
}

#[test]
fn of_two_that_would_wait_for_each_other_the_second_is_refused_and_the_cycle_named() {
    let world = World::new();
    let gates = [world.gate(), world.gate()];
    let baton = support::BATON;
    let text = |gate: &support::Gate, other: &str| {
        format!("echo on; {}; {baton} mutex run {other} -- echo got it", gate.wait())
    };
    let mut first = run(&world, "a", &text(&gates[0], "b"));
    let mut second = run(&world, "b", &text(&gates[1], "a"));
    assert_eq!((first.line(), second.line()), ("on".to_owned(), "on".to_owned()));
    gates[0].open();
    assert!(first.told().contains("waiting, position 1: `b`"));
    gates[1].open();
    let (code, out, told) = second.end();
    assert_eq!((code, out.as_str()), (75, ""));
    assert!(told.starts_with("error: it would wait for itself"), "{told}");
    assert!(told.contains("waits for `a`") && told.contains("waits for `b`"), "{told}");
    assert!(told.contains("hint: name all mutexes at once"), "{told}");
    // The first one is not harmed.
    let (code, out, _) = first.end();
    assert_eq!((code, out.as_str()), (0, "got it\n"));
}

#[test]
fn a_claim_under_its_own_mutex_is_refused_also_inside_a_script() {
    let world = World::new();
    let baton = support::BATON;
    let twice = ["mutex", "run", "a", "--", baton, "mutex", "run", "a", "--", "true"];
    let (code, _, told) = finish(world.baton().args(twice));
    assert_eq!(code, 75, "{told}");
    for modes in
        [["--at-most=1", "--at-most=1"], ["--at-most=1", "--shared"], ["-s", "--at-most=1"]]
    {
        let nested = ["mutex", "run", modes[0], "a", "--", baton];
        let nested = nested.into_iter().chain(["mutex", "run", modes[1], "a", "--", "true"]);
        assert_eq!(finish(world.baton().args(nested)).0, 75, "{modes:?}");
    }
    let shared = ["mutex", "run", "-s", "a", "--", baton, "mutex", "run", "-s", "a", "--", "true"];
    assert_eq!(finish(world.baton().args(shared)).0, 0);
    // Inside a script only the folder of the mutexes is known: the others are the test's too.
    let folder = world.path("inner").display().to_string();
    let run = |inner: &str| {
        let folders = format!("--config-dir {folder} --state-dir {folder} --runtime-dir {folder}");
        finish(world.baton().args(["run", "-c", &format!("baton {folders} {inner}")]))
    };
    for inner in ["mutex run machine -- true", "run -c true", "run --bypass-mutex -c true"] {
        let (code, _, told) = run(inner);
        assert_eq!(code, 75, "{inner}: {told}");
        assert!(told.contains("wait for itself"), "{inner}: {told}");
    }
    // What does not wait for the script itself is not refused.
    for inner in ["mutex run log -- true", "run --observe -c true", "run --mutex other -c true"] {
        let (code, _, told) = run(inner);
        assert_eq!(code, 0, "{inner}: {told}");
    }
}

#[test]
fn a_shared_claim_under_a_shared_one_is_refused_when_an_exclusive_one_waits_in_between() {
    let world = World::new();
    let gate = world.gate();
    let inner = format!("{} mutex run --shared a -- echo never", support::BATON);
    let text = format!("echo on; {}; {inner}", gate.wait());
    let nested = ["mutex", "run", "--shared", "a", "--", "sh", "-c", &text];
    let mut nested = Talker::start(world.baton().args(nested));
    assert_eq!(nested.line(), "on");
    let mut between = run(&world, "a", "echo got it");
    between.is_told("waiting, position 1");
    gate.open();
    let (code, out, told) = nested.end();
    assert_eq!((code, out.as_str()), (75, ""), "{told}");
    assert!(told.contains("wait for itself") && told.contains("held already"), "{told}");
    assert_eq!(between.end().1, "got it\n");
}

#[test]
fn the_last_places_of_all_are_not_waited_for_by_who_has_them() {
    let world = World::new();
    let nested =
        format!("{0} mutex run --at-most 2 a -- {0} mutex run --at-most 2 a", support::BATON);
    let third = format!("{nested} -- {} mutex run --shared a -- true", support::BATON);
    let (code, _, told) =
        finish(world.baton().args(["mutex", "run", "b", "--"]).args(third.split(' ')));
    assert_eq!(code, 75, "{told}");
    assert!(told.contains("wait for itself"), "{told}");
    let second = format!("{nested} -- true");
    assert_eq!(
        finish(world.baton().args(["mutex", "run", "b", "--"]).args(second.split(' '))).0,
        0
    );
}

#[test]
fn no_home_is_needed_where_the_folder_is_named() {
    let world = World::new();
    let mut command = std::process::Command::new(support::BATON);
    command.env_clear().env("BATON_MUTEX_DIR", world.mutexes());
    assert_eq!(finish(command.args(["mutex", "run", "log", "--", "/bin/sh", "-c", ":"])).0, 0);
}

/// What an ended wrapper left in the environment of a straggler means nothing.
#[test]
fn a_ticket_that_is_over_forbids_nothing() {
    let world = World::new();
    let mut command = world.baton();
    command.args(["mutex", "run", "a", "--", "true"]).env("BATON_MUTEX_HELD", "a:1,b:2,nonsense");
    assert_eq!(finish(&mut command).0, 0);
    let mut command = world.baton();
    command.args(["run", "-c", "true"]).env("BATON_MUTEX_HELD", "machine:1");
    assert_eq!(finish(&mut command).0, 0);
}

#[test]
fn who_waits_is_told_at_once_on_each_change_and_reminded_unless_quiet() {
    let world = World::new();
    let gates = [world.gate(), world.gate()];
    let text = |gate: &support::Gate| format!("echo on; {}", gate.wait());
    let mut first = run(&world, "log", &text(&gates[0]));
    first.line();
    let mut second = run(&world, "log", &text(&gates[1]));
    assert!(second.told().contains("position 1"));
    let words = ["mutex", "run", "--remind", "50ms", "log", "--", "true"];
    let mut third = spawn(world.baton().args(words).stderr(Stdio::piped()));
    let mut told = BufReader::new(third.stderr.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        line
    };
    let at_once = line();
    assert!(at_once.contains("position 2") && at_once.contains("1 waits before"), "{at_once}");
    assert_eq!(line(), at_once, "a reminder");
    gates[0].open();
    assert_eq!(second.line(), "on");
    let change = std::iter::repeat_with(&mut line).find(|line| *line != at_once).unwrap();
    assert!(change.contains("position 1"), "{change}");
    gates[1].open();
    assert!(third.wait().unwrap().success());
    assert_eq!((first.end().0, second.end().0), (0, 0));

    let gate = world.gate();
    let mut holder = run(&world, "log", &text(&gate));
    holder.line();
    let quiet = ["mutex", "run", "-q", "--timeout", "50ms", "log", "--", "true"];
    let (code, _, told) = finish(world.baton().args(quiet));
    assert_eq!((code, told.lines().count()), (75, 1), "only the error: {told}");
    gate.open();
    assert_eq!(holder.end().0, 0);
}

/// The log-file example: many writers, no line lost, none torn.
#[test]
fn fifty_writers_lose_and_tear_no_line_of_a_shared_log_file() {
    const LINES: usize = 40;
    let world = World::new();
    let log = world.path("log");
    let path = log.display().to_string();
    let text = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo \"$0 $i {}\"; i=$((i+1)); done | {} mutex append log {path}",
        "x".repeat(200),
        support::BATON
    );
    let mut writers: Vec<_> = (0..50)
        .map(|number| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", &text, &number.to_string()]);
            spawn(command.env("BATON_MUTEX_DIR", world.mutexes()))
        })
        .collect();
    for writer in &mut writers {
        assert!(writer.wait().unwrap().success());
    }
    let mut next = [0; 50];
    for line in support::lines(&log) {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!((words.len(), words[2].len()), (3, 200), "torn: {line}");
        let (writer, number): (usize, usize) =
            (words[0].parse().unwrap(), words[1].parse().unwrap());
        assert_eq!(next[writer], number, "the order of writer {writer}");
        next[writer] += 1;
    }
    assert_eq!(next, [LINES; 50]);
}

#[test]
fn append_tells_its_waits_and_waits_for_no_pipe_s_reader() {
    let world = World::new();
    let gate = world.gate();
    let mut holder = run(&world, "log", &format!("echo on; {}", gate.wait()));
    holder.line();
    let file = world.path("file").display().to_string();
    let mut append = world.baton();
    append.args(["mutex", "append", "log", &file]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut append = spawn(&mut append);
    std::io::Write::write_all(&mut append.stdin.take().unwrap(), b"line\n").unwrap();
    let mut told = String::new();
    BufReader::new(append.stderr.take().unwrap()).read_line(&mut told).unwrap();
    assert!(told.contains("waiting, position 1: `log`"), "{told}");
    gate.open();
    assert!(append.wait().unwrap().success());
    assert_eq!(holder.end().0, 0);
    assert_eq!(support::lines(&world.path("file")), ["line"]);

    let pipe = world.path("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let text = format!("echo x | {} mutex append log {}", support::BATON, pipe.display());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &text]).env("BATON_MUTEX_DIR", world.mutexes());
    let (code, _, told) = finish(&mut command);
    assert!(code == 70 && told.contains("it is a pipe"), "{told}");
    drop(reader);
    let (code, _, told) = finish(&mut command);
    assert_eq!(code, 70, "without a reader too: {told}");
}

#[test]
fn once_is_once_for_callers_at_the_same_time_and_a_failed_run_lets_the_next_one_try() {
    let world = World::new();
    let log = world.path("log").display().to_string();
    let once = |words: &[&str]| {
        let mut command = world.baton();
        command.args(["mutex", "once"]).args(words);
        command
    };
    // The first run fails: one of the others tries again, and the rest finds it done.
    let text = format!("echo run >> {log}; test $(wc -l < {log}) -gt 1");
    let words = ["migrate/web", "--", "sh", "-c", &text];
    let mut callers: Vec<_> = (0..10).map(|_| spawn(once(&words).stderr(Stdio::null()))).collect();
    let succeeded = callers.iter_mut().map(|caller| caller.wait().unwrap().success());
    let failed = succeeded.filter(|success| !success).count();
    assert_eq!((failed, support::lines(world.path("log").as_path()).len()), (1, 2));

    let (code, _, told) = finish(&mut once(&words));
    assert!(code == 0 && told.starts_with("baton: done already, at "), "{told}");
    assert_eq!(finish(&mut once(&["--within", "1h", "migrate/web", "--", "false"])).0, 0);
    assert_eq!(finish(&mut once(&["--within", "1ns", "migrate/web", "--", "false"])).0, 1);
    assert_eq!(finish(&mut once(&["--reset", "migrate/web"])).0, 0);
    assert_eq!(finish(&mut once(&["migrate/web", "--", "sh", "-c", "exit 7"])).0, 7);
    assert_eq!(finish(&mut once(&["another", "--", "no-such-command"])).0, 127);
    assert_eq!(finish(&mut once(&["migrate/web"])).0, 2);
}
