//! The secret values of scripts (the sensitive variables): erased from all that the agent keeps when their script
//! has ended.
//!
//! ```text
//! outcome is known ──► job.json goes ──► copies of the database ──► store: done, without values ──► log is emptied
//!                                                                  (one transaction)
//! ```
//!
//! 1. A script that may run again has its values: they go when its end is recorded, not before.
//! 2. An agent that is killed in between leaves either a script that has not ended for the store, and then the next
//!    one does all of it again; or a log to be emptied, which each agent does at its start.
//! 3. The same request is known again by a digest. Its key is `<state>/secrets.key`.
//! 4. What was kept without these rules, by an older baton, is swept while others are served.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use tokio::sync::{Notify, OnceCell};
use tracing::{info, warn};

use super::{Agent, AgentError, blocking};
use crate::script::ScriptId;
use crate::spec::{SECRETS_KEY_BYTES, SecretsKey};
use crate::store::{Rewrite, Store, Swept};
use crate::wire::{erase, pad_again};
use crate::workspace::{Workspace, removal};

/// How long to wait before the log is emptied when somebody read in it, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is kept for it.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    key: OnceCell<SecretsKey>,
    /// Rings when values were erased that the log still has.
    erased: Notify,
}

/// What is read of a job.
#[derive(Debug, Deserialize)]
struct Job {
    #[serde(default)]
    sensitive: Vec<String>,
}

impl Agent {
    fn database(&self) -> PathBuf {
        self.inner.settings.state.join("agent.db")
    }

    /// The agent's key (rule 3); it is made when it is needed first.
    ///
    /// # Errors
    /// When it can't be read or made.
    pub(super) async fn secrets_key(&self) -> Result<&SecretsKey, AgentError> {
        let path = self.inner.settings.state.join("secrets.key");
        let load = async {
            let name = path.clone();
            let loaded = blocking(move || load_key(&name)).await?;
            loaded.map_err(|source| AgentError::State { path: path.clone(), source })
        };
        self.inner.secrets.key.get_or_try_init(|| load).await
    }

    /// Erases the secret values of a script that has ended. Returns its request without them, for the store;
    /// `None`: there are none.
    pub(super) async fn erase_secrets(&self, id: &ScriptId) -> Option<Vec<u8>> {
        let has_none = |living: &super::table::Living| living.spec.sensitive.is_empty();
        if self.table().get(id).is_some_and(has_none) {
            return None;
        }
        let erased = match self.erase_secrets_of(id).await {
            Ok(erased) => erased,
            Err(error) => {
                warn!(error = crate::text::chain(&error), "its secrets are not erased");
                self.sweep_again().await;
                return None;
            }
        };
        let (workspace, database, id) = (self.workspace(id), self.database(), id.clone());
        let request = erased.clone();
        let erase = move || {
            workspace.void_job()?;
            let Some(request) = request else {
                return Ok(());
            };
            let in_copy = |_: &str, before: &[u8]| (before != request).then(|| request.clone());
            Store::rewrite_copies(&database, Some(&id), in_copy).map_err(AgentError::from)
        };
        if let Err(error) = blocking(erase).await.and_then(|erased| erased) {
            warn!(error = crate::text::chain(&error), "its secrets are not erased everywhere");
            self.sweep_again().await;
        }
        erased
    }

    async fn erase_secrets_of(&self, id: &ScriptId) -> Result<Option<Vec<u8>>, AgentError> {
        // Not that of the table: one that was erased before must keep its digest.
        let Some(record) = self.inner.store.get(id).await? else {
            return Ok(None);
        };
        let key = match self.secrets_key().await {
            Ok(key) => Some(key),
            Err(error) => {
                warn!(error = crate::text::chain(&error), "the same request is not known again");
                None
            }
        };
        Ok(erase(&record.request, key))
    }

    /// The next start looks at everything.
    async fn sweep_again(&self) {
        if let Err(error) = self.inner.store.set_erase_mark(None).await {
            warn!(%error, "the next start may not erase it");
        }
    }

    /// Values were erased from the store: the log is to be emptied.
    pub(super) fn secrets_erased(&self) {
        self.inner.secrets.erased.notify_one();
    }

    /// Empties the log whenever values were erased, as long as the agent lives.
    pub(super) async fn run_eraser(self) {
        if !self.inner.settings.tied
            && let Err(error) = self.sweep_secrets().await
        {
            warn!(error = crate::text::chain(&error), "secrets of before are not all erased");
        }
        // What a killed agent left.
        self.secrets_erased();
        loop {
            self.inner.secrets.erased.notified().await;
            let mut pause = FIRST_PAUSE;
            while !matches!(self.inner.store.empty_log().await, Ok(true)) {
                // Somebody reads the database with a tool, or the disk refuses.
                tokio::time::sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    /// Rule 4.
    async fn sweep_secrets(&self) -> Result<(), AgentError> {
        let (began, since) = (Timestamp::now(), self.inner.store.erase_mark().await?);
        let key = self.secrets_key().await?.clone();
        self.void_ended_jobs(since).await?;
        if since.is_none() {
            self.sweep_copies(key.clone()).await?;
        }
        let rewrite =
            Rewrite::new(
                move |request, is_done| {
                    if is_done { erase(request, Some(&key)) } else { pad_again(request) }
                },
            );
        let swept = self.inner.store.sweep(since, &rewrite).await?;
        if since.is_none() || swept != Swept::default() {
            self.inner.store.rebuild().await?;
            info!(requests = swept.rewritten, "secrets of before are erased");
        }
        Ok(self.inner.store.set_erase_mark(Some(began)).await?)
    }

    /// Takes away the jobs of scripts that have ended, if there are secrets in them.
    async fn void_ended_jobs(&self, since: Option<Timestamp>) -> Result<(), AgentError> {
        let (agent, scripts) = (self.clone(), self.inner.settings.state.join("scripts"));
        let since = since.map(SystemTime::from);
        let work = move || {
            for id in removal::ids(&scripts)? {
                let workspace = Workspace::of(&scripts, &id);
                let has_secrets = [workspace.job(), workspace.new_job()]
                    .iter()
                    .any(|job| is_of(job, since) && has_secrets(job));
                if has_secrets
                    && agent.table().get(&id).is_none()
                    && !agent.is_supervised(&id)
                    && let Err(error) = workspace.void_job()
                {
                    warn!(script_id = %id, error = crate::text::chain(&error), "its job stays");
                }
            }
            Ok(())
        };
        let path = self.inner.settings.state.join("scripts");
        blocking(work).await?.map_err(|source| AgentError::State { path, source })
    }

    /// Erases from the copies what is not of a living script: that one may still be run by an older baton, when
    /// a copy is put back.
    async fn sweep_copies(&self, key: SecretsKey) -> Result<(), AgentError> {
        let living = self.inner.store.living().await?;
        let living: HashSet<String> = living.into_iter().map(|one| one.id.into()).collect();
        let (agent, database) = (self.clone(), self.database());
        let rewrite = move |id: &str, request: &[u8]| {
            // Looked up last: whoever ends meanwhile erases its own.
            let lives = living.contains(id)
                && id.parse().is_ok_and(|id: ScriptId| agent.table().get(&id).is_some());
            if lives { pad_again(request) } else { erase(request, Some(&key)) }
        };
        Ok(blocking(move || Store::rewrite_copies(&database, None, rewrite)).await??)
    }
}

/// Whether a file was written from a time on.
fn is_of(path: &Path, since: Option<SystemTime>) -> bool {
    let written = path.metadata().and_then(|found| found.modified());
    written.is_ok_and(|written| since.is_none_or(|since| written >= since))
}

/// Whether there are secrets in a job, or it can't be told.
fn has_secrets(job: &Path) -> bool {
    let text = std::fs::read(job).unwrap_or_default();
    let job: Result<Job, _> = serde_json::from_slice(&text);
    !job.is_ok_and(|job| job.sensitive.is_empty())
}

/// Reads the key, or makes one. Of one that is damaged nobody knows what it was.
fn load_key(path: &Path) -> std::io::Result<SecretsKey> {
    let known = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    if let Ok(bytes) = <[u8; SECRETS_KEY_BYTES]>::try_from(known) {
        return Ok(SecretsKey::new(&bytes));
    }
    let mut bytes = [0; SECRETS_KEY_BYTES];
    let no_random = |_| std::io::Error::other("the system gives no random bytes");
    SystemRandom::new().fill(&mut bytes).map_err(no_random)?;
    crate::durable::replace_file(path, &bytes, 0o600)?;
    Ok(SecretsKey::new(&bytes))
}
