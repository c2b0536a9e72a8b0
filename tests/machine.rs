//! Promise: the machine mutex belongs to the machine: several agents, embedded ones, and people at a
//! shell exclude each other.

mod support;

use std::process::Stdio;

use support::{World, exited, finish, lines, spawn};

/// Shell text that fails when it meets itself: it is open for a while, and `mkdir` is atomic.
fn critical_section(world: &World) -> String {
    let room = world.path("room");
    format!("mkdir {room} && sleep 0.02 && rmdir {room}", room = room.display())
}

#[tokio::test]
async fn two_agents_on_one_machine_exclude_each_other() {
    let world = World::new();
    let (one, two) = (world.agent().await, world.agent().await);
    let gate = world.gate();
    let first = one.script(gate.wait()).id("first").start().await;
    first.is_running().await;
    let second = two.script("true").id("second").start().await;
    let wait = second.is_waiting().await.waits.remove(0);
    assert_eq!(wait.holders[0].who.script_id.as_deref(), Some("first"), "{wait:?}");
    // A script of the first agent that comes now waits behind the second agent's.
    let third = one.script("true").id("third").start().await;
    let wait = third.until("behind the second", |s| {
        let names =
            s.waits.iter().flat_map(|w| &w.ahead).filter_map(|a| a.who.script_id.as_deref());
        names.collect::<Vec<_>>() == ["second"]
    });
    assert_eq!(wait.await.waits[0].position, 2);
    gate.open();
    let second = second.is_done().await;
    assert!(exited(&third.outcome().await, 0));
    let third = one.client.get(&third.id).await.unwrap();
    assert!(second.ended_at <= third.started_at, "{second:?} {third:?}");
}

#[tokio::test]
async fn many_scripts_of_two_agents_never_overlap() {
    let world = World::new();
    let agents = [world.agent().await, world.agent().await];
    let mut scripts = Vec::new();
    for number in 0..20 {
        let text = critical_section(&world);
        scripts.push(agents[number % 2].script(text).start().await);
    }
    for script in &scripts {
        assert!(exited(&script.outcome().await, 0), "{:?}", script.output().await);
    }
}

#[tokio::test]
async fn a_person_at_a_shell_and_an_agent_exclude_each_other() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let script = agent.script(gate.wait()).id("deployment").start().await;
    script.is_running().await;
    let busy = finish(world.baton().args(["mutex", "run", "--no-wait", "machine", "--", "true"]));
    assert_eq!(busy.0, 75);
    assert!(busy.2.contains("deployment"), "the holder is named: {}", busy.2);
    let mut person = world.baton();
    let mut person = spawn(
        person
            .args(["mutex", "run", "machine", "--", "sh", "-c", &gate.wait()])
            .stderr(Stdio::piped()),
    );
    // It says that it waits: it is in the line.
    let mut told = std::io::BufReader::new(person.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut told, &mut String::new()).unwrap();
    gate.open();
    script.is_done().await;
    // The person holds it now, or is about to: the agent's next script is behind.
    let next = agent.script("true").start().await;
    let wait = next.until("waiting for a person", |s| {
        s.waits.iter().flat_map(|w| &w.holders).any(|h| h.who.script_id.is_none())
    });
    let wait = wait.await.waits.remove(0);
    assert_eq!(wait.holders[0].who.pid, person.id());
    gate.open();
    assert!(person.wait().unwrap().success());
    assert!(exited(&next.outcome().await, 0));
}

#[tokio::test]
async fn a_script_that_bypasses_overtakes_nobody_of_another_agent() {
    let world = World::new();
    let (one, two) = (world.agent().await, world.agent().await);
    let (gate, log) = (world.gate(), world.path("log"));
    let running = one.script(gate.wait()).shared().start().await;
    running.is_running().await;
    let alone = two.script(format!("echo alone >> {}", log.display())).start().await;
    alone.is_waiting().await;
    // It could run beside the first, but came after the one that must be alone.
    let late = one.script(format!("echo late >> {}", log.display())).shared().start().await;
    assert_eq!(late.is_waiting().await.waits[0].position, 2);
    gate.open();
    assert!(exited(&late.outcome().await, 0));
    assert_eq!(lines(&log), ["alone", "late"]);
    assert!(exited(&alone.outcome().await, 0));
}

#[test]
fn commands_without_an_agent_exclude_each_other() {
    let world = World::new();
    let text = critical_section(&world);
    let mut commands: Vec<_> = (0..8)
        .map(|_| spawn(world.baton().args(["run", "-c", &text]).stderr(Stdio::null())))
        .collect();
    for command in &mut commands {
        assert!(command.wait().unwrap().success());
    }
}

#[tokio::test]
async fn two_agents_on_one_state_are_refused() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let run = world.path("elsewhere");
    let mut second = world.baton_at("a");
    let second = second.args(["agent", "run", "--listen", "none"]).env("BATON_RUNTIME_DIR", run);
    let (code, _, error) = finish(second);
    assert_eq!(code, 70);
    assert!(error.contains(&format!("pid {}", agent.pid())), "{error}");
    assert!(error.contains("hint:") && error.contains("BATON_STATE_DIR"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, error) = finish(world.baton().args(["agent", "run", "--listen", &address]));
    assert_eq!(code, 70);
    assert!(error.contains(&address) && error.contains("in use"), "{error}");
}

#[test]
fn the_status_of_a_mutex_names_holders_waiters_and_those_outside_baton() {
    let world = World::new();
    let (code, text, _) = finish(world.baton().args(["mutex", "status"]));
    assert!(code == 0 && text.starts_with("nobody holds or wants"), "{text}");
    let gate = world.gate();
    let hold = format!("echo on; {}", gate.wait());
    let words = ["mutex", "run", "--reason", "backup", "log", "--", "sh", "-c", &hold];
    let mut holder = spawn(world.baton().args(words).stdout(Stdio::piped()));
    let mut out = std::io::BufReader::new(holder.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut String::new()).unwrap();
    let mut waiter = spawn(
        world.baton().args(["mutex", "run", "-s", "log", "--", "true"]).stderr(Stdio::piped()),
    );
    // It says that it waits, so it is in the line.
    let mut told = std::io::BufReader::new(waiter.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut told, &mut String::new()).unwrap();
    let (_, path, _) = finish(world.baton().args(["mutex", "path", "web"]));
    let outside = std::fs::File::open(path.trim()).unwrap();
    rustix::fs::flock(&outside, rustix::fs::FlockOperation::LockExclusive).unwrap();

    let (_, json, _) = finish(world.baton().args(["mutex", "status", "--json"]));
    let rows: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&rows[0]["mutex"], &rows[1]["mutex"]), (&"log".into(), &"web".into()));
    assert_eq!(rows[0]["holders"][0]["pid"], holder.id());
    assert_eq!(rows[0]["holders"][0]["reason"], "backup");
    assert_eq!(rows[0]["waiters"][0]["pid"], waiter.id());
    assert_eq!(rows[1]["foreign"][0]["pid"], std::process::id());
    let (_, table, _) = finish(world.baton().args(["mutex", "status", "log"]));
    assert!(table.contains("holds") && table.contains("waits #1"), "{table}");
    gate.open();
    assert!(holder.wait().unwrap().success() && waiter.wait().unwrap().success());
}
