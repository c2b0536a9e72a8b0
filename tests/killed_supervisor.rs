//! Promise: when a supervisor is killed, its script's tree is ended before anybody else has the mutex,
//! and the script is lost, with the reason.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::time::Duration;

use baton::process::Process;
use baton::script::{Outcome, OutcomeKind};
use support::{Draft, Started, TestAgent, World, exited, lines};

/// A script that cleans up when it is asked, and whose child has a session of its own, no descriptors, and
/// holds out until it is forced.
fn stubborn(world: &World, agent: &TestAgent) -> Draft {
    let (log, pid) = (world.path("log"), world.path("pid"));
    let text = format!(
        "trap 'echo clean >> {}; exit' TERM
         setsid python3 -c 'import os; os.closerange(3, 4096)
os.execvp(\"sh\", [\"sh\", \"-c\", os.environ[\"DEEP\"]])' & wait; wait",
        log.display()
    );
    let deep = format!(
        "trap '' TERM; echo $$ > {}; echo on; {}; echo late >> {}",
        pid.display(),
        world.gate().wait(),
        log.display()
    );
    agent.script(text).with(|spec| {
        spec.environment.insert("DEEP".to_owned(), deep);
        spec.grace = Some(Duration::from_millis(300));
    })
}

/// A script that notes whether it runs beside what the other left.
fn next(world: &World, agent: &TestAgent) -> Draft {
    agent.script(format!(
        "case $(grep State /proc/$(cat {})/status) in ''|*Z*) ;; *) echo beside >> {log} ;; esac
         echo next >> {log}",
        world.path("pid").display(),
        log = world.path("log").display()
    ))
}

fn assert_is_lost(world: &World, outcome: &Outcome, seen: &str) {
    let reason = format!("its supervisor was killed{seen}");
    assert_eq!(outcome.kind, OutcomeKind::Lost { reason });
    assert_eq!(outcome.stragglers.len(), 2, "{outcome:?}");
    let pid = lines(&world.path("pid")).remove(0).parse().unwrap();
    assert!(Process::read(pid).is_none_or(|process| process.is_zombie()), "{pid} lives");
}

#[tokio::test]
async fn what_it_left_is_ended_before_the_next_one_runs_and_it_is_lost() {
    let world = World::new();
    let agent = world.agent().await;
    let script = stubborn(&world, &agent).id("first").start().await;
    script.has_written(3).await;
    let next = next(&world, &agent).start().await;
    support::end_supervisor(&agent.folder.join("state/scripts/first"));
    assert_is_lost(&world, &script.outcome().await, " by SIGKILL");
    assert!(exited(&next.outcome().await, 0));
    assert_eq!(lines(&world.path("log")), ["clean", "next"]);
}

#[tokio::test]
async fn so_it_is_when_the_agent_was_killed_before_and_for_those_outside_of_it() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let script = stubborn(&world, &agent).id("first").start().await;
    script.has_written(3).await;
    let outside = world.agent_at("b", &["--listen", "none"]).await;
    let waiter = next(&world, &outside).start().await;
    waiter.is_waiting().await;
    agent.kill();
    support::end_supervisor(&world.path("a/state/scripts/first"));
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let script = Started { client: again.client.clone(), id: script.id };
    assert_is_lost(&world, &script.outcome().await, ", or failed: nobody saw its end");
    assert!(exited(&waiter.outcome().await, 0));
    assert_eq!(lines(&world.path("log")), ["clean", "next"]);
}

/// One without a variable of the script's, and whose parents have ended.
#[tokio::test]
async fn what_has_only_inherited_the_mutex_is_ended_too() {
    let world = World::new();
    let agent = world.agent().await;
    let pid = world.path("pid").display().to_string();
    let daemon = format!("env -i setsid /bin/sh -c 'echo $$ > {pid}; echo on; exec sleep 600'");
    let text = format!("( {daemon} & ); exec sleep 600");
    let script = agent.script(text).with(|spec| spec.grace = Some(Duration::from_millis(300)));
    let script = script.id("first").start().await;
    script.has_written(3).await;
    let next = next(&world, &agent).start().await;
    support::end_supervisor(&agent.folder.join("state/scripts/first"));
    assert_is_lost(&world, &script.outcome().await, " by SIGKILL");
    assert!(exited(&next.outcome().await, 0));
    assert_eq!(lines(&world.path("log")), ["next"]);
}

#[tokio::test]
async fn an_observer_that_holds_nothing_is_ended_too() {
    let world = World::new();
    let agent = world.agent().await;
    let script = stubborn(&world, &agent).observer().id("first").start().await;
    script.has_written(3).await;
    support::end_supervisor(&agent.folder.join("state/scripts/first"));
    assert_is_lost(&world, &script.outcome().await, " by SIGKILL");
    assert_eq!(lines(&world.path("log")), ["clean"]);
}

#[tokio::test]
async fn what_it_gave_back_before_is_kept_if_that_is_whole() {
    let world = World::new();
    let agent = world.agent().await;
    for (half, expected) in [("", Some("1.2")), ("printf more= >> \"$BATON_OUTPUT\";", None)] {
        let text = format!(
            "echo version=1.2 >> \"$BATON_OUTPUT\"; {half} echo on; {}",
            world.gate().wait()
        );
        let script = agent.script(text).start().await;
        script.has_written(3).await;
        let folder = agent.folder.join("state/scripts").join(script.id.as_str());
        support::end_supervisor(&folder);
        let outcome = script.outcome().await;
        assert!(matches!(outcome.kind, OutcomeKind::Lost { .. }), "{outcome:?}");
        assert_eq!(outcome.values.outputs.get("version").map(String::as_str), expected);
        assert_eq!(outcome.attempts, 1);
    }
}
