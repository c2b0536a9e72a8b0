//! Pure: what a step is on one target, and what a package is for it.

use std::collections::BTreeMap;

use crate::client::AWAY_LIMIT;
use crate::deploy::document::below;
use crate::deploy::limit::shorter;
use crate::deploy::plan::{Acquisition, Isolation, Job, PackageSource, Script};
use crate::deploy::problem::{Problem, Problems};
use crate::deploy::project::{MAX_PACKAGE_BYTES, Package};
use crate::deploy::special;
use crate::deploy::step::{IsolationName, ScriptWork, Source, Step, Work};
use crate::deploy::targets::Target;
use crate::deploy::value::Value;
use crate::deploy::variables::Values;
use crate::script::{Labels, check_name};

/// A step on a target, without its labels.
pub(super) fn job(step: &Step, target: &Target, values: &mut Values<'_>) -> Result<Job, Problems> {
    let isolation = isolation(step, target, values)?;
    let mut job = Job {
        target: target.name.clone(),
        isolation,
        script: None,
        arguments: Vec::new(),
        environment: BTreeMap::new(),
        package_version: None,
        run_time_limit: shorter(step.run_time, target.limits.run_time),
        queue_time_limit: shorter(step.queue_time, target.limits.queue_time),
        away_limit: AWAY_LIMIT,
        labels: Labels::new(),
    };
    let Work::Script(script) = &step.work else { return Ok(job) };
    job.script = Some(script_for(step, script, target, values)?);
    job.environment = values.environment()?;
    for (name, text) in &script.inputs {
        let value = values.expand(&below(&format!("{}.inputs", step.key), name), text)?;
        job.environment.insert(name.clone(), value);
    }
    for (at, text) in script.arguments.iter().enumerate() {
        // Everybody on the machine sees the arguments of a process.
        let text = shown(values, &format!("{}.arguments[{at}]", step.key), text)?;
        job.arguments.push(Value::plain(text));
    }
    Ok(job)
}

/// What the step says, else what the variable says, else what the project says.
fn isolation(step: &Step, target: &Target, values: &mut Values<'_>) -> Result<Isolation, Problem> {
    // Asked for in any case: a bad value is told.
    let bypass = special::bypass(values)?;
    let at_most = target.limits.at_most;
    if matches!(step.work, Work::HealthCheck) {
        return Ok(Isolation::Observer);
    }
    Ok(match (step.isolation, bypass) {
        (Some(IsolationName::Exclusive), _) => Isolation::Exclusive,
        (Some(IsolationName::Bypass), _) => Isolation::Bypass { at_most },
        (Some(IsolationName::Deployment), _) => Isolation::Deployment,
        (Some(IsolationName::Observer), _) => Isolation::Observer,
        (None, Some(true)) => Isolation::Bypass { at_most },
        (None, _) if values.project().is_deployment_wide => Isolation::Deployment,
        (None, _) => Isolation::Exclusive,
    })
}

/// The script for the interpreter that the target prefers.
fn script_for(
    step: &Step,
    script: &ScriptWork,
    target: &Target,
    values: &Values<'_>,
) -> Result<Script, Problem> {
    let preferred = target
        .interpreters
        .iter()
        .find_map(|own| script.sources.iter().find(|source| source.interpreter == *own));
    let any = script.sources.first().filter(|_| target.interpreters.is_empty());
    let Some(source) = preferred.or(any) else {
        let wanted = target.interpreters.join(" or ");
        let message = format!("has no script for {wanted}, which target {} needs", target.name);
        return Err(values.project().places.problem(step.key.clone(), message));
    };
    match &source.source {
        Source::Text(body) => {
            Ok(Script { interpreter: source.interpreter.clone(), body: body.clone() })
        }
        Source::File(path) => {
            let message = format!("file {} was not read", path.display());
            Err(values.project().places.problem(source.key.clone(), message))
        }
    }
}

/// A package for a target.
pub(super) fn acquisition(
    package: &Package,
    target: &Target,
    values: &mut Values<'_>,
) -> Result<Acquisition, Problem> {
    let version = version(package, values)?;
    let field = if package.is_directory { "directory" } else { "file" };
    let path = shown(values, &format!("{}.{field}", package.key), &package.path)?;
    let path = values.project().folder().join(path);
    let source = if package.is_directory {
        PackageSource::Directory(path)
    } else {
        PackageSource::File(path)
    };
    let target = target.name.clone();
    Ok(Acquisition { target, package: package.id.clone(), version, source })
}

/// A package's version for a target.
pub(super) fn version(package: &Package, values: &mut Values<'_>) -> Result<String, Problem> {
    let key = format!("{}.version", package.key);
    let version = shown(values, &key, &package.version)?;
    match check_name(&version, MAX_PACKAGE_BYTES) {
        Ok(()) => Ok(version),
        Err(error) => {
            let message = format!("is {version:?} for {}, but {error}", values.place());
            Err(values.project().places.problem(key, message))
        }
    }
}

/// A text that is shown to people and stands in file names.
fn shown(values: &mut Values<'_>, key: &str, text: &str) -> Result<String, Problem> {
    let value = values.expand(key, text)?;
    if value.is_sensitive() {
        let message = "a secret stands in it, but it is shown to people";
        return Err(values.project().places.problem(key, message));
    }
    Ok(value.expose().to_owned())
}
