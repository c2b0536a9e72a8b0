//! Leases: holding a machine over several scripts. A [`Lease`] renews itself as long as it is there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;

use super::{Client, ClientError, Heard, script};
use crate::mutex::{ExclusiveKey, MutexName};
use crate::script::{Labels, Phase, ScriptId};
use crate::snapshot::Snapshot;
use crate::spec::{LeaseTerms, OnLeaseEnd, Spec};
use crate::wire::{to_duration, v1};

/// A lease is renewed so many times in its time-to-live: two words of the client may be lost.
const RENEWALS: u32 = 3;
/// How long to wait before an agent that is away is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// What a client wants to hold.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are documented in lease.proto")]
pub struct LeaseWish {
    pub lease_id: ScriptId,
    pub mutex: MutexName,
    pub exclusive_key: Option<ExclusiveKey>,
    pub ttl: Duration,
    pub reason: String,
    pub labels: Labels,
    pub queue_time_limit: Option<Duration>,
}

impl LeaseWish {
    /// The machine mutex, with the usual time-to-live.
    pub fn new(lease_id: ScriptId) -> Self {
        Self {
            lease_id,
            mutex: MutexName::machine(),
            exclusive_key: None,
            ttl: LeaseTerms::DEFAULT_TTL,
            reason: String::new(),
            labels: Labels::new(),
            queue_time_limit: None,
        }
    }
}

impl From<LeaseWish> for v1::OpenLeaseRequest {
    fn from(wish: LeaseWish) -> Self {
        Self {
            lease_id: wish.lease_id.into(),
            mutex: wish.mutex.into(),
            exclusive_key: wish.exclusive_key.map(String::from).unwrap_or_default(),
            ttl: Some(to_duration(wish.ttl)),
            reason: wish.reason,
            labels: wish.labels.into_iter().collect(),
            queue_time_limit: wish.queue_time_limit.map(to_duration),
        }
    }
}

/// A lease of this client. It is renewed in the background until it is closed, or the last clone of it is
/// dropped; then it expires after its time-to-live.
#[derive(Debug, Clone)]
pub struct Lease {
    client: Client,
    id: ScriptId,
    mutex: MutexName,
    /// Why it ended, once that is known.
    ended: watch::Receiver<Option<String>>,
    _renews: Arc<DropGuard>,
}

impl Client {
    /// Asks for a lease: it is accepted when this returns, and may wait in the line. The same request
    /// again gives the same lease. Needs a tokio runtime, in which it is renewed.
    ///
    /// # Errors
    /// When the agent refuses or can't be reached.
    pub async fn open_lease(&self, wish: LeaseWish) -> Result<Lease, ClientError> {
        let (id, mutex) = (wish.lease_id.clone(), wish.mutex.clone());
        let every = wish.ttl / RENEWALS;
        let request = v1::OpenLeaseRequest::from(wish);
        script(self.leases.clone().open_lease(request).await?.into_inner().lease)?;
        let (tell, ended) = watch::channel(None);
        let stop = CancellationToken::new();
        let renew = renew(self.clone(), id.clone(), every, tell);
        // It ends with the guard.
        drop(tokio::spawn(stop.clone().run_until_cancelled_owned(renew)));
        let renews = Arc::new(stop.drop_guard());
        Ok(Lease { client: self.clone(), id, mutex, ended, _renews: renews })
    }

    /// Says that the client of a lease is still there.
    ///
    /// # Errors
    /// When the lease ended, there is none, or the agent can't be reached.
    pub async fn renew_lease(&self, id: &ScriptId) -> Result<Snapshot, ClientError> {
        let request = v1::RenewLeaseRequest { lease_id: id.to_string() };
        script(self.leases.clone().renew_lease(request).await?.into_inner().lease)
    }

    /// Ends a lease. It may still be ending when this returns: [`Client::watch`] follows it to its end.
    ///
    /// # Errors
    /// When there is none, or the agent can't be reached.
    pub async fn close_lease(
        &self,
        id: &ScriptId,
        on_end: OnLeaseEnd,
        reason: String,
    ) -> Result<Snapshot, ClientError> {
        let on_end = match on_end {
            OnLeaseEnd::Wait => v1::LeaseOnEnd::Wait,
            OnLeaseEnd::Cancel => v1::LeaseOnEnd::Cancel,
        };
        let lease_id = id.to_string();
        let request = v1::CloseLeaseRequest { lease_id, on_end: on_end.into(), reason };
        script(self.leases.clone().close_lease(request).await?.into_inner().lease)
    }

    /// The leases that have not ended, in order of arrival.
    ///
    /// # Errors
    /// When the agent can't be reached.
    pub async fn leases(&self) -> Result<Vec<Snapshot>, ClientError> {
        let leases =
            self.leases.clone().list_leases(v1::ListLeasesRequest {}).await?.into_inner().leases;
        leases.into_iter().map(|lease| Ok(Snapshot::try_from(lease)?)).collect()
    }
}

impl Lease {
    /// Its id.
    pub fn id(&self) -> &ScriptId {
        &self.id
    }

    /// The same script, to run under this lease.
    #[must_use]
    pub fn under(&self, spec: Spec) -> Spec {
        Spec { lease: Some(self.id.clone()), mutex: self.mutex.clone(), ..spec }
    }

    /// Returns when it is open, or ended before; the snapshot's phase says which. `tell` is told how it
    /// stands meanwhile: at once, and on each change.
    ///
    /// # Errors
    /// When the agent can't be reached for too long.
    pub async fn until_open(
        &self,
        mut tell: impl FnMut(&Snapshot),
    ) -> Result<Snapshot, ClientError> {
        let mut following = self.client.watch(self.id.clone(), 0, true);
        while let Some(heard) = following.next().await? {
            let Heard::Script(lease) = heard else {
                continue;
            };
            tell(&lease);
            match lease.phase {
                Phase::Queued | Phase::Waiting => {}
                Phase::Running | Phase::Stopping | Phase::Done(_) => return Ok(*lease),
            }
        }
        self.client.get(&self.id).await
    }

    /// Returns when the agent says that it ended: why. Not at once: with the next renewal.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn ended(&mut self) -> String {
        match self.ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "it is not renewed any more".to_owned(),
        }
    }

    /// Ends it, as [`Client::close_lease`] does.
    ///
    /// # Errors
    /// When the agent can't be reached; then it expires.
    pub async fn close(self, on_end: OnLeaseEnd, reason: String) -> Result<Snapshot, ClientError> {
        self.client.close_lease(&self.id, on_end, reason).await
    }
}

async fn renew(
    client: Client,
    id: ScriptId,
    every: Duration,
    ended: watch::Sender<Option<String>>,
) {
    let mut pause = every;
    loop {
        tokio::time::sleep(pause).await;
        // One that hangs must not cost the lease.
        pause = match timeout(every, client.renew_lease(&id)).await {
            Ok(Ok(_)) => every,
            Ok(Err(ClientError::Refused {
                code: Code::FailedPrecondition | Code::NotFound,
                message,
                ..
            })) => {
                ended.send_replace(Some(message));
                return;
            }
            Ok(Err(_)) | Err(_) => PAUSE.min(every),
        };
    }
}
