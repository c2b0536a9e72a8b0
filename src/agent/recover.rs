//! Coming back after a restart: every script that the store holds as not done is found again, where
//! its workspace says that it stands.
//!
//! ```text
//! supervisor lives ──────────────────────────► follow it
//! outcome.json ──────────────────────────────► done
//! resume.json of its last start ─────────────► queued, in its old place, to be run again after a restart
//! journal or store say that it was started ──► what is left of it is ended, then lost
//! nothing of that ───────────────────────────► queued, in its old place
//! ```

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing::{Instrument as _, Span, info, info_span};

use super::attend::Ran;
use super::{Agent, AgentError};
use crate::journal::EventScanner;
use crate::mutex::{Blocked, os};
use crate::script::{Event, OutcomeKind, Restart};
use crate::spec::Spec;
use crate::store::Record;
use crate::supervisor::job::{Cancel, Job, Report};
use crate::workspace::{Workspace, WorkspaceError};

/// What the workspace of a script says.
enum Found {
    /// Its supervisor works.
    Supervised(Supervised),
    /// Nobody works on it.
    Alone(Alone),
}

/// What a workspace says.
struct Looked {
    found: Found,
    /// Its last wish for a restart of the machine.
    restart: Option<Restart>,
    /// Why it was to stop, as its supervisor is to be told.
    cancel: Option<Cancel>,
}

/// A workspace on which a supervisor works.
struct Supervised {
    descriptor: OwnedFd,
    /// The token of a job that goes on with the journal of earlier ones.
    continues: Option<String>,
    /// For whom it waits.
    blocked: Vec<Blocked>,
}

/// A workspace on which nobody works.
struct Alone {
    output_bytes: u64,
    /// Whether it was launched before the machine was restarted.
    rebooted: bool,
    ran: Ran,
}

/// What goes on with scripts that were found again.
type Work = Vec<Pin<Box<dyn Future<Output = ()> + Send>>>;

impl Agent {
    /// Finds the scripts of an earlier run again.
    pub(super) async fn recover(&self) -> Result<(), AgentError> {
        let mut work = Work::new();
        for record in self.inner.store.living().await? {
            let span = info_span!("script", script_id = %record.id);
            match self.recover_one(&record, &mut work).instrument(span.clone()).await {
                Ok(()) => {}
                // One script whose files are damaged holds up none of the others.
                Err(
                    error @ (AgentError::Workspace(WorkspaceError::Damaged { .. })
                    | AgentError::StoredRequest { .. }),
                ) => {
                    let reason = format!("it can't be recovered: {}", crate::text::chain(&error));
                    let outcome = OutcomeKind::Lost { reason }.into();
                    let finish =
                        self.finish(&record.id, outcome, record.started_at, Timestamp::now());
                    finish.instrument(span).await?;
                }
                Err(error) => return Err(error),
            }
            self.table().note_waits(&record.id);
        }
        // Not before: the end of a lease is that of its scripts in the queue, and all seem to be there until
        // they were looked at.
        for work in work {
            self.spawn(work);
        }
        self.recover_leases()
    }

    async fn recover_one(&self, record: &Record, work: &mut Work) -> Result<(), AgentError> {
        let stored = super::scripts::stored(record)?;
        let (is_erased, spec) = (stored.is_erased(), Arc::new(stored.spec));
        let id = &record.id;
        self.table().restore(record.seq, Arc::clone(&spec), record.queued_at);
        if let Some(living) = self.table().get_mut(id) {
            living.stop.clone_from(&record.stop_reason);
        }
        let workspace = self.workspace(id);
        let Looked { found, restart, cancel } = super::blocking(move || look(&workspace)).await??;
        let wished_at = restart.as_ref().map(|restart| restart.since);
        if let Some(living) = self.table().get_mut(id) {
            living.recover(record.started_at, restart);
            living.abandon = cancel.as_ref().and_then(|cancel| cancel.abandon.clone());
        }
        self.recover_lease(&spec, cancel);
        match found {
            Found::Supervised(supervised) => {
                let attend = self.take_over(record, spec, supervised)?;
                work.push(Box::pin(attend.instrument(Span::current())));
                Ok(())
            }
            Found::Alone(Alone { output_bytes, rebooted, ran }) => {
                if let Some(living) = self.table().get_mut(id) {
                    living.output_bytes = output_bytes;
                    living.attempts += u32::from(ran.is_some());
                }
                // The store may know of a start that the journal lost in a power failure.
                let stored = record.started_at.filter(|at| wished_at.is_none_or(|wish| *at > wish));
                match ran.or(stored.map(|_| None)) {
                    None => self.queue_again(&spec, record, is_erased).await,
                    Some(_) if rebooted => {
                        let reason = "the machine was restarted".to_owned();
                        self.conclude(id, Some(self.lost_with_values(id, reason).await?)).await
                    }
                    Some(leader) => {
                        {
                            let mut table = self.table();
                            table.queue.launched(id);
                            table.apply(id, Event::Launched)?;
                        }
                        let agent = self.clone();
                        // The others don't wait for what is left of it.
                        let wind_up =
                            async move { agent.wind_up(&spec, Ok(Some(leader)), None).await };
                        work.push(Box::pin(wind_up.instrument(Span::current())));
                        Ok(())
                    }
                }
            }
        }
    }

    /// Its supervisor lives; returns what follows it.
    fn take_over(
        &self,
        record: &Record,
        spec: Arc<Spec>,
        supervised: Supervised,
    ) -> Result<impl Future<Output = ()> + use<>, AgentError> {
        info!("its supervisor lives");
        let (id, Supervised { descriptor, continues, blocked }) = (&record.id, supervised);
        let path = self.workspace(id).supervisor();
        let failed = |source| AgentError::State { path, source };
        let supervisor = self.inner.supervisors.take_over(id, descriptor).map_err(failed)?;
        {
            let mut table = self.table();
            table.queue.launched(id);
            table.apply(id, Event::Launched)?;
            if let Some(living) = table.get_mut(id) {
                // Those behind it wait for them too, and are asked next.
                living.blocked = blocked;
            }
        }
        if record.stop_reason.is_some() {
            // The agent may have been killed before it told the supervisor.
            self.stop_again(id);
        }
        self.limit_queue_time(&spec, record.queued_at);
        Ok(self.clone().attend(spec, supervisor, continues))
    }

    /// It can't have run.
    async fn queue_again(
        &self,
        spec: &Arc<Spec>,
        record: &Record,
        is_erased: bool,
    ) -> Result<(), AgentError> {
        if is_erased {
            // The database is a copy of before its end, and its workspace is gone.
            let reason = "the values of its secrets have been erased".to_owned();
            return self.conclude(&record.id, Some(OutcomeKind::Lost { reason }.into())).await;
        }
        self.limit_queue_time(spec, record.queued_at);
        self.conclude(&record.id, None).await
    }
}

/// For whom it waits, as its supervisor said last; nobody when it has begun.
fn last_blocked(workspace: &Workspace) -> Vec<Blocked> {
    let mut scanner = EventScanner::open(&workspace.journal());
    let mut last = Vec::new();
    while let Ok(Some((_, payload))) = scanner.next_event() {
        match serde_json::from_slice(&payload) {
            Ok(Report::Waiting { blocked }) => last = blocked,
            Ok(Report::Starting { .. } | Report::Started { .. }) => return Vec::new(),
            _ => {}
        }
    }
    last
}

fn look(workspace: &Workspace) -> Result<Looked, AgentError> {
    // Read first: it is voided when nobody works on it. One that is damaged, by a power failure say,
    // is none: the request is in the store.
    let job: Option<Job> = match workspace.read_json(&workspace.job()) {
        Err(WorkspaceError::Damaged { .. }) => None,
        other => other?,
    };
    let descriptor = living_supervisor(workspace, job.as_ref())?;
    // After that: a supervisor may have written it meanwhile.
    let restart: Option<Restart> = workspace.read_json(&workspace.resume())?;
    // One that is damaged was being written: it was not told.
    let cancel: Option<Cancel> = workspace.read_json(&workspace.cancel()).unwrap_or_default();
    if let Some(descriptor) = descriptor {
        let continues = job.filter(|job| job.restart.is_some()).map(|job| job.token);
        let blocked = last_blocked(workspace);
        let found = Found::Supervised(Supervised { descriptor, continues, blocked });
        return Ok(Looked { found, restart, cancel });
    }
    let mut scanner = EventScanner::open(&workspace.journal());
    let (mut ran, mut started_in) = (None, None);
    // A damaged tail is the end of what is known.
    while let Ok(Some((_, payload))) = scanner.next_event() {
        match serde_json::from_slice(&payload) {
            Ok(Report::Starting { boot_id }) => (ran, started_in) = (Some(None), Some(boot_id)),
            Ok(Report::Started { leader }) => ran = Some(leader),
            _ => {}
        }
    }
    // One run of the machine has one attempt.
    if restart.as_ref().is_some_and(|restart| started_in.as_ref() == Some(&restart.boot_id)) {
        ran = None;
    }
    let launched_in = job.map(|job| job.boot_id).or(started_in.filter(|boot| !boot.is_empty()));
    let rebooted = launched_in.is_some_and(|launched_in| launched_in != boot_id());
    let alone = Alone { output_bytes: scanner.output_len(), rebooted, ran };
    Ok(Looked { found: Found::Alone(alone), restart, cancel })
}

/// The job's supervisor, if it lives: it keeps its file in the workspace locked. When there is none,
/// the workspace is voided: one that was started and comes late finds nothing to do.
fn living_supervisor(
    workspace: &Workspace,
    job: Option<&Job>,
) -> Result<Option<OwnedFd>, AgentError> {
    let path = workspace.supervisor();
    let failed = |source| AgentError::State { path: path.clone(), source };
    if !workspace.path().is_dir() {
        return Ok(None);
    }
    let file = workspace.open_supervisor()?;
    if !os::try_lock_exclusive(&file).map_err(failed)? {
        let pid = job.and_then(|job| Pid::from_raw(job.supervisor.cast_signed()));
        let descriptor = match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())).transpose() {
            // It has ended.
            Err(Errno::SRCH) => None,
            other => other.map_err(|e| failed(e.into()))?,
        };
        // If it still is locked, the process that the descriptor stands for is the supervisor.
        if descriptor.is_some() && !os::try_lock_exclusive(&file).map_err(failed)? {
            return Ok(descriptor);
        }
        // Otherwise one that came late has it, for the moment in which it sees that.
        os::lock_exclusive(&file).map_err(failed)?;
    }
    workspace.void_job()?;
    Ok(None)
}

/// Names this run of the machine.
pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}
