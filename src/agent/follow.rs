//! Following one script: how it stands and its output, for one client. Nothing here polls, and a
//! follower that goes away leaves nothing behind.

use std::collections::VecDeque;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Agent, AgentError};
use crate::journal::{JournalError, Reader, Record};
use crate::script::{DropCause, ScriptId, Stream};
use crate::snapshot::Snapshot;
use crate::supervisor::job::Report;
use crate::values::message::Level;

/// How much output is read at once before it is sent.
const BATCH_BYTES: usize = 256 * 1024;

/// Something that happened to a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// It stands differently now.
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
        /// When it was read from the script.
        time: Timestamp,
    },
    /// Output is missing here.
    OutputMissing {
        /// How many bytes of output come before it.
        offset: u64,
        /// How many are missing, as far as it is known; else 0.
        bytes: u64,
        /// Why it was not kept; `None`: the log is cut or damaged, and what comes after is missing too.
        cause: Option<DropCause>,
    },
}

/// One client's view of one script.
#[derive(Debug)]
pub struct Follow {
    agent: Agent,
    id: ScriptId,
    offset: u64,
    wait_for_more: bool,
    reader: Option<Reader>,
    /// How often it was launched when the reader was opened.
    launches: Option<u32>,
    told: Option<Snapshot>,
    pending: VecDeque<Followed>,
    /// Up to where output was read.
    read_until: u64,
    is_missing_told: bool,
    own_changes: Option<watch::Receiver<()>>,
    queue_changes: watch::Receiver<()>,
    over: bool,
    /// When it is to end although the script goes on.
    stop: CancellationToken,
}

impl Agent {
    /// Follows a script from an output offset on.
    ///
    /// # Errors
    /// When there is no such script, or less output than that.
    pub async fn follow(
        &self,
        id: &ScriptId,
        offset: u64,
        wait_for_more: bool,
    ) -> Result<Follow, AgentError> {
        let queue_changes = self.changes();
        let own_changes = self.table().get(id).map(|living| living.changed.subscribe());
        self.get(id).await?;
        let mut follow = Follow {
            agent: self.clone(),
            id: id.clone(),
            offset,
            wait_for_more,
            reader: None,
            launches: None,
            told: None,
            pending: VecDeque::new(),
            read_until: offset,
            is_missing_told: false,
            own_changes,
            queue_changes,
            over: false,
            stop: self.stopping().clone(),
        };
        follow.open().await?;
        if follow.reader.is_none() && offset > 0 {
            return Err(AgentError::OffsetBeyondEnd { offset, end: 0 });
        }
        Ok(follow)
    }
}

impl Follow {
    /// Ends with [`AgentError::Stopping`] from then on, unless the script is done: its end is told first.
    #[must_use]
    pub fn until(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// What happens next; `None` after the end. The last is how the script stands when it is done.
    ///
    /// # Cancel safety
    /// Not cancel safe: output that was read is lost. Drop the follower, or call it to the end.
    ///
    /// # Errors
    /// When the output can't be read, or the script was forgotten.
    pub async fn next(&mut self) -> Result<Option<Followed>, AgentError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            if self.over {
                return Ok(None);
            }
            // Seen before it is looked at: a change in between wakes again.
            self.queue_changes.mark_unchanged();
            if let Some(changes) = &mut self.own_changes {
                changes.mark_unchanged();
            }
            let snapshot = self.agent.get(&self.id).await?;
            let launches = self.agent.table().get(&self.id).map(|living| living.launches);
            if launches.is_some() && std::mem::replace(&mut self.launches, launches) != launches {
                // It was launched before, in vain: its journal is another one.
                self.reader = None;
            }
            let done = snapshot.phase.is_done();
            if !done && self.stop.is_cancelled() {
                return Err(AgentError::Stopping);
            }
            let news = self.told.as_ref().is_none_or(|told| told.differs(&snapshot));
            if news && !done {
                self.told = Some(snapshot.clone());
                return Ok(Some(Followed::Script(Box::new(snapshot))));
            }
            self.read().await?;
            if !self.pending.is_empty() {
                continue;
            }
            if done
                && !self.is_missing_told
                && let Some(missing) = self.missing(&snapshot)
            {
                self.is_missing_told = true;
                return Ok(Some(missing));
            }
            if done || !self.wait_for_more {
                // The output is at its end, and the end is always last.
                self.over = true;
                return Ok((done || news).then(|| Followed::Script(Box::new(snapshot))));
            }
            self.changed().await;
        }
    }

    /// What can't be read of the output of a script that is done.
    fn missing(&self, script: &Snapshot) -> Option<Followed> {
        let reader = self.reader.as_ref()?;
        let bytes = script.output_bytes.saturating_sub(self.read_until);
        let offset = self.read_until;
        let is_missing = reader.is_damaged() || bytes > 0;
        is_missing.then_some(Followed::OutputMissing { offset, bytes, cause: None })
    }

    async fn changed(&mut self) {
        let queue_changes = &mut self.queue_changes;
        let own_changes = self.own_changes.as_mut();
        let own = async {
            match own_changes {
                Some(changes) => changes.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = own => {
                // An error: it is done and its sender gone.
                if changed.is_err() {
                    self.own_changes = None;
                }
            }
            changed = queue_changes.changed() => changed.unwrap_or_default(),
            () = self.stop.cancelled() => {}
        }
    }

    async fn open(&mut self) -> Result<(), AgentError> {
        let path = self.agent.workspace(&self.id).journal();
        let offset = self.offset;
        let opened = super::blocking(move || Reader::open_at_output(&path, offset)).await?;
        match opened {
            Ok(reader) => self.reader = Some(reader),
            Err(JournalError::Missing) => {}
            Err(JournalError::OffsetBeyondEnd { offset, end }) => {
                return Err(AgentError::OffsetBeyondEnd { offset, end });
            }
            Err(source) => return Err(AgentError::Output { id: self.id.clone(), source }),
        }
        Ok(())
    }

    /// Reads a batch of output into `pending`.
    async fn read(&mut self) -> Result<(), AgentError> {
        if self.reader.is_none() {
            self.open().await?;
        }
        let Some(mut reader) = self.reader.take() else {
            return Ok(());
        };
        let read = move || {
            let mut batch = VecDeque::new();
            let mut bytes = 0;
            while bytes < BATCH_BYTES {
                match reader.next() {
                    Ok(Some(Record::Output { stream, level, data, offset, time })) => {
                        bytes += data.len();
                        batch.push_back(Followed::Output { stream, level, data, offset, time });
                    }
                    Ok(Some(Record::Event { payload, .. })) => {
                        batch.extend(gap(&payload, reader.offset()));
                    }
                    Ok(None) => break,
                    Err(error) => return (reader, batch, Err(error)),
                }
            }
            (reader, batch, Ok(()))
        };
        let (reader, batch, result) = super::blocking(read).await?;
        self.reader = Some(reader);
        for event in &batch {
            if let Followed::Output { data, offset, .. } = event {
                self.read_until = offset + u64::try_from(data.len()).unwrap_or(u64::MAX);
            }
        }
        self.pending = batch;
        result.map_err(|source| AgentError::Output { id: self.id.clone(), source })
    }
}

/// What a supervisor's event says of output that is missing at its place.
fn gap(event: &[u8], offset: u64) -> Option<Followed> {
    match serde_json::from_slice(event) {
        Ok(Report::OutputDropped { cause, here: bytes, .. }) if bytes > 0 => {
            Some(Followed::OutputMissing { offset, bytes, cause: Some(cause) })
        }
        _ => None,
    }
}
