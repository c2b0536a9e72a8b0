//! `baton service install`.

use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;

use super::{carry_out, check_machine, failed, show};
use crate::cli::failure::{Failure, complain};
use crate::cli::screen::write_out;
use crate::client::embedded::count_living;
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
    let account = user.as_deref().map(account).transpose()?.filter(|account| account.uid != 0);
    check_state(instance, account.as_ref())?;
    let user = account.as_ref().map(|account| account.name.clone());
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
    configure(&plan, instance, account.as_ref())?;
    carry_out(&plan, &unit_name(instance))?;
    tell(&plan, instance, wanted.start)?;
    Ok(ExitCode::SUCCESS)
}

/// A user of this machine.
#[derive(Debug)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// A user by name or number, as the system's own tool knows it: users need not stand in /etc/passwd.
fn account(user: &str) -> Result<Account, ServiceError> {
    let output = Command::new("getent").args(["--", "passwd", user]).output();
    let output = output
        .map_err(|source| ServiceError::Command { command: "getent passwd".to_owned(), source })?;
    read_account(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| ServiceError::UnknownUser(user.to_owned()))
}

/// A line of passwd(5).
fn read_account(line: &str) -> Option<Account> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?.to_owned();
    let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Account { name, uid, gid })
}

/// Whether the state that is there may be this user's.
///
/// # Security
/// systemd gives the state to who runs the agent. What one user wrote there, a queued script say, another
/// one would run; and a supervisor that still runs would write into another's folder.
fn check_state(instance: Option<&Instance>, account: Option<&Account>) -> Result<(), ServiceError> {
    let state = System::of(instance).state;
    // None yet, or a dry run that may not look.
    let Ok(found) = state.metadata() else { return Ok(()) };
    let (owner, wanted) = (found.uid(), account.map_or(0, |account| account.uid));
    if owner == wanted {
        return Ok(());
    }
    if owner != 0 {
        return Err(ServiceError::OthersState { path: state, owner });
    }
    match count_living(&state) {
        0 => Ok(()),
        running => Err(ServiceError::RootsScripts(running)),
    }
}

/// Configuration and identity, readable for who runs the agent.
///
/// # Security
/// All of it is root's but the agent's key, which nobody but its owner may read: who may write there has
/// what root's commands read and write there, root's own identity and the other instances.
fn configure(
    plan: &Plan,
    instance: Option<&Instance>,
    account: Option<&Account>,
) -> Result<(), Failure> {
    let folder = System::of(instance).config;
    durable::create_dir_all(&folder, 0o755).map_err(failed(&folder))?;
    lchown(&folder, Some(0), None).map_err(failed(&folder))?;
    if let Some(config) = &plan.config {
        durable::replace_file(&config.path, config.text.as_bytes(), 0o644)
            .map_err(failed(&config.path))?;
    }
    Identity::load_or_create(&folder, AGENT)?;
    let (uid, gid) = account.map_or((0, 0), |account| (account.uid, account.gid));
    let key = Identity::key_path(&folder, AGENT);
    Ok(lchown(&key, Some(uid), Some(gid)).map_err(failed(&key))?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_by_its_own_name_whatever_it_was_called() {
        let account = read_account("toor:x:0:7:,,,:/root:/bin/sh\n").unwrap();
        assert_eq!((account.name.as_str(), account.uid, account.gid), ("toor", 0, 7));
        for none in ["", "toor", "toor:x", "Usage: getent [OPTION...]", "toor:x:y:0:::"] {
            assert!(read_account(none).is_none(), "{none:?}");
        }
    }
}
