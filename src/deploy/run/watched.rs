//! A script of a step, followed to its end: what it does is told, a stop is passed on, and an agent that is
//! away is waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};

use super::Busy;
use super::job::{IS_BUSY, Task, state_of, waits_for_others};
use super::lines::Lines;
use crate::client::{Away, ClientError, Following, Heard};
use crate::deploy::event::{State, What};
use crate::script::{Phase, ScriptId, Stream};
use crate::snapshot::Snapshot;

/// How long apart an agent is asked to cancel a script.
const CANCEL_PAUSE: Duration = Duration::from_millis(200);
/// How long a deployment that is stopped waits for an agent that is away: it may be restarting.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Why a script is cancelled when the deployment is stopped.
const IS_STOPPED: &str = "the deployment was stopped";

/// A script that is followed.
pub(super) struct Watched<'a> {
    task: &'a Task,
    /// The attempt, from 1.
    number: u32,
    id: ScriptId,
    /// How it stands, as far as that was heard.
    pub(super) last: Option<Snapshot>,
    /// How that was told.
    told: Option<State>,
    /// Asks for its end as long as this is there.
    asks: Option<DropGuard>,
    lines: BTreeMap<bool, Lines>,
}

impl<'a> Watched<'a> {
    pub(super) fn new(task: &'a Task, number: u32, id: ScriptId) -> Self {
        let (last, told, asks, lines) = (None, None, None, BTreeMap::new());
        Self { task, number, id, last, told, asks, lines }
    }

    /// Follows it to its end.
    pub(super) async fn follow(&mut self, mut following: Following) -> Result<(), ClientError> {
        let mut is_stopped = false;
        let followed = loop {
            let heard = tokio::select! {
                heard = following.next() => heard,
                () = self.task.course.stopped(), if !is_stopped => {
                    is_stopped = true;
                    following.hurry(STOP_LIMIT);
                    self.cancel(IS_STOPPED);
                    continue;
                }
            };
            match heard {
                Ok(Some(heard)) => self.hear(heard).await,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.asks = None;
        for (is_error, mut rest) in std::mem::take(&mut self.lines) {
            if let Some(line) = rest.rest() {
                let stream = if is_error { Stream::Stderr } else { Stream::Stdout };
                self.tell_line(stream, line).await;
            }
        }
        followed
    }

    async fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Script(script) => {
                if self.is_unwelcome(&script) {
                    self.cancel(IS_BUSY);
                }
                self.tell_change(&script).await;
                self.last = Some(*script);
            }
            Heard::Output { stream, data, .. } => {
                let whole = self.lines.entry(stream == Stream::Stderr).or_default();
                for line in whole.push(&data) {
                    self.tell_line(stream, line).await;
                }
            }
            Heard::OutputMissing { .. } => {
                let line = "[output is missing here]".to_owned();
                self.tell_line(Stream::Stderr, line).await;
            }
            Heard::Away(Away { since, until, why }) => {
                self.told = None;
                self.task.tell(self.number, State::Away { since, until, why }).await;
            }
            Heard::Back { since } => self.task.tell(self.number, State::Back { since }).await,
        }
    }

    async fn tell_line(&self, stream: Stream, line: String) {
        let (target, step) = (self.task.job.target.clone(), self.task.step.name.clone());
        self.task.course.tell(What::Output { target, step, stream, line }).await;
    }

    /// Tells how the script stands, when that is something else than before.
    async fn tell_change(&mut self, script: &Snapshot) {
        let Some(state) = state_of(script) else { return };
        if self.told.as_ref() != Some(&state) {
            self.task.tell(self.number, state.clone()).await;
            self.told = Some(state);
        }
    }

    /// Whether it waits for others, and the deployment is not to.
    fn is_unwelcome(&self, script: &Snapshot) -> bool {
        let course = &self.task.course;
        course.options.if_busy != Busy::Wait && waits_for_others(script, &course.run)
    }

    /// Asks in a task of its own, until the agent has heard it: the script is followed meanwhile.
    fn cancel(&mut self, why: &'static str) {
        if self.asks.is_some() {
            return;
        }
        let (client, id, end) =
            (self.task.client.clone(), self.id.clone(), CancellationToken::new());
        let ask = async move {
            // It may not be there yet, or the agent be away.
            while client.cancel(&id, why.to_owned()).await.is_err() {
                tokio::time::sleep(CANCEL_PAUSE).await;
            }
        };
        self.task.course.tasks.spawn(end.clone().run_until_cancelled_owned(ask));
        self.asks = Some(end.drop_guard());
    }

    /// What is known when the agent was waited for in vain, and how to look.
    pub(super) fn lost_sight(&self, away: &Away) -> String {
        let (id, target) = (&self.id, &self.task.job.target);
        let known = match self.last.as_ref().map(|script| &script.phase) {
            None => format!("whether it has taken script {id} is not known"),
            Some(Phase::Queued | Phase::Waiting) => format!("script {id} waited there"),
            Some(Phase::Running) => format!("script {id} ran there, and may go on"),
            Some(Phase::Stopping | Phase::Done(_)) => format!("script {id} was about to end there"),
        };
        format!("{target} is {}; {known}: baton show {id} -t {target}", away.given_up())
    }
}
