//! The packages that an agent keeps: their manifests, and what they need of the chunk store.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use jiff::Timestamp;

use super::chunks::{Chunks, entries};
use super::manifest::Manifest;
use super::receive::{self, Begun, Offer};
use super::{FOLDER, KEPT_VERSIONS, Lease, PackageError, PackageId, Version};
use super::{kept_path, open_lock, pruning};
use crate::config::files::Files;
use crate::durable;
use crate::mutex::os;
use crate::transfer::Digest;

/// A package that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its id.
    pub id: PackageId,
    /// Its version.
    pub version: Version,
    /// The SHA-256 of its manifest.
    pub digest: Digest,
    /// The length of all its files, in bytes.
    pub bytes: u64,
    /// How many files it has.
    pub files: u64,
    /// How many different chunks it has.
    pub chunks: u64,
    /// When it was kept.
    pub received_at: Timestamp,
}

/// What an agent keeps, and its limits.
#[derive(Debug)]
pub struct Packages {
    pub(super) folder: PathBuf,
    pub(super) chunks: Chunks,
    limits: RwLock<Limits>,
    /// Held while manifests change.
    changing: Mutex<Changing>,
}

/// What a configuration allows. Each package keeps what it began with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_bytes: u64,
    pub(super) min_free_bytes: u64,
}

impl Limits {
    fn of(files: &Files) -> Self {
        Self { max_bytes: files.max_file_bytes, min_free_bytes: files.min_free_bytes }
    }
}

#[derive(Debug, Default)]
pub(super) struct Changing {
    /// Chunks of what was removed or replaced: they need not wait for their day.
    gone: HashSet<Digest>,
}

/// A manifest that is kept, with its text's digest.
pub(super) struct Found {
    pub(super) kept: Kept,
    pub(super) manifest: Manifest,
}

impl Packages {
    /// Those below a state folder, with the limits of files.
    pub fn new(state: &Path, files: &Files) -> Self {
        let folder = state.join(FOLDER);
        Self {
            chunks: Chunks::new(&folder),
            folder,
            limits: RwLock::new(Limits::of(files)),
            changing: Mutex::default(),
        }
    }

    /// Keeps the limits of another configuration.
    pub fn configure(&self, files: &Files) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = Limits::of(files);
    }

    pub(super) fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their folder, as scripts are told.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// After a restart: removes chunks that nobody needs.
    pub fn recover(&self) {
        if self.folder.is_dir() {
            self.sweep();
        }
    }

    /// Begins to take a package.
    ///
    /// # Errors
    /// When another one has its id and version, or the folder can't be used.
    pub fn begin(self: &Arc<Self>, offer: Offer) -> Result<Begun, PackageError> {
        for folder in [&self.folder, self.chunks.folder()] {
            durable::create_dir_all(folder, 0o700).map_err(|e| PackageError::file(folder, e))?;
        }
        let lease = Lease::take(&self.folder).map_err(|e| PackageError::file(&self.folder, e))?;
        receive::begin(self, offer, lease)
    }

    /// One that is kept.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn get(&self, id: &PackageId, version: &Version) -> Result<Kept, PackageError> {
        let found = self.find(id, version)?.map(|found| found.kept);
        found.ok_or_else(|| PackageError::NotFound { id: id.clone(), version: version.clone() })
    }

    /// All that are kept, or those of one id: sorted by id, then the newest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn list(&self, id: Option<&PackageId>) -> Result<Vec<Kept>, PackageError> {
        let mut all = self.all()?.into_iter().map(|found| found.kept).collect::<Vec<_>>();
        all.retain(|kept| id.is_none_or(|id| *id == kept.id));
        all.sort_by(|one, other| {
            one.id.cmp(&other.id).then(other.received_at.cmp(&one.received_at))
        });
        Ok(all)
    }

    /// Removes one, with the chunks that no other needs. What is installed stays.
    ///
    /// # Errors
    /// When there is none, or it can't be removed.
    pub fn remove(&self, id: &PackageId, version: &Version) -> Result<Kept, PackageError> {
        let removed = {
            let mut changing = self.changing();
            let Some(found) = self.find(id, version)? else {
                return Err(PackageError::NotFound { id: id.clone(), version: version.clone() });
            };
            self.drop_manifest(&mut changing, &found)?;
            found.kept
        };
        self.sweep();
        Ok(removed)
    }

    /// Held for file work that may not meet another change of manifests.
    pub(super) fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_manifest(&self, changing: &mut Changing, found: &Found) -> Result<(), PackageError> {
        let path = kept_path(&self.folder, &found.kept.id, &found.kept.version);
        let folder = path.parent().unwrap_or(&self.folder).to_owned();
        let removed = std::fs::remove_file(&path).and_then(|()| durable::sync_dir(&folder));
        removed.map_err(|source| PackageError::file(&path, source))?;
        // Others may be in it.
        std::fs::remove_dir(folder).unwrap_or_default();
        changing.gone.extend(found.manifest.chunks().map(|chunk| chunk.digest));
        Ok(())
    }

    /// Keeps a manifest whose chunks are all on disk; older versions of the package go.
    pub(super) fn keep(
        &self,
        changing: &mut Changing,
        offer: &Offer,
        text: &[u8],
    ) -> Result<(), PackageError> {
        let path = kept_path(&self.folder, &offer.id, &offer.version);
        let folder = path.parent().unwrap_or(&self.folder);
        let replaced = self.find(&offer.id, &offer.version)?;
        durable::create_dir_all(folder, 0o700)
            .and_then(|()| durable::replace_file(&path, text, 0o600))
            .map_err(|source| PackageError::file(&path, source))?;
        if let Some(found) = replaced {
            changing.gone.extend(found.manifest.chunks().map(|chunk| chunk.digest));
        }
        let versions: Vec<_> = self
            .list(Some(&offer.id))?
            .into_iter()
            .map(|kept| (kept.version, kept.received_at))
            .collect();
        for version in pruning::pick(&versions, Some(&offer.version), KEPT_VERSIONS) {
            if let Some(found) = self.find(&offer.id, &version)? {
                self.drop_manifest(changing, &found)?;
            }
        }
        Ok(())
    }

    /// Removes chunks that nobody needs, unless somebody sends or installs: then the next one does it.
    pub(super) fn sweep(&self) {
        let sweep = || -> io::Result<()> {
            let lock = open_lock(&self.folder)?;
            if !os::try_lock_exclusive(&lock)? {
                return Ok(());
            }
            let mut changing = self.changing();
            // A manifest that can't be read now may need any chunk.
            let all = self.all().map_err(io::Error::other)?;
            let chunks = all.iter().flat_map(|found| found.manifest.chunks());
            let needed = chunks.map(|chunk| chunk.digest).collect();
            let swept = self.chunks.sweep(&needed, &changing.gone, SystemTime::now())?;
            changing.gone.clear();
            if swept.chunks > 0 {
                tracing::info!(chunks = swept.chunks, bytes = swept.bytes, "removed chunks");
            }
            Ok(())
        };
        if let Err(error) = sweep() {
            let error = crate::text::chain(&error);
            tracing::warn!(error, "chunks that nobody needs are not removed");
        }
    }

    /// A kept manifest; `None` when there is none.
    pub(super) fn find(
        &self,
        id: &PackageId,
        version: &Version,
    ) -> Result<Option<Found>, PackageError> {
        let path = kept_path(&self.folder, id, version);
        match self.read(id, version, &path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            // It is of no use, and the next one that is sent takes its place.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(path = %path.display(), %error, "a manifest is damaged");
                Ok(None)
            }
            Err(source) => Err(PackageError::file(&path, source)),
            Ok(found) => Ok(Some(found)),
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a method where it is used")]
    fn read(&self, id: &PackageId, version: &Version, path: &Path) -> io::Result<Found> {
        let text = std::fs::read(path)?;
        let received_at = Timestamp::try_from(path.metadata()?.modified()?);
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let manifest = Manifest::decode(&text).map_err(damaged)?;
        let kept = Kept {
            id: id.clone(),
            version: version.clone(),
            digest: Digest::of(&text),
            bytes: manifest.bytes(),
            files: manifest.files(),
            chunks: u64::try_from(manifest.distinct_chunks().len()).unwrap_or(u64::MAX),
            received_at: received_at.map_err(io::Error::other)?,
        };
        Ok(Found { kept, manifest })
    }

    /// All kept manifests.
    pub(super) fn all(&self) -> Result<Vec<Found>, PackageError> {
        let top = self.folder.join("kept");
        let listed = |path: &Path| entries(path).map_err(|e| PackageError::file(path, e));
        let mut all = Vec::new();
        for folder in listed(&top)? {
            let id = folder.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(id) = id else { continue };
            for file in listed(&folder.path())? {
                // Those that a killed agent did not complete have other names.
                let version = file.file_name().to_str().and_then(|name| name.parse().ok());
                let Some(version) = version else { continue };
                all.extend(self.find(&id, &version)?);
            }
        }
        Ok(all)
    }
}
