//! Packages: trees of files that are brought to a machine once, as chunks, and installed there.
//!
//! ```text
//!  directory, file, archive ─► manifest + chunks ─► what is missing is sent ─► chunk store, manifest kept
//!    baton package install (in a script) ─► .V.tmp-… ─► on disk ─► ID/V ─► ID/current ─► older ones go
//! ```
//!
//! 1. A package's digest is that of its manifest, and the manifest names each chunk by its digest. What
//!    is there is not sent again, whichever package or version brought it.
//! 2. One id and version stand for one content, unless the sender says that it replaces.
//! 3. A manifest is kept only when all its chunks are there and on disk. A chunk that no kept manifest
//!    names is checked before it counts as there; after a day it goes.
//! 4. Chunks are removed only when nobody sends or installs: both hold `lock` shared.
//! 5. What is installed appears whole, at once, in a folder of its own; `current` always leads to a
//!    whole version. A kill at any point changes that for none of them.
//!
//! Files of the agent's, below `<state>/packages`: `lock`, `chunks/aa/<digest>` (zstd), `kept/<id>/<version>`
//! (the manifest), and by default `installed/<id>/<version>`. Nothing here knows gRPC or a mutex.

mod archive;
mod chunks;
pub mod install;
mod keep;
pub mod manifest;
mod name;
mod plan;
pub mod pruning;
mod receive;
mod source;
mod tree;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::mutex::os;
use crate::transfer::Digest;

pub use keep::{Kept, Packages};
pub use manifest::{Manifest, ManifestError};
pub use name::{CURRENT, PackageId, Version, VersionError};
pub use plan::Plan;
pub use receive::{Begun, Offer, Opening, Receiving};
pub use source::{Package, SourceError};

/// The folder of packages below the state folder.
pub const FOLDER: &str = "packages";
/// How many versions of a package an agent keeps the content of; the oldest go first.
pub const KEPT_VERSIONS: usize = 10;
/// The most packages and versions that an agent keeps: all manifests are read for each transfer.
pub const MAX_KEPT: usize = 10_000;

/// Why a package could not be brought, listed or removed.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The same id and version stand for something else.
    #[error("package {id} {version} is there already with another content (sha256 {kept})")]
    Conflict {
        /// Which.
        id: PackageId,
        /// Which.
        version: Version,
        /// The digest of what is there.
        kept: Digest,
    },
    /// There is no such package.
    #[error("package {id} {version} is not there")]
    NotFound {
        /// Which.
        id: PackageId,
        /// Which.
        version: Version,
    },
    /// What was sent is no package.
    #[error("package {id} {version} is refused")]
    Manifest {
        /// Which.
        id: PackageId,
        /// Which.
        version: Version,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// It has another digest than was said.
    #[error("manifest has the digest {found}, not {expected}")]
    WrongDigest {
        /// What was said.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A chunk came that is none of the missing ones, or is damaged.
    #[error("chunk that came {0}; nothing of it is kept")]
    WrongChunk(&'static str),
    /// More came than was said.
    #[error("more came than was said: {0}")]
    TooMuch(&'static str),
    /// The sender ended too early; what came is kept.
    #[error("package {id} {version} ended while {left} chunks were missing")]
    Incomplete {
        /// Which.
        id: PackageId,
        /// Which.
        version: Version,
        /// How many.
        left: usize,
    },
    /// It is larger than the configuration allows.
    #[error("package {id} {version} has {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Which.
        id: PackageId,
        /// Which.
        version: Version,
        /// How many.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// There are as many packages as may be.
    #[error("there are {MAX_KEPT} packages already; remove some")]
    TooMany,
    /// The disk has no room.
    #[error(
        "no room for packages: {needed} bytes are needed, {free} are free, {floor} of them stay so"
    )]
    DiskFull {
        /// What is still to come.
        needed: u64,
        /// What is free.
        free: u64,
        /// What is to stay free.
        floor: u64,
    },
    /// A file of the agent's can't be read or written.
    #[error("file {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl PackageError {
    /// A file operation that failed.
    fn file(path: &Path, source: io::Error) -> Self {
        Self::file_for(0, path, source)
    }

    /// The same, with so many bytes still to come.
    fn file_for(needed: u64, path: &Path, source: io::Error) -> Self {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        if full.contains(&source.kind()) {
            let free = chunks::free_bytes(path).unwrap_or_default();
            return Self::DiskFull { needed, free, floor: 0 };
        }
        Self::File { path: path.to_owned(), source }
    }
}

/// Opens the lock of a package folder (rule 4).
fn open_lock(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(folder.join("lock"))
}

/// Keeps chunks from being removed, as long as it is kept.
#[derive(Debug)]
struct Lease {
    _lock: File,
}

impl Lease {
    /// Waits as long as chunks are being removed.
    fn take(folder: &Path) -> io::Result<Self> {
        let lock = open_lock(folder)?;
        os::lock_shared(&lock)?;
        Ok(Self { _lock: lock })
    }
}

/// Where the manifest of a package is kept.
fn kept_path(folder: &Path, id: &PackageId, version: &Version) -> PathBuf {
    folder.join("kept").join(id.as_str()).join(version.as_str())
}
