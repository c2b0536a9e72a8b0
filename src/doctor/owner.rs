//! Whose the service on these folders is. One of another user than root has the system's folders, but mutexes
//! of its own: root, who looks at it, means those.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::asking::ask;
use super::scene;
use super::units::{self, Properties};
use crate::config::Directories;
use crate::process::Process;

/// Who runs the service, where that is not root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: String,
    /// `None`: no such user is known.
    pub(super) uid: Option<u32>,
    /// The folder of its mutexes, as far as it is named.
    pub(super) mutexes: Option<PathBuf>,
}

/// Asks systemd, for root only: others have folders of their own.
pub(super) fn find(folders: &Directories, agent: Option<&Process>) -> Option<Owner> {
    if !rustix::process::geteuid().is_root() || !units::is_here() {
        return None;
    }
    let unit = units::unit_of_folder(&folders.config)?;
    let properties = units::show(&unit, &["LoadState", "User", "Environment"]).ok()?;
    let owner = read(&properties)?;
    let uid = ask("getent", &["passwd", &owner.name]).ok().and_then(|line| uid_of(&line));
    // What it was started with counts, not with what it would be started next.
    let runs_with = agent.and_then(scene::environment_of).and_then(|all| folder_in(&all));
    Some(Owner { uid, mutexes: runs_with.or(owner.mutexes), ..owner })
}

fn read(properties: &Properties) -> Option<Owner> {
    let name = properties.of("User");
    if properties.of("LoadState") != "loaded" || matches!(name, "" | "root" | "0") {
        return None;
    }
    // One with a space in it is quoted, and not found.
    let named = |pair: &str| Some(pair.strip_prefix("BATON_MUTEX_DIR=")?.into());
    let mutexes = properties.of("Environment").split_whitespace().filter_map(named).next_back();
    Some(Owner { name: name.to_owned(), uid: None, mutexes })
}

fn folder_in(environment: &[(OsString, OsString)]) -> Option<PathBuf> {
    let found = environment.iter().find(|(name, _)| name == OsStr::new("BATON_MUTEX_DIR"));
    found.map(|(_, value)| value.into())
}

/// Out of a line of passwd(5).
fn uid_of(line: &str) -> Option<u32> {
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_says_who_runs_it_and_with_which_mutexes() {
        let owner = |text: &str| read(&Properties::parse(&format!("LoadState=loaded\n{text}")));
        for roots in ["", "User=root\n", "User=\n", "LoadState=not-found\nUser=deploy\n"] {
            assert_eq!(owner(roots), None, "{roots}");
        }
        let named = "User=deploy\nEnvironment=BATON_STATE_DIR=/s BATON_MUTEX_DIR=/old BATON_MUTEX_DIR=/run/m\n";
        let found = owner(named).unwrap();
        assert_eq!((found.name.as_str(), found.mutexes), ("deploy", Some("/run/m".into())));
        assert_eq!(owner("User=deploy\n").unwrap().mutexes, None);
        assert_eq!(uid_of("deploy:x:998:997::/home/deploy:/bin/sh\n"), Some(998));
        assert_eq!(uid_of(""), None);
    }
}
