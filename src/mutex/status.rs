//! Looking at the lines without taking part: who holds, who waits, and who has the plain OS lock
//! without baton.
//!
//! It changes nothing and waits for nobody, not even for the guard of a line.

use std::io;
use std::path::{Path, PathBuf};

use super::deadlock::Held;
use super::hold::MAX_NAMED;
use super::line::{Claimant, Entry, Folder};
use super::locks::{self, LockOwner};
use super::{Claim, Mode, MutexError, MutexName, os, policy};
use crate::process::{self, Process, ProcessId};

/// How a mutex stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Which mutex.
    pub name: MutexName,
    /// Who is in its line, in order.
    pub line: Vec<Standing>,
    /// How many of them, from the front on, hold it.
    pub holding: usize,
    /// Who has the plain OS lock without being in the line.
    pub foreign: Vec<LockOwner>,
}

/// Somebody in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The number of its ticket.
    pub ticket: u64,
    /// How it claims the mutex.
    pub mode: Mode,
    /// Who it is.
    pub who: Claimant,
}

impl Status {
    /// Of a mutex that nobody wants.
    pub fn free(name: MutexName) -> Self {
        Self { name, line: Vec::new(), holding: 0, foreign: Vec::new() }
    }

    /// Those who hold the mutex.
    pub fn holders(&self) -> &[Standing] {
        &self.line[..self.holding]
    }

    /// Those who wait, in order.
    pub fn waiters(&self) -> &[Standing] {
        &self.line[self.holding..]
    }

    /// Whether a ticket is in its line.
    pub fn has_ticket(&self, ticket: u64) -> bool {
        self.line.iter().any(|standing| standing.ticket == ticket)
    }

    /// Whether nobody wants it.
    pub fn is_free(&self) -> bool {
        self.line.is_empty() && self.foreign.is_empty()
    }
}

/// The mutexes that were ever used below a root, by name.
///
/// # Errors
/// When the folder can't be read.
pub fn names(root: &Path) -> Result<Vec<MutexName>, MutexError> {
    let failed = |source| MutexError::Folder { path: root.to_owned(), source };
    let entries = match std::fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
        names.extend(name.filter(|_| entry.path().join("line").is_dir()));
    }
    names.sort();
    Ok(names)
}

/// How the mutex `name` stands; one that was never used is free.
///
/// # Errors
/// When its folder can't be used.
pub fn status(root: &Path, name: &MutexName) -> Result<Status, MutexError> {
    let mut status = Status::free(name.clone());
    if !root.join(name.as_str()).is_dir() {
        return Ok(status);
    }
    let folder = Folder::open(root, name)?;
    for entry in folder.before(u64::MAX)? {
        if let Some(living) = folder.look(entry)? {
            let (ticket, mode, who) = (entry.number, entry.mode, living.claimant());
            status.line.push(Standing { ticket, mode, who });
        }
    }
    let modes: Vec<Mode> = status.line.iter().map(|standing| standing.mode).collect();
    status.holding = policy::holding(&modes);
    let mut foreign = locks::owners(&folder.os_lock_path())?;
    foreign.retain(|lock| !status.line.iter().any(|s| s.who.pid == lock.pid));
    if !foreign.is_empty() {
        // Line and locks are not read in one moment: who has come since is no outsider.
        for entry in folder.before(u64::MAX)? {
            if let Some(living) = folder.look(entry)? {
                let pid = living.claimant().pid;
                foreign.retain(|lock| lock.pid != pid);
            }
        }
        // Nor is who has given back since.
        let still = locks::owners(&folder.os_lock_path())?;
        foreign.retain(|lock| still.contains(lock));
    }
    status.foreign = foreign;
    // With the plain lock in other hands, the first of the line is only next.
    let first_is_exclusive = modes.first().is_some_and(|mode| mode.is_exclusive());
    if status.foreign.iter().any(|foreign| foreign.exclusive || first_is_exclusive) {
        status.holding = 0;
    }
    Ok(status)
}

/// The tickets that hold a mutex for a process above this one: by a token, or by its command's first
/// process when the environment was cleared since.
pub(super) fn kept_for_ancestors(root: &Path) -> Result<Vec<Held>, MutexError> {
    let above: Vec<Process> = process::ancestors().collect();
    let mut kept = Vec::new();
    for name in names(root)? {
        // Lines that this user may not read are none that it has tokens of.
        let Ok(folder) = Folder::open(root, &name) else { continue };
        let line = folder.before(u64::MAX).unwrap_or_default();
        let modes: Vec<Mode> = line.iter().map(|entry| entry.mode).collect();
        for entry in line.into_iter().take(policy::holding(&modes).min(MAX_NAMED)) {
            let who = folder.look(entry).ok().flatten().map(|ticket| ticket.claimant());
            let is_above = |who: &Claimant| {
                who.kept_for.is_some_and(|kept| above.iter().any(|p| p.pid == kept))
                    || who.leader.is_some_and(|leader| above.iter().any(|p| p.id() == leader))
            };
            if who.as_ref().is_some_and(is_above) {
                kept.push(Held { mutex: name.clone(), ticket: entry.number });
            }
        }
    }
    Ok(kept)
}

/// Whether a process has the ticket itself. In another container its id may be another process's.
pub(super) fn is_kept_by(
    root: &Path,
    name: &MutexName,
    standing: &Standing,
    pid: u32,
) -> Result<bool, MutexError> {
    let entry = Entry { number: standing.ticket, mode: standing.mode };
    let ticket = Folder::open(root, name)?.look(entry)?.and_then(|t| t.file.metadata().ok());
    Ok(ticket.is_some_and(|ticket| locks::keeps(pid, &ticket)))
}

/// The processes that keep a script's tickets of a mutex: its supervisor, and what inherited them from it.
///
/// # Errors
/// When the mutex folder can't be used.
pub fn keepers(
    root: &Path,
    name: &MutexName,
    script_id: &str,
) -> Result<Vec<ProcessId>, MutexError> {
    let line = status(root, name)?.line;
    let is_own = |standing: &&Standing| standing.who.script_id.as_deref() == Some(script_id);
    let mut keepers = Vec::new();
    for standing in line.iter().filter(is_own) {
        let entry = Entry { number: standing.ticket, mode: standing.mode };
        let ticket = Folder::open(root, name)?.look(entry)?.and_then(|t| t.file.metadata().ok());
        if let Some(ticket) = ticket {
            let having = process::all().filter(|process| locks::keeps(process.pid, &ticket));
            keepers.extend(having.map(|process| process.id()));
        }
    }
    Ok(keepers)
}

/// Removes those of these tickets, which were the caller's own, that are dead.
pub(super) fn remove_dead(
    root: &Path,
    name: &MutexName,
    tickets: &[Held],
) -> Result<(), MutexError> {
    let folder = Folder::open(root, name)?;
    for entry in folder.before(u64::MAX)? {
        if tickets.iter().any(|held| held.ticket == entry.number) {
            folder.living(entry)?;
        }
    }
    Ok(())
}

/// The ticket among those `held` that keeps one of these claims waiting for as long as it lives.
///
/// # Errors
/// When a mutex folder can't be used.
pub fn conflict<'a>(
    root: &Path,
    held: &'a [Held],
    claims: &[Claim],
) -> Result<Option<&'a Held>, MutexError> {
    for held in held {
        let Some(claim) = claims.iter().find(|claim| claim.name == held.mutex) else {
            continue;
        };
        let line = status(root, &held.mutex)?.line;
        let conflicts = |standing: &Standing| {
            standing.ticket == held.ticket && policy::excludes(standing.mode, claim.mode)
        };
        if line.iter().any(conflicts) {
            return Ok(Some(held));
        }
    }
    Ok(None)
}

/// The path of the plain OS lock, made if need be. Who may only read it may lock it all the same.
///
/// # Errors
/// When the folder can't be made.
pub fn os_lock_path(root: &Path, name: &MutexName) -> Result<PathBuf, MutexError> {
    let folder = Folder::open(root, name)?;
    if os::open_to_read(&folder.os_lock_path())?.is_none() {
        drop(folder.open_os_lock()?);
    }
    Ok(folder.os_lock_path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutex::{Advance, Claim, Hold};

    #[test]
    fn holders_waiters_and_outsiders_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let name: MutexName = "log".parse().unwrap();
        let claim = |mode| [Claim { name: name.clone(), mode }];
        let join = |mode, what: &str| {
            let who = Claimant::this_process(what.to_owned());
            let mut place = Hold::join(root.path(), &claim(mode), who, false).unwrap();
            let held = place.advance().unwrap() == Advance::Held;
            (place, held)
        };
        assert!(status(root.path(), &name).unwrap().is_free());
        assert!(names(root.path()).unwrap().is_empty());
        let (holder, held) = join(Mode::Exclusive, "first");
        let (waiter, waits) = join(Mode::Shared, "second");
        assert!(held && !waits);
        let seen = status(root.path(), &name).unwrap();
        assert_eq!((seen.holders().len(), seen.waiters().len()), (1, 1));
        assert_eq!(seen.holders()[0].who.command, "first");
        assert_eq!(seen.foreign, []);
        assert_eq!(names(root.path()).unwrap(), std::slice::from_ref(&name));
        holder.release().unwrap();
        waiter.release().unwrap();
        assert!(status(root.path(), &name).unwrap().is_free());

        let outside = std::fs::File::open(os_lock_path(root.path(), &name).unwrap()).unwrap();
        assert!(os::try_lock_exclusive(&outside).unwrap());
        let seen = status(root.path(), &name).unwrap();
        assert_eq!(seen.foreign.len(), 1);
        assert_eq!(seen.foreign[0].pid, std::process::id());
        assert!(seen.foreign[0].exclusive);
    }
}
