//! Removing scripts that are done: by Forget, by the limits of `[retention]`, and after a crash.
//!
//! ```text
//! workspace ──rename──► .removed ──► the row in the store goes ──► .removed is emptied
//! ```
//!
//! 1. Living scripts are never removed, nor a workspace that a supervisor works on.
//! 2. One is removed at a time. Its row goes after its workspace, so nobody can start a new script
//!    with its id in between.
//! 3. A killed agent leaves no half: before the next one serves, the rows of what was taken away are
//!    gone, and workspaces without a row are taken away.
//! 4. One task looks when a script has ended, and when the oldest has reached its age; not more often
//!    than [`PAUSE`] allows. Large workspaces are emptied while others are served.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tracing::{Instrument as _, error, info, warn};

use super::retention::judge;
use super::{Agent, AgentError, blocking};
use crate::config::Retention;
use crate::mutex::os;
use crate::script::ScriptId;
use crate::workspace::removal::{self, Removed};

/// How many scripts are looked at together: others don't wait for more than these.
const BATCH: usize = 64;
/// The least time between two looks: scripts may end many times a second.
const PAUSE: Duration = Duration::from_secs(1);
/// The same while there is more to do.
const SHORT_PAUSE: Duration = Duration::from_millis(50);
/// How long to wait after a look that failed: the disk may be full for a while.
const LONG_PAUSE: Duration = Duration::from_mins(1);
/// The longest time between two looks: a clock that is set makes scripts older.
const LONGEST: Duration = Duration::from_hours(1);
/// How many ids are looked up together.
const LOOKED_UP: usize = 500;

impl Agent {
    fn scripts(&self) -> PathBuf {
        self.inner.settings.state.join("scripts")
    }

    fn removed(&self) -> Result<Removed, AgentError> {
        let scripts = self.scripts();
        Removed::of(&scripts).map_err(|source| AgentError::State { path: scripts, source })
    }

    /// Completes what a killed agent began (rule 3). What is left to do needs no hurry.
    pub(super) async fn complete_removals(&self) -> Result<(), AgentError> {
        let scripts = self.scripts();
        let failed = |source| AgentError::State { path: scripts.clone(), source };
        let removed = self.removed()?;
        for (id, seq) in removed.unfinished().map_err(failed)? {
            self.inner.store.forget(Some(&id), seq).await?;
            removed.forget_name(&id, seq).map_err(failed)?;
        }
        let mut ids = removal::ids(&scripts).map_err(failed)?.peekable();
        while ids.peek().is_some() {
            let some = ids.by_ref().take(LOOKED_UP).collect();
            for id in self.inner.store.unknown(some).await? {
                if self.is_supervised(&id) {
                    warn!(script_id = %id, "is not known, but its supervisor lives: left alone");
                    continue;
                }
                info!(script_id = %id, "its workspace is nobody's: removed");
                removed.take_orphan(&id).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Rule 1.
    pub(super) fn is_supervised(&self, id: &ScriptId) -> bool {
        let lock = File::open(self.workspace(id).supervisor());
        lock.is_ok_and(|lock| !os::try_lock_exclusive(&lock).unwrap_or(false))
    }

    /// Removes a script that is done. It is removed whole, also when nobody waits for it any more.
    ///
    /// # Errors
    /// When it is not done, or there is no such script.
    pub async fn forget(&self, id: &ScriptId) -> Result<(), AgentError> {
        let (agent, id) = (self.clone(), id.clone());
        let forget = async move { agent.forget_now(&id).await };
        let forgetting = self.inner.tasks.spawn(forget.in_current_span());
        forgetting.await.unwrap_or(Err(AgentError::Stopping))
    }

    async fn forget_now(&self, id: &ScriptId) -> Result<(), AgentError> {
        let one = self.inner.forgetting.lock().await;
        if !self.get(id).await?.phase.is_done() {
            return Err(AgentError::NotDone(id.clone()));
        }
        // Its end is told before the store has it: without it the script would be run again.
        self.is_over(id).await;
        let found = self.inner.store.get(id).await?;
        let record = found.ok_or_else(|| AgentError::NotFound(id.clone()))?;
        let removed = self.remove(Some(id), record.seq).await;
        drop(one);
        removed?;
        info!("forgotten");
        Ok(())
    }

    /// Removes a script that is done (rule 2). Without an id there is only a row.
    async fn remove(&self, id: Option<&ScriptId>, seq: u64) -> Result<(), AgentError> {
        let removed = self.removed()?;
        let taken = match id.cloned() {
            Some(id) => blocking(move || removed.take(&id, seq)).await?,
            None => Ok(None),
        };
        let taken = taken.map_err(|source| AgentError::State { path: self.scripts(), source })?;
        let forgotten = self.inner.store.forget(id, seq).await;
        // Emptied all the same: the disk may be so full that the row can't be removed without that.
        if let Some(path) = taken {
            empty(path).await?;
        }
        forgotten?;
        Ok(())
    }

    /// Keeps within the limits, as they are at each look, as long as the agent lives.
    pub(super) async fn run_housekeeper(self) {
        if let Err(error) = self.empty_leftovers().await {
            warn!(error = crate::text::chain(&error), "what an earlier agent left is not removed");
        }
        loop {
            let again = match self.keep_within(&self.config().retention).await {
                Ok(again) => again,
                Err(error) => {
                    error!(error = crate::text::chain(&error), "old scripts are not removed");
                    LONG_PAUSE
                }
            };
            tokio::time::sleep(if again.is_zero() { SHORT_PAUSE } else { PAUSE }).await;
            tokio::select! {
                () = self.inner.ended.notified() => {}
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    async fn empty_leftovers(&self) -> Result<(), AgentError> {
        let removed = self.removed()?;
        let leftovers = blocking(move || removed.leftovers()).await?;
        let failed = |source| AgentError::State { path: self.scripts(), source };
        for path in leftovers.map_err(failed)? {
            empty(path).await?;
        }
        Ok(())
    }

    /// Looks once; says in what time to look again when no script ends.
    async fn keep_within(&self, limits: &Retention) -> Result<Duration, AgentError> {
        let more = self.measure().await?;
        let kept = self.inner.store.kept(BATCH).await?;
        let verdict = judge(limits, &kept, Timestamp::now());
        for oldest in &kept.oldest[..verdict.go] {
            let _one = self.inner.forgetting.lock().await;
            let living = |id| self.table().get(id).is_some();
            if oldest.id.as_ref().is_some_and(living) {
                // Its end is recorded, and about to be told.
                continue;
            }
            self.remove(oldest.id.as_ref(), oldest.seq).await?;
        }
        if verdict.go > 0 {
            info!(
                scripts = verdict.go,
                kept = kept.count,
                bytes = kept.bytes,
                "removed old scripts"
            );
        }
        let again = verdict.again.unwrap_or(LONGEST).min(LONGEST);
        Ok(if more { Duration::ZERO } else { again })
    }

    /// Finds out what scripts take on the disk that have ended; says whether there are more.
    async fn measure(&self) -> Result<bool, AgentError> {
        let unmeasured = self.inner.store.unmeasured(BATCH).await?;
        let more = unmeasured.len() == BATCH;
        let scripts = self.scripts();
        let measure = move || {
            let bytes = |id: &ScriptId| removal::disk_bytes(&scripts.join(id.as_str()));
            let one = |(id, seq): (Option<ScriptId>, u64)| (seq, id.as_ref().map_or(0, bytes));
            unmeasured.into_iter().map(one).collect::<Vec<_>>()
        };
        let measured = blocking(measure).await?;
        // Together: they are committed together.
        let stored = measured.into_iter().map(|(seq, bytes)| self.inner.store.measured(seq, bytes));
        for stored in join_all(stored).await {
            stored?;
        }
        Ok(more)
    }
}

/// Empties a folder that was taken away.
async fn empty(path: PathBuf) -> Result<(), AgentError> {
    blocking(move || {
        if let Err(error) = removal::remove_tree(&path) {
            // The next start tries again.
            warn!(path = %path.display(), %error, "not removed");
        }
    })
    .await
}
