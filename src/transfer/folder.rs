//! A folder that is held open, and what is directly in it. Nothing here follows a link, except
//! [`Folder::open`], whose path is the operator's own word.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstatvfs, mkdirat, openat, renameat, statat};

use super::step;

/// The permission bits of a folder that an upload needs.
const FOLDER_MODE: u32 = 0o755;
/// Those of the staging folder: what grows there is nobody else's.
pub(super) const HIDDEN_MODE: u32 = 0o700;

/// A folder, whatever becomes of its path.
#[derive(Debug)]
pub(super) struct Folder {
    file: File,
}

/// What a name in a folder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    File,
    Folder,
    Link,
    /// A pipe, a socket, a device.
    Other,
}

/// Which file it is, whatever its name.
pub(super) type Inode = (u64, u64);

/// Which file an open one is.
pub(super) fn inode(metadata: &Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

impl Folder {
    /// Opens the folder at a path; links in it are followed.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        step::step()?;
        let flags = OFlags::DIRECTORY.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Ok(Self { file })
    }

    /// The same folder once more.
    pub(super) fn again(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// Opens a folder in it.
    pub(super) fn child(&self, name: &str) -> io::Result<Self> {
        step::step()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.file, name, flags, Mode::empty())?);
        Ok(Self { file })
    }

    /// Opens a folder in it, and makes it if it isn't there, durable.
    pub(super) fn child_or_new(&self, name: &str) -> io::Result<Self> {
        self.child_or_new_with(name, FOLDER_MODE)
    }

    pub(super) fn child_or_new_with(&self, name: &str, mode: u32) -> io::Result<Self> {
        step::step()?;
        match mkdirat(&self.file, name, Mode::from_raw_mode(mode)) {
            Ok(()) => self.sync()?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.child(name)
    }

    /// What is at a name, and which file it is.
    pub(super) fn find(&self, name: &str) -> io::Result<(Found, Option<Inode>)> {
        step::step()?;
        let stat = match statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => return Ok((Found::Nothing, None)),
            Err(error) => return Err(error.into()),
        };
        let found = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Found::File,
            FileType::Directory => Found::Folder,
            FileType::Symlink => Found::Link,
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Found::Other,
        };
        Ok((found, Some((stat.st_dev, stat.st_ino))))
    }

    /// Opens a file in it for reading. A pipe that took its place can't hang it.
    pub(super) fn open_file(&self, name: &str) -> io::Result<File> {
        step::step()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.file, name, flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Opens a file in it for reading and writing, and makes it if it isn't there.
    pub(super) fn open_or_new_file(&self, name: &str) -> io::Result<File> {
        step::step()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(openat(&self.file, name, flags | OFlags::CLOEXEC, mode)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Moves a file of it to a name in another folder, where it takes the place of what is there.
    pub(super) fn move_to(&self, name: &str, folder: &Self, new_name: &str) -> io::Result<()> {
        step::step()?;
        Ok(renameat(&self.file, name, &folder.file, new_name)?)
    }

    /// Removes a file of it.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        step::step()?;
        Ok(rustix::fs::unlinkat(&self.file, name, AtFlags::empty())?)
    }

    /// The names in it.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        step::step()?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.file)? {
            // Others' names than ours may be anything.
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    /// How many bytes the disk has for this user.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        step::step()?;
        let disk = fstatvfs(&self.file)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Which file system it is on.
    pub(super) fn device(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.dev())
    }

    /// What is known of the folder itself.
    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Makes durable what was made, moved or removed in it.
    pub(super) fn sync(&self) -> io::Result<()> {
        step::step()?;
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_is_followed_and_no_pipe_hangs() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("folder")).unwrap();
        symlink("/etc/passwd", root.path().join("file")).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, mode, 0).unwrap();
        let folder = Folder::open(root.path()).unwrap();
        folder.child("folder").unwrap_err();
        folder.child_or_new("folder").unwrap_err();
        folder.open_file("file").unwrap_err();
        folder.open_or_new_file("file").unwrap_err();
        folder.open_file("pipe").unwrap_err();
        folder.open_or_new_file("pipe").unwrap_err();
        folder.open_or_new_file("folder").unwrap_err();
        assert_eq!(folder.find("file").unwrap().0, Found::Link);
        assert_eq!(folder.find("pipe").unwrap().0, Found::Other);
        assert_eq!(folder.find("none").unwrap().0, Found::Nothing);
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
