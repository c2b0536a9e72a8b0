//! Promise: the agent may be killed at any instant: no accepted script is lost, none runs twice, none
//! runs beside what it excludes. One whose supervisor is killed is `lost`, and so it says.
//!
//! `BATON_TEST_KILLS` says how many kills at a random instant are tried (default 25);
//! `BATON_TEST_KILL_SECONDS` for how long instead.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use baton::client::Client;
use baton::journal::{Limits, Writer};
use baton::process::Process;
use baton::script::{OutcomeKind, Phase};
use baton::spec::Spec;
use baton::supervisor::job::Report;
use jiff::Timestamp;
use rustix::process::Signal;
use support::{Started, TestAgent, World, exited, lines};
use tokio::sync::mpsc;

/// How often the agent is killed, unless the environment says otherwise.
const KILLS: usize = 25;
/// How many scripts are sent in each of its lives.
const SENT_AT_ONCE: usize = 6;

/// Sends scripts, all at once; tells which were accepted.
fn send(client: &Client, specs: Vec<Spec>) -> mpsc::UnboundedReceiver<Spec> {
    let (accepted, told) = mpsc::unbounded_channel();
    for spec in specs {
        let (client, accepted) = (client.clone(), accepted.clone());
        drop(tokio::spawn(async move {
            if client.start(spec.clone()).await.is_ok() {
                accepted.send(spec).unwrap();
            }
        }));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_the_agent_is_killed_nothing_is_lost_and_nothing_runs_twice() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let kills = number("BATON_TEST_KILLS").unwrap_or(KILLS);
    let until = number("BATON_TEST_KILL_SECONDS")
        .map(|seconds: usize| Instant::now() + Duration::from_secs(seconds.try_into().unwrap()));
    let world = World::new();
    let log = world.path("log");
    let (mut accepted, mut dead): (Vec<Spec>, Option<TestAgent>) = Default::default();
    let mut random = 0x9E37_79B9_7F4A_7C15_u64 ^ u64::from(std::process::id());
    let mut unsupervised = BTreeSet::new();
    for life in 0.. {
        if until.map_or(life >= kills, |until| Instant::now() >= until) {
            break;
        }
        let mut agent = world.agent_at("a", &["--listen", "none"]).await;
        let specs = (0..SENT_AT_ONCE).map(|number| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = format!("s{life}-{number}");
            let text = format!("echo + {id} >> {log}; echo - {id} >> {log}", log = log.display());
            let draft = agent.script(text).id(&id);
            if random >> 60 < 4 { draft.shared().spec } else { draft.spec }
        });
        let mut told = send(&agent.client, specs.collect());
        // Killed after so many answers and scheduler turns: anywhere between the first request and the
        // last end.
        for _ in 0..(random >> 40) % 7 {
            accepted.extend(support::soon("an answer", told.recv()).await);
        }
        for _ in 0..(random >> 33) % 3000 {
            tokio::task::yield_now().await;
        }
        // Now and then a supervisor too, of a script that may stand anywhere.
        if random >> 56 < 64 {
            let id = format!("s{life}-{}", (random >> 50) % 6);
            if kill_supervisor(&agent, &id) {
                unsupervised.insert(id);
            }
        }
        agent.kill();
        while let Some(spec) = support::soon("the senders", told.recv()).await {
            accepted.push(spec);
        }
        // Its scripts are ended when it is dropped: not before all lives are over, and once for all.
        match dead {
            None => dead = Some(agent),
            Some(_) => std::mem::forget(agent),
        }
    }
    assert!(accepted.len() > kills, "only {} were accepted", accepted.len());

    let agent = world.agent_at("a", &["--listen", "none"]).await;
    for spec in &accepted {
        let script = Started { client: agent.client.clone(), id: spec.script_id.clone() };
        let outcome = script.outcome().await;
        let is_lost = matches!(&outcome.kind, OutcomeKind::Lost { reason } if reason.starts_with("its supervisor was killed"));
        let may_be_lost = unsupervised.contains(spec.script_id.as_str());
        assert!(exited(&outcome, 0) || (is_lost && may_be_lost), "{:?}", script.is_done().await);
    }
    // A sentinel behind everything, also behind what was accepted without an answer.
    assert!(exited(&agent.script("true").outcome().await, 0));
    let mut runs: BTreeMap<String, usize> = BTreeMap::new();
    for line in lines(&log) {
        let (sign, id) = line.split_once(' ').unwrap();
        *runs.entry(id.to_owned()).or_default() += usize::from(sign == "+");
    }
    for spec in &accepted {
        let count = runs.get(spec.script_id.as_str());
        let may_be_lost = unsupervised.contains(spec.script_id.as_str());
        assert!(count == Some(&1) || may_be_lost, "{} did not run once", spec.script_id);
    }
    assert!(runs.values().all(|count| *count <= 1), "{runs:?}");
    exclusive_ones_were_alone(&agent.client, &lines(&log), &unsupervised).await;
}

/// Whether there was one to kill.
fn kill_supervisor(agent: &TestAgent, id: &str) -> bool {
    let file = agent.folder.join("state/scripts").join(id).join("supervisor");
    let pid = std::fs::read_to_string(file).unwrap_or_default().trim().parse();
    let supervisor = pid.ok().and_then(Process::read);
    // The number may be another process's by now.
    let is_one = |process: &Process| process.command_line().ends_with(" supervise");
    supervisor.filter(is_one).is_some_and(|process| process.signal(Signal::KILL).is_some())
}

/// Between the two lines of an exclusive script there is no other.
async fn exclusive_ones_were_alone(
    client: &Client,
    log: &[String],
    unsupervised: &BTreeSet<String>,
) {
    for (place, line) in log.iter().enumerate() {
        let (sign, id) = line.split_once(' ').unwrap();
        let script = client.get(&id.parse().unwrap()).await.unwrap();
        let was_ended = unsupervised.contains(id) && !log.contains(&format!("- {id}"));
        if sign == "+" && !was_ended && script.isolation == baton::script::Isolation::Exclusive {
            assert_eq!(log[place + 1], format!("- {id}"), "beside {id}");
        }
    }
}

#[tokio::test]
async fn after_a_power_failure_what_only_waited_runs_and_what_is_damaged_holds_up_nobody() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    let waits = agent.script("true").id("waits").start().await;
    waits.is_waiting().await;
    let ended = agent.script("true").id("ended").observer().start().await;
    ended.is_done().await;
    let ran = agent.script(format!("echo on; {}", gate.wait())).id("ran").observer().start().await;
    ran.has_written(3).await;
    agent.kill();
    // The supervisors are gone too, and what was not synced is empty, as after a power failure.
    let folder = |id: &str| agent.folder.join("state/scripts").join(id);
    for id in ["waits", "ran"] {
        support::end_supervisor(&folder(id));
        support::write(&folder(id).join("job.json"), "");
        support::write(&folder(id).join("output.journal"), "");
    }
    support::write(&folder("ran").join("outcome.json"), "x");
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let script = |id| Started { client: again.client.clone(), id };
    let OutcomeKind::Lost { reason } = script(ran.id).outcome().await.kind else {
        panic!("not lost");
    };
    assert!(reason.contains("outcome.json is damaged"), "{reason}");
    gate.open();
    gate.open();
    assert!(exited(&script(waits.id).outcome().await, 0));
    assert!(exited(&script(ended.id).outcome().await, 0));
}

#[tokio::test]
async fn a_spare_supervisor_that_was_killed_is_replaced() {
    let world = World::new();
    let agent = world.agent().await;
    assert!(exited(&agent.script("true").outcome().await, 0));
    support::kill(support::spare(agent.pid()));
    assert!(exited(&agent.script("true").outcome().await, 0));
}

#[tokio::test]
async fn a_script_whose_supervisor_was_killed_is_lost_and_is_not_run_again() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let (gate, log) = (world.gate(), world.path("log"));
    let text = format!("echo ran >> {}; echo on; {}", log.display(), gate.wait());
    let folder = |id: &str| world.path("a/state/scripts").join(id);
    // Once beside a living agent, once while there is none.
    let first = agent.script(text.clone()).id("first").observer().start().await;
    first.has_written(3).await;
    support::end_supervisor(&folder("first"));
    assert!(matches!(first.outcome().await.kind, OutcomeKind::Lost { .. }));
    let second = agent.script(text).id("second").observer().start().await;
    second.has_written(3).await;
    agent.kill();
    support::end_supervisor(&folder("second"));
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let second = Started { client: again.client.clone(), id: second.id };
    assert!(matches!(second.outcome().await.kind, OutcomeKind::Lost { .. }));
    assert_eq!(lines(&log), ["ran", "ran"]);
    // What they left still waits there.
    gate.open();
    gate.open();
}

/// A supervisor that got its work just before the agent was killed, and was slow to begin.
#[tokio::test]
async fn a_supervisor_that_comes_late_finds_nothing_to_do() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let log = world.path("log");
    assert!(exited(&agent.script("true").outcome().await, 0));
    let late = support::Stopped::new(support::spare(agent.pid()));
    let script = agent.script(format!("echo ran >> {}", log.display())).start().await;
    script.until("assigned", |s| s.phase == Phase::Waiting).await;
    agent.kill();
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let script = Started { client: again.client.clone(), id: script.id };
    assert!(exited(&script.outcome().await, 0));
    late.go_on_to_the_end();
    assert_eq!(lines(&log), ["ran"]);
}

#[tokio::test]
async fn a_report_that_can_t_be_true_leaves_no_script_unfollowed() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let script = agent.script(format!("echo on; {}; exit 3", gate.wait())).id("odd").start().await;
    script.has_written(3).await;
    let next = agent.script("true").start().await;
    next.is_waiting().await;
    // It runs, and starts once more.
    let limits = Limits { max_bytes: 1024, min_free_bytes: 0 };
    let journal = agent.folder.join("state/scripts/odd/output.journal");
    let started = serde_json::to_vec(&Report::Started { leader: None }).unwrap();
    Writer::resume(&journal, limits, None)
        .unwrap()
        .append_event(&started, Timestamp::now())
        .unwrap();
    gate.open();
    assert!(exited(&script.outcome().await, 3));
    assert!(exited(&next.outcome().await, 0));
}
