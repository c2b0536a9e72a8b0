//! Following a script to its end, across connections that break: the stream goes on at the offset
//! that was reached, byte for byte.

use bytes::Bytes;
use tonic::Streaming;

use super::patience::Patience;
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
    /// The connection broke; it is tried again.
    Interrupted(ClientError),
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
        let patience = Patience::default();
        Self { client, id, spec: None, offset, wait, events: None, patience, over: false }
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
            if self.over {
                return Ok(None);
            }
            match self.receive().await {
                Ok(Some(heard)) => {
                    self.patience.renew();
                    return Ok(Some(heard));
                }
                // Without waiting, the end of what there is is the end.
                Ok(None) if !self.wait => self.over = true,
                Ok(None) => self.events = None,
                Err(error) if error.is_passing() => {
                    if let Some(heard) = self.pause(error).await? {
                        return Ok(Some(heard));
                    }
                }
                Err(error) => return Err(error),
            }
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

    /// Waits before the next try. The first break is told.
    async fn pause(&mut self, error: ClientError) -> Result<Option<Heard>, ClientError> {
        self.events = None;
        Ok(self.patience.wait(error).await?.map(Heard::Interrupted))
    }
}
