//! The chunk store: a file for each chunk, compressed, named by the SHA-256 of what it holds.
//!
//! A chunk appears whole, by a rename. It is on disk only after [`Chunks::sync`]: one call for hundreds
//! of them.

use std::collections::HashSet;
use std::fs::{DirEntry, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::manifest::{Chunk, MAX_CHUNK_BYTES};
use crate::durable;
use crate::transfer::Digest;

/// How hard chunks are compressed: zstd's own middle, some 300 MB a second.
const LEVEL: i32 = 3;
/// How long a chunk stays that no package names: a broken transfer goes on with it, also over a night.
const KEPT_FOR: Duration = Duration::from_hours(24);
/// The longest compressed chunk, in bytes: what can't be compressed grows a little.
pub(super) const MAX_COMPRESSED_BYTES: usize = 272 * 1024;

/// The store.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    folder: PathBuf,
}

/// Why a chunk can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// It isn't there.
    #[error("chunk {0} is missing")]
    Missing(Digest),
    /// It is not what its name says. It was removed, so that it can be sent again.
    #[error("chunk {0} is damaged")]
    Damaged(Digest),
    /// It can't be read.
    #[error("chunk {digest}")]
    File {
        /// Which.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swept {
    pub(super) chunks: u64,
    pub(super) bytes: u64,
}

/// Compresses a chunk.
pub(super) fn compress(content: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(content, LEVEL)
}

/// Decompresses a chunk; one that is longer than a chunk may be is refused before it takes the memory.
pub(super) fn decompress(compressed: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(compressed, usize::try_from(MAX_CHUNK_BYTES).unwrap_or(usize::MAX))
}

/// How many bytes the disk of the nearest folder that is there has for this user.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let disk = rustix::fs::statvfs(there)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

impl Chunks {
    pub(super) fn new(packages: &Path) -> Self {
        Self { folder: packages.join("chunks") }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    /// Whether there is a chunk of this name.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// A chunk's content, checked. What is damaged is removed.
    pub(super) fn read(&self, chunk: &Chunk) -> Result<Vec<u8>, ChunkError> {
        let (path, digest) = (self.path(&chunk.digest), chunk.digest);
        let compressed = match std::fs::read(&path) {
            Ok(compressed) => compressed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ChunkError::Missing(digest));
            }
            Err(source) => return Err(ChunkError::File { digest, source }),
        };
        match decompress(&compressed) {
            Ok(content) if Digest::of(&content) == digest => Ok(content),
            _ => {
                // Best effort: a chunk that can't be removed is told to be damaged again.
                std::fs::remove_file(path).unwrap_or_default();
                Err(ChunkError::Damaged(digest))
            }
        }
    }

    /// Writes a chunk that was checked.
    pub(super) fn write(&self, digest: &Digest, compressed: &[u8]) -> io::Result<()> {
        let path = self.path(digest);
        let folder = path.parent().unwrap_or(&self.folder);
        if !folder.is_dir() {
            durable::create_dir_all(folder, 0o700)?;
        }
        let new = folder.join(format!(".{}", uuid::Uuid::now_v7().simple()));
        let mut options = OpenOptions::new();
        let written = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(compressed))
            .and_then(|()| std::fs::rename(&new, &path));
        if written.is_err() {
            // Best effort: the sweep removes it.
            std::fs::remove_file(new).unwrap_or_default();
        }
        written
    }

    /// Brings all chunks that were written to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        sync_all_below(&self.folder)
    }

    /// Removes what nobody needs: of `gone` all that `needed` does not name, of the rest what is a day
    /// old. Only while nobody sends or installs (rule 4 of the module).
    pub(super) fn sweep(
        &self,
        needed: &HashSet<Digest>,
        gone: &HashSet<Digest>,
        now: SystemTime,
    ) -> io::Result<Swept> {
        let mut swept = Swept::default();
        for folder in entries(&self.folder)? {
            for file in entries(&folder.path())? {
                let name = file.file_name();
                let digest = name.to_str().and_then(|name| name.parse::<Digest>().ok());
                let found = file.metadata()?;
                let is_old = || {
                    let age = found.modified().map(|time| now.duration_since(time));
                    age.is_ok_and(|age| age.is_ok_and(|age| age > KEPT_FOR))
                };
                let goes = match digest {
                    Some(digest) if needed.contains(&digest) => false,
                    Some(digest) => gone.contains(&digest) || is_old(),
                    // Half of one: whoever wrote it is dead, since nobody sends now.
                    None => true,
                };
                if goes {
                    std::fs::remove_file(file.path())?;
                    swept.chunks += 1;
                    swept.bytes += found.len();
                }
            }
        }
        Ok(swept)
    }
}

/// Brings all that was written on a folder's file system to the disk: one call, where hundreds of files
/// would each wait for the disk.
pub(super) fn sync_all_below(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

/// What is in a folder; nothing when it isn't there.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<DirEntry>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(content: &[u8]) -> Chunk {
        Chunk { digest: Digest::of(content), size: u32::try_from(content.len()).unwrap() }
    }

    #[test]
    fn a_chunk_comes_back_and_a_damaged_one_never_does() {
        let root = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(root.path());
        let content = b"content ".repeat(1000);
        let one = chunk(&content);
        let compressed = compress(&content).unwrap();
        assert!(matches!(chunks.read(&one), Err(ChunkError::Missing(_))));
        chunks.write(&one.digest, &compressed).unwrap();
        chunks.sync().unwrap();
        assert_eq!(chunks.read(&one).unwrap(), content);
        // Whichever byte is wrong.
        for at in 0..compressed.len() {
            let mut wrong = compressed.clone();
            wrong[at] ^= 1;
            chunks.write(&one.digest, &wrong).unwrap();
            match chunks.read(&one) {
                Err(ChunkError::Damaged(_)) => assert!(!chunks.has(&one.digest)),
                // A byte that says nothing, such as a flag for a checksum that isn't there.
                other => assert_eq!(other.unwrap(), content, "byte {at}"),
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_and_what_does_not_compress_fits() {
        let bomb = compress(&vec![0; 10 << 20]).unwrap();
        assert!(bomb.len() < 2048);
        decompress(&bomb).unwrap_err();
        let mut noise = vec![0; usize::try_from(MAX_CHUNK_BYTES).unwrap()];
        let mut word = 1_u64;
        for byte in &mut noise {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = word.to_be_bytes()[0];
        }
        let compressed = compress(&noise).unwrap();
        assert!(compressed.len() <= MAX_COMPRESSED_BYTES, "{}", compressed.len());
        assert_eq!(decompress(&compressed).unwrap(), noise);
    }

    #[test]
    fn the_sweep_takes_what_nobody_needs() {
        let root = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(root.path());
        let [needed, gone, young, old] = [b"needed", b"gone..", b"young.", b"old..."].map(|text| {
            let one = chunk(text);
            chunks.write(&one.digest, &compress(text).unwrap()).unwrap();
            one.digest
        });
        let half = chunks.path(&old).with_file_name(".half");
        drop(File::create(&half).unwrap());
        let now = SystemTime::now();
        let file = File::options().write(true).open(chunks.path(&old)).unwrap();
        file.set_modified(now - KEPT_FOR * 2).unwrap();
        let swept = chunks.sweep(&[needed].into(), &[needed, gone].into(), now).unwrap();
        assert_eq!(swept.chunks, 3);
        assert!(chunks.has(&needed) && chunks.has(&young));
        assert!(!chunks.has(&gone) && !chunks.has(&old) && !half.exists());
    }
}
