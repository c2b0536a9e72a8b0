//! What a killed supervisor left running: without it there are no limits, no output, and nobody who
//! gives the mutexes back. It is asked to end, has its grace, and is forced; only then the script is
//! `lost`, and its place in the queue passes on. What nothing can end is told, and waited for without limit,
//! unless an operator abandons it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use tokio::time::{Instant, timeout_at};
use tracing::{error, warn};

use super::{Agent, AgentError};
use crate::filewatch::register;
use crate::mutex::abandoned::{self, Abandoned};
use crate::mutex::status;
use crate::process::{self, Process, ProcessId};
use crate::script::{Fate, Straggler};
use crate::spec::Spec;
use crate::supervisor::Mask;

/// How long forced processes may take to be gone before it is looked for new ones.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long forced processes may take to be gone before it is told.
const STUCK: Duration = Duration::from_secs(2);
/// How many are named in the outcome; the others are ended all the same.
const MAX_NAMED: usize = 16;

impl Agent {
    /// Ends the tree of a script that has no supervisor any more; says what it was.
    pub(super) async fn end_orphans(
        &self,
        spec: &Arc<Spec>,
        leader: Option<ProcessId>,
    ) -> Result<Vec<Straggler>, AgentError> {
        let grace = spec.grace.unwrap_or_else(|| self.config().grace);
        let forced_at = Instant::now() + grace;
        let (mut named, mut seen_nobody) = (None, 0);
        // Looked for twice: one that was about to start another may have ended meanwhile.
        while seen_nobody < 2 {
            let living = match self.orphans(spec, leader).await {
                Ok(living) => living,
                Err(error) => {
                    // Its place does not pass on before it is known who is left.
                    error!(error = crate::text::chain(&error), "what it left can't be looked for");
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
            };
            if living.is_empty() {
                seen_nobody += 1;
                continue;
            }
            seen_nobody = 0;
            if named.is_none() {
                named = Some(ask_orphans(spec, &living));
            }
            let is_forced = Instant::now() >= forced_at;
            if is_forced {
                for process in &living {
                    process.signal(Signal::KILL);
                }
            }
            if Instant::now() >= forced_at + STUCK
                && let Some(left) = self.abandoned(spec, &living).await?
            {
                let mut ended = named.unwrap_or_default();
                ended.retain(|ended| !living.iter().any(|process| process.pid == ended.pid));
                return Ok(left.into_iter().chain(ended).take(MAX_NAMED).collect());
            }
            let until = if is_forced { Instant::now() + LOOK_AGAIN } else { forced_at };
            // Over: it is looked again for who is left.
            timeout_at(until, all_ended(&living)).await.unwrap_or_default();
        }
        Ok(named.unwrap_or_default())
    }

    /// Tells what can't be ended. When an operator abandons that, gives back what it holds and says what
    /// is left.
    async fn abandoned(
        &self,
        spec: &Arc<Spec>,
        living: &[Process],
    ) -> Result<Option<Vec<Straggler>>, AgentError> {
        let (id, stuck) = (&spec.script_id, named(spec, living, Fate::Abandoned));
        let reason = {
            let mut table = self.table();
            let Some(script) = table.get_mut(id) else {
                return Ok(None);
            };
            if script.stuck != stuck {
                script.stuck.clone_from(&stuck);
                script.changed.send_replace(());
            }
            script.abandon.clone()
        };
        let Some(reason) = reason else {
            return Ok(None);
        };
        warn!(processes = ?stuck, reason, "what can't be ended is abandoned");
        let processes = stuck.iter().map(|left| format!("pid {} ({})", left.pid, left.command));
        let (processes, holder) = (processes.collect(), format!("script {id}"));
        let mark = Abandoned { at: Timestamp::now(), holder, reason, processes };
        let (spec, living) = (Arc::clone(spec), living.to_vec());
        let mutexes = self.inner.settings.mutexes.clone();
        let given_back = super::blocking(move || {
            let id = spec.script_id.as_str();
            let back = |name| abandoned::give_back(&mutexes, name, id, &living, &mark);
            spec.claims().iter().try_for_each(|claim| back(&claim.name))
        });
        if let Err(error) = given_back.await? {
            // It is tried again as long as they are there.
            error!(error = crate::text::chain(&error), "its mutexes can't be given back");
            return Ok(None);
        }
        Ok(Some(stuck))
    }

    /// The script's living processes: by its workspace in their environment, by the id of the first of
    /// them, by its tickets, or below one of those.
    async fn orphans(
        &self,
        spec: &Arc<Spec>,
        leader: Option<ProcessId>,
    ) -> Result<Vec<Process>, AgentError> {
        let work = self.workspace(&spec.script_id).work().display().to_string();
        let (spec, mutexes) = (Arc::clone(spec), self.inner.settings.mutexes.clone());
        super::blocking(move || {
            let mut keepers = Vec::new();
            for claim in spec.claims() {
                // A folder that can't be read holds nobody's end up.
                let found = status::keepers(&mutexes, &claim.name, spec.script_id.as_str());
                keepers.extend(found.unwrap_or_default());
            }
            let mut tree = process::trees(|process| {
                let own = process.variable("BATON_WORKSPACE")?;
                let is_known = leader == Some(process.id()) || keepers.contains(&process.id());
                Ok(is_known || own.is_some_and(|path| path == work))
            })?;
            tree.retain(|process| process.living().is_some());
            Ok(tree)
        })
        .await?
        .map_err(|source| AgentError::State { path: "/proc".into(), source })
    }
}

/// Asks them to end; names them.
fn ask_orphans(spec: &Spec, living: &[Process]) -> Vec<Straggler> {
    let named = named(spec, living, Fate::Ended);
    warn!(processes = ?named, "its supervisor is gone; what it left is ended");
    for process in living {
        process.signal(Signal::TERM);
        // One that was stopped would not hear it.
        process.signal(Signal::CONT);
    }
    named
}

/// Names the first of them.
fn named(spec: &Spec, living: &[Process], fate: Fate) -> Vec<Straggler> {
    let mask = Mask::of(&spec.sensitive, &spec.environment);
    let command = |p: &Process| mask.shown(&p.command_line());
    let name = |p: &Process| Straggler { pid: p.pid, command: command(p), fate };
    living.iter().take(MAX_NAMED).map(name).collect()
}

async fn all_ended(processes: &[Process]) {
    for descriptor in processes.iter().filter_map(Process::watch) {
        // Not to be watched: whoever waits looks again.
        if let Ok(descriptor) = register(descriptor) {
            drop(descriptor.readable().await);
        }
    }
}
