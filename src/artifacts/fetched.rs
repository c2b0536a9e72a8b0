//! A file that is being fetched: under another name until it is whole.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, fsync, openat, renameat, unlinkat};
use sha2::{Digest as _, Sha256};

use super::{ArtifactPath, Beneath};

/// A file that is not whole yet. Dropped before that, it is removed.
#[derive(Debug)]
pub struct Fetched {
    folder: OwnedFd,
    temporary: String,
    name: String,
    file: File,
    digest: Sha256,
    length: u64,
    is_whole: bool,
}

impl Fetched {
    /// Begins a file below a folder; what is at its path stays until it is whole.
    ///
    /// # Errors
    /// When it can't be made, or one of the folders on the way is something else.
    pub fn begin(root: &Beneath, path: &ArtifactPath) -> io::Result<Self> {
        let (folders, name) = path.parts();
        let folder = root.make_folder(&folders)?;
        // Not made of the file's name: with an ending that one could be too long.
        let temporary = format!(".baton-{}.part", uuid::Uuid::now_v7().simple());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&folder, &temporary, flags, Mode::from_raw_mode(0o666))?;
        Ok(Self {
            folder,
            temporary,
            name: name.to_owned(),
            file: file.into(),
            digest: Sha256::new(),
            length: 0,
            is_whole: false,
        })
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.digest.update(bytes);
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Begins anew.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.digest = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// The SHA-256 of what it has.
    pub fn sha256(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }

    /// It is whole: puts it on disk and at its place, instead of what is there.
    ///
    /// # Errors
    /// When the disk refuses, or a folder has its name.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        renameat(&self.folder, &self.temporary, &self.folder, &self.name)?;
        self.is_whole = true;
        Ok(fsync(&self.folder)?)
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if !self.is_whole {
            // Best effort: the name is never used again.
            unlinkat(&self.folder, &self.temporary, AtFlags::empty()).unwrap_or_default();
        }
    }
}
