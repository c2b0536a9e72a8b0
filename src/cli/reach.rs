//! Which agent a command speaks with, and getting there.

use std::time::Duration;

use clap::Args;

use super::failure::Failure;
use crate::client::embedded::Embedded;
use crate::client::{Client, ConnectError, connect};
use crate::config::{Directories, Overrides, Sources};
use crate::deploy::{limit, load};
use crate::trust::{Fingerprint, Identity};

/// The stem of the client's identity files.
pub(super) const CLIENT: &str = "client";

/// Which agent.
#[derive(Debug, Args)]
pub(super) struct Reach {
    /// The machine: a name from `baton target list`, or HOST:PORT with --fingerprint.
    /// Default: this machine
    #[arg(long, short = 't', value_name = "TARGET")]
    target: Option<String>,
    /// The fingerprint of the agent at HOST:PORT
    #[arg(long, value_name = "FINGERPRINT", requires = "target")]
    fingerprint: Option<Fingerprint>,
}

/// How long an agent that is away is waited for.
#[derive(Debug, Args)]
pub(super) struct AwayLimit {
    /// Wait so long for an agent that is away, for example while its machine starts again
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = away_limit)]
    away_limit: Duration,
}

impl AwayLimit {
    /// The same client, which waits so long.
    pub(super) fn of(&self, client: Client) -> Client {
        client.waiting_for(self.away_limit)
    }
}

/// Parses how long an agent that is away is waited for.
pub(super) fn away_limit(text: &str) -> Result<Duration, String> {
    limit::away(text)
}

impl Reach {
    /// What people call the agent.
    pub(super) fn name(&self) -> &str {
        self.target.as_deref().unwrap_or("the agent")
    }

    /// `-t TARGET`, for a command that is shown; empty: this machine.
    pub(super) fn words(&self) -> String {
        match (&self.target, self.fingerprint) {
            (None, _) => String::new(),
            (Some(target), None) => format!(" -t {target}"),
            (Some(target), Some(own)) => format!(" -t {target} --fingerprint {own}"),
        }
    }

    /// Whether it is this machine's agent.
    pub(super) fn is_here(&self) -> bool {
        self.target.is_none()
    }

    /// Connects to the agent; on this machine one must run.
    pub(super) async fn client(&self, folders: &Directories) -> Result<Client, Failure> {
        let channel = match &self.target {
            Some(target) => self.remote(target, folders).await?,
            None => connect::unix(&folders.socket()?).await?,
        };
        Ok(Client::new(channel))
    }

    /// Connects to the agent; on this machine, if none runs, one is embedded in this command.
    pub(super) async fn client_or_embedded(
        &self,
        folders: &Directories,
    ) -> Result<(Client, Option<Embedded>), Failure> {
        if self.target.is_some() {
            return Ok((self.client(folders).await?, None));
        }
        match connect::unix(&folders.socket()?).await {
            Ok(channel) => Ok((Client::new(channel), None)),
            Err(ConnectError::NoAgent(_)) => {
                let (embedded, client) = embed(folders).await?;
                Ok((client, Some(embedded)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Connects to the agent; `None` when it is this machine's and none runs.
    pub(super) async fn client_if_any(
        &self,
        folders: &Directories,
    ) -> Result<Option<Client>, Failure> {
        if self.target.is_some() {
            return self.client(folders).await.map(Some);
        }
        match connect::unix(&folders.socket()?).await {
            Ok(channel) => Ok(Some(Client::new(channel))),
            Err(ConnectError::NoAgent(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn remote(
        &self,
        target: &str,
        folders: &Directories,
    ) -> Result<tonic::transport::Channel, Failure> {
        let targets = load::known_targets(&folders.config)?;
        let (address, fingerprint) = match (targets.named(target), self.fingerprint) {
            (Some(known), given) => (known.address.clone(), given.unwrap_or(known.fingerprint)),
            (None, Some(fingerprint)) if target.contains(':') => (target.to_owned(), fingerprint),
            (None, _) if target.contains(':') => {
                return Err(Failure::usage(format!("{target} has no pinned fingerprint"))
                    .hint("give --fingerprint, as `baton agent init` printed it on the target"));
            }
            (None, _) => {
                return Err(Failure::usage(format!("target {target:?} is not known")).hint(
                    "`baton target list` shows the known ones; `baton target add` adds one",
                ));
            }
        };
        let identity = Identity::load_or_create(&folders.config, CLIENT)?;
        Ok(connect::tcp(&address, fingerprint, &identity).await?)
    }
}

/// Starts an agent in this process.
pub(super) async fn embed(folders: &Directories) -> Result<(Embedded, Client), Failure> {
    let layers = Sources::of(&folders.config, Overrides::default()).read()?;
    Ok(Embedded::start(folders, layers).await?)
}
