//! A file that goes out, and what is known of it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;

use super::digest::{Digest, Digesting};
use super::folder::Folder;
use super::partial::add_file;
use super::path::Place;
use super::walk::{Missing, descend, is_file};
use super::{CHUNK_BYTES, FileInfo, Kind, TransferError};

/// A file that goes out. It is one file from the beginning to the end, whatever takes its place.
#[derive(Debug)]
pub struct Sending {
    file: File,
    place: String,
    offset: u64,
    end: u64,
}

impl Sending {
    pub(super) fn open(root: Folder, place: &Place, offset: u64) -> Result<Self, TransferError> {
        let text = place.to_string();
        let (folder, missing) = descend(root, &place.path, &text, Missing::Stay)?;
        if missing > 0 || !is_file(&folder, &place.path.name, &text)? {
            return Err(TransferError::NotFound(text));
        }
        let failed = |source| TransferError::file(&text, source);
        let file = folder.open_file(&place.path.name).map_err(failed)?;
        let end = file.metadata().map_err(failed)?.len();
        if offset > end {
            return Err(TransferError::OffsetBeyondEnd { place: text, offset, end });
        }
        Ok(Self { file, place: text, offset, end })
    }

    /// The next bytes, with what comes before them; `None` at the end.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn next_chunk(&mut self) -> Result<Option<(u64, Bytes)>, TransferError> {
        let chunk = read_chunk(&self.file, self.offset, self.end);
        let chunk = chunk.map_err(|source| TransferError::file(&self.place, source))?;
        // A file that has been cut meanwhile ends here: its digest will say so.
        if chunk.is_empty() {
            return Ok(None);
        }
        let offset = self.offset;
        self.offset += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        Ok(Some((offset, chunk)))
    }
}

/// Up to one chunk of a file, not beyond `end`; empty at the end.
pub(crate) fn read_chunk(file: &File, offset: u64, end: u64) -> io::Result<Bytes> {
    let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut chunk = vec![0; left.min(CHUNK_BYTES)];
    let count = file.read_at(&mut chunk, offset)?;
    chunk.truncate(count);
    Ok(chunk.into())
}

/// What is at a place.
pub(super) fn stat(
    root: Folder,
    place: &Place,
    with_digest: bool,
) -> Result<FileInfo, TransferError> {
    let text = place.to_string();
    let failed = |source| TransferError::file(&text, source);
    let (folder, missing) = descend(root, &place.path, &text, Missing::Stay)?;
    if missing > 0 {
        return Err(TransferError::NotFound(text));
    }
    let name = &place.path.name;
    if let Ok(folder) = folder.child(name) {
        return info(&folder.metadata().map_err(failed)?, Kind::Folder).map_err(failed);
    }
    if !is_file(&folder, name, &text)? {
        return Err(TransferError::NotFound(text));
    }
    let file = folder.open_file(name).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let size = found.len();
    let digest = if with_digest { Some(digest(&file, size).map_err(failed)?) } else { None };
    info(&found, Kind::File { size, digest }).map_err(failed)
}

fn digest(file: &File, size: u64) -> io::Result<Digest> {
    let mut digesting = Digesting::default();
    add_file(file, size, &mut digesting)?;
    Ok(digesting.finish())
}

/// What is known of a file or folder.
pub(super) fn info(found: &Metadata, kind: Kind) -> io::Result<FileInfo> {
    let modified = Timestamp::try_from(found.modified()?).map_err(io::Error::other)?;
    Ok(FileInfo { kind, mode: found.permissions().mode() & 0o777, modified })
}

/// Opens a file of the caller's own and reads it once: the file, and what it offers.
///
/// # Errors
/// When it is no file, can't be read, or is changed while it is read.
pub fn digest_file(path: &Path) -> io::Result<(File, super::Offer)> {
    // Before it is opened: a pipe would wait for its other end.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = File::open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let FileInfo { mode, modified, .. } = info(&found, Kind::Folder)?;
    let (size, digest) = (found.len(), digest(&file, found.len())?);
    Ok((file, super::Offer { size, digest, mode, modified: Some(modified) }))
}
