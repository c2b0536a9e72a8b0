//! The handlers of `baton.v1.Agent`.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, info_span};

use super::listen::caller;
use super::{admission, status, upgrade};
use crate::agent::{Agent, Counts, Status as AgentStatus, StoreProblem};
use crate::config::host_name;
use crate::format;
use crate::spec::{MAX_BODY_BYTES, MAX_FILE_BYTES, MAX_FILES_BYTES};
use crate::store;
use crate::wire::{config_keys, to_duration, to_timestamp, v1};

/// The longest reason of a drain, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// The service.
pub(super) struct Service {
    agent: Agent,
    stop: CancellationToken,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::AgentWatchResponse, Status>> + Send>>;

/// What a stream of counts knows.
struct Counting {
    changes: watch::Receiver<()>,
    told: Option<AgentStatus>,
}

impl Service {
    pub(super) fn new(agent: Agent, stop: CancellationToken) -> Self {
        Self { agent, stop }
    }

    /// The counts as a stream of messages. Ends with the agent.
    fn counts(&self, counting: Counting) -> Events {
        let (agent, stop) = (self.agent.clone(), self.stop.clone());
        let next = move |counting: Option<Counting>| {
            let (agent, stop) = (agent.clone(), stop.clone());
            async move {
                let mut counting = counting?;
                match stop.run_until_cancelled(counting.next(&agent)).await {
                    Some(status) => {
                        let status = Some(status.into());
                        Some((Ok(v1::AgentWatchResponse { status }), Some(counting)))
                    }
                    None => Some((Err(status::stopping()), None)),
                }
            }
        };
        Box::pin(unfold(Some(counting), next))
    }

    fn limits(&self) -> v1::Limits {
        let config = self.agent.config();
        let bytes = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        v1::Limits {
            queue_length: u32::try_from(config.queue_length).unwrap_or(u32::MAX),
            body_bytes: bytes(MAX_BODY_BYTES),
            file_bytes: bytes(MAX_FILE_BYTES),
            files_bytes: bytes(MAX_FILES_BYTES),
            output_bytes: config.max_output_bytes,
            default_grace: Some(to_duration(config.grace)),
        }
    }
}

impl From<AgentStatus> for v1::AgentStatus {
    fn from(status: AgentStatus) -> Self {
        let AgentStatus { counts, drain, store_problem, stops_by, upgrade } = status;
        let Counts { queued, waiting, running } = counts;
        let store_problem = store_problem.map(|StoreProblem { since, reason }| v1::StoreProblem {
            since: Some(to_timestamp(since)),
            reason,
        });
        let draining = drain.map(v1::Draining::from);
        let (stops_by, upgrade) = (stops_by.map(to_timestamp), upgrade.map(Into::into));
        Self { queued, waiting, running, draining, store_problem, stops_by, upgrade }
    }
}

#[tonic::async_trait]
impl v1::agent_server::Agent for Service {
    async fn info(
        &self,
        request: Request<v1::InfoRequest>,
    ) -> Result<Response<v1::InfoResponse>, Status> {
        Ok(Response::new(v1::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.agent.config().name.clone(),
            hostname: host_name(),
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            started_at: Some(to_timestamp(self.agent.started_at())),
            mutex_directory: self.agent.settings().mutexes.display().to_string(),
            limits: Some(self.limits()),
            status: Some(self.agent.status().into()),
            role: v1::Role::from(admission::role(&request)).into(),
            api_revision: format::API_REVISION,
            state_format: u32::try_from(store::known_version()).unwrap_or(u32::MAX),
        }))
    }

    type WatchStream = Events;

    async fn watch(
        &self,
        _: Request<v1::AgentWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let counting = Counting { changes: self.agent.changes(), told: None };
        Ok(Response::new(self.counts(counting)))
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        let caller = caller(&request);
        let v1::DrainRequest { reason } = request.into_inner();
        crate::script::check_text(&reason, MAX_REASON_BYTES)
            .map_err(|error| status::field("reason", &error.to_string()))?;
        let span = info_span!("Drain", caller);
        let status = self.agent.drain(caller, reason).instrument(span).await;
        let status = status.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::DrainResponse { status: Some(status.into()) }))
    }

    async fn upgrade(
        &self,
        request: Request<Streaming<v1::UpgradeRequest>>,
    ) -> Result<Response<v1::UpgradeResponse>, Status> {
        let caller = caller(&request);
        let span = info_span!("Upgrade", caller);
        let taken = upgrade::take(&self.agent, request.into_inner(), caller).instrument(span).await;
        Ok(Response::new(taken?))
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::ResumeResponse>, Status> {
        let span = info_span!("Resume", caller = caller(&request));
        let status = self.agent.resume().instrument(span).await;
        let status = status.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::ResumeResponse { status: Some(status.into()) }))
    }

    async fn config(
        &self,
        _: Request<v1::ConfigRequest>,
    ) -> Result<Response<v1::ConfigResponse>, Status> {
        let next = self.agent.read_layers().await.map_err(|e| status::agent(&e))?;
        let running = self.agent.layers();
        Ok(Response::new(v1::ConfigResponse {
            file: running.path().display().to_string(),
            keys: config_keys(&running, next.as_ref().ok()),
            problem: next.err().map(|e| crate::text::chain(&e)).unwrap_or_default(),
        }))
    }

    async fn reload(
        &self,
        request: Request<v1::ReloadRequest>,
    ) -> Result<Response<v1::ReloadResponse>, Status> {
        let span = info_span!("Reload", caller = caller(&request));
        let changes = self.agent.reload().instrument(span).await;
        let changes = changes.map_err(|e| status::agent(&e))?;
        Ok(Response::new(changes.into()))
    }
}

impl Counting {
    /// How the agent stands now, then after each change.
    async fn next(&mut self, agent: &Agent) -> AgentStatus {
        loop {
            self.changes.mark_unchanged();
            let status = agent.status();
            if self.told.as_ref() != Some(&status) {
                self.told = Some(status.clone());
                return status;
            }
            // The agent, which rings, lives as long as its service.
            self.changes.changed().await.unwrap_or_default();
        }
    }
}
