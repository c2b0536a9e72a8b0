//! The program at its path: replaced by a rename, kept as `<program>.previous`, put back by a rename.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::stage::Prepared;
use super::{UpgradeError, failed};
use crate::crash;
use crate::durable::sync_dir;
use crate::transfer::Digest;

/// This program, also when its file has no name any more.
const OWN: &str = "/proc/self/exe";

/// Where a new program stands before it is put in place. The name begins with a dot: nobody runs it by accident.
pub(super) fn staged(program: &Path) -> PathBuf {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    program.with_file_name(format!(".{name}.new"))
}

/// Where the old program stands while the new one is at its path.
pub fn previous(program: &Path) -> PathBuf {
    let mut name = program.file_name().unwrap_or_default().to_owned();
    name.push(".previous");
    program.with_file_name(name)
}

/// Keeps the program that runs as `<program>.previous`.
///
/// # Durability
/// On disk when it returns.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn keep(program: &Path) -> Result<PathBuf, UpgradeError> {
    let kept = previous(program);
    let not_writable = |source| UpgradeError::NotWritable { path: program.to_owned(), source };
    match std::fs::remove_file(&kept) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(not_writable(e)),
        _ => {}
    }
    if is_own(program) {
        // The same file under a second name: the inode's content is never changed.
        std::fs::hard_link(program, &kept).map_err(not_writable)?;
    } else {
        // Somebody has replaced the file since this program was started: what runs is what is known to work.
        std::fs::copy(OWN, &kept).map_err(not_writable)?;
        File::open(&kept).and_then(|file| file.sync_all()).map_err(failed(&kept))?;
    }
    sync(program)?;
    Ok(kept)
}

/// Puts a new program in the place of the old one.
///
/// # Durability
/// On disk when it returns. At every instant one of the two is there, whole.
///
/// # Errors
/// When the disk refuses.
pub fn put_in_place(prepared: &Prepared) -> Result<(), UpgradeError> {
    crash::point("before swap");
    std::fs::rename(&prepared.path, &prepared.program).map_err(failed(&prepared.program))?;
    crash::point("after swap");
    sync(&prepared.program)
}

/// Puts the old program back, unless it is there; says whether it was not.
///
/// # Durability
/// On disk when it returns.
///
/// # Errors
/// When the disk refuses.
pub fn put_back(program: &Path, new: &str) -> Result<bool, UpgradeError> {
    // Who was to put it in place was killed before.
    std::fs::remove_file(staged(program)).unwrap_or_default();
    // By its content: the record may be older than the file.
    if digest_of(program)?.to_string() != new {
        return Ok(false);
    }
    let kept = previous(program);
    match std::fs::rename(&kept, program) {
        // Agent and guard may do so at once.
        Err(e) if e.kind() == io::ErrorKind::NotFound && digest_of(program)?.to_string() != new => {
            return Ok(false);
        }
        other => other.map_err(failed(&kept))?,
    }
    sync(program)?;
    Ok(true)
}

/// Whether a process runs another file than the one that is at the program's path.
pub fn runs_another(program: &Path, pid: u32) -> bool {
    let runs = id(Path::new(&format!("/proc/{pid}/exe")));
    matches!((runs, id(program)), (Ok(runs), Ok(there)) if runs != there)
}

/// The SHA-256 of the program that runs.
///
/// # Errors
/// When it can't be read.
pub fn own_digest() -> Result<Digest, UpgradeError> {
    digest_of(Path::new(OWN))
}

fn digest_of(path: &Path) -> Result<Digest, UpgradeError> {
    let (_, offer) = crate::transfer::digest_file(path).map_err(failed(path))?;
    Ok(offer.digest)
}

/// Whether the file is the program that runs.
fn is_own(program: &Path) -> bool {
    matches!((id(program), id(Path::new(OWN))), (Ok(file), Ok(own)) if file == own)
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    path.metadata().map(|found| (found.dev(), found.ino()))
}

fn sync(program: &Path) -> Result<(), UpgradeError> {
    let folder = program.parent().unwrap_or(Path::new("/"));
    sync_dir(folder).map_err(failed(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_program_is_kept_and_comes_back_once() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("baton");
        let write = |name: &Path, content: &[u8]| {
            crate::durable::replace_file(name, content, 0o700).unwrap();
        };
        write(&program, b"stands there");
        assert_eq!(keep(&program).unwrap(), root.path().join("baton.previous"));
        // Not the file that stood there, but the one that runs.
        let own = std::fs::metadata(OWN).unwrap().len();
        assert_eq!(previous(&program).metadata().unwrap().len(), own);
        write(&previous(&program), b"old");
        write(&program, b"new");
        let new = Digest::of(b"new").to_string();
        assert!(put_back(&program, &new).unwrap());
        assert_eq!(std::fs::read(&program).unwrap(), b"old");
        assert!(!put_back(&program, &new).unwrap());
        assert_eq!(std::fs::read(&program).unwrap(), b"old");
    }
}
