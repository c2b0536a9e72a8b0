//! Fetching artifacts, across connections that break: it goes on at the offset that was reached.

use std::io;

use super::away::Patience;
use super::{Client, ClientError};
use crate::artifacts::{ArtifactPath, Beneath, Fetched, Listing};
use crate::script::ScriptId;
use crate::wire::{WireError, v1};
use v1::download_artifact_response::Part;

/// How often an artifact may be another one than it was before that is an error: a script writes it.
const MAX_CHANGES: u32 = 3;

/// Why an artifact could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The agent refuses or can't be reached.
    #[error("artifact {path}")]
    Client {
        /// Which one.
        path: ArtifactPath,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// It can't be written here.
    #[error("artifact {path} can't be written")]
    File {
        /// Which one.
        path: ArtifactPath,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is written while it is read.
    #[error("artifact {0} changes while it is fetched")]
    Changes(ArtifactPath),
}

/// How a try ended.
enum Tried {
    /// All bytes are there, and they are the right ones.
    Whole,
    /// Another file than before, or the bytes are not those that were announced.
    Changed,
}

impl Client {
    /// Which artifacts a script has.
    ///
    /// # Errors
    /// When there is no such script, or the agent can't be reached.
    pub async fn artifacts(&self, id: &ScriptId) -> Result<Listing, ClientError> {
        let request = v1::ListArtifactsRequest { script_id: id.to_string() };
        let response = self.scripts.clone().list_artifacts(request).await?.into_inner();
        Ok(Listing::try_from(response)?)
    }

    /// Fetches an artifact into a folder, whole or not at all; returns its size in bytes.
    ///
    /// # Errors
    /// When the agent refuses or can't be reached for too long, or it can't be written.
    pub async fn fetch_artifact(
        &self,
        id: &ScriptId,
        path: &ArtifactPath,
        into: &Beneath,
    ) -> Result<u64, FetchError> {
        let failed = |source| FetchError::File { path: path.clone(), source };
        let mut file = Fetched::begin(into, path).map_err(failed)?;
        let (mut known, mut changes) = (None, 0);
        let (mut patience, mut reached) = (Patience::new(self.away_limit), 0);
        loop {
            match self.try_artifact(id, path, &mut file, &mut known).await {
                Ok(Tried::Whole) => break,
                Ok(Tried::Changed) if changes < MAX_CHANGES => {
                    changes += 1;
                    known = None;
                    file.clear().map_err(failed)?;
                    reached = 0;
                }
                Ok(Tried::Changed) => return Err(FetchError::Changes(path.clone())),
                Err(error) if error.is_passing() => {
                    if file.length() > reached {
                        reached = file.length();
                        patience.renew();
                    }
                    // Nobody is told of the first break: nothing is lost by it.
                    drop(patience.wait(error).await?);
                }
                Err(error) => return Err(error),
            }
        }
        let size = file.length();
        file.finish().map_err(failed)?;
        Ok(size)
    }

    /// Goes on where the file ends. `known` is what the artifact is, once the agent has said so.
    async fn try_artifact(
        &self,
        id: &ScriptId,
        path: &ArtifactPath,
        file: &mut Fetched,
        known: &mut Option<v1::ArtifactInfo>,
    ) -> Result<Tried, FetchError> {
        let client = |source| FetchError::Client { path: path.clone(), source };
        let request = v1::DownloadArtifactRequest {
            script_id: id.to_string(),
            path: path.to_string(),
            offset: file.length(),
        };
        let parts = match self.scripts.clone().download_artifact(request).await {
            Ok(response) => response,
            // It is shorter now.
            Err(status) if status.code() == tonic::Code::OutOfRange => return Ok(Tried::Changed),
            Err(status) => return Err(client(status.into())),
        };
        let mut parts = parts.into_inner();
        while let Some(message) = parts.message().await.map_err(|status| client(status.into()))? {
            match message.part {
                Some(Part::Info(info)) if known.as_ref().is_none_or(|known| *known == info) => {
                    *known = Some(info);
                }
                Some(Part::Info(_)) => return Ok(Tried::Changed),
                Some(Part::Data(data)) => file
                    .append(&data)
                    .map_err(|source| FetchError::File { path: path.clone(), source })?,
                None => return Err(client(WireError::Field("part").into())),
            }
            // Whatever an agent sends: no more than it said.
            if known.as_ref().is_some_and(|info| file.length() > info.size_bytes) {
                return Ok(Tried::Changed);
            }
        }
        let info = known.as_ref().ok_or_else(|| client(WireError::Field("info").into()))?;
        let is_whole = file.length() == info.size_bytes && file.sha256() == *info.sha256;
        Ok(if is_whole { Tried::Whole } else { Tried::Changed })
    }
}

impl FetchError {
    fn is_passing(&self) -> bool {
        match self {
            Self::Client { source, .. } => source.is_passing(),
            Self::File { .. } | Self::Changes(_) => false,
        }
    }
}
