//! The scripts that are not done: one pure table, and what outsiders may see of it.
//!
//! Pure: times are arguments; whoever calls keeps the store in step. A [`Table`] lives in a
//! `std::sync::Mutex` that is held for a few statements.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::queue::{LineBefore, Queue, QueueFull};
use super::reboot::Reboot;
use super::status::{Counts, Status};
use super::stored::StoreStanding;
use super::term::{self, Term};
use crate::mutex::{Blocked, Claimant, Mode, MutexName, Party};
use crate::script::{
    Blocker, Drain, Event, IllegalTransition, MAX_BLOCKERS, Phase, Restart, ScriptId, Straggler,
};
use crate::snapshot::{Snapshot, Wait};
use crate::spec::Spec;
use crate::upgrade;
use crate::values::Progress;

/// How many of those who wait before a script are named.
const MAX_NAMED: usize = 16;

/// What others are told of a script that keeps its place.
const AWAITS_RESTART: &str = "waits for the machine to be restarted";

/// A script that is not done.
#[derive(Debug)]
pub(super) struct Living {
    pub(super) spec: Arc<Spec>,
    /// The number of its arrival.
    arrival: u64,
    /// What runs, in one line: it is asked for often, and a body may be long.
    summary: String,
    pub(super) phase: Phase,
    /// Whether it is on disk; until then nobody may be told that it is accepted.
    pub(super) accepted: bool,
    pub(super) queued_at: Timestamp,
    pub(super) started_at: Option<Timestamp>,
    /// When it ended, between its end and the moment in which the store has it.
    pub(super) ended_at: Option<Timestamp>,
    pub(super) output_bytes: u64,
    /// How far it says that it is.
    pub(super) progress: Option<Progress>,
    /// What its supervisor last said that it waits for.
    pub(super) blocked: Vec<Blocked>,
    /// For whom it waited; at most [`MAX_BLOCKERS`].
    pub(super) blockers: Vec<Blocker>,
    /// How long it waited for its first start.
    pub(super) waited: Option<Duration>,
    /// How often it was started.
    pub(super) attempts: u32,
    /// Its processes that were killed and are still there.
    pub(super) stuck: Vec<Straggler>,
    /// Its supervisor, when that was asked to stop the script and is stopped itself.
    pub(super) halted: Option<u32>,
    /// Whether the machine lacked something for its last supervisor.
    pub(super) lacked: bool,
    /// Why its mutexes are given back though nothing can end it, once an operator said so.
    pub(super) abandon: Option<String>,
    /// Why it is to stop, once it is.
    pub(super) stop: Option<String>,
    /// How often it was launched: each time it has another journal.
    pub(super) launches: u32,
    /// How often a supervisor died before it started the script.
    pub(super) false_starts: u32,
    /// That it asked for a restart of the machine: its last wish.
    pub(super) restart: Option<Restart>,
    /// Whether its supervisor was asked to step back: then its end is no false start.
    pub(super) asked_back: bool,
    /// What is known of it as a lease, if it is one.
    pub(super) term: Option<Term>,
    /// Rings on each change of this script, its output included.
    pub(super) changed: watch::Sender<()>,
}

/// All scripts that are not done.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) queue: Queue,
    /// While the agent drains, nothing new comes in and nothing is launched.
    pub(super) drain: Option<Drain>,
    /// When the agent ends at the latest. While it stops it takes and launches nothing either.
    pub(super) stops_by: Option<Timestamp>,
    pub(super) store: StoreStanding,
    /// The last upgrade of the agent's program.
    pub(super) upgrade: Option<upgrade::Record>,
    /// The restart of the machine, as far as it is known to the agent.
    pub(super) reboot: Reboot,
    living: HashMap<ScriptId, Living>,
}

impl Table {
    pub(super) fn new(queue: Queue, reboot: Reboot) -> Self {
        let (store, living) = (StoreStanding::default(), HashMap::new());
        Self { queue, drain: None, stops_by: None, store, upgrade: None, reboot, living }
    }

    /// Gives a new script its place; returns the number of its arrival.
    pub(super) fn reserve(&mut self, spec: Arc<Spec>, now: Timestamp) -> Result<u64, QueueFull> {
        let arrival = self.queue.reserve(spec.script_id.clone(), spec.lines())?;
        self.insert(spec, arrival, now, false);
        Ok(arrival)
    }

    /// Puts a script of an earlier run of the agent back.
    pub(super) fn restore(&mut self, arrival: u64, spec: Arc<Spec>, queued_at: Timestamp) {
        self.queue.restore(arrival, spec.script_id.clone(), spec.lines());
        self.insert(spec, arrival, queued_at, true);
    }

    fn insert(&mut self, spec: Arc<Spec>, arrival: u64, queued_at: Timestamp, accepted: bool) {
        let living = Living {
            arrival,
            phase: Phase::Queued,
            accepted,
            queued_at,
            started_at: None,
            ended_at: None,
            output_bytes: 0,
            progress: None,
            blocked: Vec::new(),
            blockers: Vec::new(),
            waited: None,
            attempts: 0,
            stuck: Vec::new(),
            halted: None,
            lacked: false,
            abandon: None,
            stop: None,
            launches: 0,
            false_starts: 0,
            restart: None,
            asked_back: false,
            term: None,
            changed: watch::Sender::new(()),
            summary: spec.summary(),
            spec,
        };
        self.living.insert(living.spec.script_id.clone(), living);
    }

    /// The script is on disk.
    pub(super) fn accept(&mut self, id: &ScriptId) {
        self.queue.accept(id);
        if let Some(living) = self.living.get_mut(id) {
            living.accepted = true;
            living.changed.send_replace(());
        }
    }

    /// The script is done, or was not accepted after all. Who watches it hears the last change.
    pub(super) fn remove(&mut self, id: &ScriptId) -> Option<Living> {
        self.queue.remove(id);
        self.living.remove(id)
    }

    pub(super) fn get(&self, id: &ScriptId) -> Option<&Living> {
        self.living.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &ScriptId) -> Option<&mut Living> {
        self.living.get_mut(id)
    }

    /// Moves a script to its next phase. One that isn't here any more stays away.
    pub(super) fn apply(&mut self, id: &ScriptId, event: Event) -> Result<(), IllegalTransition> {
        let Some(living) = self.living.get_mut(id) else {
            return Ok(());
        };
        living.phase = living.phase.clone().next(event)?;
        living.changed.send_replace(());
        Ok(())
    }

    /// The next script to launch; it counts as launched.
    pub(super) fn launch_next(&mut self) -> Option<Arc<Spec>> {
        let starts_nothing = self.starts_nothing();
        let living = &self.living;
        let id = self.queue.launch_next_of(|id| term::may_start(living, id, starts_nothing))?;
        let living = self.living.get_mut(&id)?;
        // A queued script may always be launched.
        living.phase = living.phase.clone().next(Event::Launched).unwrap_or(Phase::Waiting);
        living.launches += 1;
        living.asked_back = false;
        living.changed.send_replace(());
        Some(Arc::clone(&living.spec))
    }

    /// Whether it is not known yet of somebody before a script that runs how that ended, or that it was put
    /// back into the queue: one of those must have come to pass for it to run.
    pub(super) fn is_someone_in_the_way(&self, id: &ScriptId) -> bool {
        let lines = self.queue.lines(id);
        let blocking = lines.iter().filter(|line| !line.admitted);
        let mut before = blocking.flat_map(|line| line.before.iter());
        before.any(|(id, _)| {
            self.living.get(*id).is_some_and(|living| match living.phase {
                Phase::Waiting | Phase::Running | Phase::Stopping => true,
                Phase::Queued | Phase::Done(_) => false,
            })
        })
    }

    /// The script's supervisor is asked to step back, if it may not have started it yet.
    pub(super) fn step_back(&mut self, id: &ScriptId) -> bool {
        let awaits = self.awaited(id).is_some();
        let living = self.living.get_mut(id).filter(|living| living.phase == Phase::Waiting);
        let Some(living) = living.filter(|l| !awaits && l.spec.lease.is_none()) else {
            return false;
        };
        living.asked_back = true;
        self.queue.step_back(id);
        true
    }

    /// Keeps in mind for whom a script waits now.
    pub(super) fn note_waits(&mut self, id: &ScriptId) {
        let waits = self.snapshot(id).map(|script| script.waits).unwrap_or_default();
        let Some(living) = self.living.get_mut(id) else {
            return;
        };
        for wait in waits {
            for party in wait.holders.into_iter().chain(wait.ahead) {
                let blocker = blocker(&wait.mutex, party.who);
                let is_known = living.blockers.iter().any(|known| known.is_same(&blocker));
                if !is_known && living.blockers.len() < MAX_BLOCKERS {
                    living.blockers.push(blocker);
                }
            }
        }
    }

    /// All of them, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Living> {
        self.living.values()
    }

    /// All scripts, the last one that arrived first.
    pub(super) fn last_first(&self) -> Vec<ScriptId> {
        self.queue.before(u64::MAX).map(|(_, id)| id.clone()).collect()
    }

    /// Whether a script that is launched is still to start.
    pub(super) fn is_to_start(&self, id: &ScriptId) -> bool {
        self.living.get(id).is_some_and(|living| living.stop.is_none() && !living.asked_back)
    }

    pub(super) fn status(&self) -> Status {
        let (drain, store_problem) = (self.drain.clone(), self.store.problem.clone());
        let (stops_by, upgrade) = (self.stops_by, self.upgrade.clone());
        Status { counts: self.counts(), drain, store_problem, stops_by, upgrade }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for living in self.living.values() {
            match living.phase {
                // Nothing of it runs: an agent that drains is at rest.
                Phase::Waiting if self.reboot.is_awaited(living) => counts.queued += 1,
                Phase::Queued => counts.queued += 1,
                Phase::Waiting => counts.waiting += 1,
                Phase::Running | Phase::Stopping => counts.running += 1,
                Phase::Done(_) => {}
            }
        }
        counts
    }

    /// The accepted scripts that arrived after a number, in order, each with its own.
    pub(super) fn snapshots(&self, arrival: u64) -> impl Iterator<Item = (u64, Snapshot)> {
        let later = self.queue.after(arrival);
        later.filter_map(|(arrival, id)| Some((arrival, self.snapshot(id)?)))
    }

    /// The accepted scripts that have left the queue: their end is known, and about to be in the store.
    /// In no order, each with the number of its arrival.
    pub(super) fn leaving(&self) -> impl Iterator<Item = (u64, Snapshot)> {
        let leaving = self.living.iter().filter(|(id, _)| !self.queue.contains(id));
        leaving.filter_map(|(id, living)| Some((living.arrival, self.snapshot(id)?)))
    }

    /// The accepted scripts that arrived before a number, the last one first, each with its own.
    pub(super) fn snapshots_before(&self, arrival: u64) -> impl Iterator<Item = (u64, Snapshot)> {
        let earlier = self.queue.before(arrival);
        earlier.filter_map(|(arrival, id)| Some((arrival, self.snapshot(id)?)))
    }

    /// How an accepted script stands.
    pub(super) fn snapshot(&self, id: &ScriptId) -> Option<Snapshot> {
        let living = self.living.get(id).filter(|living| living.accepted)?;
        let waits = match living.phase {
            Phase::Queued | Phase::Waiting if self.awaited(id).is_some() => {
                let wait = self.outsiders(&living.spec.mutex, &[], living);
                let restart = self.reboot.shown(living, living);
                vec![Wait { holders: Vec::new(), holder_count: 0, restart, ..wait }]
            }
            Phase::Queued if self.unopened(living).is_some() => self.waits_for_lease(living),
            Phase::Queued => self.waits_in_queue(id, living),
            Phase::Waiting => self.waits(id, living),
            Phase::Running | Phase::Stopping | Phase::Done(_) => Vec::new(),
        };
        let spec = &living.spec;
        Some(Snapshot {
            script_id: id.clone(),
            phase: living.phase.clone(),
            labels: spec.labels.clone(),
            isolation: spec.isolation,
            mutex: spec.mutex.clone(),
            exclusive_key: spec.exclusive_key.clone(),
            waits,
            queued_at: living.queued_at,
            started_at: living.started_at,
            ended_at: living.ended_at,
            output_bytes: living.output_bytes,
            stuck: living.stuck.clone(),
            halted: living.halted,
            summary: living.summary.clone(),
            progress: living.progress.clone(),
            lease: spec.lease.clone(),
            lease_standing: living.lease_standing(),
        })
    }

    /// The same of a script in the queue, which also waits for the end of a drain.
    pub(super) fn waits_in_queue(&self, id: &ScriptId, living: &Living) -> Vec<Wait> {
        let mut waits = self.waits(id, living);
        if let Some(drain) = &self.drain {
            if waits.is_empty() {
                waits.push(self.outsiders(&living.spec.mutex, &[], living));
            }
            for wait in &mut waits {
                wait.drain = Some(drain.clone());
            }
        }
        let asker = self.asker().filter(|asker| waits.is_empty() && self.reboot.is_due(asker));
        if let Some(asker) = asker {
            let restart = self.reboot.shown(asker, living);
            waits.push(Wait { restart, ..self.outsiders(&living.spec.mutex, &[], living) });
        }
        waits
    }

    /// What a script waits for: those of this agent who are before it, and those from outside whom
    /// the supervisors see in the machine's lines.
    fn waits(&self, id: &ScriptId, living: &Living) -> Vec<Wait> {
        let mut waits = Vec::new();
        for LineBefore { mutex, before, admitted } in self.queue.lines(id) {
            let told = living.blocked.iter().any(|blocked| blocked.mutex == *mutex);
            if admitted && !told {
                continue;
            }
            let mut wait = self.outsiders(mutex, &before, living);
            for (other, mode) in before {
                let Some(other) = self.living.get(other) else {
                    continue;
                };
                // It keeps its place, unless its supervisor was killed and stands in the line again.
                let awaits = self.reboot.is_awaited(other);
                let keeps = awaits && other.phase == Phase::Waiting && other.blocked.is_empty();
                let party = || {
                    let mut who = other.claimant();
                    if awaits {
                        AWAITS_RESTART.clone_into(&mut who.reason);
                    }
                    Party { who, exclusive: mode.is_exclusive() }
                };
                let (list, count) = if keeps || other.holds(mutex) {
                    (&mut wait.holders, &mut wait.holder_count)
                } else {
                    (&mut wait.ahead, &mut wait.ahead_count)
                };
                *count += 1;
                if list.len() < MAX_NAMED {
                    list.push(party());
                }
            }
            wait.position = wait.ahead_count + 1;
            waits.push(wait);
        }
        waits
    }

    /// Those who are not scripts of this agent, as the first supervisor that waits in the line sees
    /// them: the script's own, or that of one before it.
    pub(super) fn outsiders(
        &self,
        mutex: &MutexName,
        before: &[(&ScriptId, Mode)],
        living: &Living,
    ) -> Wait {
        let earlier = before.iter().filter_map(|(id, _)| self.living.get(*id));
        let mut reports = earlier.chain([living]).flat_map(|living| &living.blocked);
        let report = reports.find(|blocked| blocked.mutex == *mutex);
        let outside = |party: &&Party| {
            let id = party.who.script_id.as_deref();
            !id.is_some_and(|id| id.parse().is_ok_and(|id: ScriptId| self.living.contains_key(&id)))
        };
        let outsiders =
            |parties: &[Party]| parties.iter().filter(outside).cloned().collect::<Vec<_>>();
        let holders = report.map(|blocked| outsiders(&blocked.holders)).unwrap_or_default();
        let ahead = report.map(|blocked| outsiders(&blocked.ahead)).unwrap_or_default();
        Wait {
            mutex: mutex.clone(),
            position: 1,
            holder_count: count(holders.len()),
            holders,
            ahead_count: count(ahead.len()),
            ahead,
            foreign: report.is_some_and(|blocked| blocked.foreign),
            drain: None,
            restart: None,
        }
    }
}

fn blocker(mutex: &MutexName, who: Claimant) -> Blocker {
    let Claimant { pid, user, script_id, command, .. } = who;
    Blocker {
        mutex: mutex.to_string(),
        script_id: script_id.unwrap_or_default(),
        pid,
        user,
        command,
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

impl Living {
    /// Whether it holds a mutex of its own claims: it runs, or waits for another one only.
    fn holds(&self, mutex: &MutexName) -> bool {
        match self.phase {
            Phase::Running | Phase::Stopping => self.started_at.is_some(),
            Phase::Waiting => {
                !self.blocked.is_empty() && self.blocked.iter().all(|b| b.mutex != *mutex)
            }
            Phase::Queued | Phase::Done(_) => false,
        }
    }

    /// What others are told about who it is.
    pub(super) fn claimant(&self) -> Claimant {
        Claimant {
            script_id: Some(self.spec.script_id.to_string()),
            command: self.summary.clone(),
            labels: self.spec.labels.clone(),
            reason: self.lease_terms().map(|terms| terms.reason.clone()).unwrap_or_default(),
            lease_expires_at: self.lease_standing().and_then(|standing| standing.expires_at),
            waits_since: self.queued_at,
            holds_since: self.started_at,
            ..Claimant::default()
        }
    }
}
