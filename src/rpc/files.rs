//! The handlers of `baton.v1.Files`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, Span, info, info_span};
use v1::upload_request::Part;

use super::events::{Events, Source, events};
use super::listen::caller;
use super::status;
use crate::transfer::{
    Digest, FileInfo, MAX_CHUNK_BYTES, Offer, Permit, Place, Receive, Receiving, Sending,
    TransferError, Transfers,
};
use crate::wire::{from_timestamp, v1};

/// How long an upload may be silent: its place among the transfers is others' then.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);
/// The permission bits of a file whose request gives none.
const DEFAULT_MODE: u32 = 0o644;

/// The service.
pub(super) struct Service {
    transfers: Arc<Transfers>,
    stop: CancellationToken,
}

impl Service {
    pub(super) fn new(transfers: &Arc<Transfers>, stop: CancellationToken) -> Self {
        Self { transfers: Arc::clone(transfers), stop }
    }

    /// Does file work for a call.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transfers) -> Result<T, TransferError> + Send + 'static,
    ) -> Result<T, Status> {
        let transfers = Arc::clone(&self.transfers);
        blocking(move || work(&transfers)).await
    }

    fn permit(&self) -> Result<Permit, Status> {
        self.transfers.permit().map_err(|error| status::transfer(&error))
    }
}

/// An upload.
struct Upload {
    requests: Streaming<v1::UploadRequest>,
    stage: Stage,
    span: Span,
    _permit: Permit,
}

enum Stage {
    /// Nothing was answered yet.
    Begun(Receive),
    /// The client was told from where on to send.
    Rest(Box<Receiving>),
    Over,
}

impl Source for Upload {
    type Message = v1::UploadResponse;

    async fn next(&mut self) -> Result<Option<v1::UploadResponse>, Status> {
        let receiving = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Begun(Receive::Unchanged(file)) => return Ok(Some(done(file, true))),
            Stage::Begun(Receive::More(receiving)) if receiving.left() > 0 => {
                let offset = receiving.received();
                self.stage = Stage::Rest(receiving);
                let ready = v1::upload_response::Kind::Ready(v1::UploadReady { offset });
                return Ok(Some(v1::UploadResponse { kind: Some(ready) }));
            }
            Stage::Begun(Receive::More(receiving)) => receiving,
            Stage::Rest(receiving) => self.rest(receiving).await?,
            Stage::Over => return Ok(None),
        };
        let file = blocking(move || receiving.finish()).await?;
        self.span.in_scope(|| info!("file is in place"));
        Ok(Some(done(file, false)))
    }
}

impl Upload {
    /// Takes what is still to come, as far as it comes.
    async fn rest(&mut self, mut receiving: Box<Receiving>) -> Result<Box<Receiving>, Status> {
        while receiving.left() > 0 {
            let data = match next_part(&mut self.requests).await? {
                Some(Part::Data(data)) => check_data(data)?,
                Some(Part::Start(_)) => return Err(status::field("start", "comes twice")),
                None => break,
            };
            receiving = blocking(move || receiving.write(&data).map(|()| receiving)).await?;
        }
        Ok(receiving)
    }
}

/// A download.
struct Download {
    /// None while it is read from.
    sending: Option<Sending>,
    _permit: Permit,
}

impl Source for Download {
    type Message = v1::DownloadResponse;

    async fn next(&mut self) -> Result<Option<v1::DownloadResponse>, Status> {
        let Some(mut sending) = self.sending.take() else {
            return Ok(None);
        };
        let read = blocking(move || sending.next_chunk().map(|chunk| (chunk, sending)));
        let (chunk, sending) = read.await?;
        self.sending = Some(sending);
        Ok(chunk.map(|(offset, data)| v1::DownloadResponse { data, offset }))
    }
}

#[tonic::async_trait]
impl v1::files_server::Files for Service {
    type UploadStream = Events<v1::UploadResponse>;

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let caller = caller(&request);
        let mut requests = request.into_inner();
        let permit = self.permit()?;
        let (place, offer) = parse_start(next_part(&mut requests).await?)?;
        let span = info_span!("Upload", %place, size = offer.size, caller);
        // The work keeps the permit: it goes on for a while when its caller has gone.
        let begin = self.work(move |transfers| Ok((transfers.receive(&place, offer)?, permit)));
        let (receive, permit) = begin.instrument(span.clone()).await?;
        let stage = Stage::Begun(receive);
        Ok(events(Upload { requests, stage, span, _permit: permit }, &self.stop))
    }

    type DownloadStream = Events<v1::DownloadResponse>;

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let caller = caller(&request);
        let v1::DownloadRequest { root, path, offset } = request.into_inner();
        let place = parse_place(root, &path)?;
        let permit = self.permit()?;
        let span = info_span!("Download", %place, offset, caller);
        let open = self.work(move |transfers| transfers.send(&place, offset));
        let sending = Some(open.instrument(span).await?);
        Ok(events(Download { sending, _permit: permit }, &self.stop))
    }

    async fn stat(
        &self,
        request: Request<v1::StatRequest>,
    ) -> Result<Response<v1::StatResponse>, Status> {
        let v1::StatRequest { root, path, with_sha256 } = request.into_inner();
        let place = parse_place(root, &path)?;
        // Reading a whole file is work like sending it.
        let permit = with_sha256.then(|| self.permit()).transpose()?;
        let stat = move |transfers: &Transfers| {
            let file = transfers.stat(&place, with_sha256);
            drop(permit);
            file
        };
        let file = self.work(stat).await?;
        Ok(Response::new(v1::StatResponse { file: Some(file.into()) }))
    }
}

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, Status> {
    // It fails only when the runtime shuts down or the work panicked.
    let result = tokio::task::spawn_blocking(work).await.map_err(|_| status::stopping())?;
    result.map_err(|error| status::transfer(&error))
}

/// The next part of an upload; `None` when its client says that it was all.
async fn next_part(requests: &mut Streaming<v1::UploadRequest>) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(SILENCE_LIMIT, requests.message()).await;
    let message = message.map_err(|_| status::silent(SILENCE_LIMIT))??;
    let missing = || status::field("part", "is missing");
    message.map(|message| message.part.ok_or_else(missing)).transpose()
}

fn check_data(data: Bytes) -> Result<Bytes, Status> {
    if data.is_empty() || data.len() > MAX_CHUNK_BYTES {
        return Err(status::field("data", "must have 1 byte to 1 MiB"));
    }
    Ok(data)
}

fn parse_start(part: Option<Part>) -> Result<(Place, Offer), Status> {
    let Some(Part::Start(start)) = part else {
        return Err(status::field("start", "is missing: it comes first"));
    };
    let v1::UploadStart { root, path, size, sha256, mode, modified_at } = start;
    let place = parse_place(root, &path)?;
    let digest = Digest::from_bytes(&sha256)
        .ok_or_else(|| status::field("sha256", "is no digest: 32 bytes are expected"))?;
    if mode > 0o777 {
        return Err(status::field("mode", "has more than the permission bits 0777"));
    }
    let mode = if mode == 0 { DEFAULT_MODE } else { mode };
    let modified = modified_at
        .map(|time| from_timestamp(time).ok_or_else(|| status::field("modified_at", "is no time")));
    Ok((place, Offer { size, digest, mode, modified: modified.transpose()? }))
}

fn parse_place(root: String, path: &str) -> Result<Place, Status> {
    if root.is_empty() {
        return Err(status::field("root", "is missing"));
    }
    let path = path.parse().map_err(|error| status::field("path", &format!("{error}")))?;
    Ok(Place { root, path })
}

fn done(file: FileInfo, unchanged: bool) -> v1::UploadResponse {
    let done = v1::UploadDone { file: Some(file.into()), unchanged };
    v1::UploadResponse { kind: Some(v1::upload_response::Kind::Done(done)) }
}
