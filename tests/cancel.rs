//! Promise: cancel works wherever a script stands, and nothing of its tree is left.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::time::Duration;

use baton::script::{OutcomeKind, Phase};
use support::run::Run;
use support::{Started, Stopped, World, cancel, exited, lines, spare};

#[tokio::test]
async fn a_queued_script_leaves_the_line_and_the_others_keep_their_order() {
    let world = World::new();
    let agent = world.agent().await;
    let (gate, log) = (world.gate(), world.path("log"));
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    let mut scripts = Vec::new();
    for number in 0..4 {
        scripts.push(agent.script(format!("echo {number} >> {}", log.display())).start().await);
    }
    // The first waits in the machine's line, the third in the agent's queue.
    for place in [0, 2] {
        scripts[place].is_waiting().await;
        cancel(&scripts[place], "not needed").await;
        let expected =
            OutcomeKind::Cancelled { while_queued: true, reason: "not needed".to_owned() };
        assert_eq!(scripts[place].outcome().await.kind, expected);
    }
    gate.open();
    assert!(exited(&scripts[3].outcome().await, 0));
    assert_eq!(lines(&log), ["1", "3"]);
}

#[tokio::test]
async fn a_running_script_is_asked_first_and_its_own_cleanup_runs() {
    let world = World::new();
    let agent = world.agent().await;
    let text = "trap 'echo cleaned up; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let script = agent.script(text).start().await;
    script.has_written(6).await;
    cancel(&script, "enough").await;
    let expected = OutcomeKind::Cancelled { while_queued: false, reason: "enough".to_owned() };
    assert_eq!(script.outcome().await.kind, expected);
    assert!(String::from_utf8_lossy(&script.output().await).contains("cleaned up"));
    // Once more, when it is done: no error, and nothing changes.
    cancel(&script, "late").await;
    assert_eq!(script.outcome().await.kind, expected);
}

#[tokio::test]
async fn what_ignores_the_question_is_forced_also_behind_setsid_and_double_forks() {
    let world = World::new();
    let agent = world.agent().await;
    let pids = world.path("pids");
    let stubborn = format!("trap '' TERM; echo $$ >> {}; exec sleep 600", pids.display());
    let text = format!(
        "trap '' TERM; (setsid bash -c \"{stubborn}\" &) ; setsid bash -c \"{stubborn}\" & \
         until [ $(wc -l < {}) = 2 ]; do sleep 0.05; done 2> /dev/null; echo ready; wait",
        pids.display()
    )
    .replace("$$", "\\$\\$");
    let script = agent.script(text).with(|spec| spec.grace = Some(Duration::from_millis(200)));
    let script = script.start().await;
    script.has_written(6).await;
    cancel(&script, "").await;
    let outcome = script.outcome().await;
    assert!(matches!(outcome.kind, OutcomeKind::Cancelled { .. }), "{outcome:?}");
    for pid in lines(&pids) {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} lives");
    }
    // The mutex is free.
    assert!(exited(&agent.script("true").outcome().await, 0));
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_is_named_and_ended_and_delays_nobody() {
    let world = World::new();
    let agent = world.agent().await;
    let script = agent.script("sleep 600 & echo started").start().await;
    let outcome = script.outcome().await;
    assert!(exited(&outcome, 0));
    assert_eq!(outcome.stragglers.len(), 1);
    assert_eq!(outcome.stragglers[0].command, "sleep 600");
    let pid = outcome.stragglers[0].pid;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let snapshot = script.is_done().await;
    let ran = snapshot.ended_at.unwrap() - snapshot.started_at.unwrap();
    assert!(Duration::try_from(ran).unwrap() < Duration::from_secs(10), "{ran}");
}

#[tokio::test]
async fn a_signal_from_elsewhere_is_told_from_an_exit() {
    let world = World::new();
    let agent = world.agent().await;
    let outcome = agent.script("kill -9 $$").outcome().await;
    assert_eq!(outcome.kind, OutcomeKind::Signalled { signal: 9 });
}

#[tokio::test]
async fn a_script_that_runs_is_not_forgotten_and_one_that_is_done_is() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let script = agent.script(gate.wait()).start().await;
    script.is_running().await;
    let error = agent.client.forget(&script.id).await.unwrap_err();
    assert_eq!(support::reason(&error), "SCRIPT_NOT_DONE");
    gate.open();
    assert!(matches!(script.is_done().await.phase, Phase::Done(_)));
    agent.client.forget(&script.id).await.unwrap();
    let error = agent.client.get(&script.id).await.unwrap_err();
    assert_eq!(support::reason(&error), "SCRIPT_NOT_FOUND");
    assert!(!agent.folder.join("state/scripts").join(script.id.as_str()).exists());
}

#[tokio::test]
async fn the_grace_is_the_whole_tree_s_not_only_the_leader_s() {
    let world = World::new();
    let agent = world.agent().await;
    let log = world.path("log");
    // The leader dies of the question at once; what it runs cleans up a while longer.
    let child = format!(
        "trap 'sleep 2; echo cleaned up >> {}; exit 0' TERM; echo ready; while :; do sleep 0.1; done",
        log.display()
    );
    let script = agent.script(format!("bash -c \"{child}\"; echo never")).start().await;
    script.has_written(6).await;
    cancel(&script, "").await;
    let outcome = script.outcome().await;
    assert!(matches!(outcome.kind, OutcomeKind::Cancelled { .. }), "{outcome:?}");
    assert_eq!(lines(&log), ["cleaned up"]);
    assert!(outcome.stragglers.is_empty(), "{outcome:?}");
}

#[tokio::test]
async fn a_process_with_half_a_character_in_its_name_is_ended_too() {
    let world = World::new();
    let agent = world.agent().await;
    // The kernel cuts the name at 15 bytes, here in the middle of the é.
    let name = world.path("aaaaaaaaaaaaaaé");
    std::os::unix::fs::symlink("/bin/sleep", &name).unwrap();
    let text = format!("'{}' 600 & echo $!", name.display());
    let script = agent.script(text).start().await;
    assert!(exited(&script.outcome().await, 0));
    let pid = String::from_utf8(script.output().await).unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists());
}

#[tokio::test]
async fn one_whose_supervisor_is_stopped_is_said_to_be_and_ends_when_that_goes_on() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let script = agent.script(gate.wait()).id("halted").start().await;
    script.is_running().await;
    let pid =
        std::fs::read_to_string(agent.folder.join("state/scripts/halted/supervisor")).unwrap();
    let supervisor = Stopped::new(pid.trim().parse().unwrap());
    let mut command = world.baton_at("a");
    let mut wait = Run::of(command.args(["cancel", "halted", "--wait"]));
    let told = wait.told();
    assert!(told.contains(&format!("its supervisor (pid {}) is stopped", pid.trim())), "{told}");
    supervisor.go_on_to_the_end();
    assert_eq!(wait.line(), "halted: cancelled");
    assert_eq!(wait.end(), 0);
}

/// Whoever hears of it before it holds anything does not start it.
#[tokio::test]
async fn a_script_that_is_being_started_is_cancelled_before_it_runs() {
    let world = World::new();
    let agent = world.agent().await;
    let log = world.path("log");
    assert!(exited(&agent.script("true").outcome().await, 0));
    let supervisor = Stopped::new(spare(agent.pid()));
    let script = agent.script(format!("echo ran >> {}", log.display())).start().await;
    script.until("assigned", |script| script.phase == Phase::Waiting).await;
    cancel(&script, "too early").await;
    // While it stops: no error, and the first reason stays.
    cancel(&script, "again").await;
    supervisor.go_on_to_the_end();
    let reason = "too early".to_owned();
    let expected = OutcomeKind::Cancelled { while_queued: true, reason };
    assert_eq!(script.outcome().await.kind, expected);
    assert!(lines(&log).is_empty());
    assert!(exited(&agent.script("true").outcome().await, 0));
}

#[tokio::test]
async fn a_full_queue_blocks_no_cancel_and_a_second_one_changes_nothing() {
    let world = World::new();
    let config = world.path("full/config");
    std::fs::create_dir_all(&config).unwrap();
    support::write(&config.join("agent.toml"), "queue_length = 2\n");
    let agent = world.agent_at("full", &["--listen", "none"]).await;
    let text =
        "trap 'echo asked; read -r _; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let gate = world.gate();
    let running = text.replace("read -r _", &gate.wait());
    let running = agent.script(running).id("running").start().await;
    running.has_written(6).await;
    let queued = agent.script("true").id("queued").start().await;
    queued.is_waiting().await;
    let full = agent.script("true").try_start().await;
    assert_eq!(support::reason(&full.err().unwrap()), "QUEUE_FULL");
    cancel(&queued, "not needed").await;
    let reason = "not needed".to_owned();
    let expected = OutcomeKind::Cancelled { while_queued: true, reason };
    assert_eq!(queued.outcome().await.kind, expected);
    // There is room again, and again there is none.
    let next = agent.script("true").start().await;
    cancel(&running, "first").await;
    running.has_written(12).await;
    let stopping = running.until("stopping", |script| script.phase == Phase::Stopping).await;
    assert_eq!(stopping.script_id, running.id);
    cancel(&running, "second").await;
    gate.open();
    let Started { client, id } = &running;
    let reason = "first".to_owned();
    let expected = OutcomeKind::Cancelled { while_queued: false, reason };
    assert_eq!(running.outcome().await.kind, expected);
    let done = client.get(id).await.unwrap();
    // When it is done: no error, and nothing changes.
    cancel(&running, "third").await;
    assert_eq!(client.get(id).await.unwrap(), done);
    assert!(exited(&next.outcome().await, 0));
}
