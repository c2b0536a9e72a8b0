//! Promise: strict order of arrival. Shared scripts run together, exclusive ones alone, nobody
//! overtakes.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;

use baton::script::{Isolation, OutcomeKind};
use rustix::fs::{FlockOperation, flock};
use support::{Stopped, World, lines, soon};

/// The five-project example, by what the scripts themselves saw.
#[tokio::test]
async fn five_projects_run_in_their_order() {
    let world = World::new();
    let agent = world.agent().await;
    let (gates, log) = ([(); 5].map(|()| world.gate()), world.path("log"));
    let text = |n: usize| {
        let log = log.display();
        // The word on its output says that the line is in the log.
        let wait = gates[n - 1].wait();
        format!("echo start P{n} >> {log}; echo on; {wait}; echo end P{n} >> {log}")
    };
    let p1 = agent.script(text(1)).shared().start().await;
    let p2 = agent.script(text(2)).shared().start().await;
    let p3 = agent.script(text(3)).start().await;
    let p4 = agent.script(text(4)).shared().start().await;
    let p5 = agent.script(text(5)).shared().start().await;

    // P1 and P2 together; P3 says for whom it waits.
    p1.has_written(3).await;
    p2.has_written(3).await;
    let wait =
        p3.until("waiting for both", |s| s.waits.first().is_some_and(|w| w.holders.len() == 2));
    let wait = wait.await.waits.remove(0);
    assert_eq!(wait.position, 1);
    let holders: BTreeSet<_> =
        wait.holders.iter().map(|h| h.who.script_id.clone().unwrap()).collect();
    assert_eq!(holders, BTreeSet::from([p1.id.to_string(), p2.id.to_string()]));
    assert_eq!(p5.is_waiting().await.waits[0].position, 3);

    // P3 alone, after both.
    gates[0].open();
    p1.is_done().await;
    p3.until("waiting for P2 alone", |s| s.waits.first().is_some_and(|w| w.holders.len() == 1))
        .await;
    gates[1].open();
    p3.has_written(3).await;
    p4.until("waiting for P3", |s| {
        let holder = s.waits.first().and_then(|w| w.holders.first());
        holder.is_some_and(|h| h.who.script_id == Some(p3.id.to_string()))
    })
    .await;

    // P4 and P5 together, after P3.
    gates[2].open();
    p4.has_written(3).await;
    p5.has_written(3).await;
    gates[3].open();
    gates[4].open();
    p4.is_done().await;
    p5.is_done().await;

    let log = lines(&log);
    let at = |line: &str| log.iter().position(|l| l == line).unwrap();
    assert!(at("start P2") < at("end P1"), "P1 and P2 together: {log:?}");
    assert_eq!(&log[4..6], ["start P3", "end P3"], "P3 alone: {log:?}");
    assert!(at("start P5").max(at("start P4")) < at("end P4").min(at("end P5")), "{log:?}");
}

/// Fifty scripts of random kinds: half of them queue behind one that holds the machine, the others
/// arrive while those run.
#[tokio::test]
async fn fifty_scripts_at_random_neither_overlap_nor_overtake() {
    let world = World::new();
    let agent = world.agent().await;
    let (gate, log) = (world.gate(), world.path("log"));
    let first = agent.script(gate.wait()).start().await;
    first.is_running().await;

    let seed = 0x2545_F491_4F6C_DD1D_u64 ^ u64::from(std::process::id());
    let mut random = seed;
    let mut scripts = Vec::new();
    for number in 0..50 {
        if number == 25 {
            gate.open();
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let kind = ['x', 's', 's', '2'][usize::try_from(random % 4).unwrap()];
        let text =
            format!("echo + {number} >> {log}; echo - {number} >> {log}", log = log.display());
        let draft = agent.script(text).id(&format!("s{number}"));
        let draft = match kind {
            'x' => draft,
            's' => draft.shared(),
            _ => draft.at_most(2),
        };
        scripts.push((kind, draft.start().await));
    }
    for (_, script) in &scripts {
        script.is_done().await;
    }
    let kinds: Vec<char> = scripts.iter().map(|(kind, _)| *kind).collect();
    let started = assert_order(&kinds, &lines(&log));
    assert_eq!(started, 50, "seed {seed:#x}");
}

/// Whoever starts stands together with all who came before and have not ended: each of them must allow
/// as many. So nobody overlaps with more than it may, and nobody overtakes. Says how many started.
fn assert_order(kinds: &[char], log: &[String]) -> usize {
    let limit = |number: &usize| match kinds[*number] {
        'x' => 1,
        's' => usize::MAX,
        _ => 2,
    };
    let (mut started, mut ended) = (BTreeSet::new(), BTreeSet::new());
    for line in log {
        let (sign, number) = line.split_once(' ').unwrap();
        let number: usize = number.parse().unwrap();
        if sign == "-" {
            ended.insert(number);
            continue;
        }
        started.insert(number);
        let later = started.iter().copied().filter(|other| *other > number);
        let together: BTreeSet<usize> =
            (0..=number).chain(later).filter(|other| !ended.contains(other)).collect();
        assert!(
            together.len() <= together.iter().map(limit).min().unwrap(),
            "{number} starts with {together:?} not ended, of {}: {log:?}",
            kinds.iter().collect::<String>()
        );
    }
    started.len()
}

/// A long line of exclusive and shared scripts: as long as the first holds, nobody goes, and then all
/// do, in order.
#[tokio::test]
async fn long_waits_change_nothing() {
    let world = World::new();
    let agent = world.agent().await;
    let (gate, log) = (world.gate(), world.path("log"));
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    let mut queued = Vec::new();
    for number in 0..6 {
        let text = format!("echo {number} >> {}", log.display());
        // Exclusive ones only at the even places, so the order in the log is the order of pairs.
        let draft = agent.script(text);
        let draft = if number % 2 == 0 { draft } else { draft.shared() };
        queued.push(draft.start().await);
    }
    // Someone who keeps asking changes nothing about the order: positions stay as they are.
    for _ in 0..200 {
        for (place, script) in queued.iter().enumerate() {
            let position = script.client.get(&script.id).await.unwrap().waits[0].position;
            assert_eq!(usize::try_from(position).unwrap(), place + 1);
        }
    }
    assert!(lines(&log).is_empty());
    gate.open();
    for script in &queued {
        script.is_done().await;
    }
    assert_eq!(lines(&log), ["0", "1", "2", "3", "4", "5"]);
    assert_eq!(queued.len(), 6);
    let isolation = queued[1].client.get(&queued[1].id).await.unwrap().isolation;
    assert_eq!(isolation, Isolation::Shared { at_most: None });
}

/// The agent lets the next one join when the one before has its place, not when it asks for it: the
/// guard of the line may be taken by whoever comes first.
#[tokio::test]
async fn a_busy_guard_changes_no_order() {
    let world = World::new();
    let agent = world.agent().await;
    let log = world.path("log");
    // Makes the line.
    assert_eq!(agent.script("true").outcome().await.kind, OutcomeKind::Exited { code: 0 });
    let guard = File::open(world.mutexes().join("machine/guard")).unwrap();
    flock(&guard, FlockOperation::LockExclusive).unwrap();
    let text = |name: &str| format!("echo {name} >> {}", log.display());
    let first = agent.script(text("first")).id("first").start().await;
    let supervisor = agent.folder.join("state/scripts/first/supervisor");
    let pid = soon("the first to stand at the guard", async {
        loop {
            let pid = std::fs::read_to_string(&supervisor).unwrap_or_default().trim().to_owned();
            let waits = std::fs::read_to_string("/proc/locks").unwrap();
            let stands = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.contains(&"->") && words.contains(&pid.as_str())
            };
            if !pid.is_empty() && waits.lines().any(stands) {
                break pid;
            }
            tokio::task::yield_now().await;
        }
    });
    let stopped = Stopped::new(pid.await.parse().unwrap());
    let second = agent.script(text("second")).start().await;
    flock(&guard, FlockOperation::Unlock).unwrap();
    // Time for the second to overtake, if it may.
    for _ in 0..3 {
        agent.script("true").mutex("other").outcome().await;
    }
    assert!(!log.exists(), "overtaken: {:?}", lines(&log));
    stopped.go_on_to_the_end();
    first.is_done().await;
    second.is_done().await;
    assert_eq!(lines(&log), ["first", "second"]);
}
