//! What older releases left on disk: tests/compat/VERSION, made by tests/compat/make.sh. A test works on a copy.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{World, finish};

/// The name under which the copy stands in a world.
pub const OLD: &str = "old";

/// A release whose files are kept.
pub struct Release {
    pub folder: PathBuf,
}

/// All of them.
pub fn releases() -> Vec<Release> {
    let entries = std::fs::read_dir("tests/compat").unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> =
        entries.filter(|folder| folder.join("machine.tar.gz").exists()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders.into_iter().map(|folder| Release { folder }).collect()
}

/// The newest one.
pub fn newest() -> Release {
    releases().pop().unwrap()
}

impl Release {
    /// Puts a copy of its machine into a world.
    pub fn unpack(&self, world: &World) {
        let into = world.path(OLD);
        std::fs::create_dir_all(&into).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(self.folder.join("machine.tar.gz")).arg("-C").arg(&into);
        // Files of root, unpacked by whoever runs the test.
        let (code, _, error) = finish(tar.args(["--no-same-owner", "--preserve-permissions"]));
        assert_eq!(code, 0, "{error}");
        std::fs::rename(into.join("mutex"), world.mutexes()).unwrap();
    }

    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
    }

    /// The scripts that were done, as `baton list --json` showed them.
    pub fn history(&self) -> Vec<Value> {
        json_lines(&self.text("history.jsonl"))
    }

    /// A file for each older version of its database, with that version.
    pub fn databases(&self) -> Vec<(u64, PathBuf)> {
        let found =
            (1..).map(|version| (version, self.folder.join(format!("database-{version}.sql"))));
        found.take_while(|(_, path)| path.exists()).collect()
    }

    /// Makes the database of such a file.
    pub fn make_database(sql: &Path, database: &Path) {
        let text = std::fs::read_to_string(sql).unwrap();
        rusqlite::Connection::open(database).unwrap().execute_batch(&text).unwrap();
    }
}

/// The values of a text with one on each line.
pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The ids of listed scripts, in order.
pub fn ids(listed: &[Value]) -> Vec<&str> {
    listed.iter().map(|script| script["script_id"].as_str().unwrap()).collect()
}

/// Checks that what was listed then is listed now: each field, and the order. There may be more by now.
pub fn assert_history(kept: &[Value], now: &[Value]) {
    let kept_ids = ids(kept);
    let same: Vec<_> = now
        .iter()
        .filter(|script| kept_ids.contains(&script["script_id"].as_str().unwrap()))
        .collect();
    assert_eq!(same.len(), kept.len());
    for (kept, now) in kept.iter().zip(same) {
        for (field, value) in kept.as_object().unwrap() {
            assert_eq!(&now[field], value, "{field} of {}", kept["script_id"]);
        }
    }
}

/// Every file below a folder with its bytes, links with where they lead; pipes and SQLite's shared memory, which
/// is no content, are left out.
pub fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                folders.push(path.clone());
                found.push((path, Vec::new()));
            } else if kind.is_symlink() {
                let to = path.read_link().unwrap();
                found.push((path, to.into_os_string().into_encoded_bytes()));
            } else if kind.is_file() && !path.to_string_lossy().ends_with("-shm") {
                let bytes = std::fs::read(&path).unwrap();
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}

/// Checks that a folder has the content that it had, and names what has not.
pub fn assert_unchanged(folder: &Path, before: &[(PathBuf, Vec<u8>)]) {
    let now = content(folder);
    let differing = |one: &[(PathBuf, Vec<u8>)], other: &[(PathBuf, Vec<u8>)]| {
        let only = one.iter().filter(|file| !other.contains(file));
        only.map(|(path, _)| path.clone()).collect::<Vec<_>>()
    };
    assert_eq!((differing(before, &now), differing(&now, before)), (Vec::new(), Vec::new()));
}
