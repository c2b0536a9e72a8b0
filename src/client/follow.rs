//! Following a script to its end, across connections that break: the stream goes on at the offset
//! that was reached, byte for byte.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::timeout_at;
use tonic::Streaming;

use super::away::{Away, Next, Now, Patience};
use super::{Client, ClientError};
use crate::script::{DropCause, ScriptId, Stream};
use crate::snapshot::Snapshot;
use crate::spec::Spec;
use crate::values::message::Level;

use crate::wire::{WireError, drop_cause, v1};

/// What is heard of a script.
#[derive(Debug)]
pub enum Heard {
    /// How it stands now.
    Script(Box<Snapshot>),
    /// It wrote something.
    Output {
        /// Where.
        stream: Stream,
        /// What it is.
        level: Level,
        /// What.
        data: Bytes,
        /// How many bytes of output come before.
        offset: u64,
    },
    /// Output is missing here. What one place misses may be told in parts, as it grows.
    OutputMissing {
        /// How many bytes of output come before it.
        offset: u64,
        /// How many are missing, as far as it is known; else 0.
        bytes: u64,
        /// Why it was not kept; `None`: the log is cut or damaged, and what comes after is missing too.
        cause: Option<DropCause>,
    },
    /// The agent is away, and waited for: told at once, and again once a minute.
    Away(Away),
    /// The agent is back.
    Back {
        /// Since when it was away.
        since: Timestamp,
    },
}

/// A script that is followed.
#[derive(Debug)]
pub struct Following {
    client: Client,
    id: ScriptId,
    /// The request, until it is known that it was accepted.
    spec: Option<Spec>,
    offset: u64,
    wait: bool,
    events: Option<Events>,
    patience: Patience,
    /// What was heard when the agent came back, which is told first.
    held: Option<Heard>,
    over: bool,
}

#[derive(Debug)]
enum Events {
    Run(Streaming<v1::RunResponse>),
    Watch(Streaming<v1::WatchResponse>),
}

impl Events {
    async fn next(&mut self) -> Result<Option<v1::ScriptEvent>, ClientError> {
        match self {
            Self::Run(events) => Ok(events.message().await?.and_then(|message| message.event)),
            Self::Watch(events) => Ok(events.message().await?.and_then(|message| message.event)),
        }
    }
}

impl Following {
    pub(super) fn start(client: Client, spec: Spec) -> Self {
        let id = spec.script_id.clone();
        Self { spec: Some(spec), ..Self::watch(client, id, 0, true) }
    }

    pub(super) fn watch(client: Client, id: ScriptId, offset: u64, wait: bool) -> Self {
        let patience = Patience::new(client.away_limit);
        let (spec, events, held) = (None, None, None);
        Self { client, id, spec, offset, wait, events, patience, held, over: false }
    }

    /// How many bytes of output were heard, those before the first one included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What is heard next; `None` after the end.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    ///
    /// # Errors
    /// When the agent refuses, or can't be reached for too long.
    pub async fn next(&mut self) -> Result<Option<Heard>, ClientError> {
        loop {
            if let Some(heard) = self.held.take() {
                return Ok(Some(heard));
            }
            if self.over {
                return Ok(None);
            }
            let heard = match self.try_receive().await {
                Some(Ok(Some(heard))) => Some(self.heard(heard)),
                // Without waiting, the end of what there is is the end.
                Some(Ok(None)) if !self.wait => {
                    self.over = true;
                    None
                }
                Some(Ok(None)) => {
                    self.events = None;
                    None
                }
                Some(Err(error)) if error.is_passing() => {
                    self.events = None;
                    let next = self.patience.failed(crate::text::chain(&error), Now::read());
                    self.wait(next).await?
                }
                Some(Err(error)) => return Err(error),
                None => {
                    let next = self.patience.next(Now::read().0);
                    self.wait(next).await?
                }
            };
            if heard.is_some() {
                return Ok(heard);
            }
        }
    }

    /// From now on, an agent that is away is waited for no longer than so long.
    pub fn hurry(&mut self, limit: Duration) {
        self.patience.hurry(limit, Now::read().0);
    }

    /// `None`: it took so long that something else is to be done first.
    async fn try_receive(&mut self) -> Option<Result<Option<Heard>, ClientError>> {
        match self.patience.due() {
            Some(due) => timeout_at(due.into(), self.receive()).await.ok(),
            None => Some(self.receive().await),
        }
    }

    /// What is told first of what was heard.
    fn heard(&mut self, heard: Heard) -> Heard {
        match self.patience.renew() {
            Some(since) => {
                self.held = Some(heard);
                Heard::Back { since }
            }
            None => heard,
        }
    }

    async fn wait(&mut self, next: Next) -> Result<Option<Heard>, ClientError> {
        match next {
            Next::Tell(away) => Ok(Some(Heard::Away(away))),
            Next::Pause(pause) => {
                tokio::time::sleep(pause).await;
                Ok(None)
            }
            Next::GiveUp(away) => Err(ClientError::Away(away)),
        }
    }

    async fn receive(&mut self) -> Result<Option<Heard>, ClientError> {
        if self.events.is_none() {
            self.events = Some(self.open().await?);
        }
        let Some(events) = &mut self.events else {
            return Ok(None);
        };
        let Some(event) = events.next().await? else {
            return Ok(None);
        };
        // Whatever comes first says that the script was accepted.
        self.spec = None;
        match event.kind.ok_or(WireError::Field("event.kind"))? {
            v1::script_event::Kind::Script(script) => {
                let snapshot = Snapshot::try_from(script)?;
                self.over = snapshot.phase.is_done();
                Ok(Some(Heard::Script(Box::new(snapshot))))
            }
            v1::script_event::Kind::Output(output) => {
                let stream = Stream::try_from(output.stream())?;
                let length = u64::try_from(output.data.len()).unwrap_or(u64::MAX);
                self.offset = output.offset.saturating_add(length);
                // An agent of a later version may know more.
                let level = Level::from(output.level());
                let v1::Output { data, offset, .. } = output;
                Ok(Some(Heard::Output { stream, level, data, offset }))
            }
            v1::script_event::Kind::OutputMissing(missing) => {
                let cause = drop_cause(missing.cause());
                let v1::OutputMissing { offset, bytes, .. } = missing;
                Ok(Some(Heard::OutputMissing { offset, bytes, cause }))
            }
        }
    }

    async fn open(&self) -> Result<Events, ClientError> {
        let mut scripts = self.client.scripts.clone();
        if let Some(spec) = &self.spec {
            let request = v1::RunRequest { spec: Some(spec.clone().into()) };
            return Ok(Events::Run(scripts.run(request).await?.into_inner()));
        }
        let request = v1::WatchRequest {
            script_id: self.id.to_string(),
            output_offset: self.offset,
            no_follow: !self.wait,
        };
        Ok(Events::Watch(scripts.watch(request).await?.into_inner()))
    }
}
