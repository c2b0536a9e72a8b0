//! Pure: which jobs of a plan may start now, given how others have ended.
//!
//! 1. Targets go in waves, the canaries first. A wave goes through all stages before the next begins.
//! 2. The steps of a stage run side by side, at most the stage's parallelism at once; a step runs on at
//!    most its own parallelism of targets at once. The next stage begins when all of them have ended.
//! 3. A target that fails is not given steps for success any more, but those for failure and those that
//!    always run. One that failed before any step began there is given none.
//! 4. One target more than the budget, or any canary, ends the roll-out: no wave begins any more, and in
//!    the one that is on its way steps for success are skipped, on all targets.
//! 5. A pause is asked once, in the first wave that comes to it, while its condition holds for a target.
//! 6. A roll-out that was stopped by a person starts nothing at all.

use std::collections::{BTreeSet, VecDeque};

use super::plan::{Action, Condition, Plan, PlannedStep};

/// A step on a target: places in the plan's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey {
    /// In [`Plan::stages`].
    pub stage: usize,
    /// In the stage's steps.
    pub step: usize,
    /// In [`Plan::targets`]; `None` for a pause.
    pub target: Option<usize>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// As it should.
    Succeeded,
    /// Otherwise; for people.
    Failed(String),
    /// It did not begin, and the target is left out from now on, unless it failed already or part of the
    /// work is done there: then it has failed; for people.
    LeftOut(String),
}

/// How a target stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was started there yet.
    Fresh,
    /// All that was started there has succeeded so far.
    Good,
    /// All that was to be done there is done.
    Done,
    /// Something failed: in which step, and how.
    Failed {
        /// The step's name.
        step: String,
        /// For people.
        how: String,
    },
    /// It takes no part; for people.
    LeftOut(String),
}

/// What the walk through a plan knows.
#[derive(Debug)]
pub struct Rollout {
    stages: Vec<Stage>,
    waves: Vec<Vec<usize>>,
    canaries: BTreeSet<usize>,
    max_failures: usize,
    standings: Vec<Standing>,
    /// The wave that is on its way.
    wave: usize,
    /// Its stage.
    stage: usize,
    steps: Vec<Progress>,
    asked: BTreeSet<(usize, usize)>,
    /// Targets that did not get a step for success.
    missed: BTreeSet<usize>,
    /// Targets that failed before a step began there.
    untouched: BTreeSet<usize>,
    /// Targets on which a step has done something.
    worked: BTreeSet<usize>,
    ending: Option<String>,
    is_stopped: bool,
}

#[derive(Debug)]
struct Stage {
    parallelism: usize,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    name: String,
    condition: Condition,
    parallelism: usize,
    targets: BTreeSet<usize>,
    is_pause: bool,
    /// It only looks.
    is_check: bool,
}

/// A step of the stage that is on its way.
#[derive(Debug, Default)]
struct Progress {
    pending: VecDeque<Option<usize>>,
    running: BTreeSet<Option<usize>>,
    has_begun: bool,
}

impl Progress {
    fn is_over(&self) -> bool {
        self.pending.is_empty() && self.running.is_empty()
    }
}

impl Rollout {
    /// A plan's walk from its start.
    pub fn new(plan: &Plan) -> Self {
        let place = |name: &String| plan.targets.iter().position(|target| target.name == *name);
        let step = |step: &PlannedStep| Step {
            name: step.name.clone(),
            condition: step.condition,
            parallelism: count(step.parallelism.get()),
            targets: step.jobs.iter().filter_map(|job| place(&job.target)).collect(),
            is_pause: matches!(step.action, Action::Pause { .. }),
            is_check: step.action == Action::HealthCheck,
        };
        let stages = plan.stages.iter().map(|stage| Stage {
            parallelism: count(stage.parallelism.get()),
            steps: stage.steps.iter().map(step).collect(),
        });
        let waves = plan.waves.iter().map(|wave| wave.targets.iter().filter_map(place).collect());
        let canaries = plan.waves.iter().filter(|wave| wave.is_canary);
        let mut rollout = Self {
            stages: stages.collect(),
            waves: waves.collect(),
            canaries: canaries.flat_map(|wave| wave.targets.iter().filter_map(place)).collect(),
            max_failures: count(plan.max_failures),
            standings: vec![Standing::Fresh; plan.targets.len()],
            wave: 0,
            stage: 0,
            steps: Vec::new(),
            asked: BTreeSet::new(),
            missed: BTreeSet::new(),
            untouched: BTreeSet::new(),
            worked: BTreeSet::new(),
            ending: None,
            is_stopped: false,
        };
        rollout.enter_stage();
        rollout
    }

    /// Leaves a target out before anything was started there.
    pub fn leave_out(&mut self, target: usize, why: String) {
        if let Some(standing) = self.standings.get_mut(target) {
            *standing = Standing::LeftOut(why);
        }
    }

    /// A target failed before a step began there: none begins any more.
    pub fn fail(&mut self, target: usize, step: &str, how: String) {
        if let Some(standing) = self.standings.get_mut(target) {
            self.untouched.insert(target);
            *standing = Standing::Failed { step: step.to_owned(), how };
            self.spend_budget(target);
        }
    }

    /// Whether nothing more will start on a target.
    pub fn is_through(&self, target: usize) -> bool {
        !self.waves.iter().skip(self.wave).any(|wave| wave.contains(&target))
    }

    /// Whether a person stopped it.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// How all targets stand, in the plan's order.
    pub fn standings(&self) -> &[Standing] {
        &self.standings
    }

    /// Why the roll-out ended before its end, if it did; for people.
    pub fn ending(&self) -> Option<&str> {
        self.ending.as_deref()
    }

    /// Starts nothing any more (rule 6).
    pub fn stop(&mut self, why: &str) {
        self.is_stopped = true;
        self.ending.get_or_insert_with(|| why.to_owned());
    }

    /// Whether nothing runs and nothing will.
    pub fn is_over(&self) -> bool {
        let rests = self.steps.iter().all(|step| step.running.is_empty());
        rests && (self.is_stopped || self.wave >= self.waves.len())
    }

    /// What may start now; it counts as running from here on.
    pub fn start_next(&mut self) -> Vec<JobKey> {
        let mut starts = Vec::new();
        while !self.is_stopped && self.wave < self.waves.len() {
            self.start_in_stage(&mut starts);
            if !self.steps.iter().all(Progress::is_over) {
                break;
            }
            self.leave_stage();
        }
        starts
    }

    /// A job has ended.
    pub fn ended(&mut self, job: JobKey, how: Ended) {
        if let Some(step) = self.steps.get_mut(job.step).filter(|_| job.stage == self.stage) {
            step.running.remove(&job.target);
        }
        let Step { name, is_check, .. } = &self.stages[job.stage].steps[job.step];
        let (name, is_check) = (name.clone(), *is_check);
        match (job.target, how) {
            (Some(target), Ended::Failed(how)) => self.fails(target, name, how),
            (Some(target), Ended::LeftOut(why)) if self.worked.contains(&target) => {
                self.fails(target, name, format!("{why}, and part of the work is done there"));
            }
            (Some(target), Ended::LeftOut(why)) => {
                let standing = &mut self.standings[target];
                if !matches!(standing, Standing::Failed { .. }) {
                    *standing = Standing::LeftOut(why);
                }
            }
            (None, Ended::Failed(how) | Ended::LeftOut(how)) => {
                self.ending.get_or_insert(format!("step {name:?}: {how}"));
            }
            (Some(target), Ended::Succeeded) if !is_check => {
                self.worked.insert(target);
                // A step beside this one did not begin.
                if let Standing::LeftOut(why) = &self.standings[target] {
                    let how = format!("{why}, and part of the work is done there");
                    self.fails(target, name, how);
                }
            }
            (_, Ended::Succeeded) => {}
        }
    }

    /// The first failure is the one on record.
    fn fails(&mut self, target: usize, step: String, how: String) {
        let standing = &mut self.standings[target];
        if !matches!(standing, Standing::Failed { .. }) {
            *standing = Standing::Failed { step, how };
        }
        self.spend_budget(target);
    }

    /// Rule 4.
    fn spend_budget(&mut self, target: usize) {
        let is_failed = |standing: &&Standing| matches!(standing, Standing::Failed { .. });
        let failed = self.standings.iter().filter(is_failed).count();
        let why = if self.canaries.contains(&target) {
            "a canary failed".to_owned()
        } else if failed > self.max_failures {
            match self.max_failures {
                0 => "a target failed".to_owned(),
                budget => format!("{failed} targets failed, {budget} may"),
            }
        } else {
            return;
        };
        self.ending.get_or_insert(why);
    }

    fn enter_stage(&mut self) {
        let steps = self.stages.get(self.stage).map(|stage| stage.steps.as_slice());
        let wave = self.waves.get(self.wave);
        let steps = steps.unwrap_or_default().iter().enumerate().map(|(number, step)| {
            let pending = match wave {
                None => VecDeque::new(),
                Some(_) if step.is_pause && self.asked.contains(&(self.stage, number)) => {
                    VecDeque::new()
                }
                Some(_) if step.is_pause => VecDeque::from([None]),
                Some(wave) => {
                    let theirs = wave.iter().filter(|target| step.targets.contains(target));
                    theirs.map(|target| Some(*target)).collect()
                }
            };
            Progress { pending, ..Progress::default() }
        });
        self.steps = steps.collect();
    }

    fn leave_stage(&mut self) {
        self.stage += 1;
        if self.stage >= self.stages.len() {
            self.stage = 0;
            self.leave_wave();
            // Rule 4: no other wave begins.
            self.wave = if self.ending.is_some() { self.waves.len() } else { self.wave + 1 };
        }
        self.enter_stage();
    }

    fn leave_wave(&mut self) {
        for target in self.waves.get(self.wave).into_iter().flatten() {
            let standing = &mut self.standings[*target];
            let is_good = matches!(standing, Standing::Fresh | Standing::Good);
            if is_good && !self.missed.contains(target) {
                *standing = Standing::Done;
            }
        }
    }

    fn start_in_stage(&mut self, starts: &mut Vec<JobKey>) {
        let Some(stage) = self.stages.get(self.stage) else { return };
        let runs = |step: &Progress| step.has_begun && !step.is_over();
        for number in 0..self.steps.len() {
            let others = self.steps.iter().filter(|step| runs(step)).count();
            if !self.steps[number].has_begun && others >= stage.parallelism {
                continue;
            }
            let shape = &stage.steps[number];
            loop {
                if self.steps[number].running.len() >= shape.parallelism {
                    break;
                }
                let Some(target) = self.steps[number].pending.pop_front() else { break };
                if !self.is_wanted(shape, target) {
                    self.missed.extend(target.filter(|_| shape.condition == Condition::Success));
                    continue;
                }
                let step = &mut self.steps[number];
                step.has_begun = true;
                step.running.insert(target);
                match target {
                    Some(target) if self.standings[target] == Standing::Fresh => {
                        self.standings[target] = Standing::Good;
                    }
                    Some(_) => {}
                    None => drop(self.asked.insert((self.stage, number))),
                }
                starts.push(JobKey { stage: self.stage, step: number, target });
            }
        }
    }

    /// Whether a step's condition holds.
    fn is_wanted(&self, step: &Step, target: Option<usize>) -> bool {
        if let Some(target) = target {
            return self.holds(step.condition, target);
        }
        let wave = self.waves.get(self.wave).map(Vec::as_slice).unwrap_or_default();
        wave.iter().any(|target| self.holds(step.condition, *target))
    }

    /// Rules 3 and 4.
    fn holds(&self, condition: Condition, target: usize) -> bool {
        // What was never begun needs no cleaning up.
        if self.untouched.contains(&target) {
            return false;
        }
        let is_ending = self.ending.is_some();
        match (condition, &self.standings[target]) {
            (_, Standing::LeftOut(_) | Standing::Done) => false,
            (Condition::Success, Standing::Fresh | Standing::Good) => !is_ending,
            (Condition::Success, Standing::Failed { .. }) => false,
            (Condition::Failure | Condition::Always, Standing::Failed { .. }) => true,
            (Condition::Failure, Standing::Good) => is_ending,
            (Condition::Always, Standing::Good) => true,
            // What was never begun needs no cleaning up.
            (Condition::Failure, Standing::Fresh) => false,
            (Condition::Always, Standing::Fresh) => !is_ending,
        }
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
