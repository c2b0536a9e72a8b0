//! A new version of the agent comes in: the messages of `Agent.Upgrade`.

use std::time::Duration;

use tonic::{Status, Streaming};
use v1::upgrade_request::Part;

use super::status;
use crate::agent::{Agent, Taken};
use crate::transfer::{Digest, MAX_CHUNK_BYTES};
use crate::upgrade::{MAX_SIGNATURE_BYTES, Offer};
use crate::wire::{to_duration, v1};

/// How long an upload may be silent: another one may come then.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);

/// Takes what comes, and hands it to the agent.
pub(super) async fn take(
    agent: &Agent,
    mut requests: Streaming<v1::UpgradeRequest>,
    caller: String,
) -> Result<v1::UpgradeResponse, Status> {
    let (offer, dry_run) = parse_start(next_part(&mut requests).await?)?;
    let refused = |error| status::upgrade(&error);
    let mut upload = agent.begin_upgrade(offer).await.map_err(refused)?;
    while upload.incoming.left() > 0 {
        let data = match next_part(&mut requests).await? {
            Some(Part::Data(data)) => data,
            Some(Part::Start(_)) => return Err(status::field("start", "comes twice")),
            // Too early: the agent says so.
            None => break,
        };
        if data.is_empty() || data.len() > MAX_CHUNK_BYTES {
            return Err(status::field("data", "must have 1 byte to 1 MiB"));
        }
        let write = move || upload.incoming.write(&data).map(|()| upload);
        // It fails only when the runtime shuts down or the work panicked.
        let written = tokio::task::spawn_blocking(write).await.map_err(|_| status::stopping())?;
        upload = written.map_err(refused)?;
    }
    // To its end: an answer before that may reach the client as a broken stream, since the agent ends soon.
    if upload.incoming.left() == 0 && next_part(&mut requests).await?.is_some() {
        return Err(status::field("data", "is more than the size that was said"));
    }
    let taken = agent.complete_upgrade(upload, caller, dry_run).await.map_err(refused)?;
    Ok(taken.into())
}

async fn next_part(requests: &mut Streaming<v1::UpgradeRequest>) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(SILENCE_LIMIT, requests.message()).await;
    let message = message.map_err(|_| status::silent(SILENCE_LIMIT))??;
    let missing = || status::field("part", "is missing");
    message.map(|message| message.part.ok_or_else(missing)).transpose()
}

fn parse_start(part: Option<Part>) -> Result<(Offer, bool), Status> {
    let Some(Part::Start(start)) = part else {
        return Err(status::field("start", "is missing: it comes first"));
    };
    let v1::UpgradeStart { size, sha256, signature, allow_downgrade, dry_run } = start;
    let digest = Digest::from_bytes(&sha256)
        .ok_or_else(|| status::field("sha256", "is no digest: 32 bytes are expected"))?;
    if signature.is_empty() || signature.len() > MAX_SIGNATURE_BYTES {
        return Err(status::field("signature", "must have 1 to 4096 bytes"));
    }
    if size == 0 {
        return Err(status::field("size", "is missing"));
    }
    Ok((Offer { size, digest, signature, allow_downgrade }, dry_run))
}

impl From<Taken> for v1::UpgradeResponse {
    fn from(Taken { id, from, to, health_limit, unchanged }: Taken) -> Self {
        Self {
            upgrade_id: id.unwrap_or_default(),
            from_version: from,
            to_version: to,
            health_limit: Some(to_duration(health_limit)),
            unchanged,
        }
    }
}
