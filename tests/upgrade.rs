//! Promise: a newer program may take the agent's place at any instant: what runs goes on under the old
//! one, its output is read on from where a reader stood, the queue keeps its order.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails here")]
#![allow(clippy::disallowed_methods, reason = "a test's program need not survive a crash")]

mod support;

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use baton::client::Heard;
use baton::script::Phase;
use support::{BATON, Started, TestAgent, World, exited, lines, soon};

/// Which file a process runs, whether or not it still has a name.
fn runs_of(pid: u32) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

fn supervisor(agent: &TestAgent, id: &str) -> u32 {
    let file = agent.folder.join("state/scripts").join(id).join("supervisor");
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

/// Puts another program in the place of one, as an installer does; says which file it is.
fn upgrade(program: &Path) -> u64 {
    let newer = program.with_extension("new");
    std::fs::copy(BATON, &newer).unwrap();
    // What follows the last section is nobody's.
    let mut file = std::fs::OpenOptions::new().append(true).open(&newer).unwrap();
    file.write_all(b"a newer one").unwrap();
    drop(file);
    std::fs::rename(&newer, program).unwrap();
    std::fs::metadata(program).unwrap().ino()
}

#[tokio::test]
async fn a_newer_program_takes_the_agent_s_place_and_what_runs_and_waits_does_not_notice() {
    let world = World::new();
    let (program, log) = (world.path("baton"), world.path("log"));
    std::fs::copy(BATON, &program).unwrap();
    let old = std::fs::metadata(&program).unwrap().ino();
    let (first, second, last) = (world.gate(), world.gate(), world.gate());
    let mut agent = world.agent_of(&program, "a").await;
    let text = format!(
        "echo 1 >> {log}; echo one; {}; echo two; {}; echo three; {}; exit 7",
        first.wait(),
        second.wait(),
        last.wait(),
        log = log.display()
    );
    let running = agent.script(text).id("running").start().await;
    running.has_written(4).await;
    for number in 2..6 {
        let text = format!("echo {number} >> {}", log.display());
        agent.script(text).id(&format!("s{number}")).start().await;
    }
    assert_eq!((runs_of(agent.pid()), runs_of(supervisor(&agent, "running"))), (old, old));

    // Replaced while it runs: nothing of the old agent's stops, and the script goes on without any.
    let new = upgrade(&program);
    assert_ne!(old, new);
    first.open();
    running.has_written(8).await;
    agent.kill();
    second.open();
    let again = world.agent_of(&program, "a").await;
    assert_eq!(runs_of(again.pid()), new);
    assert_eq!(runs_of(supervisor(&again, "running")), old);

    // A reader that had the first two lines is told the rest, what was written meanwhile included.
    let running = Started { client: again.client.clone(), id: running.id };
    let mut following = again.client.watch(running.id.clone(), 8, true);
    let mut rest = Vec::new();
    while rest.len() < 6 {
        if let Some(Heard::Output { data, .. }) = soon("output", following.next()).await.unwrap() {
            rest.extend_from_slice(&data);
        }
    }
    assert_eq!((rest.as_slice(), following.offset()), (b"three\n".as_slice(), 14));
    // It is still alone, and those behind it stand as they stood; a latecomer is behind them.
    let late = again.script(format!("echo 6 >> {}", log.display())).id("s6").start().await;
    assert_eq!(lines(&log), ["1"]);
    assert_eq!(running.is_running().await.phase, Phase::Running);
    last.open();
    assert!(exited(&running.outcome().await, 7));
    assert!(exited(&late.outcome().await, 0));
    assert_eq!(lines(&log), ["1", "2", "3", "4", "5", "6"]);
    // Who came after the upgrade has a supervisor of the new program.
    let gate = world.gate();
    let fresh = again.script(gate.wait()).id("fresh").start().await;
    fresh.is_running().await;
    assert_eq!(runs_of(supervisor(&again, "fresh")), new);
    gate.open();
    assert!(exited(&fresh.outcome().await, 0));
    // One run each: the request that is sent again is known.
    let sent_again = again.script(format!("echo 2 >> {}", log.display())).id("s2").start().await;
    assert!(exited(&sent_again.outcome().await, 0));
    assert_eq!(lines(&log).len(), 6);
    drop(agent);
}
