//! An agent that is part of a command: for machines on which none is installed. It has a state of its
//! own, meets others in the mutex folder, and its scripts end with the command.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Client;
use super::connect::{self, ConnectError};
use crate::agent::lock::check_owner;
use crate::agent::{Agent, AgentError, Settings};
use crate::config::{Directories, Layers};
use crate::mutex::os;
use crate::rpc::{self, Listeners};

/// How much may be on its way between the command and its agent.
const PIPE_BYTES: usize = 1024 * 1024;

/// A younger state folder may be one whose agent is about to lock it.
const MIN_SWEPT_AGE: Duration = Duration::from_mins(1);

/// An agent that is part of this command.
#[derive(Debug)]
pub struct Embedded {
    agent: Agent,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    state: tempfile::TempDir,
}

/// Why there is no embedded agent.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Its state folder can't be made.
    #[error("state folder {path}")]
    State {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The agent could not start.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// It could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl Embedded {
    /// Starts an agent in this process, and a client for it.
    ///
    /// # Errors
    /// When its state folder can't be made, or is another user's than root.
    pub async fn start(
        directories: &Directories,
        layers: Layers,
    ) -> Result<(Self, Client), EmbeddedError> {
        check_owner(&directories.state)?;
        let parent = directories.embedded();
        let failed = |source| EmbeddedError::State { path: parent.clone(), source };
        crate::durable::create_dir_all(&parent, 0o700).map_err(failed)?;
        sweep(&parent);
        let state = tempfile::Builder::new().prefix("run-").tempdir_in(&parent).map_err(failed)?;
        let settings = Settings {
            state: state.path().to_owned(),
            mutexes: directories.mutex.clone(),
            program: std::env::current_exe().map_err(failed)?,
            open_files: None,
            socket: None,
            tied: true,
            on_migration: |_| {},
        };
        let agent = Agent::open(settings, layers).await?;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let stop = CancellationToken::new();
        let listeners = Listeners { embedded: Some(theirs), ..Listeners::default() };
        let serve = rpc::serve(agent.clone(), listeners, stop.clone());
        let server = tokio::spawn(serve);
        // One that is gone never comes back.
        let client = Client::new(connect::embedded(ours).await?).waiting_for(Duration::ZERO);
        Ok((Self { agent, stop, server, state }, client))
    }

    /// Stops what still runs, waits for it, and removes the state.
    pub async fn close(self) {
        self.agent.close().await;
        self.stop.cancel();
        drop(self.server.await);
        // Best effort: the next one sweeps.
        self.state.close().unwrap_or_default();
    }
}

/// Removes what commands left that were killed. A living one keeps its state locked.
fn sweep(parent: &std::path::Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|found| found.modified()).map(|time| time.elapsed());
        if !age.is_ok_and(|age| age.is_ok_and(|age| age > MIN_SWEPT_AGE)) {
            continue;
        }
        let lock = std::fs::File::open(entry.path().join("agent.lock"));
        let dead = lock.is_ok_and(|lock| os::try_lock_exclusive(&lock).unwrap_or(false));
        if dead && count_living(&entry.path()) == 0 {
            std::fs::remove_dir_all(entry.path()).unwrap_or_default();
        }
    }
}

/// How many scripts of a state folder run, with or without an agent: a living supervisor keeps its file
/// locked.
pub fn count_living(state: &std::path::Path) -> usize {
    let scripts = std::fs::read_dir(state.join("scripts")).into_iter().flatten().flatten();
    let is_living = |script: &std::fs::DirEntry| {
        let lock = std::fs::File::open(script.path().join("supervisor"));
        lock.is_ok_and(|lock| !os::try_lock_exclusive(&lock).unwrap_or(true))
    };
    scripts.filter(is_living).count()
}
