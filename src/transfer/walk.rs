//! The way from a root to a file's folder, part by part.

use std::io;

use super::TransferError;
use super::folder::{Folder, Found};
use super::path::RelativePath;

/// What becomes of folders that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The way ends before them.
    Stay,
    /// They are made.
    Make,
}

/// The deepest folder on the way, and how many of the path's folders are missing below it.
pub(super) fn descend(
    root: Folder,
    path: &RelativePath,
    place: &str,
    missing: Missing,
) -> Result<(Folder, usize), TransferError> {
    let mut folder = root;
    for (depth, name) in path.folders.iter().enumerate() {
        let next = match missing {
            Missing::Stay => folder.child(name),
            Missing::Make => folder.child_or_new(name),
        };
        folder = match next {
            Ok(next) => next,
            Err(error) if missing == Missing::Stay && error.kind() == io::ErrorKind::NotFound => {
                return Ok((folder, path.folders.len() - depth));
            }
            Err(source) => return Err(explain(&folder, name, place, source)),
        };
    }
    Ok((folder, 0))
}

/// Why a part of the way can't be gone.
fn explain(folder: &Folder, name: &str, place: &str, source: io::Error) -> TransferError {
    let link = || TransferError::Link(format!("part {name:?} of {place}"));
    match folder.find(name) {
        Ok((Found::Link, _)) => link(),
        // It was one a moment ago.
        Ok((Found::Folder | Found::Nothing, _))
            if source.kind() == io::ErrorKind::NotADirectory =>
        {
            link()
        }
        Ok((Found::File | Found::Other, _)) => {
            let what = "not reachable: a part of its path is no folder";
            TransferError::WrongKind { place: place.to_owned(), what }
        }
        Ok((Found::Folder | Found::Nothing, _)) | Err(_) => TransferError::file(place, source),
    }
}

/// Refuses what is no regular file. Whether there is one.
pub(super) fn is_file(folder: &Folder, name: &str, place: &str) -> Result<bool, TransferError> {
    let failed = |source| TransferError::file(place, source);
    let wrong = |what| TransferError::WrongKind { place: place.to_owned(), what };
    match folder.find(name).map_err(failed)?.0 {
        Found::Nothing => Ok(false),
        Found::File => Ok(true),
        Found::Folder => Err(wrong("a folder, not a file")),
        Found::Link => Err(TransferError::Link(place.to_owned())),
        Found::Other => Err(wrong("neither a file nor a folder")),
    }
}
