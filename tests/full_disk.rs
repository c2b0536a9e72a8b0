//! Promise: a full disk is said, holds nobody up, and is over when there is room again. Needs to mount
//! a small file system, so it runs as root only.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails here")]

mod support;

use std::time::Duration;

use baton::client::Heard;
use baton::journal::EventScanner;
use baton::script::OutcomeKind;
use baton::supervisor::job::Report;
use support::disk::{Ballast, ReadOnly, Small};
use support::{Gate, Started, TestAgent, World, finish};

/// How long a script is watched that must not end; three tries to launch it take three seconds.
const WATCHED: Duration = Duration::from_secs(5);
/// How much is written onto a disk without room: more than the pipe takes, so that most of it was read when
/// all is written.
const LOST: usize = 3 << 20;
/// How long a script is watched whose outcome is tried to be written again and again.
const SHORT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_disk_that_is_full_for_a_while_costs_no_queued_script() {
    let world = World::new();
    let Some(_small) = Small::mount(&world.path("a/state"), 2) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    // The first of them already stands in the machine's line.
    let queued = [
        agent.script("exit 5").start().await,
        agent.script("exit 5").start().await,
        agent.script("exit 5").start().await,
    ];
    let ballast = Ballast::fill(&world.path("a/state/fill"));
    gate.open();
    let last = tokio::time::timeout(WATCHED, queued[2].outcome()).await;
    assert!(last.is_err(), "{last:?}");
    drop(ballast);
    for script in queued {
        assert_eq!(script.outcome().await.kind, OutcomeKind::Exited { code: 5 });
    }
}

#[tokio::test]
async fn a_script_that_fills_the_disk_ends_with_its_outcome_and_others_go_on() {
    let world = World::new();
    let Some(_small) = Small::mount(&world.path("a/state"), 2) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let ballast = world.path("a/state/fill").display().to_string();
    let text = format!(
        "head -c 4000000 /dev/zero > {ballast} 2>/dev/null
         head -c 300000 /dev/zero; echo filled; exit 3"
    );
    let (code, _, error) = finish(world.baton_at("a").args(["run", "--id", "fill", "-c", &text]));
    assert_eq!(code, 3, "{error}");
    // The machine is free, and says so.
    let free = ["mutex", "run", "--no-wait", "machine", "--", "true"];
    assert_eq!(finish(world.baton_at("a").args(free)).0, 0);
    std::fs::remove_file(ballast).unwrap();
    let again = agent.script("exit 5").start().await;
    assert_eq!(again.outcome().await.kind, OutcomeKind::Exited { code: 5 });
    let fill = Started { client: agent.client.clone(), id: "fill".parse().unwrap() };
    let outcome = fill.outcome().await;
    assert_eq!(outcome.kind, OutcomeKind::Exited { code: 3 });
    // Said in the outcome, and at the journal's end.
    assert!(outcome.output_dropped_bytes > 0, "{outcome:?}");
    let cause = outcome.output_drop_cause.unwrap();
    let mut scanner = EventScanner::open(&world.path("a/state/scripts/fill/output.journal"));
    let mut last = Vec::new();
    while let Some((_, payload)) = scanner.next_event().unwrap() {
        last = payload.to_vec();
    }
    let bytes = outcome.output_dropped_bytes;
    let told: Report = serde_json::from_slice(&last).unwrap();
    let Report::OutputDropped { cause: told_cause, bytes: told_bytes, .. } = told else {
        panic!("{told:?}");
    };
    assert_eq!((told_cause, told_bytes), (cause, bytes));
}

/// A script that ends when its folder can't be written any more; `None` where that may not be done.
async fn ends_on_a_read_only_disk(agent: &TestAgent, gate: &Gate) -> Option<(Started, ReadOnly)> {
    let script = agent.script(format!("echo on; {}", gate.wait())).id("last").start().await;
    script.has_written(3).await;
    let read_only = ReadOnly::make(&agent.folder.join("state/scripts/last"));
    gate.open();
    Some((script, read_only?))
}

#[tokio::test]
async fn an_outcome_waits_for_a_disk_that_is_read_only_for_a_while() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let Some((script, read_only)) = ends_on_a_read_only_disk(&agent, &gate).await else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    assert!(tokio::time::timeout(SHORT, script.outcome()).await.is_err());
    drop(read_only);
    assert_eq!(script.outcome().await.kind, OutcomeKind::Exited { code: 0 });
}

#[tokio::test]
async fn an_outcome_that_can_t_be_written_is_lost_with_why() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let Some((script, _read_only)) = ends_on_a_read_only_disk(&agent, &gate).await else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    let reason = "its outcome could not be written: the file system was read-only".to_owned();
    assert_eq!(script.outcome().await.kind, OutcomeKind::Lost { reason });
}

#[tokio::test]
async fn output_that_is_missing_in_the_middle_is_marked_at_its_place() {
    let world = World::new();
    let Some(_small) = Small::mount(&world.path("a/state/scripts"), 2) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let (gate, written) = (world.gate(), world.gate());
    let text = format!(
        "echo before; {}; head -c {LOST} /dev/zero; {}; {}; echo after",
        gate.wait(),
        written.say(),
        gate.wait()
    );
    let script = agent.script(text).id("hole").start().await;
    script.has_written(7).await;
    let ballast = Ballast::fill(&world.path("a/state/scripts/fill"));
    gate.open();
    written.is_said().await;
    drop(ballast);
    gate.open();
    let dropped = script.outcome().await.output_dropped_bytes;
    assert!(dropped > 0);
    // From the start, and from the place itself.
    for (start, before) in [(0, "before\n"), (7, "")] {
        let mut following = script.client.watch(script.id.clone(), start, true);
        let (mut output, mut told) = (Vec::new(), 0);
        while let Some(heard) = support::soon("the end", following.next()).await.unwrap() {
            match heard {
                Heard::Output { data, .. } => output.extend_from_slice(&data),
                Heard::OutputMissing { offset, bytes, cause } => {
                    assert!(!output.ends_with(b"after\n") && cause.is_some(), "{offset} {cause:?}");
                    assert_eq!(offset, start + u64::try_from(output.len()).unwrap());
                    told += bytes;
                }
                Heard::Script(_) => {}
                other @ (Heard::Away(_) | Heard::Back { .. }) => panic!("{other:?}"),
            }
        }
        let zeros = LOST - usize::try_from(dropped).unwrap();
        let whole = [before.as_bytes(), &vec![0; zeros], b"after\n"].concat();
        assert_eq!((told, output.len()), (dropped, whole.len()));
        assert!(output == whole);
    }
    let (_, _, error) = finish(world.baton_at("a").args(["logs", "hole"]));
    assert!(error.contains("bytes of output are missing at byte"), "{error}");
}

#[tokio::test]
async fn an_agent_whose_database_takes_no_change_says_so_until_it_does() {
    let world = World::new();
    let Some(_small) = Small::mount(&world.path("a/state"), 2) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    let first = agent.script("true").start().await;
    first.is_waiting().await;
    let queued = agent.script("true").start().await;
    let ballast = Ballast::fill(&world.path("a/state/fill"));
    let (client, id) = (queued.client.clone(), queued.id.clone());
    let cancelled = tokio::spawn(async move { client.cancel(&id, String::new()).await });
    let mut standing = agent.client.watch_agent();
    while support::soon("a problem", standing.next()).await.unwrap().store_problem.is_none() {}
    let (_, out, _) = finish(world.baton_at("a").args(["agent", "info"]));
    assert!(out.contains("the database takes no change since"), "{out}");
    drop(ballast);
    while support::soon("its end", standing.next()).await.unwrap().store_problem.is_some() {}
    support::soon("the answer", cancelled).await.unwrap().unwrap();
    assert!(matches!(queued.outcome().await.kind, OutcomeKind::Cancelled { .. }));
    gate.open();
    assert_eq!(first.outcome().await.kind, OutcomeKind::Exited { code: 0 });
}

#[tokio::test]
async fn a_script_that_can_t_be_accepted_is_refused_and_the_agent_says_so_until_there_is_room() {
    let world = World::new();
    let Some(_small) = Small::mount(&world.path("a/state"), 2) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let ballast = Ballast::fill(&world.path("a/state/fill"));
    // More than the room that the database has taken already.
    let large = format!("# {}", "x".repeat(300_000));
    let mut standing = agent.client.watch_agent();
    assert!(agent.script(large).id("large").try_start().await.is_err());
    while support::soon("a problem", standing.next()).await.unwrap().store_problem.is_none() {}
    drop(ballast);
    // Nobody else wishes for a change.
    while support::soon("its end", standing.next()).await.unwrap().store_problem.is_some() {}
    let script = agent.script("exit 5").id("large").start().await;
    assert_eq!(script.outcome().await.kind, OutcomeKind::Exited { code: 5 });
}
