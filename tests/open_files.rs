//! Promise: how many scripts run at once is not limited by the usual limit of open files, and a script
//! sees the limit that its agent was started with.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::process::Command;

use support::{BATON, World, exited};

/// The soft limit of the agent.
const SOFT: u32 = 256;
/// How many scripts: each takes several of the agent's files, so without more a third of them runs.
const SCRIPTS: usize = 130;

#[tokio::test(flavor = "multi_thread")]
async fn more_scripts_run_at_once_than_the_soft_limit_allows_and_they_see_it() {
    let world = World::new();
    let like = world.baton_at("a");
    let mut command = Command::new("sh");
    let text = format!("ulimit -Sn {SOFT}; exec {BATON} agent run --listen none");
    command
        .args(["-c", &text])
        .envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let agent = world.await_agent("a", command).await;
    let gate = world.gate();
    let mut scripts = Vec::new();
    for _ in 0..SCRIPTS {
        let text = format!("ulimit -Sn; {}", gate.wait());
        scripts.push(agent.script(text).shared().start().await);
    }
    for script in &scripts {
        script.is_running().await;
    }
    assert_eq!(
        usize::try_from(agent.client.info().await.unwrap().status.unwrap().running),
        Ok(SCRIPTS)
    );
    for _ in &scripts {
        gate.open();
    }
    for script in &scripts {
        assert!(exited(&script.outcome().await, 0));
        assert_eq!(script.output().await, format!("{SOFT}\n").as_bytes());
    }
}
