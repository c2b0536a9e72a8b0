//! Promise: a lease holds a machine over several scripts: nobody else's come between, whatever dies.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use baton::client::{Lease, LeaseWish};
use baton::process::Process;
use baton::script::{OutcomeKind, Phase, StartProblem, StragglerPolicy};
use baton::snapshot::Snapshot;
use baton::spec::{LeaseTerms, OnLeaseEnd, Spec};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use support::run::Run;
use support::{Draft, Started, TestAgent, World, exited, finish, lines, reason, soon};

/// A lease that is open.
async fn open(agent: &TestAgent, id: &str) -> Lease {
    let lease = wish(agent, id).await;
    let snapshot = soon("an open lease", lease.until_open(|_| {})).await.unwrap();
    assert_eq!(snapshot.phase, Phase::Running, "{snapshot:?}");
    lease
}

/// A lease that may have to wait.
async fn wish(agent: &TestAgent, id: &str) -> Lease {
    let wish = LeaseWish { reason: format!("why {id}"), ..LeaseWish::new(id.parse().unwrap()) };
    soon("OpenLease", agent.client.open_lease(wish)).await.unwrap()
}

/// The lease as the script that it is.
fn script(agent: &TestAgent, id: &str) -> Started {
    Started { client: agent.client.clone(), id: id.parse().unwrap() }
}

/// A script under a lease.
fn under(agent: &TestAgent, lease: &Lease, text: String) -> Draft {
    agent.script(text).with(|spec| *spec = lease.under(spec.clone()))
}

fn note(world: &World, what: &str) -> String {
    format!("echo {what} >> {}", world.path("log").display())
}

fn log(world: &World) -> Vec<String> {
    lines(&world.path("log"))
}

async fn close(agent: &TestAgent, id: &str, on_end: OnLeaseEnd) -> Snapshot {
    let id = id.parse().unwrap();
    let close = agent.client.close_lease(&id, on_end, "done".to_owned());
    soon("CloseLease", close).await.unwrap()
}

/// `baton mutex run machine`, which waits when this returns.
fn outsider(world: &World) -> Run {
    Run::waiter(world, "machine", "outside")
}

fn assert_not_started(outcome: &OutcomeKind) {
    let OutcomeKind::NotStarted { cause: StartProblem::Lease, reason } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(reason.contains("lease"), "{reason}");
}

/// Three scripts, each when the one before has ended.
async fn deploy(world: &World, agent: &TestAgent, name: &str, lease: Option<&Lease>) {
    for step in 1..=3 {
        let mut draft = agent.script(note(world, &format!("{name}{step}")));
        if let Some(lease) = lease {
            draft = draft.with(|spec| *spec = lease.under(spec.clone()));
        }
        assert!(exited(&draft.outcome().await, 0));
    }
}

#[tokio::test]
async fn deployments_of_several_scripts_never_mix() {
    let world = World::new();
    let agent = world.agent().await;
    let leased = async |name: &str| {
        let lease = open(&agent, name).await;
        deploy(&world, &agent, name, Some(&lease)).await;
        lease.close(OnLeaseEnd::Wait, String::new()).await.unwrap();
        script(&agent, name).outcome().await
    };
    let (a, b, ()) = tokio::join!(leased("a"), leased("b"), deploy(&world, &agent, "c", None));
    for ended in [a, b] {
        assert_eq!(ended.kind, OutcomeKind::LeaseClosed { reason: String::new() });
    }
    let steps: Vec<String> = log(&world);
    assert_eq!(steps.len(), 9);
    for name in ["a", "b"] {
        let first = steps.iter().position(|step| step.starts_with(name)).unwrap();
        let own = [1, 2, 3].map(|step| format!("{name}{step}"));
        assert_eq!(steps[first..first + 3], own, "{steps:?}");
    }
}

#[tokio::test]
async fn without_leases_they_do() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let held = agent.script(gate.wait()).start().await;
    held.is_running().await;
    let mut others = Vec::new();
    for word in ["a1", "b1"] {
        others.push(agent.script(note(&world, word)).start().await);
    }
    gate.open();
    assert!(exited(&others[0].outcome().await, 0));
    assert!(exited(&agent.script(note(&world, "a2")).outcome().await, 0));
    assert_eq!(log(&world), ["a1", "b1", "a2"]);
}

#[tokio::test]
async fn whoever_waits_is_told_of_the_lease_and_bypassing_scripts_wait_too() {
    let world = World::new();
    let agent = world.agent().await;
    let wish = LeaseWish {
        reason: "release 7".to_owned(),
        labels: [("project".to_owned(), "web".to_owned())].into(),
        ..LeaseWish::new("web-7".parse().unwrap())
    };
    let lease = agent.client.open_lease(wish).await.unwrap();
    soon("an open lease", lease.until_open(|_| {})).await.unwrap();
    let bypassing = agent.script("true").shared().start().await;
    let waits = bypassing.is_waiting().await.waits;
    let holder = &waits[0].holders[0].who;
    assert_eq!(holder.script_id.as_deref(), Some("web-7"));
    assert_eq!((holder.reason.as_str(), holder.labels["project"].as_str()), ("release 7", "web"));
    assert!(holder.lease_expires_at.is_some() && holder.holds_since.is_some());
    let told = waits[0].reason();
    assert!(
        told.contains("script web-7 (lease, ttl 1m") && told.contains("unless renewed"),
        "{told}"
    );
    let baton = |words: &[&str]| {
        let (code, out, error) = finish(world.baton_at(&agent.name).args(words));
        assert_eq!(code, 0, "{error}");
        out
    };
    let queue = baton(&["queue"]);
    assert!(queue.contains("open, ") && queue.contains(" left"), "{queue}");
    let list: serde_json::Value =
        serde_json::from_str(&baton(&["lease", "list", "--json"])).unwrap();
    assert_eq!(list["lease_standing"]["reason"], "release 7");
    assert_eq!(list["lease_standing"]["ttl_seconds"], 60.0);
    // A person at a shell is told as well.
    let status = baton(&["mutex", "status", "machine"]);
    assert!(status.contains("web-7") && status.contains("release 7"), "{status}");
    let mut person = Run::start(&world, "machine", "true");
    let told = person.told();
    assert!(told.contains("web-7"), "{told}");
    close(&agent, "web-7", OnLeaseEnd::Wait).await;
    assert!(exited(&bypassing.outcome().await, 0));
    assert_eq!(person.end(), 0);
}

#[tokio::test]
async fn scripts_wait_for_their_lease_to_open_and_keep_their_order() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let before = agent.script(gate.wait()).start().await;
    before.is_running().await;
    let lease = wish(&agent, "late").await;
    let first = under(&agent, &lease, format!("{}; {}", gate.wait(), note(&world, "1"))).start();
    let first = first.await;
    let second = under(&agent, &lease, note(&world, "2")).start().await;
    let after = agent.script(note(&world, "after")).start().await;
    // The lease is before it, and somebody holds.
    let wait = first.is_waiting().await.waits.remove(0);
    assert_eq!((wait.position, wait.holders.len()), (2, 1), "{wait:?}");
    assert_eq!(wait.ahead[0].who.script_id.as_deref(), Some("late"));
    gate.open();
    first.is_running().await;
    let wait = second.until("behind", |s| s.waits.iter().any(|w| w.holder_count == 1)).await;
    assert_eq!(wait.waits[0].mutex.as_str(), "lease.late");
    gate.open();
    assert!(exited(&second.outcome().await, 0));
    assert_eq!(after.is_waiting().await.waits[0].holders[0].who.script_id.as_deref(), Some("late"));
    close(&agent, "late", OnLeaseEnd::Wait).await;
    assert!(exited(&after.outcome().await, 0));
    assert_eq!(log(&world), ["1", "2", "after"]);
}

#[tokio::test]
async fn shared_scripts_of_one_lease_run_together_and_nobody_else_does() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let lease = open(&agent, "both").await;
    let other = agent.script("true").shared().start().await;
    let first = under(&agent, &lease, gate.wait()).shared().start().await;
    let second = under(&agent, &lease, gate.wait()).shared().start().await;
    first.is_running().await;
    second.is_running().await;
    let alone = under(&agent, &lease, "true".to_owned()).start().await;
    assert_eq!(alone.is_waiting().await.waits[0].holder_count, 2);
    assert_eq!(other.is_waiting().await.waits[0].holder_count, 1);
    gate.open();
    gate.open();
    assert!(exited(&alone.outcome().await, 0));
    close(&agent, "both", OnLeaseEnd::Wait).await;
    assert!(exited(&other.outcome().await, 0));
}

#[tokio::test]
async fn a_lease_whose_client_vanished_ends_after_its_ttl_and_says_so() {
    let world = World::new();
    let agent = world.agent().await;
    let mut command = world.baton_at(&agent.name);
    command.args(["lease", "open", "--hold", "--ttl", "1s", "--id", "gone"]);
    let mut client = Run::of(&mut command);
    assert_eq!(client.line(), "gone");
    let spec = |text: &str| {
        let lease = Some("gone".parse().unwrap());
        Spec { lease, ..Spec::of_body(text.to_owned(), "bash") }
    };
    let running = agent.script("").with(|s| *s = spec("sleep 600")).start().await;
    running.is_running().await;
    let queued = agent.script("").with(|s| *s = spec("true")).start().await;
    let next = agent.script("true").start().await;
    // It is renewed as long as its client lives, for longer than its ttl.
    let first = agent.client.get(&"gone".parse().unwrap()).await.unwrap().lease_standing.unwrap();
    let renewed = async {
        loop {
            let now = agent.client.get(&"gone".parse().unwrap()).await.unwrap();
            let standing = now.lease_standing.unwrap();
            let since = standing.expires_at.unwrap() - first.expires_at.unwrap();
            if Duration::try_from(since).unwrap() > Duration::from_millis(1200) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    soon("renewals", renewed).await;
    client.kill();
    let ended = script(&agent, "gone").outcome().await;
    let OutcomeKind::LeaseExpired { reason } = &ended.kind else { panic!("{ended:?}") };
    assert!(reason.contains("its client vanished") && reason.contains("since"), "{reason}");
    let OutcomeKind::Cancelled { reason, .. } = running.outcome().await.kind else { panic!() };
    assert!(reason.contains("lease gone ended: expired"), "{reason}");
    assert_not_started(&queued.outcome().await.kind);
    assert!(exited(&next.outcome().await, 0));
    let late = agent.script("").with(|s| *s = spec("true")).try_start().await;
    assert_eq!(support::reason(&late.err().unwrap()), "LEASE_ENDED");
    let renewed = agent.client.renew_lease(&"gone".parse().unwrap()).await;
    assert_eq!(support::reason(&renewed.unwrap_err()), "LEASE_ENDED");
}

#[tokio::test]
async fn a_waiting_lease_whose_client_vanished_leaves_the_line() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let held = agent.script(gate.wait()).start().await;
    held.is_running().await;
    let ttl = LeaseTerms::MIN_TTL;
    // The first waits in the machine's line, the second in the agent's queue.
    for id in ["launched", "queued"] {
        let wish = LeaseWish { ttl, ..LeaseWish::new(id.parse().unwrap()) };
        drop(agent.client.open_lease(wish).await.unwrap());
    }
    for id in ["launched", "queued"] {
        let lease = script(&agent, id).is_done().await;
        let Phase::Done(outcome) = lease.phase else { unreachable!() };
        assert!(matches!(outcome.kind, OutcomeKind::LeaseExpired { .. }), "{outcome:?}");
        assert_eq!(lease.started_at, None);
    }
    gate.open();
    held.is_done().await;
}

#[tokio::test]
async fn a_killed_agent_costs_a_lease_nothing() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let lease = open(&agent, "lasts").await;
    let text = format!("echo on; {}; {}", gate.wait(), note(&world, "1"));
    let first = under(&agent, &lease, text).id("first").start().await;
    first.has_written(3).await;
    under(&agent, &lease, note(&world, "2")).id("second").start().await;
    let mut outside = outsider(&world);
    agent.kill();
    gate.open();
    let again = world.agent_at("a", &["--listen", "none"]).await;
    assert!(exited(&script(&again, "second").outcome().await, 0));
    assert!(exited(&script(&again, "first").outcome().await, 0));
    let third = again.script(note(&world, "3"));
    let lease = Some("lasts".parse().unwrap());
    assert!(exited(&third.with(|spec| spec.lease = lease).outcome().await, 0));
    assert_eq!(log(&world), ["1", "2", "3"]);
    close(&again, "lasts", OnLeaseEnd::Wait).await;
    assert_eq!(
        script(&again, "lasts").outcome().await.kind,
        OutcomeKind::LeaseClosed { reason: "done".to_owned() }
    );
    await_end(&mut outside);
    assert_eq!(log(&world), ["1", "2", "3", "outside"]);
}

fn await_end(run: &mut Run) {
    assert!(run.child.wait().unwrap().success());
}

#[tokio::test]
async fn a_lease_that_ends_when_the_agent_is_killed_ends_all_the_same() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let lease = open(&agent, "ends").await;
    let first =
        under(&agent, &lease, format!("echo on; {}", gate.wait())).id("first").start().await;
    first.has_written(3).await;
    close(&agent, "ends", OnLeaseEnd::Wait).await;
    agent.kill();
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let refused = again.script("true").with(|spec| spec.lease = Some("ends".parse().unwrap()));
    assert_eq!(reason(&refused.try_start().await.err().unwrap()), "LEASE_ENDED");
    gate.open();
    assert!(exited(&script(&again, "first").outcome().await, 0));
    let ended = script(&again, "ends").outcome().await.kind;
    assert_eq!(ended, OutcomeKind::LeaseClosed { reason: "done".to_owned() });
}

#[tokio::test]
async fn when_its_supervisor_is_killed_what_runs_keeps_the_machine() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let lease = open(&agent, "holder").await;
    let text = format!("echo on; {}; {}", gate.wait(), note(&world, "inside"));
    let running = under(&agent, &lease, text).start().await;
    running.has_written(3).await;
    let queued = under(&agent, &lease, "true".to_owned()).start().await;
    let mut outside = outsider(&world);
    let next = agent.script(note(&world, "next")).start().await;
    support::end_supervisor(&agent.folder.join("state/scripts/holder"));
    assert_not_started(&queued.outcome().await.kind);
    let late = under(&agent, &lease, "true".to_owned()).try_start().await;
    assert_eq!(reason(&late.err().unwrap()), "LEASE_ENDED");
    // It still has the machine: nobody else was let in.
    assert_eq!(log(&world), [""; 0]);
    let (busy, _, _) =
        finish(world.baton().args(["mutex", "run", "--no-wait", "machine", "--", "true"]));
    assert_eq!(busy, 75);
    assert!(!is_plainly_free(&world), "a tool that knows only the plain lock got in");
    gate.open();
    assert!(exited(&running.outcome().await, 0));
    let lost = OutcomeKind::Lost { reason: "its supervisor was killed by SIGKILL".to_owned() };
    assert_eq!(script(&agent, "holder").outcome().await.kind, lost);
    await_end(&mut outside);
    assert!(exited(&next.outcome().await, 0));
    let log = log(&world);
    assert_eq!(log[0], "inside");
    assert_eq!(log.len(), 3);
}

/// Whether a program that knows only the plain lock may have the machine.
fn is_plainly_free(world: &World) -> bool {
    let file = File::open(world.mutexes().join("machine/os.lock")).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[tokio::test]
async fn so_it_is_when_the_agent_was_killed_before() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let lease = open(&agent, "holder").await;
    let text = format!("echo on; {}; {}", gate.wait(), note(&world, "inside"));
    let running = under(&agent, &lease, text).id("running").start().await;
    running.has_written(3).await;
    under(&agent, &lease, "true".to_owned()).id("queued").start().await;
    let mut outside = outsider(&world);
    agent.kill();
    support::end_supervisor(&agent.folder.join("state/scripts/holder"));
    let again = world.agent_at("a", &["--listen", "none"]).await;
    assert_not_started(&script(&again, "queued").outcome().await.kind);
    assert_eq!(log(&world), [""; 0]);
    gate.open();
    let outcome = script(&again, "running").outcome().await;
    assert!(exited(&outcome, 0), "{outcome:?}");
    assert!(matches!(script(&again, "holder").outcome().await.kind, OutcomeKind::Lost { .. }));
    await_end(&mut outside);
    assert_eq!(log(&world), ["inside", "outside"]);
}

/// What it left is ended before the next of the lease runs, and before the lease gives the machine back.
#[tokio::test]
async fn when_a_script_s_supervisor_is_killed_its_tree_is_ended_first() {
    let world = World::new();
    let agent = world.agent().await;
    let lease = open(&agent, "robbed").await;
    let pid = world.path("pid");
    let stubborn =
        format!("trap '' TERM; echo $$ > {}; echo on; {}", pid.display(), world.gate().wait());
    let grace = |spec: &mut Spec| spec.grace = Some(Duration::from_millis(300));
    let first = under(&agent, &lease, stubborn).with(grace).id("first").start().await;
    first.has_written(3).await;
    let second = under(&agent, &lease, note(&world, "second")).start().await;
    let mut outside = outsider(&world);
    support::end_supervisor(&agent.folder.join("state/scripts/first"));
    assert!(matches!(first.outcome().await.kind, OutcomeKind::Lost { .. }));
    let pid = lines(&pid).remove(0).parse().unwrap();
    assert!(Process::read(pid).is_none_or(|process| process.is_zombie()));
    assert!(exited(&second.outcome().await, 0));
    assert_eq!(log(&world), ["second"]);
    close(&agent, "robbed", OnLeaseEnd::Wait).await;
    await_end(&mut outside);
    assert_eq!(log(&world), ["second", "outside"]);
}

#[tokio::test]
async fn closing_lets_what_runs_end_and_starts_nothing_more() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let lease = open(&agent, "closed").await;
    let text = format!("{}; {}", gate.wait(), note(&world, "inside"));
    let running = under(&agent, &lease, text).start().await;
    running.is_running().await;
    let queued = under(&agent, &lease, "true".to_owned()).start().await;
    let mut outside = outsider(&world);
    let closing = close(&agent, "closed", OnLeaseEnd::Wait).await;
    assert_eq!(closing.phase, Phase::Stopping);
    assert_not_started(&queued.outcome().await.kind);
    let late = under(&agent, &lease, "true".to_owned()).try_start().await;
    assert_eq!(reason(&late.err().unwrap()), "LEASE_ENDED");
    gate.open();
    assert!(exited(&running.outcome().await, 0));
    await_end(&mut outside);
    assert_eq!(log(&world), ["inside", "outside"]);
    let closed = script(&agent, "closed").is_done().await;
    assert!(closed.started_at.is_some());
    // Again: nothing changes.
    let again = close(&agent, "closed", OnLeaseEnd::Cancel).await;
    assert_eq!(again.phase, closed.phase);
    let (code, out, _) = finish(world.baton_at(&agent.name).args(["list", "--outcome", "failed"]));
    assert!(code == 0 && !out.contains("closed:"), "{out}");
}

#[tokio::test]
async fn closing_with_cancel_ends_what_runs_also_when_it_was_closed_before() {
    let world = World::new();
    let agent = world.agent().await;
    let lease = open(&agent, "stopped").await;
    let running = under(&agent, &lease, "sleep 600".to_owned()).start().await;
    running.is_running().await;
    close(&agent, "stopped", OnLeaseEnd::Wait).await;
    close(&agent, "stopped", OnLeaseEnd::Cancel).await;
    assert!(matches!(running.outcome().await.kind, OutcomeKind::Cancelled { .. }));
    let ended = script(&agent, "stopped").outcome().await.kind;
    assert_eq!(ended, OutcomeKind::LeaseClosed { reason: "done".to_owned() });
}

#[tokio::test]
async fn one_may_be_closed_at_any_moment_of_its_launch() {
    let world = World::new();
    let agent = world.agent().await;
    for number in 0..30 {
        let id = format!("lease{number}");
        drop(wish(&agent, &id).await);
        for _ in 0..number * 20 {
            tokio::task::yield_now().await;
        }
        close(&agent, &id, OnLeaseEnd::Wait).await;
        let closed = OutcomeKind::LeaseClosed { reason: "done".to_owned() };
        assert_eq!(script(&agent, &id).outcome().await.kind, closed);
    }
    assert!(exited(&agent.script("true").outcome().await, 0));
}

#[tokio::test]
async fn a_lease_that_is_cancelled_takes_its_scripts_along() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let held = agent.script(gate.wait()).start().await;
    held.is_running().await;
    for id in ["launched", "queued"] {
        let lease = wish(&agent, id).await;
        let queued = under(&agent, &lease, "true".to_owned()).start().await;
        script(&agent, id).is_waiting().await;
        support::cancel(&script(&agent, id), "not now").await;
        assert_not_started(&queued.outcome().await.kind);
        let cancelled = OutcomeKind::Cancelled { while_queued: true, reason: "not now".to_owned() };
        assert_eq!(script(&agent, id).outcome().await.kind, cancelled);
    }
    gate.open();
    held.is_done().await;
    let lease = open(&agent, "open").await;
    let running = under(&agent, &lease, "sleep 600".to_owned()).start().await;
    running.is_running().await;
    support::cancel(&script(&agent, "open"), "stop it").await;
    assert!(matches!(running.outcome().await.kind, OutcomeKind::Cancelled { .. }));
    let cancelled = OutcomeKind::Cancelled { while_queued: false, reason: "stop it".to_owned() };
    assert_eq!(script(&agent, "open").outcome().await.kind, cancelled);
}

#[tokio::test]
async fn the_same_request_is_the_same_lease_and_an_unknown_one_is_refused() {
    let world = World::new();
    let agent = world.agent().await;
    let lease = open(&agent, "same").await;
    open(&agent, "same").await;
    let other = LeaseWish::new("same".parse().unwrap());
    let refused = agent.client.open_lease(other).await;
    assert_eq!(reason(&refused.unwrap_err()), "SCRIPT_ID_CONFLICT");
    let unknown = agent.script("true").with(|spec| spec.lease = Some("who".parse().unwrap()));
    assert_eq!(reason(&unknown.try_start().await.err().unwrap()), "LEASE_NOT_FOUND");
    let unknown = agent.client.renew_lease(&"who".parse().unwrap()).await;
    assert_eq!(reason(&unknown.unwrap_err()), "LEASE_NOT_FOUND");
    let script_id = agent.script("true").observer().start().await.id;
    let no_lease = agent.client.renew_lease(&script_id).await;
    assert_eq!(reason(&no_lease.unwrap_err()), "LEASE_NOT_FOUND");
    let other_mutex = under(&agent, &lease, "true".to_owned()).mutex("log").try_start().await;
    assert_eq!(reason(&other_mutex.err().unwrap()), "FIELD_INVALID");
    let terms = LeaseTerms { ttl: LeaseTerms::MIN_TTL, reason: String::new() };
    let refused = agent.client.start(Spec::of_lease(terms)).await;
    assert_eq!(reason(&refused.unwrap_err()), "FIELD_INVALID");
    assert_eq!(agent.client.leases().await.unwrap().len(), 1);
    // A script that was accepted stays the same script when the lease has ended.
    let done = under(&agent, &lease, "true".to_owned()).id("done");
    let again = agent.script("").with(|spec| *spec = done.spec.clone());
    assert!(exited(&done.outcome().await, 0));
    close(&agent, "same", OnLeaseEnd::Wait).await;
    script(&agent, "same").is_done().await;
    assert!(exited(&again.outcome().await, 0));
}

#[tokio::test]
async fn an_open_lease_goes_on_while_the_agent_drains() {
    let world = World::new();
    let agent = world.agent().await;
    let lease = open(&agent, "drained").await;
    agent.client.drain("kernel".to_owned()).await.unwrap();
    assert!(exited(&under(&agent, &lease, "true".to_owned()).outcome().await, 0));
    let refused = agent.script("true").try_start().await;
    assert_eq!(reason(&refused.err().unwrap()), "AGENT_DRAINING");
    let wish = LeaseWish::new("new".parse().unwrap());
    let refused = agent.client.open_lease(wish).await;
    assert_eq!(reason(&refused.unwrap_err()), "AGENT_DRAINING");
    close(&agent, "drained", OnLeaseEnd::Wait).await;
    script(&agent, "drained").is_done().await;
    assert_eq!(agent.client.info().await.unwrap().status.unwrap().running, 0);
}

#[tokio::test]
async fn a_script_knows_its_lease_and_what_it_leaves_holds_nothing() {
    let world = World::new();
    let agent = world.agent().await;
    // The longest id: the path of the lease's socket is longer than a socket's path may be.
    let id = "l".repeat(128);
    let lease = open(&agent, &id).await;
    let text = "echo $BATON_LEASE; test -n \"$BATON_MUTEX_FENCE\" || exit 9
        baton mutex run --no-wait log -- true || exit 8
        baton mutex run machine -- true; echo $?";
    let asks = under(&agent, &lease, text.to_owned()).start().await;
    let told = String::from_utf8(asks.output().await).unwrap();
    assert!(exited(&asks.outcome().await, 0), "{told}");
    assert!(told.contains(&id) && told.contains("wait for itself"), "{told}");
    // It has the descriptors, and goes on.
    let left =
        format!("setsid sleep 600 > /dev/null 2>&1 & echo $! > {}", world.path("left").display());
    let keep = |spec: &mut Spec| spec.stragglers = StragglerPolicy::Keep;
    assert!(exited(&under(&agent, &lease, left).with(keep).outcome().await, 0));
    close(&agent, &id, OnLeaseEnd::Wait).await;
    script(&agent, &id).is_done().await;
    let free = finish(world.baton().args(["mutex", "run", "--no-wait", "machine", "--", "true"]));
    assert_eq!(free.0, 0, "{free:?}");
    support::kill(lines(&world.path("left")).remove(0).parse().unwrap());
}

#[tokio::test]
async fn the_commands_open_renew_list_and_close() {
    let world = World::new();
    let agent = world.agent().await;
    let baton = |words: &str| finish(world.baton_at(&agent.name).args(words.split(' ')));
    let (code, id, _) = baton("lease open --ttl 10m --label project=web --reason seven");
    let id = id.trim();
    assert_eq!(code, 0);
    let (code, out, told) = baton(&format!("run --lease {id} -c true"));
    assert_eq!((code, out.as_str()), (0, ""), "{told}");
    let (_, list, _) = baton("lease list");
    assert!(list.contains(id) && list.contains("project=web seven"), "{list}");
    let (code, out, _) = baton(&format!("lease renew {id}"));
    assert!(code == 0 && out.contains("open, 9m59s left"), "{out}");
    let (code, out, _) = baton(&format!("lease close {id} --wait --reason over"));
    assert_eq!((code, out), (0, format!("{id}: closed: over\n")));
    assert_eq!(baton("lease list").1, "there is no lease\n");
    let (code, _, told) = baton(&format!("run --lease {id} -c true"));
    assert!(code == 2 && told.contains("hint:"), "{told}");
    let mut held =
        Run::of(world.baton_at(&agent.name).args(["lease", "open", "--hold", "--id", "h"]));
    assert_eq!(held.line(), "h");
    support::signal(&held.child, Signal::TERM);
    assert_eq!(held.end(), 0);
    let (_, shown, _) = baton("show h");
    assert!(shown.contains("closed: its client was interrupted"), "{shown}");
    assert!(Path::new(&agent.folder.join("state/scripts/h")).exists());
}
