//! What systemd says of baton's units: asked through `systemctl`, which needs no root for it. A user's own agent
//! may be a unit of that user's manager (`systemctl --user`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::asking::{AskError, ask};
use super::scene::Scene;

/// The unit of the instance without a name.
const UNIT: &str = "baton.service";
/// Where the instance without a name has its configuration, and below which the others have theirs.
const CONFIG: &str = "/etc/baton";

/// The properties of a unit, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Out of what `systemctl show` writes of one unit.
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    /// A property; empty when it is not there.
    pub(super) fn of(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A number, where `infinity` is the greatest.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.of(name) {
            "infinity" => Some(u64::MAX),
            text => text.parse().ok(),
        }
    }
}

/// A unit of baton's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) name: String,
    pub(super) manager: Manager,
}

/// Who has a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manager {
    /// The system's.
    System,
    /// That of the user with this number.
    User(u32),
}

impl Unit {
    fn of_system(name: &str) -> Self {
        Self { name: name.to_owned(), manager: Manager::System }
    }
}

impl Manager {
    /// What stands behind `systemctl` and `journalctl`.
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::System => "",
            Self::User(_) => " --user",
        }
    }
}

/// Whether systemd runs this machine.
pub(super) fn is_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The unit of the agent on these folders, by its control group or by where its configuration is; `None`: it
/// is no service.
pub(super) fn unit(scene: &Scene) -> Option<Unit> {
    let groups = scene
        .process()
        .and_then(|process| std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).ok());
    let config = &scene.folders.config;
    let of_system = || unit_of_folder(config).map(|name| Unit::of_system(&name));
    groups.as_deref().and_then(unit_of_group).or_else(of_system).or_else(|| own_unit(config))
}

/// The unit of this user for the agent on this user's own folders, where there is such a manager.
fn own_unit(config: &Path) -> Option<Unit> {
    let uid = rustix::process::geteuid();
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    let has_manager = runtime_of(uid.as_raw()).join("systemd").is_dir();
    let name = unit_below(config, &base.join("baton"))?;
    (!uid.is_root() && has_manager).then(|| Unit { name, manager: Manager::User(uid.as_raw()) })
}

fn runtime_of(uid: u32) -> PathBuf {
    PathBuf::from(format!("/run/user/{uid}"))
}

/// The unit of baton's in whose control group a process is.
fn unit_of_group(groups: &str) -> Option<Unit> {
    let is_own =
        |name: &str| name == UNIT || (name.starts_with("baton@") && name.ends_with(".service"));
    let uid_of = |part: &str| -> Option<u32> {
        part.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok()
    };
    groups.lines().find_map(|line| {
        let name = line.rsplit('/').next().filter(|name| is_own(name))?;
        let user = line.split('/').find_map(uid_of);
        let manager = user.map_or(Manager::System, Manager::User);
        Some(Unit { name: name.to_owned(), manager })
    })
}

/// The unit that has its configuration there.
pub(super) fn unit_of_folder(config: &Path) -> Option<String> {
    unit_below(config, Path::new(CONFIG))
}

fn unit_below(config: &Path, default: &Path) -> Option<String> {
    let below = config.strip_prefix(default).ok()?;
    match below.strip_prefix("instances") {
        _ if below.as_os_str().is_empty() => Some(UNIT.to_owned()),
        Ok(name) if name.components().count() == 1 => {
            Some(format!("baton@{}.service", name.display()))
        }
        Ok(_) | Err(_) => None,
    }
}

/// Some properties of a unit of the system, also of one that is not installed.
pub(super) fn show(unit: &str, names: &[&str]) -> Result<Properties, AskError> {
    show_of(&Unit::of_system(unit), names)
}

/// The same of any unit.
pub(super) fn show_of(unit: &Unit, names: &[&str]) -> Result<Properties, AskError> {
    let names = format!("--property={}", names.join(","));
    let words = ["show", "--no-pager", &names, &unit.name];
    let said = match unit.manager {
        Manager::System => ask("systemctl", &words)?,
        // It finds the manager by this variable, which cron and su don't set.
        Manager::User(uid) => {
            let runtime = format!("XDG_RUNTIME_DIR={}", runtime_of(uid).display());
            let user = [runtime.as_str(), "systemctl", "--user"];
            ask("env", &[user.as_slice(), words.as_slice()].concat())?
        }
    };
    Ok(Properties::parse(&said))
}

/// Whether a user's manager runs without a login of that user; `None`: nobody says so.
pub(super) fn lingers(uid: u32) -> Option<bool> {
    let said = ask("loginctl", &["show-user", "--property=Linger", &uid.to_string()]).ok()?;
    Some(Properties::parse(&said).of("Linger") == "yes")
}

/// The name, user and state of all units of baton's.
pub(super) fn instances() -> Result<Vec<Properties>, AskError> {
    let list = ["list-units", "--all", "--plain", "--no-legend", "--no-pager"];
    let words: Vec<&str> = list.into_iter().chain([UNIT, "baton@*.service"]).collect();
    let listed = ask("systemctl", &words)?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.map(|name| show(name, &["Id", "LoadState", "ActiveState", "User"])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_known_by_its_group_or_its_folder() {
        for (groups, unit) in [
            ("0::/system.slice/baton.service", Some(("baton.service", Manager::System))),
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/baton.service",
                Some(("baton.service", Manager::User(7))),
            ),
            (
                "1:name=systemd:/system.slice/system-baton.slice/baton@a.service\n0::/",
                Some(("baton@a.service", Manager::System)),
            ),
            ("0::/user.slice/session-1.scope", None),
            ("0::/", None),
        ] {
            let unit = unit.map(|(name, manager)| Unit { name: name.to_owned(), manager });
            assert_eq!(unit_of_group(groups), unit, "{groups}");
        }
        for (folder, unit) in [
            ("/etc/baton", Some("baton.service")),
            ("/etc/baton/instances/a", Some("baton@a.service")),
            ("/etc/baton/instances", None),
            ("/home/x/.config/baton", None),
        ] {
            assert_eq!(unit_of_folder(Path::new(folder)).as_deref(), unit, "{folder}");
        }
    }

    #[test]
    fn properties_are_lines_and_infinity_is_a_number() {
        let properties =
            Properties::parse("KillMode=process\nTasksMax=infinity\nEnvironment=A=B\n");
        assert_eq!(properties.of("KillMode"), "process");
        assert_eq!(properties.of("Environment"), "A=B");
        assert_eq!(properties.number("TasksMax"), Some(u64::MAX));
        assert_eq!(properties.number("KillMode"), None);
    }
}
