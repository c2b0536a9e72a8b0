//! A place in the line of one mutex: from its ticket to the plain OS lock.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use jiff::Timestamp;

use super::hold::{Blocked, MAX_NAMED};
use super::line::{Claimant, Entry, Folder, Other, Party, Ticket};
use super::os::{self, Waker};
use super::{Mode, MutexError, MutexName, locks, policy};
use crate::process::ProcessId;

/// How many of the oldest tickets a claim that is not exclusive looks at beyond what it must.
const MAX_SWEPT: usize = 2;

/// A place, waiting or holding.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: MutexName,
    folder: Folder,
    ticket: Ticket,
    stage: Stage,
    /// The one ticket that it sleeps on, when there is nobody in between.
    before: Option<Other>,
    /// The numbers of the tickets that a sleeper already sleeps on.
    slept_on: Vec<u64>,
    /// The process that a sleeper sleeps on, of each ticket that only survivors keep.
    survivors: BTreeMap<u64, ProcessId>,
    /// Whether a sleeper sleeps on the open OS lock.
    lock_is_slept_on: bool,
}

#[derive(Debug)]
enum Stage {
    /// Others are before it; these, as far as the last look saw.
    InLine(Option<Vec<Entry>>),
    /// The line allows it; somebody else has the plain OS lock.
    AtLock(File),
    /// It holds.
    Held(File),
}

impl Place {
    /// The place of a new ticket.
    pub(super) fn new(name: MutexName, folder: Folder, ticket: Ticket) -> Self {
        let stage = Stage::InLine(None);
        let (before, slept_on, survivors) = (None, Vec::new(), BTreeMap::new());
        let lock_is_slept_on = false;
        Self { name, folder, ticket, stage, before, slept_on, survivors, lock_is_slept_on }
    }

    /// The number of its ticket.
    pub(super) fn number(&self) -> u64 {
        self.ticket.entry.number
    }

    /// How many are before it, as far as the last look saw; the dead count too.
    pub(super) fn ahead(&self) -> Result<usize, MutexError> {
        match &self.stage {
            Stage::InLine(Some(ahead)) => Ok(ahead.len()),
            Stage::InLine(None) => Ok(self.folder.before(self.number())?.len()),
            Stage::AtLock(_) | Stage::Held(_) => Ok(0),
        }
    }

    /// The folder of its line's tickets.
    pub(super) fn line_path(&self) -> PathBuf {
        self.folder.line_path()
    }

    /// Goes as far as it can; says whether it holds. Starts a sleeper on each thing that must end first.
    pub(super) fn advance(
        &mut self,
        who: &mut Claimant,
        waker: &Waker,
    ) -> Result<bool, MutexError> {
        if matches!(self.stage, Stage::InLine(_)) {
            if self.look(waker)? {
                return Ok(false);
            }
            self.stage = Stage::AtLock(self.folder.open_os_lock()?);
        }
        if self.try_os_lock()? {
            if who.holds_since.is_none() {
                who.holds_since = Some(Timestamp::now());
            }
            // For people only: a full disk takes no mutex away.
            self.ticket.describe(who).unwrap_or_default();
            if self.lock_is_slept_on {
                // Those behind were told of an outsider.
                self.ticket.announce().unwrap_or_default();
            }
        } else if let Stage::AtLock(file) = &self.stage
            && !self.lock_is_slept_on
        {
            let same_open_file = file.try_clone().map_err(MutexError::Wake)?;
            waker.ring_when_locked(same_open_file, self.ticket.entry.mode.is_exclusive())?;
            self.lock_is_slept_on = true;
        }
        Ok(matches!(self.stage, Stage::Held(_)))
    }

    /// Looks at the line; says whether somebody is in the way (rules 3 and 4).
    fn look(&mut self, waker: &Waker) -> Result<bool, MutexError> {
        // In a long line most find the one just before them alive, and need to know no more.
        if let Some(last) = self.ticket.last.take()
            && policy::excludes(last.mode, self.ticket.entry.mode)
            && let Some(other) = self.folder.living(last)?
        {
            self.sleep_on(&other, waker)?;
            self.before = Some(other);
            return Ok(true);
        }
        if let Some(before) = self.before.take() {
            self.stage = Stage::InLine(None);
            if let Some(other) = self.folder.living(before.entry)? {
                self.sleep_on(&other, waker)?;
                self.before = Some(other);
                return Ok(true);
            }
            // Who held alone had nobody before it (rule 3): the line need not be read.
            if before.entry.mode.is_exclusive() && before.claimant().holds_since.is_some() {
                self.stage = Stage::InLine(Some(Vec::new()));
                return Ok(false);
            }
        }
        let Entry { number, mode } = self.ticket.entry;
        let ahead = self.folder.before(number)?;
        let modes: Vec<Mode> = ahead.iter().map(|entry| entry.mode).collect();
        let mut living: Vec<(usize, Other)> = Vec::new();
        let blockers = policy::living_blockers(&modes, mode, |place| {
            let other = self.folder.living(ahead[place])?;
            let lives = other.is_some();
            living.extend(other.map(|other| (place, other)));
            Ok::<_, MutexError>(lives)
        })?;
        let is_blocked = !blockers.is_empty();
        if !mode.is_exclusive() {
            // It may have asked about nobody: the dead among those that are shared are found in time.
            for entry in ahead.iter().take(MAX_SWEPT) {
                self.folder.living(*entry)?;
            }
        }
        for (place, other) in living {
            if blockers.contains(&place) {
                self.sleep_on(&other, waker)?;
                // The last one that lives: those in between, if any, were dead.
                self.before = mode.is_exclusive().then_some(other);
            }
        }
        self.stage = Stage::InLine(Some(ahead));
        Ok(is_blocked)
    }

    fn sleep_on(&mut self, other: &Other, waker: &Waker) -> Result<(), MutexError> {
        if let Some((process, descriptor)) = other.survivors.first() {
            // One at a time: all must end.
            let slept_on = self.survivors.insert(other.entry.number, process.id());
            let is_first = |known: ProcessId| other.survivors.iter().any(|(p, _)| p.id() == known);
            if let Some(known) = slept_on.filter(|known| is_first(*known)) {
                // That sleeper sleeps on.
                self.survivors.insert(other.entry.number, known);
            } else {
                waker.ring_when_readable(descriptor.try_clone().map_err(MutexError::Wake)?)?;
            }
            return Ok(());
        }
        if self.slept_on.contains(&other.entry.number) {
            return Ok(());
        }
        self.slept_on.push(other.entry.number);
        let same_open_file = other.file.try_clone().map_err(MutexError::Wake)?;
        waker.ring_when_free(same_open_file)
    }

    /// Rules 5 and 8. Says whether it got the lock just now.
    fn try_os_lock(&mut self) -> Result<bool, MutexError> {
        loop {
            let Stage::AtLock(file) = &self.stage else {
                return Ok(false);
            };
            let path = self.folder.os_lock_path();
            let failed = |source| MutexError::File { path: path.clone(), source };
            let locked = if self.ticket.entry.mode.is_exclusive() {
                os::try_lock_exclusive(file)
            } else {
                os::try_lock_shared(file)
            };
            if !locked.map_err(failed)? {
                return Ok(false);
            }
            if os::is_at(file, &path).map_err(failed)? {
                self.stage = Stage::Held(os::out_of_the_way(file).map_err(failed)?);
                return Ok(true);
            }
            // A cleaner removed the file: what was locked is nobody's any more.
            self.stage = Stage::AtLock(self.folder.open_os_lock()?);
            self.lock_is_slept_on = false;
        }
    }

    /// Who is in the way, as far as the last look saw; `None` when it holds.
    pub(super) fn blocked(&self) -> Result<Option<Blocked>, MutexError> {
        let mutex = self.name.clone();
        let mut line = match &self.stage {
            Stage::Held(_) => return Ok(None),
            Stage::AtLock(_) => Vec::new(),
            Stage::InLine(Some(ahead)) => ahead.clone(),
            Stage::InLine(None) => self.folder.before(self.number())?,
        };
        let mut holders = self.name_living(&mut line, 0)?;
        let modes: Vec<Mode> = line.iter().map(|entry| entry.mode).collect();
        let holding = policy::holding(&modes);
        let ahead = if holding < holders.len() {
            let mut ahead = holders.split_off(holding);
            ahead.extend(self.name_living(&mut line, holding + ahead.len())?);
            ahead.truncate(MAX_NAMED);
            ahead
        } else {
            self.name_living(&mut line, holding)?
        };
        if holders.iter().all(|party| party.who.holds_since.is_none())
            // One of the line may have got it just now; who can't be seen from here is an outsider.
            && (matches!(self.stage, Stage::AtLock(_)) && self.lock_is_slept_on
                || locks::owners(&self.folder.os_lock_path())?.iter().any(|owner| {
                !holders.iter().chain(&ahead).any(|party| party.who.pid == owner.pid)
            }))
        {
            // The first of the line wait for an outsider themselves.
            let position = line.len() + 1;
            let ahead = holders.into_iter().chain(ahead).take(MAX_NAMED).collect();
            let holders = Vec::new();
            return Ok(Some(Blocked { mutex, position, holders, ahead, foreign: true }));
        }
        let position = line.len() - holding + 1;
        Ok(Some(Blocked { mutex, position, holders, ahead, foreign: false }))
    }

    /// Says anew in the ticket who it is.
    pub(super) fn describe(&self, who: &Claimant) -> Result<(), MutexError> {
        // A claim for several mutexes may hold others already: those behind would take this one for held.
        let holds_since = who.holds_since.filter(|_| matches!(self.stage, Stage::Held(_)));
        self.ticket.describe(&Claimant { holds_since, ..who.clone() })
    }

    /// Names those who live in a line from a place on, at most [`MAX_NAMED`]; takes out the dead that it
    /// meets.
    fn name_living(&self, line: &mut Vec<Entry>, from: usize) -> Result<Vec<Party>, MutexError> {
        let mut named = Vec::new();
        while named.len() < MAX_NAMED
            && let Some(entry) = line.get(from + named.len())
        {
            match self.folder.living(*entry)? {
                Some(other) => named
                    .push(Party { who: other.claimant(), exclusive: entry.mode.is_exclusive() }),
                None => drop(line.remove(from + named.len())),
            }
        }
        Ok(named)
    }

    /// The open files by which the place lives.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        let lock = match &self.stage {
            Stage::Held(lock) | Stage::AtLock(lock) => Some(lock),
            Stage::InLine(_) => None,
        };
        lock.into_iter().chain([&self.ticket.file])
    }

    /// Leaves. First the OS lock, then the ticket: who wakes on the ticket finds the lock free.
    pub(super) fn release(self) -> Result<(), MutexError> {
        let unlocked = match &self.stage {
            Stage::Held(lock) | Stage::AtLock(lock) => os::unlock(lock),
            Stage::InLine(_) => Ok(()),
        };
        self.ticket.remove()?;
        let path = self.folder.os_lock_path();
        unlocked.map_err(|source| MutexError::File { path, source })
    }
}
