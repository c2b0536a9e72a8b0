//! What a killed supervisor left running: without it there are no limits, no output, and nobody who
//! gives the mutexes back. It is asked to end, has its grace, and is forced; only then the script is
//! `lost`, and its place in the queue passes on.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::{Agent, AgentError};
use crate::filewatch::register;
use crate::process::{self, Process, ProcessId};
use crate::script::{Fate, ScriptId, Straggler};

/// How long forced processes may take to be gone before it is looked for new ones.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How many are named in the outcome; the others are ended all the same.
const MAX_NAMED: usize = 16;

impl Agent {
    /// Ends the tree of a script that has no supervisor any more; says what it was.
    pub(super) async fn end_orphans(
        &self,
        id: &ScriptId,
        leader: Option<ProcessId>,
        grace: Duration,
    ) -> Result<Vec<Straggler>, AgentError> {
        let mut living = self.orphans(id, leader).await?;
        let fate = Fate::Ended;
        let name = |p: &Process| Straggler { pid: p.pid, command: p.command_line(), fate };
        let named: Vec<Straggler> = living.iter().take(MAX_NAMED).map(name).collect();
        if !living.is_empty() {
            warn!(processes = ?named, "its supervisor was killed; what it left is ended");
        }
        let forced_at = Instant::now() + grace;
        for process in &living {
            process.signal(Signal::TERM);
            // One that was stopped would not hear it.
            process.signal(Signal::CONT);
        }
        while !living.is_empty() {
            let is_forced = Instant::now() >= forced_at;
            if is_forced {
                for process in &living {
                    process.signal(Signal::KILL);
                }
            }
            let until = if is_forced { Instant::now() + LOOK_AGAIN } else { forced_at };
            // Over: it is looked again for who is left.
            timeout_at(until, all_ended(&living)).await.unwrap_or_default();
            living = self.orphans(id, leader).await?;
        }
        Ok(named)
    }

    /// The script's living processes: by its workspace in their environment, by the id of the first of
    /// them, or below one of those.
    async fn orphans(
        &self,
        id: &ScriptId,
        leader: Option<ProcessId>,
    ) -> Result<Vec<Process>, AgentError> {
        let work = self.workspace(id).work().display().to_string();
        super::blocking(move || {
            let mut tree = process::trees(|process| {
                let own = process.variable("BATON_WORKSPACE")?;
                Ok(leader == Some(process.id()) || own.is_some_and(|path| path == work))
            })?;
            tree.retain(|process| process.living().is_some());
            Ok(tree)
        })
        .await?
        .map_err(|source| AgentError::State { path: "/proc".into(), source })
    }
}

async fn all_ended(processes: &[Process]) {
    for descriptor in processes.iter().filter_map(Process::watch) {
        // Not to be watched: whoever waits looks again.
        if let Ok(descriptor) = register(descriptor) {
            drop(descriptor.readable().await);
        }
    }
}
