//! The handlers of `baton.v1.Scripts`.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, info_span};

use super::list::{self, Query};
use super::listen::caller;
use super::{admission, artifacts, status};
use crate::agent::{Agent, Follow, Followed};
use crate::artifacts::path::PathError;
use crate::script::ScriptId;
use crate::snapshot::Snapshot;
use crate::spec::{Spec, What};
use crate::wire::{to_timestamp, v1};

/// The longest reason of a cancel, in bytes.
const MAX_REASON_BYTES: usize = 1024;

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub(super) struct Service {
    agent: Agent,
    stop: CancellationToken,
}

impl Service {
    pub(super) fn new(agent: Agent, stop: CancellationToken) -> Self {
        Self { agent, stop }
    }

    /// A follower as a stream of messages. Ends with the agent.
    fn events<T: 'static>(
        &self,
        follow: Follow,
        message: fn(Option<v1::ScriptEvent>) -> T,
    ) -> Response<Events<T>> {
        let next = move |follow: Option<Follow>| async move {
            let mut follow = follow?;
            match follow.next().await {
                Ok(Some(event)) => Some((Ok(message(Some(event.into()))), Some(follow))),
                Ok(None) => None,
                Err(error) => Some((Err(status::agent(&error)), None)),
            }
        };
        Response::new(Box::pin(unfold(Some(follow.until(self.stop.clone())), next)))
    }
}

fn parse_spec(spec: Option<v1::ScriptSpec>) -> Result<Spec, Status> {
    let spec = spec.ok_or_else(|| status::field("spec", "is missing"))?;
    let spec = Spec::try_from(spec).map_err(|error| status::spec(&error))?;
    if matches!(spec.what, What::Lease(_)) {
        return Err(status::field(
            "lease_terms",
            "is not for scripts; Leases.OpenLease opens a lease",
        ));
    }
    Ok(spec)
}

fn parse_id(id: &str) -> Result<ScriptId, Status> {
    id.parse().map_err(|error| status::script_id(&error))
}

#[tonic::async_trait]
impl v1::scripts_server::Scripts for Service {
    async fn start(
        &self,
        request: Request<v1::StartRequest>,
    ) -> Result<Response<v1::StartResponse>, Status> {
        let caller = caller(&request);
        let spec = parse_spec(request.into_inner().spec)?;
        let span = info_span!("Start", script_id = %spec.script_id, caller);
        let script = self.agent.start(spec).instrument(span).await;
        let script = script.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::StartResponse { script: Some(script.into()) }))
    }

    type RunStream = Events<v1::RunResponse>;

    async fn run(
        &self,
        request: Request<v1::RunRequest>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let caller = caller(&request);
        let spec = parse_spec(request.into_inner().spec)?;
        let id = spec.script_id.clone();
        let span = info_span!("Run", script_id = %id, caller);
        let follow = async {
            self.agent.start(spec).await?;
            self.agent.follow(&id, 0, true).await
        };
        let follow = follow.instrument(span).await.map_err(|e| status::agent(&e))?;
        Ok(self.events(follow, |event| v1::RunResponse { event }))
    }

    type WatchStream = Events<v1::WatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request);
        let v1::WatchRequest { script_id, output_offset, no_follow } = request.into_inner();
        let id = parse_id(&script_id)?;
        let span = info_span!("Watch", script_id, caller);
        let follow = self.agent.follow(&id, output_offset, !no_follow).instrument(span).await;
        let follow = follow.map_err(|e| status::agent(&e))?;
        Ok(self.events(follow, |event| v1::WatchResponse { event }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let id = parse_id(&request.into_inner().script_id)?;
        let script = self.agent.get(&id).await.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::GetResponse { script: Some(script.into()) }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let Query { filter, order, after, limit } = Query::parse(request.into_inner())?;
        let page = self.agent.list(&filter, order, after, limit).await;
        let page = page.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::ListResponse {
            scripts: page
                .scripts
                .into_iter()
                .map(Snapshot::without_values)
                .map(Into::into)
                .collect(),
            next_page_token: page.next.map(list::token).unwrap_or_default(),
        }))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        let caller = caller(&request);
        admission::may_cancel(&request)?;
        let v1::CancelRequest { script_id, reason, abandon } = request.into_inner();
        let id = parse_id(&script_id)?;
        crate::script::check_text(&reason, MAX_REASON_BYTES)
            .map_err(|error| status::field("reason", &error.to_string()))?;
        let span = info_span!("Cancel", script_id, caller);
        if abandon && reason.is_empty() {
            return Err(status::field("reason", "is missing: to abandon needs one"));
        }
        let abandon = abandon.then(|| reason.clone());
        let script = self.agent.cancel(&id, reason, abandon).instrument(span).await;
        let script = script.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::CancelResponse { script: Some(script.into()) }))
    }

    async fn forget(
        &self,
        request: Request<v1::ForgetRequest>,
    ) -> Result<Response<v1::ForgetResponse>, Status> {
        let caller = caller(&request);
        let id = parse_id(&request.into_inner().script_id)?;
        let span = info_span!("Forget", script_id = %id, caller);
        self.agent.forget(&id).instrument(span).await.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::ForgetResponse {}))
    }

    async fn list_artifacts(
        &self,
        request: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let id = parse_id(&request.into_inner().script_id)?;
        let listing = self.agent.artifacts(&id).await.map_err(|e| status::agent(&e))?;
        Ok(Response::new(listing.into()))
    }

    type DownloadArtifactStream = Events<v1::DownloadArtifactResponse>;

    async fn download_artifact(
        &self,
        request: Request<v1::DownloadArtifactRequest>,
    ) -> Result<Response<Self::DownloadArtifactStream>, Status> {
        let caller = caller(&request);
        let v1::DownloadArtifactRequest { script_id, path, offset } = request.into_inner();
        let id = parse_id(&script_id)?;
        let path = path.parse().map_err(|e: PathError| status::field("path", &e.to_string()))?;
        let span = info_span!("DownloadArtifact", script_id, caller);
        let opened = self.agent.open_artifact(&id, &path, offset).instrument(span).await;
        let opened = opened.map_err(|e| status::agent(&e))?;
        let parts = artifacts::parts(self.agent.clone(), id, opened, self.stop.clone());
        Ok(Response::new(Box::pin(parts)))
    }
}

impl From<Followed> for v1::ScriptEvent {
    fn from(event: Followed) -> Self {
        let kind = match event {
            Followed::Script(snapshot) => {
                let snapshot: Snapshot = *snapshot;
                v1::script_event::Kind::Script(snapshot.into())
            }
            Followed::Output { stream, level, data, offset, time } => {
                v1::script_event::Kind::Output(v1::Output {
                    stream: v1::Stream::from(stream).into(),
                    level: v1::OutputLevel::from(level).into(),
                    data,
                    offset,
                    time: Some(to_timestamp(time)),
                })
            }
            Followed::OutputMissing { offset, bytes, cause } => {
                let cause = cause.map_or(v1::OutputDropCause::Unspecified, Into::into).into();
                v1::script_event::Kind::OutputMissing(v1::OutputMissing { offset, bytes, cause })
            }
        };
        Self { kind: Some(kind) }
    }
}
