//! The files that a script leaves for its clients, in its folder of artifacts; and putting them into a
//! folder of a client's.
//!
//! 1. Nothing outside of the folder is ever read or written: each folder on the way is opened by itself,
//!    and a symbolic link is never followed.
//! 2. Only regular files are artifacts. What else is there is named, and opened by nobody: a named pipe or
//!    a device may block for ever.
//! 3. A file that is fetched is there whole or not at all.

mod beneath;
mod fetched;
mod listing;
pub mod path;

pub use beneath::Beneath;
pub use fetched::Fetched;
pub use listing::{Listing, Skipped, Why, list};
pub use path::ArtifactPath;

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// How many artifacts are listed: the list is one message of at most 4 MiB.
pub const MAX_LISTED: usize = 1000;
/// How many entries are looked at for a list: a folder may hold millions.
pub const MAX_SEEN: usize = 50_000;
/// How many of those that are no artifacts are named.
pub const MAX_SKIPPED: usize = 100;
/// How much of a file is read or sent at once.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// What could not be done with an artifact.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// There is none at that path.
    #[error("artifact {0} is not there")]
    NotFound(ArtifactPath),
    /// There is something else.
    #[error("{0} is no artifact: no regular file, or behind a symbolic link")]
    NotAFile(ArtifactPath),
    /// It is shorter than that.
    #[error("offset {offset} is beyond the end of artifact {path}, which is at {end}")]
    OffsetBeyondEnd {
        /// Which one.
        path: ArtifactPath,
        /// What was asked for.
        offset: u64,
        /// Its size.
        end: u64,
    },
    /// The system refuses.
    #[error("artifact {path}")]
    File {
        /// Which one, or the folder of all.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ArtifactError {
    fn file(path: &ArtifactPath) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_string();
        |source| Self::File { path, source }
    }
}

/// An artifact that is about to be sent: its size, its SHA-256, and its bytes from an offset on.
#[derive(Debug)]
pub struct Opened {
    /// Its size in bytes, all of it.
    pub size: u64,
    /// The SHA-256 of all of it.
    pub sha256: [u8; 32],
    file: std::fs::File,
    path: ArtifactPath,
    offset: u64,
}

impl Opened {
    /// Opens an artifact below a folder and reads it once, for its digest.
    ///
    /// # Errors
    /// When it isn't there, is no file, or has fewer bytes than `offset`.
    pub fn open(folder: &Path, path: &ArtifactPath, offset: u64) -> Result<Self, ArtifactError> {
        use std::os::unix::fs::FileExt as _;
        let file = Beneath::strict(folder).map_err(ArtifactError::file(path))?.file(path)?;
        let size = file.metadata().map_err(ArtifactError::file(path))?.len();
        if offset > size {
            return Err(ArtifactError::OffsetBeyondEnd { path: path.clone(), offset, end: size });
        }
        let (mut digest, mut at) = (Sha256::new(), 0);
        let mut buffer = vec![0; CHUNK_BYTES];
        while at < size {
            let left = usize::try_from(size - at).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let read = file.read_at(&mut buffer[..left], at).map_err(ArtifactError::file(path))?;
            if read == 0 {
                let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(ArtifactError::file(path)(cut));
            }
            digest.update(&buffer[..read]);
            at += u64::try_from(read).unwrap_or(u64::MAX);
        }
        Ok(Self { size, sha256: digest.finalize().into(), file, path: path.clone(), offset })
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// When the file can't be read, or has become shorter.
    pub fn chunk(&mut self) -> Result<Vec<u8>, ArtifactError> {
        use std::os::unix::fs::FileExt as _;
        let left = usize::try_from(self.size - self.offset).unwrap_or(usize::MAX);
        let mut chunk = vec![0; left.min(CHUNK_BYTES)];
        self.file
            .read_exact_at(&mut chunk, self.offset)
            .map_err(ArtifactError::file(&self.path))?;
        self.offset += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        Ok(chunk)
    }
}

/// A digest as people see it.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String can't fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

#[cfg(test)]
mod tests;
