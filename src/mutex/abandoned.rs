//! The mark of a hold that was given up: processes of it could not be ended, and an operator let the
//! mutex pass on all the same. The next script or command that runs under it is told, once.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{MutexError, MutexName, os};

/// What the next command is told: JSON in the file `abandoned` of the mutex's folder.
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

/// Leaves the mark. The caller holds the mutex.
///
/// # Errors
/// When it can't be written.
pub fn mark(root: &Path, name: &MutexName, what: &Abandoned) -> Result<(), MutexError> {
    let path = path(root, name);
    let failed = |source| MutexError::File { path: path.clone(), source };
    let text = serde_json::to_vec(what).map_err(|e| failed(e.into()))?;
    let mut file = os::open_plain(&path, 0o600)?;
    file.set_len(0).and_then(|()| file.write_all(&text)).map_err(failed)
}

/// Takes the mark away; `None` when there is none. The caller holds the mutex.
pub fn take(root: &Path, name: &MutexName) -> Option<Abandoned> {
    let path = path(root, name);
    let text = io::read_to_string(os::open_to_read(&path).ok()??).ok()?;
    std::fs::remove_file(&path).ok()?;
    serde_json::from_str(&text).ok()
}

fn path(root: &Path, name: &MutexName) -> PathBuf {
    root.join(name.as_str()).join("abandoned")
}
