//! Working a plan off: its turn, its targets, its packages, its steps.
//!
//! 1. A run has an id, and its scripts' ids are made of it. Run again with the same id, it finds what has
//!    run by these ids and goes on: an agent runs no script twice.
//! 2. Deployments with the same tag take turns, in order; the turn ends with this process.
//! 3. A stop starts nothing any more, cancels what runs, and waits for its end.
//! 4. Whoever is told events slowly slows the telling down, no script.

mod job;
mod leases;
mod lines;
mod packages;
pub mod turn;
mod watched;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use leases::Leases;

use super::event::{Event, TargetResult, TargetVerdict, Verdict, What};
use super::plan::{Action, Plan, PlannedTarget, Unreachable};
use super::record::Answer;
use super::rollout::{Ended, JobKey, Rollout, Standing};
use crate::client::{Client, ConnectError, connect};
use crate::trust::Identity;

/// How many targets are connected to at once.
const CONNECTING: usize = 32;
/// How long a target may take to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// What a deployment does when a target's machine is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Busy {
    /// It waits its turn.
    #[default]
    Wait,
    /// It leaves the target out.
    Skip,
    /// The target has failed.
    Fail,
}

/// How a plan is worked off.
#[derive(Debug, Clone)]
pub struct Options {
    /// What becomes of a target that is busy.
    pub if_busy: Busy,
    /// Targets that are left out since an earlier run has done all there: which one, for people.
    pub leave_out: BTreeMap<String, String>,
    /// The folder of this machine's mutexes.
    pub mutexes: PathBuf,
    /// The certificates of etcd's authority, in PEM, when the plan names an etcd by https.
    pub etcd_ca: Option<PathBuf>,
    /// What others are told who wait for this run's turn.
    pub summary: String,
}

/// Why a run could not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The turn can't be had.
    #[error("turn of {tag:?}")]
    Turn {
        /// The concurrency tag.
        tag: String,
        /// Why.
        source: turn::TurnError,
    },
    /// The run's id can't be part of a script's id.
    #[error("run id {id:?}: {problem}")]
    Id {
        /// The id.
        id: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Who lets a pause go on.
pub trait GoAhead: Send + Sync + 'static {
    /// Waits for an answer: who, and whether it goes on. One may be given from the call on.
    fn ask<'a>(&'a self, step: &'a str, message: &'a str) -> BoxFuture<'a, Answer>;
}

/// A plan that is to be worked off.
pub struct Run {
    plan: Arc<Plan>,
    identity: Arc<Identity>,
    course: Arc<Course>,
    go_ahead: Arc<dyn GoAhead>,
    /// A person stops it.
    stop: CancellationToken,
}

/// What all parts of a run share.
struct Course {
    run: String,
    options: Options,
    events: mpsc::Sender<Event>,
    /// It is stopped, by a person or since it must not go on.
    stop: CancellationToken,
    /// Why it must not go on.
    lost: OnceLock<String>,
    leases: Leases,
    tasks: TaskTracker,
}

impl Course {
    async fn tell(&self, what: What) {
        // Nobody may listen any more; the run goes on.
        self.events.send(self.event(what)).await.unwrap_or_default();
    }

    fn event(&self, what: What) -> Event {
        Event { at: Timestamp::now(), run: self.run.clone(), what }
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns when the run is stopped; else never.
    async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Says whether it was not stopped meanwhile.
    async fn sleeps(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.stopped() => false,
        }
    }
}

impl Run {
    /// A run; what happens is told to `events`. `stop` stops it (rule 3).
    ///
    /// # Errors
    /// When the id can't be one.
    pub fn new(
        plan: Plan,
        id: String,
        options: Options,
        identity: Arc<Identity>,
        people: (Arc<dyn GoAhead>, mpsc::Sender<Event>),
        stop: CancellationToken,
    ) -> Result<Self, RunError> {
        let checked = crate::script::check_name(&id, super::plan::MAX_RUN_BYTES);
        if let Err(problem) = checked {
            return Err(RunError::Id { id, problem: problem.to_string() });
        }
        let (go_ahead, events) = people;
        let (own, tasks) = (stop.child_token(), TaskTracker::new());
        let course = Arc::new(Course {
            run: id,
            options,
            events,
            stop: own,
            lost: OnceLock::new(),
            leases: Leases::default(),
            tasks,
        });
        Ok(Self { plan: Arc::new(plan), identity, course, go_ahead, stop })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.course.run
    }

    /// Works the plan off.
    ///
    /// # Errors
    /// When it could not begin.
    pub async fn work(self) -> Result<Verdict, RunError> {
        self.course.tell(self.began()).await;
        let turn = tokio::select! {
            turn = self.take_turn() => turn?,
            () = self.course.stopped() => return Ok(self.over(&Rollout::new(&self.plan)).await),
        };
        let rollout = {
            let mut working = std::pin::pin!(self.walk());
            tokio::select! {
                rollout = &mut working => rollout,
                lost = turn.lost() => {
                    // Another one may have it soon: what runs is cancelled.
                    self.course.lost.set(format!("the turn is lost: {lost}")).unwrap_or_default();
                    self.course.stop.cancel();
                    working.await
                }
            }
        };
        self.course.tasks.close();
        self.course.tasks.wait().await;
        turn.end().await;
        Ok(self.over(&rollout).await)
    }

    fn began(&self) -> What {
        let plan = &self.plan;
        What::Began {
            project: plan.project.clone(),
            environment: plan.environment.clone(),
            tenant: plan.tenant.clone(),
            release: plan.release.clone(),
            targets: plan.targets.iter().map(|target| target.name.clone()).collect(),
            steps: plan.steps().map(|step| step.name.clone()).collect(),
        }
    }

    async fn take_turn(&self) -> Result<turn::Turn, RunError> {
        let options = &self.course.options;
        let tag = self.plan.concurrency_tag.clone();
        let wish = turn::Wish {
            tag: tag.clone(),
            etcd: self.plan.etcd.clone(),
            etcd_ca: options.etcd_ca.clone(),
            mutexes: options.mutexes.clone(),
            summary: options.summary.clone(),
        };
        let course = Arc::clone(&self.course);
        let on_wait = move |reason: String| {
            // Who waits for the turn waits for nobody else; a later one tells the same.
            let event = course.event(What::WaitsForTurn { reason });
            course.events.try_send(event).unwrap_or_default();
        };
        let turn = wish.take(on_wait).await.map_err(|source| RunError::Turn { tag, source })?;
        self.course.tell(What::HasTurn).await;
        Ok(turn)
    }

    /// Connects to all targets; those that can't be reached are left out, or end the roll-out.
    async fn connect(&self, rollout: &mut Rollout) -> Vec<Option<Client>> {
        let gate = Arc::new(Semaphore::new(CONNECTING));
        let mut dials = JoinSet::new();
        let mut clients = vec![None; self.plan.targets.len()];
        for (place, target) in self.plan.targets.iter().enumerate() {
            if let Some(why) = self.course.options.leave_out.get(&target.name) {
                self.leave_out(rollout, place, why.clone()).await;
                continue;
            }
            let (gate, identity, target) =
                (Arc::clone(&gate), Arc::clone(&self.identity), target.clone());
            dials.spawn(async move {
                let _permit = gate.acquire().await;
                (place, dial(&target, &identity).await)
            });
        }
        let tried = !dials.is_empty();
        loop {
            let dialled = tokio::select! {
                dialled = dials.join_next() => dialled,
                // Who was not reached yet is not waited for.
                () = self.course.stopped() => return clients,
            };
            let Some(dialled) = dialled else { break };
            match dialled {
                Ok((place, Ok(client))) => clients[place] = Some(client),
                Ok((place, Err(why))) => match self.plan.unreachable {
                    Unreachable::Exclude => self.leave_out(rollout, place, why).await,
                    Unreachable::Fail => {
                        rollout
                            .stop(&format!("{} can't be reached", self.plan.targets[place].name));
                        rollout.fail(place, "connect", why);
                    }
                },
                // It was not cancelled, and does not panic.
                Err(_) => {}
            }
        }
        if clients.iter().all(Option::is_none) && tried {
            rollout.stop("no target can be reached");
        }
        clients
    }

    async fn leave_out(&self, rollout: &mut Rollout, place: usize, why: String) {
        let target = self.plan.targets[place].name.clone();
        self.course.tell(What::LeftOut { target, why: why.clone() }).await;
        rollout.leave_out(place, why);
    }

    /// To the end of all that was started.
    async fn walk(&self) -> Rollout {
        let mut rollout = Rollout::new(&self.plan);
        let clients = self.connect(&mut rollout).await;
        self.acquire(&mut rollout, &clients).await;
        let mut jobs = JoinSet::new();
        let mut is_end_told = false;
        loop {
            if self.course.is_stopped() {
                rollout.stop(self.course.lost.get().map_or("it was stopped", String::as_str));
            }
            for key in rollout.start_next() {
                self.start(key, &clients, &mut jobs);
            }
            if let Some(why) = rollout.ending().filter(|_| !is_end_told) {
                is_end_told = true;
                self.course.tell(What::Ends { why: why.to_owned() }).await;
            }
            let is_over = rollout.is_over();
            self.course.leases.close(|place| is_over || rollout.is_through(place)).await;
            if is_over {
                return rollout;
            }
            tokio::select! {
                Some(ended) = jobs.join_next() => match ended {
                    Ok((key, how)) => rollout.ended(key, how),
                    // It was not cancelled, and does not panic.
                    Err(_) => rollout.stop("a step was broken off"),
                },
                () = self.course.stopped(), if !rollout.is_stopped() => {}
            }
        }
    }

    fn start(&self, key: JobKey, clients: &[Option<Client>], jobs: &mut JoinSet<(JobKey, Ended)>) {
        let step = &self.plan.stages[key.stage].steps[key.step];
        let Some(place) = key.target else {
            let (course, go_ahead) = (Arc::clone(&self.course), Arc::clone(&self.go_ahead));
            let (name, action) = (step.name.clone(), step.action.clone());
            jobs.spawn(async move { (key, pause(&course, &*go_ahead, name, action).await) });
            return;
        };
        let target = &self.plan.targets[place].name;
        let job = step.jobs.iter().find(|job| job.target == *target);
        let (Some(job), Some(client)) = (job, clients.get(place).cloned().flatten()) else {
            jobs.spawn(async move { (key, Ended::Failed("there is no connection".to_owned())) });
            return;
        };
        let task = job::Task {
            course: Arc::clone(&self.course),
            key,
            client: client.waiting_for(job.away_limit),
            step: step.clone(),
            job: job.clone(),
        };
        jobs.spawn(task.run());
    }

    fn is_done_before(&self, target: &str) -> bool {
        self.course.options.leave_out.contains_key(target)
    }

    /// Tells the last event.
    async fn over(&self, rollout: &Rollout) -> Verdict {
        let standings = self.plan.targets.iter().zip(rollout.standings());
        let is_whole = rollout.ending().is_none() && !self.course.is_stopped();
        let targets: Vec<TargetResult> = standings
            .map(|(target, standing)| {
                let (result, how) = match standing {
                    Standing::Done => (TargetVerdict::Succeeded, String::new()),
                    Standing::Good | Standing::Fresh => (TargetVerdict::Unfinished, String::new()),
                    Standing::Failed { step, how } => {
                        (TargetVerdict::Failed, format!("{step}: {how}"))
                    }
                    Standing::LeftOut(why) if self.is_done_before(&target.name) => {
                        (TargetVerdict::DoneBefore, why.clone())
                    }
                    Standing::LeftOut(why) => (TargetVerdict::LeftOut, why.clone()),
                };
                TargetResult { target: target.name.clone(), result, how }
            })
            .collect();
        let any = |result| targets.iter().any(|target| target.result == result);
        let result = if self.stop.is_cancelled() {
            Verdict::Cancelled
        } else if !is_whole {
            Verdict::Failed
        } else if !any(TargetVerdict::Failed) {
            Verdict::Succeeded
        } else if any(TargetVerdict::Succeeded) {
            Verdict::Partly
        } else {
            Verdict::Failed
        };
        self.course.tell(What::Over { result, targets }).await;
        result
    }
}

async fn dial(target: &PlannedTarget, identity: &Identity) -> Result<Client, String> {
    let dialled = connect::tcp(&target.address, target.fingerprint, identity);
    match tokio::time::timeout(CONNECT_LIMIT, dialled).await {
        Ok(Ok(channel)) => Ok(Client::new(channel).waiting_for(target.away_limit)),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err(format!("no answer within {} s", CONNECT_LIMIT.as_secs())),
    }
}

fn reason(error: &ConnectError) -> String {
    crate::text::chain(error)
}

async fn pause(course: &Course, go_ahead: &dyn GoAhead, step: String, action: Action) -> Ended {
    let message = match action {
        Action::Pause { message } => message,
        Action::Script | Action::HealthCheck | Action::Package { .. } => String::new(),
    };
    let asked = go_ahead.ask(&step, &message);
    course.tell(What::Paused { step: step.clone(), message: message.clone() }).await;
    let answer = tokio::select! {
        answer = asked => answer,
        () = course.stopped() => return Ended::Failed("it was stopped".to_owned()),
    };
    let Answer { by, goes_on } = answer;
    course.tell(What::Answered { step, by: by.clone(), goes_on }).await;
    if goes_on { Ended::Succeeded } else { Ended::Failed(format!("refused by {by}")) }
}
