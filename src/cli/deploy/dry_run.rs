//! A plan as people read it, at most 80 columns wide.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::client::AWAY_LIMIT;
use crate::deploy::plan::{
    Action, Condition, Isolation, Job, PackageSource, Plan, PlannedStep, Unreachable,
};
use crate::deploy::value::Value;
use crate::deploy::variables::{built_in, environment_name};
use crate::text::shorten;

/// How wide it is.
const WIDTH: usize = 80;
/// How wide the first column of a list is at most.
const MAX_NAME: usize = 36;

/// The whole plan.
pub(super) fn text(plan: &Plan) -> String {
    let mut page = Page(String::new());
    heading(&mut page, plan);
    packages(&mut page, plan);
    for (at, stage) in plan.stages.iter().enumerate() {
        page.line(0, "");
        let beside = match stage.steps.len() {
            1 => String::new(),
            n => format!(": {n} steps side by side, {} at once", stage.parallelism),
        };
        page.line(0, &format!("stage {}{beside}", at + 1));
        for planned in &stage.steps {
            step(&mut page, planned);
        }
    }
    if !plan.remarks.is_empty() {
        page.line(0, "");
        page.line(0, "remarks");
        for remark in &plan.remarks {
            page.wrapped(2, remark);
        }
    }
    page.0
}

fn heading(page: &mut Page, plan: &Plan) {
    let release = plan.release.as_ref().map(|release| format!(" {release}"));
    let tenant = plan.tenant.as_ref().map(|tenant| format!(", tenant {tenant}"));
    let (release, tenant) = (release.unwrap_or_default(), tenant.unwrap_or_default());
    let of = format!("{}{release} to {}{tenant}", plan.project, plan.environment);
    page.wrapped(0, &format!("{of} (dry run: nothing runs)"));
    page.line(0, "");
    let unreachable = match plan.unreachable {
        Unreachable::Fail => "one that can't be reached ends it",
        Unreachable::Exclude => "one that can't be reached is left out",
    };
    let canaries = plan.targets.iter().filter(|target| target.is_canary).count();
    let canaries = if canaries == 0 { String::new() } else { format!(", {canaries} first") };
    page.pair(0, "never beside", &format!("tag {}", plan.concurrency_tag), 14);
    if !plan.etcd.is_empty() {
        page.pair(0, "in etcd", &plan.etcd.join(" "), 14);
    }
    let count = plan.targets.len();
    page.pair(0, "targets", &format!("{count}{canaries}; {unreachable}"), 14);
    let failures = format!("at most {} of {count} targets", plan.max_failures);
    page.pair(0, "may fail", &failures, 14);
    if plan.waves.len() > 1 {
        page.line(0, "");
        page.line(0, "batches, each through all stages before the next one begins");
        for (at, wave) in plan.waves.iter().enumerate() {
            let canary = if wave.is_canary { " (canary)" } else { "" };
            page.wrapped(2, &format!("batch {}{canary}: {}", at + 1, wave.targets.join(", ")));
        }
    }
}

fn packages(page: &mut Page, plan: &Plan) {
    let all = &plan.acquisitions;
    if all.packages.is_empty() {
        return;
    }
    page.line(0, "");
    page.line(0, &format!("packages, before all steps, {} at once", all.parallelism));
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for one in &all.packages {
        let (PackageSource::File(path) | PackageSource::Directory(path)) = &one.source;
        let what = format!("{} {} from {}", one.package, one.version, path.display());
        match groups.iter_mut().find(|(known, _)| *known == what) {
            Some((_, targets)) => targets.push(&one.target),
            None => groups.push((what, vec![&one.target])),
        }
    }
    for (what, targets) in groups {
        page.wrapped(2, &what);
        page.wrapped(4, &format!("to {}", targets.join(", ")));
    }
}

fn step(page: &mut Page, step: &PlannedStep) {
    let action = match &step.action {
        Action::Script => String::new(),
        Action::HealthCheck => " (health check)".to_owned(),
        Action::Package { package } => format!(" (package {package})"),
        Action::Pause { message } => format!(" (pause): {message}"),
    };
    let condition = match step.condition {
        Condition::Success => "",
        Condition::Failure => ", when something failed",
        Condition::Always => ", whatever happened",
    };
    page.wrapped(2, &format!("{} {}{action}{condition}", step.number, step.name));
    if step.jobs.is_empty() {
        if !matches!(step.action, Action::Pause { .. }) {
            page.line(4, "no target");
        }
        return;
    }
    let mut limits = vec![format!("{} at once", step.parallelism)];
    limits.extend(step.retry.map(|retry| match retry.times.get() {
        1 => "tried again once".to_owned(),
        times => format!("tried again {times} times"),
    }));
    page.wrapped(4, &limits.join(", "));
    let width = step.jobs.iter().map(|job| job.target.chars().count()).max().unwrap_or(0);
    for job in &step.jobs {
        page.pair(6, &job.target, &how(job), (width + 2).min(MAX_NAME));
    }
    variables(page, step);
}

/// How a job runs.
fn how(job: &Job) -> String {
    let isolation = match job.isolation {
        Isolation::Exclusive => "exclusive".to_owned(),
        Isolation::Bypass { at_most: None } => "bypass".to_owned(),
        Isolation::Bypass { at_most: Some(n) } => format!("bypass, at most {n}"),
        Isolation::Deployment => "exclusive for the whole deployment".to_owned(),
        Isolation::Observer => "observer, takes no turn".to_owned(),
    };
    let interpreter = job.script.as_ref().map(|script| script.interpreter.clone());
    let time = |what, limit: Option<Duration>| {
        limit.map(|limit| format!("{what} {}", humantime::format_duration(limit)))
    };
    let version = job.package_version.as_ref().map(|version| format!("version {version}"));
    let parts = [Some(isolation), interpreter, version, time("at most", job.run_time_limit)];
    let waits = time("waits at most", job.queue_time_limit);
    let is_usual = job.away_limit == AWAY_LIMIT;
    let away = (!is_usual).then_some(job.away_limit);
    let away = time("waited for when it is away", away);
    parts.into_iter().chain([waits, away]).flatten().collect::<Vec<_>>().join(", ")
}

/// Each value once, with the targets that have it where it is not the same for all. What the deployment
/// itself gives is no news.
fn variables(page: &mut Page, step: &PlannedStep) {
    let jobs = &step.jobs;
    let mut values: BTreeMap<&str, Vec<(&Value, Vec<&str>)>> = BTreeMap::new();
    let given = built_in::ALL.map(environment_name);
    for job in jobs {
        for (name, value) in job.environment.iter().filter(|(name, _)| !given.contains(name)) {
            let known = values.entry(name).or_default();
            match known.iter_mut().find(|(other, _)| *other == value) {
                Some((_, targets)) => targets.push(&job.target),
                None => known.push((value, vec![&job.target])),
            }
        }
    }
    if values.is_empty() {
        return;
    }
    page.line(4, "variables");
    let width = values.keys().map(|name| name.chars().count()).max().unwrap_or(0) + 2;
    for (name, values) in values {
        for (value, targets) in values {
            let value = value.shown();
            let everywhere = targets.len() == jobs.len();
            let on = if everywhere { String::new() } else { format!(" on {}", targets.join(", ")) };
            let value = if value.is_empty() { "\"\"" } else { value };
            page.pair(6, name, &format!("{value}{on}"), width.min(MAX_NAME));
        }
    }
}

/// Lines that are not too wide.
struct Page(String);

impl Page {
    fn line(&mut self, indent: usize, text: &str) {
        let text = shorten(text, WIDTH.saturating_sub(indent));
        // Writing into a String can't fail.
        writeln!(self.0, "{:indent$}{text}", "").unwrap_or_default();
        if text.is_empty() {
            self.0.truncate(self.0.trim_end_matches([' ', '\n']).len());
            self.0.push_str("\n\n");
        }
    }

    /// A name and what belongs to it, from a column on; a long name has a line of its own.
    fn pair(&mut self, indent: usize, name: &str, text: &str, column: usize) {
        if name.chars().count() + 2 > column {
            self.line(indent, name);
            return self.line(indent + 2, text);
        }
        self.line(indent, &format!("{name:column$}{text}"));
    }

    /// A text over as many lines as it needs.
    fn wrapped(&mut self, indent: usize, text: &str) {
        let mut line = String::new();
        let mut indent = indent;
        for word in text.split_whitespace() {
            let length = line.chars().count() + 1 + word.chars().count();
            if !line.is_empty() && indent + length > WIDTH {
                self.line(indent, &line);
                line.clear();
                indent += 2;
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(indent, &line);
    }
}
