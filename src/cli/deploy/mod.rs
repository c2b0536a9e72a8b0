//! `baton deploy`: rolls a project out over machines.

mod args;
mod check;
mod dry_run;

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

pub(super) use args::DeployArgs;
use args::{DeployCommand, RunArgs};

use super::failure::Failure;
use super::screen::{write_json, write_out};
use crate::config::Directories;
use crate::deploy::load;
use crate::deploy::plan::Plan;
use crate::deploy::planning::{self, Request};

pub(super) fn deploy(args: DeployArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    match (args.command, args.run) {
        (Some(DeployCommand::Check(args)), _) => check::check(&args),
        (None, Some(args)) => run(args, folders),
        (None, None) => Err(Failure::usage("a project's file is missing")
            .hint("baton deploy PROJECT.toml --environment NAME")),
    }
}

fn run(args: RunArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    let RunArgs { project, environment, tenant, release, only, targets, dry_run: _, json } = args;
    let request = Request { environment, tenant, release, only };
    let plan = plan(&project, &request, targets.as_deref(), folders)?;
    if json {
        write_json(&json!(plan))?;
    } else {
        write_out(dry_run::text(&plan).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the files and works out the plan. Without a file of machines they are those that this client
/// knows.
fn plan(
    project: &Path,
    request: &Request,
    targets: Option<&Path>,
    folders: &Directories,
) -> Result<Plan, Failure> {
    let targets = match targets {
        Some(file) => load::targets(file)?,
        None => load::known_targets(&folders.config)?,
    };
    let mut project = load::project(project)?;
    load::values(&mut project, request, |name| std::env::var_os(name))?;
    Ok(planning::plan(&project, &targets, request)?)
}
