//! Several machines and one that deploys to them. Each machine is an agent with mutexes of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use baton::script::Phase;
use baton::snapshot::Snapshot;
use baton::trust::Identity;

use super::{TestAgent, World, finish, soon, write};

/// An agent that others reach over TCP.
pub struct Machine {
    pub world: World,
    pub agent: TestAgent,
    pub address: String,
    pub fingerprint: String,
}

impl Machine {
    /// A machine that trusts a client.
    pub async fn new(client: &str) -> Self {
        let world = World::new();
        let fingerprint = trusting(&world, client);
        let agent = world.agent_at("a", &["--listen", "127.0.0.1:0"]).await;
        let address = std::fs::read_to_string(agent.folder.join("run/agent.address")).unwrap();
        Self { world, agent, address: address.trim().to_owned(), fingerprint }
    }
    /// A machine that is like another one: the same certificate, the same trust.
    pub async fn like(first: &Self) -> Self {
        let world = World::new();
        let (from, to) = (first.agent.folder.join("config"), world.path("a/config"));
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        let agent = world.agent_at("a", &["--listen", "127.0.0.1:0"]).await;
        let address = std::fs::read_to_string(agent.folder.join("run/agent.address")).unwrap();
        let (address, fingerprint) = (address.trim().to_owned(), first.fingerprint.clone());
        Self { world, agent, address, fingerprint }
    }

    /// Its agent serves again, at the same address. The one before was killed; it is not dropped: that would end
    /// what it left.
    pub async fn comes_back(&mut self) {
        let again = self.world.agent_at("a", &["--listen", &self.address]).await;
        std::mem::forget(std::mem::replace(&mut self.agent, again));
    }

    /// Waits until a script runs there.
    pub async fn is_running(&self) {
        let mut standing = self.agent.client.watch_agent();
        let running = async {
            while !self.history().await.iter().any(|script| script.phase == Phase::Running) {
                standing.next().await.unwrap();
            }
        };
        soon("a script that runs", running).await;
    }

    /// What its agent remembers, in order of arrival.
    pub async fn history(&self) -> Vec<Snapshot> {
        let labels = std::collections::BTreeMap::new();
        let mut scripts = self.agent.client.list(&[], &labels, 1000).await.unwrap();
        scripts.sort_by_key(|script| script.queued_at);
        scripts
    }
}

/// Machines `m1`, `m2`, … and the one that deploys.
pub struct Site {
    pub home: World,
    pub machines: Vec<Machine>,
}

impl Site {
    pub async fn new(count: usize) -> Self {
        let home = World::new();
        let identity = Identity::load_or_create(&home.path("home/config"), "client").unwrap();
        let client = identity.fingerprint().to_string();
        let mut machines = vec![Machine::new(&client).await];
        while machines.len() < count {
            machines.push(Machine::like(&machines[0]).await);
        }
        let site = Self { home, machines };
        site.know(|_| String::new());
        site
    }

    /// Writes targets.toml: all machines belong to `test` and `other`; `more` says what else is there of the one with a
    /// number, from 1.
    pub fn know(&self, more: impl Fn(usize) -> String) {
        let mut text = String::new();
        for (machine, number) in self.machines.iter().zip(1..) {
            writeln!(
                text,
                "[targets.m{number}]\naddress = {:?}\nfingerprint = {:?}\nenvironments = [\"test\", \"other\"]\n{}",
                machine.address,
                machine.fingerprint,
                more(number)
            )
            .unwrap();
        }
        write(&self.targets(), &text);
    }

    /// The machines are known to every command of the one that deploys.
    pub fn introduce(&self) {
        let known = self.home.path("home/config/targets.toml");
        std::fs::copy(self.targets(), known).unwrap();
    }

    pub fn targets(&self) -> PathBuf {
        self.home.path("targets.toml")
    }

    /// Writes a project file.
    pub fn project(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path(&format!("{name}.toml"));
        write(&path, &format!("project = {name:?}\n{text}"));
        path
    }

    /// The command that deploys a project to `test`.
    pub fn deploy(&self, project: &Path) -> Command {
        let mut command = self.baton();
        command.arg("deploy").arg(project).arg("--targets").arg(self.targets());
        command.args(["--environment", "test"]);
        command
    }

    /// The command on the machine that deploys.
    pub fn baton(&self) -> Command {
        self.home.baton_at("home")
    }
}

/// Lets the agent `a` of a world trust a client; returns the agent's fingerprint.
pub fn trusting(world: &World, client: &str) -> String {
    let init = finish(world.baton_at("a").args(["agent", "init", "--json"]));
    let init: serde_json::Value = serde_json::from_str(&init.1).unwrap();
    let trust = ["agent", "trust", client, "--name", client.get(..8).unwrap()];
    assert_eq!(finish(world.baton_at("a").args(trust)).0, 0);
    init["fingerprint"].as_str().unwrap().to_owned()
}
