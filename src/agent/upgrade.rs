//! The agent's side of an upgrade: takes the new program, starts the guard, swaps, and becomes it. What a record of
//! an upgrade that was interrupted asks for is done at the start.
//!
//! 1. One at a time.
//! 2. From the record on, nobody's going away stops it: it is a task of the agent.
//! 3. The guard lives before the program is replaced.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, warn};

use super::{Agent, AgentError, Settings, blocking};
use crate::process::Process;
use crate::store::{Store, StoreError};
use crate::upgrade::{
    self, Ended, Event, Folder, Incoming, Offer, Prepared, Record, Stage, Terms, UpgradeError,
};
use crate::{config, crash};

/// How long a guard may take to watch.
const GUARD_LIMIT: Duration = Duration::from_secs(10);

/// How many guards may end before they have settled an upgrade.
const MAX_GUARDS: u32 = 5;

/// What the agent knows of an upgrade that it carries out.
#[derive(Debug, Default)]
pub(super) struct Upgrading {
    /// Rule 1.
    one: Arc<tokio::sync::Mutex<()>>,
    /// The program that it is to become.
    successor: Mutex<Option<PathBuf>>,
    /// Rings when there is one.
    replaced: CancellationToken,
}

/// A program that a client brings.
#[derive(Debug)]
pub struct Upload {
    /// What has come of it.
    pub incoming: Incoming,
    _one: OwnedMutexGuard<()>,
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The upgrade that is in progress now; `None`: nothing is replaced.
    pub id: Option<String>,
    /// The version that runs.
    pub from: String,
    /// The version that came.
    pub to: String,
    /// How long the new one may take until it serves.
    pub health_limit: Duration,
    /// Whether it is what runs.
    pub unchanged: bool,
}

impl Agent {
    /// Begins to take a new program.
    ///
    /// # Errors
    /// When none is taken, another upgrade is in progress, it is too large, or there is no room.
    pub async fn begin_upgrade(&self, offer: Offer) -> Result<Upload, UpgradeError> {
        let (settings, terms) = (&self.inner.settings, self.terms()?);
        let one = Arc::clone(&self.inner.upgrading.one);
        let one = one.try_lock_owned().map_err(|_| UpgradeError::InProgress(None))?;
        let (folder, program) = (Folder::of(&settings.state), settings.program.clone());
        let begin = move || {
            let last = folder.read()?.filter(|last| !last.stage.is_done());
            if let Some(last) = last {
                return Err(UpgradeError::InProgress(Some(last.to)));
            }
            upgrade::begin(&folder, &terms, &program, offer)
        };
        Ok(Upload { incoming: work(begin).await?, _one: one })
    }

    /// Whose programs are taken now.
    fn terms(&self) -> Result<Terms, UpgradeError> {
        let socket = self.inner.settings.socket.clone().ok_or(UpgradeError::NoKeys)?;
        let config::Upgrade { keys, health_limit } = self.config().upgrade.clone();
        Ok(Terms { keys, health_limit, socket })
    }

    /// Verifies a program that has come and, unless that was all, becomes it: [`Agent::replaced`] rings.
    ///
    /// # Errors
    /// When it is refused, or can't be put in place: then nothing has changed.
    pub async fn complete_upgrade(
        &self,
        upload: Upload,
        caller: String,
        dry_run: bool,
    ) -> Result<Taken, UpgradeError> {
        let agent = self.clone();
        let complete = async move { agent.complete_upgrade_now(upload, caller, dry_run).await };
        let completing = self.inner.tasks.spawn(complete.in_current_span());
        let stopping = |_| UpgradeError::Record("the agent is stopping".to_owned());
        completing.await.map_err(stopping)?
    }

    async fn complete_upgrade_now(
        &self,
        upload: Upload,
        caller: String,
        dry_run: bool,
    ) -> Result<Taken, UpgradeError> {
        let Upload { incoming, _one } = upload;
        let terms = self.terms()?;
        let prepared = work(move || incoming.verify()).await?.prepare().await?;
        let (from, to) = (upgrade::own_version().to_string(), prepared.version.to_string());
        let health_limit = terms.health_limit;
        let unchanged = prepared.digest == work(upgrade::own_digest).await?;
        let mut taken = Taken { id: None, from, to, health_limit, unchanged };
        if unchanged || dry_run {
            return Ok(taken);
        }
        let own = Process::read(std::process::id());
        let own = own.ok_or_else(|| UpgradeError::Record("no /proc of this process".to_owned()))?;
        let record = Record {
            format: Record::format(),
            id: uuid::Uuid::now_v7().to_string(),
            program: prepared.program.clone(),
            from: taken.from.clone(),
            to: taken.to.clone(),
            sha256: prepared.digest.to_string(),
            caller,
            begun_at: Timestamp::now(),
            replaced_started_at: self.inner.started_at,
            health_limit,
            socket: terms.socket,
            agent: own.id(),
            stage: Stage::Swapping,
        };
        taken.id = Some(record.id.clone());
        info!(from = record.from, to = record.to, id = record.id, "upgrade begins");
        self.swap(record, prepared).await?;
        Ok(taken)
    }

    /// Rule 3.
    async fn swap(&self, record: Record, prepared: Prepared) -> Result<(), UpgradeError> {
        let folder = Folder::of(&self.inner.settings.state);
        let begun = {
            let (folder, program) = (folder.clone(), record.program.clone());
            work(move || {
                let previous = upgrade::keep(&program)?;
                folder.begin(&record)?;
                crash::point("upgrade recorded");
                Ok(previous)
            })
        };
        let previous = begun.await?;
        let state = self.inner.settings.state.clone();
        let swapped = match start_guard(&previous, &state).await {
            Ok(()) => {
                crash::point("upgrade guarded");
                let folder = folder.clone();
                work(move || {
                    upgrade::put_in_place(&prepared)?;
                    folder.apply(Event::Swapped)?;
                    Ok(prepared.program.clone())
                })
                .await
            }
            Err(error) => Err(error),
        };
        match swapped {
            Ok(program) => {
                let mut successor = self.successor();
                *successor = Some(program);
                self.inner.upgrading.replaced.cancel();
                Ok(())
            }
            Err(error) => {
                let reason = crate::text::chain(&error);
                let put_back = work(move || take_back(&folder, reason)).await;
                put_back.inspect_err(|error| error!(%error, "upgrade can't be taken back"))?;
                Err(error)
            }
        }
    }

    /// Rings when the program was replaced: the agent is to end, and to become it.
    pub fn replaced(&self) -> &CancellationToken {
        &self.inner.upgrading.replaced
    }

    fn successor(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        self.inner.upgrading.successor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent was told to stop before it became the new program: whoever starts it next finds the old one.
    pub async fn forgo_successor(&self) {
        if self.successor().take().is_none() {
            return;
        }
        let folder = Folder::of(&self.inner.settings.state);
        let reason = "the agent was told to stop before it became the new version".to_owned();
        if let Err(error) = work(move || take_back(&folder, reason)).await {
            error!(error = crate::text::chain(&error), "upgrade can't be taken back");
        }
    }

    /// Becomes the new program, in this process, when there is one; called when the agent is closed. Returns only
    /// when there is none, or the system refuses: then the guard puts the old one back.
    pub fn become_successor(&self) -> Option<io::Error> {
        let program = self.successor().take()?;
        let folder = Folder::of(&self.inner.settings.state);
        if let Err(error) = folder.apply(Event::Starting) {
            // Somebody took it back meanwhile: what is at the path is right.
            warn!(%error, "upgrade does not go on");
        }
        crash::point("upgrade starting");
        if let Some(count) = self.inner.settings.open_files {
            // The new one finds the limit that this one found.
            crate::process::limit_open_files(count);
        }
        info!(program = %program.display(), "the agent becomes the new program");
        let mut words = std::env::args_os();
        let name = words.next().unwrap_or_else(|| OsString::from("baton"));
        Some(std::process::Command::new(program).arg0(name).args(words).exec())
    }

    /// Shows how the last upgrade stands, and what becomes of it.
    pub(super) fn follow_upgrade(&self, last: Option<Record>) {
        if last.as_ref().is_some_and(|last| !last.stage.is_done()) {
            self.spawn(self.clone().see_guard_end());
        }
        self.table().upgrade = last;
        let folder = Folder::of(&self.inner.settings.state);
        let watched = folder.create().map_err(|error| error.to_string()).and_then(|()| {
            self.inner.watcher.watch(folder.path()).map_err(|error| error.to_string())
        });
        let mut changes = match watched {
            Ok(changes) => changes,
            Err(error) => return warn!(error, "upgrades can't be followed"),
        };
        let agent = self.clone();
        self.spawn(async move {
            loop {
                changes.changed().await;
                let folder = folder.clone();
                match work(move || folder.read()).await {
                    Ok(record) => agent.tell_upgrade(record),
                    Err(error) => warn!(%error, "the upgrade's record can't be read"),
                }
            }
        });
    }

    /// The guard settles the upgrade; when it ends before it has, this agent goes on with it.
    async fn see_guard_end(self) {
        let (settings, folder) = (&self.inner.settings, Folder::of(&self.inner.settings.state));
        let mut tries = 0..MAX_GUARDS;
        while tries.next().is_some() {
            let await_end = {
                let folder = folder.clone();
                work(move || folder.await_guard_end().and_then(|()| folder.read()))
            };
            let gone_on = match await_end.await {
                Ok(Some(record)) if !record.stage.is_done() => {
                    go_on(settings, &folder, record).await
                }
                Ok(_) => return,
                Err(error) => Err(error),
            };
            if let Err(error) = gone_on {
                error!(error = crate::text::chain(&error), "upgrade can't be settled");
            }
        }
    }

    /// A new version that is told to stop before the guard has seen it serve: it did serve.
    pub(super) async fn close_upgrade(&self) {
        let own = upgrade::own_version().to_string();
        let is_on_trial = |record: &Record| {
            matches!(record.stage, Stage::Swapped | Stage::Starting)
                && record.to == own
                && record.replaced_started_at != self.inner.started_at
        };
        let folder = Folder::of(&self.inner.settings.state);
        let read = {
            let folder = folder.clone();
            work(move || folder.read())
        };
        if read.await.ok().flatten().is_some_and(|record| is_on_trial(&record)) {
            let healthy = work(move || folder.apply(Event::Healthy)).await;
            if let Err(error) = healthy {
                warn!(%error, "upgrade is not settled");
            }
        }
    }

    fn tell_upgrade(&self, record: Option<Record>) {
        if self.table().upgrade == record {
            return;
        }
        if let Some(record) = &record {
            tell_end(record);
        }
        self.table().upgrade = record;
        self.inner.changed.send_replace(());
    }
}

/// Says in the log how an upgrade ended.
fn tell_end(record: &Record) {
    let Record { id, from, to, .. } = record;
    match &record.stage {
        Stage::Done { ended: Ended::Upgraded, .. } => info!(id, from, to, "upgraded"),
        Stage::Done { ended: Ended::RolledBack { reason }, .. } => {
            error!(id, from, to, reason, "upgrade was rolled back");
        }
        Stage::Swapping | Stage::Swapped | Stage::Starting | Stage::TakingBack { .. } => {}
    }
}

/// Runs file work on a thread that may block.
async fn work<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UpgradeError> + Send + 'static,
) -> Result<T, UpgradeError> {
    let stopping = |_| UpgradeError::Record("the agent is stopping".to_owned());
    blocking(work).await.map_err(stopping)?
}

/// Does what a record of an earlier run asks for, before the database is opened; returns the last upgrade.
/// The state folder is locked.
pub(super) async fn settle(
    settings: &Settings,
    database: &Path,
) -> Result<Option<Record>, AgentError> {
    if settings.tied {
        return Ok(None);
    }
    let last = settle_now(settings).await.unwrap_or_else(|error| {
        // The agent is needed, whatever became of an upgrade.
        error!(error = crate::text::chain(&error), "upgrade can't be settled");
        None
    });
    put_database_back(settings, database).await?;
    Ok(last)
}

async fn settle_now(settings: &Settings) -> Result<Option<Record>, UpgradeError> {
    let folder = Folder::of(&settings.state);
    let Some(record) = folder.read()? else {
        return Ok(None);
    };
    if record.stage.is_done() {
        return Ok(Some(record));
    }
    let record =
        if folder.is_guarded()? { record } else { go_on(settings, &folder, record).await? };
    Ok(Some(record))
}

/// Refuses the state of a newer baton, unless that was a version that was taken back.
pub(super) fn check(settings: &Settings, database: &Path) -> Result<(), StoreError> {
    match Store::check(database) {
        Err(StoreError::Newer { .. }) if may_put_back(settings, database) => Ok(()),
        other => other,
    }
}

/// Puts back the copy of a database that a version changed which was taken back, so that it can be opened.
async fn put_database_back(settings: &Settings, database: &Path) -> Result<(), AgentError> {
    if !matches!(Store::check(database), Err(StoreError::Newer { .. })) {
        return Ok(());
    }
    if may_put_back(settings, database) {
        let database = database.to_owned();
        let copy = blocking(move || Store::put_back(&database)).await??;
        let copy = copy.path;
        warn!(copy = %copy.display(), "the database is what it was before the newer version");
    }
    Ok(())
}

/// Whether a version was taken back, and nobody has written to the database since.
fn may_put_back(settings: &Settings, database: &Path) -> bool {
    let record = Folder::of(&settings.state).read();
    match record.ok().flatten().filter(|_| !settings.tied).map(|record| record.stage) {
        // Its guard or another agent settles it first.
        Some(Stage::Swapping | Stage::Swapped | Stage::Starting | Stage::TakingBack { .. }) => true,
        Some(Stage::Done { ended: Ended::RolledBack { .. }, at }) => {
            let log = database.with_extension("db-wal");
            let written = [database, &log].map(|path| path.metadata().and_then(|m| m.modified()));
            let is_before = |time| Timestamp::try_from(time).is_ok_and(|time| time <= at);
            written.into_iter().flatten().all(is_before)
        }
        Some(Stage::Done { ended: Ended::Upgraded, .. }) | None => false,
    }
}

/// An upgrade that nobody guards: agent or guard were killed, or the machine went down.
async fn go_on(
    settings: &Settings,
    folder: &Folder,
    record: Record,
) -> Result<Record, UpgradeError> {
    let is_new = work(upgrade::own_digest).await?.to_string() == record.sha256;
    if !is_new {
        warn!(to = record.to, "upgrade was interrupted");
        let folder = folder.clone();
        let reason = "it was interrupted before the new version served".to_owned();
        return work(move || take_back(&folder, reason)).await;
    }
    if record.stage == Stage::Swapping {
        folder.apply(Event::Swapped)?;
    }
    let own = Process::read(std::process::id()).map_or(record.agent, |own| own.id());
    let record = folder.name_agent(own)?;
    info!(to = record.to, "upgrade was interrupted; it is guarded again");
    // When it was put back already, the old program is at its own path.
    let previous = upgrade::previous(&record.program);
    let guard = if previous.exists() { previous } else { record.program.clone() };
    if let Err(error) = start_guard(&guard, &settings.state).await {
        warn!(%error, "upgrade has no guard; it is taken as it is");
        return folder.apply(Event::Healthy);
    }
    Ok(record)
}

/// Puts the old program back while the old agent runs.
fn take_back(folder: &Folder, reason: String) -> Result<Record, UpgradeError> {
    let record = folder.apply(Event::TakeBack(reason))?;
    upgrade::put_back(&record.program, &record.sha256)?;
    folder.apply(Event::TakenBack)
}

/// Starts the guard; it watches when this returns.
async fn start_guard(program: &Path, state: &Path) -> Result<(), UpgradeError> {
    let refused = |error: io::Error| UpgradeError::Guard(error.to_string());
    let mut command = Command::new(program);
    command.arg("guard").arg(state).args(std::env::args_os().skip(1));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    #[expect(clippy::disallowed_methods, reason = "this is the home of the guard")]
    let mut child = command.spawn().map_err(refused)?;
    let out = child.stdout.take().ok_or_else(|| UpgradeError::Guard("no output".to_owned()))?;
    let mut line = String::new();
    let mut out = BufReader::new(out);
    let said = tokio::time::timeout(GUARD_LIMIT, out.read_line(&mut line)).await;
    match said {
        Ok(Ok(_)) if line == upgrade::GUARD_READY => Ok(()),
        Ok(Ok(_)) => Err(UpgradeError::Guard(format!("it ended: {}", line.trim()))),
        Ok(Err(error)) => Err(refused(error)),
        Err(_) => Err(UpgradeError::Guard(format!("it said nothing within {GUARD_LIMIT:?}"))),
    }
}
