//! Pure: the units of systemd for an agent, and what is written of them for whom.
//!
//! 1. The package's units are the ones in `packaging/`; what `baton service install` writes is those, with
//!    another program where it is another one, and a drop-in for what differs.
//! 2. Each file that is written begins with [`MARK`]: only such a file is ever removed.

use std::path::{Path, PathBuf};

use crate::config::Instance;
use crate::config::directories::{SYSTEM_MUTEXES, System};

/// The first line of what was written.
pub const MARK: &str =
    "# Written by `baton service install`; `baton service uninstall` removes it.\n";
/// Where the package has the program.
pub const PACKAGED_PROGRAM: &str = "/usr/bin/baton";
/// Where packages put units, and where an administrator does.
pub const PACKAGED_UNITS: &str = "/usr/lib/systemd/system";
/// The administrator's.
pub const OWN_UNITS: &str = "/etc/systemd/system";

const UNIT: &str = include_str!("../../packaging/systemd/baton.service");
const TEMPLATE: &str = include_str!("../../packaging/systemd/baton@.service");
const TMPFILES: &str = include_str!("../../packaging/tmpfiles.d/baton.conf");

/// A file and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFile {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: String,
}

/// The unit of an instance.
pub fn unit_name(instance: Option<&Instance>) -> String {
    instance.map_or_else(|| "baton.service".to_owned(), |name| format!("baton@{name}.service"))
}

/// The file that has it: an instance's is the template.
pub fn unit_file(instance: Option<&Instance>) -> &'static str {
    if instance.is_some() { "baton@.service" } else { "baton.service" }
}

/// The drop-in of an instance.
pub fn drop_in_path(instance: Option<&Instance>) -> PathBuf {
    Path::new(OWN_UNITS).join(format!("{}.d/50-baton.conf", unit_name(instance)))
}

/// The mutex folder of what a user runs: a line of a mutex is for one user.
pub fn mutex_folder(user: Option<&str>) -> PathBuf {
    PathBuf::from(
        user.map_or_else(|| SYSTEM_MUTEXES.to_owned(), |u| format!("{SYSTEM_MUTEXES}-{u}")),
    )
}

/// The unit for a program that is not the package's.
pub fn unit(instance: Option<&Instance>, program: &Path) -> UnitFile {
    let text = if instance.is_some() { TEMPLATE } else { UNIT };
    // ExecStart and ExecReload.
    let packaged = format!("={PACKAGED_PROGRAM} ");
    let text = text.replace(&packaged, &format!("={} ", quoted(program)));
    let path = Path::new(OWN_UNITS).join(unit_file(instance));
    UnitFile { path, text: format!("{MARK}{text}") }
}

/// What differs for a user: who runs it, and where everything is, since a user's folders are others.
pub fn drop_in(instance: Option<&Instance>, user: &str) -> UnitFile {
    let System { config, state, runtime } = System::of(instance);
    let text = format!(
        "{MARK}[Service]\n\
         User={user}\n\
         # The folders of the service: without these its user would have those of a person.\n\
         Environment=BATON_CONFIG_DIR={} BATON_STATE_DIR={}\n\
         Environment=BATON_RUNTIME_DIR={} BATON_MUTEX_DIR={}\n",
        config.display(),
        state.display(),
        runtime.display(),
        mutex_folder(Some(user)).display(),
    );
    UnitFile { path: drop_in_path(instance), text }
}

/// The user that a drop-in names; `None`: root, as the unit says.
pub fn user_of(drop_in: &str) -> Option<&str> {
    let user = drop_in.lines().filter_map(|line| line.strip_prefix("User=")).next_back()?;
    Some(user.trim()).filter(|user| !user.is_empty() && *user != "root")
}

/// What makes the mutex folder at each boot.
pub fn tmpfiles(user: Option<&str>) -> UnitFile {
    let Some(user) = user else {
        let path = PathBuf::from("/etc/tmpfiles.d/baton.conf");
        return UnitFile { path, text: format!("{MARK}{TMPFILES}") };
    };
    let (path, folder) = (format!("/etc/tmpfiles.d/baton-{user}.conf"), mutex_folder(Some(user)));
    let text = format!("{MARK}d {0} 0755 {user} - -\nx {0}\n", folder.display());
    UnitFile { path: path.into(), text }
}

/// A path as systemd takes it in a command line.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string().replace('\\', "\\\\").replace('%', "%%");
    if text.contains([' ', '"', '\'', ';']) {
        format!("\"{}\"", text.replace('"', "\\\""))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_the_package_s_with_another_program() {
        let blue = "blue".parse().ok();
        let unit_of = |instance: Option<&Instance>| unit(instance, Path::new("/opt/my baton/100%"));
        let default = unit_of(None);
        assert_eq!(default.path, Path::new("/etc/systemd/system/baton.service"));
        assert!(default.text.starts_with(MARK));
        for does in ["Start", "Reload"].into_iter().zip(["run", "reload"]) {
            let line = format!("\nExec{}=\"/opt/my baton/100%%\" agent {}\n", does.0, does.1);
            assert!(default.text.contains(&line), "{line}: {default:?}");
        }
        let template = unit_of(blue.as_ref());
        assert_eq!(template.path, Path::new("/etc/systemd/system/baton@.service"));
        assert!(template.text.contains(" --instance %i agent run\n"), "{template:?}");
        assert_eq!(unit_name(blue.as_ref()), "baton@blue.service");
        // The template is the unit but for names.
        let keys = |text: &str| {
            let lines = text.lines().filter(|line| line.contains('=') && !line.starts_with('#'));
            lines.map(|line| line.split('=').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(keys(UNIT), keys(TEMPLATE));
    }

    #[test]
    fn no_unit_has_what_scripts_must_not_inherit() {
        for forbidden in
            ["PrivateTmp", "Protect", "NoNewPriv", "PrivateDev", "Restrict", "MemoryMax"]
        {
            for text in [UNIT, TEMPLATE] {
                assert!(!text.lines().any(|line| line.starts_with(forbidden)), "{forbidden}");
            }
        }
        for needed in ["KillMode=process", "OOMPolicy=continue", "Type=notify", "TasksMax=infinity"]
        {
            assert!(UNIT.lines().any(|line| line == needed), "{needed}");
        }
    }

    #[test]
    fn a_user_s_service_has_the_system_s_folders_and_a_mutex_folder_of_its_own() {
        let file = drop_in(None, "deploy");
        assert_eq!(file.path, Path::new("/etc/systemd/system/baton.service.d/50-baton.conf"));
        for part in
            ["User=deploy\n", "BATON_STATE_DIR=/var/lib/baton\n", "=/run/lock/baton-deploy\n"]
        {
            assert!(file.text.contains(part), "{part} in {file:?}");
        }
        assert_eq!(user_of(&file.text), Some("deploy"));
        assert_eq!(user_of("[Service]\nNice=5\n"), None);
        assert_eq!(user_of("User=root\n"), None);
        let made = tmpfiles(Some("deploy"));
        assert!(
            made.text
                .ends_with("d /run/lock/baton-deploy 0755 deploy - -\nx /run/lock/baton-deploy\n")
        );
        assert_eq!(made.path, Path::new("/etc/tmpfiles.d/baton-deploy.conf"));
    }
}
