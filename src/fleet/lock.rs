//! Taking a place in a line, waiting in it, holding.

use std::ops::ControlFlow;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::etcd::{KeyValue, Look, Place};
use super::lease::{Lease, Loss, Standing, Terms};
use super::{Ahead, Fleet, FleetError, LockName, Party, Who};

/// Up to which position a waiter also hears of a new holder: more would all wake at each change.
const TOLD_POSITIONS: usize = 32;
/// The pause before the second try of something that failed; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is told while a lock is waited for.
#[derive(Debug, Clone, Copy)]
pub enum Told<'a> {
    /// These are before it: at once, and on changes.
    Waits(&'a Ahead),
    /// etcd doesn't answer; it is tried again, and the place is kept as long as the lease lives.
    Interrupted(&'a FleetError),
    /// The place was lost with its lease; a new one is taken at the end of the line.
    Anew,
}

/// A fleet-wide mutex that is held. Dropped, it is given back in the background.
#[derive(Debug)]
#[must_use = "the lock ends with it"]
pub struct FleetLock {
    name: LockName,
    fence: u64,
    lease: Lease,
}

impl FleetLock {
    /// Its name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The fencing number: greater than that of every holder before.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// The times at which it counts as lost.
    pub fn terms(&self) -> Terms {
        self.lease.terms
    }

    /// How its lease stands, and each confirmed renewal.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.lease.standing()
    }

    /// Waits until its holder must stop: a quarter of the time-to-live and more is left then, unless etcd
    /// says that the key is gone.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn lost(&self) -> Loss {
        self.lease.lost().await
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When etcd can't be reached: the lock is free when its lease has ended by itself.
    ///
    /// # Cancel safety
    /// May be dropped at any time: it is given back in the background.
    pub async fn release(self) -> Result<(), FleetError> {
        self.lease.end().await
    }
}

impl Fleet {
    /// Waits for a mutex, in order of arrival, however long it takes. `on_wait` hears what is in the way, and
    /// may break it off.
    ///
    /// # Errors
    /// When etcd can't be reached before there is a place, or refuses; [`FleetError::Busy`], or the problem that
    /// was told, when `on_wait` broke off.
    ///
    /// # Cancel safety
    /// May be dropped at any time: the place is given up, in the background ([`Fleet::close`] waits for that).
    pub async fn lock(
        &self,
        name: &LockName,
        who: Who,
        on_wait: impl FnMut(Told<'_>) -> ControlFlow<()>,
    ) -> Result<FleetLock, FleetError> {
        let mut teller = Teller { on_wait, told: None, is_interrupted: false };
        let (mut pause, mut has_stood) = (FIRST_PAUSE, false);
        loop {
            match self.stand(name, &who, &mut teller, &mut has_stood).await {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {
                    // Breaking off here means nothing else than on the next occasion.
                    let _: ControlFlow<()> = (teller.on_wait)(Told::Anew);
                    teller.told = None;
                    pause = FIRST_PAUSE;
                }
                Err(error) if has_stood && error.is_passing() => teller.interrupted(error)?,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Takes a place and waits in it; `None` when it was lost.
    async fn stand<F: FnMut(Told<'_>) -> ControlFlow<()>>(
        &self,
        name: &LockName,
        who: &Who,
        teller: &mut Teller<F>,
        has_stood: &mut bool,
    ) -> Result<Option<FleetLock>, FleetError> {
        let lease = Lease::grant(&self.etcd, self.options.ttl, &self.tasks).await?;
        let joined = self.etcd.join(name.key(lease.id), who.to_value(), lease.id).await?;
        let Some(place) = joined else {
            return Ok(None);
        };
        *has_stood = true;
        lease.bears(place.clone());
        if !self.wait(name, &place, &lease, teller).await? {
            return Ok(None);
        }
        let who = Who { holds_since: Some(Timestamp::now()), ..who.clone() };
        // For those who wait, who may do without it.
        self.etcd.describe(&place, who.to_value(), lease.id).await.unwrap_or_default();
        Ok(Some(FleetLock { name: name.clone(), fence: place.made.cast_unsigned(), lease }))
    }

    /// Waits until the place is the first one; says whether it is, or is lost.
    async fn wait<F: FnMut(Told<'_>) -> ControlFlow<()>>(
        &self,
        name: &LockName,
        place: &Place,
        lease: &Lease,
        teller: &mut Teller<F>,
    ) -> Result<bool, FleetError> {
        let (prefix, end, mut pause) = (name.prefix(), name.range_end(), FIRST_PAUSE);
        loop {
            let looked = tokio::select! {
                looked = self.etcd.look(&prefix, &end, place) => looked,
                () = lease.gone() => return Ok(false),
            };
            let changed = match looked {
                Ok(look) if !look.is_there => return Ok(false),
                Ok(Look { before: None, .. }) => return Ok(lease.is_fresh().await),
                Ok(look) => {
                    teller.waits(&look)?;
                    let keys = watched(&look);
                    tokio::select! {
                        changed = self.etcd.change(&keys, look.revision) => changed,
                        () = lease.gone() => return Ok(false),
                    }
                }
                Err(error) => Err(error),
            };
            match changed {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) if error.is_passing() => {
                    teller.interrupted(error)?;
                    tokio::time::sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The keys of which a change matters (rule 3).
fn watched(look: &Look) -> Vec<Vec<u8>> {
    let first = look.first.as_ref().filter(|_| look.count <= TOLD_POSITIONS);
    let mut keys: Vec<_> = look.before.iter().chain(first).map(|kv| kv.key.clone()).collect();
    keys.dedup();
    keys
}

/// Tells what is new.
struct Teller<F> {
    on_wait: F,
    told: Option<Ahead>,
    is_interrupted: bool,
}

impl<F: FnMut(Told<'_>) -> ControlFlow<()>> Teller<F> {
    fn waits(&mut self, look: &Look) -> Result<(), FleetError> {
        self.is_interrupted = false;
        let party = |kv: &KeyValue| Party::new(kv.create_revision.cast_unsigned(), &kv.value);
        let (Some(first), Some(before)) = (&look.first, &look.before) else {
            return Ok(());
        };
        let ahead = Ahead { holder: party(first), before: party(before), position: look.count };
        if self.told.as_ref() == Some(&ahead) {
            return Ok(());
        }
        let flow = (self.on_wait)(Told::Waits(&ahead));
        self.told = Some(ahead.clone());
        if flow.is_break() { Err(FleetError::Busy(Box::new(ahead))) } else { Ok(()) }
    }

    fn interrupted(&mut self, error: FleetError) -> Result<(), FleetError> {
        if self.is_interrupted {
            return Ok(());
        }
        self.is_interrupted = true;
        // What is in the way is told again when it is known again.
        self.told = None;
        if (self.on_wait)(Told::Interrupted(&error)).is_break() { Err(error) } else { Ok(()) }
    }
}
