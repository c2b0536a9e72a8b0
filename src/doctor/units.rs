//! What systemd says of baton's units: asked through `systemctl`, which needs no root for it.

use std::collections::BTreeMap;
use std::path::Path;

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

/// Whether systemd runs this machine.
pub(super) fn is_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The unit of the agent on these folders, by its control group or by where its configuration is; `None`: it
/// is no service.
pub(super) fn unit(scene: &Scene) -> Option<String> {
    let groups = scene
        .process()
        .and_then(|process| std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).ok());
    groups.as_deref().and_then(unit_of_group).or_else(|| unit_of_folder(&scene.folders.config))
}

/// The unit of baton's in whose control group a process is.
fn unit_of_group(groups: &str) -> Option<String> {
    let last = |line: &str| line.rsplit('/').next().unwrap_or_default().to_owned();
    let is_own =
        |name: &String| name == UNIT || (name.starts_with("baton@") && name.ends_with(".service"));
    groups.lines().map(last).find(is_own)
}

/// The unit that has its configuration there.
pub(super) fn unit_of_folder(config: &Path) -> Option<String> {
    let below = config.strip_prefix(CONFIG).ok()?;
    match below.strip_prefix("instances") {
        _ if below.as_os_str().is_empty() => Some(UNIT.to_owned()),
        Ok(name) if name.components().count() == 1 => {
            Some(format!("baton@{}.service", name.display()))
        }
        Ok(_) | Err(_) => None,
    }
}

/// Some properties of a unit, also of one that is not installed.
pub(super) fn show(unit: &str, names: &[&str]) -> Result<Properties, AskError> {
    let names = format!("--property={}", names.join(","));
    Ok(Properties::parse(&ask("systemctl", &["show", "--no-pager", &names, unit])?))
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
            ("0::/system.slice/baton.service", Some("baton.service")),
            (
                "1:name=systemd:/system.slice/system-baton.slice/baton@a.service\n0::/",
                Some("baton@a.service"),
            ),
            ("0::/user.slice/session-1.scope", None),
            ("0::/", None),
        ] {
            assert_eq!(unit_of_group(groups).as_deref(), unit, "{groups}");
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
