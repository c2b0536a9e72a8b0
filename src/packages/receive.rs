//! A package that comes in: the manifest, then the chunks that are missing, then it is kept.

use std::collections::HashSet;
use std::sync::Arc;

use super::chunks::{MAX_COMPRESSED_BYTES, decompress, free_bytes};
use super::keep::Limits;
use super::manifest::{Chunk, MAX_MANIFEST_BYTES, Manifest, ManifestError};
use super::plan::Plan;
use super::{Kept, Lease, MAX_KEPT, PackageError, PackageId, Packages, Version};
use crate::transfer::Digest;

/// What is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The package's id.
    pub id: PackageId,
    /// Its version.
    pub version: Version,
    /// The SHA-256 of its manifest.
    pub digest: Digest,
    /// The length of its manifest, in bytes.
    pub manifest_bytes: usize,
    /// Whether it may take the place of another content of the same version.
    pub replace: bool,
}

/// What an offer leads to.
#[derive(Debug)]
pub enum Begun {
    /// It is there already.
    There(Kept),
    /// The manifest is to come.
    Manifest(Opening),
}

/// A package whose manifest comes.
#[derive(Debug)]
pub struct Opening {
    packages: Arc<Packages>,
    offer: Offer,
    text: Vec<u8>,
    lease: Lease,
}

/// A package whose chunks come. Dropped, those that came stay for the next try.
#[derive(Debug)]
pub struct Receiving {
    packages: Arc<Packages>,
    offer: Offer,
    text: Vec<u8>,
    plan: Plan,
    lease: Lease,
}

/// Looks what is kept under an offer's id and version.
pub(super) fn begin(
    packages: &Arc<Packages>,
    offer: Offer,
    lease: Lease,
) -> Result<Begun, PackageError> {
    if offer.manifest_bytes > MAX_MANIFEST_BYTES {
        return Err(offer.refused(ManifestError::TooLong));
    }
    if let Some(found) = packages.find(&offer.id, &offer.version)? {
        // One that was found to be damaged is not there any more.
        let is_whole = || found.manifest.chunks().all(|chunk| packages.chunks.has(&chunk.digest));
        if found.kept.digest == offer.digest && is_whole() {
            return Ok(Begun::There(found.kept));
        }
        offer.check_conflict(found.kept.digest)?;
    }
    Ok(Begun::Manifest(Opening { packages: Arc::clone(packages), offer, text: Vec::new(), lease }))
}

impl Offer {
    fn refused(&self, source: ManifestError) -> PackageError {
        let (id, version) = (self.id.clone(), self.version.clone());
        PackageError::Manifest { id, version, source }
    }

    fn check_conflict(&self, kept: Digest) -> Result<(), PackageError> {
        if kept != self.digest && !self.replace {
            let (id, version) = (self.id.clone(), self.version.clone());
            return Err(PackageError::Conflict { id, version, kept });
        }
        Ok(())
    }
}

impl Opening {
    /// How many bytes of the manifest are still to come.
    pub fn left(&self) -> usize {
        self.offer.manifest_bytes - self.text.len()
    }

    /// Takes the next bytes of the manifest.
    ///
    /// # Errors
    /// When more come than was said.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), PackageError> {
        if bytes.len() > self.left() {
            return Err(PackageError::TooMuch("manifest"));
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads the whole manifest, and finds out what is missing.
    ///
    /// # Errors
    /// When it is no manifest, or too large, or there is no room.
    pub fn plan(self) -> Result<Receiving, PackageError> {
        let Self { packages, offer, text, lease } = self;
        let (found, expected) = (Digest::of(&text), offer.digest);
        if found != expected {
            return Err(PackageError::WrongDigest { expected, found });
        }
        let manifest = Manifest::decode(&text).map_err(|source| offer.refused(source))?;
        let Limits { max_bytes: limit, min_free_bytes } = packages.limits();
        let bytes = manifest.bytes();
        if bytes > limit {
            let Offer { id, version, .. } = offer;
            return Err(PackageError::TooLarge { id, version, bytes, limit });
        }
        let plan = packages.missing(&manifest)?;
        let receiving = Receiving { packages, offer, text, plan, lease };
        receiving.check_room(min_free_bytes)?;
        Ok(receiving)
    }
}

impl Packages {
    /// Rule 3: what a kept manifest names was on disk before that was kept; other chunks are checked.
    fn missing(&self, manifest: &Manifest) -> Result<Plan, PackageError> {
        let all = self.all()?;
        if all.len() >= MAX_KEPT {
            return Err(PackageError::TooMany);
        }
        let chunks = all.iter().flat_map(|found| found.manifest.chunks());
        let trusted: HashSet<Digest> = chunks.map(|chunk| chunk.digest).collect();
        let has = |chunk: &Chunk| {
            self.chunks.has(&chunk.digest)
                && (trusted.contains(&chunk.digest) || self.chunks.read(chunk).is_ok())
        };
        Ok(Plan::new(&manifest.distinct_chunks(), has))
    }
}

impl Receiving {
    /// What is to come, by the places among the manifest's distinct chunks.
    pub fn missing(&self) -> &[u32] {
        self.plan.missing()
    }

    /// How many chunks are still to come.
    pub fn left(&self) -> usize {
        self.plan.left()
    }

    /// Takes a chunk, compressed.
    ///
    /// # Errors
    /// When it is none of the missing ones, damaged, or can't be written.
    pub fn take(&mut self, compressed: &[u8]) -> Result<(), PackageError> {
        if compressed.len() > MAX_COMPRESSED_BYTES {
            return Err(PackageError::WrongChunk("is too long"));
        }
        let content = decompress(compressed)
            .map_err(|_| PackageError::WrongChunk("can't be decompressed"))?;
        let digest = Digest::of(&content);
        let is_wanted = self.plan.size_of(&digest).map(usize::try_from);
        if !is_wanted.is_some_and(|size| size == Ok(content.len())) {
            return Err(PackageError::WrongChunk("is not one of those that are missing"));
        }
        let chunks = &self.packages.chunks;
        chunks.write(&digest, compressed).map_err(|e| self.failed(e))?;
        self.plan.came(&digest);
        Ok(())
    }

    /// Keeps the package: all its chunks are there.
    ///
    /// # Durability
    /// The chunks are synced before the manifest is kept.
    ///
    /// # Errors
    /// When chunks are missing, the disk refuses, or another content took its version meanwhile.
    pub fn finish(self) -> Result<Kept, PackageError> {
        let Self { packages, offer, text, plan, lease } = self;
        let (id, version) = (offer.id.clone(), offer.version.clone());
        if plan.left() > 0 {
            return Err(PackageError::Incomplete { id, version, left: plan.left() });
        }
        let folder = packages.chunks.folder();
        packages.chunks.sync().map_err(|e| PackageError::file(folder, e))?;
        {
            let mut changing = packages.changing();
            if let Some(found) = packages.find(&id, &version)? {
                offer.check_conflict(found.kept.digest)?;
            }
            packages.keep(&mut changing, &offer, &text)?;
        }
        drop(lease);
        packages.sweep();
        packages.get(&id, &version)
    }

    /// What comes leaves the configured room free, also if it can't be compressed.
    fn check_room(&self, floor: u64) -> Result<(), PackageError> {
        let needed = self.plan.left_bytes();
        let folder = self.packages.chunks.folder();
        let free = free_bytes(folder).map_err(|e| PackageError::file(folder, e))?;
        if needed > 0 && needed.saturating_add(floor) > free {
            return Err(PackageError::DiskFull { needed, free, floor });
        }
        Ok(())
    }

    fn failed(&self, source: std::io::Error) -> PackageError {
        let folder = self.packages.chunks.folder();
        PackageError::file_for(self.plan.left_bytes(), folder, source)
    }
}
