//! Promise: a mutex that is held by a token is free when it is released or its script ends, however
//! that ends.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::talker::Talker;
use support::{Gate, World, finish, signal, spawn};

/// A script of sh; `acquire` and `release` are baton's.
fn script(world: &World, text: &str) -> Command {
    let mut command = Command::new("sh");
    let functions = "acquire() { \"$BATON\" mutex acquire --for-pid $$ \"$@\"; }
        release() { \"$BATON\" mutex release \"$@\"; }";
    command.args(["-c", &format!("{functions}\n{text}")]);
    command.env("BATON", support::BATON).env("BATON_MUTEX_DIR", world.mutexes());
    command.stdin(Stdio::null());
    command
}

fn mutex(world: &World, words: &[&str]) -> Command {
    let mut command = world.baton();
    command.arg("mutex").args(words);
    command
}

/// A script that holds `log` by a token, says `on`, and waits at the gate.
fn holder(world: &World, gate: &Gate) -> Talker {
    let text = format!("token=$(acquire log); echo on; {}", gate.wait());
    let mut holder = Talker::start(&mut script(world, &text));
    assert_eq!(holder.line(), "on");
    holder
}

/// A command that waits for `log` and is told so: at this place.
fn waiter(world: &World, words: &[&str], position: usize) -> Talker {
    let limit = format!("{}s", support::DEADLINE.as_secs());
    let words = [&[words[0], "--timeout", &limit], &words[1..]].concat();
    let mut waiter = Talker::start(&mut mutex(world, &words));
    waiter.is_told(&format!("position {position}"));
    waiter
}

fn is_free(world: &World) -> bool {
    finish(&mut mutex(world, &["run", "--no-wait", "log", "--", "true"])).0 == 0
}

/// Those who hold or wait, in order.
fn line(world: &World) -> Vec<Value> {
    let (_, json, _) = finish(&mut mutex(world, &["status", "--json", "log"]));
    let status: Value = serde_json::from_str(&json).unwrap();
    let both = ["holders", "waiters"].iter().flat_map(|key| status[key].as_array().unwrap());
    both.cloned().collect()
}

fn own_pid() -> String {
    std::process::id().to_string()
}

#[test]
fn a_token_holds_the_mutex_until_it_is_released_and_once_only() {
    let world = World::new();
    let gates = [world.gate(), world.gate()];
    let text = format!(
        "token=$(acquire log --reason 'a test'); echo $token; {}
         release log $token; echo $?; {}; release log $token; echo $?",
        gates[0].wait(),
        gates[1].wait()
    );
    let mut holder = Talker::start(&mut script(&world, &text));
    let token: u64 = holder.line().parse().unwrap();
    let seen = line(&world);
    assert_eq!((seen.len(), seen[0]["ticket"].as_u64()), (1, Some(token)), "{seen:?}");
    let command = seen[0]["command"].as_str().unwrap();
    assert!(command.starts_with(&format!("for pid {}: sh -c", holder.child.id())), "{command}");
    let words = ["run", "--no-wait", "log", "--", "true"];
    let (code, _, told) = finish(&mut mutex(&world, &words));
    assert!(code == 75 && told.contains("a test"), "{code} {told}");
    gates[0].open();
    assert_eq!(holder.line(), "0");
    assert!(is_free(&world));
    let words = ["run", "log", "--", "sh", "-c", "echo $BATON_MUTEX_FENCE"];
    let (_, fence, _) = finish(&mut mutex(&world, &words));
    assert!(fence.trim().parse::<u64>().unwrap() > token, "{fence}");
    gates[1].open();
    assert_eq!(holder.line(), "1");
    let (code, _, told) = holder.end();
    assert!(code == 0 && told.contains("released already, or its script has ended"), "{told}");
}

#[test]
fn what_is_not_held_by_a_token_is_not_released_and_the_reason_said() {
    let world = World::new();
    let refused = |token: &str, why: &str| {
        let (code, _, told) = finish(&mut mutex(&world, &["release", "log", token]));
        assert!(code == 1 && told.contains(why), "{token}: {code} {told}");
    };
    refused("17", "no ticket 17 in the line of `log`");
    refused("", "is no token");
    let gate = world.gate();
    let text = format!("echo $BATON_MUTEX_FENCE; {}", gate.wait());
    let words = ["run", "log", "--", "sh", "-c", &text];
    let mut run = Talker::start(&mut mutex(&world, &words));
    let ticket = run.line();
    refused(&ticket, "was not acquired by a token");
    let waiting = waiter(&world, &["acquire", "log", "--for-pid", &own_pid()], 1);
    let ticket = line(&world)[1]["ticket"].to_string();
    refused(&ticket, "still waits");
    gate.open();
    assert_eq!(run.end().0, 0);
    let (code, token, _) = waiting.end();
    assert_eq!((code, token.trim_end()), (0, ticket.as_str()));
    assert_eq!(finish(&mut mutex(&world, &["release", "log", &ticket])).0, 0);
}

#[test]
fn the_end_of_the_script_frees_the_mutex_and_so_does_its_kill() {
    let world = World::new();
    let gate = world.gate();
    let ends = holder(&world, &gate);
    let next = waiter(&world, &["run", "log", "--", "true"], 1);
    gate.open();
    assert_eq!((ends.end().0, next.end().0), (0, 0));
    let mut killed = holder(&world, &gate);
    let next = waiter(&world, &["run", "log", "--", "true"], 1);
    killed.kill();
    assert_eq!(next.end().0, 0);
}

/// Without --for-pid it is the caller, also inside a plain command substitution.
#[test]
fn by_default_it_is_held_for_the_process_that_calls() {
    let world = World::new();
    let gate = world.gate();
    let text = format!("token=$(\"$BATON\" mutex acquire log); echo on; {}", gate.wait());
    let mut caller = Talker::start(&mut script(&world, &text));
    assert_eq!(caller.line(), "on");
    let next = waiter(&world, &["run", "log", "--", "true"], 1);
    gate.open();
    assert_eq!((caller.end().0, next.end().0), (0, 0));
}

#[test]
fn an_orphan_has_nobody_to_hold_it_for() {
    let world = World::new();
    let gate = world.gate();
    let text = format!("({}; exec \"$BATON\" mutex acquire log) &", gate.wait());
    // In a session of its own: who adopts the orphan is in another one.
    let plain = script(&world, &text);
    let mut command = Command::new("setsid");
    command.arg("-w").arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut parent = Talker::start(&mut command);
    parent.child.wait().unwrap();
    gate.open();
    parent.is_told("the process that called this has ended");
    parent.is_told("hint: name the process to hold it for: --for-pid $$");
    assert!(is_free(&world));
}

#[test]
fn it_is_held_for_the_process_that_is_named_and_there_must_be_one() {
    let world = World::new();
    let gate = world.gate();
    let mut other = Talker::start(&mut script(&world, &gate.wait()));
    let pid = other.child.id().to_string();
    assert_eq!(finish(&mut mutex(&world, &["acquire", "log", "--for-pid", &pid])).0, 0);
    let next = waiter(&world, &["run", "log", "--", "true"], 1);
    other.kill();
    assert_eq!(next.end().0, 0);
    let (code, out, told) = finish(&mut mutex(&world, &["acquire", "log", "--for-pid", &pid]));
    assert!(code == 1 && out.is_empty() && told.contains(&format!("process {pid}: ")), "{told}");
    for strange in ["0", "4294967295"] {
        assert_eq!(finish(&mut mutex(&world, &["acquire", "log", "--for-pid", strange])).0, 1);
    }
    assert!(is_free(&world));
}

/// What the caller had open is not kept open: not a pipe that somebody reads to its end, not a lock.
#[test]
fn a_command_substitution_returns_while_the_mutex_is_held() {
    let world = World::new();
    let gate = world.gate();
    let text = format!(
        "token=$({{ acquire log 2>&1; }} 3>&1 4>&1 5> \"$BATON_MUTEX_DIR.open\"); echo on; {}",
        gate.wait()
    );
    let mut holder = Talker::start(&mut script(&world, &text));
    assert_eq!(holder.line(), "on");
    assert!(!is_free(&world));
    let keeper = line(&world)[0]["pid"].to_string();
    let open = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
    let open = open.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap());
    assert!(!open.into_iter().any(|path| path.display().to_string().contains("mutex.open")));
    gate.open();
    assert_eq!(holder.end().0, 0);
}

#[test]
fn who_is_killed_while_it_waits_leaves_nobody_in_the_line() {
    let world = World::new();
    for how in [Signal::KILL, Signal::INT, Signal::TERM] {
        let gate = world.gate();
        let holder = holder(&world, &gate);
        let acquire = waiter(&world, &["acquire", "log", "--for-pid", &own_pid()], 1);
        let mut next = waiter(&world, &["run", "log", "--", "true"], 2);
        signal(&acquire.child, how);
        next.is_told("position 1");
        let (code, out, _) = acquire.end();
        assert_eq!((code, out.as_str()), (-1, ""));
        gate.open();
        assert_eq!((holder.end().0, next.end().0), (0, 0));
    }
}

#[test]
fn when_the_script_ends_while_it_waits_nobody_is_left_in_the_line() {
    let world = World::new();
    let gates = [world.gate(), world.gate()];
    let holder = holder(&world, &gates[0]);
    let mut tied = Talker::start(&mut script(&world, &gates[1].wait()));
    let pid = tied.child.id().to_string();
    let acquire = waiter(&world, &["acquire", "log", "--for-pid", &pid], 1);
    let mut next = waiter(&world, &["run", "log", "--", "true"], 2);
    tied.kill();
    next.is_told("position 1");
    let (code, out, told) = acquire.end();
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(told.contains(&format!("process {pid} has ended")), "{told}");
    gates[0].open();
    assert_eq!((holder.end().0, next.end().0), (0, 0));
}

#[test]
fn a_command_that_would_wait_for_its_own_script_s_token_is_refused() {
    let world = World::new();
    // The limit ends the test where nothing is refused.
    let text =
        format!("{0} mutex acquire log; {0} mutex run --timeout 30s log -- true", support::BATON);
    let mut command = Command::new("sh");
    command.args(["-c", &text]).env("BATON_MUTEX_DIR", world.mutexes());
    let (code, _, told) = finish(&mut command);
    assert!(code == 75 && told.contains("it would wait for itself"), "{told}");
}

#[test]
fn two_scripts_that_hold_one_token_each_are_not_left_waiting_for_each_other() {
    let world = World::new();
    let gates = [world.gate(), world.gate()];
    let start = |own: &str, other: &str, gate: &Gate| {
        let text = format!(
            "{0} mutex acquire {own}; {1}; {0} mutex run --timeout 30s {other} -- echo got it",
            support::BATON,
            gate.wait()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &text]).env("BATON_MUTEX_DIR", world.mutexes());
        Talker::start(&mut command)
    };
    let (mut first, mut second) = (start("a", "b", &gates[0]), start("b", "a", &gates[1]));
    first.line();
    second.line();
    gates[0].open();
    first.is_told("position 1");
    gates[1].open();
    let (code, out, told) = second.end();
    assert_eq!((code, out.as_str()), (75, ""), "{told}");
    assert!(told.contains("waits for `a`") && told.contains("waits for `b`"), "{told}");
    let (code, out, _) = first.end();
    assert_eq!((code, out.as_str()), (0, "got it\n"));
}

/// A subshell in between ends at once: the mutex is not its own.
#[test]
fn a_substitution_of_any_form_holds_it_for_the_script() {
    let world = World::new();
    let acquire = format!("{} mutex acquire log", support::BATON);
    for form in [
        format!("{acquire} 2>/dev/null"),
        format!(" ({acquire}) "),
        format!(" {{ {acquire}; }} 2>/dev/null"),
        format!("{acquire} || echo none"),
    ] {
        let text = format!("t=$({form}); {0} mutex release log \"$t\"", support::BATON);
        let mut command = Command::new("bash");
        command.args(["-c", &text]).env("BATON_MUTEX_DIR", world.mutexes());
        let (code, _, told) = finish(&mut command);
        assert_eq!(code, 0, "{form}: {told}");
    }
}

/// The leader of a session may be outside of a container: its number is no process's then.
#[test]
fn in_a_container_whose_session_began_outside_it_is_held_for_the_process_that_calls() {
    let container = ["--pid", "--fork", "--mount-proc", "--"];
    if !finish(Command::new("unshare").args(container).arg("true")).2.is_empty() {
        eprintln!("skipped: no namespace of processes may be made here");
        return;
    }
    let world = World::new();
    let script = "t=$(\"$BATON\" mutex acquire log) && \"$BATON\" mutex release log \"$t\"";
    let mut command = Command::new("unshare");
    // The first process of a container adopts orphans: it is no caller.
    command.args(container).args(["sh", "-c", "sh -c \"$0\"; exit $?", script]);
    command.env("BATON", support::BATON).env("BATON_MUTEX_DIR", world.mutexes());
    let (code, _, told) = finish(&mut command);
    assert_eq!(code, 0, "{told}");
}

#[test]
fn a_killed_keeper_frees_the_mutex_and_its_token_is_worth_nothing() {
    let world = World::new();
    let gate = world.gate();
    let mut script = spawn(Command::new("sh").args(["-c", &gate.wait()]));
    let words = ["acquire", "log", "--for-pid", &script.id().to_string()];
    let (code, token, _) = finish(&mut mutex(&world, &words));
    assert_eq!(code, 0);
    let next = waiter(&world, &["run", "log", "--", "true"], 1);
    let keeper = line(&world)[0]["pid"].as_u64().unwrap();
    support::kill(u32::try_from(keeper).unwrap());
    assert_eq!(next.end().0, 0);
    assert_eq!(finish(&mut mutex(&world, &["release", "log", token.trim_end()])).0, 1);
    gate.open();
    assert!(script.wait().unwrap().success());
}

#[test]
fn a_token_that_can_t_be_printed_holds_nothing() {
    let world = World::new();
    let words = ["acquire", "log", "--for-pid", &own_pid()];
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let code = spawn(mutex(&world, &words).stdout(writer)).wait().unwrap().code();
    assert_eq!(code, Some(141));
    assert!(is_free(&world));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let code = spawn(mutex(&world, &words).stdout(full).stderr(Stdio::null())).wait();
    assert_eq!(code.unwrap().code(), Some(70));
    assert!(is_free(&world));
}

#[test]
fn tokens_and_commands_stand_in_one_line_in_order_of_arrival() {
    let world = World::new();
    let gate = world.gate();
    let first = holder(&world, &gate);
    let log = world.path("order");
    let note = |who: &str| format!("echo {who} >> {}", log.display());
    let mut waiters = Vec::new();
    for (position, who) in ["run", "token", "run", "token", "token", "run"].iter().enumerate() {
        let who = format!("{who}{position}");
        let mut command = if who.starts_with("run") {
            mutex(&world, &["run", "log", "--", "sh", "-c", &note(&who)])
        } else {
            let text = format!("token=$(acquire log); {}; release log $token", note(&who));
            script(&world, &text)
        };
        let mut next = Talker::start(&mut command);
        next.is_told(&format!("position {}", position + 1));
        waiters.push(next);
    }
    gate.open();
    assert_eq!(first.end().0, 0);
    for next in waiters {
        assert_eq!(next.end().0, 0);
    }
    assert_eq!(support::lines(&log), ["run0", "token1", "run2", "token3", "token4", "run5"]);
}

#[test]
fn shared_tokens_hold_together_and_an_exclusive_one_waits_for_both() {
    let world = World::new();
    let pid = own_pid();
    let token = |words: &[&str]| {
        let words = [&["acquire", "log", "--no-wait", "--for-pid", &pid], words].concat();
        let (code, token, _) = finish(&mut mutex(&world, &words));
        (code == 0).then(|| token.trim_end().to_owned())
    };
    let two = [token(&["--shared"]).unwrap(), token(&["--at-most", "2"]).unwrap()];
    assert_eq!((token(&["-s"]), token(&[])), (None, None));
    for shared in two {
        assert!(!is_free(&world));
        assert_eq!(finish(&mut mutex(&world, &["release", "log", &shared])).0, 0);
    }
    assert!(is_free(&world));
}

#[test]
fn what_is_not_obtained_in_time_is_told_by_the_exit_status() {
    let world = World::new();
    let gate = world.gate();
    let holder = holder(&world, &gate);
    let pid = own_pid();
    for (words, expected, lines) in [
        (vec!["--timeout", "50ms"], 75, 2),
        (vec!["--timeout", "50ms", "-q"], 75, 1),
        (vec!["-n"], 75, 1),
        (vec!["-n", "-E", "9"], 9, 1),
    ] {
        let words = [vec!["acquire", "log", "--for-pid", &pid], words].concat();
        let (code, out, told) = finish(&mut mutex(&world, &words));
        assert_eq!((code, out.as_str()), (expected, ""), "{words:?}");
        assert_eq!(told.lines().count(), lines, "{told}");
        assert!(told.lines().last().unwrap().starts_with("error: not obtained: "), "{told}");
        // It has left the line when it says so.
        assert_eq!(line(&world).len(), 1);
    }
    gate.open();
    assert_eq!(holder.end().0, 0);
}

#[test]
fn a_token_that_would_wait_for_its_own_script_is_refused() {
    let world = World::new();
    let text = "\"$0\" mutex acquire log";
    let words = ["run", "log", "--", "sh", "-c", text, support::BATON];
    let (code, out, told) = finish(&mut mutex(&world, &words));
    assert_eq!((code, out.as_str()), (75, ""), "{told}");
    assert!(told.starts_with("error: it would wait for itself"), "{told}");
}

/// Who asks a whole tree to stop asks the keeper too, and the script still cleans up under the mutex.
#[test]
fn while_a_cancelled_script_cleans_up_the_mutex_is_held() {
    let world = World::new();
    let text = "trap 'baton mutex run --no-wait log -- true; echo cleaned up $?; exit 0' TERM
        token=$(baton mutex acquire log); echo on; while :; do sleep 0.1; done";
    let mut run = Talker::start(world.baton().args(["run", "-c", text]));
    assert_eq!(run.line(), "on");
    signal(&run.child, Signal::INT);
    assert_eq!(run.line(), "cleaned up 75");
    let (code, _, told) = run.end();
    assert_eq!(code, 130, "{told}");
    assert!(is_free(&world));
}
