//! The mark of a hold that was given up: processes of it could not be ended, and an operator let the
//! mutex pass on all the same. The next script or command that runs under it is told, once.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{MutexError, MutexName, os};

/// What the next command is told: a line of JSON in the file `abandoned` of the mutex's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    /// When.
    pub at: Timestamp,
    /// Who held it: a script's id or a command.
    pub holder: String,
    /// Why it was given up, in the operator's words.
    pub reason: String,
    /// The processes that could not be ended, as people read them.
    pub processes: Vec<String>,
}

impl Abandoned {
    /// In words.
    pub fn describe(&self, name: &MutexName) -> String {
        let Self { at, holder, reason, processes } = self;
        format!(
            "`{name}` was abandoned by {holder} at {at}, what it protects may still be in use by {}: {reason}",
            processes.join(", ")
        )
    }
}

/// Leaves the mark, behind those of others who held the mutex together with this one. The caller holds it.
///
/// # Errors
/// When it can't be written.
pub fn mark(root: &Path, name: &MutexName, what: &Abandoned) -> Result<(), MutexError> {
    let path = path(root, name);
    let failed = |source| MutexError::File { path: path.clone(), source };
    let mut line = serde_json::to_vec(what).map_err(|e| failed(e.into()))?;
    line.push(b'\n');
    let mut options = OpenOptions::new();
    let options = options.append(true).create(true).mode(0o600).custom_flags(os::plain_flags());
    // One write, so that none is torn.
    options.open(&path).and_then(|mut file| file.write_all(&line)).map_err(failed)
}

/// Takes the marks away. The caller holds the mutex, and has started what it holds it for.
pub fn take(root: &Path, name: &MutexName) -> Vec<Abandoned> {
    let taken = path(root, name).with_extension(std::process::id().to_string());
    // Of several who hold it together, one takes them.
    if std::fs::rename(path(root, name), &taken).is_err() {
        return Vec::new();
    }
    let text = os::open_to_read(&taken).ok().flatten().map(io::read_to_string);
    let text = text.and_then(Result::ok).unwrap_or_default();
    std::fs::remove_file(&taken).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn path(root: &Path, name: &MutexName) -> PathBuf {
    root.join(name.as_str()).join("abandoned")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_several_are_taken_together_and_once() {
        let root = tempfile::tempdir().unwrap();
        let name: MutexName = "log".parse().unwrap();
        std::fs::create_dir(root.path().join("log")).unwrap();
        assert!(take(root.path(), &name).is_empty());
        let marks = ["a", "b"].map(|holder| Abandoned {
            at: Timestamp::now(),
            holder: holder.to_owned(),
            reason: "gone".to_owned(),
            processes: vec!["pid 7 (cat)".to_owned()],
        });
        for what in &marks {
            mark(root.path(), &name, what).unwrap();
        }
        assert_eq!(take(root.path(), &name), marks);
        assert!(take(root.path(), &name).is_empty());
    }
}
