//! The leases of a run: one a target, from the first step there that wants the machine for the whole
//! deployment until the target's wave is through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::Course;
use super::job::{state_of, waits_for_others};
use crate::client::{Away, Client, ClientError, Heard, Lease, LeaseWish};
use crate::deploy::event::State;
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
        tell: impl Fn(State),
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
    async fn open(self, tell: impl Fn(State)) -> Result<Lease, NoLease> {
        for number in 1..=MAX_LEASES {
            let id = self.id(number)?;
            let Some(lease) = self.ask(&id, &tell).await? else { continue };
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

    /// Asks for it, also of an agent that is away. `None`: an earlier start of this run asked for something else
    /// by this id, and does not need it any more.
    async fn ask(&self, id: &ScriptId, tell: &impl Fn(State)) -> Result<Option<Lease>, NoLease> {
        let labels = self.labels.clone();
        let wish = LeaseWish { lease_id: id.clone(), labels, ..self.wish.clone() };
        let told = |Away { since, until, why }| tell(State::Away { since, until, why });
        let asked = tokio::select! {
            asked = self.client.patiently(|| self.client.open_lease(wish.clone()), told) => asked,
            () = self.course.stopped() => return Err(NoLease::Failed("it was stopped".to_owned())),
        };
        match asked {
            Ok(lease) => Ok(Some(lease)),
            Err(ClientError::Refused { reason, .. }) if reason == "SCRIPT_ID_CONFLICT" => {
                let closed = self.client.close_lease(id, OnLeaseEnd::Wait, String::new()).await;
                closed.map(|_| None).map_err(|error| NoLease::Failed(format!("lease: {error}")))
            }
            Err(error) => Err(NoLease::Failed(format!("lease: {error}"))),
        }
    }

    fn id(&self, number: u32) -> Result<ScriptId, NoLease> {
        let text = format!("{}.lease-{number}.{}", self.course.run, self.target);
        text.parse().map_err(|error| NoLease::Failed(format!("lease {text:?}: {error}")))
    }

    /// Waits until it is open or over.
    async fn stand(
        &self,
        lease: &Lease,
        tell: &impl Fn(State),
    ) -> Result<Option<Snapshot>, NoLease> {
        let mut following = self.client.watch(lease.id().clone(), 0, true);
        let given_up = loop {
            let heard = tokio::select! {
                heard = following.next() => heard,
                () = self.course.stopped() => break NoLease::Failed("it was stopped".to_owned()),
            };
            let standing = match heard {
                Ok(Some(Heard::Script(standing))) => standing,
                Ok(Some(Heard::Away(Away { since, until, why }))) => {
                    tell(State::Away { since, until, why });
                    continue;
                }
                Ok(Some(Heard::Back { since })) => {
                    tell(State::Back { since });
                    continue;
                }
                Ok(Some(Heard::Output { .. } | Heard::OutputMissing { .. })) => continue,
                Ok(None) => return Ok(None),
                Err(error) => return Err(NoLease::Failed(format!("lease: {}", chain(&error)))),
            };
            if !matches!(standing.phase, Phase::Queued | Phase::Waiting) {
                return Ok(Some(*standing));
            }
            if let Some(state @ State::Waits { .. }) = state_of(&standing) {
                tell(state);
            }
            if !self.may_wait && waits_for_others(&standing, &self.course.run) {
                break NoLease::Busy;
            }
        };
        let reason = "the deployment does not wait for it any more".to_owned();
        drop(lease.clone().close(OnLeaseEnd::Cancel, reason).await);
        Err(given_up)
    }
}
