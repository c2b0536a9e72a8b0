//! Following how an agent stands, across connections that break.

use tonic::Streaming;

use super::away::Patience;
use super::{Client, ClientError};
use crate::wire::v1;

/// An agent that is followed.
#[derive(Debug)]
pub struct Standing {
    client: Client,
    changes: Option<Streaming<v1::AgentWatchResponse>>,
    patience: Patience,
}

impl Standing {
    pub(super) fn new(client: Client) -> Self {
        let patience = Patience::new(client.away_limit);
        Self { client, changes: None, patience }
    }

    /// How it stands: at once, then after each change.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    ///
    /// # Errors
    /// When the agent refuses, or can't be reached for too long.
    pub async fn next(&mut self) -> Result<v1::AgentStatus, ClientError> {
        loop {
            match self.receive().await {
                Ok(Some(status)) => {
                    self.patience.renew();
                    return Ok(status);
                }
                // The agent ends; another one may come.
                Ok(None) => self.changes = None,
                Err(error) if error.is_passing() => self.pause(error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<v1::AgentStatus>, ClientError> {
        if self.changes.is_none() {
            let mut agent = self.client.agent.clone();
            self.changes = Some(agent.watch(v1::AgentWatchRequest {}).await?.into_inner());
        }
        let Some(changes) = &mut self.changes else {
            return Ok(None);
        };
        Ok(changes.message().await?.map(|response| response.status.unwrap_or_default()))
    }

    async fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.changes = None;
        self.patience.wait(error).await.map(drop)
    }
}
