//! A folder that is never left: whatever is below is opened part by part, and no symbolic link is
//! followed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, statat};
use rustix::io::Errno;

use super::{ArtifactError, ArtifactPath};

/// How a folder on the way is opened.
const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A folder.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
}

impl Beneath {
    /// A folder that may be no link itself.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn strict(path: &Path) -> io::Result<Self> {
        Ok(Self { root: openat(CWD, path, FOLDER, Mode::empty())? })
    }

    /// A folder that its owner chose, wherever the path leads; made if need be.
    ///
    /// # Errors
    /// When it can't be made or opened.
    pub fn chosen(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let flags = FOLDER.difference(OFlags::NOFOLLOW);
        Ok(Self { root: openat(CWD, path, flags, Mode::empty())? })
    }

    /// A folder below.
    ///
    /// # Errors
    /// When it isn't there, or one on the way is a link.
    pub(super) fn folder(&self, names: &[&str]) -> io::Result<OwnedFd> {
        let mut folder = openat(&self.root, ".", FOLDER, Mode::empty())?;
        for name in names {
            folder = openat(&folder, *name, FOLDER, Mode::empty())?;
        }
        Ok(folder)
    }

    /// The same, made where it isn't there.
    pub(super) fn make_folder(&self, names: &[&str]) -> io::Result<OwnedFd> {
        let mut folder = openat(&self.root, ".", FOLDER, Mode::empty())?;
        for name in names {
            match mkdirat(&folder, *name, Mode::from_raw_mode(0o777)) {
                Err(Errno::EXIST) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            folder = openat(&folder, *name, FOLDER, Mode::empty())?;
        }
        Ok(folder)
    }

    /// Opens a regular file to read it.
    ///
    /// # Errors
    /// When it isn't there or is something else.
    pub fn file(&self, path: &ArtifactPath) -> Result<File, ArtifactError> {
        let refused = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => ArtifactError::NotFound(path.clone()),
            // A link, or a file where a folder should be.
            Some(Errno::LOOP | Errno::NOTDIR) => ArtifactError::NotAFile(path.clone()),
            _ => ArtifactError::file(path)(error),
        };
        let (folders, name) = path.parts();
        let folder = self.folder(&folders).map_err(refused)?;
        // Looked at before it is opened: to open a device may do something.
        let found = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW);
        let found = found.map_err(|error| refused(error.into()))?;
        let is_file = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
        if !is_file(found.st_mode) {
            return Err(ArtifactError::NotAFile(path.clone()));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(&folder, name, flags, Mode::empty());
        let file = File::from(opened.map_err(|error| refused(error.into()))?);
        // Once more: the name may be another's by now.
        let opened = rustix::fs::fstat(&file).map_err(|error| refused(error.into()))?;
        if is_file(opened.st_mode) { Ok(file) } else { Err(ArtifactError::NotAFile(path.clone())) }
    }
}
