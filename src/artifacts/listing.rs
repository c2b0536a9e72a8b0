//! Which artifacts there are.

use std::ffi::CStr;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, statat};

use super::path::MAX_DEPTH;
use super::{ArtifactError, ArtifactPath, Beneath, MAX_LISTED, MAX_SEEN, MAX_SKIPPED};

/// What is in a folder of artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The artifacts with their sizes in bytes, by path; at most [`MAX_LISTED`].
    pub artifacts: Vec<(ArtifactPath, u64)>,
    /// What is there and no artifact; at most [`MAX_SKIPPED`] are named.
    pub skipped: Vec<Skipped>,
    /// How many further entries are not in the list.
    pub left_out: u64,
    /// Whether there may be still more, which nobody looked at.
    pub is_cut: bool,
}

/// Something that is no artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is; what is not UTF-8 in it, and control characters, are replaced.
    pub path: String,
    /// Why it is none.
    pub why: Why,
}

/// Why something is no artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A symbolic link: it may lead anywhere.
    Link,
    /// A device, a named pipe or a socket.
    Special,
    /// Its name is not UTF-8, has a control character, or the path is too long or too deep.
    Name,
    /// The system does not let it be looked at.
    Unreadable,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Link => "a symbolic link, which is not followed",
            Self::Special => "a device, a named pipe or a socket",
            Self::Name => "its path is not UTF-8, has a control character, or is too long",
            Self::Unreadable => "it can't be read",
        })
    }
}

/// Lists what is in a folder. One that isn't there has nothing.
///
/// # Errors
/// When the folder itself can't be read.
pub fn list(folder: &Path) -> Result<Listing, ArtifactError> {
    let failed = |source| ArtifactError::File { path: folder.display().to_string(), source };
    let root = match Beneath::strict(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
        other => other.map_err(failed)?,
    };
    let mut walk =
        Walk { root, listing: Listing::default(), folders: vec![String::new()], seen: 0 };
    while let Some(folder) = walk.folders.pop() {
        if walk.look(&folder).is_err() {
            walk.skip(&folder, Why::Unreadable);
        }
    }
    let mut listing = walk.listing;
    listing.artifacts.sort();
    listing.skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(listing)
}

struct Walk {
    root: Beneath,
    listing: Listing,
    /// Paths of folders that are still to be looked at; the first is empty.
    folders: Vec<String>,
    seen: usize,
}

impl Walk {
    fn look(&mut self, path: &str) -> io::Result<()> {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let folder = self.root.folder(&names)?;
        let mut entries = Dir::read_from(&folder)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.seen += 1;
            if self.seen > MAX_SEEN {
                self.listing.is_cut = true;
                self.folders.clear();
                return Ok(());
            }
            let found = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW);
            match found {
                Ok(found) => self.take(path, name, FileType::from_raw_mode(found.st_mode), {
                    u64::try_from(found.st_size).unwrap_or(0)
                }),
                Err(_) => self.skip(&join(path, name), Why::Unreadable),
            }
        }
        Ok(())
    }

    fn take(&mut self, folder: &str, name: &CStr, kind: FileType, size: u64) {
        let path = join(folder, name);
        let why = match kind {
            FileType::Symlink => Some(Why::Link),
            FileType::RegularFile | FileType::Directory => None,
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Some(Why::Special),
        };
        let good = name.to_str().ok().and_then(|_| path.parse::<ArtifactPath>().ok());
        match (why, good) {
            (Some(why), _) => self.skip(&path, why),
            (None, None) => self.skip(&path, Why::Name),
            (None, Some(path)) if kind == FileType::Directory => {
                // A file in it would be one part deeper.
                if path.as_str().split('/').count() < MAX_DEPTH {
                    self.folders.push(path.to_string());
                } else {
                    self.skip(path.as_str(), Why::Name);
                }
            }
            (None, Some(path)) if self.listing.artifacts.len() < MAX_LISTED => {
                self.listing.artifacts.push((path, size));
            }
            (None, Some(_)) => self.listing.left_out += 1,
        }
    }

    fn skip(&mut self, path: &str, why: Why) {
        if self.listing.skipped.len() < MAX_SKIPPED {
            let path = crate::text::shorten(path, super::path::MAX_PATH_BYTES);
            self.listing.skipped.push(Skipped { path, why });
        } else {
            self.listing.left_out += 1;
        }
    }
}

fn join(folder: &str, name: &CStr) -> String {
    let name = name.to_string_lossy();
    if folder.is_empty() { name.into_owned() } else { format!("{folder}/{name}") }
}
