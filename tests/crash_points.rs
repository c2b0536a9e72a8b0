//! Promise: at each named point the agent or a supervisor may die: no accepted script is lost, none runs
//! twice, none runs beside what it excludes, and every outcome is true or says why it is lost.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use baton::script::OutcomeKind;
use support::{Draft, Started, TestAgent, World, exited, lines};

/// Who dies at a point, and what becomes of the script that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The agent dies; the script runs once.
    AgentDies,
    /// The supervisor dies; the script runs once all the same: it was not started.
    RunsLater,
    /// The supervisor dies; the script did not run, which nobody can know.
    LostUnstarted,
    /// The supervisor dies; the script ran, and what became of it isn't known.
    Lost,
    /// The supervisor dies; the outcome is known.
    Known,
}

const POINTS: [(&str, Then); 12] = [
    ("before accept", Then::AgentDies),
    ("after accept", Then::AgentDies),
    ("before supervisor", Then::AgentDies),
    ("after supervisor", Then::AgentDies),
    ("before end", Then::AgentDies),
    ("after end", Then::AgentDies),
    ("before start", Then::RunsLater),
    ("starting", Then::LostUnstarted),
    ("after start", Then::Lost),
    ("mid record", Then::Lost),
    ("before outcome", Then::Lost),
    ("after outcome", Then::Known),
];

const IDS: [&str; 3] = ["first", "second", "third"];

/// A script that notes its start and its end.
fn script(world: &World, agent: &TestAgent, id: &str) -> Draft {
    let log = world.path("log").display().to_string();
    agent.script(format!("echo + {id} >> {log}; echo out; echo - {id} >> {log}")).id(id)
}

#[tokio::test]
async fn at_every_crash_point_nothing_is_lost_runs_twice_or_overlaps() {
    for (point, then) in POINTS {
        let world = World::new();
        let mut dead = None;
        let mut agent = world.agent_to_crash("a", point).await;
        for id in IDS {
            // Whether or not the answer came: it is sent again.
            drop(agent.client.start(script(&world, &agent, id).spec).await);
        }
        if then == Then::AgentDies {
            agent.ends().await;
            let next = world.agent_at("a", &["--listen", "none"]).await;
            // Its scripts are ended when it is dropped.
            dead = Some(std::mem::replace(&mut agent, next));
            for id in IDS {
                agent.client.start(script(&world, &agent, id).spec).await.unwrap();
            }
        }
        let mut lost = 0;
        for id in IDS {
            let script = Started { client: agent.client.clone(), id: id.parse().unwrap() };
            let outcome = script.outcome().await;
            if let OutcomeKind::Lost { reason } = &outcome.kind {
                assert_eq!(reason, "its supervisor was killed by SIGKILL", "{point}");
                lost += 1;
            } else {
                assert!(exited(&outcome, 0), "{point}: {outcome:?}");
            }
        }
        assert_eq!(lost, usize::from(matches!(then, Then::Lost | Then::LostUnstarted)), "{point}");
        assert!(!world.path("due").exists(), "nobody came to {point}");
        assert_ran_alone_and_once(&lines(&world.path("log")), point, then);
        // The machine is free.
        assert!(exited(&agent.script("true").outcome().await, 0), "{point}");
        drop(dead);
    }
}

/// The log of scripts that exclude each other, of which one may have been ended.
fn assert_ran_alone_and_once(log: &[String], point: &str, then: Then) {
    for id in IDS {
        let count = |sign| log.iter().filter(|line| **line == format!("{sign} {id}")).count();
        let may_be_lost = matches!(then, Then::Lost | Then::LostUnstarted) && id == "first";
        assert!(count("+") == 1 || (may_be_lost && count("+") == 0), "{point}: {log:?}");
        assert!(count("-") == count("+") || may_be_lost, "{point}: {log:?}");
    }
    let mut inside: Option<&str> = None;
    for line in log {
        let (sign, id) = line.split_once(' ').unwrap();
        if sign == "+" {
            assert!(
                inside.is_none_or(|other| other == "first" && may_end(then)),
                "{point}: {log:?}"
            );
            inside = Some(id);
        } else {
            assert_eq!(inside, Some(id), "{point}: {log:?}");
            inside = None;
        }
    }
}

/// Whether the first one may have been ended between its two notes.
fn may_end(then: Then) -> bool {
    then == Then::Lost
}
