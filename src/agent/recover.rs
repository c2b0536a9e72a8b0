//! Coming back after a restart: every script that the store holds as not done is found again, where
//! its workspace says that it stands.
//!
//! ```text
//! supervisor lives ──────────► follow it
//! outcome.json ──────────────► done
//! journal says "starting" ───► lost: nobody saw the end
//! nothing of that ───────────► queued, in its old place
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing::{Instrument as _, info, info_span};

use super::{Agent, AgentError};
use crate::journal::EventScanner;
use crate::mutex::os;
use crate::script::{Event, ScriptId};
use crate::supervisor::job::{Job, Report};
use crate::workspace::Workspace;

/// What the workspace of a script says.
enum Found {
    /// Its supervisor works.
    Supervised(OwnedFd),
    /// Nobody works on it. When the script may have run: why its end isn't known.
    Alone { lost: Option<String> },
}

impl Agent {
    /// Finds the scripts of an earlier run again.
    pub(super) async fn recover(&self) -> Result<(), AgentError> {
        for record in self.inner.store.living().await? {
            let spec = Arc::new(super::scripts::stored_spec(&record)?);
            let id = record.id.clone();
            let span = info_span!("script", script_id = %id);
            {
                let mut table = self.table();
                table.restore(record.seq, Arc::clone(&spec), record.queued_at);
                if let Some(living) = table.get_mut(&id) {
                    living.stop.clone_from(&record.stop_reason);
                }
            }
            let workspace = self.workspace(&id);
            match super::blocking(move || look(&workspace)).await?? {
                Found::Supervised(descriptor) => {
                    info!(script_id = %id, "its supervisor lives");
                    let failed = |source| AgentError::State {
                        path: self.workspace(&id).supervisor(),
                        source,
                    };
                    let supervisor =
                        self.inner.supervisors.take_over(&id, descriptor).map_err(failed)?;
                    {
                        let mut table = self.table();
                        table.queue.launched(&id);
                        table.apply(&id, Event::Launched)?;
                    }
                    self.spawn(self.clone().attend(spec, supervisor).instrument(span));
                }
                Found::Alone { lost } => self.conclude(&id, lost).instrument(span).await?,
            }
            self.limit_recovered_queue_time(&id, record.queued_at);
        }
        Ok(())
    }

    fn limit_recovered_queue_time(&self, id: &ScriptId, queued_at: jiff::Timestamp) {
        let spec = self.table().get(id).map(|living| Arc::clone(&living.spec));
        if let Some(spec) = spec {
            self.limit_queue_time(&spec, queued_at);
        }
    }
}

fn look(workspace: &Workspace) -> Result<Found, AgentError> {
    // Read first: it is voided when nobody works on it.
    let job: Option<Job> = workspace.read_json(&workspace.job())?;
    if let Some(descriptor) = living_supervisor(workspace)? {
        return Ok(Found::Supervised(descriptor));
    }
    let mut scanner = EventScanner::open(&workspace.journal());
    let mut starting = false;
    // A damaged tail is the end of what is known.
    while let Ok(Some((_, payload))) = scanner.next_event() {
        starting |= matches!(serde_json::from_slice(&payload), Ok(Report::Starting));
    }
    let rebooted = job.is_some_and(|job| job.boot_id != boot_id());
    let reason = || if rebooted { "the machine was restarted".to_owned() } else { lost_reason() };
    Ok(Found::Alone { lost: starting.then(reason) })
}

/// The supervisor that keeps its file in the workspace locked. When there is none, the workspace is
/// voided: one that was started and comes late finds nothing to do.
fn living_supervisor(workspace: &Workspace) -> Result<Option<OwnedFd>, AgentError> {
    let path = workspace.supervisor();
    let failed = |source| AgentError::State { path: path.clone(), source };
    if !workspace.path().is_dir() {
        return Ok(None);
    }
    let file = workspace.open_supervisor()?;
    if os::try_lock_exclusive(&file).map_err(failed)? {
        workspace.void_job()?;
        return Ok(None);
    }
    let pid = std::fs::read_to_string(&path).map_err(failed)?;
    let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
    let descriptor = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())).transpose();
    let descriptor = descriptor.map_err(|e| failed(e.into()))?;
    // It still is locked, so the process that the descriptor stands for is the supervisor.
    if os::try_lock_exclusive(&file).map_err(failed)? {
        return Ok(None);
    }
    Ok(descriptor)
}

/// Names this run of the machine.
pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Why the end of a script that ran isn't known.
pub(super) fn lost_reason() -> String {
    "its supervisor was killed; what it started may still run, and then keeps its mutexes"
        .to_owned()
}
