//! Promise: a request that is sent again never runs twice.

mod support;

use futures_util::future::join_all;
use support::{World, lines, reason, soon};

#[tokio::test]
async fn a_hundred_re_sends_at_once_run_it_once() {
    let world = World::new();
    let agent = world.agent().await;
    let log = world.path("log");
    let spec = agent.script(format!("echo ran >> {}", log.display())).id("deploy-1").spec;
    let sends = (0..100).map(|_| agent.client.start(spec.clone()));
    let answers = soon("all answers", join_all(sends)).await;
    assert!(
        answers.iter().all(|answer| answer.as_ref().is_ok_and(|s| s.script_id == spec.script_id))
    );
    let script = support::Started { client: agent.client.clone(), id: spec.script_id.clone() };
    script.is_done().await;
    // Also when it is done.
    assert!(agent.client.start(spec.clone()).await.unwrap().phase.is_done());
    agent.script("true").outcome().await;
    assert_eq!(lines(&log), ["ran"]);
}

#[tokio::test]
async fn another_request_with_the_same_id_is_refused_and_the_difference_named() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    agent.script(gate.wait()).id("a").start().await.is_running().await;
    for _ in 0..2 {
        let other = agent.script("true").id("a").shared();
        let error = other.try_start().await.err().unwrap();
        assert_eq!(reason(&error), "SCRIPT_ID_CONFLICT");
        let text = error.to_string();
        assert!(text.contains("body") && text.contains("isolation"), "{text}");
        // The second time it is done.
        gate.open();
        let script = support::Started { client: agent.client.clone(), id: "a".parse().unwrap() };
        script.is_done().await;
    }
}

#[tokio::test]
async fn a_re_send_to_a_restarted_agent_runs_nothing_twice() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let (gate, log) = (world.gate(), world.path("log"));
    let text = format!("echo ran >> {}; {}", log.display(), gate.wait());
    let spec = agent.script(text).id("deploy-1").spec;
    agent.client.start(spec.clone()).await.unwrap();
    let script = support::Started { client: agent.client.clone(), id: spec.script_id.clone() };
    script.is_running().await;
    agent.kill();
    let again = world.agent_at("a", &["--listen", "none"]).await;
    again.client.start(spec.clone()).await.unwrap();
    gate.open();
    let script = support::Started { client: again.client.clone(), id: spec.script_id };
    assert!(support::exited(&script.outcome().await, 0));
    assert_eq!(lines(&log), ["ran"]);
}
