//! Machines to try a deployment on: agents of this command's own, in a folder that goes with them, each with
//! mutexes of its own, as if each were a machine.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cli::failure::{Failure, code};
use crate::trust::{Fingerprint, Identity};

/// Ends the agent when its standard input does: so it also ends with a command that is killed.
const TIED: &str =
    "\"$0\" \"$@\" < /dev/null & agent=$!; read -r _; kill \"$agent\"; wait \"$agent\"";

/// Agents that end with this.
pub(in crate::cli) struct DemoTargets {
    agents: Vec<Child>,
    machines: Vec<(String, Fingerprint)>,
    // Behind the agents: it is removed when they have ended.
    folder: tempfile::TempDir,
}

impl DemoTargets {
    /// Starts so many agents, which trust a client.
    pub(in crate::cli) fn start(count: u32, client: &Identity) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("baton-demo-").tempdir()?;
        let mut demo = Self { agents: Vec::new(), machines: Vec::new(), folder };
        for number in 1..=count {
            let machine = Machine { folder: demo.folder.path().join(number.to_string()) };
            let fingerprint = machine.init(client)?;
            let (agent, address) = machine.run()?;
            demo.agents.push(agent);
            demo.machines.push((address, fingerprint));
        }
        Ok(demo)
    }

    /// Address and fingerprint of each.
    pub(in crate::cli) fn machines(&self) -> &[(String, Fingerprint)] {
        &self.machines
    }
}

impl Drop for DemoTargets {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            drop(agent.stdin.take());
        }
        for agent in &mut self.agents {
            drop(agent.wait());
        }
    }
}

/// One of them.
struct Machine {
    folder: PathBuf,
}

impl Machine {
    fn command(&self, words: &[&str]) -> Result<Command, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(words).stdin(Stdio::null());
        self.set_folders(&mut command);
        Ok(command)
    }

    fn set_folders(&self, command: &mut Command) {
        for (variable, below) in [
            ("BATON_CONFIG_DIR", "config"),
            ("BATON_STATE_DIR", "state"),
            ("BATON_RUNTIME_DIR", "run"),
            ("BATON_MUTEX_DIR", "mutex"),
        ] {
            command.env(variable, self.folder.join(below));
        }
    }

    /// Makes its identity, and trusts the client; says its fingerprint.
    fn init(&self, client: &Identity) -> Result<Fingerprint, Failure> {
        let init = finish(&mut self.command(&["agent", "init", "--json"])?)?;
        let init: serde_json::Value = serde_json::from_str(&init).unwrap_or_default();
        let fingerprint = init["fingerprint"].as_str().unwrap_or_default().parse();
        let fingerprint = fingerprint.map_err(|error| Failure::new(code::INTERNAL, error))?;
        let client = client.fingerprint().to_string();
        finish(&mut self.command(&["agent", "trust", &client, "--name", "demo"])?)?;
        Ok(fingerprint)
    }

    /// Returns when it serves; says where.
    fn run(&self) -> Result<(Child, String), Failure> {
        let mut command = Command::new("sh");
        command.args(["-c", TIED]).arg(std::env::current_exe()?);
        command.args(["agent", "run", "--listen", "127.0.0.1:0"]).stdin(Stdio::piped());
        self.set_folders(&mut command);
        // Ctrl-C is for the deployment: the agents are still needed to report its end.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        #[expect(clippy::disallowed_methods, reason = "a demo's agents are no scripts")]
        let mut agent = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut log = agent.stderr.take().map(BufReader::new);
        let mut told = String::new();
        let mut line = String::new();
        while let Some(log) = &mut log {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                let text = format!("a demo's agent did not start: {}", told.trim_end());
                return Err(Failure::new(code::INTERNAL, anyhow::Error::msg(text)));
            }
            if line.contains("the agent serves") {
                break;
            }
            told.push_str(&line);
        }
        // Nobody reads on; what it writes there is lost, and no error to it.
        std::thread::spawn(move || {
            log.map(|mut log| std::io::copy(&mut log, &mut std::io::sink()))
        });
        let address = read(&self.folder.join("run/agent.address"))?;
        Ok((agent, address))
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

fn finish(command: &mut Command) -> Result<String, Failure> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = format!("a demo's machine could not be made: {}", text.trim_end());
    Err(Failure::new(code::INTERNAL, anyhow::Error::msg(text)))
}
