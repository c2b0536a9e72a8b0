//! The handlers of `baton.v1.Agent`.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::status;
use crate::agent::{Agent, Counts};
use crate::config::host_name;
use crate::spec::{MAX_BODY_BYTES, MAX_FILE_BYTES, MAX_FILES_BYTES};
use crate::wire::{to_duration, to_timestamp, v1};

/// The service.
pub(super) struct Service {
    agent: Agent,
    name: String,
    stop: CancellationToken,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::AgentWatchResponse, Status>> + Send>>;

/// What a stream of counts knows.
struct Counting {
    changes: watch::Receiver<()>,
    told: Option<Counts>,
}

impl Service {
    pub(super) fn new(agent: Agent, name: String, stop: CancellationToken) -> Self {
        Self { agent, name, stop }
    }

    /// The counts as a stream of messages. Ends with the agent.
    fn counts(&self, counting: Counting) -> Events {
        let (agent, stop) = (self.agent.clone(), self.stop.clone());
        let next = move |counting: Option<Counting>| {
            let (agent, stop) = (agent.clone(), stop.clone());
            async move {
                let mut counting = counting?;
                match stop.run_until_cancelled(counting.next(&agent)).await {
                    Some(counts) => {
                        let status = Some(counts.into());
                        Some((Ok(v1::AgentWatchResponse { status }), Some(counting)))
                    }
                    None => Some((Err(status::stopping()), None)),
                }
            }
        };
        Box::pin(unfold(Some(counting), next))
    }

    fn limits(&self) -> v1::Limits {
        let settings = self.agent.settings();
        let bytes = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        v1::Limits {
            queue_length: u32::try_from(settings.queue_length).unwrap_or(u32::MAX),
            body_bytes: bytes(MAX_BODY_BYTES),
            file_bytes: bytes(MAX_FILE_BYTES),
            files_bytes: bytes(MAX_FILES_BYTES),
            output_bytes: settings.max_output_bytes,
            default_grace: Some(to_duration(settings.grace)),
        }
    }
}

impl From<Counts> for v1::AgentStatus {
    fn from(Counts { queued, waiting, running }: Counts) -> Self {
        Self { queued, waiting, running }
    }
}

#[tonic::async_trait]
impl v1::agent_server::Agent for Service {
    async fn info(
        &self,
        _: Request<v1::InfoRequest>,
    ) -> Result<Response<v1::InfoResponse>, Status> {
        Ok(Response::new(v1::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.clone(),
            hostname: host_name(),
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            started_at: Some(to_timestamp(self.agent.started_at())),
            mutex_directory: self.agent.settings().mutexes.display().to_string(),
            limits: Some(self.limits()),
            status: Some(self.agent.counts().into()),
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
}

impl Counting {
    /// The counts now, then after each change.
    async fn next(&mut self, agent: &Agent) -> Counts {
        loop {
            self.changes.mark_unchanged();
            let counts = agent.counts();
            if self.told != Some(counts) {
                self.told = Some(counts);
                return counts;
            }
            // The agent, which rings, lives as long as its service.
            self.changes.changed().await.unwrap_or_default();
        }
    }
}
