//! `[files]` of `agent.toml`: the folders into which clients may push and out of which they may pull.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::Deserialize;

/// The root that there is when the configuration names none; below the state folder.
pub const DEFAULT_ROOT: &str = "files";
/// The greatest file: 10 GiB.
pub const DEFAULT_MAX_FILE_BYTES: u64 = 10 << 30;
/// What an upload leaves free on the disk: 256 MiB, for the agent's own state and its neighbours.
pub const DEFAULT_MIN_FREE_BYTES: u64 = 256 << 20;
/// How many files may be on their way: each has up to 2 MiB in memory and a thread at times.
pub const DEFAULT_MAX_TRANSFERS: usize = 16;
/// What the number of transfers may be.
pub(super) const TRANSFER_COUNTS: RangeInclusive<u64> = 1..=1000;

/// The folders that are open to clients, and the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// By name.
    pub roots: BTreeMap<String, Root>,
    /// The greatest file that may be pushed.
    pub max_file_bytes: u64,
    /// What an upload leaves free on the disk.
    pub min_free_bytes: u64,
    /// How many files may be on their way at once.
    pub max_transfers: usize,
}

/// A folder that is open to clients.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Where it is; below the state folder when it is relative.
    pub path: PathBuf,
    /// What clients may do there.
    pub access: Access,
}

/// What clients may do with a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Pull.
    Read,
    /// Pull and push.
    ReadWrite,
}

impl Default for Files {
    fn default() -> Self {
        let root = Root { path: PathBuf::from(DEFAULT_ROOT), access: Access::ReadWrite };
        Self {
            roots: BTreeMap::from([(DEFAULT_ROOT.to_owned(), root)]),
            max_file_bytes: DEFAULT_MAX_FILE_BYTES,
            min_free_bytes: DEFAULT_MIN_FREE_BYTES,
            max_transfers: DEFAULT_MAX_TRANSFERS,
        }
    }
}
