//! Named mutexes: one line per name, in order of arrival, across all processes of the machine.
//!
//! ```text
//! <mutex folder>/
//!   .format                only if it is not the first: the version of all that is here
//!   <name>/                one folder per mutex; 0700 for `machine`, else 0755
//!     guard                a named-lock mutex, held for the moments in which the line changes
//!     next                 the last number that was given out
//!     os.lock              the plain OS mutex (flock): other tools join in here
//!     done                 only of a mutex of [`once`]: when it was done
//!     abandoned            only after a hold was given up ([`abandoned`]): what the next holder is told
//!     line/1795624862042.x a ticket: its number; x exclusive, s shared, s4 shared with at most 4
//! ```
//!
//! The rules; tests cite their numbers.
//!
//! 1. Numbers are given under `guard` and only grow, also when the folder was lost in between: the
//!    order of the line is their order, and a holder's number is its fencing number.
//! 2. Who waits or holds keeps its ticket locked, from before the guard is given back. A ticket whose
//!    lock can be had is dead; whoever stands behind it removes it. Only joining needs the guard.
//! 3. Each claim has a limit: how many may hold while it does (exclusive 1, at most N: N, shared: no
//!    limit). A claim may hold when fewer live claims are before it than the smallest limit among
//!    them and itself ([`policy`]). So nobody overtakes, and an allowed claim stays allowed.
//! 4. A waiter sleeps in the lock of tickets that must end before it may hold, then looks again.
//!    Nobody polls.
//! 5. An exclusive holder also holds `os.lock`, a shared one holds it shared: tools that know only
//!    the OS mutex exclude and are excluded.
//! 6. The descriptors of ticket and `os.lock` are inherited by the protected command's tree. If the
//!    wrapper is killed, its place lives until the last of the tree is gone, also of those that closed
//!    them ([`survivors`]); at a normal end they are unlocked, so a straggler holds nothing.
//! 7. Several names are joined at once, all guards held in the order of the names: two claims that
//!    share names meet them in the same order and can't wait for each other.
//! 8. Nothing in a mutex folder is removed but dead tickets; after taking `os.lock` or `guard` its
//!    inode is compared with the path's, so a file that a cleaner removed is noticed.
//! 9. A claim that would wait, in the end, for itself is refused ([`deadlock`]).
//! 10. A hold may be lent ([`lend`]): the borrower has the same open files, so the place lives until
//!     lender, borrowers and all their trees are gone; only the lender gives it back.
//! 11. No hold is ever broken by itself. Who breaks one names its ticket, and ends its process tree
//!     first ([`breaking`]).

pub mod abandoned;
pub mod append;
pub mod breaking;
pub mod deadlock;
pub mod front;
pub mod hold;
pub mod holder;
pub mod keeper;
pub mod lend;
pub mod line;
pub mod locks;
pub mod name;
pub mod once;
pub mod os;
mod place;
pub mod policy;
pub mod status;
pub mod survivors;
mod unix;
pub mod watch;

use std::path::PathBuf;

use crate::format::Newer;

pub use hold::{Advance, Blocked, Hold};
pub use line::{Claimant, Party};
pub use name::{ExclusiveKey, MutexName};
pub use policy::Mode;

/// A wish for one mutex.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Claim {
    /// Which mutex.
    pub name: MutexName,
    /// How it is claimed.
    pub mode: Mode,
}

/// Why a mutex could not be worked with. Waiting is no error.
#[derive(Debug, thiserror::Error)]
pub enum MutexError {
    /// A folder could not be made or read.
    #[error("mutex folder {path}")]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What should be a plain file or folder is something else: a link, a pipe …
    #[error("{path} is not a plain {expected}")]
    Strange {
        /// Which path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// Somebody else could put other files in the place of a mutex's.
    #[error(
        "mutex folder {path} is not safe: owner {owner}, mode {mode:o}; it must belong to this user or root, and others must not write there"
    )]
    Unsafe {
        /// Which folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// A newer baton made the folder: whoever does not know its rules may not take part.
    #[error("mutex folder {path}")]
    Newer {
        /// Which folder.
        path: PathBuf,
        /// How new.
        #[source]
        source: Newer,
    },
    /// The named mutex of the operating system that guards the line refused.
    #[error("guard of the line {path}")]
    Guard {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: named_lock::Error,
    },
    /// A file of the mutex could not be opened, locked or written.
    #[error("mutex file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Whether a holder that was killed left something running can't be seen: nobody may go on.
    #[error("whether what held it lives on can't be seen")]
    Survivors(#[source] std::io::Error),
    /// The claim would wait for itself (rule 9).
    #[error("it would wait for itself: {}", describe(.0))]
    Deadlock(Vec<deadlock::Step>),
    /// What was lent could not be passed on.
    #[error("lent mutex")]
    Lend(#[source] std::io::Error),
    /// The operating system gave no means to sleep.
    #[error("no wake-up for a waiter")]
    Wake(#[source] std::io::Error),
}

/// A cycle in words.
fn describe(cycle: &[deadlock::Step]) -> String {
    let name = |party: &Party| match &party.who.script_id {
        Some(id) => format!("script {id}"),
        None => format!("pid {} ({})", party.who.pid, party.who.command),
    };
    let step = |step: &deadlock::Step| {
        format!("{} waits for `{}` of {}", name(&step.waiter), step.mutex, name(&step.holder))
    };
    cycle.iter().map(step).collect::<Vec<_>>().join("; ")
}
