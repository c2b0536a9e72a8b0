//! A package's files on disk: written from chunks into a new folder, or compared with the manifest.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::chunks::{ChunkError, Chunks};
use super::manifest::{Entry, EntryKind, Manifest, STAMP};
use crate::crash;
use crate::transfer::Digest;

/// Why a package can't be laid out.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error("file {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Writes a package into a folder that is not there yet, with its stamp. Modes are what the umask leaves
/// of them. Not synced.
pub(super) fn write(top: &Path, manifest: &Manifest, chunks: &Chunks) -> Result<(), TreeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TreeError::File { path, source }
    };
    std::fs::create_dir(top).map_err(failed(top))?;
    for Entry { path, kind } in manifest.entries() {
        let path = top.join(path);
        match kind {
            EntryKind::Folder => std::fs::create_dir(&path).map_err(failed(&path))?,
            EntryKind::Link { target } => symlink(target, &path).map_err(failed(&path))?,
            EntryKind::File { executable, chunks: content } => {
                let mode = if *executable { 0o777 } else { 0o666 };
                let mut file = new_file(&path, mode).map_err(failed(&path))?;
                for chunk in content {
                    file.write_all(&chunks.read(chunk)?).map_err(failed(&path))?;
                }
                crash::point("package file");
            }
        }
    }
    let stamp = top.join(STAMP);
    let written = new_file(&stamp, 0o666).and_then(|mut file| file.write_all(&manifest.encode()));
    written.map_err(failed(&stamp))
}

fn new_file(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// What the stamp of an installed package says; `None`: it has none.
pub(super) fn stamp(top: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(top.join(STAMP)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The paths at which a folder is not what a manifest says. What is there besides is not looked at.
pub(super) fn wrong_paths(top: &Path, manifest: &Manifest) -> Vec<String> {
    let is_wrong = |entry: &&Entry| !is_right(&top.join(&entry.path), &entry.kind).unwrap_or(false);
    manifest.entries().iter().filter(is_wrong).map(|entry| entry.path.clone()).collect()
}

fn is_right(path: &Path, kind: &EntryKind) -> io::Result<bool> {
    let found = path.symlink_metadata()?;
    match kind {
        EntryKind::Folder => Ok(found.is_dir()),
        EntryKind::Link { target } => {
            Ok(found.is_symlink() && path.read_link()? == Path::new(target))
        }
        EntryKind::File { executable, chunks } => {
            let size: u64 = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
            let is_executable = found.permissions().mode() & 0o100 != 0;
            if !found.is_file() || found.len() != size || is_executable != *executable {
                return Ok(false);
            }
            let mut file = File::open(path)?;
            let mut content = Vec::new();
            for chunk in chunks {
                content.resize(usize::try_from(chunk.size).unwrap_or_default(), 0);
                file.read_exact(&mut content)?;
                if Digest::of(&content) != chunk.digest {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}
