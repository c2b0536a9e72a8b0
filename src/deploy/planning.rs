//! Pure: from a project, the machines and a request to a plan. It is deterministic: the same input gives
//! the same plan, and the order of targets is that of `targets.toml`, canaries first.

mod choice;
mod job;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use super::plan::{Acquisitions, Action, Job, Plan, PlannedStep, PlannedTarget, Stage, Wave};
use super::problem::{Problem, Problems, did_you_mean};
use super::project::Project;
use super::scope::Context;
use super::special;
use super::step::{Step, Work};
use super::targets::{Target, Targets};
use super::variables::Values;
use crate::client::AWAY_LIMIT;

/// What is to be deployed where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// The environment.
    pub environment: String,
    /// The tenant.
    pub tenant: Option<String>,
    /// The release.
    pub release: Option<String>,
    /// Only these targets: a role or a target, or `role:NAME`, `target:NAME` where one name is both.
    pub only: Option<String>,
    /// How long agents are waited for that are away, whatever the files say.
    pub away_limit: Option<Duration>,
}

/// Works out a plan. Values that are in files and in the orchestrator's environment must have been filled
/// in: [`super::load::values`].
///
/// # Errors
/// Everything that is wrong for this request: unknown names, ties, variables without a value, special
/// variables with a bad one, steps without a script for a target, and a plan in which nothing runs.
pub fn plan(project: &Project, targets: &Targets, request: &Request) -> Result<Plan, Problems> {
    let mut planner = Planner::new(project, targets, request)?;
    let stages = planner.stages();
    let acquisitions = planner.acquisitions();
    let tag = special::concurrency_tag(&mut planner.values(None, None));
    let concurrency_tag = planner.take(tag).unwrap_or_default();
    planner.check_scopes();
    planner.remark_unused(&stages);
    Problems::none_of(std::mem::take(&mut planner.problems))?;
    let has_work =
        |step: &PlannedStep| !step.jobs.is_empty() || matches!(step.action, Action::Pause { .. });
    if !stages.iter().flat_map(|stage| &stage.steps).any(has_work) {
        let message = "no step runs on any of the chosen targets: nothing is deployed";
        let hint = planner.remarks.first().cloned();
        return Err(project.places.problem("steps", message).hint(hint).into());
    }
    let count = u32::try_from(planner.chosen.len()).unwrap_or(u32::MAX);
    Ok(Plan {
        project: project.name.clone(),
        environment: request.environment.clone(),
        tenant: request.tenant.clone(),
        release: request.release.clone(),
        concurrency_tag,
        etcd: project.etcd.clone(),
        targets: planner.planned_targets(),
        max_failures: project.rollout.max_failures.at_most(count),
        unreachable: project.rollout.unreachable,
        waves: planner.waves(),
        acquisitions,
        stages,
        remarks: planner.remarks,
    })
}

/// What goes into a plan, and what is wrong with it.
struct Planner<'a> {
    project: &'a Project,
    targets: &'a Targets,
    request: &'a Request,
    /// The targets that take part, canaries first.
    chosen: Vec<&'a Target>,
    /// How many of them are canaries.
    canaries: usize,
    problems: Vec<Problem>,
    remarks: Vec<String>,
}

impl<'a> Planner<'a> {
    fn new(
        project: &'a Project,
        targets: &'a Targets,
        request: &'a Request,
    ) -> Result<Self, Problems> {
        let (chosen, canaries) = choice::choose(project, targets, request)?;
        let (problems, remarks) = (Vec::new(), Vec::new());
        Ok(Self { project, targets, request, chosen, canaries, problems, remarks })
    }

    fn take<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// The variables at a place.
    fn values(&self, target: Option<&'a Target>, step: Option<&'a str>) -> Values<'a> {
        let environment = &self.request.environment;
        let tenant = self.request.tenant.as_deref();
        let context = Context { environment, tenant, target, step };
        Values::new(self.project, context, self.request.release.as_deref())
    }

    fn planned_targets(&self) -> Vec<PlannedTarget> {
        let planned = |(at, target): (usize, &&Target)| PlannedTarget {
            name: target.name.clone(),
            address: target.address.clone(),
            fingerprint: target.fingerprint,
            kind: target.kind,
            is_canary: at < self.canaries,
            away_limit: self.away_limit(target, None),
        };
        self.chosen.iter().enumerate().map(planned).collect()
    }

    /// How long a target's agent is waited for when it is away: the request counts first, then the step.
    fn away_limit(&self, target: &Target, step: Option<&Step>) -> Duration {
        let project = self.project.rollout.away;
        let step = step.and_then(|step| step.away);
        let said = self.request.away_limit.or(step).or(target.limits.away).or(project);
        said.unwrap_or(AWAY_LIMIT)
    }

    /// The chosen targets on which a step runs.
    fn targets_of(&self, step: &Step) -> Vec<&'a Target> {
        let is_wanted = |target: &&&Target| {
            step.roles.is_empty() || step.roles.iter().any(|role| target.has_role(role))
        };
        match step.work {
            Work::Pause { .. } => Vec::new(),
            Work::Script(_) | Work::HealthCheck | Work::Package { .. } => {
                self.chosen.iter().filter(is_wanted).copied().collect()
            }
        }
    }

    fn stages(&mut self) -> Vec<Stage> {
        let project = self.project;
        let mut stages: Vec<Stage> = Vec::new();
        for (at, step) in project.steps.iter().enumerate() {
            let number = u32::try_from(at + 1).unwrap_or(u32::MAX);
            let (parallelism, planned) = self.step(number, step);
            match stages.last_mut() {
                Some(stage) if step.starts_with_previous => {
                    stage.parallelism = stage.parallelism.min(parallelism);
                    stage.steps.push(planned);
                }
                _ => stages.push(Stage { parallelism, steps: vec![planned] }),
            }
        }
        stages
    }

    /// A step, and how many steps may run beside each other because of it.
    fn step(&mut self, number: u32, step: &'a Step) -> (NonZeroU32, PlannedStep) {
        let targets = self.targets_of(step);
        let mut limits = Vec::new();
        let mut jobs = Vec::new();
        for target in &targets {
            let mut values = self.values(Some(target), Some(&step.name));
            let limit = step_limits(step, &mut values);
            limits.extend(self.take(limit));
            match job::job(step, target, &mut values) {
                Ok(mut job) => {
                    job.away_limit = self.away_limit(target, Some(step));
                    jobs.push(self.labelled(job, step));
                }
                Err(problems) => self.problems.extend(problems.iter().cloned()),
            }
        }
        let mut values = self.values(None, Some(&step.name));
        if targets.is_empty() {
            let limit = step_limits(step, &mut values);
            limits.extend(self.take(limit));
        }
        let action = self.action(step, &mut values);
        let least = |limits: &mut dyn Iterator<Item = NonZeroU32>| {
            limits.min().unwrap_or(special::DEFAULT_PARALLELISM)
        };
        let planned = PlannedStep {
            number,
            name: step.name.clone(),
            condition: step.condition,
            action,
            parallelism: least(&mut limits.iter().map(|(machines, _)| *machines)),
            retry: step.retry,
            jobs,
        };
        (least(&mut limits.iter().map(|(_, steps)| *steps)), planned)
    }

    fn action(&mut self, step: &Step, values: &mut Values<'_>) -> Action {
        match &step.work {
            Work::Script(_) => Action::Script,
            Work::HealthCheck => Action::HealthCheck,
            Work::Package { id } => Action::Package { package: id.clone() },
            Work::Pause { message } => {
                let key = format!("{}.message", step.key);
                let message = values.expand(&key, message);
                let message = self.take(message).map(|message| message.shown().to_owned());
                Action::Pause { message: message.unwrap_or_default() }
            }
        }
    }

    fn labelled(&self, mut job: Job, step: &Step) -> Job {
        let request = self.request;
        let labels = [
            ("project", Some(&self.project.name)),
            ("environment", Some(&request.environment)),
            ("tenant", request.tenant.as_ref()),
            ("release", request.release.as_ref()),
            ("step", Some(&step.name)),
            ("target", Some(&job.target)),
        ];
        let labels = labels.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.clone())));
        job.labels = labels.collect();
        if let Work::Package { id } = &step.work {
            let target = self.chosen.iter().find(|target| target.name == job.target);
            let version = target.and_then(|target| {
                let package = self.project.package(id)?;
                job::version(package, &mut self.values(Some(target), None)).ok()
            });
            // What is wrong with it is told once, where it is acquired.
            job.package_version = version;
        }
        job
    }

    /// The canaries, then the others, so many at once.
    fn waves(&self) -> Vec<Wave> {
        let names = |targets: &[&Target]| -> Vec<String> {
            targets.iter().map(|target| target.name.clone()).collect()
        };
        let count = u32::try_from(self.chosen.len()).unwrap_or(u32::MAX);
        let size = self.project.rollout.batch.map(|batch| batch.at_least_one(count).get());
        let size = size.and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX);
        let (first, others) = self.chosen.split_at(self.canaries);
        let canaries = (!first.is_empty()).then(|| Wave { is_canary: true, targets: names(first) });
        let others =
            others.chunks(size).map(|wave| Wave { is_canary: false, targets: names(wave) });
        canaries.into_iter().chain(others).collect()
    }

    /// Each package of each target on which a step uses it.
    fn acquisitions(&mut self) -> Acquisitions {
        let project = self.project;
        let mut packages = Vec::new();
        let mut limits = Vec::new();
        for target in self.chosen.clone() {
            let mut values = self.values(Some(target), None);
            let used: BTreeSet<&str> = project
                .steps
                .iter()
                .filter(|step| self.targets_of(step).iter().any(|own| own.name == target.name))
                .flat_map(Step::packages)
                .map(|(_, id)| id)
                .collect();
            let limit = special::acquire_parallelism(&mut values);
            limits.extend(self.take(limit));
            for package in project.packages.iter().filter(|p| used.contains(p.id.as_str())) {
                let acquisition = job::acquisition(package, target, &mut values);
                packages.extend(self.take(acquisition));
            }
        }
        let parallelism = limits.into_iter().min().unwrap_or(special::DEFAULT_PARALLELISM);
        Acquisitions { parallelism, packages }
    }

    /// Says what a scope names that no target has.
    fn check_scopes(&mut self) {
        let known = |names: fn(&Target) -> &[String]| -> BTreeSet<&str> {
            self.targets.iter().flat_map(names).map(String::as_str).collect()
        };
        let (environments, roles) = (known(|t| &t.environments), known(|t| &t.roles));
        let tenants = known(|t| &t.tenants);
        let targets: BTreeSet<&str> = self.targets.iter().map(|t| t.name.as_str()).collect();
        for definition in self.project.variables.iter() {
            let scope = &definition.scope;
            for (kind, named, known) in [
                ("environment", &scope.environments, &environments),
                ("role", &scope.roles, &roles),
                ("target", &scope.targets, &targets),
                ("tenant", &scope.tenants, &tenants),
            ] {
                for name in named.iter().filter(|name| !known.contains(name.as_str())) {
                    let offer = did_you_mean(name, known.iter().copied());
                    let offer = offer.map(|offer| format!("; {offer}")).unwrap_or_default();
                    let line = definition.line.map(|line| format!(", line {line}"));
                    self.remarks.push(format!(
                        "variable {}{} is scoped to {kind} {name:?}, which no target has{offer}",
                        definition.name,
                        line.unwrap_or_default()
                    ));
                }
            }
        }
    }

    fn remark_unused(&mut self, stages: &[Stage]) {
        let steps = || stages.iter().flat_map(|stage| &stage.steps);
        let busy: BTreeSet<&str> =
            steps().flat_map(|step| &step.jobs).map(|job| job.target.as_str()).collect();
        let idle = self.chosen.iter().filter(|target| !busy.contains(target.name.as_str()));
        let mut remarks: Vec<String> =
            idle.map(|target| format!("target {}: no step runs there", target.name)).collect();
        for (step, planned) in self.project.steps.iter().zip(steps()) {
            let is_pause = matches!(step.work, Work::Pause { .. });
            if planned.jobs.is_empty() && !is_pause {
                let roles = step.roles.join(" or ");
                let text = format!("step {:?}: no chosen target has role {roles}", step.name);
                remarks.push(text);
            }
        }
        for package in &self.project.packages {
            let mut used = self.project.steps.iter().flat_map(Step::packages);
            if !used.any(|(_, id)| id == package.id) {
                remarks.push(format!("package {}: no step uses it", package.id));
            }
        }
        self.remarks.extend(remarks);
    }
}

/// On how many machines a step runs at once, and how many steps beside each other.
fn step_limits(step: &Step, values: &mut Values<'_>) -> Result<(NonZeroU32, NonZeroU32), Problem> {
    let machines = special::action_parallelism(values, step.max_parallelism)?;
    // A health check has a limit of its own.
    let machines = match step.work {
        Work::HealthCheck => step.max_parallelism.unwrap_or(special::DEFAULT_PARALLELISM),
        Work::Script(_) | Work::Package { .. } | Work::Pause { .. } => machines,
    };
    Ok((machines, special::stage_parallelism(values)?))
}

#[cfg(test)]
mod tests;
