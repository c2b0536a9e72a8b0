//! Which process has a lock by which descriptor, as `/proc` tells.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::FlockOperation;

use super::subject::flock;

/// How far up it looks.
const MAX_ANCESTORS: usize = 64;

/// Whether the open file itself has a lock.
///
/// # Errors
/// When the system does not tell.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    Ok(has_lock(&info))
}

/// Whether a process that waits for this one, one of its ancestors, has a lock on the file. What
/// can't be seen (another user's process, say) counts as no.
///
/// A script that holds a file shared, and starts another that takes it shared too, gets it from the
/// system at once. In a line it would stand behind whoever waits for the script itself, and neither
/// would ever end.
pub(super) fn is_held_by_ancestor(file: &File) -> bool {
    let Ok(wanted) = file.metadata() else {
        return false;
    };
    let ancestors = std::iter::successors(parent("self"), |pid| parent(pid));
    ancestors.take(MAX_ANCESTORS).any(|pid| !locking(&pid, &wanted).is_empty())
}

/// Gives back what this process has locked of the file by other descriptors; says whether there was
/// anything.
pub(super) fn unlock_own(file: &File) -> io::Result<bool> {
    let own = locking("self", &file.metadata()?);
    for number in &own {
        flock(&super::unix::open_file(*number)?, FlockOperation::Unlock)?;
    }
    Ok(!own.is_empty())
}

/// The process that started this one. The kernel's own have none.
fn parent(pid: &str) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have spaces and parentheses.
    let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?;
    (parent != "0").then(|| parent.to_owned())
}

/// The descriptors of a process that have a lock on the file.
fn locking(pid: &str, wanted: &Metadata) -> Vec<RawFd> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let locking = descriptors.filter_map(|descriptor| {
        let found = std::fs::metadata(descriptor.path()).ok()?;
        let number: RawFd = descriptor.file_name().to_str()?.parse().ok()?;
        let is_wanted = found.dev() == wanted.dev() && found.ino() == wanted.ino();
        let info = || std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        (is_wanted && has_lock(&info().ok()?)).then_some(number)
    });
    locking.collect()
}

/// A line such as `lock: 1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF`.
fn has_lock(info: &str) -> bool {
    info.lines().any(|line| line.starts_with("lock:") && line.contains(" FLOCK "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutex::os;

    #[test]
    fn a_lock_belongs_to_the_open_file_not_to_the_path() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(path.path()).unwrap();
        let (one, other) = (open(), open());
        assert!(!is_locked(&one).unwrap());
        assert!(os::try_lock_exclusive(&one).unwrap());
        assert!(is_locked(&one).unwrap() && is_locked(&one.try_clone().unwrap()).unwrap());
        assert!(!is_locked(&other).unwrap());
        // This process is none of its own ancestors.
        assert!(!is_held_by_ancestor(&other));
        assert!(unlock_own(&other).unwrap() && !unlock_own(&other).unwrap());
        assert!(os::try_lock_exclusive(&other).unwrap());
    }
}
