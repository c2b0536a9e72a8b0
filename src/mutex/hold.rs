//! Joining the lines of several mutexes at once, waiting, holding, releasing.
//!
//! ```text
//! Hold::join ──► advance() ── Blocked ──► sleep on descriptors() ──► advance() … ── Held ──► release()
//! ```
//!
//! Nothing here blocks but the guard of a line, so the caller may watch signals and time meanwhile.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::deadlock::{self, Held};
use super::line::{Claimant, Folder, Other, Party, Ticket};
use super::os::{self, Waker};
use super::{Claim, Mode, MutexError, MutexName, policy, status};

/// How many waiters ahead are named; the others are counted.
pub const MAX_NAMED_AHEAD: usize = 16;

/// Places in the lines of one or more mutexes, waiting or holding. Dropping it leaves the places to
/// the processes that inherited them; [`Hold::release`] gives them back.
#[derive(Debug)]
pub struct Hold {
    /// By name (rule 7).
    places: Vec<Place>,
    who: Claimant,
    waker: Waker,
    first_wait: Option<FirstWait>,
}

/// What is done once, when a claim has to wait. Most claims never do.
#[derive(Debug)]
struct FirstWait {
    root: PathBuf,
    /// The folders to watch; none when nobody is told. A watcher costs many milliseconds when its
    /// process ends.
    follow: Vec<PathBuf>,
}

/// What a waiter is told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Blocked {
    /// The mutex that is waited for.
    pub mutex: MutexName,
    /// The place in its line among those who wait: 1 is next.
    pub position: usize,
    /// Those who may hold it now; at most [`MAX_NAMED_AHEAD`].
    pub holders: Vec<Party>,
    /// Those who wait before, in order; at most [`MAX_NAMED_AHEAD`].
    pub ahead: Vec<Party>,
    /// Whether baton's line is free and somebody else holds the plain OS lock.
    pub foreign: bool,
}

/// Where a hold stands.
#[derive(Debug)]
pub enum Advance {
    /// All mutexes are held.
    Held,
    /// It waits, for these. Look again when a descriptor is readable.
    Blocked(Vec<Blocked>),
}

#[derive(Debug)]
struct Place {
    name: MutexName,
    folder: Folder,
    ticket: Ticket,
    stage: Stage,
    /// The inodes of the tickets that a sleeper already sleeps on.
    slept_on: Vec<u64>,
    /// Whether a sleeper sleeps on the open OS lock.
    lock_is_slept_on: bool,
}

#[derive(Debug)]
enum Stage {
    /// Others are before it.
    InLine,
    /// The line allows it; somebody else has the plain OS lock.
    AtLock(File),
    /// It holds.
    Held(File),
}

impl Hold {
    /// Joins the lines of all claims at once (rule 7). With `follow` the hold wakes on each change
    /// of a line, to tell about it, not only when it may go on.
    ///
    /// # Errors
    /// When a mutex folder can't be used. Then no place is taken.
    pub fn join(
        root: &Path,
        claims: &[Claim],
        mut who: Claimant,
        follow: bool,
    ) -> Result<Self, MutexError> {
        who.claim = uuid::Uuid::now_v7().simple().to_string();
        let mut claims = claims.to_vec();
        claims
            .sort_by(|a, b| a.name.cmp(&b.name).then(strictness(a.mode).cmp(&strictness(b.mode))));
        claims.dedup_by(|later, earlier| later.name == earlier.name);
        let folders = claims
            .iter()
            .map(|claim| Folder::open(root, &claim.name))
            .collect::<Result<Vec<_>, _>>()?;
        let follow =
            if follow { folders.iter().map(Folder::line_path).collect() } else { Vec::new() };
        let first_wait = Some(FirstWait { root: root.to_owned(), follow });
        let waker = Waker::new()?;
        let guards = folders.iter().map(Folder::guard).collect::<Result<Vec<_>, _>>()?;
        let mut places = Vec::with_capacity(claims.len());
        for ((claim, folder), guard) in claims.into_iter().zip(folders).zip(&guards) {
            let ticket = folder.append(guard, claim.mode)?;
            ticket.describe(guard, &who)?;
            let (stage, slept_on) = (Stage::InLine, Vec::new());
            let lock_is_slept_on = false;
            let name = claim.name;
            places.push(Place { name, folder, ticket, stage, slept_on, lock_is_slept_on });
        }
        Ok(Self { places, who, waker, first_wait })
    }

    /// Looks at the lines and goes as far as it can. Never blocks.
    ///
    /// # Errors
    /// When a mutex folder can't be used any more, or it would wait for itself (rule 9).
    pub fn advance(&mut self) -> Result<Advance, MutexError> {
        let advance = self.look()?;
        if matches!(advance, Advance::Held) {
            return Ok(advance);
        }
        let Some(first_wait) = self.first_wait.take() else {
            return Ok(advance);
        };
        self.refuse_deadlock(&first_wait.root)?;
        if first_wait.follow.is_empty() {
            return Ok(advance);
        }
        // Watched, then looked at again: a change in between is seen. The system may have no watcher
        // left; then changes are told only when it may go on.
        if self.waker.follow(&first_wait.follow).is_err() {
            return Ok(advance);
        }
        self.look()
    }

    /// Rule 9. Only a claim that was made under others can close a cycle.
    fn refuse_deadlock(&self, root: &Path) -> Result<(), MutexError> {
        if self.who.within.is_empty() {
            return Ok(());
        }
        let mine = self.tickets();
        let look = || {
            let lines = status::names(root)?
                .iter()
                // Lines that this user may not read can't be part of what it is told.
                .filter_map(|name| status::status(root, name).ok())
                .collect::<Vec<_>>();
            Ok(deadlock::cycle(&lines, &mine, &self.who.within))
        };
        // Seen twice: the lines are not read in one moment.
        match look()?.map_or(Ok(None), |_| look())? {
            Some(cycle) => Err(MutexError::Deadlock(cycle)),
            None => Ok(()),
        }
    }

    /// Its tickets, by the names of their mutexes.
    pub fn tickets(&self) -> Vec<Held> {
        let held = |place: &Place| Held { mutex: place.name.clone(), ticket: place.ticket.number };
        self.places.iter().map(held).collect()
    }

    /// Its tickets and those that it was made under: what a protected command runs under.
    pub fn held(&self) -> Vec<Held> {
        self.who.within.iter().cloned().chain(self.tickets()).collect()
    }

    fn look(&mut self) -> Result<Advance, MutexError> {
        self.waker.quiet();
        let mut blocked = Vec::new();
        for place in &mut self.places {
            blocked.extend(place.advance(&mut self.who, &self.waker)?);
        }
        if blocked.is_empty() { Ok(Advance::Held) } else { Ok(Advance::Blocked(blocked)) }
    }

    /// Become readable when [`Hold::advance`] should be called.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.waker.descriptors()
    }

    /// The fencing number of one of its mutexes (rule 1): greater than that of every holder before.
    pub fn fence(&self, name: &MutexName) -> Option<u64> {
        let place = self.places.iter().find(|place| place.name == *name)?;
        Some(place.ticket.number)
    }

    /// Lets the programs that this process starts from now on keep the places alive (rule 6).
    ///
    /// # Errors
    /// When a descriptor can't be changed.
    pub fn make_inheritable(&self) -> Result<(), MutexError> {
        for place in &self.places {
            let lock = match &place.stage {
                Stage::Held(lock) | Stage::AtLock(lock) => Some(lock),
                Stage::InLine => None,
            };
            for file in lock.into_iter().chain([&place.ticket.file]) {
                os::make_inheritable(file).map_err(|source| MutexError::File {
                    path: place.folder.os_lock_path(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Gives all places back. Those who inherited descriptors hold nothing any more.
    ///
    /// # Errors
    /// The first that was met; the other places are given back all the same.
    pub fn release(self) -> Result<(), MutexError> {
        let mut first = Ok(());
        for place in self.places {
            first = first.and(place.release());
        }
        first
    }
}

fn strictness(mode: Mode) -> u32 {
    match mode {
        Mode::Exclusive => 0,
        Mode::AtMost(n) => n.get(),
        Mode::Shared => u32::MAX,
    }
}

impl Place {
    fn advance(
        &mut self,
        who: &mut Claimant,
        waker: &Waker,
    ) -> Result<Option<Blocked>, MutexError> {
        if matches!(self.stage, Stage::InLine) {
            let guard = self.folder.guard()?;
            let ahead = self.folder.live_before(&guard, self.ticket.number)?;
            let modes: Vec<Mode> = ahead.iter().map(|other| other.mode).collect();
            let blockers = policy::blockers(&modes, self.ticket.mode);
            if !blockers.is_empty() {
                drop(guard);
                let blocked = self.describe_line(&ahead, &modes);
                self.sleep_on(ahead, &blockers, waker)?;
                return Ok(Some(blocked));
            }
            who.holds_since.get_or_insert_with(Timestamp::now);
            self.ticket.describe(&guard, who)?;
            self.stage = Stage::AtLock(self.folder.open_os_lock()?);
            drop(guard);
        }
        self.try_and_sleep(waker)
    }

    /// Tries the plain OS lock; sleeps on it when somebody else has it.
    fn try_and_sleep(&mut self, waker: &Waker) -> Result<Option<Blocked>, MutexError> {
        let blocked = self.try_os_lock()?;
        if let (Some(_), Stage::AtLock(file)) = (&blocked, &self.stage)
            && !self.lock_is_slept_on
        {
            let same_open_file = file.try_clone().map_err(MutexError::Wake)?;
            waker.ring_when_locked(same_open_file, self.ticket.mode.is_exclusive())?;
            self.lock_is_slept_on = true;
        }
        Ok(blocked)
    }

    /// Rules 5 and 8.
    fn try_os_lock(&mut self) -> Result<Option<Blocked>, MutexError> {
        let Stage::AtLock(file) = &self.stage else {
            return Ok(None);
        };
        let path = self.folder.os_lock_path();
        let failed = |source| MutexError::File { path: path.clone(), source };
        let locked = if self.ticket.mode.is_exclusive() {
            os::try_lock_exclusive(file)
        } else {
            os::try_lock_shared(file)
        };
        if !locked.map_err(failed)? {
            return Ok(Some(Blocked {
                mutex: self.name.clone(),
                position: 1,
                holders: Vec::new(),
                ahead: Vec::new(),
                foreign: true,
            }));
        }
        if os::is_at(file, &path).map_err(failed)? {
            self.stage = Stage::Held(file.try_clone().map_err(failed)?);
            return Ok(None);
        }
        // A cleaner removed the file: what was locked is nobody's any more.
        self.stage = Stage::AtLock(self.folder.open_os_lock()?);
        self.lock_is_slept_on = false;
        self.try_os_lock()
    }

    /// Starts a sleeper for each blocker that has none yet.
    fn sleep_on(
        &mut self,
        ahead: Vec<Other>,
        blockers: &[usize],
        waker: &Waker,
    ) -> Result<(), MutexError> {
        for (place, other) in ahead.into_iter().enumerate() {
            if !blockers.contains(&place) {
                continue;
            }
            let inode = other.file.metadata().map_err(MutexError::Wake)?.ino();
            if !self.slept_on.contains(&inode) {
                waker.ring_when_locked(other.file, false)?;
                self.slept_on.push(inode);
            }
        }
        Ok(())
    }

    fn describe_line(&self, ahead: &[Other], modes: &[Mode]) -> Blocked {
        let holding = policy::holding(modes);
        let tell =
            |other: &Other| Party { who: other.claimant(), exclusive: other.mode.is_exclusive() };
        Blocked {
            mutex: self.name.clone(),
            position: ahead.len() - holding + 1,
            holders: ahead[..holding].iter().take(MAX_NAMED_AHEAD).map(tell).collect(),
            ahead: ahead[holding..].iter().take(MAX_NAMED_AHEAD).map(tell).collect(),
            foreign: false,
        }
    }

    /// First the OS lock, then the ticket: who wakes on the ticket finds the lock free.
    fn release(self) -> Result<(), MutexError> {
        let unlocked = match &self.stage {
            Stage::Held(lock) | Stage::AtLock(lock) => os::unlock(lock),
            Stage::InLine => Ok(()),
        };
        let path = self.folder.os_lock_path();
        self.ticket.remove()?;
        unlocked.map_err(|source| MutexError::File { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(name: &str, mode: Mode) -> Claim {
        Claim { name: name.parse().unwrap(), mode }
    }

    fn join(root: &Path, claims: &[Claim]) -> Hold {
        Hold::join(root, claims, Claimant::this_process("test".to_owned()), false).unwrap()
    }

    fn is_held(hold: &mut Hold) -> bool {
        matches!(hold.advance().unwrap(), Advance::Held)
    }

    /// Waits until the hold should look again.
    fn wake(hold: &Hold) {
        let mut polled: Vec<_> = hold
            .descriptors()
            .map(|fd| rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN))
            .collect();
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_ne!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 0, "no wake-up");
    }

    #[test]
    fn rule_3_two_shared_run_together_and_an_exclusive_one_waits_for_both() {
        let root = tempfile::tempdir().unwrap();
        let shared = [claim("m", Mode::Shared)];
        let (mut a, mut b) = (join(root.path(), &shared), join(root.path(), &shared));
        let mut alone = join(root.path(), &[claim("m", Mode::Exclusive)]);
        let mut late = join(root.path(), &shared);
        assert!(is_held(&mut a) && is_held(&mut b));
        assert!(!is_held(&mut alone) && !is_held(&mut late));
        a.release().unwrap();
        assert!(!is_held(&mut alone));
        b.release().unwrap();
        wake(&alone);
        assert!(is_held(&mut alone) && !is_held(&mut late));
        alone.release().unwrap();
        wake(&late);
        assert!(is_held(&mut late));
    }

    #[test]
    fn rule_2_a_place_that_was_dropped_is_no_place() {
        let root = tempfile::tempdir().unwrap();
        let exclusive = [claim("m", Mode::Exclusive)];
        let mut holder = join(root.path(), &exclusive);
        let mut waiter = join(root.path(), &exclusive);
        assert!(is_held(&mut holder) && !is_held(&mut waiter));
        drop(holder);
        wake(&waiter);
        assert!(is_held(&mut waiter));
    }

    #[test]
    fn rule_5_the_plain_os_lock_excludes_both_ways() {
        let root = tempfile::tempdir().unwrap();
        let exclusive = [claim("m", Mode::Exclusive)];
        let mut first = join(root.path(), &exclusive);
        assert!(is_held(&mut first));
        let foreign = File::open(root.path().join("m/os.lock")).unwrap();
        assert!(!os::try_lock_exclusive(&foreign).unwrap());
        first.release().unwrap();
        assert!(os::try_lock_exclusive(&foreign).unwrap());
        let mut second = join(root.path(), &exclusive);
        let Advance::Blocked(told) = second.advance().unwrap() else { panic!("not blocked") };
        assert!(told[0].foreign);
        drop(foreign);
        wake(&second);
        assert!(is_held(&mut second));
    }

    #[test]
    fn rule_7_claims_that_share_names_never_wait_for_each_other() {
        let root = tempfile::tempdir().unwrap();
        let ab = [claim("a", Mode::Exclusive), claim("b", Mode::Exclusive)];
        let ba = [claim("b", Mode::Exclusive), claim("a", Mode::Exclusive)];
        let (mut first, mut second) = (join(root.path(), &ab), join(root.path(), &ba));
        assert!(!is_held(&mut second));
        assert!(is_held(&mut first));
        first.release().unwrap();
        wake(&second);
        assert!(is_held(&mut second));
    }

    #[test]
    fn rule_8_a_removed_os_lock_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("m/os.lock");
        let mut first = join(root.path(), &[claim("m", Mode::Exclusive)]);
        assert!(is_held(&mut first));
        first.release().unwrap();
        let foreign = File::open(&path).unwrap();
        assert!(os::try_lock_exclusive(&foreign).unwrap());
        let mut waiter = join(root.path(), &[claim("m", Mode::Exclusive)]);
        assert!(!is_held(&mut waiter));
        std::fs::remove_file(&path).unwrap();
        drop(foreign);
        wake(&waiter);
        assert!(is_held(&mut waiter));
        let again = File::open(&path).unwrap();
        assert!(!os::try_lock_exclusive(&again).unwrap(), "the lock at the path is held");
    }

    #[test]
    fn rule_1_each_holder_s_fencing_number_is_greater_than_the_one_before() {
        let root = tempfile::tempdir().unwrap();
        let mut last = 0;
        for mode in [Mode::Exclusive, Mode::Shared, Mode::Exclusive] {
            let mut hold = join(root.path(), &[claim("m", mode)]);
            assert!(is_held(&mut hold));
            let fence = hold.fence(&"m".parse().unwrap()).unwrap();
            assert!(fence > last);
            last = fence;
            hold.release().unwrap();
        }
    }

    #[test]
    fn rule_8_an_os_lock_that_was_made_anew_and_taken_again_is_slept_on_too() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("m/os.lock");
        join(root.path(), &[claim("m", Mode::Exclusive)]).release().unwrap();
        let outside = || File::create(&path).unwrap();
        let first = outside();
        assert!(os::try_lock_exclusive(&first).unwrap());
        let mut waiter = join(root.path(), &[claim("m", Mode::Exclusive)]);
        assert!(!is_held(&mut waiter));
        std::fs::remove_file(&path).unwrap();
        let second = outside();
        assert!(os::try_lock_exclusive(&second).unwrap());
        drop(first);
        wake(&waiter);
        assert!(!is_held(&mut waiter));
        drop(second);
        wake(&waiter);
        assert!(is_held(&mut waiter));
    }

    #[test]
    fn the_same_name_twice_is_one_claim_the_stricter() {
        let root = tempfile::tempdir().unwrap();
        let mut hold = join(root.path(), &[claim("m", Mode::Shared), claim("m", Mode::Exclusive)]);
        assert!(is_held(&mut hold));
        let mut other = join(root.path(), &[claim("m", Mode::Shared)]);
        assert!(!is_held(&mut other));
    }
}
