//! One task for each launched script: follows what its supervisor writes, and records its end.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, error, info, warn};

use super::launch::PAUSE;
use super::supervisor::Supervisor;
use super::{Agent, AgentError};
use crate::filewatch::FileWatch;
use crate::journal::EventScanner;
use crate::process::ProcessId;
use crate::script::{Event, Outcome, OutcomeKind, Phase, Restart, ScriptId, StartProblem};
use crate::spec::{Spec, What};
use crate::store::ScriptUpdate;
use crate::supervisor::job::{Ending, Report};
use crate::values::Values;
use crate::workspace::WorkspaceError;

/// How often a supervisor may die before it starts the script.
const MAX_FALSE_STARTS: u32 = 3;

/// How long the start of a script is not told because of an end that is not told yet.
const TELLING_LIMIT: Duration = Duration::from_secs(2);

/// What an attendant knows of its script.
#[derive(Debug)]
struct Seen {
    scanner: EventScanner,
    /// The token of the launch that is followed, while the reports of earlier ones are read.
    skips_to: Option<String>,
    /// Whether the script may have run.
    starting: bool,
    /// Its first process.
    leader: Option<ProcessId>,
}

/// The first process, as far as it is known, of a script that may have run; else `None`.
pub(super) type Ran = Option<Option<ProcessId>>;

/// Waits for a change; for ever when nothing is watched.
async fn changed(watch: Option<&mut FileWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

enum Noticed {
    Journal,
    End(Option<ExitStatus>),
}

impl Agent {
    /// Follows a launched script until its supervisor has ended. `continues` is the token of a job that goes
    /// on with a journal of earlier ones.
    pub(super) async fn attend(
        self,
        spec: Arc<Spec>,
        supervisor: Supervisor,
        continues: Option<String>,
    ) {
        let followed = self.follow_supervisor(&spec.script_id, supervisor, continues).await;
        let (seen, end) = match followed {
            Ok((seen, end)) => (Ok(seen.starting.then_some(seen.leader)), end),
            Err(error) => (Err(error), None),
        };
        self.wind_up(&spec, seen, end).await;
    }

    /// Records the end of a script whose supervisor has ended. `ran` has the first process of one that may
    /// have run, `end` how the supervisor ended if that was seen.
    pub(super) async fn wind_up(
        &self,
        spec: &Arc<Spec>,
        ran: Result<Ran, AgentError>,
        end: Option<ExitStatus>,
    ) {
        let id = &spec.script_id;
        let has_run = matches!(ran, Ok(Some(_)));
        let lost = match ran {
            Ok(Some(leader)) => self.lost(spec, leader, end).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        self.inner.supervisors.ended(id);
        if has_run {
            // Its mutexes are free, whatever the store says to its end. Who never started may be
            // launched again: until that is known, nobody is to take its place.
            self.table().queue.joined(id);
        }
        let recorded = match lost {
            Ok(lost) => self.conclude(id, lost).await,
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            error!(error = crate::text::chain(&error), "the end is not recorded");
            // Nobody is to wait for it any more, also if it was to step back.
            self.table().queue.started(id);
        }
    }

    /// How a script ended that was started and has no supervisor, unless its outcome is on record. Ends
    /// what is left of it.
    async fn lost(
        &self,
        spec: &Arc<Spec>,
        leader: Option<ProcessId>,
        end: Option<ExitStatus>,
    ) -> Result<Option<Outcome>, AgentError> {
        let id = &spec.script_id;
        let reason = match self.ending(id).await {
            Ok(Some(_)) => return Ok(None),
            Ok(None) => super::lost::reason(end),
            Err(error @ AgentError::Workspace(WorkspaceError::Damaged { .. })) => {
                crate::text::chain(&error)
            }
            Err(error) => return Err(error),
        };
        if let Some(restart) = self.restart_on_record(id).await? {
            // Its tree had ended before that was on record.
            return self.awaits_restart(id, restart).map(|()| None);
        }
        self.table().apply(id, Event::Stop)?;
        self.queue_changed();
        if matches!(spec.what, What::Lease(_)) {
            // What runs under it keeps what it held.
            return Ok(Some(self.lost_lease(id, reason).into()));
        }
        let stragglers = self.end_orphans(spec, leader).await?;
        let lost = self.lost_with_values(id, reason).await?;
        Ok(Some(Outcome { stragglers, ..lost }))
    }

    /// The outcome of a script that is lost, with what it gave back before.
    pub(super) async fn lost_with_values(
        &self,
        id: &ScriptId,
        reason: String,
    ) -> Result<Outcome, AgentError> {
        let workspace = self.workspace(id);
        let values = super::blocking(move || crate::supervisor::outputs_left(&workspace)).await?;
        let progress = self.table().get(id).and_then(|living| living.progress.clone());
        let values = Values { progress, ..values };
        Ok(Outcome { values, ..Outcome::from(OutcomeKind::Lost { reason }) })
    }

    /// What the supervisor put on record.
    async fn ending(&self, id: &ScriptId) -> Result<Option<Ending>, AgentError> {
        let workspace = self.workspace(id);
        Ok(super::blocking(move || workspace.read_json(&workspace.outcome())).await??)
    }

    /// Returns when the supervisor has ended, with how if that was seen.
    async fn follow_supervisor(
        &self,
        id: &ScriptId,
        mut supervisor: Supervisor,
        skips_to: Option<String>,
    ) -> Result<(Seen, Option<ExitStatus>), AgentError> {
        let journal = self.workspace(id).journal();
        let mut watch: Option<FileWatch> = match self.inner.watcher.watch(&journal) {
            Ok(watch) => Some(watch),
            Err(error) => {
                // Its end is seen all the same.
                warn!(%error, "the journal can't be followed while it grows");
                None
            }
        };
        let scanner = EventScanner::open(&journal);
        let mut seen = Seen { scanner, skips_to, starting: false, leader: None };
        let status = loop {
            seen = self.read_reports(id, seen).await?;
            let noticed = tokio::select! {
                () = changed(watch.as_mut()) => Noticed::Journal,
                status = supervisor.ended() => Noticed::End(status),
            };
            match noticed {
                Noticed::Journal => {}
                Noticed::End(status) => break status,
            }
        };
        match status.and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok()) {
            Some(crate::supervisor::LACK) => self.lacks(id).await,
            Some(crate::supervisor::OUTDATED) => {
                error!("the program on disk is older than this agent: restart the agent");
                self.lacks(id).await;
            }
            _ => {}
        }
        Ok((self.read_reports(id, seen).await?, status))
    }

    /// The machine lacked something that the supervisor needed, or has an older program for it now: the script
    /// is no worse for it.
    async fn lacks(&self, id: &ScriptId) {
        if let Some(living) = self.table().get_mut(id) {
            living.lacked = true;
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Reads what is new in the journal.
    async fn read_reports(&self, id: &ScriptId, mut seen: Seen) -> Result<Seen, AgentError> {
        let before = seen.scanner.output_len();
        let scan = move || {
            let mut reports = Vec::new();
            let ended = loop {
                match seen.scanner.next_event() {
                    Ok(Some((time, payload))) => reports.push((time, payload)),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            (seen, reports, ended)
        };
        let (mut seen, reports, ended) = super::blocking(scan).await?;
        if let Err(error) = ended {
            // What came before is good; the outcome will be read from its own file.
            warn!(%error, "journal can't be read on");
        }
        for (time, payload) in reports {
            match serde_json::from_slice(&payload) {
                Ok(Report::Launched { token }) if seen.skips_to.as_ref() == Some(&token) => {
                    seen.skips_to = None;
                }
                Ok(_) if seen.skips_to.is_some() => {}
                Ok(report) => match self.hear(id, report, time, &mut seen).await {
                    // What comes after it counts all the same, the outcome first of all.
                    Err(AgentError::Illegal(error)) => warn!(%error, "report can't be true"),
                    heard => heard?,
                },
                Err(error) => warn!(%error, "report is not understood"),
            }
        }
        let output_bytes = seen.scanner.output_len();
        if output_bytes != before
            && let Some(living) = self.table().get_mut(id)
        {
            living.output_bytes = output_bytes;
            living.changed.send_replace(());
        }
        Ok(seen)
    }

    async fn hear(
        &self,
        id: &ScriptId,
        report: Report,
        time: Timestamp,
        seen: &mut Seen,
    ) -> Result<(), AgentError> {
        debug!(?report, "supervisor reports");
        match report {
            Report::Joined => self.table().queue.joined(id),
            Report::Waiting { blocked } => {
                if let Some(living) = self.table().get_mut(id) {
                    living.blocked = blocked;
                    living.changed.send_replace(());
                }
                self.table().note_waits(id);
            }
            Report::Launched { token: _ } => {}
            Report::Starting { boot_id: _ } => seen.starting = true,
            Report::Started { leader } => {
                seen.leader = leader;
                self.ends_are_told(id).await;
                {
                    let mut table = self.table();
                    table.queue.started(id);
                    if let Some(living) = table.get_mut(id) {
                        living.started_at = Some(time);
                        living.blocked.clear();
                        living.attempts = living.restart.as_ref().map_or(1, Restart::next_attempt);
                        if living.attempts == 1 {
                            living.waited = Some(living.waited_until(time));
                        }
                    }
                    table.apply(id, Event::Started)?;
                }
                self.remember(id, Some(time)).await;
            }
            Report::Stuck { processes } => {
                warn!(?processes, "can't be ended");
                if let Some(living) = self.table().get_mut(id) {
                    living.stuck = processes;
                    living.changed.send_replace(());
                }
            }
            // The outcome tells it, and a follower reads it at its place.
            Report::OutputDropped { cause, bytes, here: _ } => {
                warn!(%cause, bytes, "output of the script is not kept");
            }
            Report::Stopping => self.table().apply(id, Event::Stop)?,
            Report::Progress(progress) => {
                if let Some(living) = self.table().get_mut(id) {
                    living.progress = Some(progress);
                    living.changed.send_replace(());
                }
                // Nobody's place is another one.
                return Ok(());
            }
            Report::AwaitsRestart { restart } => {
                self.awaits_restart(id, restart)?;
                self.remember(id, None).await;
            }
        }
        self.queue_changed();
        Ok(())
    }

    /// A script starts only when those in its way have ended; their supervisors may still be on their
    /// way out. Waits until nobody would be told that both run.
    async fn ends_are_told(&self, id: &ScriptId) {
        let mut changes = self.changes();
        let told = async {
            while self.table().is_someone_in_the_way(id) {
                changes.changed().await.unwrap_or_default();
            }
        };
        // Over: better late news of the other's end than none of this one's start.
        tokio::time::timeout(TELLING_LIMIT, told).await.unwrap_or_default();
    }

    /// Puts the phase into the store, for who reads it there. What counts is in the workspace.
    async fn remember(&self, id: &ScriptId, started_at: Option<Timestamp>) {
        let phase = self.table().get(id).map(|living| living.phase.clone());
        let update = ScriptUpdate { phase, started_at, ..ScriptUpdate::of(id.clone()) };
        if let Err(error) = self.stored(self.inner.store.update(update)).await {
            warn!(%error, "the phase is not stored");
        }
    }

    /// Records the end of a script whose supervisor has ended. `lost` is how it ended if it may
    /// have run and there is no outcome.
    pub(super) async fn conclude(
        &self,
        id: &ScriptId,
        lost: Option<Outcome>,
    ) -> Result<(), AgentError> {
        let ending = match self.ending(id).await {
            Err(AgentError::Workspace(WorkspaceError::Damaged { .. })) if lost.is_some() => None,
            other => other?,
        };
        if let Some(Ending { mut outcome, started_at, ended_at }) = ending {
            // It is on disk already: nobody waits for the store to hear of it.
            {
                let mut table = self.table();
                table.queue.remove(id);
                if let Some(living) = table.get_mut(id) {
                    living.started_at = started_at;
                    living.ended_at = Some(ended_at);
                    living.progress.clone_from(&outcome.values.progress);
                    outcome = living.complete(outcome, started_at, ended_at);
                }
                table.apply(id, Event::Ended(outcome.clone()))?;
            }
            self.queue_changed();
            return self.finish(id, outcome, started_at, ended_at).await;
        }
        let outcome = match lost {
            Some(lost) => Some(lost),
            None => {
                self.requeue(id, "its supervisor ended before the start", true)?.map(Outcome::from)
            }
        };
        match outcome {
            Some(outcome) => self.finish(id, outcome, None, Timestamp::now()).await,
            None => Ok(()),
        }
    }

    /// Puts a script that never started back into the queue, in its old place; or says how it ends:
    /// it was cancelled meanwhile, or that was done too often, the last time because of `problem`; one that
    /// does not count is no matter of the script's.
    pub(super) fn requeue(
        &self,
        id: &ScriptId,
        problem: &str,
        counts: bool,
    ) -> Result<Option<OutcomeKind>, AgentError> {
        {
            let mut table = self.table();
            let is_lease_over = table.get(id).is_some_and(|living| table.is_lease_over(living));
            let Some(living) = table.get_mut(id) else {
                return Ok(None);
            };
            if let Some(reason) = living.stop.clone() {
                return Ok(Some(living.stopped(reason)));
            }
            if is_lease_over {
                let (cause, reason) = (StartProblem::Lease, "its lease has ended".to_owned());
                return Ok(Some(OutcomeKind::NotStarted { cause, reason }));
            }
            living.blocked.clear();
            let asked = living.asked_back;
            let counts = counts && !std::mem::take(&mut living.lacked);
            if living.phase != Phase::Queued {
                living.false_starts += u32::from(!asked && counts);
                if living.false_starts >= MAX_FALSE_STARTS {
                    let reason = problem.to_owned();
                    let cause = StartProblem::Agent;
                    return Ok(Some(OutcomeKind::NotStarted { cause, reason }));
                }
                if asked {
                    info!("it has stepped back, and is queued again");
                } else {
                    warn!("{problem}; it is queued again");
                }
                table.apply(id, Event::Requeued)?;
            }
            table.queue.requeue(id);
        }
        self.queue_changed();
        Ok(None)
    }
}
