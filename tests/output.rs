//! Promise: output comes as it was written, live, from any offset; what can't be kept is counted and the
//! reason told, and no script waits for the disk or for a reader.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use baton::client::Heard;
use baton::journal::EventScanner;
use baton::process::Process;
use baton::script::{DropCause, Fate, OutcomeKind, StragglerPolicy};
use baton::spec::Spec;
use baton::supervisor::job::Report;
use support::{World, exited, finish};

/// What stands last in a script's journal.
fn last_report(folder: &Path) -> Report {
    let mut scanner = EventScanner::open(&folder.join("output.journal"));
    let mut last = Vec::new();
    while let Some((_, payload)) = scanner.next_event().unwrap() {
        last = payload.to_vec();
    }
    serde_json::from_slice(&last).unwrap()
}

#[tokio::test]
async fn output_beyond_the_limit_of_the_request_is_counted_and_the_script_goes_on() {
    let world = World::new();
    let agent = world.agent().await;
    let text = "printf 0123456789; printf abc >&2; echo done > after";
    let script = agent.script(text).with(|spec| spec.max_output_bytes = Some(7)).start().await;
    let outcome = script.outcome().await;
    assert!(exited(&outcome, 0));
    assert_eq!(outcome.output_drop_cause, Some(DropCause::Limit));
    assert_eq!(outcome.output_dropped_bytes, 6);
    assert_eq!(script.is_done().await.output_bytes, 7);
    let folder = agent.folder.join("state/scripts").join(script.id.as_str());
    let Report::OutputDropped { cause, bytes, .. } = last_report(&folder) else {
        unreachable!("what is missing is told last");
    };
    assert_eq!((cause, bytes), (DropCause::Limit, 6));
    assert_eq!(std::fs::read_to_string(folder.join("work/after")).unwrap(), "done\n");
    // A person is told.
    let mut command = world.baton_at("alone");
    command.args(["run", "--max-output", "4", "-c", "printf 123456"]);
    let (code, out, told) = finish(&mut command);
    assert_eq!((code, out.as_str()), (0, "1234"));
    assert!(told.contains("2 bytes of output were not kept: its limit was reached"), "{told}");
}

/// A number of kB from `/proc/PID/status`.
fn memory(pid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_gibibyte_leaves_the_agent_s_memory_flat_and_a_reader_that_stalls_slows_nobody() {
    const GIB: u64 = 1 << 30;
    let world = World::new();
    let agent = world.agent().await;
    assert!(exited(&agent.script("echo warm").outcome().await, 0));
    let before = memory(agent.pid(), "VmRSS:");
    let script = agent.script("head -c 1073741824 /dev/zero").start().await;
    // It asks, and reads the first piece only.
    let mut stalled = script.client.watch(script.id.clone(), 0, true);
    while !matches!(stalled.next().await.unwrap().unwrap(), Heard::Output { .. }) {}
    assert!(exited(&script.outcome().await, 0));
    let (mut reader, mut length) = (script.client.watch(script.id.clone(), 0, false), 0);
    while let Some(heard) = reader.next().await.unwrap() {
        if let Heard::Output { data, .. } = heard {
            length += u64::try_from(data.len()).unwrap();
        }
    }
    assert_eq!(length, GIB);
    let growth = memory(agent.pid(), "VmHWM:") - before;
    assert!(growth <= 16 * 1024, "the agent grew by {growth} kB");
    drop(stalled);
}

/// Half of the lines: the machine may be busy.
#[tokio::test]
async fn a_line_is_with_the_client_within_ten_milliseconds() {
    let world = World::new();
    let agent = world.agent().await;
    let text = "for i in {1..40}; do echo $EPOCHREALTIME; sleep 0.02; done";
    let script = agent.script(text).start().await;
    let mut reader = script.client.watch(script.id.clone(), 0, true);
    let mut delays = Vec::new();
    while let Some(heard) = reader.next().await.unwrap() {
        if let Heard::Output { data, .. } = heard {
            let now = jiff::Timestamp::now().as_microsecond();
            let line = String::from_utf8(data.to_vec()).unwrap();
            let Some(last) = line.lines().last() else { continue };
            let written: i64 = last.replace(['.', ','], "").parse().unwrap();
            delays.push(now - written);
        }
    }
    delays.sort_unstable();
    assert!(delays.len() >= 20, "{delays:?}");
    assert!(delays[delays.len() / 2] <= 10_000, "microseconds: {delays:?}");
}

#[tokio::test]
async fn a_cut_or_damaged_log_is_a_shorter_one_and_says_so() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    // Two records: a reader sees the first whole.
    let text = "echo first; sleep 0.2; echo second";
    for (id, damage) in [("cut", "cut"), ("flipped", "flip")] {
        let script = agent.script(text).id(id).start().await;
        script.has_written(6).await;
        assert!(exited(&script.outcome().await, 0));
        let journal = agent.folder.join("state/scripts").join(id).join("output.journal");
        let bytes = std::fs::read(&journal).unwrap();
        let at = bytes.windows(6).position(|part| part == b"second").unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&journal).unwrap();
        if damage == "cut" {
            file.set_len(u64::try_from(at + 3).unwrap()).unwrap();
        } else {
            file.write_all_at(b"S", u64::try_from(at).unwrap()).unwrap();
        }
        let (code, out, told) = finish(world.baton_at("a").args(["logs", id]));
        assert_eq!((code, out.as_str()), (0, "first\n"), "{told}");
        assert!(told.contains("7 bytes of output from byte 6 on can't be read"), "{told}");
        let (_, json, _) = finish(world.baton_at("a").args(["logs", "--json", id]));
        assert!(json.contains(r#"{"bytes":7,"event":"output_missing","offset":6}"#), "{json}");
    }
}

#[tokio::test]
async fn what_is_left_running_goes_on_by_request_and_holds_nothing() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let text = format!(
        "({}; touch {}) > /dev/null 2>&1 & echo $!",
        gate.wait(),
        world.path("late").display()
    );
    let keep = |spec: &mut Spec| spec.stragglers = StragglerPolicy::Keep;
    let script = agent.script(text).with(keep).start().await;
    let outcome = script.outcome().await;
    assert!(exited(&outcome, 0));
    let [straggler] = outcome.stragglers.as_slice() else { panic!("{outcome:?}") };
    assert_eq!(straggler.fate, Fate::Kept);
    let process = Process::read(straggler.pid).unwrap().watch().unwrap();
    assert!(support::run::lives(&process));
    // The machine is free while it lives.
    assert!(exited(&agent.script("true").outcome().await, 0));
    gate.open();
    support::run::await_end(&process);
    assert!(world.path("late").exists());
}

#[tokio::test]
async fn a_script_that_is_to_stop_leaves_nothing_whatever_it_asked_for() {
    let world = World::new();
    let agent = world.agent().await;
    let text = "sleep 600 > /dev/null 2>&1 & echo on; trap 'exit 0' TERM; wait";
    let script = agent.script(text).with(|spec| {
        spec.stragglers = StragglerPolicy::Keep;
        spec.grace = Some(Duration::from_millis(100));
    });
    let script = script.start().await;
    script.has_written(3).await;
    agent.client.cancel(&script.id, String::new()).await.unwrap();
    let outcome = script.outcome().await;
    assert!(matches!(outcome.kind, OutcomeKind::Cancelled { .. }), "{outcome:?}");
    assert!(outcome.stragglers.iter().all(|straggler| straggler.fate == Fate::Ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_overwritten_in_the_log_in_whatever_pieces_it_is_written() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let text = format!("printf 'it is hun'; {}; printf 'ter22, hunter22, hunt'", gate.wait());
    let secret = |spec: &mut Spec| {
        spec.environment.insert("SECRET".to_owned(), "hunter22".to_owned());
        spec.sensitive.push("SECRET".to_owned());
    };
    let script = agent.script(text).with(secret).start().await;
    // What may be its beginning waits.
    script.has_written(6).await;
    gate.open();
    assert!(exited(&script.outcome().await, 0));
    let output = script.output().await;
    assert_eq!(String::from_utf8_lossy(&output), "it is ********, ********, hunt");
    let folder = agent.folder.join("state/scripts").join(script.id.as_str());
    let journal = std::fs::read(folder.join("output.journal")).unwrap();
    assert!(!journal.windows(8).any(|part| part == b"hunter22"));
    let refused = agent.script("true").with(|spec| spec.sensitive.push("SECRET".to_owned()));
    let refused = refused.try_start().await.err().unwrap();
    assert!(refused.to_string().contains("sensitive[0]"), "{refused}");
    let mut command = world.baton_at(&agent.name);
    command.args(["run", "--secret", "PASSWORD", "-c", "echo $PASSWORD"]);
    let (code, out, _) = finish(command.env("PASSWORD", "correct horse"));
    assert_eq!((code, out.as_str()), (0, "*************\n"));
    assert_eq!(finish(command.env_remove("PASSWORD")).0, 2);
}
