//! The file that is to be locked: opened by its path, or inherited as a descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::LockError;
use super::locked::{Locked, Place};

/// A file that is to be locked.
#[derive(Debug)]
pub struct Subject {
    pub(super) file: File,
    /// Where it is, when it still is there: without links and dots.
    pub(super) path: Option<PathBuf>,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Opened,
    Inherited,
}

impl Subject {
    /// Opens a file, made if need be, or a folder.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open(path, OFlags::RDONLY)?;
        let path = std::fs::canonicalize(path).ok().filter(|path| is_at(&file, path));
        Ok(Self { file, path, origin: Origin::Opened })
    }

    /// What this process was started with, by its descriptor's number.
    ///
    /// # Errors
    /// When there is no such descriptor.
    pub fn inherited(number: i32) -> io::Result<Self> {
        let file = super::unix::open_file(number)?;
        let path = std::fs::read_link(descriptor_path(&file)).ok();
        let path = path.filter(|path| is_at(&file, path));
        Ok(Self { file, path, origin: Origin::Inherited })
    }

    /// Where it is.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(super) fn is_inherited(&self) -> bool {
        self.origin == Origin::Inherited
    }

    /// Gives the lock of this open file back, whoever took it.
    ///
    /// # Errors
    /// When it is something that has no locks.
    pub fn unlock(self) -> Result<Locked, LockError> {
        flock(&self.file, FlockOperation::Unlock).map_err(LockError::Lock)?;
        Ok(Locked { file: self.file, place: Place::None })
    }

    /// Takes the lock if nobody is in the way; says whether it did.
    pub(super) fn try_lock(&mut self, exclusive: bool) -> Result<bool, LockError> {
        let operation = if exclusive {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        let mut locked = flock(&self.file, operation);
        // On NFS an exclusive lock needs a file that is open for writing.
        let is_refused = locked.as_ref().is_err_and(|e| is_errno(e, &[Errno::BADF, Errno::IO]));
        if is_refused && exclusive && !self.is_inherited() {
            let again = self.path.as_ref().and_then(|path| open(path, OFlags::RDWR).ok());
            if let Some(file) = again.filter(|again| is_same(again, &self.file)) {
                self.file = file;
                locked = flock(&self.file, operation);
            }
        }
        match locked {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            other => other.map(|()| true).map_err(LockError::Lock),
        }
    }

    /// What a sleeper waits with. Its lock ends with this process; one that comes too late must not
    /// stay on a descriptor that others have too.
    pub(super) fn to_sleep_on(&self, deadline: Option<Instant>) -> io::Result<File> {
        let is_file = self.file.metadata().is_ok_and(|found| found.is_file() || found.is_dir());
        if self.is_inherited() && deadline.is_some() && is_file {
            let path = descriptor_path(&self.file);
            for flags in [OFlags::RDONLY, OFlags::WRONLY] {
                let flags = flags | OFlags::NOCTTY | OFlags::CLOEXEC;
                if let Ok(again) = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()) {
                    return Ok(again.into());
                }
            }
        }
        self.file.try_clone()
    }
}

fn open(path: &Path, access: OFlags) -> io::Result<File> {
    let flags = access | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let opened = match rustix::fs::open(path, flags | OFlags::CREATE, mode) {
        // A folder is opened, not made.
        Err(Errno::ISDIR) => rustix::fs::open(path, flags, mode),
        other => other,
    };
    Ok(opened?.into())
}

fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn is_at(file: &File, path: &Path) -> bool {
    let Ok((open, found)) = file.metadata().and_then(|open| Ok((open, path.metadata()?))) else {
        return false;
    };
    open.dev() == found.dev() && open.ino() == found.ino()
}

fn is_same(one: &File, other: &File) -> bool {
    is_at(one, &descriptor_path(other))
}

pub(super) fn is_errno(error: &io::Error, among: &[Errno]) -> bool {
    among.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

pub(super) fn flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::held;
    use super::*;
    use crate::mutex::os;

    #[test]
    fn a_lock_that_comes_too_late_does_not_stay_on_an_inherited_descriptor() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let shared_with_others = File::open(path.path()).unwrap();
        let subject = Subject::inherited(shared_with_others.as_raw_fd()).unwrap();
        let sleep = |deadline| {
            let slept_on = subject.to_sleep_on(deadline).unwrap();
            assert!(os::try_lock_exclusive(&slept_on).unwrap());
            held::is_locked(&shared_with_others)
        };
        assert!(!sleep(Some(Instant::now())));
        assert!(sleep(None));
    }

    #[test]
    fn a_number_that_is_no_descriptor_is_an_error() {
        for number in [-1, i32::MAX] {
            let error = Subject::inherited(number).unwrap_err();
            assert!(is_errno(&error, &[Errno::BADF]), "{error}");
        }
    }
}
