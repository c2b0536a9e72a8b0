//! Calling an agent: this machine's over its socket, another one's over mutual TLS, or one that is
//! part of this process.

pub mod artifacts;
pub mod away;
pub mod connect;
pub mod embedded;
mod files;
mod follow;
mod lease;
mod packages;
mod standing;
mod upgrade;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

pub use away::{AWAY_LIMIT, Away};
use away::{Next, Now, Patience};
pub use connect::ConnectError;
pub use files::{FileError, Moved, Tell, Told};
pub use follow::{Following, Heard};
pub use lease::{Lease, LeaseWish};
pub use packages::{SendError, Sent};
pub use standing::Standing;
pub use upgrade::UpgradeWish;
pub(crate) use upgrade::signature_path;

use crate::script::ScriptId;
use crate::snapshot::Snapshot;
use crate::spec::Spec;
use crate::wire::{WireError, v1};
use v1::agent_client::AgentClient;
use v1::files_client::FilesClient;
use v1::leases_client::LeasesClient;
use v1::packages_client::PackagesClient;
use v1::scripts_client::ScriptsClient;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The agent refused, and says why.
    #[error("{message}")]
    Refused {
        /// The stable reason (`docs/errors.md`), for example `QUEUE_FULL`.
        reason: String,
        /// The kind of refusal.
        code: Code,
        /// The text for people.
        message: String,
        /// What programs may want to know beside the reason (`docs/errors.md`).
        metadata: BTreeMap<String, String>,
    },
    /// The connection broke.
    #[error("connection to the agent is lost: {0}")]
    Broken(String),
    /// The agent was away for longer than it is waited for.
    #[error("agent is {}", .0.given_up())]
    Away(Away),
    /// The agent's answer isn't understood.
    #[error("agent's answer is not understood")]
    Wire(#[from] WireError),
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        // A connection that was made anew for this call, and refused.
        if let Some(error) = ConnectError::lasting(&status) {
            return Self::Connect(error);
        }
        let message = status.message().to_owned();
        match status.get_details_error_info() {
            Some(info) => Self::Refused {
                reason: info.reason,
                code: status.code(),
                message,
                metadata: info.metadata.into_iter().collect(),
            },
            // gRPC's own layers know no reasons. What the agent says has no cause here: one that has broke on
            // the way, with whatever code ("internal" where HTTP/2 says that a stream was reset).
            None if std::error::Error::source(&status).is_some()
                || matches!(status.code(), Code::Unknown | Code::Unavailable | Code::Cancelled) =>
            {
                Self::Broken(cause(&status))
            }
            None => Self::Refused {
                reason: String::new(),
                code: status.code(),
                message,
                metadata: BTreeMap::new(),
            },
        }
    }
}

/// Why a connection broke, in few words: the innermost cause, without what libraries add for their
/// own users.
fn cause(status: &Status) -> String {
    let mut error: &dyn std::error::Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    let text = error.to_string();
    if text.contains("close_notify") || text.contains("broken pipe") || text.contains("h2 ") {
        return "it closed the connection".to_owned();
    }
    crate::text::shorten(text.lines().next().unwrap_or_default(), 120)
}

impl ClientError {
    /// Whether the same call may succeed on another connection.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Broken(_) => true,
            Self::Refused { reason, .. } => reason == "AGENT_STOPPING",
            Self::Connect(error) => error.is_passing(),
            Self::Away(_) | Self::Wire(_) => false,
        }
    }
}

/// An agent, as its callers see it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    scripts: ScriptsClient<Channel>,
    agent: AgentClient<Channel>,
    files: FilesClient<Channel>,
    leases: LeasesClient<Channel>,
    packages: PackagesClient<Channel>,
    away_limit: Duration,
}

impl Client {
    /// A client on a connection. It waits for an agent that is away for [`AWAY_LIMIT`].
    pub fn new(channel: Channel) -> Self {
        Self {
            scripts: ScriptsClient::new(channel.clone()),
            agent: AgentClient::new(channel.clone()),
            leases: LeasesClient::new(channel.clone()),
            files: FilesClient::new(channel.clone()),
            packages: PackagesClient::new(channel),
            away_limit: AWAY_LIMIT,
        }
    }

    /// The same one, which waits for so long when the agent is away: while it follows a script or the agent, or
    /// brings or fetches something. A single call waits for nothing.
    #[must_use]
    pub fn waiting_for(self, away_limit: Duration) -> Self {
        Self { away_limit, ..self }
    }

    /// Makes a call again and again until it succeeds, is refused, or the agent was away for too long. `tell` is
    /// told of that at once, and once a minute. What is called is to be the same when it is made twice.
    ///
    /// # Errors
    /// Those of the call; and when the agent can't be reached for too long.
    pub async fn patiently<T, F>(
        &self,
        mut call: impl FnMut() -> F,
        tell: impl Fn(Away),
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut patience = Patience::new(self.away_limit);
        loop {
            match call().await {
                Err(error) if error.is_passing() => {
                    let why = crate::text::chain(&error);
                    match patience.failed(why, Now::read()) {
                        Next::Tell(away) => tell(away),
                        Next::Pause(pause) => tokio::time::sleep(pause).await,
                        Next::GiveUp(away) => return Err(ClientError::Away(away)),
                    }
                }
                other => return other,
            }
        }
    }

    /// Starts a script; the same request again gives the same script.
    ///
    /// # Errors
    /// When the agent refuses or can't be reached.
    pub async fn start(&self, spec: Spec) -> Result<Snapshot, ClientError> {
        let request = v1::StartRequest { spec: Some(spec.into()) };
        let response = self.scripts.clone().start(request).await?.into_inner();
        script(response.script)
    }

    /// Starts a script and follows it to its end.
    pub fn run(&self, spec: Spec) -> Following {
        Following::start(self.clone(), spec)
    }

    /// Follows a script from an output offset on; with `wait` to its end.
    pub fn watch(&self, id: ScriptId, offset: u64, wait: bool) -> Following {
        Following::watch(self.clone(), id, offset, wait)
    }

    /// How a script stands.
    ///
    /// # Errors
    /// When there is none, or the agent can't be reached.
    pub async fn get(&self, id: &ScriptId) -> Result<Snapshot, ClientError> {
        let request = v1::GetRequest { script_id: id.to_string() };
        script(self.scripts.clone().get(request).await?.into_inner().script)
    }

    /// Up to `limit` scripts, as many pages as that takes.
    ///
    /// # Errors
    /// When the agent can't be reached.
    pub async fn list(
        &self,
        phases: &[v1::Phase],
        labels: &BTreeMap<String, String>,
        limit: usize,
    ) -> Result<Vec<Snapshot>, ClientError> {
        let request = v1::ListRequest {
            phases: phases.iter().map(|phase| i32::from(*phase)).collect(),
            labels: labels.clone().into_iter().collect(),
            ..v1::ListRequest::default()
        };
        Ok(self.find(request, limit).await?.0)
    }

    /// Up to `limit` of the scripts that a request asks for, as many pages as that takes; and whether
    /// there are more.
    ///
    /// # Errors
    /// When the agent refuses or can't be reached.
    pub async fn find(
        &self,
        mut request: v1::ListRequest,
        limit: usize,
    ) -> Result<(Vec<Snapshot>, bool), ClientError> {
        let mut scripts = Vec::new();
        while scripts.len() < limit {
            let left = u32::try_from(limit - scripts.len()).unwrap_or(u32::MAX);
            request.page_size = left.min(1000);
            let page = self.scripts.clone().list(request.clone()).await?.into_inner();
            for message in page.scripts {
                scripts.push(Snapshot::try_from(message)?);
            }
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok((scripts, false));
            }
        }
        Ok((scripts, true))
    }

    /// Asks a script to stop.
    ///
    /// # Errors
    /// When there is none, or the agent can't be reached.
    pub async fn cancel(&self, id: &ScriptId, reason: String) -> Result<Snapshot, ClientError> {
        let request = v1::CancelRequest { script_id: id.to_string(), reason, abandon: false };
        script(self.scripts.clone().cancel(request).await?.into_inner().script)
    }

    /// Asks a script to stop, and to give its mutexes back although processes of it can't be ended.
    ///
    /// # Errors
    /// As [`Client::cancel`]; and when there is no reason.
    pub async fn abandon(&self, id: &ScriptId, reason: String) -> Result<Snapshot, ClientError> {
        let request = v1::CancelRequest { script_id: id.to_string(), reason, abandon: true };
        script(self.scripts.clone().cancel(request).await?.into_inner().script)
    }

    /// Removes a script that is done.
    ///
    /// # Errors
    /// When it is not done, there is none, or the agent can't be reached.
    pub async fn forget(&self, id: &ScriptId) -> Result<(), ClientError> {
        let request = v1::ForgetRequest { script_id: id.to_string() };
        self.scripts.clone().forget(request).await?;
        Ok(())
    }

    /// Lets the agent take nothing new and start nothing.
    ///
    /// # Errors
    /// When it refuses or can't be reached.
    pub async fn drain(&self, reason: String) -> Result<v1::AgentStatus, ClientError> {
        let request = v1::DrainRequest { reason };
        let status = self.agent.clone().drain(request).await?.into_inner().status;
        Ok(status.unwrap_or_default())
    }

    /// Lets the agent take and start scripts again.
    ///
    /// # Errors
    /// When it refuses or can't be reached.
    pub async fn resume(&self) -> Result<v1::AgentStatus, ClientError> {
        let status = self.agent.clone().resume(v1::ResumeRequest {}).await?.into_inner().status;
        Ok(status.unwrap_or_default())
    }

    /// The agent's configuration.
    ///
    /// # Errors
    /// When it can't be reached.
    pub async fn config(&self) -> Result<v1::ConfigResponse, ClientError> {
        Ok(self.agent.clone().config(v1::ConfigRequest {}).await?.into_inner())
    }

    /// Lets the agent read its configuration again.
    ///
    /// # Errors
    /// When that is wrong, and nothing was changed; or when the agent can't be reached.
    pub async fn reload(&self) -> Result<v1::ReloadResponse, ClientError> {
        Ok(self.agent.clone().reload(v1::ReloadRequest {}).await?.into_inner())
    }

    /// Follows how the agent stands, also across restarts.
    pub fn watch_agent(&self) -> Standing {
        Standing::new(self.clone())
    }

    /// What the agent is.
    ///
    /// # Errors
    /// When it can't be reached.
    pub async fn info(&self) -> Result<v1::InfoResponse, ClientError> {
        Ok(self.info_and_clock().await?.0)
    }

    /// What the agent is, and what its clock said, to the second; `None`: it did not say.
    ///
    /// # Errors
    /// When it can't be reached.
    pub async fn info_and_clock(
        &self,
    ) -> Result<(v1::InfoResponse, Option<Timestamp>), ClientError> {
        let answer = self.agent.clone().info(v1::InfoRequest {}).await?;
        let date = answer.metadata().get("date").and_then(|date| date.to_str().ok());
        let clock = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        Ok((answer.into_inner(), clock.map(|clock| clock.timestamp())))
    }
}

fn script(message: Option<v1::Script>) -> Result<Snapshot, ClientError> {
    let message = message.ok_or(WireError::Field("script"))?;
    Ok(Snapshot::try_from(message)?)
}
