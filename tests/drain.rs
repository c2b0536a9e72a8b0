//! Promise: a drain finishes what runs, keeps the queue on disk in its order, and takes nothing new,
//! until it is ended.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::process::Command;

use baton::client::{Client, ClientError};
use baton::script::{OutcomeKind, Phase};
use baton::wire::v1::AgentStatus;
use rustix::process::{Signal, kill_process};
use support::run::{Run, now};
use support::{Started, TestAgent, World, exited, finish, lines, reason, soon};

async fn agent(world: &World) -> TestAgent {
    world.agent_at("a", &["--listen", "none"]).await
}

/// Follows the agent until it stands so.
async fn stands(client: &Client, what: &str, wanted: impl Fn(&AgentStatus) -> bool) -> AgentStatus {
    let mut standing = client.watch_agent();
    let search = async {
        loop {
            let status = standing.next().await.unwrap();
            if wanted(&status) {
                return status;
            }
        }
    };
    soon(what, search).await
}

async fn is_at_rest(client: &Client) -> AgentStatus {
    stands(client, "rest", |status| {
        status.draining.is_some() && status.running + status.waiting == 0
    })
    .await
}

async fn drain(agent: &TestAgent, reason: &str) {
    let status = agent.client.drain(reason.to_owned()).await.unwrap();
    assert!(status.draining.is_some());
}

/// The command, at the agent's machine.
fn command(world: &World, words: &[&str]) -> Command {
    let mut command = world.baton_at("a");
    command.args(words);
    command
}

#[tokio::test]
async fn what_runs_is_finished_and_the_queue_goes_on_in_its_order_after_a_restart() {
    let world = World::new();
    let mut first = agent(&world).await;
    let (gate, log) = (world.gate(), world.path("log"));
    let holder = first.script(format!("{}; echo on", gate.wait())).id("holder").start().await;
    holder.is_running().await;
    let mut specs = Vec::new();
    for number in 0..4 {
        let draft = first.script(format!("echo {number} >> {}", log.display()));
        let draft = draft.id(&format!("q{number}"));
        specs.push(draft.spec.clone());
        draft.start().await;
    }
    // The first one has a place in the machine's line already.
    stands(&first.client, "a place in the line", |s| (s.waiting, s.queued) == (1, 3)).await;
    drain(&first, "kernel update").await;
    for draft in [first.script("true"), first.script("true").observer()] {
        let error = draft.try_start().await.err().unwrap();
        assert_eq!(reason(&error), "AGENT_DRAINING");
        let ClientError::Refused { code, message, .. } = &error else { panic!("{error}") };
        assert_eq!(*code, tonic::Code::Unavailable);
        assert!(message.contains("kernel update; it takes nothing new"), "{message}");
    }
    // A known one is no new one.
    let known = first.client.start(specs[0].clone()).await.unwrap();
    assert_eq!(known.script_id.as_str(), "q0");
    gate.open();
    assert!(exited(&holder.outcome().await, 0));
    assert_eq!(is_at_rest(&first.client).await.queued, 4);
    // The machine is free for others.
    assert_eq!(now(&world, "machine"), 0);
    first.kill();
    let again = agent(&world).await;
    assert_eq!(is_at_rest(&again.client).await.queued, 4);
    let error = again.script("true").try_start().await.err().unwrap();
    assert_eq!(reason(&error), "AGENT_DRAINING");
    for (number, spec) in specs.iter().enumerate() {
        let script = again.client.get(&spec.script_id).await.unwrap();
        assert_eq!(script.phase, Phase::Queued);
        assert_eq!(script.waits[0].position, u32::try_from(number).unwrap() + 1);
        assert!(script.waits[0].reason().contains("kernel update"), "{:?}", script.waits);
    }
    assert_eq!(lines(&log), [""; 0]);
    let status = again.client.resume().await.unwrap();
    assert_eq!(status.draining, None);
    for spec in specs {
        let script = Started { client: again.client.clone(), id: spec.script_id };
        assert!(exited(&script.outcome().await, 0));
    }
    assert_eq!(lines(&log), ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn a_script_in_the_machine_s_line_steps_back_however_often_and_runs_once() {
    let world = World::new();
    let mut first = agent(&world).await;
    let (gate, log) = (world.gate(), world.path("log"));
    let outsider = Run::holder(&world, "machine", &gate);
    let script = first.script(format!("echo ran >> {}", log.display())).start().await;
    for _ in 0..5 {
        stands(&first.client, "a place in the line", |status| status.waiting == 1).await;
        drain(&first, "").await;
        assert_eq!(is_at_rest(&first.client).await.queued, 1);
        first.client.resume().await.unwrap();
    }
    stands(&first.client, "a place in the line", |status| status.waiting == 1).await;
    first.kill();
    // As if it had been killed between the two steps of a drain.
    let database = rusqlite::Connection::open(first.folder.join("state/agent.db")).unwrap();
    database.execute("INSERT INTO drain VALUES (1, 7, 'ci', 'kernel')", []).unwrap();
    let again = agent(&world).await;
    let drain = is_at_rest(&again.client).await.draining.unwrap();
    assert_eq!((drain.by.as_str(), drain.reason.as_str()), ("ci", "kernel"));
    gate.open();
    assert_eq!(outsider.end(), 0);
    assert_eq!(lines(&log), [""; 0]);
    again.client.resume().await.unwrap();
    let script = Started { client: again.client.clone(), id: script.id };
    assert!(exited(&script.outcome().await, 0));
    assert_eq!(lines(&log), ["ran"]);
}

#[tokio::test]
async fn a_queued_script_can_be_cancelled_and_its_queue_time_goes_on() {
    let world = World::new();
    let agent = agent(&world).await;
    let gate = world.gate();
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    let waits = agent.script("true").start().await;
    let limited = agent
        .script("true")
        .with(|spec| spec.queue_time_limit = Some(std::time::Duration::from_millis(1500)))
        .start()
        .await;
    stands(&agent.client, "a place in the line", |s| (s.waiting, s.queued) == (1, 1)).await;
    drain(&agent, "").await;
    support::cancel(&waits, "enough").await;
    let OutcomeKind::Cancelled { while_queued, .. } = waits.outcome().await.kind else {
        panic!("not cancelled");
    };
    assert!(while_queued);
    assert!(matches!(limited.outcome().await.kind, OutcomeKind::QueueTimedOut { .. }));
    gate.open();
    assert!(exited(&holder.outcome().await, 0));
    assert_eq!(is_at_rest(&agent.client).await.queued, 0);
}

#[tokio::test]
async fn the_first_drain_is_on_record_and_shown_everywhere() {
    let world = World::new();
    let agent = agent(&world).await;
    let run = |words: &[&str]| finish(&mut command(&world, words));
    let uid = rustix::process::geteuid().as_raw();
    let shown = format!(", by uid {uid}: kernel update");
    let (code, out, error) = run(&["agent", "drain", "--reason", "kernel update"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains(&shown) && out.contains("at rest: nothing runs, 0 queued"), "{out}");
    let (code, out, _) = run(&["agent", "drain", "--reason", "another", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, told["draining"]["reason"].as_str()), (0, Some("kernel update")), "{out}");
    for words in [&["agent", "status"][..], &["agent", "info"], &["queue"]] {
        let (code, out, error) = run(words);
        assert_eq!(code, 0, "{error}");
        assert!(out.contains(&shown), "{words:?}: {out}");
    }
    let (code, _, error) = run(&["run", "-c", "true"]);
    assert_eq!(code, 75, "{error}");
    assert!(error.contains(&shown) && error.contains("hint: `baton agent resume`"), "{error}");
    let (code, out, _) = run(&["agent", "resume"]);
    assert_eq!(
        (code, out.as_str()),
        (0, "the agent takes scripts: 0 running, 0 waiting, 0 queued\n")
    );
    let (_, out, _) = run(&["agent", "resume", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["event"], &told["draining"]), (&"resumed".into(), &serde_json::Value::Null));
    assert!(exited(&agent.script("true").outcome().await, 0));
    for (words, told) in [
        (&["agent", "drain", "--timeout", "5s"][..], "--wait"),
        (&["agent", "drain", "--reason", "a\nb"], "reason"),
        (&["agent", "drain", "--reason", &"x".repeat(1025)], "reason"),
    ] {
        let (code, _, error) = run(words);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(told), "{error}");
    }
}

#[tokio::test]
async fn the_command_waits_names_the_scripts_and_leaves_the_drain_when_it_leaves() {
    let world = World::new();
    let agent = agent(&world).await;
    let gates = [world.gate(), world.gate()];
    let mut scripts = Vec::new();
    for (id, gate) in ["one", "two"].into_iter().zip(&gates) {
        let script = agent.script(gate.wait()).observer().id(id).start().await;
        script.is_running().await;
        scripts.push(script);
    }
    let (code, _, error) =
        finish(&mut command(&world, &["agent", "drain", "--wait", "--timeout", "1s"]));
    assert_eq!(code, 124, "{error}");
    assert!(error.contains("not at rest after 1s: waits for script one"), "{error}");
    assert!(error.contains("hint: the agent goes on draining"), "{error}");

    let mut waiting = Run::of(&mut command(&world, &["agent", "drain", "--wait"]));
    assert!(waiting.line().contains("drains since"));
    assert_eq!(waiting.line(), "finishing 2, 0 queued");
    let told = waiting.told();
    assert!(told.contains("waits for script one (") && told.contains("script two ("), "{told}");
    let mut interrupted = Run::of(&mut command(&world, &["agent", "drain", "--wait"]));
    interrupted.told();
    kill_process(interrupted.pid(), Signal::INT).unwrap();
    let told = interrupted.told();
    assert!(told.contains("leaving; the agent goes on draining"), "{told}");
    assert_eq!(interrupted.end(), 130);

    gates[0].open();
    scripts[0].is_done().await;
    let told = waiting.told();
    assert!(told.starts_with("baton: waits for script two (read"), "{told}");
    gates[1].open();
    assert!(waiting.line().contains("drains since"));
    assert_eq!(waiting.line(), "at rest: nothing runs, 0 queued");
    assert_eq!(waiting.end(), 0);
}

#[tokio::test]
async fn the_command_goes_on_over_a_restart_and_hears_of_a_resume() {
    let world = World::new();
    let mut first = agent(&world).await;
    let gate = world.gate();
    let script = first.script(gate.wait()).id("runs").start().await;
    script.is_running().await;
    let words = ["agent", "drain", "--wait", "--json"];
    let (mut one, mut two) =
        (Run::of(&mut command(&world, &words)), Run::of(&mut command(&world, &words)));
    for waiting in [&mut one, &mut two] {
        assert!(waiting.line().contains(r#""event":"draining""#));
        assert!(waiting.line().contains(r#""event":"waits""#));
    }
    first.kill();
    gate.open();
    let again = agent(&world).await;
    // Which of them asks after the resume isn't known; the script has ended for both.
    is_at_rest(&again.client).await;
    for mut waiting in [one, two] {
        assert!(waiting.line().contains(r#""event":"at_rest""#));
        assert_eq!(waiting.end(), 0);
    }
    let gate = world.gate();
    again.client.resume().await.unwrap();
    let script = again.script(gate.wait()).start().await;
    script.is_running().await;
    let mut waiting = Run::of(&mut command(&world, &["agent", "drain", "--wait"]));
    waiting.told();
    again.client.resume().await.unwrap();
    let told = waiting.told();
    assert!(told.contains("takes scripts again"), "{told}");
    assert_eq!(waiting.end(), 1);
    gate.open();
    script.is_done().await;
}

/// Drains and resumes at any moment of many scripts' lives.
#[tokio::test(flavor = "multi_thread")]
async fn whenever_it_drains_no_script_is_lost_runs_twice_or_overtakes() {
    let world = World::new();
    let agent = agent(&world).await;
    let log = world.path("log");
    let client = agent.client.clone();
    let toggles = tokio::spawn(async move {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64 ^ u64::from(std::process::id());
        for _ in 0..60 {
            client.drain(String::new()).await.unwrap();
            for _ in 0..(random >> 33) % 300 {
                tokio::task::yield_now().await;
            }
            client.resume().await.unwrap();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            for _ in 0..(random >> 33) % 300 {
                tokio::task::yield_now().await;
            }
        }
    });
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for number in 0..80 {
        let draft = agent.script(format!("echo {number} >> {}", log.display()));
        match draft.try_start().await {
            Ok(script) => accepted.push((number, script)),
            Err(error) => {
                assert_eq!(reason(&error), "AGENT_DRAINING");
                refused += 1;
            }
        }
    }
    soon("the drains", toggles).await.unwrap();
    for (number, script) in &accepted {
        let outcome = script.outcome().await;
        assert!(exited(&outcome, 0), "{number}: {outcome:?}");
    }
    let expected: Vec<String> = accepted.iter().map(|(number, _)| number.to_string()).collect();
    assert_eq!(lines(&log), expected);
    assert!(expected.len() > 5 && refused > 0, "{} accepted, {refused} refused", expected.len());
}
