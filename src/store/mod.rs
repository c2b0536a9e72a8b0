//! What the agent must remember, in SQLite: `<state>/agent.db`. An operator can read it with
//! `sqlite3`.
//!
//! 1. What a call says is done is on disk: the answer comes after the commit, and the journal mode
//!    is WAL with `synchronous=FULL`.
//! 2. One thread owns the connection. What waits for it is committed together (group commit).
//! 3. The schema has a version. An older one is migrated, all steps in one transaction; a newer one is
//!    refused before anything is changed.
//! 4. A row that is damaged holds up no other: what can be read of it is shown, its outcome as lost.
//! 5. Before a migration the database is copied ([`backup`]). A migration that fails, or is killed, leaves
//!    it as it was, and is done at the next start.
//! 6. It says which baton opened it last, for one that is too old to read it.
//! 7. What a request no longer has is nowhere any more (in `erase`).
//!
//! It keeps requests as bytes and doesn't know what they mean.

pub mod backup;
mod erase;
mod history;
mod inspect;
mod kept;
mod schema;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::format::Newer;
use crate::script::{Drain, Labels, OutcomeKind, Phase, ScriptId};
use worker::Command;

pub use backup::{Copy, CopyError};
pub use erase::{Rewrite, Swept};
pub use inspect::{Inspection, inspect};
pub use kept::{Kept, Oldest};
pub use schema::known as known_version;

/// How many calls may wait for the thread before callers wait to call.
const MAX_WAITING_CALLS: usize = 256;

/// A script as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its id.
    pub id: ScriptId,
    /// The number of its arrival.
    pub seq: u64,
    /// The whole request, as bytes.
    pub request: Vec<u8>,
    /// Where it stands, as far as it was told.
    pub phase: Phase,
    /// Its labels, to find it by.
    pub labels: Labels,
    /// Its mutex, for who reads the database.
    pub mutex: String,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// When it started to run.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it was asked to stop, if it was.
    pub stop_reason: Option<String>,
    /// How much output it had at its end.
    pub output_bytes: u64,
}

/// What came of accepting a script.
#[derive(Debug)]
pub enum Accepted {
    /// It is new, and on disk.
    New,
    /// There was one with this id.
    Existing(Box<Record>),
}

/// What is different now; `None` leaves a field as it is.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are those of Record")]
pub struct ScriptUpdate {
    pub id: ScriptId,
    pub request: Option<Vec<u8>>,
    pub phase: Option<Phase>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub stop_reason: Option<String>,
    pub output_bytes: Option<u64>,
}

impl ScriptUpdate {
    /// An update that changes nothing yet.
    pub fn of(id: ScriptId) -> Self {
        Self {
            id,
            request: None,
            phase: None,
            started_at: None,
            ended_at: None,
            stop_reason: None,
            output_bytes: None,
        }
    }
}

/// Which scripts that are done are wanted.
#[derive(Debug, Clone, Default)]
pub struct DoneFilter {
    /// Labels that they must have.
    pub labels: BTreeMap<String, String>,
    /// Not those that had ended before.
    pub since: Option<Timestamp>,
    /// Only those that were accepted before.
    pub until: Option<Timestamp>,
    /// How they may have ended; empty: in any way.
    pub outcomes: Vec<OutcomeFilter>,
}

/// One way to have ended, or several that are asked for together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomeFilter {
    /// Exited with 0.
    Succeeded,
    /// Neither succeeded nor cancelled, nor a lease that was closed.
    Failed,
    /// The kind of the outcome, as its JSON names it.
    Kind(&'static str),
}

impl OutcomeFilter {
    /// Whether a script ended so.
    pub fn matches(&self, outcome: &OutcomeKind) -> bool {
        match self {
            Self::Succeeded => matches!(outcome, OutcomeKind::Exited { code: 0 }),
            Self::Failed => !matches!(
                outcome,
                OutcomeKind::Exited { code: 0 }
                    | OutcomeKind::Cancelled { .. }
                    | OutcomeKind::LeaseClosed { .. }
            ),
            Self::Kind(kind) => worker::kind(outcome).as_deref() == Some(*kind),
        }
    }
}

/// Scripts that are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DonePage {
    /// The scripts. A row without a readable id is left out.
    pub records: Vec<Record>,
    /// Where the next page starts; `None`: there are no more.
    pub next: Option<DoneCursor>,
}

/// A place in the list of scripts that are done: just behind one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoneCursor {
    /// The number of that script's arrival.
    pub seq: u64,
}

/// What the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is no database of ours, or damaged.
    #[error("database {path}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A newer baton wrote it.
    #[error("database {path}")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// How new.
        #[source]
        source: Newer,
    },
    /// It can't be brought to the version of this baton; it is as it was.
    #[error("database {path} can't be migrated from version {found} to {known}; it is as it was")]
    Migrate {
        /// Which file.
        path: PathBuf,
        /// What it has.
        found: u64,
        /// What it was to have.
        known: u64,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// It can't be copied before a migration, or a copy not be put back; it is as it was.
    #[error("copy of database {path}, which is as it was")]
    Copy {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CopyError,
    },
    /// A statement failed.
    #[error("database")]
    Sql(#[from] rusqlite::Error),
    /// Others in the same commit failed.
    #[error("database: {0}")]
    Commit(String),
    /// A row has another shape than was written.
    #[error("row of script {0} is damaged")]
    Row(String),
    /// The store's thread has ended.
    #[error("store is closed")]
    Closed,
}

/// How far a migration is. It is told when it has come further, never by a clock alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// The database is copied before: so much of it, in percent.
    Copying(i32),
    /// It is brought to this version.
    Changing(u64),
}

/// The store: a cheap handle.
#[derive(Debug, Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Store {
    /// Refuses a database that a newer baton wrote, and changes nothing. None is fine.
    ///
    /// # Errors
    /// When a newer baton wrote it, or it can't be read.
    pub fn check(path: &Path) -> Result<(), StoreError> {
        schema::check(path)
    }

    /// Puts the copy from before the last migration that this baton can read in the database's place, for a
    /// roll-back to an older program. The caller has the state folder for itself. What was accepted since is
    /// only in `agent.db.replaced` then.
    ///
    /// # Errors
    /// When there is no such copy, or the disk refuses. Then the database is as it was.
    pub fn put_back(path: &Path) -> Result<Copy, StoreError> {
        backup::put_back(path)
    }

    /// Opens the database, makes or migrates it.
    ///
    /// # Errors
    /// When it can't be used, is no database, or a newer baton wrote it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_telling(path, |_| {})
    }

    /// The same; who has to be patient is told how far a migration is.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_telling(path: &Path, told: fn(Migration)) -> Result<Self, StoreError> {
        let connection = schema::open(path, told)?;
        let (commands, received) = mpsc::channel(MAX_WAITING_CALLS);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker::run(connection, received))
            .map_err(|_| StoreError::Closed)?;
        Ok(Self { commands, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Remembers a new script, or says that there is one with its id.
    ///
    /// # Durability
    /// On disk when it returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn accept(&self, record: Record) -> Result<Accepted, StoreError> {
        self.call(|reply| Command::Accept(Box::new(record), reply)).await
    }

    /// Changes a script.
    ///
    /// # Durability
    /// On disk when it returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn update(&self, update: ScriptUpdate) -> Result<(), StoreError> {
        self.call(|reply| Command::Update(Box::new(update), reply)).await
    }

    /// One script.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn get(&self, id: &ScriptId) -> Result<Option<Record>, StoreError> {
        self.call(|reply| Command::Get(id.clone(), reply)).await
    }

    /// All scripts that are not done, in order of arrival.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn living(&self) -> Result<Vec<Record>, StoreError> {
        self.call(Command::Living).await
    }

    /// Up to `limit` scripts that are done, the newest arrival first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn done_page(
        &self,
        filter: DoneFilter,
        after: Option<DoneCursor>,
        limit: usize,
    ) -> Result<DonePage, StoreError> {
        self.call(|reply| Command::DonePage { filter, after, limit, reply }).await
    }

    /// Removes the script that arrived as number `seq`, if it is done and has this id; says whether it
    /// did. `None`: an id that can't be read.
    ///
    /// # Durability
    /// On disk when it returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn forget(&self, id: Option<&ScriptId>, seq: u64) -> Result<bool, StoreError> {
        self.call(|reply| Command::Forget(id.cloned(), seq, reply)).await
    }

    /// How many scripts that are done there are, what they take, and the `limit` that ended first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn kept(&self, limit: usize) -> Result<Kept, StoreError> {
        self.call(|reply| Command::Kept(limit, reply)).await
    }

    /// Up to `limit` scripts that are done and of which nobody knows what they take: id (if
    /// it can be read) and number of arrival.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn unmeasured(
        &self,
        limit: usize,
    ) -> Result<Vec<(Option<ScriptId>, u64)>, StoreError> {
        self.call(|reply| Command::Unmeasured(limit, reply)).await
    }

    /// Remembers what the workspace of a script takes; its request is added.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn measured(&self, seq: u64, bytes: u64) -> Result<(), StoreError> {
        self.call(|reply| Command::Measured(seq, bytes, reply)).await
    }

    /// Those of the ids that no script has.
    ///
    /// # Errors
    /// When they can't be looked up.
    pub async fn unknown(&self, ids: Vec<ScriptId>) -> Result<Vec<ScriptId>, StoreError> {
        self.call(|reply| Command::Unknown(ids, reply)).await
    }

    /// Whether the agent drains.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn drain(&self) -> Result<Option<Drain>, StoreError> {
        self.call(Command::Drain).await
    }

    /// Remembers that the agent drains, or no longer does.
    ///
    /// # Durability
    /// On disk when it returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn set_drain(&self, drain: Option<Drain>) -> Result<(), StoreError> {
        self.call(|reply| Command::SetDrain(drain, reply)).await
    }

    /// Writes something that changes nothing: whether the disk takes changes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn try_change(&self) -> Result<(), StoreError> {
        self.call(Command::TryChange).await
    }

    /// The greatest number of arrival so far.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn max_seq(&self) -> Result<u64, StoreError> {
        self.call(Command::MaxSeq).await
    }

    /// Ends the store's thread after what was asked before.
    pub async fn close(&self) {
        // An error: it has ended already.
        self.commands.send(Command::Close).await.unwrap_or_default();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }

    async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

#[cfg(test)]
mod tests;
