//! The floor: files that survive a crash of the program or of the machine.
//!
//! It knows bytes and paths, not what they mean. What it wrote is there as a whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Replaces a file: afterwards there is the old content or the new one, also after a power failure.
///
/// # Durability
/// The content is synced before the rename, and the folder after it.
///
/// # Errors
/// When the folder can't be written; then the old file is untouched.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = parent(path);
    let temporary = temporary_name(path);
    let written =
        write_synced(&temporary, content, mode).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // Best effort: the name is never used again.
        std::fs::remove_file(&temporary).unwrap_or_default();
        return Err(error);
    }
    sync_dir(&folder)
}

/// Makes what was created, renamed or removed in a folder durable.
///
/// # Errors
/// When the folder can't be opened or synced.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a folder and its missing parents, each with `mode`, durable.
///
/// # Errors
/// When one can't be made, or what is there is no folder.
pub fn create_dir_all(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let folder = parent(path);
    create_dir_all(&folder, mode)?;
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    sync_dir(&folder)
}

fn write_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// A name that nobody else uses, in the same folder: a rename works only within a file system.
fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", uuid::Uuid::now_v7().simple()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_nothing_is_left_over() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("key");
        replace_file(&path, b"one", 0o600).unwrap();
        replace_file(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_no_trace() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("folder");
        std::fs::create_dir(&path).unwrap();
        // A file can't take the place of a folder.
        replace_file(&path, b"x", 0o600).unwrap_err();
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn missing_parents_are_made_with_the_mode() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        create_dir_all(&path, 0o700).unwrap();
        create_dir_all(&path, 0o700).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
