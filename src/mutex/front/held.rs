//! Whether this process, or one that waits for it, has the lock already.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use rustix::fs::FlockOperation;

use super::subject::flock;
use crate::mutex::locks;
use crate::process;

/// Whether the open file itself has a lock.
pub(super) fn is_locked(file: &File) -> bool {
    locks::is_locking(std::process::id(), file.as_raw_fd())
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
    let above = process::ancestors().skip(1);
    above.into_iter().any(|process| !locks::descriptors(process.pid, &wanted).is_empty())
}

/// Gives back what this process has locked of the file by other descriptors; says whether there was
/// anything.
pub(super) fn unlock_own(file: &File) -> io::Result<bool> {
    let own = locks::descriptors(std::process::id(), &file.metadata()?);
    for number in &own {
        flock(&super::unix::open_file(*number)?, FlockOperation::Unlock)?;
    }
    Ok(!own.is_empty())
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
        assert!(!is_locked(&one));
        assert!(os::try_lock_exclusive(&one).unwrap());
        assert!(is_locked(&one) && is_locked(&one.try_clone().unwrap()));
        assert!(!is_locked(&other));
        // This process is none of its own ancestors.
        assert!(!is_held_by_ancestor(&other));
        assert!(unlock_own(&other).unwrap() && !unlock_own(&other).unwrap());
        assert!(os::try_lock_exclusive(&other).unwrap());
    }
}
