//! A script's output on disk: `output.journal`.
//!
//! Written by the script's supervisor, read by the agent while it grows, from any output offset on.
//! Beside the output it holds the supervisor's events, in order.
//!
//! 1. A record is there as a whole or not at all: two checksums, one for its header, one for its
//!    payload.
//! 2. A cut or damaged tail is a shorter journal, never a wrong one; a reader says so.
//! 3. The checksums are salted: a journal that a script prints is payload, not records.
//! 4. What can't be kept (the limit, a full or nearly full disk) is counted, with the first reason, and
//!    marked at its place; the script is never held up.
//! 5. Output offsets count the bytes of both streams together, in the order in which they were read.

mod reader;
pub mod record;
mod writer;

use std::path::PathBuf;

use crate::format::Newer;

pub use reader::{EventScanner, Reader, Record};
pub use writer::{Limits, Mark, Missing, Writer};

/// What could not be done with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// There is none (yet).
    #[error("there is no journal")]
    Missing,
    /// The file can't be used.
    #[error("journal {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A newer baton wrote it.
    #[error("journal {path}")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// How new.
        #[source]
        source: Newer,
    },
    /// There is less output than that.
    #[error("output offset {offset} is beyond the end, which is at {end}")]
    OffsetBeyondEnd {
        /// What was asked for.
        offset: u64,
        /// How much there is.
        end: u64,
    },
    /// The file is something else, or there is a record already.
    #[error("journal {0} was begun by somebody else")]
    NotEmpty(PathBuf),
}
