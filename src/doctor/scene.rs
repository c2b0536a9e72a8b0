//! What several checks need to know: the folders, the configuration, the agent and what it says of itself.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use super::asking::{self, ANSWER_LIMIT, Soon};
use super::finding::Finding;
use super::owner::{self, Owner};
use super::target::{self, Wanted};
use crate::client::{Client, ClientError, connect};
use crate::config::{Config, ConfigError, Directories, Layers, Overrides, Sources};
use crate::mutex::locks;
use crate::process::Process;
use crate::wire::v1::InfoResponse;

/// Whose mutexes are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutexes {
    /// Those in the folder that was named to this command.
    Named,
    /// Those of the service on the other folders; without one those of this user.
    OfService,
}

/// The machine as the checks see it.
pub struct Scene {
    pub(super) folders: Directories,
    mutexes: Mutexes,
    owner: Soon<Option<Owner>>,
    config: Soon<Result<Layers, ConfigError>>,
    agent: Soon<Agent>,
    info: Soon<Told>,
    target: Option<Soon<Told>>,
}

/// The agent on these folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Agent {
    /// It runs; this is its process.
    Runs(Process),
    /// None runs.
    Absent,
    /// It can't be seen from here.
    Unseen(String),
}

impl Agent {
    fn process(&self) -> Option<&Process> {
        match self {
            Self::Runs(process) => Some(process),
            Self::Absent | Self::Unseen(_) => None,
        }
    }
}

/// What an agent said of itself.
#[derive(Debug)]
pub(super) enum Told {
    /// What it is; and its clock, with the time here in the middle of the call.
    Answered { info: Box<InfoResponse>, clocks: Option<(Timestamp, Timestamp)> },
    /// It refused, or is not there.
    Failed(ClientError),
    /// Why it can't even be asked.
    Unasked(Finding),
    /// It is silent.
    Late,
}

impl Scene {
    /// Begins to look at this machine, or at a target.
    pub fn new(folders: Directories, mutexes: Mutexes, wanted: Option<Wanted>) -> Self {
        let sources = Sources::of(&folders.config, Overrides::default());
        let lock = folders.state.join("agent.lock");
        let [same_lock, agents_lock] = [lock.clone(), lock.clone()];
        let (here, from, whose) = (folders.clone(), folders.clone(), folders.clone());
        Self {
            folders,
            mutexes,
            owner: Soon::begin(move || owner::find(&whose, find_agent(&agents_lock).process())),
            config: Soon::begin(move || read_config(&sources, &same_lock)),
            agent: Soon::begin(move || find_agent(&lock)),
            info: Soon::begin(move || ask_agent(&here)),
            target: wanted.map(|wanted| Soon::begin(move || target::ask(&wanted, &from))),
        }
    }

    /// The agent's configuration, with defaults where it has none; `None` when it can't be read.
    pub(super) fn config(&self) -> Option<Arc<Result<Layers, ConfigError>>> {
        self.config.get()
    }

    /// The configuration, or the defaults.
    pub(super) fn config_or_default(&self) -> Option<Config> {
        match self.config.get()?.as_ref() {
            Ok(layers) => Some(layers.config.as_ref().clone()),
            Err(_) => None,
        }
    }

    /// The agent on the state folder.
    pub(super) fn agent(&self) -> Agent {
        let unseen = || Agent::Unseen("the state folder does not answer".to_owned());
        self.agent.get().map_or_else(unseen, |agent| agent.as_ref().clone())
    }

    /// Its process, if one is seen to run.
    pub(super) fn process(&self) -> Option<Process> {
        self.agent().process().cloned()
    }

    /// Its process, or what to say without one.
    pub(super) fn running(&self) -> Result<Process, Finding> {
        match self.agent() {
            Agent::Runs(process) => Ok(process),
            Agent::Absent => Err(Finding::ok("no agent runs")),
            Agent::Unseen(_) => Err(Finding::needs_root("the agent")),
        }
    }

    /// What this machine's agent says of itself; `None` when nobody could ask.
    pub(super) fn info(&self) -> Option<Arc<Told>> {
        self.info.get()
    }

    /// What the target says of itself.
    pub(super) fn target(&self) -> Option<Arc<Told>> {
        self.target.as_ref()?.get()
    }

    /// Who runs the service on these folders, if that is another user than root, who asks.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner.get()?.as_ref().clone()
    }

    /// The folder of the mutexes that are looked at.
    pub(super) fn mutexes(&self) -> PathBuf {
        let services = match self.mutexes {
            Mutexes::Named => None,
            Mutexes::OfService => self.owner().and_then(|owner| owner.mutexes),
        };
        services.unwrap_or_else(|| self.folders.mutex.clone())
    }

    /// The users who may own what the agent and this command use.
    pub(super) fn users(&self) -> Vec<u32> {
        let agents =
            self.process().and_then(|p| std::fs::metadata(format!("/proc/{}", p.pid)).ok());
        let own = rustix::process::geteuid().as_raw();
        let services = self.owner().and_then(|owner| owner.uid);
        [0, own].into_iter().chain(agents.map(|found| found.uid())).chain(services).collect()
    }
}

/// The configuration as the agent has it, in its environment, or as one that is started from here would.
fn read_config(sources: &Sources, lock: &std::path::Path) -> Result<Layers, ConfigError> {
    match find_agent(lock) {
        Agent::Runs(process) => match environment_of(&process) {
            Some(variables) => sources.read_with(variables),
            None => sources.read(),
        },
        Agent::Absent | Agent::Unseen(_) => sources.read(),
    }
}

/// The environment with which a process was started; `None`: this user may not see it.
pub(super) fn environment_of(process: &Process) -> Option<Vec<(OsString, OsString)>> {
    let text = std::fs::read(format!("/proc/{}/environ", process.pid)).ok()?;
    let pairs = text.split(|byte| *byte == 0).filter_map(|variable| {
        let place = variable.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (&variable[..place], &variable[place + 1..]);
        Some((OsString::from_vec(name.to_owned()), OsString::from_vec(value.to_owned())))
    });
    Some(pairs.collect())
}

/// The agent is who has the lock of the state folder.
fn find_agent(lock: &std::path::Path) -> Agent {
    match locks::owners(lock) {
        Ok(owners) => owners
            .iter()
            .find_map(|owner| Process::read(owner.pid))
            .map_or(Agent::Absent, Agent::Runs),
        Err(error) => Agent::Unseen(crate::text::chain(&error)),
    }
}

fn ask_agent(folders: &Directories) -> Told {
    let socket = match folders.socket() {
        Ok(socket) => socket,
        Err(error) => {
            let hint = "BATON_RUNTIME_DIR names a folder with a shorter path";
            return Told::Unasked(Finding::error(error.to_string()).hint(hint));
        }
    };
    answer(async move { Ok(Client::new(connect::unix(&socket).await?)) })
}

/// What the agent behind a connection says, within the limit.
pub(super) fn answer(connecting: impl Future<Output = Result<Client, ClientError>>) -> Told {
    let asked = asking::within(ANSWER_LIMIT, async {
        let client = connecting.await?;
        let before = Timestamp::now();
        let (info, clock) = client.info_and_clock().await?;
        let middle = before + Timestamp::now().duration_since(before) / 2;
        Ok((info, clock.map(|clock| (clock, middle))))
    });
    match asked {
        Ok(Some(Ok((info, clocks)))) => Told::Answered { info: Box::new(info), clocks },
        Ok(Some(Err(error))) => Told::Failed(error),
        Ok(None) => Told::Late,
        Err(error) => Told::Unasked(Finding::unknown(format!("nobody can be asked: {error}"))),
    }
}
