//! The leases of a run: one a target, from the first step there that wants the machine for the whole
//! deployment until the target's wave is through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::Course;
use super::job::waits_for_others;
use crate::client::{Client, Lease, LeaseWish};
use crate::script::{Labels, Phase, ScriptId};
use crate::snapshot::Snapshot;
use crate::spec::OnLeaseEnd;
use crate::text::chain;

/// How many leases of one run there may have been on a target: each kill of the run may cost one.
const MAX_LEASES: u32 = 100;

/// Why there is no lease.
#[derive(Debug, Clone)]
pub(super) enum NoLease {
    /// The machine is busy, and nobody is to wait.
    Busy,
    /// Otherwise; for people.
    Failed(String),
}

/// What a target's lease is opened with.
pub(super) struct Opening<'a> {
    pub(super) course: &'a Course,
    pub(super) client: &'a Client,
    pub(super) target: &'a str,
    pub(super) labels: Labels,
    pub(super) wish: LeaseWish,
    /// Whether it may stand in line.
    pub(super) may_wait: bool,
}

type Slot = Arc<OnceCell<Result<Lease, NoLease>>>;

/// By the targets' places in the plan.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<usize, Slot>>);

impl Leases {
    /// The target's lease, open. `tell` is told how it stands while it waits in line.
    pub(super) async fn of(
        &self,
        place: usize,
        opening: Opening<'_>,
        tell: impl Fn(&Snapshot),
    ) -> Result<Lease, NoLease> {
        let slot = Arc::clone(self.slots().entry(place).or_default());
        let opened = slot.get_or_init(|| opening.open(tell)).await.clone();
        if opened.is_err() {
            // Whoever tries again opens another one.
            self.slots().retain(|_, kept| !Arc::ptr_eq(kept, &slot));
        }
        opened
    }

    /// Gives the machines back. Who can't be told hears it by the end of the time-to-live.
    pub(super) async fn close(&self, is_over: impl Fn(usize) -> bool) {
        let over: Vec<Slot> = {
            let mut slots = self.slots();
            let places: Vec<usize> = slots.keys().copied().filter(|at| is_over(*at)).collect();
            places.iter().filter_map(|at| slots.remove(at)).collect()
        };
        for slot in over {
            if let Some(Ok(lease)) = slot.get() {
                drop(lease.clone().close(OnLeaseEnd::Wait, String::new()).await);
            }
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opening<'_> {
    async fn open(self, tell: impl Fn(&Snapshot)) -> Result<Lease, NoLease> {
        for number in 1..=MAX_LEASES {
            let id = self.id(number)?;
            let labels = self.labels.clone();
            let wish = LeaseWish { lease_id: id, labels, ..self.wish.clone() };
            let lease = self.client.open_lease(wish).await;
            let lease = lease.map_err(|error| NoLease::Failed(format!("lease: {error}")))?;
            if let Some(standing) = self.stand(&lease, &tell).await? {
                match standing.phase {
                    // That of an earlier start of this run.
                    Phase::Done(outcome) if standing.started_at.is_none() => {
                        return Err(NoLease::Failed(format!("lease: {}", outcome.kind)));
                    }
                    Phase::Done(_) | Phase::Stopping => {}
                    Phase::Queued | Phase::Waiting | Phase::Running => return Ok(lease),
                }
            }
        }
        Err(NoLease::Failed("lease: there were too many of this run".to_owned()))
    }

    fn id(&self, number: u32) -> Result<ScriptId, NoLease> {
        let text = format!("{}.lease-{number}.{}", self.course.run, self.target);
        text.parse().map_err(|error| NoLease::Failed(format!("lease {text:?}: {error}")))
    }

    /// Waits until it is open or over.
    async fn stand(
        &self,
        lease: &Lease,
        tell: &impl Fn(&Snapshot),
    ) -> Result<Option<Snapshot>, NoLease> {
        let busy = tokio_util::sync::CancellationToken::new();
        let told = |lease: &Snapshot| {
            tell(lease);
            if !self.may_wait && waits_for_others(lease, &self.course.run) {
                busy.cancel();
            }
        };
        let given_up = tokio::select! {
            opened = lease.until_open(told) => {
                return match opened {
                    Ok(standing) => Ok(Some(standing)),
                    Err(error) => Err(NoLease::Failed(chain(&error))),
                };
            }
            () = busy.cancelled() => NoLease::Busy,
            () = self.course.stopped() => NoLease::Failed("it was stopped".to_owned()),
        };
        let reason = "the deployment does not wait for it any more".to_owned();
        drop(lease.clone().close(OnLeaseEnd::Cancel, reason).await);
        Err(given_up)
    }
}
