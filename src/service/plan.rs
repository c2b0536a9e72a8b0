//! What installing and removing a service comes to: files and commands, decided before anything is changed.
//!
//! 1. A line of a mutex is for one user: an agent of another user than those of the other installed agents
//!    would not exclude them. That is refused, unless it is wanted.
//! 2. Two agents can't listen on one port: who comes second gets the next one that no configuration has.
//! 3. What is there already, as it should be, is not written again; so a second installation changes nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ServiceError;
use super::installed::{Installed, Listens, Machine};
use super::unit::{self, MARK, PACKAGED_PROGRAM, UnitFile, unit_file, unit_name};
use crate::config::directories::System;
use crate::config::{Config, ConfigError, Instance, Overrides, Sources, TEMPLATE};

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which agent.
    pub instance: Option<Instance>,
    /// Who is to run it; `None`: root.
    pub user: Option<String>,
    /// A configuration to take.
    pub config: Option<PathBuf>,
    /// Where it is to listen, as agent.toml says it.
    pub listen: Option<String>,
    /// The program.
    pub program: PathBuf,
    /// Whether it may have another user than the other agents.
    pub separate_mutex: bool,
    /// Whether it is started too.
    pub start: bool,
}

/// What is done for it, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Commands of systemd that come first.
    pub before: Vec<Vec<String>>,
    /// The configuration, unless it is there.
    pub config: Option<UnitFile>,
    /// Files of systemd that are not there as they should be.
    pub files: Vec<UnitFile>,
    /// Files that are no longer wanted.
    pub removed: Vec<PathBuf>,
    /// Commands of systemd that come last.
    pub commands: Vec<Vec<String>>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Where the agent will listen.
    pub listen: Option<SocketAddr>,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// What is to be done to install an agent.
///
/// # Errors
/// When its configuration is wrong, its port is taken, or it would exclude nobody (rule 1).
pub fn install(machine: &Machine, wanted: &Wanted) -> Result<Plan, ServiceError> {
    let others: Vec<_> =
        machine.installed().into_iter().filter(|a| a.instance != wanted.instance).collect();
    let mut plan = Plan::default();
    let user = wanted.user.as_deref();
    if let Some(other) = others.iter().find(|other| other.enabled && other.user != wanted.user) {
        if !wanted.separate_mutex {
            return Err(ServiceError::OtherUser {
                unit: other.unit(),
                user: other.user.clone().unwrap_or_else(|| "root".to_owned()),
            });
        }
        plan.notes.push(format!("it does not exclude {}, which another user runs", other.unit()));
    }
    if user.is_some() {
        let folder = unit::mutex_folder(user);
        plan.notes.push(format!(
            "its mutexes are in {}: it excludes what runs there, not what root runs",
            folder.display()
        ));
    }
    configure(machine, wanted, &others, &mut plan)?;
    for other in &others {
        if let Listens::Unknown(why) = &other.listens {
            plan.notes.push(format!("it may have the port of {}: {why}", other.unit()));
        }
    }
    let instance = wanted.instance.as_ref();
    let packaged = machine.has_packaged(unit_file(instance));
    if !packaged || wanted.program != Path::new(PACKAGED_PROGRAM) {
        plan.put(machine, unit::unit(instance, &wanted.program));
    }
    match user {
        Some(user) => plan.put(machine, unit::drop_in(instance, user)),
        None => plan.take_away(machine, unit::drop_in_path(instance)),
    }
    let tmpfiles = unit::tmpfiles(user);
    let made_by_package =
        user.is_none() && machine.has(Path::new("/usr/lib/tmpfiles.d/baton.conf"));
    let tmpfiles_path = tmpfiles.path.display().to_string();
    if made_by_package {
        plan.commands.push(words("systemd-tmpfiles --create baton.conf"));
    } else {
        plan.put(machine, tmpfiles);
        plan.commands.push(words(&format!("systemd-tmpfiles --create {tmpfiles_path}")));
    }
    let unit = unit_name(instance);
    plan.commands.push(words("systemctl daemon-reload"));
    plan.commands.push(words(&format!("systemctl enable {unit}")));
    if wanted.start {
        // What was there runs on with what it was started with; scripts don't notice a restart.
        let changed = plan.config.is_some() || !plan.files.is_empty() || !plan.removed.is_empty();
        let verb = if changed { "restart" } else { "start" };
        plan.commands.push(words(&format!("systemctl {verb} {unit}")));
    }
    Ok(plan)
}

/// What a configuration says, without the environment, which is that of whoever installs.
fn parse(path: &Path, text: &str) -> Result<Arc<Config>, ServiceError> {
    Ok(Sources::file(path.to_owned()).read_text(text, [])?.config)
}

/// The configuration: that which was given, that which is there, or a new one; with a port of its own.
fn configure(
    machine: &Machine,
    wanted: &Wanted,
    others: &[Installed],
    plan: &mut Plan,
) -> Result<(), ServiceError> {
    let path = System::of(wanted.instance.as_ref()).config.join("agent.toml");
    let known = machine.read(&path);
    let given = wanted.config.as_ref().map(|file| {
        let failed = |source| ConfigError::File { path: file.clone(), source };
        std::fs::read_to_string(file).map_err(failed)
    });
    let text = given.transpose()?.or_else(|| known.clone()).unwrap_or_else(|| TEMPLATE.to_owned());
    let source = wanted.config.as_deref().unwrap_or(&path);
    let mut config = parse(source, &text)?;
    let mut new = text;
    if let Some(listen) = &wanted.listen {
        // Once as a flag: what is wrong with it is no mistake of the file.
        let flag = Overrides { listen: Some(listen.clone()), ..Overrides::default() };
        Sources::new(source.to_owned(), flag).read_text(&new, [])?;
        new = with_listen(source, &new, listen)?;
        config = parse(source, &new)?;
    }
    let holder = |port: u16| others.iter().find(|o| o.address().is_some_and(|a| a.port() == port));
    if let Some(address) = config.listen
        && address.port() != 0
        && let Some(holder) = holder(address.port())
    {
        if wanted.listen.is_some() {
            return Err(ServiceError::Port { port: address.port(), unit: holder.unit() });
        }
        let free = (address.port()..=u16::MAX).find(|port| holder_free(others, *port));
        let port =
            free.ok_or_else(|| ServiceError::Port { port: address.port(), unit: holder.unit() })?;
        plan.notes.push(format!(
            "port {} is that of {}: it listens on {port}, which agent.toml says now",
            address.port(),
            holder.unit()
        ));
        let address = SocketAddr::new(address.ip(), port);
        new = with_listen(source, &new, &address.to_string())?;
        config = parse(source, &new)?;
    }
    plan.listen = config.listen;
    if known.as_deref() != Some(&new) {
        plan.config = Some(UnitFile { path, text: new });
    }
    Ok(())
}

fn holder_free(others: &[Installed], port: u16) -> bool {
    others.iter().all(|other| other.address().is_none_or(|address| address.port() != port))
}

/// The configuration with another address; comments and order stay.
fn with_listen(path: &Path, text: &str, listen: &str) -> Result<String, ServiceError> {
    let default = "#listen = \"0.0.0.0:10950\"\n";
    if text.contains(default) {
        let line = format!("listen = {}\n", toml_edit::Value::from(listen));
        return Ok(text.replacen(default, &line, 1));
    }
    let mut document: toml_edit::DocumentMut = text.parse().map_err(|source| {
        ServiceError::Syntax { path: path.to_owned(), source: Box::new(source) }
    })?;
    document["listen"] = toml_edit::value(listen);
    Ok(document.to_string())
}

/// What is to be done to remove an agent; nothing when it is not there.
pub fn uninstall(machine: &Machine, instance: Option<&Instance>) -> Plan {
    let unit = unit_name(instance);
    let mut plan = Plan::default();
    let installed = machine.installed();
    let own = installed.iter().find(|agent| agent.instance.as_ref() == instance);
    let others: Vec<_> =
        installed.iter().filter(|a| a.enabled && a.instance.as_ref() != instance).collect();
    let file = unit_file(instance);
    let own_unit = Path::new(unit::OWN_UNITS).join(file);
    let is_enabled = own.is_some_and(|agent| agent.enabled);
    if is_enabled || machine.has_packaged(file) || machine.has(&own_unit) {
        plan.before.push(words(&format!("systemctl disable --now {unit}")));
        plan.commands.push(words("systemctl daemon-reload"));
    }
    plan.take_away(machine, unit::drop_in_path(instance));
    // The template is that of all instances.
    if instance.is_none() || !others.iter().any(|other| other.instance.is_some()) {
        plan.take_away(machine, own_unit);
    }
    let user = own.and_then(|agent| agent.user.clone());
    if !others.iter().any(|other| other.user == user) {
        plan.take_away(machine, unit::tmpfiles(user.as_deref()).path);
    }
    plan
}

impl Plan {
    /// Writes a file, unless it is there as it should be.
    fn put(&mut self, machine: &Machine, file: UnitFile) {
        if machine.read(&file.path).as_deref() != Some(&file.text) {
            self.files.push(file);
        }
    }

    /// Removes a file, if it is there and was written by an installation.
    fn take_away(&mut self, machine: &Machine, path: PathBuf) {
        if machine.read(&path).is_some_and(|text| text.starts_with(MARK)) {
            self.removed.push(path);
        }
    }
}

#[cfg(test)]
mod tests;
