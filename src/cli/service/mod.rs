//! `baton service`: the agent as a service of the system.

mod install;
mod status;
mod uninstall;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::failure::{Failure, code, complain};
use super::screen::write_out;
use crate::config::directories::System;
use crate::config::{Instance, Overrides, Sources};
use crate::service::ServiceError;
use crate::service::plan::Plan;
use crate::service::systemctl;
use crate::service::unit::{UnitFile, unit_name};

const EXAMPLES: &str = "\
Examples:
  baton service install                          install, enable and start the agent
  baton service install --dry-run                what that would write and run
  baton service install --config web.toml        with this configuration
  baton service install --instance blue          one more agent, with a port of its own
  baton service status                           how it stands, as systemd and the agent say
  baton service list --json                      all agents of this machine
  baton service restart                          scripts that run don't notice it
  baton service uninstall --purge                remove it, its configuration and its state

Without systemd: packaging/openrc and packaging/runit have examples.";

/// Install the agent as a service of the system, and look after it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ServiceArgs {
    #[command(subcommand)]
    command: ServiceCommand,
}

#[derive(Debug, Subcommand)]
enum ServiceCommand {
    Install(install::InstallArgs),
    Uninstall(uninstall::UninstallArgs),
    /// Start it; returns when it serves
    Start,
    /// Stop it, after what stop_wait in agent.toml says; scripts that run go on
    Stop,
    /// Stop and start it; scripts that run go on, queued ones keep their place
    Restart,
    Status(status::StatusArgs),
    List(status::ListArgs),
}

/// `folders`: the variables of folders that are set, by a flag or the environment.
pub(super) fn service(
    args: ServiceArgs,
    instance: Option<&Instance>,
    folders: &[&str],
) -> Result<ExitCode, Failure> {
    if !folders.is_empty() {
        let names = folders.join(", ");
        complain(&format!("baton: a service has the system's folders; not used: {names}"));
    }
    match args.command {
        ServiceCommand::Install(args) => install::install(args, instance),
        ServiceCommand::Uninstall(args) => uninstall::uninstall(&args, instance),
        ServiceCommand::Start => tell("start", instance),
        ServiceCommand::Stop => tell("stop", instance),
        ServiceCommand::Restart => tell("restart", instance),
        ServiceCommand::Status(args) => status::status(&args, instance),
        ServiceCommand::List(args) => status::list(&args),
    }
}

/// Tells systemd to start or stop it.
fn tell(verb: &str, instance: Option<&Instance>) -> Result<ExitCode, Failure> {
    check_machine()?;
    let unit = unit_name(instance);
    if systemctl::show(&unit)?.load == "not-found" {
        return Err(ServiceError::NotInstalled(unit).into());
    }
    if verb != "stop" {
        // Before an agent that serves is stopped: with a mistake in the file the next one would not start.
        Sources::of(&System::of(instance).config, Overrides::default()).read_with([])?;
    }
    run(&["systemctl", verb, &unit].map(str::to_owned), &unit)?;
    Ok(ExitCode::SUCCESS)
}

fn run(words: &[String], unit: &str) -> Result<(), Failure> {
    systemctl::run(words).map_err(|error| {
        Failure::from(error).hint(format!("what it said: journalctl -u {unit} -n 50"))
    })
}

/// Whether services can be changed here, by this user.
fn check_machine() -> Result<(), ServiceError> {
    if !systemctl::is_there() {
        return Err(ServiceError::NoSystemd);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(ServiceError::NotRoot);
    }
    Ok(())
}

/// Shows what would be done.
fn show(plan: &Plan) -> Result<(), Failure> {
    let run = |words: &Vec<String>| format!("# run: {}", words.join(" "));
    let write =
        |file: &UnitFile| format!("# write {}:\n{}", file.path.display(), file.text.trim_end());
    let mut parts: Vec<String> = plan.before.iter().map(run).collect();
    parts.extend(plan.config.iter().chain(&plan.files).map(write));
    parts.extend(plan.removed.iter().map(|path| format!("# remove {}", path.display())));
    parts.extend(plan.commands.iter().map(run));
    let text = parts.into_iter().map(|part| part + "\n").collect::<String>();
    write_out(text.as_bytes())?;
    for note in &plan.notes {
        complain(&format!("baton: {note}"));
    }
    Ok(())
}

fn failed(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> ServiceError + use<> {
    let path = path.to_owned();
    move |source| ServiceError::File { path, source }
}

/// Carries a plan out, but for the configuration.
fn carry_out(plan: &Plan, unit: &str) -> Result<(), Failure> {
    for words in &plan.before {
        run(words, unit)?;
    }
    for UnitFile { path, text } in &plan.files {
        let folder = path.parent().unwrap_or(path);
        crate::durable::create_dir_all(folder, 0o755).map_err(failed(folder))?;
        crate::durable::replace_file(path, text.as_bytes(), 0o644).map_err(failed(path))?;
    }
    for path in &plan.removed {
        std::fs::remove_file(path).map_err(failed(path))?;
        // That of a drop-in is empty now, or has those of others.
        if path.parent().is_some_and(|folder| folder.extension().is_some_and(|e| e == "d")) {
            path.parent().map(std::fs::remove_dir).transpose().unwrap_or_default();
        }
    }
    for words in &plan.commands {
        run(words, unit)?;
    }
    Ok(())
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        let (status, hint) = match error {
            ServiceError::Config(error) => return error.into(),
            ServiceError::NoSystemd => (
                code::REFUSED,
                Some(
                    "examples for others are in packaging/openrc and packaging/runit; `baton agent run` serves under any of them",
                ),
            ),
            ServiceError::NotRoot => {
                (code::NOT_ALLOWED, Some("put sudo before it; --dry-run needs no root"))
            }
            ServiceError::NotInstalled(_) => {
                (code::REFUSED, Some("`baton service install` installs it"))
            }
            ServiceError::UnknownUser(_) => {
                (code::USAGE, Some("make it first, for example: useradd --system NAME"))
            }
            ServiceError::OtherUser { .. } => (
                code::REFUSED,
                Some(
                    "give both the same --user, or --separate-mutex if they need not exclude each other",
                ),
            ),
            ServiceError::Port { .. } => {
                (code::REFUSED, Some("without --listen the next free port is taken"))
            }
            ServiceError::Busy(_) => (
                code::BUSY,
                Some("`baton queue` shows them; leave --purge out, wait for them, or give --force"),
            ),
            ServiceError::OthersState { .. } => (
                code::REFUSED,
                Some(
                    "--user with that user goes on with it; `baton service uninstall --purge` removes it",
                ),
            ),
            ServiceError::RootsScripts(_) => {
                (code::BUSY, Some("`baton agent drain` lets them end; `baton queue` shows them"))
            }
            ServiceError::Syntax { .. } => (code::USAGE, None),
            ServiceError::File { .. }
            | ServiceError::Command { .. }
            | ServiceError::Failed { .. } => (code::INTERNAL, None),
        };
        let failure = Self::new(status, error);
        hint.into_iter().fold(failure, Self::hint)
    }
}
