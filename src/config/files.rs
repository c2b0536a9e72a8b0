//! `[files]` of `agent.toml`: the folders into which clients may push and out of which they may pull.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, wrong};
use crate::script::check_name;

/// The root that there is when the configuration names none; below the state folder.
pub const DEFAULT_ROOT: &str = "files";
/// The greatest file: 10 GiB.
pub const DEFAULT_MAX_FILE_BYTES: u64 = 10 << 30;
/// What an upload leaves free on the disk: 256 MiB, for the agent's own state and its neighbours.
pub const DEFAULT_MIN_FREE_BYTES: u64 = 256 << 20;
/// How many files may be on their way: each has up to 2 MiB in memory and a thread at times.
pub const DEFAULT_MAX_TRANSFERS: usize = 16;
/// What the number of transfers may be.
const MAX_TRANSFERS: RangeInclusive<usize> = 1..=1000;
/// The longest name of a root.
const MAX_ROOT_NAME: usize = 64;

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

/// The table's shape.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilesTable {
    max_file_bytes: Option<i64>,
    min_free_bytes: Option<i64>,
    max_transfers: Option<i64>,
    roots: Option<BTreeMap<String, Root>>,
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

impl FilesTable {
    pub(super) fn resolve(self) -> Result<Files, ConfigError> {
        let default = Files::default();
        let roots = self.roots.unwrap_or(default.roots);
        for (name, root) in &roots {
            check_name(name, MAX_ROOT_NAME).map_err(|e| wrong("files.roots", name, &e))?;
            if root.path.as_os_str().is_empty() {
                return Err(wrong("files.roots", name, &"its path is empty"));
            }
        }
        let bytes = |key, number: Option<i64>, default| {
            number.map_or(Ok(default), |number| {
                u64::try_from(number).map_err(|_| wrong(key, &number, &"must not be negative"))
            })
        };
        let max_transfers = self.max_transfers.map_or(Ok(default.max_transfers), |number| {
            let count = usize::try_from(number).ok();
            count
                .filter(|count| MAX_TRANSFERS.contains(count))
                .ok_or_else(|| wrong("files.max_transfers", &number, &"must be 1 to 1000"))
        })?;
        Ok(Files {
            roots,
            max_file_bytes: bytes(
                "files.max_file_bytes",
                self.max_file_bytes,
                default.max_file_bytes,
            )?,
            min_free_bytes: bytes(
                "files.min_free_bytes",
                self.min_free_bytes,
                default.min_free_bytes,
            )?,
            max_transfers,
        })
    }
}
