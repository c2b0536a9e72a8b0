//! An artifact as a stream of messages.

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::status;
use crate::agent::Agent;
use crate::artifacts::Opened;
use crate::script::ScriptId;
use crate::wire::v1;
use v1::download_artifact_response::Part;

/// What is sent next.
enum Next {
    Info(Opened),
    Bytes(Opened),
    Nothing,
}

/// What the artifact is, then its bytes. Ends with the agent.
pub(super) fn parts(
    agent: Agent,
    id: ScriptId,
    opened: Opened,
    stop: CancellationToken,
) -> impl Stream<Item = Result<v1::DownloadArtifactResponse, Status>> {
    unfold(Next::Info(opened), move |next| {
        let (agent, id, stop) = (agent.clone(), id.clone(), stop.clone());
        async move {
            match next {
                Next::Info(opened) => {
                    let sha256 = opened.sha256.to_vec();
                    let info = v1::ArtifactInfo { size_bytes: opened.size, sha256 };
                    Some((Ok(message(Part::Info(info))), Next::Bytes(opened)))
                }
                Next::Bytes(opened) => {
                    match stop.run_until_cancelled(agent.read_artifact(&id, opened)).await {
                        Some(Ok((_, bytes))) if bytes.is_empty() => None,
                        Some(Ok((opened, bytes))) => {
                            Some((Ok(message(Part::Data(bytes.into()))), Next::Bytes(opened)))
                        }
                        Some(Err(error)) => Some((Err(status::agent(&error)), Next::Nothing)),
                        None => Some((Err(status::stopping()), Next::Nothing)),
                    }
                }
                Next::Nothing => None,
            }
        }
    })
}

fn message(part: Part) -> v1::DownloadArtifactResponse {
    v1::DownloadArtifactResponse { part: Some(part) }
}
