//! Promise: what a request says about isolation holds: bypass, at most N, observer, exclusive key,
//! mutex name.

mod support;

use std::time::Duration;

use baton::script::OutcomeKind;
use support::{World, exited};

#[tokio::test]
async fn scripts_that_bypass_run_together_and_never_beside_one_that_does_not() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let first = agent.script(gate.wait()).shared().start().await;
    let second = agent.script(gate.wait()).shared().start().await;
    first.is_running().await;
    second.is_running().await;
    let alone = agent.script("true").start().await;
    assert_eq!(alone.is_waiting().await.waits[0].holders.len(), 2);
    gate.open();
    gate.open();
    assert!(exited(&alone.outcome().await, 0));
}

#[tokio::test]
async fn at_most_two_means_two() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let first = agent.script(gate.wait()).at_most(2).start().await;
    let second = agent.script(gate.wait()).at_most(2).start().await;
    first.is_running().await;
    second.is_running().await;
    let third = agent.script("true").at_most(2).start().await;
    // One without a limit of its own keeps to that of those who hold.
    let unlimited = agent.script("true").shared().start().await;
    assert_eq!(third.is_waiting().await.waits[0].holders.len(), 2);
    assert_eq!(unlimited.is_waiting().await.waits[0].position, 2);
    gate.open();
    third.is_done().await;
    unlimited.is_done().await;
    gate.open();
    first.is_done().await;
    second.is_done().await;
}

#[tokio::test]
async fn an_observer_never_waits() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let deployment = agent.script(gate.wait()).start().await;
    deployment.is_running().await;
    agent.script("true").start().await.is_waiting().await;
    assert!(exited(&agent.script("exit 7").observer().outcome().await, 7));
    gate.open();
    deployment.is_done().await;
}

#[tokio::test]
async fn the_same_exclusive_key_never_runs_together_even_when_both_bypass() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let first = agent.script(gate.wait()).shared().key("web/prod").start().await;
    first.is_running().await;
    let same = agent.script("true").shared().key("web/prod").start().await;
    let waits = same.is_waiting().await.waits;
    assert_eq!(waits[0].mutex.as_str(), "key.web_2Fprod");
    // Another key, and none, go on beside them; also behind a second one that waits for the key.
    let third = agent.script("true").shared().key("web/prod").start().await;
    assert!(exited(&agent.script("true").shared().key("web/test").outcome().await, 0));
    assert!(exited(&agent.script("true").shared().outcome().await, 0));
    // The key is a named mutex like any other: a person's command waits for it too.
    let busy = support::finish(world.baton().args([
        "mutex",
        "run",
        "--no-wait",
        "key.web_2Fprod",
        "--",
        "true",
    ]));
    assert_eq!(busy.0, 75, "{busy:?}");
    gate.open();
    assert!(exited(&same.outcome().await, 0));
    assert!(exited(&third.outcome().await, 0));
}

#[tokio::test]
async fn another_mutex_is_another_line() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let machine = agent.script(gate.wait()).start().await;
    machine.is_running().await;
    assert!(exited(&agent.script("true").mutex("package-journal").outcome().await, 0));
    gate.open();
    machine.is_done().await;
}

#[tokio::test]
async fn the_queue_s_and_the_run_s_time_limits_are_their_own() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    let limit = Duration::from_millis(300);
    let short = |spec: &mut baton::spec::Spec| spec.queue_time_limit = Some(limit);
    // The first waits in the machine's line, the second in the agent's queue.
    let launched = agent.script("true").with(short).start().await;
    let queued = agent.script("true").with(short).start().await;
    assert_eq!(launched.outcome().await.kind, OutcomeKind::QueueTimedOut { limit });
    assert_eq!(queued.outcome().await.kind, OutcomeKind::QueueTimedOut { limit });
    let second = Duration::from_secs(1);
    let waits = agent.script("true").with(|spec| spec.run_time_limit = Some(second)).start().await;
    waits.is_waiting().await;
    // It waits longer than it may run: that doesn't count.
    let longer = Duration::from_millis(1200);
    let late = agent.script("true").with(|spec| spec.queue_time_limit = Some(longer)).start().await;
    assert_eq!(late.outcome().await.kind, OutcomeKind::QueueTimedOut { limit: longer });
    gate.open();
    assert!(exited(&waits.outcome().await, 0));
    let endless = agent.script("sleep 600").with(|spec| spec.run_time_limit = Some(limit));
    assert_eq!(endless.outcome().await.kind, OutcomeKind::TimedOut { limit });
}
