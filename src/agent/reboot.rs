//! Scripts that asked for a restart of the machine, and the command that restarts it.
//!
//! 1. Who asked keeps its place, and with it its mutexes, until the machine was restarted; its
//!    supervisor sees to that. In the next run of the machine it is launched as the next attempt.
//! 2. Without a command somebody else restarts the machine; scripts that the waiting one doesn't
//!    exclude go on as always.
//! 3. With one, nothing new is started from the wish on, and the command is run when all that runs has
//!    ended, scripts that bypass and observers included. Not while the agent drains: then an operator
//!    has the machine in hand.
//! 4. The command is run once for the wishes that there are; that is on disk before. When it fails, all goes
//!    on as without one, until the next wish.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tracing::{error, info, warn};

use super::table::{Living, Table};
use super::{Agent, AgentError, blocking};
use crate::format::{self, FormatError};
use crate::script::{Event, Phase, Restart, ScriptId};
use crate::snapshot::AwaitedRestart;

/// How long the command may take; one that only asks the system to restart takes a moment.
const COMMAND_LIMIT: Duration = Duration::from_mins(5);

/// That the command was run, in `<state>/reboot.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Commanded {
    /// In which run of the machine.
    boot_id: String,
    /// When it was about to be started.
    at: Timestamp,
    /// Why it did not work, if it did not.
    problem: Option<String>,
}

/// What the agent knows of restarts of the machine.
#[derive(Debug)]
pub(super) struct Reboot {
    /// The run of the machine.
    boot_id: String,
    has_command: bool,
    /// The last time that the command was run, in this run of the machine.
    commanded: Option<Commanded>,
}

fn record_path(state: &Path) -> PathBuf {
    state.join("reboot.json")
}

impl Reboot {
    /// As an earlier run of the agent left it.
    pub(super) fn load(state: &Path) -> Result<Self, AgentError> {
        let path = record_path(state);
        let boot_id = super::recover::boot_id();
        let commanded = match std::fs::read(&path) {
            Ok(text) => match format::from_json(format::REBOOT, &text) {
                Ok(commanded) => Some(commanded),
                Err(FormatError::Newer(source)) => return Err(AgentError::Newer { path, source }),
                // A power failure tore it: the machine was restarted.
                Err(FormatError::Json(_)) => None,
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(AgentError::State { path, source }),
        };
        let commanded = commanded.filter(|last: &Commanded| last.boot_id == boot_id);
        Ok(Self { boot_id, has_command: false, commanded })
    }

    /// Whether there is a command from now on.
    pub(super) fn set_command(&mut self, has_command: bool) {
        self.has_command = has_command;
    }

    /// Whether a script waits for a restart of the machine.
    pub(super) fn is_awaited(&self, living: &Living) -> bool {
        self.awaited(living).is_some()
    }

    fn awaited<'a>(&self, living: &'a Living) -> Option<&'a Restart> {
        let restart = living.restart.as_ref().filter(|restart| restart.boot_id == self.boot_id);
        // Running: its reports are read again, after a restart of the agent.
        restart.filter(|_| !matches!(living.phase, Phase::Stopping | Phase::Done(_)))
    }

    /// The command's last run, if it was for this wish too.
    fn commanded_for(&self, restart: &Restart) -> Option<&Commanded> {
        self.commanded.as_ref().filter(|last| last.at >= restart.since)
    }

    /// Whether the agent is to restart the machine for this script, or has told the system to.
    pub(super) fn is_due(&self, asker: &Living) -> bool {
        let failed = |restart| self.commanded_for(restart).is_some_and(|c| c.problem.is_some());
        self.has_command && self.awaited(asker).is_some_and(|restart| !failed(restart))
    }

    /// What `living` is told of the restart that `asker` asked for.
    pub(super) fn shown(&self, asker: &Living, living: &Living) -> Option<AwaitedRestart> {
        let restart = self.awaited(asker)?;
        let own = std::ptr::eq(asker, living);
        let problem = self.commanded_for(restart).and_then(|last| last.problem.clone());
        Some(AwaitedRestart {
            since: restart.since,
            reason: restart.reason.clone(),
            attempt: if own { restart.next_attempt() } else { 0 },
            problem: problem.unwrap_or_default(),
        })
    }
}

impl Table {
    /// The restart of the machine that a script waits for.
    pub(super) fn awaited(&self, id: &ScriptId) -> Option<&Restart> {
        self.get(id).and_then(|living| self.reboot.awaited(living))
    }

    /// The last script that asked for a restart of the machine, of those that wait for it.
    pub(super) fn asker(&self) -> Option<&Living> {
        let awaiting = self.all().filter_map(|living| Some((self.reboot.awaited(living)?, living)));
        awaiting.max_by_key(|(restart, _)| restart.since).map(|(_, living)| living)
    }

    /// Whether nothing is launched now: the agent drains, or restarts the machine.
    pub(super) fn starts_nothing(&self) -> bool {
        let comes_to_rest = self.drain.is_some() || self.stops_by.is_some();
        comes_to_rest || self.asker().is_some_and(|asker| self.reboot.is_due(asker))
    }

    /// Whether the command is to be run now (rules 3 and 4).
    fn is_to_be_commanded(&self) -> bool {
        let is_new = |asker: &Living| {
            let wish = self.reboot.awaited(asker);
            wish.is_some_and(|wish| self.reboot.commanded_for(wish).is_none())
        };
        self.reboot.has_command
            && self.drain.is_none()
            && self.asker().is_some_and(is_new)
            && self
                .all()
                .all(|living| living.phase == Phase::Queued || self.reboot.is_awaited(living))
    }
}

impl Agent {
    /// A script waits for a restart of the machine from now on.
    pub(super) fn awaits_restart(&self, id: &ScriptId, restart: Restart) -> Result<(), AgentError> {
        info!(
            attempt = restart.attempt,
            reason = restart.reason,
            "asks for a restart of the machine"
        );
        let starts_nothing = {
            let mut table = self.table();
            if let Some(living) = table.get_mut(id) {
                living.attempts = restart.attempt;
                living.restart = Some(restart);
                living.false_starts = 0;
                living.blocked.clear();
            }
            table.apply(id, Event::AskedRestart)?;
            table.starts_nothing()
        };
        if starts_nothing {
            self.step_back_all();
        }
        self.queue_changed();
        Ok(())
    }

    /// The wish of this run of the machine that a script's supervisor put on record.
    pub(super) async fn restart_on_record(
        &self,
        id: &ScriptId,
    ) -> Result<Option<Restart>, AgentError> {
        let workspace = self.workspace(id);
        let read = move || workspace.read_json::<Restart>(&workspace.resume());
        let restart = blocking(read).await??;
        Ok(restart.filter(|restart| restart.boot_id == self.table().reboot.boot_id))
    }

    /// Restarts the machine when a script asked for it, as long as the agent lives.
    pub(super) async fn run_rebooter(self) {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let is_due = self.table().is_to_be_commanded();
            if is_due {
                self.restart_machine().await;
            }
            // An error: the agent has ended.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn restart_machine(&self) {
        let boot_id = self.table().reboot.boot_id.clone();
        let mut commanded = Commanded { boot_id, at: Timestamp::now(), problem: None };
        // Rule 4: without that on disk it could be run again and again.
        commanded.problem = match self.remember_command(&commanded).await {
            Ok(()) => self.run_reboot_command().await.err(),
            Err(error) => Some(crate::text::chain(&error)),
        };
        if let Some(problem) = &commanded.problem {
            error!(problem, "the machine can't be restarted");
            if let Err(error) = self.remember_command(&commanded).await {
                warn!(error = crate::text::chain(&error), "that is not remembered");
            }
        }
        self.table().reboot.commanded = Some(commanded);
        self.queue_changed();
    }

    async fn remember_command(&self, commanded: &Commanded) -> Result<(), AgentError> {
        let path = record_path(&self.inner.settings.state);
        let text = format::to_json(format::REBOOT, commanded).unwrap_or_default();
        let to = path.clone();
        blocking(move || crate::durable::replace_file(&to, &text, 0o600))
            .await?
            .map_err(|source| AgentError::State { path, source })
    }

    async fn run_reboot_command(&self) -> Result<(), String> {
        let config = self.config();
        let Some((program, arguments)) = config.reboot_command.split_first() else {
            return Ok(());
        };
        warn!(
            program,
            ?arguments,
            "a script asked for it, and nothing runs: the machine is restarted"
        );
        let mut command = Command::new(program);
        // What it says goes into the agent's log.
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(COMMAND_LIMIT, command.status()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("{program}: {status}")),
            Ok(Err(error)) => Err(format!("{program}: {error}")),
            Err(_) => {
                let limit = humantime::format_duration(COMMAND_LIMIT);
                Err(format!("{program}: not done after {limit}"))
            }
        }
    }
}
