//! Bringing an agent another version of its program, and hearing how that ends.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::time::Instant;

use super::files::local_error;
use super::{Client, ClientError, FileError, Tell, Told};
use crate::transfer::{self, read_chunk};
use crate::wire::v1;

/// How long to wait before the agent is asked again; it is away for a moment.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one question may take: an agent may hang.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long a roll-back may take, beside the time that the new version has.
const ROLL_BACK_LIMIT: Duration = Duration::from_mins(3);

/// What is wanted of an upgrade.
#[derive(Debug, Clone)]
pub struct UpgradeWish {
    /// The program.
    pub program: PathBuf,
    /// The text of its signature.
    pub signature: String,
    /// Whether an older version is wanted.
    pub allow_downgrade: bool,
    /// Whether it is only to be checked.
    pub dry_run: bool,
}

/// A program on its way.
struct Source {
    file: std::fs::File,
    path: PathBuf,
    size: u64,
    failure: Mutex<Option<std::io::Error>>,
    tell: Tell,
}

impl Client {
    /// Brings a program; when this returns it is in place, and the agent restarts.
    ///
    /// # Errors
    /// When it can't be read, is refused, or the agent can't be reached.
    pub async fn upgrade(
        &self,
        wish: UpgradeWish,
        tell: Tell,
    ) -> Result<v1::UpgradeResponse, FileError> {
        let UpgradeWish { program: path, signature, allow_downgrade, dry_run } = wish;
        let local = path.clone();
        let read = tokio::task::spawn_blocking(move || transfer::digest_file(&local)).await;
        let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let (file, offer) = read.map_err(|source| local_error(&path, source))?;
        let (size, sha256) = (offer.size, offer.digest.to_bytes());
        let source = Source { file, path, size, failure: Mutex::default(), tell };
        let source = Arc::new(source);
        let start = v1::UpgradeStart { size, sha256, signature, allow_downgrade, dry_run };
        let answer = self.agent.clone().upgrade(requests(start, Arc::clone(&source))).await;
        let failure = source.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(failure) = failure {
            return Err(local_error(&source.path, failure));
        }
        Ok(answer.map_err(ClientError::from)?.into_inner())
    }

    /// Waits until an upgrade has ended; `None`: it isn't known within `limit` and the time that a roll-back takes.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn upgraded(
        &self,
        id: &str,
        limit: Duration,
    ) -> Result<Option<v1::AgentUpgrade>, ClientError> {
        let end = Instant::now() + limit + ROLL_BACK_LIMIT;
        while Instant::now() < end {
            match tokio::time::timeout(ANSWER_LIMIT, self.info()).await {
                Ok(Ok(info)) => {
                    let upgrade = info.status.and_then(|status| status.upgrade);
                    let upgrade = upgrade.filter(|upgrade| upgrade.upgrade_id == id);
                    if let Some(upgrade) = upgrade.filter(|upgrade| upgrade.ended_at.is_some()) {
                        return Ok(Some(upgrade));
                    }
                }
                Ok(Err(error)) if !error.is_passing() => return Err(error),
                // It is away, as it was said to be.
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }
}

/// What is sent next.
enum Next {
    Start(v1::UpgradeStart),
    From(u64),
}

fn requests(
    start: v1::UpgradeStart,
    source: Arc<Source>,
) -> impl Stream<Item = v1::UpgradeRequest> {
    let message = |part| v1::UpgradeRequest { part: Some(part) };
    unfold(Next::Start(start), move |next| {
        let source = Arc::clone(&source);
        async move {
            let offset = match next {
                Next::Start(start) => {
                    let part = v1::upgrade_request::Part::Start(start);
                    return Some((message(part), Next::From(0)));
                }
                Next::From(offset) => offset,
            };
            let data = source.read(offset).await?;
            let sent = offset + u64::try_from(data.len()).unwrap_or(u64::MAX);
            (source.tell)(Told::Moved { bytes: sent, size: source.size });
            Some((message(v1::upgrade_request::Part::Data(data)), Next::From(sent)))
        }
    })
}

impl Source {
    /// The next piece; `None` at the end, or when it can't be read.
    async fn read(self: &Arc<Self>, offset: u64) -> Option<bytes::Bytes> {
        let source = Arc::clone(self);
        let read = move || read_chunk(&source.file, offset, source.size);
        let read = tokio::task::spawn_blocking(read).await;
        match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(data) if data.is_empty() => None,
            Ok(data) => Some(data),
            Err(error) => {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                *failure = Some(error);
                None
            }
        }
    }
}

/// Where the signature of a file is kept: beside it, as minisign does.
pub(crate) fn signature_path(program: &Path) -> PathBuf {
    let mut name = program.file_name().unwrap_or_default().to_owned();
    name.push(".minisig");
    program.with_file_name(name)
}
