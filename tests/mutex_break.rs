//! Promise: no hold is broken by itself; an operator ends a holder by naming its ticket, and its whole
//! process tree is gone before the next one gets the mutex.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use baton::script::OutcomeKind;
use support::{World, finish, spawn};

/// Starts a command of which the first line on its standard output is waited for.
fn start(world: &World, words: &[&str]) -> (Child, String) {
    let mut child = spawn(world.baton().args(words).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim_end().to_owned())
}

fn status(world: &World, name: &str) -> serde_json::Value {
    let (_, json, _) = finish(world.baton().args(["mutex", "status", name, "--json"]));
    serde_json::from_str(&json).unwrap()
}

/// The ticket of the first holder.
fn holder(world: &World, name: &str) -> String {
    status(world, name)["holders"][0]["ticket"].to_string()
}

fn break_hold(world: &World, name: &str, ticket: &str) -> (i32, String, String) {
    let words =
        ["mutex", "break", name, "--holder", ticket, "--reason", "it hangs", "--grace", "200ms"];
    finish(world.baton().args(words))
}

fn lives(pid: &str) -> bool {
    baton::process::Process::read(pid.parse().unwrap()).is_some_and(|found| !found.is_zombie())
}

#[test]
fn rule_10_the_whole_tree_is_gone_before_the_next_one_gets_the_mutex() {
    // It ignores the question, and has a child in another session.
    whole_tree_is_gone("trap '' TERM; setsid sleep 600 & echo $$ $!; while :; do sleep 600; done");
    // It ends at once: its wrapper would give back while the child, which ignores it, lives on.
    whole_tree_is_gone("(trap '' TERM; exec sleep 600) & echo $$ $!; wait");
}

fn whole_tree_is_gone(text: &str) {
    let world = World::new();
    let (mut wrapper, pids) = start(&world, &["mutex", "run", "log", "--", "bash", "-c", text]);
    let pids: Vec<&str> = pids.split(' ').collect();
    // One that only waits to be reaped is gone.
    let look = |pid| format!("grep -qs 'State:.[^Z]' /proc/{pid}/status || echo gone");
    let alive = pids.iter().map(look);
    let alive = alive.collect::<Vec<_>>().join("; ");
    let words = ["mutex", "run", "log", "--", "sh", "-c", &alive];
    let mut next = spawn(world.baton().args(words).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut told = String::new();
    BufReader::new(next.stderr.take().unwrap()).read_line(&mut told).unwrap();
    assert!(told.contains("position 1"), "{told}");

    let ticket = holder(&world, "log");
    let (code, _, told) = break_hold(&world, "log", &ticket);
    assert!(code == 0 && told.contains("baton: broken: pid"), "{told}");
    let output = next.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "gone\ngone\n");
    assert!(!pids.iter().any(|pid| lives(pid)));
    wrapper.wait().unwrap();

    // The record says who, what and why.
    let last = &status(&world, "log")["last_break"];
    assert_eq!((last["ticket"].to_string(), &last["reason"]), (ticket.clone(), &"it hangs".into()));
    assert!(last["holder"]["command"].as_str().unwrap().starts_with("bash -c"), "{last}");
    // It was that ticket's, not the mutex's.
    let (code, _, told) = break_hold(&world, "log", &ticket);
    assert!(code == 1 && told.contains("no ticket does"), "{told}");
}

#[test]
fn rule_10_it_works_only_on_the_ticket_that_holds() {
    let world = World::new();
    let gate = world.gate();
    let text = format!("echo on; {}", gate.wait());
    let (mut first, _) = start(&world, &["mutex", "run", "log", "--", "sh", "-c", &text]);
    let mut waiter =
        spawn(world.baton().args(["mutex", "run", "log", "--", "true"]).stderr(Stdio::piped()));
    BufReader::new(waiter.stderr.take().unwrap()).read_line(&mut String::new()).unwrap();
    let waiting = status(&world, "log")["waiters"][0]["ticket"].to_string();
    let holding = holder(&world, "log");
    for other in [waiting.as_str(), "17"] {
        let (code, _, told) = break_hold(&world, "log", other);
        assert_eq!(code, 1, "{told}");
        assert!(told.contains(&format!("{holding} does")), "{told}");
    }
    assert!(status(&world, "log").get("last_break").is_none());
    let nameless = ["mutex", "break", "log", "--holder", &holding, "--reason", " "];
    assert_eq!(finish(world.baton().args(nameless)).0, 2);
    gate.open();
    assert!(first.wait().unwrap().success() && waiter.wait().unwrap().success());
}

/// Who waits behind it looks at its ticket: it is no part of the hold, also when it gets the mutex at the
/// moment in which the tree ends.
#[test]
fn rule_10_who_waits_behind_it_is_left_alone() {
    for mode in [&["--shared"][..], &[]] {
        let world = World::new();
        let (mut holder_of_log, _) =
            start(&world, &["mutex", "run", "log", "--", "sh", "-c", "echo on; exec sleep 600"]);
        let gate = world.gate();
        let text = format!("echo on; {}", gate.wait());
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let words = [&["mutex", "run"], mode, &["log", "--", "sh", "-c", &text]].concat();
                let mut child = spawn(world.baton().args(words).stderr(Stdio::piped()));
                let told = child.stderr.as_mut().unwrap();
                BufReader::new(told).read_line(&mut String::new()).unwrap();
                child
            })
            .collect();
        let (code, _, told) = break_hold(&world, "log", &holder(&world, "log"));
        assert_eq!(code, 0, "{told}");
        holder_of_log.wait().unwrap();
        for _ in &waiters {
            gate.open();
        }
        for mut waiter in waiters {
            let status = waiter.wait().unwrap();
            assert!(status.success(), "{mode:?}: {status}");
        }
    }
}

#[test]
fn rule_10_what_closed_all_descriptors_and_outlived_its_wrapper_is_ended_too() {
    let world = World::new();
    let text = "import os; os.closerange(3, 4096)
os.execvp('sh', ['sh', '-c', 'trap \"\" TERM; echo $$; exec sleep 600'])";
    let (mut wrapper, pid) = start(&world, &["mutex", "run", "log", "--", "python3", "-c", text]);
    support::signal(&wrapper, rustix::process::Signal::KILL);
    wrapper.wait().unwrap();
    assert!(lives(&pid));
    let (code, _, told) = break_hold(&world, "log", &holder(&world, "log"));
    assert_eq!(code, 0, "{told}");
    assert!(!lives(&pid));
    assert_eq!(finish(world.baton().args(["mutex", "run", "--no-wait", "log", "--", "true"])).0, 0);
}

#[test]
fn rule_10_what_outlived_a_killed_wrapper_is_ended_too() {
    let world = World::new();
    let text = "echo $$; exec sleep 600";
    let (wrapper, pid) = start(&world, &["mutex", "run", "log", "--", "sh", "-c", text]);
    support::signal(&wrapper, rustix::process::Signal::KILL);
    let mut wrapper = wrapper;
    wrapper.wait().unwrap();
    assert!(lives(&pid));
    let (_, table, _) = finish(world.baton().args(["mutex", "status", "log"]));
    assert!(table.contains("that process is gone; what it started has it"), "{table}");
    let (code, _, told) = break_hold(&world, "log", &holder(&world, "log"));
    assert_eq!(code, 0, "{told}");
    assert!(!lives(&pid));
    assert_eq!(finish(world.baton().args(["mutex", "run", "-n", "log", "--", "true"])).0, 0);
}

#[test]
fn rule_10_who_is_part_of_the_holder_breaks_nothing() {
    let world = World::new();
    let text = format!("{} mutex break log --holder $BATON_MUTEX_FENCE --reason x", support::BATON);
    let words = ["mutex", "run", "log", "--", "sh", "-c", &text];
    let (code, _, told) = finish(world.baton().args(words));
    assert!(code == 1 && told.contains("is part of what holds `log`"), "{told}");
}

#[test]
fn rule_10_a_script_that_has_a_token_is_ended() {
    let world = World::new();
    let text = format!("{} mutex acquire log; exec sleep 600", support::BATON);
    let mut command = world.baton();
    let variables: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command = std::process::Command::new("sh");
    command.args(["-c", &text]).envs(variables).stdout(Stdio::piped());
    let mut script = spawn(&mut command);
    let mut token = String::new();
    BufReader::new(script.stdout.take().unwrap()).read_line(&mut token).unwrap();
    let (code, _, told) = break_hold(&world, "log", token.trim());
    assert_eq!(code, 0, "{told}");
    assert_eq!(script.wait().unwrap().code(), None);
    assert_eq!(finish(world.baton().args(["mutex", "run", "-n", "log", "--", "true"])).0, 0);
}

#[tokio::test]
async fn rule_10_a_script_of_an_agent_is_cancelled_by_its_supervisor() {
    let world = World::new();
    let agent = world.agent().await;
    let script = agent.script("sleep 600").start().await;
    script.is_running().await;
    let words = ["mutex", "break", "machine", "--holder", &holder(&world, "machine")];
    let (code, _, told) =
        finish(world.baton().args(words).args(["--reason", "wrong machine", "--grace", "30s"]));
    assert_eq!(code, 0, "{told}");
    let outcome = script.outcome().await;
    assert!(
        matches!(outcome.kind, OutcomeKind::Cancelled { while_queued: false, .. }),
        "{outcome:?}"
    );
}

#[test]
fn a_hold_that_lasts_longer_than_its_warning_is_reported() {
    let world = World::new();
    let gate = world.gate();
    let text = gate.wait();
    let words =
        ["mutex", "run", "--warn-after=20ms", "--reason=backup", "log", "--", "sh", "-c", &text];
    let mut holder = spawn(world.baton().args(words).stderr(Stdio::piped()));
    let mut told = BufReader::new(holder.stderr.take().unwrap()).lines().map(Result::unwrap);
    let expected =
        |held| format!("baton: `log` held for {held} now by pid {}: backup", holder.id());
    assert_eq!(told.next().unwrap(), expected("20ms"));
    assert_eq!(told.next().unwrap(), expected("40ms"));
    gate.open();
    assert!(holder.wait().unwrap().success());
}
