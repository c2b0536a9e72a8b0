//! Installing a package on this machine, from the chunks that an agent keeps.
//!
//! ```text
//! DIR/ID/.V.tmp-…  ──all on disk──►  DIR/ID/V  ──►  DIR/ID/current -> V  ──►  older ones go
//! ```
//!
//! 1. One install of a package in a folder at a time: `DIR/ID/.lock` is held. Whatever has a hidden name
//!    there is then of a dead one, and is removed.
//! 2. A version appears by one rename, when all of it is on disk. A version that is there is compared
//!    with its manifest; when something is wrong, a new one changes places with it, at once.
//! 3. `current` is a link that is replaced by a rename: at every instant it leads to a whole version.
//! 4. Only what has a stamp is a version: other folders are neither replaced nor removed.
//! 5. The file `.baton-package` in each version is its manifest. So an installed version can be compared,
//!    and be made the current one again, when the agent does not keep it any more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::chunks::{self, ChunkError, Chunks};
use super::manifest::{Manifest, ManifestError, STAMP};
use super::tree::{self, TreeError};
use super::{CURRENT, Lease, PackageId, Version, kept_path, pruning};
use crate::crash;
use crate::durable;
use crate::mutex::os;
use crate::transfer::Digest;
use crate::workspace::removal::remove_tree;

/// What is to be installed, and where.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The agent's folder of packages: `BATON_PACKAGES`.
    pub packages: PathBuf,
    /// The folder that gets `ID/VERSION` and `ID/current`.
    pub into: PathBuf,
    /// Which package.
    pub id: PackageId,
    /// Which version.
    pub version: Version,
    /// How many versions stay, the current one among them; at least that one.
    pub keep: usize,
}

/// How a version came to its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// It was not there.
    New,
    /// It was there, and right.
    Unchanged,
    /// It was there with another content, or this was changed: a new one took its place.
    Repaired {
        /// Where it was not what it should be; none when it was another content.
        wrong: Vec<String>,
    },
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The version's folder.
    pub path: PathBuf,
    /// The SHA-256 of its manifest.
    pub digest: Digest,
    /// How it came there.
    pub placed: Placed,
    /// What was current before, if something else was.
    pub before: Option<String>,
    /// The versions that were removed.
    pub removed: Vec<Version>,
}

/// Why a package was not installed. What was current still is.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The agent has no such package, and none is installed.
    #[error(
        "package {id} {version} is not there: neither kept by the agent nor installed in {into}"
    )]
    NotThere {
        /// Which.
        id: PackageId,
        /// Which.
        version: Version,
        /// Where it was looked for.
        into: PathBuf,
    },
    /// It is installed, changed, and the agent does not keep it any more.
    #[error(
        "package {id} {version} was changed at {path:?}, and the agent does not keep it any more"
    )]
    NotRepairable {
        /// Which.
        id: PackageId,
        /// Which.
        version: Version,
        /// The first path that is wrong.
        path: String,
    },
    /// A manifest is damaged, or a newer baton made it.
    #[error("manifest {path}")]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A chunk of it is missing or damaged.
    #[error("package {id} {version} is not whole")]
    Chunk {
        /// Which.
        id: PackageId,
        /// Which.
        version: Version,
        /// Why.
        #[source]
        source: ChunkError,
    },
    /// Something else is in its place.
    #[error("{0} is there, but no package that baton installed")]
    NotOurs(PathBuf),
    /// A file can't be read or written.
    #[error("file {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError::File { path, source }
}

impl Wish {
    /// Installs it and makes it the current version.
    ///
    /// # Durability
    /// All of it is on disk before `current` leads to it.
    ///
    /// # Errors
    /// When it can't be; then `current` leads to where it did.
    pub fn install(&self) -> Result<Installed, InstallError> {
        let home = self.into.join(self.id.as_str());
        durable::create_dir_all(&home, 0o755).map_err(failed(&home))?;
        let _lock = lock(&home)?;
        remove_leftovers(&home)?;
        let path = home.join(self.version.as_str());
        let (placed, digest) = self.place(&path)?;
        crash::point("package placed");
        let before = switch(&home, &self.version)?;
        crash::point("package switched");
        let removed = self.prune(&home)?;
        Ok(Installed { path, digest, placed, before, removed })
    }

    /// Makes sure of the version's folder (rule 2).
    fn place(&self, path: &Path) -> Result<(Placed, Digest), InstallError> {
        let there = installed(path)?;
        // Before the manifest is read: its chunks stay from now on.
        let lease = match Lease::take(&self.packages) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(failed(&self.packages))?),
        };
        let kept = lease.as_ref().map(|_| self.kept()).transpose()?.flatten();
        let (manifest, placed) = match (kept, there) {
            (None, There::Nothing) => {
                let (id, version) = (self.id.clone(), self.version.clone());
                return Err(InstallError::NotThere { id, version, into: self.into.clone() });
            }
            (None, There::Damaged) => return Err(self.not_repairable(STAMP)),
            (None, There::Version(installed)) => {
                if let Some(path) = tree::wrong_paths(path, &installed).first() {
                    return Err(self.not_repairable(path));
                }
                (installed, Placed::Unchanged)
            }
            (Some(kept), There::Nothing) => (kept, Placed::New),
            (Some(kept), There::Damaged) => {
                (kept, Placed::Repaired { wrong: vec![STAMP.to_owned()] })
            }
            (Some(kept), There::Version(installed)) if kept == installed => {
                match tree::wrong_paths(path, &kept) {
                    wrong if wrong.is_empty() => (kept, Placed::Unchanged),
                    wrong => (kept, Placed::Repaired { wrong }),
                }
            }
            (Some(kept), There::Version(_)) => (kept, Placed::Repaired { wrong: Vec::new() }),
        };
        if placed == Placed::Unchanged {
            touch(path).map_err(failed(path))?;
        } else {
            self.lay_out(path, &manifest)?;
        }
        drop(lease);
        Ok((placed, Digest::of(&manifest.encode())))
    }

    fn not_repairable(&self, path: &str) -> InstallError {
        let (id, version) = (self.id.clone(), self.version.clone());
        InstallError::NotRepairable { id, version, path: path.to_owned() }
    }

    /// What the agent keeps of it.
    fn kept(&self) -> Result<Option<Manifest>, InstallError> {
        read_manifest(&kept_path(&self.packages, &self.id, &self.version))
    }

    /// Writes the version, and brings it to its place.
    fn lay_out(&self, path: &Path, manifest: &Manifest) -> Result<(), InstallError> {
        let home = path.parent().unwrap_or(&self.into);
        let new = home.join(hidden(&format!("{}.tmp", self.version)));
        let written = tree::write(&new, manifest, &Chunks::new(&self.packages))
            .map_err(|error| self.explain(error))
            .and_then(|()| chunks::sync_all_below(&new).map_err(failed(&new)))
            .and_then(|()| {
                crash::point("package written");
                put(&new, path).map_err(failed(path))
            });
        if written.is_err() {
            // Best effort: the next install removes it.
            remove_tree(&new).unwrap_or_default();
        }
        written?;
        crash::point("package in place");
        durable::sync_dir(home).map_err(failed(home))?;
        // What it changed places with; nothing, usually.
        remove_tree(&new).map_err(failed(&new))
    }

    fn explain(&self, error: TreeError) -> InstallError {
        match error {
            TreeError::Chunk(source) => {
                let (id, version) = (self.id.clone(), self.version.clone());
                InstallError::Chunk { id, version, source }
            }
            TreeError::File { path, source } => InstallError::File { path, source },
        }
    }

    /// Removes all but the last versions.
    fn prune(&self, home: &Path) -> Result<Vec<Version>, InstallError> {
        let mut versions = Vec::new();
        for entry in chunks::entries(home).map_err(failed(home))? {
            let version = entry.file_name().to_str().and_then(|name| name.parse::<Version>().ok());
            let stamp = entry.path().join(STAMP).symlink_metadata();
            let Some((version, stamp)) = version.zip(stamp.ok()) else { continue };
            if !entry.file_type().map_err(failed(home))?.is_dir() {
                continue;
            }
            versions.push((version, stamp.modified().map_err(failed(home))?));
        }
        let go = pruning::pick(&versions, Some(&self.version), self.keep);
        for version in &go {
            let path = home.join(version.as_str());
            // By a rename first: nobody finds half of it.
            let gone = home.join(hidden(&format!("{version}.old")));
            std::fs::rename(&path, &gone).map_err(failed(&path))?;
            crash::point("package removing");
            remove_tree(&gone).map_err(failed(&gone))?;
        }
        Ok(go)
    }
}

/// A name that no version has, and nobody uses again.
fn hidden(name: &str) -> String {
    format!(".{name}-{}", uuid::Uuid::now_v7().simple())
}

/// Rule 1.
fn lock(home: &Path) -> Result<File, InstallError> {
    let path = home.join(".lock");
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(failed(&path))?;
    os::lock_exclusive(&file).map_err(failed(&path))?;
    Ok(file)
}

fn remove_leftovers(home: &Path) -> Result<(), InstallError> {
    for entry in chunks::entries(home).map_err(failed(home))? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = [".tmp-", ".old-"].iter().any(|part| name.contains(part))
            || name.starts_with(&format!(".{CURRENT}-"));
        if name.starts_with('.') && is_ours {
            let path = entry.path();
            let kind = entry.file_type().map_err(failed(&path))?;
            let removed =
                if kind.is_dir() { remove_tree(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// What is at a version's place.
#[derive(Debug)]
enum There {
    Nothing,
    /// A version, with what it is made of.
    Version(Manifest),
    /// A version whose stamp is damaged.
    Damaged,
}

fn installed(path: &Path) -> Result<There, InstallError> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
        Ok(found) if found.is_dir() => {}
        _ => return Err(InstallError::NotOurs(path.to_owned())),
    }
    let stamp = tree::stamp(path).map_err(failed(path))?;
    let text = stamp.ok_or_else(|| InstallError::NotOurs(path.to_owned()))?;
    match Manifest::decode(&text) {
        Ok(manifest) => Ok(There::Version(manifest)),
        Err(source @ ManifestError::Newer(_)) => {
            Err(InstallError::Manifest { path: path.join(STAMP), source })
        }
        Err(_) => Ok(There::Damaged),
    }
}

fn read_manifest(path: &Path) -> Result<Option<Manifest>, InstallError> {
    let text = match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed(path))?,
    };
    let decoded = Manifest::decode(&text);
    decoded.map(Some).map_err(|source| InstallError::Manifest { path: path.to_owned(), source })
}

/// Puts a folder at a place; what is there gets the folder's old name.
fn put(new: &Path, path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Ok(renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE)?);
    }
    std::fs::rename(new, path)
}

/// Notes that the version was installed just now: those that are kept are the last ones.
fn touch(path: &Path) -> io::Result<()> {
    let stamp = OpenOptions::new().append(true).open(path.join(STAMP))?;
    stamp.set_modified(SystemTime::now())
}

/// Lets `current` lead to a version (rule 3); says where it led before, if elsewhere.
fn switch(home: &Path, version: &Version) -> Result<Option<String>, InstallError> {
    let link = home.join(CURRENT);
    let before = match link.read_link() {
        Ok(target) => Some(target.to_string_lossy().into_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
            return Err(InstallError::NotOurs(link));
        }
        Err(e) => return Err(failed(&link)(e)),
    };
    if before.as_deref() == Some(version.as_str()) {
        return Ok(None);
    }
    let new = home.join(hidden(CURRENT));
    symlink(version.as_str(), &new).map_err(failed(&new))?;
    crash::point("package link");
    std::fs::rename(&new, &link).and_then(|()| durable::sync_dir(home)).map_err(failed(&link))?;
    Ok(before)
}
