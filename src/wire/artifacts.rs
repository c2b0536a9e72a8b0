//! Artifacts: `ListArtifactsResponse` and [`Listing`].

use super::{WireError, v1};
use crate::artifacts::{Listing, Skipped, Why};

impl From<Listing> for v1::ListArtifactsResponse {
    fn from(Listing { artifacts, skipped, left_out, is_cut }: Listing) -> Self {
        let artifacts = artifacts
            .into_iter()
            .map(|(path, size_bytes)| v1::Artifact { path: path.to_string(), size_bytes });
        let skipped = skipped.into_iter().map(|Skipped { path, why }| {
            let problem = match why {
                Why::Link => v1::ArtifactProblem::Link,
                Why::Special => v1::ArtifactProblem::Special,
                Why::Name => v1::ArtifactProblem::Name,
                Why::Unreadable => v1::ArtifactProblem::Unreadable,
            };
            v1::SkippedArtifact { path, problem: problem.into() }
        });
        Self { artifacts: artifacts.collect(), skipped: skipped.collect(), left_out, is_cut }
    }
}

impl TryFrom<v1::ListArtifactsResponse> for Listing {
    type Error = WireError;

    fn try_from(message: v1::ListArtifactsResponse) -> Result<Self, WireError> {
        let artifact = |v1::Artifact { path, size_bytes }| {
            let path = path.parse().map_err(|_| WireError::Field("artifact.path"))?;
            Ok::<_, WireError>((path, size_bytes))
        };
        let skipped = |message: v1::SkippedArtifact| {
            let why = match message.problem() {
                v1::ArtifactProblem::Link => Why::Link,
                v1::ArtifactProblem::Special => Why::Special,
                v1::ArtifactProblem::Name => Why::Name,
                v1::ArtifactProblem::Unreadable | v1::ArtifactProblem::Unspecified => {
                    Why::Unreadable
                }
            };
            Skipped { path: message.path, why }
        };
        Ok(Self {
            artifacts: message
                .artifacts
                .into_iter()
                .map(artifact)
                .collect::<Result<_, WireError>>()?,
            skipped: message.skipped.into_iter().map(skipped).collect(),
            left_out: message.left_out,
            is_cut: message.is_cut,
        })
    }
}
