//! Promise: how a script ended also says how long it waited and for whom, and so it does after a restart of
//! the agent.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::time::Duration;

use support::run::Run;
use support::{Started, World, cancel, exited, finish};

fn named(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test]
async fn an_outcome_says_how_long_it_waited_and_for_whom_also_over_a_restart_of_the_agent() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let (gate, outside) = (world.gate(), world.gate());
    let person = Run::holder(&world, "machine", &outside);
    let first = agent.script(gate.wait()).id("first").start().await;
    first.is_waiting().await;
    // One whose supervisor stands in the line, one that is the agent's to keep.
    let second = agent.script("true").id("second").start().await;
    second.is_waiting().await;
    let third = agent.script("true").id("third").start().await;
    agent.kill();
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let script = |id| Started { client: again.client.clone(), id };
    let late = again.script("true").id("late").start().await;
    cancel(&late, "").await;
    outside.open();
    assert_eq!(person.end(), 0);
    gate.open();
    let names = |outcome: &baton::script::Outcome| {
        let blockers = outcome.waited.as_ref().unwrap().blockers.iter();
        // An outsider has no script's id.
        let mut names: Vec<String> = blockers.map(|blocker| blocker.script_id.clone()).collect();
        names.sort();
        names
    };
    for (script, expected) in [
        (script(first.id), named(&[""])),
        (script(second.id), named(&["", "first"])),
        (script(third.id), named(&["", "first", "second"])),
    ] {
        let outcome = script.outcome().await;
        assert!(exited(&outcome, 0));
        assert_eq!((names(&outcome), outcome.attempts), (expected, 1));
        let snapshot = script.is_done().await;
        let waited = snapshot.started_at.unwrap() - snapshot.queued_at;
        assert_eq!(outcome.waited.unwrap().time, Duration::try_from(waited).unwrap());
    }
    let outcome = late.outcome().await;
    assert_eq!(outcome.attempts, 0);
    assert_eq!(names(&outcome), ["", "first", "second", "third"]);
    let (_, out, _) = finish(world.baton_at("a").args(["show", "second"]));
    assert!(out.contains("waited:") && out.contains("script first ("), "{out}");
    let (_, out, _) = finish(world.baton_at("a").args(["show", "second", "--json"]));
    assert!(out.contains("\"waited_for\":[") && out.contains("\"attempts\":1"), "{out}");
    // Who did not wait waited for nobody.
    let free = again.script("true").outcome().await;
    assert!(free.waited.unwrap().blockers.is_empty());
}
