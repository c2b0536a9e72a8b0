//! Sending packages, across connections that break: each try sends what is still missing.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::files::{Trying, blocking};
use super::{Client, ClientError, Tell, Told};
use crate::packages::manifest::Chunk;
use crate::packages::{Kept, Package, PackageId, SourceError, Version};
use crate::transfer::{Digest, MAX_CHUNK_BYTES};
use crate::wire::{WireError, v1};
use v1::send_package_request::Part;
use v1::send_package_response::Kind;

/// How many chunks are compressed ahead of the network.
const AHEAD: usize = 4;

/// Why a package was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A file of this machine can't be read, or was changed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The agent refuses, or can't be reached.
    #[error(transparent)]
    Agent(#[from] ClientError),
}

/// A package that an agent keeps now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The SHA-256 of its manifest.
    pub digest: Digest,
    /// The length of its files, in bytes.
    pub bytes_total: u64,
    /// How many bytes of chunks were sent, compressed, all tries together.
    pub bytes_sent: u64,
    /// How many different chunks it has.
    pub chunks_total: u64,
    /// How many of them were sent, all tries together.
    pub chunks_sent: u64,
    /// Whether the agent had the whole package before.
    pub already_there: bool,
}

/// What all tries of a sending know.
struct Sending<'a> {
    package: &'a Package,
    tell: &'a Tell,
    bytes_sent: AtomicU64,
    chunks_sent: AtomicU64,
    /// How many bytes of the package were there at the beginning of the last try.
    there: AtomicU64,
}

impl Client {
    /// Brings a package to an agent. Scripts there install it: `baton package install ID VERSION`.
    ///
    /// # Errors
    /// When it can't be read, the agent refuses it, or can't be reached for too long.
    pub async fn send_package(&self, package: &Package, tell: Tell) -> Result<Sent, SendError> {
        let sending = Sending {
            package,
            tell: &tell,
            bytes_sent: AtomicU64::new(0),
            chunks_sent: AtomicU64::new(0),
            there: AtomicU64::new(0),
        };
        let mut trying = Trying::new(self);
        loop {
            match self.try_package(&sending).await {
                Ok(done) => return Ok(sending.sent(done.unchanged)),
                Err(SendError::Agent(error)) => {
                    let there = sending.there.load(Ordering::Relaxed);
                    trying.again(error, there, &tell).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One try.
    async fn try_package(&self, sending: &Sending<'_>) -> Result<v1::SendPackageDone, SendError> {
        let (requests, from) = mpsc::channel(AHEAD);
        // It is empty and has room.
        requests.send(request(Part::Start(sending.start()))).await.unwrap_or_default();
        let call = self.packages.clone().send_package(ReceiverStream::new(from)).await;
        let mut answers = call.map_err(ClientError::from)?.into_inner();
        let mut answer = answers.message().await.map_err(ClientError::from)?;
        loop {
            let kind = answer.and_then(|answer| answer.kind).ok_or(WireError::Field("kind"));
            answer = match kind.map_err(ClientError::from)? {
                Kind::Done(done) => return Ok(done),
                Kind::ManifestWanted(_) => {
                    beside(&mut answers, sending.manifest(&requests)).await?
                }
                Kind::Missing(v1::MissingChunks { indices }) => {
                    beside(&mut answers, sending.chunks(&indices, &requests)).await?
                }
            };
        }
    }

    /// What an agent keeps under an id and a version.
    ///
    /// # Errors
    /// When there is nothing, or the agent can't be reached.
    pub async fn package(&self, id: &PackageId, version: &Version) -> Result<Kept, ClientError> {
        let request = v1::GetPackageRequest { id: id.to_string(), version: version.to_string() };
        kept(self.packages.clone().get_package(request).await?.into_inner().package)
    }

    /// What an agent keeps: all, or the versions of one package.
    ///
    /// # Errors
    /// When the agent can't be reached.
    pub async fn list_packages(&self, id: Option<&PackageId>) -> Result<Vec<Kept>, ClientError> {
        let id = id.map(ToString::to_string).unwrap_or_default();
        let request = v1::ListPackagesRequest { id };
        let response = self.packages.clone().list_packages(request).await?.into_inner();
        let packages = response.packages.into_iter().map(|package| kept(Some(package)));
        packages.collect()
    }

    /// Removes what an agent keeps under an id and a version.
    ///
    /// # Errors
    /// When there is nothing, or the agent can't be reached.
    pub async fn remove_package(
        &self,
        id: &PackageId,
        version: &Version,
    ) -> Result<Kept, ClientError> {
        let request = v1::RemovePackageRequest { id: id.to_string(), version: version.to_string() };
        kept(self.packages.clone().remove_package(request).await?.into_inner().package)
    }
}

impl Sending<'_> {
    fn start(&self) -> v1::SendPackageStart {
        v1::SendPackageStart {
            id: self.package.id().to_string(),
            version: self.package.version().to_string(),
            sha256: self.package.digest().to_bytes(),
            manifest_bytes: u32::try_from(self.package.manifest_text().len()).unwrap_or(u32::MAX),
            replace: self.package.replaces(),
        }
    }

    /// Sends the manifest, as far as the agent takes it.
    async fn manifest(&self, requests: &Requests) -> Result<(), SendError> {
        let mut left = self.package.manifest_text().clone();
        while !left.is_empty() {
            let part = left.split_to(left.len().min(MAX_CHUNK_BYTES));
            if requests.send(request(Part::Manifest(part))).await.is_err() {
                // The answer says why.
                break;
            }
        }
        Ok(())
    }

    /// Sends the missing chunks, as far as the agent takes them.
    async fn chunks(&self, missing: &[u32], requests: &Requests) -> Result<(), SendError> {
        let all = self.package.distinct_chunks();
        let find = |index: &u32| usize::try_from(*index).ok().and_then(|index| all.get(index));
        let wanted: Option<Vec<Chunk>> = missing.iter().map(|index| find(index).copied()).collect();
        let wanted = wanted.ok_or(WireError::Field("indices")).map_err(ClientError::from)?;
        let total = self.package.manifest().distinct_bytes();
        let missing: u64 = wanted.iter().map(|chunk| u64::from(chunk.size)).sum();
        let mut there = total.saturating_sub(missing);
        self.there.store(there, Ordering::Relaxed);
        (self.tell)(Told::Moved { bytes: there, size: total });
        let compress = |chunk: Chunk| {
            let package = self.package.clone();
            async move { (chunk, blocking(move || package.chunk(&chunk)).await) }
        };
        let mut compressed = iter(wanted).map(compress).buffered(AHEAD);
        while let Some((chunk, data)) = compressed.next().await {
            let data = bytes::Bytes::from(data?);
            let count = u64::try_from(data.len()).unwrap_or(u64::MAX);
            if requests.send(request(Part::Chunk(data))).await.is_err() {
                // The answer says why.
                break;
            }
            self.bytes_sent.fetch_add(count, Ordering::Relaxed);
            self.chunks_sent.fetch_add(1, Ordering::Relaxed);
            there += u64::from(chunk.size);
            (self.tell)(Told::Moved { bytes: there, size: total });
        }
        Ok(())
    }

    fn sent(&self, unchanged: bool) -> Sent {
        let (package, chunks_sent) = (self.package, self.chunks_sent.load(Ordering::Relaxed));
        Sent {
            digest: package.digest(),
            bytes_total: package.manifest().bytes(),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            chunks_total: u64::try_from(package.distinct_chunks().len()).unwrap_or(u64::MAX),
            chunks_sent,
            // What is there may be what an earlier try brought: its answer was lost.
            already_there: unchanged && chunks_sent == 0,
        }
    }
}

/// The answer that comes when something was sent, or before, when the agent wants no more of it.
async fn beside(
    answers: &mut Streaming<v1::SendPackageResponse>,
    sent: impl Future<Output = Result<(), SendError>>,
) -> Result<Option<v1::SendPackageResponse>, SendError> {
    let answer = answers.message();
    tokio::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        sent = sent => {
            sent?;
            answer.await
        }
    };
    Ok(answer.map_err(ClientError::from)?)
}

type Requests = mpsc::Sender<v1::SendPackageRequest>;

fn request(part: Part) -> v1::SendPackageRequest {
    v1::SendPackageRequest { part: Some(part) }
}

fn kept(message: Option<v1::Package>) -> Result<Kept, ClientError> {
    let message = message.ok_or(WireError::Field("package"))?;
    Ok(Kept::try_from(message)?)
}
