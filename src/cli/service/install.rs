//! `baton service install`.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;

use super::{carry_out, check_machine, failed, show};
use crate::cli::failure::{Failure, complain};
use crate::cli::screen::write_out;
use crate::config::directories::System;
use crate::config::{DEFAULT_PORT, Instance, host_name};
use crate::durable;
use crate::service::installed::Machine;
use crate::service::plan::{self, Plan, Wanted};
use crate::service::unit::unit_name;
use crate::service::{ServiceError, systemctl};
use crate::trust::Identity;

/// The stem of the agent's identity files.
const AGENT: &str = "agent";

/// Install, enable and start the agent as a service of systemd
///
/// Makes its identity and configuration if they are missing, and prints its fingerprint. What is there as
/// it should be is left alone, so it may be run again; scripts that run don't notice. With --instance it is
/// one more agent of this machine: config, state, socket and port are its own, the machine mutex is common.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct InstallArgs {
    /// Who runs the agent, and with it the scripts. Default: root, or as it was installed
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Take this file as its agent.toml; it is checked first
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where it listens: ADDRESS:PORT, or none. Default: what agent.toml says; if another agent of this
    /// machine has that port, the next free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Also when an agent of another user is installed: the two don't exclude each other
    #[arg(long)]
    separate_mutex: bool,
    /// Start it at once: the default
    #[arg(long, overrides_with = "no_start")]
    now: bool,
    /// Only install and enable it
    #[arg(long)]
    no_start: bool,
    /// Print each file and command, and change nothing; needs no root
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn install(args: InstallArgs, instance: Option<&Instance>) -> Result<ExitCode, Failure> {
    let machine = Machine::default();
    if !args.dry_run {
        check_machine()?;
    }
    let known = machine.installed().into_iter().find(|a| a.instance.as_ref() == instance);
    let user = args.user.or_else(|| known.and_then(|known| known.user));
    let user = user.filter(|user| user != "root");
    let account = user.as_deref().map(account).transpose()?;
    let wanted = Wanted {
        instance: instance.cloned(),
        user,
        config: args.config,
        listen: args.listen,
        program: std::env::current_exe()?,
        separate_mutex: args.separate_mutex,
        start: args.now || !args.no_start,
    };
    let plan = plan::install(&machine, &wanted)?;
    if args.dry_run {
        if !systemctl::is_there() {
            complain(
                "baton: systemd does not run this machine: this is what would be done under it",
            );
        }
        show(&plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    configure(&plan, instance, account)?;
    carry_out(&plan, &unit_name(instance))?;
    tell(&plan, instance, wanted.start)?;
    Ok(ExitCode::SUCCESS)
}

/// The ids of a user, as the system's own tool knows them: users need not stand in /etc/passwd.
fn account(user: &str) -> Result<(u32, u32), ServiceError> {
    let unknown = || ServiceError::UnknownUser(user.to_owned());
    let output = Command::new("getent").args(["passwd", user]).output();
    let output = output
        .map_err(|source| ServiceError::Command { command: "getent passwd".to_owned(), source })?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut fields = line.trim().split(':').skip(2);
    let mut id = || fields.next().and_then(|id| id.parse().ok()).ok_or_else(unknown);
    Ok((id()?, id()?))
}

/// Configuration and identity, readable for who runs the agent.
fn configure(
    plan: &Plan,
    instance: Option<&Instance>,
    account: Option<(u32, u32)>,
) -> Result<(), Failure> {
    let folder = System::of(instance).config;
    durable::create_dir_all(&folder, 0o755).map_err(failed(&folder))?;
    if let Some(config) = &plan.config {
        durable::replace_file(&config.path, config.text.as_bytes(), 0o644)
            .map_err(failed(&config.path))?;
    }
    Identity::load_or_create(&folder, AGENT)?;
    let (uid, gid) = account.unwrap_or((0, 0));
    let own = |path: &Path| chown(path, Some(uid), Some(gid)).map_err(failed(path));
    own(&folder)?;
    for entry in std::fs::read_dir(&folder).map_err(failed(&folder))?.flatten() {
        // The folder of the instances is no part of the default one.
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            own(&entry.path())?;
        }
    }
    Ok(())
}

/// Says what there is now, and what comes next.
fn tell(plan: &Plan, instance: Option<&Instance>, started: bool) -> Result<(), Failure> {
    let folder = System::of(instance).config;
    let fingerprint = Identity::load(&folder, AGENT)?.fingerprint();
    let unit = unit_name(instance);
    let (host, port) = (host_name(), plan.listen.map_or(DEFAULT_PORT, |address| address.port()));
    let option = instance.map(|name| format!(" --instance {name}")).unwrap_or_default();
    let serves = if started { "serves, and" } else { "is not started, but" };
    let listens = match plan.listen {
        Some(address) => format!("listens on {address}"),
        None => "serves callers of this machine only".to_owned(),
    };
    let text = format!(
        "{unit} is installed: it {serves} starts with the machine; it {listens}\n\
         configuration: {}\n\
         fingerprint: {fingerprint}\n\
         \n\
         next:\n\
         \x20 on a client:   baton identity\n\
         \x20 here:          baton{option} agent trust CLIENT-FINGERPRINT --name CLIENT\n\
         \x20 on the client: baton target add {host} {host}:{port} --fingerprint {fingerprint}\n\
         \x20 here:          baton{option} service status\n",
        folder.join("agent.toml").display(),
    );
    write_out(text.as_bytes())?;
    for note in &plan.notes {
        complain(&format!("baton: {note}"));
    }
    Ok(())
}
