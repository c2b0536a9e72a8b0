//! Pure: how long a script waited, and for whom.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many are named for whom a script waited.
pub const MAX_BLOCKERS: usize = 16;

/// How long a script waited, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// Until its first start, or until its end when it never started.
    pub time: Duration,
    /// Those that it waited for, as far as it was told: the first [`MAX_BLOCKERS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Blocker>,
}

/// Somebody who held or wanted a mutex before a script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The mutex's name.
    pub mutex: String,
    /// The script's id; empty: it was none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub script_id: String,
    /// Its process; 0: not known.
    #[serde(default)]
    pub pid: u32,
    /// The name of its user; empty: not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// What it was: the script's summary or the command line.
    pub command: String,
}

impl Blocker {
    /// In words.
    pub fn describe(&self) -> String {
        let Self { mutex, script_id, pid, user, command } = self;
        let name =
            if script_id.is_empty() { format!("pid {pid}") } else { format!("script {script_id}") };
        let more: Vec<&str> =
            [command.as_str(), user.as_str()].into_iter().filter(|text| !text.is_empty()).collect();
        let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
        format!("{name}{more}, `{mutex}`")
    }

    /// Whether both are the same claim.
    pub fn is_same(&self, other: &Self) -> bool {
        let name = |blocker: &Self| {
            // A script's process is not known before it stands in the line.
            let pid = if blocker.script_id.is_empty() { blocker.pid } else { 0 };
            (blocker.mutex.clone(), blocker.script_id.clone(), pid)
        };
        name(self) == name(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_known_by_its_id_and_others_by_their_process() {
        let blocker = |script_id: &str, pid| Blocker {
            mutex: "machine".to_owned(),
            script_id: script_id.to_owned(),
            pid,
            user: String::new(),
            command: "deploy".to_owned(),
        };
        assert!(blocker("a", 0).is_same(&blocker("a", 7)));
        assert!(!blocker("a", 0).is_same(&blocker("b", 0)));
        assert!(!blocker("", 8).is_same(&blocker("", 7)));
        assert_eq!(blocker("a", 7).describe(), "script a (deploy), `machine`");
        assert_eq!(blocker("", 7).describe(), "pid 7 (deploy), `machine`");
    }
}
