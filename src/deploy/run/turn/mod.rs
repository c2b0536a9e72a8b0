//! A deployment's turn: those with the same tag run one after the other, in order of arrival. On one
//! orchestrating machine that is a named mutex, for several a mutex of etcd.

mod local;

use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::fleet::{self, Fleet, FleetError, FleetLock, LockName, Loss, Told, Who};
use crate::mutex::{Claimant, MutexError, MutexName};
use crate::snapshot::describe;

/// How much of a tag its mutex's name shows.
const SHOWN_CHARS: usize = 40;

/// Why a turn can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The machine's mutex can't be used.
    #[error(transparent)]
    Mutex(#[from] MutexError),
    /// The fleet's mutex can't be used.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The system refused.
    #[error("system call")]
    System(#[from] io::Error),
    /// The thread that waits has ended.
    #[error("the wait was broken off")]
    Ended,
}

/// What excludes others.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) tag: String,
    /// The members of an etcd cluster; none: this machine's mutexes.
    pub(super) etcd: Vec<String>,
    pub(super) etcd_ca: Option<PathBuf>,
    pub(super) mutexes: PathBuf,
    /// What others are told.
    pub(super) summary: String,
}

/// The turn. Dropped, it is over.
#[derive(Debug)]
pub(super) enum Turn {
    /// On this machine.
    Local { _kept: local::Kept },
    /// In the fleet.
    Fleet { lock: FleetLock, fleet: Fleet },
}

impl Wish {
    /// Waits for the turn. `on_wait` is told for whom, at once and on changes.
    ///
    /// # Cancel safety
    /// When it is dropped, the place in the line is given up.
    ///
    /// # Errors
    /// When the mutex can't be used.
    pub(super) async fn take(
        &self,
        on_wait: impl Fn(String) + Send + 'static,
    ) -> Result<Turn, TurnError> {
        let name = mutex_of(&self.tag);
        if self.etcd.is_empty() {
            let who = Claimant::this_process(self.summary.clone());
            let told = move |blocked: &[crate::mutex::Blocked]| {
                let parties = blocked.iter().flat_map(|b| b.holders.iter().chain(&b.ahead));
                on_wait(parties.map(describe).collect::<Vec<_>>().join("; then "));
            };
            let kept = local::take(&self.mutexes, name, who, told).await?;
            return Ok(Turn::Local { _kept: kept });
        }
        let options = fleet::Options { ca: self.etcd_ca.clone(), ..fleet::Options::default() };
        let fleet = Fleet::connect(&self.etcd, options).await?;
        let name: LockName = name.as_str().parse().map_err(|_| TurnError::Ended)?;
        let who = Who::this_process(self.summary.clone(), String::new());
        let told = |told: Told<'_>| {
            on_wait(match told {
                Told::Waits(ahead) if ahead.position > 1 => {
                    let last = ahead.before.describe();
                    format!(
                        "{}; {} before, the last {last}",
                        ahead.holder.describe(),
                        ahead.position
                    )
                }
                Told::Waits(ahead) => ahead.holder.describe(),
                Told::Interrupted(error) => format!("etcd does not answer: {error}"),
                Told::Anew => "the place was lost, at the end of the line again".to_owned(),
            });
            ControlFlow::Continue(())
        };
        let lock = fleet.lock(&name, who, told).await?;
        Ok(Turn::Fleet { lock, fleet })
    }
}

impl Turn {
    /// Waits until the turn is lost, and says how; that of a machine never is.
    pub(super) async fn lost(&self) -> String {
        match self {
            Self::Local { .. } => std::future::pending().await,
            Self::Fleet { lock, .. } => match lock.lost().await {
                Loss::Unconfirmed(time) => {
                    format!("etcd did not confirm it for {} s", time.as_secs())
                }
                Loss::Gone => "etcd has given it to the next one".to_owned(),
            },
        }
    }

    /// Gives it back. Who can't be told hears it by the end of the lease.
    pub(super) async fn end(self) {
        if let Self::Fleet { lock, fleet } = self {
            lock.release().await.unwrap_or_default();
            fleet.close().await;
        }
    }
}

/// The name of the mutex of a tag: readable, and never that of another tag.
pub fn mutex_of(tag: &str) -> MutexName {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let shown: String = tag.chars().take(SHOWN_CHARS).map(plain).collect();
    let mut name = format!("deploy-{}-", shown.to_ascii_lowercase());
    for byte in Sha256::digest(tag).iter().take(8) {
        write!(name, "{byte:02x}").unwrap_or_default();
    }
    name.parse().unwrap_or_else(|_| MutexName::machine())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_look_alike_have_mutexes_of_their_own() {
        let name = mutex_of("Acme/Shop/Production");
        assert!(name.as_str().starts_with("deploy-acme-shop-production-"), "{name}");
        assert_ne!(name, mutex_of("Acme-Shop-Production"));
        assert_ne!(name, mutex_of("acme/shop/production"));
        assert!(mutex_of(&"é/".repeat(500)).as_str().starts_with("deploy---"));
    }
}
