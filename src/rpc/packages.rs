//! The handlers of `baton.v1.Packages`.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, Span, info, info_span};
use v1::send_package_request::Part;
use v1::send_package_response::Kind;

use super::events::{Events, Source, events};
use super::listen::caller;
use super::status;
use crate::packages::{
    Begun, Kept, Offer, Opening, PackageError, PackageId, Packages, Receiving, Version,
};
use crate::transfer::{Digest, MAX_CHUNK_BYTES, Permit, Transfers};
use crate::wire::v1;

/// How long a sender may be silent: its place among the transfers is others' then.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);

/// The service.
pub(super) struct Service {
    packages: Arc<Packages>,
    /// Packages take their places among the files that are on their way.
    transfers: Arc<Transfers>,
    stop: CancellationToken,
}

impl Service {
    pub(super) fn new(
        packages: &Arc<Packages>,
        transfers: &Arc<Transfers>,
        stop: CancellationToken,
    ) -> Self {
        Self { packages: Arc::clone(packages), transfers: Arc::clone(transfers), stop }
    }

    /// Does file work for a call.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Packages>) -> Result<T, PackageError> + Send + 'static,
    ) -> Result<T, Status> {
        let packages = Arc::clone(&self.packages);
        blocking(move || work(&packages)).await
    }

    fn permit(&self) -> Result<Permit, Status> {
        self.transfers.permit().map_err(|error| status::transfer(&error))
    }
}

/// A package that comes.
struct Incoming {
    requests: Streaming<v1::SendPackageRequest>,
    stage: Stage,
    span: Span,
    _permit: Permit,
}

enum Stage {
    /// Nothing was answered yet.
    Begun(Begun),
    /// The manifest was asked for.
    Manifest(Opening),
    /// The missing chunks were asked for.
    Chunks(Box<Receiving>),
    Over,
}

impl Source for Incoming {
    type Message = v1::SendPackageResponse;

    async fn next(&mut self) -> Result<Option<v1::SendPackageResponse>, Status> {
        let kind = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Begun(Begun::There(kept)) => done(kept, true),
            Stage::Begun(Begun::Manifest(opening)) => {
                self.stage = Stage::Manifest(opening);
                Kind::ManifestWanted(v1::ManifestWanted {})
            }
            Stage::Manifest(opening) => {
                let opening = self.manifest(opening).await?;
                let receiving = Box::new(blocking(move || opening.plan()).await?);
                let indices = receiving.missing().to_vec();
                self.stage = Stage::Chunks(receiving);
                Kind::Missing(v1::MissingChunks { indices })
            }
            Stage::Chunks(receiving) => {
                let receiving = self.chunks(receiving).await?;
                let kept = blocking(move || receiving.finish()).await?;
                self.span.in_scope(|| info!("package is kept"));
                done(kept, false)
            }
            Stage::Over => return Ok(None),
        };
        Ok(Some(v1::SendPackageResponse { kind: Some(kind) }))
    }
}

impl Incoming {
    async fn manifest(&mut self, mut opening: Opening) -> Result<Opening, Status> {
        while opening.left() > 0 {
            match next_part(&mut self.requests).await? {
                Some(Part::Manifest(data)) if data.len() <= MAX_CHUNK_BYTES => {
                    opening.take(&data).map_err(|error| status::package(&error))?;
                }
                Some(Part::Manifest(_)) => {
                    return Err(status::field("manifest", "must have 1 byte to 1 MiB"));
                }
                Some(Part::Start(_) | Part::Chunk(_)) | None => {
                    return Err(status::field("manifest", "is missing"));
                }
            }
        }
        Ok(opening)
    }

    /// Takes what is still to come, as far as it comes.
    async fn chunks(&mut self, mut receiving: Box<Receiving>) -> Result<Box<Receiving>, Status> {
        while receiving.left() > 0 {
            let data = match next_part(&mut self.requests).await? {
                Some(Part::Chunk(data)) => data,
                Some(Part::Start(_) | Part::Manifest(_)) => {
                    return Err(status::field("part", "is no chunk"));
                }
                None => break,
            };
            receiving = blocking(move || receiving.take(&data).map(|()| receiving)).await?;
        }
        Ok(receiving)
    }
}

#[tonic::async_trait]
impl v1::packages_server::Packages for Service {
    type SendPackageStream = Events<v1::SendPackageResponse>;

    async fn send_package(
        &self,
        request: Request<Streaming<v1::SendPackageRequest>>,
    ) -> Result<Response<Self::SendPackageStream>, Status> {
        let caller = caller(&request);
        let mut requests = request.into_inner();
        let permit = self.permit()?;
        let offer = parse_start(next_part(&mut requests).await?)?;
        let span = info_span!("SendPackage", id = %offer.id, version = %offer.version, caller);
        // The work keeps the permit: it goes on for a while when its caller has gone.
        let look = self.work(move |packages| Ok((packages.begin(offer)?, permit)));
        let (begun, permit) = look.instrument(span.clone()).await?;
        let stage = Stage::Begun(begun);
        Ok(events(Incoming { requests, stage, span, _permit: permit }, &self.stop))
    }

    async fn get_package(
        &self,
        request: Request<v1::GetPackageRequest>,
    ) -> Result<Response<v1::GetPackageResponse>, Status> {
        let v1::GetPackageRequest { id, version } = request.into_inner();
        let (id, version) = (parse_id(&id)?, parse_version(&version)?);
        let kept = self.work(move |packages| packages.get(&id, &version)).await?;
        Ok(Response::new(v1::GetPackageResponse { package: Some(kept.into()) }))
    }

    async fn list_packages(
        &self,
        request: Request<v1::ListPackagesRequest>,
    ) -> Result<Response<v1::ListPackagesResponse>, Status> {
        let v1::ListPackagesRequest { id } = request.into_inner();
        let id = (!id.is_empty()).then(|| parse_id(&id)).transpose()?;
        let kept = self.work(move |packages| packages.list(id.as_ref())).await?;
        let packages = kept.into_iter().map(v1::Package::from).collect();
        Ok(Response::new(v1::ListPackagesResponse { packages }))
    }

    async fn remove_package(
        &self,
        request: Request<v1::RemovePackageRequest>,
    ) -> Result<Response<v1::RemovePackageResponse>, Status> {
        let caller = caller(&request);
        let v1::RemovePackageRequest { id, version } = request.into_inner();
        let (id, version) = (parse_id(&id)?, parse_version(&version)?);
        let span = info_span!("RemovePackage", %id, %version, caller);
        let remove = self.work(move |packages| packages.remove(&id, &version));
        let kept = remove.instrument(span.clone()).await?;
        span.in_scope(|| info!("package is removed"));
        Ok(Response::new(v1::RemovePackageResponse { package: Some(kept.into()) }))
    }
}

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PackageError> + Send + 'static,
) -> Result<T, Status> {
    // It fails only when the runtime shuts down or the work panicked.
    let result = tokio::task::spawn_blocking(work).await.map_err(|_| status::stopping())?;
    result.map_err(|error| status::package(&error))
}

/// The next part of a package; `None` when its sender says that it was all.
async fn next_part(
    requests: &mut Streaming<v1::SendPackageRequest>,
) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(SILENCE_LIMIT, requests.message()).await;
    let message = message.map_err(|_| status::silent(SILENCE_LIMIT))??;
    let missing = || status::field("part", "is missing");
    message.map(|message| message.part.ok_or_else(missing)).transpose()
}

fn parse_start(part: Option<Part>) -> Result<Offer, Status> {
    let Some(Part::Start(start)) = part else {
        return Err(status::field("start", "is missing: it comes first"));
    };
    let v1::SendPackageStart { id, version, sha256, manifest_bytes, replace } = start;
    let digest = Digest::from_bytes(&sha256)
        .ok_or_else(|| status::field("sha256", "is no digest: 32 bytes are expected"))?;
    Ok(Offer {
        id: parse_id(&id)?,
        version: parse_version(&version)?,
        digest,
        manifest_bytes: usize::try_from(manifest_bytes).unwrap_or(usize::MAX),
        replace,
    })
}

fn parse_id(text: &str) -> Result<PackageId, Status> {
    text.parse().map_err(|error| status::field("id", &format!("{error}")))
}

fn parse_version(text: &str) -> Result<Version, Status> {
    text.parse().map_err(|error| status::field("version", &format!("{error}")))
}

fn done(kept: Kept, unchanged: bool) -> Kind {
    Kind::Done(v1::SendPackageDone { package: Some(kept.into()), unchanged })
}
