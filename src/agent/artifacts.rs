//! The artifacts of scripts, for who asks.

use super::{Agent, AgentError};
use crate::artifacts::{ArtifactError, ArtifactPath, Listing, Opened, list};
use crate::script::ScriptId;

/// How many may read a whole artifact for its digest at the same time: the disk and the processors are
/// for scripts.
pub(super) const MAX_DIGESTING: usize = 2;

impl Agent {
    /// Which artifacts a script has so far.
    ///
    /// # Errors
    /// When there is no such script, or its folder can't be read.
    pub async fn artifacts(&self, id: &ScriptId) -> Result<Listing, AgentError> {
        self.get(id).await?;
        let folder = self.workspace(id).artifacts();
        let listing = super::blocking(move || list(&folder)).await?;
        listing.map_err(|source| AgentError::Artifact { id: id.clone(), source })
    }

    /// Opens an artifact to send it from an offset on.
    ///
    /// # Errors
    /// When there is no such script or artifact, or the artifact is shorter.
    pub async fn open_artifact(
        &self,
        id: &ScriptId,
        path: &ArtifactPath,
        offset: u64,
    ) -> Result<Opened, AgentError> {
        self.get(id).await?;
        let _one = self.inner.digesting.acquire().await.map_err(|_| AgentError::Stopping)?;
        let (folder, path) = (self.workspace(id).artifacts(), path.clone());
        let opened = super::blocking(move || Opened::open(&folder, &path, offset)).await?;
        opened.map_err(|source| AgentError::Artifact { id: id.clone(), source })
    }

    /// The next bytes of an artifact; none at the end.
    ///
    /// # Errors
    /// When the file can't be read on.
    pub async fn read_artifact(
        &self,
        id: &ScriptId,
        mut opened: Opened,
    ) -> Result<(Opened, Vec<u8>), AgentError> {
        let read = move || opened.chunk().map(|chunk| (opened, chunk));
        let read: Result<_, ArtifactError> = super::blocking(read).await?;
        read.map_err(|source| AgentError::Artifact { id: id.clone(), source })
    }
}
