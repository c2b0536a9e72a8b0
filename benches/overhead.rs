//! What baton adds to a script and to a protected command, each beside the bare one, in one run:
//! `cargo bench`. Compare the medians of a group; absolute times are the machine's.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that can't go on fails here")]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use baton::client::{Client, connect};
use baton::spec::Spec;
use divan::Bencher;
use tokio::runtime::Runtime;

const BATON: &str = env!("CARGO_BIN_EXE_baton");

fn main() {
    divan::main();
}

fn baton(root: &Path) -> Command {
    let mut command = Command::new(BATON);
    for name in ["CONFIG", "STATE", "RUNTIME", "MUTEX"] {
        command.env(format!("BATON_{name}_DIR"), root.join(name.to_lowercase()));
    }
    command
}

fn run(command: &mut Command) {
    assert!(command.stdin(Stdio::null()).status().unwrap().success());
}

/// One script of one empty line.
mod script {
    use super::{Agent, Bencher, Command, baton, run};

    #[divan::bench]
    fn bash_alone(bencher: Bencher<'_, '_>) {
        bencher.bench_local(|| run(Command::new("bash").args(["-c", ":"])));
    }

    #[divan::bench]
    fn through_an_agent(bencher: Bencher<'_, '_>) {
        let agent = Agent::start();
        bencher.bench_local(|| agent.run());
    }

    #[divan::bench]
    fn by_a_command_without_an_agent(bencher: Bencher<'_, '_>) {
        let root = tempfile::tempdir().unwrap();
        bencher.bench_local(|| run(baton(root.path()).args(["run", "-c", ":"])));
    }
}

/// `true` under a mutex that nobody else wants.
mod mutex {
    use super::{Bencher, Command, baton, run};

    #[divan::bench]
    fn true_alone(bencher: Bencher<'_, '_>) {
        bencher.bench_local(|| run(&mut Command::new("true")));
    }

    #[divan::bench]
    fn flock(bencher: Bencher<'_, '_>) {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("lock");
        bencher.bench_local(|| run(Command::new("flock").arg(&file).arg("true")));
    }

    #[divan::bench]
    fn baton_mutex_run(bencher: Bencher<'_, '_>) {
        let root = tempfile::tempdir().unwrap();
        let words = ["mutex", "run", "log", "--", "true"];
        bencher.bench_local(|| run(baton(root.path()).args(words)));
    }
}

/// A running agent and a client on its socket.
struct Agent {
    process: Child,
    runtime: Runtime,
    client: Client,
    _root: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut command = baton(root.path());
        command.args(["agent", "run", "--listen", "none"]).stderr(Stdio::null());
        #[expect(clippy::disallowed_methods, reason = "a real agent is measured")]
        let process = command.spawn().unwrap();
        let runtime = Runtime::new().unwrap();
        let socket = root.path().join("runtime/agent.sock");
        let client = runtime.block_on(async {
            loop {
                if let Ok(channel) = connect::unix(&socket).await {
                    break Client::new(channel);
                }
                tokio::task::yield_now().await;
            }
        });
        Self { process, runtime, client, _root: root }
    }

    fn run(&self) {
        let spec = Spec::of_body(":", "bash");
        self.runtime.block_on(async {
            let mut following = self.client.run(spec);
            while following.next().await.unwrap().is_some() {}
        });
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}
