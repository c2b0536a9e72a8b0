//! One step on one target, to its end: started, followed, tried again.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::leases::{NoLease, Opening};
use super::watched::Watched;
use super::{Busy, Course};
use crate::client::{Client, ClientError, Lease, LeaseWish};
use crate::deploy::event::{JobResult, State, What};
use crate::deploy::plan::{self, Action, Job, PlannedStep};
use crate::deploy::rollout::{Ended, JobKey};
use crate::mutex::Party;
use crate::script::{Isolation, Labels, Outcome, OutcomeKind, Phase, ScriptId};
use crate::snapshot::{Snapshot, Wait};
use crate::spec::{LeaseTerms, Spec, What as Runs};
use crate::text::shorten;

/// What a package step runs: the machine's own command, so that the step waits its turn as any other.
const INSTALL: &str = "exec baton package install \"$1\" \"$2\"\n";
/// What a health check runs: that a script starts at all.
const HEALTH: &str = "exit 0\n";
/// How much is told in few words of who is before.
const MAX_BEHIND: usize = 40;
/// Why a script is cancelled that would have to wait.
pub(super) const IS_BUSY: &str = "the machine is busy, and the deployment is not to wait";

/// A step on a target.
pub(super) struct Task {
    pub(super) course: Arc<Course>,
    pub(super) key: JobKey,
    pub(super) client: Client,
    pub(super) step: PlannedStep,
    pub(super) job: Job,
}

/// How one attempt ended.
struct Attempt {
    result: JobResult,
    how: String,
    last: Option<Snapshot>,
    /// Not when its script may still run: its agent is away.
    may_repeat: bool,
}

impl Task {
    /// Runs it, as often as it takes.
    pub(super) async fn run(self) -> (JobKey, Ended) {
        let mut number = 1;
        let ended = loop {
            let attempt = self.attempt(number).await;
            let delay = self.step.retry.and_then(|retry| retry.wait_before(number));
            let is_failed = attempt.result == JobResult::Failed && attempt.may_repeat;
            let again = delay.filter(|_| is_failed && !self.is_stopped());
            if let Some(delay) = again {
                let (how, after_seconds) = (attempt.how, delay.as_secs());
                self.tell(number, State::TriedAgain { how, after_seconds }).await;
                if self.course.sleeps(delay).await {
                    number += 1;
                    continue;
                }
                break Ended::Failed("stopped before it was tried again".to_owned());
            }
            let Attempt { result, how, last, .. } = attempt;
            let (queued_at, started_at, ended_at) =
                last.map_or((None, None, None), |s| (Some(s.queued_at), s.started_at, s.ended_at));
            let told = State::Ended { result, how: how.clone(), queued_at, started_at, ended_at };
            self.tell(number, told).await;
            break match result {
                JobResult::Succeeded => Ended::Succeeded,
                JobResult::Failed | JobResult::Cancelled => Ended::Failed(how),
                JobResult::Skipped => Ended::LeftOut(how),
            };
        };
        (self.key, ended)
    }

    fn is_stopped(&self) -> bool {
        self.course.is_stopped()
    }

    pub(super) async fn tell(&self, attempt: u32, state: State) {
        self.course.tell(self.of(attempt, state)).await;
    }

    fn of(&self, attempt: u32, state: State) -> What {
        let (target, step) = (self.job.target.clone(), self.step.name.clone());
        What::Job { target, step, number: self.step.number, attempt, state }
    }

    async fn attempt(&self, number: u32) -> Attempt {
        let failed =
            |how: String| Attempt { result: JobResult::Failed, how, last: None, may_repeat: true };
        let spec = match self.spec(number) {
            Ok(spec) => spec,
            Err(why) => return failed(why),
        };
        let spec = match self.lease(number).await {
            Ok(Some(lease)) => lease.under(spec),
            Ok(None) => spec,
            Err(NoLease::Busy) => return self.busy(),
            Err(NoLease::Failed(how)) => return failed(how),
        };
        let id = spec.script_id.clone();
        let mut watched = Watched::new(self, number, id.clone());
        let followed = match watched.follow(self.client.run(spec)).await {
            // The project was changed since an earlier start of this run: what ran, ran.
            Err(ClientError::Refused { reason, .. }) if reason == "SCRIPT_ID_CONFLICT" => {
                watched.follow(self.client.watch(id, 0, true)).await
            }
            other => other,
        };
        match followed {
            Ok(()) => self.judge(watched.last),
            Err(ClientError::Away(away)) => {
                Attempt { may_repeat: false, ..failed(watched.lost_sight(&away)) }
            }
            Err(error) => failed(error.to_string()),
        }
    }

    /// The lease that it runs under, if the deployment is to have the machine for itself.
    async fn lease(&self, number: u32) -> Result<Option<Lease>, NoLease> {
        let Some(place) =
            self.key.target.filter(|_| self.job.isolation == plan::Isolation::Deployment)
        else {
            return Ok(None);
        };
        let mut labels = self.labels();
        labels.remove("step");
        let id = ScriptId::random();
        let wish = LeaseWish {
            reason: self.course.options.summary.clone(),
            queue_time_limit: self.job.queue_time_limit,
            ttl: ttl(self.job.away_limit),
            ..LeaseWish::new(id)
        };
        let opening = Opening {
            course: &self.course,
            client: &self.client,
            target: &self.job.target,
            labels,
            wish,
            may_wait: self.course.options.if_busy == Busy::Wait,
        };
        let tell = |state: State| {
            let event = self.course.event(self.of(number, state));
            // A later one tells the same.
            self.course.events.try_send(event).unwrap_or_default();
        };
        self.course.leases.of(place, opening, tell).await.map(Some)
    }

    /// How it ends when the machine is busy, and nobody is to wait.
    fn busy(&self) -> Attempt {
        let result = match self.course.options.if_busy {
            Busy::Skip => JobResult::Skipped,
            Busy::Fail | Busy::Wait => JobResult::Failed,
        };
        let how = "the target was busy".to_owned();
        Attempt { result, how, last: None, may_repeat: true }
    }

    fn judge(&self, last: Option<Snapshot>) -> Attempt {
        let outcome = match &last {
            Some(Snapshot { phase: Phase::Done(outcome), .. }) => Some(outcome.clone()),
            Some(_) | None => None,
        };
        let (result, how) = match outcome {
            Some(Outcome { kind: OutcomeKind::Exited { code: 0 }, .. }) => {
                (JobResult::Succeeded, String::new())
            }
            Some(Outcome { kind: OutcomeKind::Cancelled { reason, .. }, .. })
                if reason == IS_BUSY =>
            {
                let Attempt { result, how, .. } = self.busy();
                (result, how)
            }
            Some(Outcome { kind: kind @ OutcomeKind::Cancelled { .. }, .. }) => {
                (JobResult::Cancelled, kind.to_string())
            }
            Some(outcome) => (JobResult::Failed, outcome.kind.to_string()),
            None => (JobResult::Failed, "its end is not known".to_owned()),
        };
        Attempt { result, how, last, may_repeat: true }
    }

    /// What the agent is asked to run.
    fn spec(&self, number: u32) -> Result<Spec, String> {
        let (step, job) = (&self.step, &self.job);
        let first = step.script_id(&self.course.run, &job.target).map_err(|e| e.to_string())?;
        let script_id = match number {
            1 => first,
            more => format!("{}.{}-{more}.{}", self.course.run, step.number, job.target)
                .parse()
                .map_err(|error| format!("script id: {error}"))?,
        };
        let (text, interpreter, mut arguments) = match &step.action {
            Action::Package { package } => {
                let version = job.package_version.clone().unwrap_or_default();
                (INSTALL.to_owned(), "sh".to_owned(), vec![package.clone(), version])
            }
            Action::HealthCheck | Action::Pause { .. } => {
                (HEALTH.to_owned(), "sh".to_owned(), Vec::new())
            }
            Action::Script => {
                let script = job.script.as_ref().ok_or("there is no script")?;
                (script.body.clone(), script.interpreter.clone(), Vec::new())
            }
        };
        arguments.extend(job.arguments.iter().map(|value| value.expose().to_owned()));
        let environment = job.environment.iter();
        let spec = Spec {
            script_id,
            what: Runs::Body { text: text.into(), interpreter },
            arguments,
            environment: environment
                .map(|(name, value)| (name.clone(), value.expose().to_owned()))
                .collect(),
            sensitive: job
                .environment
                .iter()
                .filter(|(_, value)| value.is_sensitive())
                .map(|(name, _)| name.clone())
                .collect(),
            isolation: isolation(job.isolation),
            queue_time_limit: job.queue_time_limit,
            run_time_limit: job.run_time_limit,
            labels: self.labels(),
            ..Spec::of_body(String::new(), "sh")
        };
        spec.check().map_err(|error| error.to_string())?;
        Ok(spec)
    }

    fn labels(&self) -> Labels {
        let mut labels = self.job.labels.clone();
        labels.insert("run".to_owned(), self.course.run.clone());
        labels
    }
}

/// A lease's time-to-live: what runs under it is not to be cancelled as long as its agent is waited for. It is
/// renewed three times in that.
fn ttl(away_limit: Duration) -> Duration {
    (away_limit.saturating_mul(3) / 2).clamp(LeaseTerms::DEFAULT_TTL, LeaseTerms::MAX_TTL)
}

/// How a script stands, as it is told; nothing when it has ended.
pub(super) fn state_of(script: &Snapshot) -> Option<State> {
    Some(match &script.phase {
        Phase::Queued | Phase::Waiting => {
            let reasons: Vec<String> = script.waits.iter().map(Wait::reason).collect();
            let position = script.waits.first().map_or(0, |wait| wait.position);
            let behind = script.waits.first().and_then(behind).unwrap_or_default();
            State::Waits { position, reason: reasons.join("; "), behind }
        }
        Phase::Running | Phase::Stopping => match &script.progress {
            Some(progress) => {
                State::Progress { percent: progress.percent, text: progress.message.clone() }
            }
            None => State::Runs,
        },
        Phase::Done(_) => return None,
    })
}

/// Who holds, or is next, in few words: a deployment by its project and step.
fn behind(wait: &Wait) -> Option<String> {
    let Party { who, .. } = wait.holders.first().or(wait.ahead.first())?;
    let project = who.labels.get("project");
    let step = who.labels.get("step").map(|step| format!(": {step}")).unwrap_or_default();
    let name = match (project, who.reason.is_empty()) {
        (Some(project), _) => format!("{project}{step}"),
        (None, false) => who.reason.clone(),
        (None, true) => who.command.clone(),
    };
    let since = who.holds_since.unwrap_or(who.waits_since).to_zoned(TimeZone::system());
    Some(format!("behind {} since {}", shorten(&name, MAX_BEHIND), since.strftime("%H:%M:%S")))
}

/// Whether others are before it; those of the same run are none.
pub(super) fn waits_for_others(script: &Snapshot, run: &str) -> bool {
    let others = |parties: &[Party], count: u32| {
        let is_own = |party: &&Party| party.who.labels.get("run").is_some_and(|own| own == run);
        let own = parties.iter().filter(is_own).count();
        usize::try_from(count).unwrap_or(usize::MAX) > own
    };
    matches!(script.phase, Phase::Queued | Phase::Waiting)
        && script.waits.iter().any(|wait| {
            let (holders, ahead) = (&wait.holders, &wait.ahead);
            wait.foreign
                || wait.drain.is_some()
                || others(holders, wait.holder_count)
                || others(ahead, wait.ahead_count)
        })
}

fn isolation(isolation: plan::Isolation) -> Isolation {
    match isolation {
        // Alone among the scripts of the lease.
        plan::Isolation::Exclusive | plan::Isolation::Deployment => Isolation::Exclusive,
        plan::Isolation::Bypass { at_most } => Isolation::Shared { at_most },
        plan::Isolation::Observer => Isolation::Observer,
    }
}
