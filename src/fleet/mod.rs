//! Mutexes that a fleet of machines shares, by etcd.
//!
//! ```text
//! baton/<name>/<lease>     one key per claimant; its value says who ([`Who`], JSON)
//! ```
//!
//! The rules; tests cite their numbers.
//!
//! 1. A claimant makes one key that lives by its lease. The order of the line is the order of the
//!    revisions at which the keys were made; etcd gives each revision once, and they only grow.
//! 2. The first of the line holds. The revision of its key is its fencing number.
//! 3. Each waiter watches the key just before its own. Those near the front watch the first one too, to
//!    tell who holds. Nobody polls.
//! 4. Who holds counts its lease from when the last confirmed renewal was sent ([`lease`]), by a clock that
//!    goes on while the machine sleeps ([`clock`]). At two thirds of it without another one the lock is lost:
//!    its holder stops, long before etcd lets the next one hold.
//! 5. Who waits keeps its place as long as its lease lives, whatever becomes of its connection. A lost
//!    place is told, and a new one is taken at the end.
//! 6. Released is the lease with its key, in one step.
//! 7. A command under a lock has a process of its own between itself and the holder ([`tether`]), which ends
//!    the whole tree when it hears nothing more: also when the holder is killed or hangs.
//!
//! What can't be had: that two commands never overlap, whatever happens. A machine that is stopped as a
//! whole (a virtual machine, say) and goes on later runs on until its next instruction is the check. What must
//! exclude that compares fencing numbers.

pub mod clock;
mod ending;
mod etcd;
pub mod lease;
pub mod line;
mod lock;
pub mod run;
pub mod signals;
pub mod tether;
mod tls;
mod unix;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use crate::mutex::Claimant;
use etcd::Etcd;
pub use lease::Loss;
pub use line::{Ahead, LockName, Party, Who};
pub use lock::{FleetLock, Told};

/// The time-to-live of a lease, unless it is said otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(15);
/// The shortest: an etcd that takes a second for each answer must not lose it.
pub const MIN_TTL: Duration = Duration::from_secs(3);
/// The longest: so long all wait for who was cut off.
pub const MAX_TTL: Duration = Duration::from_hours(1);

/// Why a fleet-wide mutex could not be had. Waiting is no error.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// An address is wrong.
    #[error("etcd endpoint {url:?} {problem}")]
    Endpoint {
        /// Which one.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The authority's certificates can't be used.
    #[error("certificates of etcd's authority {path}: {problem}")]
    Authority {
        /// Their file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// None of the members answered; each with its reason.
    #[error("etcd can't be reached: {0}")]
    Unreachable(String),
    /// A member refused the request.
    #[error("etcd at {url} refused: {}", status.message())]
    Refused {
        /// Which one.
        url: String,
        /// Why.
        status: Box<tonic::Status>,
    },
    /// Others stand before, and the caller did not want to wait.
    #[error("not obtained: {} is before it", .0.holder.describe())]
    Busy(Box<Ahead>),
}

impl FleetError {
    /// Whether another try may succeed without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// How a fleet's mutexes are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a lease lives without a renewal, in whole seconds; etcd may make it longer. Who was cut off
    /// or killed holds up the others for so long.
    pub ttl: Duration,
    /// The certificates, in PEM, of the authority of etcd's own; for https.
    pub ca: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { ttl: DEFAULT_TTL, ca: None }
    }
}

/// The mutexes of a fleet. Its clones are the same one.
#[derive(Debug, Clone)]
pub struct Fleet {
    etcd: Arc<Etcd>,
    options: Options,
    /// The keepers of leases.
    tasks: TaskTracker,
}

impl Fleet {
    /// Connects to the members of an etcd cluster, `http://HOST:PORT` each: one of them must answer now.
    ///
    /// # Errors
    /// When an address is wrong, or none answers.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn connect(endpoints: &[String], options: Options) -> Result<Self, FleetError> {
        let etcd = Etcd::new(endpoints, &options)?;
        etcd.check().await?;
        Ok(Self { etcd: Arc::new(etcd), options, tasks: TaskTracker::new() })
    }

    /// Waits until all leases are ended of locks, and of waits, that were dropped. Without it they end by
    /// themselves after their time-to-live, if the runtime ends first.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn close(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Who {
    /// This process, which does `command` for `reason`.
    pub fn this_process(command: String, reason: String) -> Self {
        let Claimant { pid, user, command, .. } = Claimant::this_process(command);
        Self {
            host: crate::config::host_name(),
            pid,
            user,
            command,
            reason,
            waits_since: Timestamp::now(),
            holds_since: None,
        }
    }
}
