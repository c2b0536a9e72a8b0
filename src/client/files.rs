//! Pushing and pulling files, across connections that break: each goes on where it stood, and nothing
//! that arrived is moved twice.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::Stream;
use futures_util::stream::{StreamExt as _, once, unfold};
use tokio::sync::oneshot;

use super::away::{Away, Patience};
use super::{Client, ClientError};
use crate::transfer::{
    self, FileInfo, Kind, Offer, Place, Receive, Receiving, TransferError, read_chunk,
};
use crate::wire::{WireError, to_timestamp, v1};

/// Why a file was not moved.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file of this machine can't be read.
    #[error("file {path}")]
    Local {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of this machine can't be written.
    #[error(transparent)]
    Receive(#[from] TransferError),
    /// What was named is a folder.
    #[error("{0} is a folder, not a file")]
    Folder(Place),
    /// The agent refuses, or can't be reached.
    #[error(transparent)]
    Agent(#[from] ClientError),
}

/// What is told while a file is on its way.
#[derive(Debug)]
pub enum Told {
    /// So much of it is on the other side, or nearly.
    Moved {
        /// How many bytes.
        bytes: u64,
        /// Of how many.
        size: u64,
    },
    /// The connection broke, or the agent takes nothing now; it is tried again. Told at once, and again once
    /// a minute.
    Interrupted(Away),
}

/// Who is told. It is called from the task that moves the bytes.
pub type Tell = Arc<dyn Fn(Told) + Send + Sync>;

/// A file that is on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// What is there now.
    pub file: FileInfo,
    /// How many bytes of content were moved for it, all tries together.
    pub moved_bytes: u64,
    /// Whether the same content was there before.
    pub unchanged: bool,
}

impl Client {
    /// Says what is at a place; for the digest the agent reads the whole file.
    ///
    /// # Errors
    /// When there is nothing, or the agent can't be reached.
    pub async fn stat(&self, place: &Place, with_digest: bool) -> Result<FileInfo, ClientError> {
        let (root, path) = (place.root.clone(), place.path.to_string());
        let request = v1::StatRequest { root, path, with_sha256: with_digest };
        let response = self.files.clone().stat(request).await?.into_inner();
        Ok(response.file.ok_or(WireError::Field("file"))?.try_into()?)
    }

    /// Brings a file to an agent.
    ///
    /// # Errors
    /// When it can't be read, the agent refuses it, or can't be reached for too long.
    pub async fn push(&self, path: &Path, place: &Place, tell: Tell) -> Result<Moved, FileError> {
        let local = path.to_owned();
        let read = blocking(move || transfer::digest_file(&local)).await;
        let (file, offer) = read.map_err(|source| local_error(path, source))?;
        let source = Arc::new(Source {
            file,
            size: offer.size,
            sent: AtomicU64::new(0),
            failure: Mutex::default(),
            tell: Arc::clone(&tell),
        });
        let mut trying = Trying::new(self);
        loop {
            let mut offset = 0;
            let result = self.upload(&source, place, &offer, &mut offset).await;
            if let Some(source) = source.failure() {
                return Err(local_error(path, source));
            }
            match result {
                Ok(done) => return moved(done, source.sent.load(Ordering::Relaxed)),
                Err(error) => trying.again(error, offset, &tell).await?,
            }
        }
    }

    /// One try of an upload. `offset`: how much was there at its beginning.
    async fn upload(
        &self,
        source: &Arc<Source>,
        place: &Place,
        offer: &Offer,
        offset: &mut u64,
    ) -> Result<v1::UploadDone, ClientError> {
        let (ready, from) = oneshot::channel();
        let requests = requests(start(place, offer), Arc::clone(source), from);
        let mut answers = self.files.clone().upload(requests).await?.into_inner();
        let mut ready = Some(ready);
        while let Some(answer) = answers.message().await? {
            match answer.kind.ok_or(WireError::Field("kind"))? {
                v1::upload_response::Kind::Ready(v1::UploadReady { offset: at }) => {
                    *offset = at;
                    // The requests wait for it; without them the connection has ended.
                    ready.take().map_or(Ok(()), |ready| ready.send(at)).unwrap_or_default();
                }
                v1::upload_response::Kind::Done(done) => return Ok(done),
            }
        }
        Err(WireError::Field("done").into())
    }

    /// Fetches a file from an agent. It is at `path` whole or not at all; until then it grows beside it.
    ///
    /// # Errors
    /// When there is none, it can't be written, or the agent can't be reached for too long.
    pub async fn pull(&self, place: &Place, path: &Path, tell: Tell) -> Result<Moved, FileError> {
        let mut moved_bytes = 0;
        loop {
            let offer = self.ask(place, &tell).await?;
            let local = path.to_owned();
            let mut receiving =
                match blocking(move || transfer::receive_local(&local, offer)).await? {
                    Receive::Unchanged(file) => {
                        return Ok(Moved { file, moved_bytes, unchanged: true });
                    }
                    Receive::More(receiving) => receiving,
                };
            let before = receiving.received();
            receiving = self.download(place, receiving, &tell).await?;
            moved_bytes += receiving.received() - before;
            match blocking(move || receiving.finish()).await {
                // What an earlier try left was not whole (the machine lost its power, say).
                Err(TransferError::WrongDigest { .. }) if before > 0 => {}
                other => return Ok(Moved { file: other?, moved_bytes, unchanged: false }),
            }
        }
    }

    /// What an agent's file offers.
    async fn ask(&self, place: &Place, tell: &Tell) -> Result<Offer, FileError> {
        let mut trying = Trying::new(self);
        loop {
            match self.stat(place, true).await {
                Ok(FileInfo { kind: Kind::File { size, digest }, mode, modified }) => {
                    let digest = digest.ok_or(WireError::Field("sha256"));
                    let digest = digest.map_err(ClientError::from)?;
                    return Ok(Offer { size, digest, mode, modified: Some(modified) });
                }
                Ok(FileInfo { kind: Kind::Folder, .. }) => {
                    return Err(FileError::Folder(place.clone()));
                }
                Err(error) => trying.again(error, 0, tell).await?,
            }
        }
    }

    /// Fetches what is missing.
    async fn download(
        &self,
        place: &Place,
        mut receiving: Box<Receiving>,
        tell: &Tell,
    ) -> Result<Box<Receiving>, FileError> {
        let mut trying = Trying::new(self);
        while receiving.left() > 0 {
            let from = receiving.received();
            let result;
            (receiving, result) = self.fetch(place, receiving, tell).await;
            match result {
                // It is shorter now: the digest will say so.
                Ok(()) => break,
                Err(FileError::Agent(error)) => trying.again(error, from, tell).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(receiving)
    }

    /// One try of a download.
    async fn fetch(
        &self,
        place: &Place,
        mut receiving: Box<Receiving>,
        tell: &Tell,
    ) -> (Box<Receiving>, Result<(), FileError>) {
        let (root, path) = (place.root.clone(), place.path.to_string());
        let request = v1::DownloadRequest { root, path, offset: receiving.received() };
        let mut chunks = match self.files.clone().download(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return (receiving, Err(ClientError::from(status).into())),
        };
        let size = receiving.received() + receiving.left();
        loop {
            let data = match chunks.message().await {
                Ok(Some(chunk)) => chunk.data,
                Ok(None) => return (receiving, Ok(())),
                Err(status) => return (receiving, Err(ClientError::from(status).into())),
            };
            let result;
            (receiving, result) = blocking(move || {
                let result = receiving.write(&data);
                (receiving, result)
            })
            .await;
            if let Err(error) = result {
                return (receiving, Err(error.into()));
            }
            tell(Told::Moved { bytes: receiving.received(), size });
        }
    }
}

/// Whether to try once more.
#[derive(Debug)]
pub(super) struct Trying {
    patience: Patience,
    /// How far the tries came.
    furthest: u64,
    /// Whether what an earlier upload left was found to be wrong.
    mistrusted: bool,
}

impl Trying {
    pub(super) fn new(client: &Client) -> Self {
        Self { patience: Patience::new(client.away_limit), furthest: 0, mistrusted: false }
    }

    /// Waits for the next try. `offset`: how much was there at the beginning of the one that failed.
    pub(super) async fn again(
        &mut self,
        error: ClientError,
        offset: u64,
        tell: &Tell,
    ) -> Result<(), ClientError> {
        // Only progress renews the patience: an agent that dies of each try is not tried for ever.
        if offset > self.furthest {
            self.furthest = offset;
            self.patience.renew();
        }
        let stale = offset > 0 && is_refused(&error, "DIGEST_MISMATCH");
        if stale && !self.mistrusted {
            self.mistrusted = true;
            return Ok(());
        }
        if !error.is_passing() && !is_refused(&error, "TRANSFERS_FULL") {
            return Err(error);
        }
        if let Some(away) = self.patience.wait(error).await? {
            tell(Told::Interrupted(away));
        }
        Ok(())
    }
}

fn is_refused(error: &ClientError, with: &str) -> bool {
    matches!(error, ClientError::Refused { reason, .. } if reason == with)
}

/// A file of this machine that is sent.
struct Source {
    file: File,
    size: u64,
    /// All tries together.
    sent: AtomicU64,
    /// Why it can't be read any more.
    failure: Mutex<Option<io::Error>>,
    tell: Tell,
}

impl Source {
    fn failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The next bytes; `None` at the end, or when it can't be read.
    async fn read(self: &Arc<Self>, offset: u64) -> Option<bytes::Bytes> {
        if offset >= self.size {
            return None;
        }
        let source = Arc::clone(self);
        let chunk = blocking(move || read_chunk(&source.file, offset, source.size)).await;
        let failure = match chunk {
            Ok(chunk) if !chunk.is_empty() => return Some(chunk),
            Ok(_) => io::Error::other("it was cut while it was sent"),
            Err(error) => error,
        };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        None
    }
}

/// All requests of an upload: the second one waits until it is known where to begin.
fn requests(
    start: v1::UploadStart,
    source: Arc<Source>,
    from: oneshot::Receiver<u64>,
) -> impl Stream<Item = v1::UploadRequest> + Send + 'static {
    let request = |part| v1::UploadRequest { part: Some(part) };
    let first = once(async move { request(v1::upload_request::Part::Start(start)) });
    let next = move |(source, from, at): (Arc<Source>, Option<oneshot::Receiver<u64>>, u64)| async move {
        let at = match from {
            Some(from) => from.await.ok()?,
            None => at,
        };
        (source.tell)(Told::Moved { bytes: at, size: source.size });
        let data = source.read(at).await?;
        let count = u64::try_from(data.len()).unwrap_or(u64::MAX);
        source.sent.fetch_add(count, Ordering::Relaxed);
        Some((request(v1::upload_request::Part::Data(data)), (source, None, at + count)))
    };
    first.chain(unfold((source, Some(from), 0), next))
}

fn start(place: &Place, offer: &Offer) -> v1::UploadStart {
    v1::UploadStart {
        root: place.root.clone(),
        path: place.path.to_string(),
        size: offer.size,
        sha256: offer.digest.to_bytes(),
        mode: offer.mode,
        modified_at: offer.modified.map(to_timestamp),
    }
}

fn moved(done: v1::UploadDone, moved_bytes: u64) -> Result<Moved, FileError> {
    let file = done.file.ok_or(WireError::Field("file")).and_then(FileInfo::try_from);
    let file = file.map_err(ClientError::from)?;
    // What is there may be what an earlier try of this push brought: its answer was lost.
    Ok(Moved { file, moved_bytes, unchanged: done.unchanged && moved_bytes == 0 })
}

pub(super) fn local_error(path: &Path, source: io::Error) -> FileError {
    FileError::Local { path: path.to_owned(), source }
}

/// Runs file work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
