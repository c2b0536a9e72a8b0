//! Another version of the program takes the agent's place: what came is verified, put in place, and taken back when
//! it doesn't come up. It knows files and one record; when the agent ends and begins is the agent's and the guard's.
//!
//! ```text
//! upload ─► verify ─► beside the program, tried ─► record, guard ─► rename ─► the agent becomes the new one
//!                                                     │ watches                        │
//!                                                     └─► upgraded ◄── it serves ──────┤
//!                                                     └─► rolled back ◄── it does not ─┘
//! ```
//!
//! 1. Nothing is run, nor put beside the program, before its signature is verified.
//! 2. At the program's path there is a whole program at every instant: the old one or the new one.
//! 3. The record says what is about to be done before it is done, so whoever comes next after a crash goes on.
//! 4. The guard is the old program. One at a time lives: it keeps `guard` in the folder locked.
//! 5. The old program stands as `<program>.previous`, until it is put back.

mod program;
mod record;
mod stage;
mod swap;
mod verify;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use program::{Version, own_version};
pub use record::{Ended, Event, Folder, IllegalStage, Record, Stage};
pub use stage::{Incoming, Offer, Prepared, Verified, begin};
pub(crate) use swap::keep;
pub use swap::{own_digest, previous, put_back, put_in_place, runs_another};

use crate::transfer::Digest;

/// The longest program, in bytes.
pub const MAX_PROGRAM_BYTES: u64 = 512 * 1024 * 1024;
/// What a guard says when it watches: a line.
pub(crate) const GUARD_READY: &str = "watching\n";
/// The longest signature file, in bytes: those of minisign have less than 500.
pub const MAX_SIGNATURE_BYTES: usize = 4096;

/// Why a new version is not taken.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Nobody's signature is taken.
    #[error("no upgrade is taken: the agent's configuration has no key in upgrade.keys")]
    NoKeys,
    /// Another one is not settled yet.
    #[error("another upgrade is in progress{}", .0.as_ref().map(|to| format!(", to version {to}")).unwrap_or_default())]
    InProgress(Option<String>),
    /// It is too long.
    #[error("program has {size} bytes, more than {MAX_PROGRAM_BYTES}")]
    TooLarge {
        /// What was offered.
        size: u64,
    },
    /// There is no room for it.
    #[error("no room for the program in {folder}: {needed} bytes are needed, {free} are free")]
    DiskFull {
        /// Where.
        folder: PathBuf,
        /// What it takes.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// The upload ended too early.
    #[error("upload ended after {received} of {size} bytes")]
    Incomplete {
        /// What came.
        received: u64,
        /// What was said.
        size: u64,
    },
    /// More came than was said.
    #[error("more than the {0} bytes came that were said")]
    TooMuch(u64),
    /// It is not what the client has.
    #[error("program has SHA-256 {found}, {expected} was said")]
    WrongDigest {
        /// What was said.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The signature is by none of the keys.
    #[error("signature is by none of the keys in upgrade.keys (its key id is {0})")]
    UnknownKey(String),
    /// The signature is none, or not of this program.
    #[error("signature: {0}")]
    Signature(String),
    /// It can't run on this machine.
    #[error("not a program for this machine: {0}")]
    Unfit(String),
    /// It did not say its version.
    #[error("trial run of `--version`: {0}")]
    Trial(String),
    /// It is older than what runs.
    #[error("version {offered} is older than {running}, which runs")]
    Older {
        /// What came.
        offered: Version,
        /// What runs.
        running: Version,
    },
    /// The agent's user can't replace the program.
    #[error("program {path} can't be replaced by the agent's user")]
    NotWritable {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No guard could be started.
    #[error("no guard can be started: {0}")]
    Guard(String),
    /// A file can't be read or written.
    #[error("file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The record holds something else, or stands elsewhere.
    #[error("record of the upgrade: {0}")]
    Record(String),
}

impl From<IllegalStage> for UpgradeError {
    fn from(error: IllegalStage) -> Self {
        Self::Record(error.to_string())
    }
}

/// What an agent is told of upgrades at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Public keys of minisign, in base64; empty: no upgrade is taken.
    pub keys: Vec<String>,
    /// How long a new version may take until it serves.
    pub health_limit: Duration,
    /// The agent's socket, where the guard asks.
    pub socket: PathBuf,
}

pub(crate) fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> UpgradeError + use<> {
    let path = path.to_owned();
    move |source| UpgradeError::File { path, source }
}
