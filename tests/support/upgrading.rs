//! An agent of a program of its own that is upgraded: how it is started, asked and ended.

#![allow(dead_code, unreachable_pub, clippy::must_use_candidate, reason = "each test uses a part")]
#![allow(clippy::missing_panics_doc, reason = "tests only")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails here")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use baton::client::{Client, UpgradeWish, connect};
use baton::script::ScriptId;
use baton::upgrade::{Folder, Stage};
use baton::wire::v1;

use crate::support::versions::{Signer, install, other, version};
use crate::support::{self, DEADLINE, Started, World, soon, spawn, write};

pub const OWN: &str = env!("CARGO_PKG_VERSION");
pub const NEWER: &str = "9.9.9";

/// An agent of a program of its own, that takes what a key has signed.
pub struct Site {
    pub world: World,
    pub program: PathBuf,
    pub signer: Signer,
    /// Ended with the test.
    pub agent: Option<Child>,
}

impl Site {
    pub fn new(health_limit: &str) -> Self {
        let world = World::new();
        let signer = Signer::new(1);
        let program = install(&world, "bin/baton");
        std::fs::create_dir_all(world.path("a/config")).unwrap();
        let key = signer.public();
        let config = format!("[upgrade]\nkeys = [{key:?}]\nhealth_limit = {health_limit:?}\n");
        write(&world.path("a/config/agent.toml"), &config);
        Self { world, program, signer, agent: None }
    }

    /// The agent's command: a program with the folders of `a`.
    pub fn command(&self, program: &Path) -> Command {
        let like = self.world.baton_at("a");
        let mut command = Command::new(program);
        let variables = like.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(variables).stdin(Stdio::null());
        command
    }

    pub fn run(&self) -> Command {
        let mut command = self.command(&self.program);
        command.args(["agent", "run", "--listen", "none"]).stderr(self.log());
        command
    }

    pub fn log(&self) -> std::fs::File {
        let mut options = std::fs::OpenOptions::new();
        options.append(true).create(true).open(self.world.path("log")).unwrap()
    }

    /// Starts the agent, without anybody who would start it again.
    pub async fn start(mut self) -> Self {
        self.agent = Some(spawn(&mut self.run()));
        self.serves(OWN).await;
        self
    }

    /// The same by a shell that does this first.
    pub async fn start_after(mut self, first: &str) -> Self {
        let (run, mut shell) = (self.run(), Command::new("sh"));
        shell.args(["-c", &format!("{first} exec \"$0\" \"$@\"")]);
        shell.arg(run.get_program()).args(run.get_args());
        shell.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.agent = Some(spawn(shell.stdin(Stdio::null()).stderr(self.log())));
        self.serves(OWN).await;
        self
    }

    /// Starts it below something that starts it again whenever it ends.
    pub async fn start_supervised(mut self) -> Self {
        let mut supervisor = Command::new("sh");
        let run = self.run();
        supervisor.args(["-c", "while :; do \"$@\"; echo again >> \"$0\"; done"]);
        supervisor.arg(self.world.path("restarts")).arg(run.get_program()).args(run.get_args());
        supervisor.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        supervisor.stdin(Stdio::null()).stderr(self.log());
        self.agent = Some(spawn(&mut supervisor));
        self.serves(OWN).await;
        self
    }

    pub fn socket(&self) -> PathBuf {
        self.world.path("a/run/agent.sock")
    }

    pub async fn client(&self) -> Client {
        let connecting = async {
            loop {
                if let Ok(channel) = connect::unix(&self.socket()).await {
                    break Client::new(channel);
                }
                tokio::task::yield_now().await;
            }
        };
        soon("a connection", connecting).await
    }

    /// Waits until an agent of this version answers; each try is an event of its own.
    pub async fn serves(&self, version: &str) -> v1::InfoResponse {
        let tries = async {
            loop {
                let info = Box::pin(self.client().await.info()).await;
                if let Ok(info) = info
                    && info.version == version
                {
                    break info;
                }
            }
        };
        Box::pin(soon(&format!("version {version}"), tries)).await
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(self.world.path("log")).unwrap_or_default()
    }

    /// `baton agent upgrade` on this machine.
    pub fn upgrade(&self, program: &Path, more: &[&str]) -> Command {
        let mut command = self.world.baton_at("a");
        let signature = program.with_extension("minisig");
        command.args(["agent", "upgrade"]).arg(program).arg("--signature").arg(signature);
        command.args(more);
        command
    }

    /// A signed newer version.
    pub fn newer(&self) -> PathBuf {
        let program = version(&self.world, &self.program, NEWER);
        self.signer.sign(&program);
        program
    }

    /// A signed program that says a newer version and then does this.
    pub fn bad(&self, main: &str) -> PathBuf {
        let program = other(&self.world, NEWER, main);
        self.signer.sign(&program);
        program
    }

    /// Begins an upgrade, and waits for no more than the agent's answer.
    pub async fn begin(&self, program: PathBuf) {
        let signature = std::fs::read_to_string(program.with_extension("minisig")).unwrap();
        let wish = UpgradeWish { program, signature, allow_downgrade: false, dry_run: false };
        Box::pin(self.client().await.upgrade(wish, Arc::new(|_| ()))).await.unwrap();
    }

    /// Waits until the agent's process has ended, well.
    pub async fn has_ended(&mut self) {
        let mut agent = self.agent.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || agent.wait().unwrap());
        assert!(soon("its end", ended).await.unwrap().success(), "{}", self.said());
    }

    /// How the last upgrade stands on disk.
    pub fn stage(&self) -> Option<Stage> {
        Folder::of(&self.world.path("a/state")).read().unwrap().map(|record| record.stage)
    }

    /// Waits until the last upgrade is over, by the agent's word.
    pub async fn ended(&self) -> v1::AgentUpgrade {
        let mut standing = self.client().await.watch_agent();
        let ended = async {
            loop {
                let upgrade = standing.next().await.unwrap().upgrade;
                if let Some(upgrade) = upgrade.filter(|upgrade| upgrade.ended_at.is_some()) {
                    break upgrade;
                }
            }
        };
        let Ok(ended) = tokio::time::timeout(DEADLINE, ended).await else {
            panic!("the upgrade did not end: {:?}\n{}", self.stage(), self.said());
        };
        ended
    }

    /// What is in the program's folder.
    pub fn installed(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.program.parent().unwrap()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The agent's process, by its own word.
    pub fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.world.path("a/state/agent.lock")).unwrap();
        text.trim().parse().unwrap()
    }

    pub async fn script(&self, id: &str, text: &str) -> Started {
        let mut spec = support::spec(text);
        spec.script_id = id.parse().unwrap();
        support::Draft::of(self.client().await, spec).start().await
    }

    pub async fn started(&self, id: &str) -> Started {
        let id: ScriptId = id.parse().unwrap();
        Started { client: self.client().await, id }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(child) = &mut self.agent {
            child.kill().unwrap_or_default();
            drop(child.wait());
        }
        // Whoever is the agent now, and its guard: those of this test's folders only.
        let here = self.world.path("").display().to_string();
        for process in baton::process::all() {
            let line = process.command_line();
            let is_ours = process.variable("BATON_STATE_DIR").ok().flatten();
            if is_ours.is_some_and(|folder| folder.starts_with(&here))
                && !line.ends_with("supervise")
            {
                drop(process.signal(rustix::process::Signal::KILL));
            }
        }
    }
}
