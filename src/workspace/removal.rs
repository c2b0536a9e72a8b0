//! Removing workspaces, also large ones, without ever leaving half of one.
//!
//! ```text
//! scripts/<id>  ──rename──►  scripts/.removed/<id>@<number of arrival>  ──►  gone
//!                  (then its row in the store goes)
//! ```
//!
//! The rename takes it away as a whole. What a killed agent left in `.removed` says by its name whose
//! row has to go; after that it gets a name that says nothing any more.

use std::fs::{Permissions, ReadDir};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::Workspace;
use crate::script::ScriptId;

/// More entries of one workspace are not counted: the count is to end.
const MAX_MEASURED_ENTRIES: usize = 1_000_000;

/// The folder of workspaces that are being removed.
#[derive(Debug, Clone)]
pub struct Removed {
    scripts: PathBuf,
    path: PathBuf,
}

impl Removed {
    /// The one below `<state>/scripts`. It is made if it isn't there.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn of(scripts: &Path) -> io::Result<Self> {
        let path = scripts.join(".removed");
        crate::durable::create_dir_all(&path, 0o700)?;
        Ok(Self { scripts: scripts.to_owned(), path })
    }

    /// Takes away the workspace of the script that arrived as number `seq`; returns where it is now.
    /// `None`: there is none, since the script never ran.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn take(&self, id: &ScriptId, seq: u64) -> io::Result<Option<PathBuf>> {
        self.rename(Workspace::of(&self.scripts, id).path(), &format!("{id}@{seq}"))
    }

    /// Takes away a workspace that is nobody's.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn take_orphan(&self, id: &ScriptId) -> io::Result<()> {
        self.rename(Workspace::of(&self.scripts, id).path(), &nameless()).map(drop)
    }

    fn rename(&self, from: &Path, name: &str) -> io::Result<Option<PathBuf>> {
        let to = self.path.join(name);
        match std::fs::rename(from, &to) {
            Ok(()) => Ok(Some(to)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whose rows may still be there, after a crash: id and number of arrival.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn unfinished(&self) -> io::Result<Vec<(ScriptId, u64)>> {
        let entries = std::fs::read_dir(&self.path)?;
        let named = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let (id, seq) = name.split_once('@')?;
            Some((id.parse().ok()?, seq.parse().ok()?))
        };
        Ok(entries.flatten().filter_map(named).collect())
    }

    /// Its row is gone: from now on the name says nothing.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn forget_name(&self, id: &ScriptId, seq: u64) -> io::Result<()> {
        self.rename(&self.path.join(format!("{id}@{seq}")), &nameless()).map(drop)
    }

    /// What has to go and says no name.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn leftovers(&self) -> io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.path)?.flatten();
        let is_nameless =
            |entry: &std::fs::DirEntry| !entry.file_name().to_string_lossy().contains('@');
        Ok(entries.filter(is_nameless).map(|entry| entry.path()).collect())
    }
}

fn nameless() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// The ids of the workspaces below `<state>/scripts`.
///
/// # Errors
/// When the folder can't be read.
pub fn ids(scripts: &Path) -> io::Result<impl Iterator<Item = ScriptId>> {
    let entries: ReadDir = std::fs::read_dir(scripts)?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Removes a folder with all that is in it, also below folders that were made read-only.
///
/// # Errors
/// When something can't be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match std::fs::remove_dir_all(path) {
        // Tools make folders read-only to protect a cache, say.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(path);
            std::fs::remove_dir_all(path)
        }
        other => other,
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn make_writable(path: &Path) {
    walk(path, |folder, _| {
        // What doesn't work here fails at the removal, with a better error.
        std::fs::set_permissions(folder, Permissions::from_mode(0o700)).unwrap_or_default();
    });
}

/// What a folder takes on the disk, in bytes. Links are not followed, nor mounts.
pub fn disk_bytes(path: &Path) -> u64 {
    let mut blocks: u64 = 0;
    walk(path, |_, metadata| blocks = blocks.saturating_add(metadata.blocks()));
    // A block of stat(2) has 512 bytes.
    blocks.saturating_mul(512)
}

/// Visits a folder, then what is in it, as far as it can be read.
fn walk(path: &Path, mut visit: impl FnMut(&Path, &std::fs::Metadata)) {
    let Ok(top) = path.symlink_metadata() else {
        return;
    };
    let device = top.dev();
    let (mut folders, mut count) = (vec![(path.to_owned(), top)], 0_usize);
    while let Some((folder, metadata)) = folders.pop() {
        visit(&folder, &metadata);
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            count += 1;
            if count > MAX_MEASURED_ENTRIES {
                return;
            }
            match entry.metadata() {
                Ok(found) if found.is_dir() && found.dev() == device => {
                    folders.push((entry.path(), found));
                }
                Ok(found) if found.dev() == device => visit(&entry.path(), &found),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(scripts: &Path, id: &str) {
        let folder = scripts.join(id).join("work");
        std::fs::create_dir_all(&folder).unwrap();
        crate::durable::replace_file(&folder.join("file"), &vec![b'x'; 100_000], 0o600).unwrap();
        std::os::unix::fs::symlink("/", folder.join("link")).unwrap();
    }

    #[test]
    fn a_workspace_goes_as_a_whole_and_what_a_crash_left_says_whose_it_was() {
        let root = tempfile::tempdir().unwrap();
        let removed = Removed::of(root.path()).unwrap();
        for id in ["a", "b", "c"] {
            workspace(root.path(), id);
        }
        let id = |name: &str| name.parse::<ScriptId>().unwrap();
        let bytes = disk_bytes(&root.path().join("a"));
        assert!((100_000..1_000_000).contains(&bytes), "{bytes}");
        let taken = removed.take(&id("a"), 7).unwrap().unwrap();
        removed.take_orphan(&id("b")).unwrap();
        assert_eq!(removed.take(&id("never-ran"), 8).unwrap(), None);
        assert_eq!(ids(root.path()).unwrap().collect::<Vec<_>>(), [id("c")]);
        assert_eq!(removed.unfinished().unwrap(), [(id("a"), 7)]);
        assert_eq!(removed.leftovers().unwrap().len(), 1);
        removed.forget_name(&id("a"), 7).unwrap();
        assert!(removed.unfinished().unwrap().is_empty() && !taken.exists());
        for path in removed.leftovers().unwrap() {
            remove_tree(&path).unwrap();
            remove_tree(&path).unwrap();
        }
        assert!(removed.leftovers().unwrap().is_empty());
        assert!(Path::new("/").is_dir());
    }

    /// As root it is removed at the first try.
    #[test]
    fn read_only_folders_are_removed_too() {
        let root = tempfile::tempdir().unwrap();
        workspace(root.path(), "a");
        let folder = root.path().join("a");
        for path in [folder.join("work"), folder.clone()] {
            std::fs::set_permissions(&path, Permissions::from_mode(0o500)).unwrap();
        }
        remove_tree(&folder).unwrap();
        assert!(!folder.exists());
    }
}
