//! `baton deploy`: rolls projects out over machines.

mod args;
mod check;
mod dry_run;

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

pub(super) use args::DeployArgs;
use args::{DeployCommand, RunArgs};

use super::failure::{Failure, complain};
use super::reach::CLIENT;
use super::rollout::{self, DemoTargets, Wish};
use super::screen::{write_json, write_out};
use crate::config::Directories;
use crate::deploy::load;
use crate::deploy::plan::Plan;
use crate::deploy::planning::{self, Request};
use crate::deploy::targets::Targets;
use crate::trust::Identity;

pub(super) fn deploy(args: DeployArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    match (args.command, args.run) {
        (Some(DeployCommand::Check(args)), _) => check::check(&args),
        (Some(DeployCommand::GoAhead(args)), _) => {
            rollout::answer(&args.run, !args.refuse, folders)
        }
        (None, Some(args)) => run(args, folders),
        (None, None) => Err(Failure::usage("a project's file is missing")
            .hint("baton deploy PROJECT.toml --environment NAME")),
    }
}

fn run(args: RunArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    if args.projects.len() > 1 && (args.run.is_some() || args.continue_from.is_some()) {
        return Err(Failure::usage("--run and --continue-from are about one project"));
    }
    let mut targets = targets(&args, folders)?;
    let demo = match args.demo_targets.filter(|_| !args.dry_run) {
        Some(count) => {
            let identity = Identity::load_or_create(&folders.config, CLIENT)?;
            let demo = DemoTargets::start(count, &identity)?;
            targets = targets.stood_for_by(demo.machines());
            Some(demo)
        }
        None => None,
    };
    let plans = plans(&args, &targets)?;
    if args.dry_run {
        return dry_run(&plans, args.json);
    }
    for remark in plans.iter().flat_map(|plan| &plan.remarks) {
        complain(&format!("baton: {remark}"));
    }
    let RunArgs { if_busy, continue_from, run, report, json, .. } = args;
    let wish = Wish { run, if_busy: if_busy.into(), continue_from, json, report };
    let worked = super::asynchronous(rollout::work_off(plans, wish, folders));
    drop(demo);
    worked
}

fn dry_run(plans: &[Plan], json: bool) -> Result<ExitCode, Failure> {
    for plan in plans {
        if json {
            write_json(&json!(plan))?;
        } else {
            write_out(dry_run::text(plan).as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The machines. Without a file of them they are those that this client knows, for a demo those beside the
/// project.
fn targets(args: &RunArgs, folders: &Directories) -> Result<Targets, Failure> {
    let beside = args.projects.first().and_then(|project| project.parent());
    let beside = beside.map(|folder| folder.join("targets.toml"));
    let beside = beside.filter(|file| args.demo_targets.is_some() && file.is_file());
    Ok(match args.targets.as_deref().or(beside.as_deref()) {
        Some(file) => load::targets(file)?,
        None => load::known_targets(&folders.config)?,
    })
}

/// Reads the projects and works out what they do.
fn plans(args: &RunArgs, targets: &Targets) -> Result<Vec<Plan>, Failure> {
    let RunArgs { environment, tenant, release, only, away_limit, .. } = args;
    let request = Request {
        environment: environment.clone(),
        tenant: tenant.clone(),
        release: release.clone(),
        only: only.clone(),
        away_limit: *away_limit,
    };
    args.projects.iter().map(|project| plan(project, &request, targets)).collect()
}

fn plan(project: &Path, request: &Request, targets: &Targets) -> Result<Plan, Failure> {
    let mut project = load::project(project)?;
    load::values(&mut project, request, |name| std::env::var_os(name))?;
    Ok(planning::plan(&project, targets, request)?)
}
