//! A lease that is kept alive by a task of its own, and ends with its owner.
//!
//! ```text
//! sent ──── ⅓ ───────── ⅔ ─────────── 11/12 ──── ttl ──►
//!           renewed     lost: its      what is    etcd ends it:
//!                       holder stops   left is    the next one holds
//!                                      killed
//! ```
//!
//! All is counted from the moment at which the last confirmed renewal was **sent**, on this machine's
//! clock: etcd counts from when it got it, which is later.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::FleetError;
use super::clock::{Moment, sleep_until};
use super::etcd::{Etcd, Granted, Place};

/// The shares of a time-to-live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long the lease lives without a renewal.
    pub ttl: Duration,
}

impl Terms {
    /// When it is renewed.
    pub fn renew_at(self, sent: Moment) -> Moment {
        sent.after(self.ttl / 3)
    }

    /// How long after a failed renewal the next one is tried.
    fn pause(self) -> Duration {
        self.ttl / 30
    }

    /// When who holds by it must stop.
    pub fn ask_at(self, sent: Moment) -> Moment {
        sent.after(self.ttl * 2 / 3)
    }

    /// When what has not stopped is killed.
    pub fn force_at(self, sent: Moment) -> Moment {
        sent.after(self.ttl * 11 / 12)
    }

    /// How long what is asked to stop has for it.
    pub fn grace(self) -> Duration {
        self.ttl / 4
    }
}

/// How a lease stands, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was confirmed.
    Alive {
        /// When the request for it was sent.
        sent: Moment,
    },
    /// etcd says that it, or its key, is there no more.
    Gone,
}

/// Why a lock is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No renewal was confirmed for so long.
    Unconfirmed(Duration),
    /// etcd says that its lease or key is there no more: another may hold already.
    Gone,
}

/// A lease of this process.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) id: i64,
    pub(super) terms: Terms,
    standing: watch::Receiver<Standing>,
    place: Arc<OnceLock<Place>>,
    /// Ends the task.
    end: DropGuard,
    task: JoinHandle<Result<(), FleetError>>,
}

impl Lease {
    /// Begins one; when it is dropped, the task ends it at etcd.
    pub(super) async fn grant(
        etcd: &Arc<Etcd>,
        ttl: Duration,
        tasks: &TaskTracker,
    ) -> Result<Self, FleetError> {
        let granted = etcd.grant(ttl).await?;
        let (sender, standing) = watch::channel(Standing::Alive { sent: granted.sent });
        let (place, token) = (Arc::new(OnceLock::new()), CancellationToken::new());
        let terms = Terms { ttl: granted.ttl };
        let keeper = Keeper {
            etcd: Arc::clone(etcd),
            id: granted.id,
            terms,
            place: Arc::clone(&place),
            standing: sender,
        };
        let task = tasks.spawn(keeper.run(granted, token.clone()));
        Ok(Self { id: granted.id, terms, standing, place, end: token.drop_guard(), task })
    }

    /// From now on the key's end is the lease's end.
    pub(super) fn bears(&self, place: Place) {
        // There is one place to a lease.
        self.place.get_or_init(|| place);
    }

    /// How it stands, and will stand.
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Waits until etcd says that it is gone.
    pub(super) async fn gone(&self) {
        let mut standing = self.standing();
        if standing.wait_for(|standing| *standing == Standing::Gone).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until it is confirmed and has time left to hold by; whether it can be.
    pub(super) async fn is_fresh(&self) -> bool {
        let terms = self.terms;
        let is_known = |standing: &Standing| match standing {
            Standing::Alive { sent } => !terms.ask_at(*sent).is_over(),
            Standing::Gone => true,
        };
        let mut standing = self.standing();
        let known = standing.wait_for(is_known).await.map(|standing| *standing);
        known.is_ok_and(|standing| standing != Standing::Gone)
    }

    /// Waits until who holds by it must stop.
    pub(super) async fn lost(&self) -> Loss {
        let mut standing = self.standing();
        loop {
            let Standing::Alive { sent } = *standing.borrow_and_update() else {
                return Loss::Gone;
            };
            let is_due = tokio::select! {
                () = sleep_until(self.terms.ask_at(sent)) => true,
                changed = standing.changed() => changed.is_err(),
            };
            if is_due && *standing.borrow() == (Standing::Alive { sent }) {
                sleep_until(self.terms.ask_at(sent)).await;
                return Loss::Unconfirmed(Moment::now().since(sent));
            }
        }
    }

    /// Ends it, with its key.
    pub(super) async fn end(self) -> Result<(), FleetError> {
        self.end.disarm().cancel();
        // A task that panicked: the lease ends by itself.
        self.task.await.unwrap_or(Ok(()))
    }
}

/// What renews a lease.
struct Keeper {
    etcd: Arc<Etcd>,
    id: i64,
    terms: Terms,
    place: Arc<OnceLock<Place>>,
    standing: watch::Sender<Standing>,
}

impl Keeper {
    async fn run(self, granted: Granted, end: CancellationToken) -> Result<(), FleetError> {
        end.run_until_cancelled(self.renew(granted.sent)).await;
        self.etcd.revoke(self.id).await
    }

    /// Renews it until it is gone.
    async fn renew(&self, granted: Moment) {
        let mut due = self.terms.renew_at(granted);
        loop {
            sleep_until(due).await;
            due = match self.renew_once().await {
                Ok(Standing::Alive { sent }) => {
                    self.standing.send_replace(Standing::Alive { sent });
                    self.terms.renew_at(sent)
                }
                Ok(Standing::Gone) => break,
                Err(error) => {
                    tracing::debug!(lease = self.id, "not renewed: {error}");
                    Moment::now().after(self.terms.pause())
                }
            };
        }
        self.standing.send_replace(Standing::Gone);
        // Its owner ends it.
        std::future::pending::<()>().await;
    }

    async fn renew_once(&self) -> Result<Standing, FleetError> {
        let Some(Granted { sent, .. }) = self.etcd.renew(self.id).await? else {
            return Ok(Standing::Gone);
        };
        // A key that somebody removed lets the next one hold, whatever the lease.
        let is_there = match self.place.get() {
            Some(place) => self.etcd.is_there(place).await?,
            None => true,
        };
        Ok(if is_there { Standing::Alive { sent } } else { Standing::Gone })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_asked_and_killed_before_the_lease_can_end() {
        for ttl in [2, 3, 15, 60] {
            let (terms, sent) = (Terms { ttl: Duration::from_secs(ttl) }, Moment::now());
            let end = sent.after(terms.ttl);
            let (ask, force) = (terms.ask_at(sent), terms.force_at(sent));
            assert!(terms.renew_at(sent) < ask && ask < force && force < end);
            assert_eq!(force.since(ask), terms.grace());
            // One renewal may fail, and be tried again.
            assert!(terms.renew_at(sent).after(terms.ttl / 4 + terms.pause()) < ask);
        }
    }
}
