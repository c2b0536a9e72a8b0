//! Promise: what is kept of scripts that are done has limits of age, number and size; the oldest goes
//! first, a living one never, and a killed agent leaves no half.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use baton::client::Client;
use baton::filewatch::FileWatcher;
use support::{Started, TestAgent, World, exited, finish, reason, soon};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often the agent is killed.
const KILLS: usize = 8;

/// Writes the agent's limits.
fn keep(world: &World, limits: &str) {
    let folder = world.path("a/config");
    std::fs::create_dir_all(&folder).unwrap();
    support::write(&folder.join("agent.toml"), &format!("[retention]\n{limits}\n"));
}

async fn agent(world: &World) -> TestAgent {
    world.agent_at("a", &["--listen", "none"]).await
}

fn scripts(agent: &TestAgent) -> PathBuf {
    agent.folder.join("state/scripts")
}

/// The names of a folder's entries, hidden ones left out.
fn entries(folder: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// The scripts that the agent knows, those that are done.
async fn done(client: &Client) -> BTreeSet<String> {
    let done = [baton::wire::v1::Phase::Done];
    let scripts = client.list(&done, &[].into(), 1000).await.unwrap();
    scripts.into_iter().map(|script| script.script_id.to_string()).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Waits until the agent knows exactly these as done, and what was removed is gone from the disk.
async fn keeps(agent: &TestAgent, expected: &[&str]) {
    let expected = names(expected);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let watcher = FileWatcher::start(&tasks, stop.clone()).unwrap();
    // The last step empties this one.
    let removed = scripts(agent).join(".removed");
    let mut watch = watcher.watch(&removed).unwrap();
    let search = async {
        while done(&agent.client).await != expected || !entries(&removed).is_empty() {
            watch.changed().await;
        }
    };
    soon(&format!("only {expected:?} to be left"), search).await;
    stop.cancel();
}

#[tokio::test]
async fn the_oldest_go_when_there_are_too_many_and_living_ones_stay() {
    let world = World::new();
    keep(&world, "max_scripts = 2\nmin_age = \"0s\"");
    let agent = agent(&world).await;
    let gate = world.gate();
    let runs = agent.script(format!("echo on; {}; echo off", gate.wait())).id("runs").start().await;
    runs.has_written(3).await;
    let waits = agent.script("true").id("waits").start().await;
    for id in ["d1", "d2", "d3", "d4", "d5"] {
        agent.script("echo out").observer().id(id).outcome().await;
    }
    keeps(&agent, &["d4", "d5"]).await;
    assert_eq!(entries(&scripts(&agent)), names(&["d4", "d5", "runs", "waits"]));
    let kept = Started { client: agent.client.clone(), id: "d4".parse().unwrap() };
    assert_eq!(kept.output().await, b"out\n");
    let error = agent.client.get(&"d1".parse().unwrap()).await.unwrap_err();
    assert_eq!(reason(&error), "SCRIPT_NOT_FOUND");
    // A living one is not to be removed by anybody.
    let (code, _, error) = finish(world.baton_at("a").args(["forget", "runs"]));
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("not done") && error.contains("hint: `baton cancel"), "{error}");
    let follower = tokio::spawn(support::output(agent.client.watch(runs.id.clone(), 0, true)));
    gate.open();
    assert_eq!(soon("the output", follower).await.unwrap(), b"on\noff\n");
    assert!(exited(&waits.outcome().await, 0));
    keeps(&agent, &["runs", "waits"]).await;
}

#[tokio::test]
async fn workspaces_and_output_count_together_against_the_size() {
    let world = World::new();
    keep(&world, "max_bytes = 3500000\nmin_age = \"0s\"");
    let agent = agent(&world).await;
    let file = "head -c 1000000 /dev/zero > file; chmod 500 .";
    agent.script(file).id("f1").outcome().await;
    agent.script("head -c 1000000 /dev/zero").id("o2").outcome().await;
    agent.script(file).id("f3").outcome().await;
    assert_eq!(done(&agent.client).await, names(&["f1", "o2", "f3"]));
    agent.script("head -c 1000000 /dev/zero").id("o4").outcome().await;
    keeps(&agent, &["o2", "f3", "o4"]).await;
    // One that is larger than all of it goes too, and takes the others along.
    agent.script("head -c 4000000 /dev/zero").id("o5").outcome().await;
    keeps(&agent, &[]).await;
    assert_eq!(entries(&scripts(&agent)), names(&[]));
}

#[tokio::test]
async fn what_is_old_goes_by_itself() {
    let world = World::new();
    keep(&world, "max_age = \"3s\"\nmin_age = \"0s\"");
    let agent = agent(&world).await;
    let script = agent.script("true").id("old").start().await;
    let ended = script.is_done().await.ended_at.unwrap();
    keeps(&agent, &[]).await;
    let age = jiff::Timestamp::now() - ended;
    assert!(age.get_milliseconds() >= 3000 || age.get_seconds() >= 3, "{age}");
}

#[tokio::test]
async fn a_start_works_through_whatever_there_is() {
    let world = World::new();
    keep(&world, "max_scripts = 1000");
    let mut first = agent(&world).await;
    let mut started = Vec::new();
    for number in 0..200 {
        started.push(first.script("true").observer().id(&format!("s{number:03}")).start().await);
    }
    for script in &started {
        script.is_done().await;
    }
    first.kill();
    // Too young for the limits, then not any more.
    keep(&world, "max_scripts = 5");
    let mut young = agent(&world).await;
    young.script("true").id("last").outcome().await;
    assert_eq!(done(&young.client).await.len(), 201);
    young.kill();
    keep(&world, "max_scripts = 1\nmin_age = \"0s\"");
    let again = agent(&world).await;
    keeps(&again, &["last"]).await;
    assert_eq!(entries(&scripts(&again)), names(&["last"]));
}

#[tokio::test]
async fn what_a_crash_left_is_completed_and_a_supervised_workspace_left_alone() {
    let world = World::new();
    let mut first = agent(&world).await;
    let gate = world.gate();
    for id in ["taken", "row-gone", "whole"] {
        first.script("echo out").observer().id(id).outcome().await;
    }
    let runs = first.script(format!("echo on; {}", gate.wait())).id("runs").start().await;
    runs.has_written(3).await;
    first.kill();
    let folder = scripts(&first);
    // Killed after the workspace was taken away; killed while that was emptied; a workspace without a
    // row, and one whose script still runs.
    let database = rusqlite::Connection::open(first.folder.join("state/agent.db")).unwrap();
    let seq: i64 = database
        .query_row("SELECT seq FROM scripts WHERE id = 'taken'", [], |row| row.get(0))
        .unwrap();
    std::fs::rename(folder.join("taken"), folder.join(format!(".removed/taken@{seq}"))).unwrap();
    std::fs::create_dir(folder.join(".removed/half")).unwrap();
    database.execute("DELETE FROM scripts WHERE id IN ('row-gone', 'runs')", []).unwrap();
    let again = agent(&world).await;
    // Already when it serves.
    assert_eq!(done(&again.client).await, names(&["whole"]));
    assert_eq!(entries(&folder), names(&["runs", "whole"]));
    keeps(&again, &["whole"]).await;
    gate.open();
    // The name is free again.
    assert!(exited(&again.script("true").id("taken").outcome().await, 0));
}

/// All that is known has its workspace, and nothing else has one.
async fn no_half_is_left(agent: &TestAgent) {
    let all = agent.client.list(&[], &[].into(), 1000).await.unwrap();
    for script in all {
        let script = Started { client: agent.client.clone(), id: script.script_id };
        assert!(exited(&script.outcome().await, 0));
        assert_eq!(script.output().await, b"out\n", "{}", script.id);
    }
    assert_eq!(entries(&scripts(agent)), done(&agent.client).await);
    assert_eq!(unfinished(agent), 0);
}

/// How many say by their names that their row has to go.
fn unfinished(agent: &TestAgent) -> usize {
    let names = entries(&scripts(agent).join(".removed"));
    names.iter().filter(|name| name.contains('@')).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_the_agent_is_killed_no_half_is_left() {
    let world = World::new();
    let mut random = 0x9E37_79B9_7F4A_7C15_u64 ^ u64::from(std::process::id());
    let mut removed = 0;
    for life in 0..KILLS {
        keep(&world, "max_scripts = 0\nmin_age = \"0s\"");
        let mut busy = agent(&world).await;
        let starts = (0..8).map(|number| {
            busy.script("echo out").observer().id(&format!("s{life}-{number}")).start()
        });
        let started = futures_util::future::join_all(starts).await;
        for script in &started {
            // It may be removed before its end is seen.
            let mut following = busy.client.watch(script.id.clone(), 0, true);
            while let Ok(Some(_)) = soon("an end", following.next()).await {}
        }
        // Killed anywhere in the look that follows the first end.
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let watcher = FileWatcher::start(&tasks, stop.clone()).unwrap();
        let mut watch = watcher.watch(&scripts(&busy).join(".removed")).unwrap();
        for _ in 0..(random >> 61) {
            let any = !entries(&scripts(&busy)).is_empty();
            if any {
                soon("a removal", watch.changed()).await;
            }
        }
        for _ in 0..(random >> 33) % 1000 {
            tokio::task::yield_now().await;
        }
        busy.kill();
        stop.cancel();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        removed += 8 - entries(&scripts(&busy)).len().min(8);
        // In this life nothing is old enough.
        keep(&world, "max_scripts = 0");
        let mut quiet = agent(&world).await;
        no_half_is_left(&quiet).await;
        quiet.kill();
    }
    assert!(removed > KILLS, "only {removed} were removed");
}
