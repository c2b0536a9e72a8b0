//! The mark of a hold that was given up: processes of it could not be ended, and an operator let the
//! mutex pass on all the same. The next script or command that runs under it is told, once.
//!
//! It is the holder that gives it up. When that was killed too, only what can't be ended has the locks, and
//! would have them to its end: then they are given back through its own descriptors ([`give_back`]). Nobody
//! is told to pass by a lock that is held, and none is: it is free, for those outside of baton too.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::line::{Entry, Folder};
use super::{MutexError, MutexName, locks, os, status};
use crate::process::Process;

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

/// Gives back what a script holds that has no supervisor any more, for the processes that are left of it
/// and can't be ended; leaves the mark. What it was only lent stays with its lender.
///
/// # Errors
/// When others have its locks too or this user may not trace them: then nothing is given back.
pub fn give_back(
    root: &Path,
    name: &MutexName,
    script_id: &str,
    left: &[Process],
    what: &Abandoned,
) -> Result<(), MutexError> {
    let folder = Folder::open(root, name)?;
    let lock = os::open_to_read(&folder.os_lock_path())?;
    let mut held = Vec::new();
    for standing in status::status(root, name)?.line {
        if standing.who.script_id.as_deref() != Some(script_id) {
            continue;
        }
        let entry = Entry { number: standing.ticket, mode: standing.mode };
        let Some(ticket) = folder.look(entry)? else { continue };
        let tickets = copies(&folder, &ticket.file, left)?;
        if tickets.is_empty() && ticket.survivors.is_empty() {
            let source = io::Error::other("others keep its ticket, or may not be traced");
            return Err(MutexError::File { path: folder.line_path(), source });
        }
        let locks = match &lock {
            Some(lock) => copies(&folder, lock, left)?,
            None => Vec::new(),
        };
        held.push((entry, locks, tickets));
    }
    mark(root, name, what)?;
    let failed = |source| MutexError::File { path: folder.line_path(), source };
    for (entry, locks, tickets) in held {
        // As at a normal end: who wakes on the ticket finds the lock free.
        locks.iter().try_for_each(os::unlock).map_err(failed)?;
        folder.take_out(entry)?;
        tickets.iter().try_for_each(os::unlock).map_err(failed)?;
    }
    Ok(())
}

/// The open files by which these processes lock a file.
fn copies(folder: &Folder, file: &File, of: &[Process]) -> Result<Vec<File>, MutexError> {
    let failed = |source| MutexError::File { path: folder.line_path(), source };
    let file = file.metadata().map_err(failed)?;
    let locking = of.iter().flat_map(|process| {
        let numbers = locks::descriptors(process.pid, &file);
        numbers.into_iter().map(move |number| process.copy_descriptor(number).map(File::from))
    });
    locking.collect::<io::Result<_>>().map_err(failed)
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
