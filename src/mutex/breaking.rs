//! Breaking a hold: an operator ends the holder, with its whole process tree, so that the line goes on.
//! Nothing is ever broken by itself.
//!
//! 1. Compare and break: it works only on the ticket that the operator names, while it holds.
//! 2. The tree is ended first: it is asked, has a grace, and is killed. The mutex is free when the kernel
//!    says so; nothing in the folder is removed by force.
//! 3. Who broke what and why is on record before anybody is asked.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::line::{Claimant, Entry, Folder};
use super::locks::LockOwner;
use super::status::{self, Standing};
use super::{MutexError, MutexName, locks, os, survivors};
use crate::process::{self, Process};

/// How long the tree has after it was asked, unless the operator says otherwise: longer than a script of
/// an agent has by default.
pub const GRACE: Duration = Duration::from_secs(15);
/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait before looking again for processes that were started meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Breaking {
    /// The mutex.
    pub name: MutexName,
    /// The ticket that is to hold it.
    pub ticket: u64,
    /// Why.
    pub reason: String,
    /// How long the tree has after it was asked.
    pub grace: Duration,
}

/// A line of the record: JSON in the file `breaks` of the mutex's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// When.
    pub at: Timestamp,
    /// The ticket.
    pub ticket: u64,
    /// Who held it.
    pub holder: Claimant,
    /// The user who broke it.
    pub by_user: String,
    /// The process in which.
    pub by_pid: u32,
    /// Why.
    pub reason: String,
}

/// Why a hold was not broken.
#[derive(Debug, thiserror::Error)]
pub enum BreakError {
    /// The folder can't be used.
    #[error(transparent)]
    Mutex(#[from] MutexError),
    /// Another ticket holds it, or none.
    #[error("ticket {ticket} does not hold `{name}`; {}{}", holders(.holding), outside(.foreign))]
    NotHolding {
        /// The mutex.
        name: MutexName,
        /// The ticket that was named.
        ticket: u64,
        /// Those that hold it.
        holding: Vec<u64>,
        /// Who has its plain lock without baton.
        foreign: Vec<LockOwner>,
    },
    /// The record can't be written; nothing was done.
    #[error("record {path}")]
    Record {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The one who asks is part of what holds it.
    #[error("this command is part of what holds `{0}`")]
    Own(MutexName),
    /// Processes of the tree were killed and are still there, or belong to another user.
    #[error("still there: {}", .0.join(", "))]
    StillThere(Vec<String>),
    /// The system refused.
    #[error("system call")]
    System(#[from] io::Error),
}

fn outside(foreign: &[LockOwner]) -> String {
    let name = |owner: &LockOwner| {
        format!("; pid {} ({}) has its plain lock, without baton", owner.pid, owner.command)
    };
    foreign.iter().map(name).collect()
}

fn holders(holding: &[u64]) -> String {
    match holding {
        [] => "no ticket does".to_owned(),
        [one] => format!("{one} does"),
        several => {
            let several: Vec<String> = several.iter().map(u64::to_string).collect();
            format!("{} do", several.join(", "))
        }
    }
}

/// Ends the holder's process tree; returns when the ticket is gone, who it was.
///
/// # Errors
/// When another ticket holds the mutex (nothing was done), or what can't be ended is left.
pub fn break_hold(root: &Path, wanted: &Breaking) -> Result<Standing, BreakError> {
    let status = status::status(root, &wanted.name)?;
    let holder = status.holders().iter().find(|standing| standing.ticket == wanted.ticket);
    let Some(holder) = holder.cloned() else {
        let holding = status.holders().iter().map(|standing| standing.ticket).collect();
        return Err(not_holding(wanted, holding, status.foreign));
    };
    let folder = Folder::open(root, &wanted.name)?;
    let entry = Entry { number: holder.ticket, mode: holder.mode };
    let Some(ticket) = folder.look(entry)? else {
        return Err(not_holding(wanted, Vec::new(), Vec::new()));
    };
    let mut tree = Tree::of(&holder.who, ticket.file.metadata()?);
    if folder.look(entry)?.is_none() {
        // It ended by itself meanwhile: what it left running is nobody's holder.
        return Err(not_holding(wanted, Vec::new(), Vec::new()));
    }
    if tree.is_above_this() {
        return Err(BreakError::Own(wanted.name.clone()));
    }
    record(root, wanted, &holder.who)?;
    tree.ask(&holder.who);
    if !tree.is_gone(Instant::now().checked_add(wanted.grace))? {
        tree.force()?;
    }
    // Removes what the dead left, as any claim would (rule 2 of the line).
    match folder.living(entry)? {
        None => Ok(holder),
        Some(_) => {
            Err(BreakError::StillThere(vec!["a process that can't be seen from here".into()]))
        }
    }
}

fn not_holding(wanted: &Breaking, holding: Vec<u64>, foreign: Vec<LockOwner>) -> BreakError {
    let (name, ticket) = (wanted.name.clone(), wanted.ticket);
    BreakError::NotHolding { name, ticket, holding, foreign }
}

fn record_path(root: &Path, name: &MutexName) -> PathBuf {
    root.join(name.as_str()).join("breaks")
}

fn keeps(process: &Process, ticket: &Metadata) -> bool {
    locks::keeps(process.pid, ticket)
}

fn record(root: &Path, wanted: &Breaking, holder: &Claimant) -> Result<(), BreakError> {
    let me = Claimant::this_process(String::new());
    let line = Break {
        at: Timestamp::now(),
        ticket: wanted.ticket,
        holder: holder.clone(),
        by_user: me.user,
        by_pid: me.pid,
        reason: wanted.reason.clone(),
    };
    let path = record_path(root, &wanted.name);
    let write = || {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(os::plain_flags())
            .open(&path)?;
        file.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes())?;
        file.sync_data()
    };
    write().map_err(|source| BreakError::Record { path: path.clone(), source })
}

/// The last time that the mutex was broken, if it ever was and the record can be read; also one that is
/// under way.
pub fn last_break(root: &Path, name: &MutexName) -> Option<Break> {
    let file = os::open_to_read(&record_path(root, name)).ok()??;
    let text = io::read_to_string(file).ok()?;
    text.lines().rev().find_map(|line| serde_json::from_str(line).ok())
}

/// The processes of a hold.
struct Tree {
    holder: Claimant,
    /// The ticket's file.
    ticket: Metadata,
    /// The process that the ticket names, as long as it keeps it.
    own: Option<Process>,
    /// The process that a keeper keeps it for.
    kept_for: Option<Process>,
    /// All that were ever found in it, and what tells their end.
    found: Vec<(Process, OwnedFd)>,
}

impl Tree {
    fn of(who: &Claimant, ticket: Metadata) -> Self {
        // In another container the id may be another process's.
        let own = Process::read(who.pid).filter(|process| keeps(process, &ticket));
        // A keeper has no tree: what it keeps the mutex for has.
        let kept_for = own.as_ref().and(who.kept_for).and_then(Process::read);
        let mut tree = Self { holder: who.clone(), ticket, own, kept_for, found: Vec::new() };
        tree.grow();
        tree
    }

    /// Finds those that keep the ticket, those that live on without it, and those below them.
    fn grow(&mut self) {
        let me = std::process::id();
        let keepers: Vec<Process> = process::all().filter(|p| keeps(p, &self.ticket)).collect();
        let kept_for = self.kept_for.iter().filter(|process| process.watch().is_some());
        // Not to be seen: whether the ticket is gone is asked at the end.
        let survivors = survivors::of(&self.holder).unwrap_or_default();
        let survivors = survivors.into_iter().map(|(process, _)| process);
        let above: Vec<Process> = kept_for.cloned().chain(keepers).chain(survivors).collect();
        let below = above.iter().flat_map(|process| process::below(process.pid));
        // Those above first: a script must not go on with its next line when the one before is ended.
        let all: Vec<Process> = above.iter().cloned().chain(below).collect();
        for process in all.into_iter().filter(|process| process.pid != me) {
            if !self.found.iter().any(|(found, _)| found.is_same(&process))
                && let Some(descriptor) = process.watch()
            {
                self.found.push((process, descriptor));
            }
        }
    }

    /// Whether this process is below it: it would not see the end.
    fn is_above_this(&self) -> bool {
        process::ancestors().any(|process| {
            keeps(&process, &self.ticket)
                || self.found.iter().any(|(found, _)| found.is_same(&process))
        })
    }

    /// A supervisor is asked alone: it ends its script, records the outcome, and gives back last. A
    /// wrapper would give back as soon as its command ends: it is killed first, so that the tree keeps
    /// the ticket until it is gone. A keeper gives back when the process ends that it keeps it for.
    fn ask(&mut self, who: &Claimant) {
        match &self.own {
            Some(supervisor) if who.script_id.is_some() => {
                // A SIGTERM that nobody explains is the machine going down, to a supervisor.
                supervisor.signal(Signal::INT);
                return;
            }
            Some(wrapper) if who.kept_for.is_none() => drop(wrapper.signal(Signal::KILL)),
            Some(_) | None => {}
        }
        // What was started in between.
        self.grow();
        let is_own = |process: &Process| self.own.as_ref().is_some_and(|own| own.is_same(process));
        for (process, _) in self.found.iter().filter(|(process, _)| !is_own(process)) {
            process.signal(Signal::TERM);
            // One that was stopped would not hear it.
            process.signal(Signal::CONT);
        }
    }

    /// Waits until all have ended, or the deadline.
    fn is_gone(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            let living: Vec<BorrowedFd<'_>> = self.living().map(|(_, fd)| fd.as_fd()).collect();
            if living.is_empty() {
                self.grow();
                if self.living().next().is_none() {
                    return Ok(true);
                }
                continue;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            os::sleep(living.into_iter().take(1), deadline)?;
        }
    }

    /// Kills what is left; a supervisor last, so that it records how its script ended.
    fn force(&mut self) -> Result<(), BreakError> {
        let start = Instant::now();
        let limit = start.checked_add(KILL_LIMIT);
        loop {
            self.grow();
            let is_own =
                |process: &Process| self.own.as_ref().is_some_and(|own| own.is_same(process));
            // Nor while there is something that nothing ends: it alone can give that up (`cancel
            // --abandon`).
            let spares_own = start.elapsed() < KILL_LIMIT / 2
                || self.living().any(|(process, _)| !is_own(process));
            for (process, _) in self.living() {
                if !(spares_own && is_own(process)) {
                    process.signal(Signal::KILL);
                }
            }
            // It may have started others before it died.
            if self.is_gone(limit.min(Instant::now().checked_add(LOOK_AGAIN)))? {
                return Ok(());
            }
            if limit.is_some_and(|limit| Instant::now() >= limit) {
                let name = |(process, _): &(Process, OwnedFd)| {
                    format!("pid {} ({})", process.pid, process.command_line())
                };
                return Err(BreakError::StillThere(self.living().map(name).collect()));
            }
        }
    }

    fn living(&self) -> impl Iterator<Item = &(Process, OwnedFd)> {
        self.found.iter().filter(|(_, descriptor)| !os::is_readable(descriptor.as_fd()))
    }
}
