//! The daemon's own: the queue, the table of scripts, launching supervisors, following them, coming
//! back after a restart. It knows nothing of gRPC; [`crate::rpc`] stands above it.
//!
//! ```text
//!  start ─► store ─► queue ─► launcher ─► supervisor ─► journal, outcome.json ─► attendant ─► store
//!                                                              └─► followers (clients)
//! ```
//!
//! 1. A script is in the store before anybody is told that it is accepted.
//! 2. The store knows how a script was asked for and how it ended. What happens between is in its
//!    workspace, written by its supervisor; so a killed agent loses nothing.
//! 3. One task tree: all tasks are in one tracker and end by one token.

mod artifacts;
mod attend;
mod drain;
mod end;
mod follow;
mod housekeeper;
mod inherited;
mod launch;
mod lease;
mod list;
pub(crate) mod lock;
mod lost;
mod orphans;
pub mod queue;
mod reboot;
mod recover;
mod reload;
mod retention;
mod scripts;
mod secrets;
mod status;
mod stop;
mod stored;
mod supervisor;
mod table;
mod term;
mod upgrade;
mod waited;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::ArtifactError;
use crate::config::{Config, ConfigError, Layers};
use crate::filewatch::FileWatcher;
use crate::format::Newer;
use crate::mutex::MutexName;
use crate::packages::Packages;
use crate::script::{Drain, IllegalTransition, ScriptId};
use crate::store::{Migration, Store, StoreError};
use crate::transfer::Transfers;
use crate::wire::WireError;
use crate::workspace::{Workspace, WorkspaceError};
use queue::{Queue, QueueFull};
use table::Table;

pub use follow::{Follow, Followed};
pub use list::{ListCursor, ListFilter, ListOrder, Page};
pub use status::{Counts, Status, StoreProblem};
pub use upgrade::{Taken, Upload};

/// What an agent is told once, at its start, and can't be told again: what can is its configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of its state.
    pub state: PathBuf,
    /// The folder of the named mutexes.
    pub mutexes: PathBuf,
    /// The `baton` program, for supervisors and for scripts.
    pub program: PathBuf,
    /// How many files a script may open (the soft limit), when the agent raised its own; `None`: as many
    /// as the agent.
    pub open_files: Option<u64>,
    /// Its socket, where the guard of an upgrade asks for it; `None`: no upgrade is taken.
    pub socket: Option<PathBuf>,
    /// Whether scripts end with the agent (an embedded one) or outlive it.
    pub tied: bool,
    /// Who is told how far a migration of the database is, while the agent opens.
    pub on_migration: fn(Migration),
}

impl Settings {
    /// Whether the agent restarts the machine when a script asks for it. One that ends with its command does
    /// not: no script of it is there after that.
    fn restarts_machine(&self, config: &Config) -> bool {
        !self.tied && !config.reboot_command.is_empty()
    }
}

/// Why an agent could not do what it was asked. A script's failure is an outcome, not an error.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another agent works on the same state.
    #[error("another agent (pid {pid}) uses the state folder {state}")]
    StateInUse {
        /// The folder.
        state: PathBuf,
        /// The other agent's process, as far as it said.
        pid: String,
    },
    /// Root would run there what another user put there.
    #[error("state folder {state} is that of user {owner}: root runs nothing there")]
    OthersState {
        /// The folder.
        state: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The state folder can't be used.
    #[error("state folder {path}")]
    State {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A newer baton wrote a file of the state folder.
    #[error("state {path}")]
    Newer {
        /// Which path.
        path: PathBuf,
        /// How new.
        #[source]
        source: Newer,
    },
    /// The system starts no supervisor.
    #[error("no supervisor can be started")]
    Supervisor(#[source] std::io::Error),
    /// The store refused.
    #[error("store")]
    Store(#[from] StoreError),
    /// A workspace could not be written or read.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// The store holds a request that can't be read.
    #[error("stored request of script {id}")]
    StoredRequest {
        /// The script.
        id: ScriptId,
        /// Why.
        #[source]
        source: WireError,
    },
    /// The queue is full.
    #[error(transparent)]
    QueueFull(#[from] QueueFull),
    /// Its configuration can't be read again; the one that it has goes on.
    #[error(transparent)]
    Config(ConfigError),
    /// There is no such lease.
    #[error("lease {0} is not known")]
    LeaseNotFound(ScriptId),
    /// Nothing more runs under it.
    #[error("lease {id} has ended: {reason}")]
    LeaseEnded {
        /// The lease.
        id: ScriptId,
        /// How.
        reason: String,
    },
    /// A script under it names another mutex.
    #[error("mutex is not `{mutex}`, which lease {id} holds")]
    LeaseMutex {
        /// The lease.
        id: ScriptId,
        /// What it holds.
        mutex: MutexName,
    },
    /// It takes nothing new.
    #[error("{}; it takes nothing new", crate::snapshot::describe_drain(.0))]
    Draining(Drain),
    /// The same id was used for another request.
    #[error("script {id} was started with another request: {} differ", .fields.join(", "))]
    IdConflict {
        /// The script.
        id: ScriptId,
        /// What differs.
        fields: Vec<&'static str>,
    },
    /// There is no such script.
    #[error("script {0} is not known")]
    NotFound(ScriptId),
    /// It must be done first.
    #[error("script {0} is not done; cancel it first")]
    NotDone(ScriptId),
    /// There is less output than that.
    #[error("output offset {offset} is beyond the end, which is at {end}")]
    OffsetBeyondEnd {
        /// What was asked for.
        offset: u64,
        /// How much there is.
        end: u64,
    },
    /// The output can't be read.
    #[error("output of script {id}")]
    Output {
        /// The script.
        id: ScriptId,
        /// Why.
        #[source]
        source: crate::journal::JournalError,
    },
    /// An artifact can't be had.
    #[error("script {id}")]
    Artifact {
        /// The script.
        id: ScriptId,
        /// Why.
        #[source]
        source: ArtifactError,
    },
    /// Two parts of the agent disagree about a script.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The agent stops.
    #[error("the agent is stopping")]
    Stopping,
}

/// The agent: a cheap handle that all its tasks share.
#[derive(Debug, Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    /// The configuration: replaced whole, while the table is held.
    layers: watch::Sender<Layers>,
    /// One reads it again at a time.
    reloading: tokio::sync::Mutex<()>,
    table: Mutex<Table>,
    store: Store,
    /// Rings when the queue or a phase changes: positions and counts may be different now.
    changed: watch::Sender<()>,
    /// Wakes the launcher.
    launch: Notify,
    /// Rings when a script has ended, for the housekeeper.
    ended: Notify,
    supervisors: supervisor::Supervisors,
    watcher: FileWatcher,
    transfers: Arc<Transfers>,
    packages: Arc<Packages>,
    tasks: TaskTracker,
    stop: CancellationToken,
    started_at: Timestamp,
    /// One script is removed at a time: that must not meet a new script with the same id.
    forgetting: tokio::sync::Mutex<()>,
    /// One Drain or Resume at a time.
    draining: tokio::sync::Mutex<()>,
    /// Who reads a whole artifact for its digest.
    digesting: tokio::sync::Semaphore,
    upgrading: upgrade::Upgrading,
    secrets: secrets::Secrets,
    /// Locked as long as the agent lives: one agent on one state folder.
    _lock: std::fs::File,
}

impl Agent {
    /// Opens the state folder, comes back to what was there, and starts to work. It goes on until
    /// [`Agent::close`].
    ///
    /// # Errors
    /// When the state folder can't be used, or another agent uses it.
    pub async fn open(settings: Settings, layers: Layers) -> Result<Self, AgentError> {
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| AgentError::State { path, source }
        };
        lock::check_owner(&settings.state)?;
        let database = settings.state.join("agent.db");
        // First of all: the state of a newer baton stays as it is.
        upgrade::check(&settings, &database)?;
        let scripts = settings.state.join("scripts");
        crate::durable::create_dir_all(&scripts, 0o700).map_err(failed(&scripts))?;
        let lock = lock::lock_state(&settings.state).await?;
        link_program(&settings).map_err(failed(&settings.program))?;
        let upgrade = upgrade::settle(&settings, &database).await?;
        let store = Store::open_telling(&database, settings.on_migration)?;
        let (config, state) = (Arc::clone(&layers.config), &settings.state);
        let queue = Queue::new(config.queue_length, store.max_seq().await?);
        let transfers = Arc::new(Transfers::new(state, &config.files));
        let packages = Arc::new(Packages::new(state, &config.files));
        let mut reboot = reboot::Reboot::load(&settings.state)?;
        reboot.set_command(settings.restarts_machine(&config));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let watcher = FileWatcher::start(&tasks, stop.clone()).map_err(failed(&settings.state))?;
        let agent = Self {
            inner: Arc::new(Inner {
                supervisors: supervisor::Supervisors::new(&settings),
                settings,
                layers: watch::Sender::new(layers),
                reloading: tokio::sync::Mutex::new(()),
                table: Mutex::new(Table::new(queue, reboot)),
                store,
                changed: watch::Sender::new(()),
                launch: Notify::new(),
                ended: Notify::new(),
                watcher,
                transfers,
                packages,
                tasks,
                stop,
                started_at: Timestamp::now(),
                forgetting: tokio::sync::Mutex::new(()),
                draining: tokio::sync::Mutex::new(()),
                digesting: tokio::sync::Semaphore::new(artifacts::MAX_DIGESTING),
                upgrading: upgrade::Upgrading::default(),
                secrets: secrets::Secrets::default(),
                _lock: lock,
            }),
        };
        if !agent.inner.settings.tied {
            agent.reap_inherited();
            agent.follow_upgrade(upgrade);
            agent.complete_removals().await?;
        }
        agent.table().drain = agent.inner.store.drain().await?;
        agent.recover().await?;
        let transfers = Arc::clone(agent.transfers());
        // Beside the rest: a root may be on a disk that doesn't answer.
        agent.spawn(async move { blocking(move || transfers.recover()).await.unwrap_or(()) });
        let packages = Arc::clone(agent.packages());
        agent.spawn(async move { blocking(move || packages.recover()).await.unwrap_or(()) });
        if agent.status().drain.is_some() {
            // The agent may have been killed before it asked.
            agent.step_back_all();
        }
        agent.go_to_work();
        Ok(agent)
    }

    /// Starts what works as long as the agent lives.
    fn go_to_work(&self) {
        self.spawn(self.clone().run_launcher());
        self.spawn(self.clone().run_eraser());
        if !self.inner.settings.tied {
            self.spawn(self.clone().run_rebooter());
            self.spawn(self.clone().run_housekeeper());
        }
    }

    /// Ends the agent's tasks. Scripts run on with their supervisors, unless they are tied to the
    /// agent: then they are stopped first.
    pub async fn close(&self) {
        if self.inner.settings.tied {
            self.stop_all("the command that ran it ended").await;
        }
        if !self.inner.settings.tied {
            self.close_upgrade().await;
        }
        self.inner.stop.cancel();
        self.inner.supervisors.keep_none_ready();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.store.close().await;
    }

    /// What it was told at its start.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Its configuration, as it is now.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.inner.layers.borrow().config)
    }

    /// When it was started.
    pub fn started_at(&self) -> Timestamp {
        self.inner.started_at
    }

    /// How busy it is, and whether it drains.
    pub fn status(&self) -> Status {
        self.table().status()
    }

    /// Files in and out.
    pub fn transfers(&self) -> &Arc<Transfers> {
        &self.inner.transfers
    }

    /// Packages that are kept for scripts.
    pub fn packages(&self) -> &Arc<Packages> {
        &self.inner.packages
    }

    /// Rings when the queue or a phase changes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// Is cancelled when the agent stops: streams end then.
    pub fn stopping(&self) -> &CancellationToken {
        &self.inner.stop
    }

    /// The table. Held for a few statements, never across an await.
    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is whole between statements, also after a panic elsewhere.
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workspace(&self, id: &ScriptId) -> Workspace {
        Workspace::of(&self.inner.settings.state.join("scripts"), id)
    }

    /// Tells the launcher and all who watch the queue.
    fn queue_changed(&self) {
        self.inner.launch.notify_one();
        self.inner.changed.send_replace(());
    }

    /// Starts a task of the agent's tree. It ends at the latest with the agent.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        let ends = async move { stop.run_until_cancelled(task).await.unwrap_or(()) };
        drop(self.inner.tasks.spawn(ends));
    }
}

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, AgentError> {
    // It fails only when the runtime shuts down or the work panicked.
    tokio::task::spawn_blocking(work).await.map_err(|_| AgentError::Stopping)
}

/// Makes `<state>/bin/baton`, so that scripts find the program on their PATH and nothing else.
fn link_program(settings: &Settings) -> std::io::Result<()> {
    let bin = settings.state.join("bin");
    crate::durable::create_dir_all(&bin, 0o755)?;
    let link = bin.join("baton");
    match std::fs::read_link(&link) {
        Ok(target) if target == settings.program => return Ok(()),
        Ok(_) => std::fs::remove_file(&link)?,
        Err(_) => {}
    }
    std::os::unix::fs::symlink(&settings.program, &link)
}
