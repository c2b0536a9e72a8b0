//! Files into and out of the folders that the configuration opens: the roots.
//!
//! ```text
//!  offer ─► same content in place? ─► nothing is sent
//!    └────► <root>/.baton-staging/<digest>.<n> ◄─ chunks ─► digest ─► on disk ─► moved into place
//!                     stays when the connection breaks: the next offer goes on there
//! ```
//!
//! 1. Nothing outside of a root is touched: a path is walked part by part, each opened below the one
//!    before, and no part may be a link. So nothing that is swapped meanwhile leads out.
//! 2. A file appears whole or not at all: nothing is in place before its digest is right and its
//!    content on disk.
//! 3. What is there is not sent again: the same content in place, and what came of a broken upload.
//! 4. Room on the disk is checked, and reserved where the file system can, before the first byte.
//!
//! All of it may block; it knows nothing of gRPC. A root's folders are its owner's: other file systems
//! that are mounted below it are not written to, since nothing can be moved there as a whole.

mod digest;
mod folder;
mod partial;
mod path;
mod receive;
mod send;
mod step;
mod walk;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use jiff::Timestamp;

use crate::config::files::{Access, Files, Root};
use folder::Folder;
use partial::Freed;

pub use digest::{Digest, NoDigest};
pub use path::{PathError, Place, RelativePath};
pub use receive::{Offer, Receive, Receiving, receive_local};
pub(crate) use send::read_chunk;
pub use send::{Sending, digest_file};

/// The greatest piece of a content in one message: well below gRPC's 4 MiB.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;
/// The pieces that baton itself sends.
pub const CHUNK_BYTES: usize = 512 * 1024;

/// Why a file could not be brought or fetched. Each says which, as `ROOT:path`.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// There is no such root.
    #[error("root {root:?} is not known; {known}")]
    UnknownRoot {
        /// What was asked for.
        root: String,
        /// Those that there are, for people.
        known: String,
    },
    /// Nothing may be pushed there.
    #[error("root {0:?} is open for reading only")]
    ReadOnly(String),
    /// The root's folder can't be used.
    #[error("folder {path} of root {root:?}")]
    Root {
        /// The root.
        root: String,
        /// Its folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing.
    #[error("{0} is not there")]
    NotFound(String),
    /// A part of the path is a link.
    #[error("{0} is a symbolic link, and none is followed")]
    Link(String),
    /// It is a folder, a pipe, …
    #[error("{place} is {what}")]
    WrongKind {
        /// Where.
        place: String,
        /// What is there, and what not.
        what: &'static str,
    },
    /// Its folder is on another file system than the root.
    #[error("{0} is on another file system than its root")]
    OtherFileSystem(String),
    /// It is greater than the configuration allows.
    #[error("{place} has {size} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Which.
        place: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk has no room.
    #[error(
        "no room for {place}: {needed} bytes are needed, {free} are free, {floor} of them stay so"
    )]
    DiskFull {
        /// For what.
        place: String,
        /// What is still to come.
        needed: u64,
        /// What is free.
        free: u64,
        /// What is to stay free.
        floor: u64,
    },
    /// There are as many transfers as may be.
    #[error("{0} files are on their way already; try again later")]
    Busy(usize),
    /// The content is another one than was said.
    #[error("content of {place} has the digest {found}, not {expected}; nothing was changed")]
    WrongDigest {
        /// Which.
        place: String,
        /// What was said.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The content ended too early; what came is kept.
    #[error("upload of {place} ended after {received} of {size} bytes")]
    Incomplete {
        /// Which.
        place: String,
        /// What came.
        received: u64,
        /// What was said.
        size: u64,
    },
    /// More came than was said.
    #[error("more than the {size} bytes of {place} came")]
    TooMuch {
        /// Which.
        place: String,
        /// What was said.
        size: u64,
    },
    /// There is less content than that.
    #[error("offset {offset} is beyond the end of {place}, which is at {end}")]
    OffsetBeyondEnd {
        /// Which.
        place: String,
        /// What was asked for.
        offset: u64,
        /// How much there is.
        end: u64,
    },
    /// The file can't be read or written.
    #[error("file {place}")]
    File {
        /// Which.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TransferError {
    /// A file operation that failed.
    fn file(place: &str, source: io::Error) -> Self {
        // It took the place of a file that was there a moment ago.
        if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            return Self::Link(place.to_owned());
        }
        Self::File { place: place.to_owned(), source }
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// A file or a folder.
    pub kind: Kind,
    /// Its permission bits.
    pub mode: u32,
    /// When it was changed last.
    pub modified: Timestamp,
}

/// A file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// Its content's, if it was asked for.
        digest: Option<Digest>,
    },
    /// A folder.
    Folder,
}

/// The roots, and what is on its way.
#[derive(Debug)]
pub struct Transfers {
    /// What relative roots are below.
    state: PathBuf,
    /// Read whole at the begin of each transfer, which keeps what it began with.
    opened: RwLock<Arc<Opened>>,
    on_their_way: Arc<AtomicUsize>,
    freed: Arc<Freed>,
}

/// What a configuration opens.
#[derive(Debug)]
struct Opened {
    roots: BTreeMap<String, Open>,
    max_file_bytes: u64,
    min_free_bytes: u64,
    /// How many transfers there may be.
    capacity: usize,
}

/// A place among the transfers, as long as it is kept.
#[derive(Debug)]
pub struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A root.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    access: Access,
    /// It is below the state folder, and made when it is needed. Any other one that is missing may be
    /// a disk that is not mounted.
    is_own: bool,
}

impl Transfers {
    /// The roots of a configuration; relative ones are below `state`.
    pub fn new(state: &Path, files: &Files) -> Self {
        Self {
            state: state.to_owned(),
            opened: RwLock::new(Arc::new(Opened::new(state, files))),
            on_their_way: Arc::default(),
            freed: Arc::default(),
        }
    }

    /// Opens what another configuration opens, and nothing else. What is on its way goes on.
    pub fn configure(&self, files: &Files) {
        let opened = Arc::new(Opened::new(&self.state, files));
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    fn opened(&self) -> Arc<Opened> {
        Arc::clone(&self.opened.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place among the transfers, as long as it is kept.
    ///
    /// # Errors
    /// When there is none.
    pub fn permit(&self) -> Result<Permit, TransferError> {
        let capacity = self.opened().capacity;
        let one_more = |count| (count < capacity).then_some(count + 1);
        let (taken, seen) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.on_their_way.fetch_update(taken, seen, one_more) {
            Ok(_) => Ok(Permit(Arc::clone(&self.on_their_way))),
            Err(_) => Err(TransferError::Busy(capacity)),
        }
    }

    /// After a restart: removes what is too old, and gives back room that a killed agent reserved.
    pub fn recover(&self) {
        for (name, root) in &self.opened().roots {
            let recover = || {
                let staging = Folder::open(&root.path)?.child(path::STAGING)?;
                partial::sweep(&staging, SystemTime::now())?;
                partial::trim_all(&staging, &self.freed)
            };
            match recover() {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(root = name, %error, "broken uploads can't be tidied");
                }
                _ => {}
            }
        }
    }

    /// Begins to bring a file, or goes on with it.
    ///
    /// # Errors
    /// When it may not be brought there, or there is no room.
    pub fn receive(&self, place: &Place, offer: Offer) -> Result<Receive, TransferError> {
        let opened = self.opened();
        let root = opened.root(&place.root)?;
        match root.access {
            Access::ReadWrite => {}
            Access::Read => return Err(TransferError::ReadOnly(place.root.clone())),
        }
        if offer.size > opened.max_file_bytes {
            let (size, limit) = (offer.size, opened.max_file_bytes);
            return Err(TransferError::TooLarge { place: place.to_string(), size, limit });
        }
        let failed = |source| root.failed(&place.root, source);
        if root.is_own {
            crate::durable::create_dir_all(&root.path, folder::HIDDEN_MODE).map_err(failed)?;
        }
        let folder = Folder::open(&root.path).map_err(failed)?;
        let staging =
            folder.child_or_new_with(path::STAGING, folder::HIDDEN_MODE).map_err(failed)?;
        partial::sweep(&staging, SystemTime::now()).map_err(failed)?;
        receive::begin(
            receive::Ground {
                root: folder,
                staging,
                stem: offer.digest.to_string(),
                path: place.path.clone(),
                place: place.to_string(),
                min_free_bytes: opened.min_free_bytes,
            },
            offer,
            &self.freed,
        )
    }

    /// Opens a file to send it from an offset on.
    ///
    /// # Errors
    /// When there is no such file, or it is shorter.
    pub fn send(&self, place: &Place, offset: u64) -> Result<Sending, TransferError> {
        Sending::open(self.open(place)?, place, offset)
    }

    /// Says what is at a path; for the digest the whole file is read.
    ///
    /// # Errors
    /// When there is nothing, or it can't be read.
    pub fn stat(&self, place: &Place, with_digest: bool) -> Result<FileInfo, TransferError> {
        send::stat(self.open(place)?, place, with_digest)
    }

    /// Opens the root of a place.
    fn open(&self, place: &Place) -> Result<Folder, TransferError> {
        let opened = self.opened();
        let root = opened.root(&place.root)?;
        Folder::open(&root.path).map_err(|error| {
            if root.is_own && error.kind() == io::ErrorKind::NotFound {
                return TransferError::NotFound(place.to_string());
            }
            root.failed(&place.root, error)
        })
    }
}

impl Opened {
    fn new(state: &Path, files: &Files) -> Self {
        let open = |(name, root): (&String, &Root)| {
            let is_own = root.path.is_relative();
            (name.clone(), Open { path: state.join(&root.path), access: root.access, is_own })
        };
        Self {
            roots: files.roots.iter().map(open).collect(),
            max_file_bytes: files.max_file_bytes,
            min_free_bytes: files.min_free_bytes,
            capacity: files.max_transfers,
        }
    }

    fn root(&self, name: &str) -> Result<&Open, TransferError> {
        self.roots.get(name).ok_or_else(|| {
            let known: Vec<_> = self.roots.keys().map(String::as_str).collect();
            let known = match known.as_slice() {
                [] => "none is open".to_owned(),
                names => format!("there is {}", names.join(", ")),
            };
            TransferError::UnknownRoot { root: name.to_owned(), known }
        })
    }
}

impl Open {
    fn failed(&self, name: &str, source: io::Error) -> TransferError {
        TransferError::Root { root: name.to_owned(), path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests;
