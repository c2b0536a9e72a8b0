//! Pure: which machines take part in a deployment, and which of them go first.

use std::collections::BTreeSet;

use super::Request;
use crate::deploy::problem::{Problem, Problems, did_you_mean};
use crate::deploy::project::{Canary, Project};
use crate::deploy::targets::{Target, Targets, check_word};

/// The targets that take part, canaries first, and how many canaries there are.
pub(super) fn choose<'a>(
    project: &Project,
    targets: &'a Targets,
    request: &Request,
) -> Result<(Vec<&'a Target>, usize), Problems> {
    check_request(targets, request)?;
    let takes = |target: &&Target| target.takes(&request.environment, request.tenant.as_deref());
    let chosen: Vec<&Target> = targets.iter().filter(takes).collect();
    if chosen.is_empty() {
        return Err(nobody_takes(targets, request).into());
    }
    let mut chosen = match &request.only {
        Some(only) => only_these(targets, chosen, only)?,
        None => chosen,
    };
    let canaries = canaries(project, targets, &chosen)?;
    chosen.sort_by_key(|target| !canaries.contains(target.name.as_str()));
    Ok((chosen, canaries.len()))
}

fn refusal(targets: &Targets, message: String) -> Problem {
    let file = targets.file().to_owned();
    Problem { file, line: None, key: String::new(), message, hint: None }
}

fn check_request(targets: &Targets, request: &Request) -> Result<(), Problems> {
    let texts = [
        ("environment", Some(&request.environment)),
        ("tenant", request.tenant.as_ref()),
        ("release", request.release.as_ref()),
    ];
    let checked = texts.into_iter().filter_map(|(name, text)| {
        let text = text?;
        let message = check_word(text).err()?;
        Some(refusal(targets, format!("the {name} {text:?} {message}")))
    });
    Problems::none_of(checked.collect())
}

fn nobody_takes(targets: &Targets, request: &Request) -> Problem {
    let Request { environment, tenant, .. } = request;
    let known: BTreeSet<&str> =
        targets.iter().flat_map(|t| &t.environments).map(String::as_str).collect();
    if known.contains(environment.as_str()) {
        let whom = match tenant {
            Some(tenant) => format!("takes deployments for tenant {tenant:?}"),
            None => "takes deployments without a tenant".to_owned(),
        };
        return refusal(targets, format!("no target of environment {environment:?} {whom}"));
    }
    let all: Vec<&str> = known.iter().copied().collect();
    let list = if all.is_empty() {
        "`baton target add --environment` says where a target belongs".to_owned()
    } else {
        format!("known are {}", all.join(", "))
    };
    let hint = did_you_mean(environment, known).unwrap_or(list);
    refusal(targets, format!("no target is in environment {environment:?}")).hint(hint)
}

/// Those of the targets that are meant.
fn only_these<'a>(
    targets: &Targets,
    chosen: Vec<&'a Target>,
    only: &str,
) -> Result<Vec<&'a Target>, Problem> {
    let (role, name) = match only.split_once(':') {
        Some(("role", role)) => (Some(role), None),
        Some(("target", name)) => (None, Some(name)),
        _ => (Some(only), Some(only)),
    };
    let of_role = role.is_some_and(|role| targets.iter().any(|target| target.has_role(role)));
    let is_target = name.is_some_and(|name| targets.named(name).is_some());
    if of_role && is_target {
        let hint = format!("say role:{only} or target:{only}");
        return Err(refusal(targets, format!("{only:?} is a role and a target")).hint(hint));
    }
    if !of_role && !is_target {
        let names = targets.iter().map(|target| target.name.as_str());
        let roles = targets.iter().flat_map(|target| &target.roles).map(String::as_str);
        let given = role.or(name).unwrap_or(only);
        let hint = did_you_mean(given, names.chain(roles));
        return Err(refusal(targets, format!("{only:?} is no role and no target")).hint(hint));
    }
    let is_meant = |target: &&Target| {
        if of_role { role.is_some_and(|r| target.has_role(r)) } else { name == Some(&target.name) }
    };
    let meant: Vec<&Target> = chosen.into_iter().filter(is_meant).collect();
    if meant.is_empty() {
        let message = format!("{only:?} takes no part in this environment, for this tenant");
        return Err(refusal(targets, message));
    }
    Ok(meant)
}

/// The names of those that go first.
fn canaries<'a>(
    project: &Project,
    targets: &Targets,
    chosen: &[&'a Target],
) -> Result<BTreeSet<&'a str>, Problem> {
    let names = chosen.iter().map(|target| target.name.as_str());
    match &project.rollout.canary {
        Canary::Count(count) => {
            Ok(names.take(usize::try_from(*count).unwrap_or(usize::MAX)).collect())
        }
        Canary::Targets(canaries) => {
            for (at, name) in canaries.iter().enumerate() {
                if targets.named(name).is_none() {
                    let key = format!("rollout.canary.targets[{at}]");
                    let known = targets.iter().map(|target| target.name.as_str());
                    let problem = project.places.problem(key, format!("no target is {name:?}"));
                    return Err(problem.hint(did_you_mean(name, known)));
                }
            }
            Ok(names.filter(|name| canaries.iter().any(|canary| canary == name)).collect())
        }
    }
}
