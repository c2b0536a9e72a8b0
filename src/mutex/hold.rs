//! Joining the lines of several mutexes at once, waiting, holding, releasing.
//!
//! ```text
//! Hold::join ──► advance() ── Blocked ──► sleep on descriptors() ──► advance() … ── Held ──► release()
//! ```
//!
//! Nothing here blocks, so the caller may watch signals and time meanwhile. Not even joining does: a
//! process that is stopped while it has the guard of a line keeps the line as it is, and the caller is
//! told who that is.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::abandoned::{self, Abandoned};
use super::deadlock::{self, Held};
use super::line::{Claimant, Folder, Party};
use super::os::{self, Guard, Waker};
use super::place::Place;
use super::{Claim, Mode, MutexError, MutexName, locks, status};
use crate::process::Process;

/// How many holders, and how many waiters ahead, are named; the others are counted.
pub const MAX_NAMED: usize = 16;
/// How many may be ahead of a waiter that is told of each change of the line. Who is further back hears
/// of it with the reminders: a line of thousands does not wake thousands at each of its steps.
pub const MAX_FOLLOWED: usize = 32;
/// How long a waiter that was told of a change is not woken for the next one: nobody reads faster.
pub const TELL_INTERVAL: Duration = Duration::from_millis(250);
/// How long the guard of a line may take: it is held for microseconds. After that its holder is named,
/// and a patience that is shorter is over.
pub const GUARD_PATIENCE: Duration = Duration::from_secs(2);

/// Places in the lines of one or more mutexes, waiting or holding. Dropping it leaves the places to
/// the processes that inherited them; [`Hold::release`] gives them back.
#[derive(Debug)]
pub struct Hold {
    root: PathBuf,
    line: Line,
    who: Claimant,
    waker: Waker,
    /// Whether the caller tells how the lines change.
    follow: bool,
    /// Whether it was looked for a deadlock: once, when it has to wait.
    is_checked: bool,
    described_at: Option<Instant>,
    /// Until when removals wake nobody.
    muted_until: Option<Instant>,
}

#[derive(Debug)]
enum Line {
    /// Somebody has a guard; a thread waits for it.
    Joining(Joining),
    /// By name (rule 7).
    Joined(Vec<Place>),
}

#[derive(Debug)]
struct Joining {
    since: Instant,
    folders: Vec<(Claim, Folder)>,
    joined: Receiver<Result<Vec<Place>, MutexError>>,
}

/// What a waiter is told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Blocked {
    /// The mutex that is waited for.
    pub mutex: MutexName,
    /// The place in its line among those who wait: 1 is next.
    pub position: usize,
    /// Those who may hold it now; at most [`MAX_NAMED`].
    pub holders: Vec<Party>,
    /// Those who wait before, in order; at most [`MAX_NAMED`].
    pub ahead: Vec<Party>,
    /// Whether baton's line is free and somebody else holds the plain OS lock.
    pub foreign: bool,
}

/// Where a hold stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// All mutexes are held.
    Held,
    /// It waits, for those of [`Hold::blocked`].
    Blocked,
    /// It waits, and nothing is to be told.
    NothingNew,
}

impl Hold {
    /// Joins the lines of all claims at once (rule 7). With `follow` the hold wakes on changes of a
    /// line, to tell about them, not only when it may go on.
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
            .into_iter()
            .map(|claim| Folder::open(root, &claim.name).map(|folder| (claim, folder)))
            .collect::<Result<Vec<_>, _>>()?;
        let waker = Waker::new()?;
        let line = match take_places(&folders, &who, Folder::try_guard)? {
            Some(places) => Line::Joined(places),
            None => Line::Joining(Joining::start(folders, who.clone(), &waker)?),
        };
        let root = root.to_owned();
        let (is_checked, described_at, muted_until) = (false, None, None);
        Ok(Self { root, line, who, waker, follow, is_checked, described_at, muted_until })
    }

    /// Looks at the lines and goes as far as it can. Never blocks.
    ///
    /// # Errors
    /// When a mutex folder can't be used any more, or it would wait for itself (rule 9).
    pub fn advance(&mut self) -> Result<Advance, MutexError> {
        let may_go_on = self.waker.quiet();
        self.muted_until = None;
        match &self.line {
            Line::Joining(joining) => match joining.joined.try_recv() {
                Ok(places) => self.line = Line::Joined(places?),
                Err(TryRecvError::Empty) if joining.since.elapsed() < GUARD_PATIENCE => {
                    return Ok(Advance::NothingNew);
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                    return Ok(Advance::Blocked);
                }
            },
            Line::Joined(_) if !may_go_on => {
                let next = self.described_at.and_then(|at| at.checked_add(TELL_INTERVAL));
                self.muted_until =
                    next.filter(|next| self.waker.is_following() && Instant::now() < *next);
                if self.muted_until.is_some() {
                    return Ok(Advance::NothingNew);
                }
            }
            Line::Joined(_) => {}
        }
        self.look_and_follow()
    }

    fn look_and_follow(&mut self) -> Result<Advance, MutexError> {
        let advance = self.look()?;
        if advance == Advance::Held {
            return Ok(advance);
        }
        if !self.is_checked {
            self.is_checked = true;
            self.refuse_deadlock()?;
        }
        if !self.follow || self.waker.is_following() {
            return Ok(advance);
        }
        let places = self.places();
        for place in places {
            if place.ahead()? > MAX_FOLLOWED {
                return Ok(advance);
            }
        }
        // Watched, then looked at again: a change in between is seen. The system may have no watcher
        // left; then changes are told with the reminders, and when it may go on.
        let folders: Vec<PathBuf> = places.iter().map(Place::line_path).collect();
        if self.waker.follow(&folders).is_err() {
            return Ok(advance);
        }
        self.look()
    }

    fn look(&mut self) -> Result<Advance, MutexError> {
        let Line::Joined(places) = &mut self.line else {
            return Ok(Advance::NothingNew);
        };
        let mut advance = Advance::Held;
        for place in places {
            if !place.advance(&mut self.who, &self.waker)? {
                advance = Advance::Blocked;
            }
        }
        Ok(advance)
    }

    /// Rule 9 for what is held by a token for a process above this one: its environment does not tell.
    ///
    /// # Errors
    /// When it would wait for itself, or a mutex folder can't be used any more.
    pub(super) fn refuse_deadlock_with_tokens(&mut self) -> Result<(), MutexError> {
        let mut kept = status::kept_for_ancestors(&self.root)?;
        kept.retain(|held| !self.who.within.contains(held));
        if kept.is_empty() {
            return Ok(());
        }
        self.who.within.extend(kept);
        for place in self.places() {
            // Those who look for a cycle later find it there.
            place.describe(&self.who)?;
        }
        self.refuse_deadlock()
    }

    /// Rule 9. Only a claim that was made under others can close a cycle.
    fn refuse_deadlock(&self) -> Result<(), MutexError> {
        if self.who.within.is_empty() {
            return Ok(());
        }
        let mine = self.tickets();
        let look = || {
            let lines = status::names(&self.root)?
                .iter()
                // Lines that this user may not read can't be part of what it is told.
                .filter_map(|name| status::status(&self.root, name).ok())
                .collect::<Vec<_>>();
            Ok(deadlock::cycle(&lines, &mine, &self.who.within))
        };
        // Seen twice: the lines are not read in one moment.
        match look()?.map_or(Ok(None), |_| look())? {
            Some(cycle) => Err(MutexError::Deadlock(cycle)),
            None => Ok(()),
        }
    }

    /// Who is in the way, as far as the last look saw.
    ///
    /// # Errors
    /// When a mutex folder can't be used any more.
    pub fn blocked(&mut self) -> Result<Vec<Blocked>, MutexError> {
        self.described_at = Some(Instant::now());
        let mut blocked = Vec::new();
        match &self.line {
            Line::Joined(places) => {
                for place in places {
                    blocked.extend(place.blocked()?);
                }
            }
            Line::Joining(joining) => blocked = joining.blocked()?,
        }
        Ok(blocked)
    }

    fn places(&self) -> &[Place] {
        match &self.line {
            Line::Joined(places) => places,
            Line::Joining(_) => &[],
        }
    }

    /// Its tickets, by the names of their mutexes.
    pub fn tickets(&self) -> Vec<Held> {
        let held = |place: &Place| Held { mutex: place.name.clone(), ticket: place.number() };
        self.places().iter().map(held).collect()
    }

    /// Its tickets and those that it was made under: what a protected command runs under.
    pub fn held(&self) -> Vec<Held> {
        self.who.within.iter().cloned().chain(self.tickets()).collect()
    }

    /// Become readable when [`Hold::advance`] should be called.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.waker.descriptors(self.muted_until.is_none())
    }

    /// When to call [`Hold::advance`] though no descriptor became readable.
    pub fn look_again(&self) -> Option<Instant> {
        match &self.line {
            Line::Joined(_) => self.muted_until,
            Line::Joining(_) => self.guard_deadline().filter(|deadline| Instant::now() < *deadline),
        }
    }

    /// Until when the guard of a line is waited for, however short the patience; `None` when it has its
    /// places.
    pub fn guard_deadline(&self) -> Option<Instant> {
        match &self.line {
            Line::Joined(_) => None,
            Line::Joining(joining) => joining.since.checked_add(GUARD_PATIENCE),
        }
    }

    /// Whether it has its places: from then on nobody who comes overtakes it.
    pub fn has_joined(&self) -> bool {
        matches!(self.line, Line::Joined(_))
    }

    /// The fencing number of one of its mutexes (rule 1): greater than that of every holder before.
    pub fn fence(&self, name: &MutexName) -> Option<u64> {
        let place = self.places().iter().find(|place| place.name == *name)?;
        Some(place.number())
    }

    /// Lets the programs that this process starts from now on keep the places alive (rule 6).
    ///
    /// # Errors
    /// When a descriptor can't be changed.
    pub fn make_inheritable(&self) -> Result<(), MutexError> {
        for place in self.places() {
            for file in place.files() {
                os::make_inheritable(file)
                    .map_err(|source| MutexError::File { path: place.line_path(), source })?;
            }
        }
        Ok(())
    }

    /// The marks that holders before left when they were given up.
    pub(super) fn take_abandoned(&self, name: &MutexName) -> Vec<Abandoned> {
        abandoned::take(&self.root, name)
    }

    /// The open files by which its places live.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.places().iter().flat_map(Place::files)
    }

    /// The fencing numbers of its mutexes, by name.
    pub(super) fn fences(&self) -> Vec<(MutexName, u64)> {
        self.places().iter().map(|place| (place.name.clone(), place.number())).collect()
    }

    /// Names this claim, in its tickets and in the environment of what it protects.
    pub(super) fn claim(&self) -> &str {
        &self.who.claim
    }

    /// Leaves in the tickets which process is the first of the command that is protected, for when this
    /// one is killed (rule 6).
    pub fn protects(&mut self, leader: u32) {
        self.who.leader = Process::read(leader).map(|process| process.id());
        for place in self.places() {
            // A full disk: the environment tells, too.
            place.describe(&self.who).unwrap_or_default();
        }
    }

    /// Gives all places back. Those who inherited descriptors hold nothing any more.
    ///
    /// # Errors
    /// The first that was met; the other places are given back all the same.
    pub fn release(self) -> Result<(), MutexError> {
        match self.line {
            Line::Joined(places) => release(places),
            // Who takes the places there finds nobody who wants them.
            Line::Joining(_) => Ok(()),
        }
    }
}

impl Joining {
    /// Joins in a thread.
    fn start(
        folders: Vec<(Claim, Folder)>,
        who: Claimant,
        waker: &Waker,
    ) -> Result<Self, MutexError> {
        let (sender, joined) = channel();
        let (bell, wanted) = (waker.bell()?, folders.clone());
        os::sleeper(move || {
            let places = take_places(&wanted, &who, |folder| folder.guard().map(Some));
            if let Err(unwanted) = sender.send(places.map(Option::unwrap_or_default)) {
                // Given up meanwhile; what can't be removed is dead all the same.
                unwanted.0.map_or(Ok(()), release).unwrap_or_default();
            }
            bell.ring();
        })?;
        Ok(Self { since: Instant::now(), folders, joined })
    }

    /// Who sits in the guards.
    fn blocked(&self) -> Result<Vec<Blocked>, MutexError> {
        let mut blocked = Vec::new();
        for (claim, folder) in &self.folders {
            let sitters = locks::owners(&folder.guard_path())?.into_iter().map(|owner| Party {
                who: Claimant {
                    pid: owner.pid,
                    command: owner.command,
                    reason: "it stopped while it joined the line".to_owned(),
                    ..Claimant::default()
                },
                exclusive: true,
            });
            let holders: Vec<Party> = sitters.collect();
            if !holders.is_empty() {
                let (mutex, ahead) = (claim.name.clone(), Vec::new());
                blocked.push(Blocked { mutex, position: 1, holders, ahead, foreign: false });
            }
        }
        Ok(blocked)
    }
}

/// Takes the guards in the order of the names (rule 7), and a ticket in each line; `None` when a guard
/// was not to be had.
fn take_places(
    folders: &[(Claim, Folder)],
    who: &Claimant,
    guard: impl Fn(&Folder) -> Result<Option<Guard>, MutexError>,
) -> Result<Option<Vec<Place>>, MutexError> {
    let mut guards = Vec::with_capacity(folders.len());
    for (_, folder) in folders {
        match guard(folder)? {
            Some(guard) => guards.push(guard),
            None => return Ok(None),
        }
    }
    let mut places = Vec::with_capacity(folders.len());
    for ((claim, folder), guard) in folders.iter().zip(&guards) {
        match folder.append(guard, claim.mode, who) {
            Ok(ticket) => places.push(Place::new(claim.name.clone(), folder.clone(), ticket)),
            Err(error) => {
                // All or none; what can't be removed is dead all the same.
                release(places).unwrap_or_default();
                return Err(error);
            }
        }
    }
    Ok(Some(places))
}

fn release(places: Vec<Place>) -> Result<(), MutexError> {
    places.into_iter().map(Place::release).fold(Ok(()), Result::and)
}

fn strictness(mode: Mode) -> u32 {
    match mode {
        Mode::Exclusive => 0,
        Mode::AtMost(n) => n.get(),
        Mode::Shared => u32::MAX,
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
        hold.advance().unwrap() == Advance::Held
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
    fn rule_3_who_ends_while_it_waits_lets_nobody_pass_whatever_else_it_holds() {
        let root = tempfile::tempdir().unwrap();
        let exclusive = [claim("m", Mode::Exclusive)];
        let mut holder = join(root.path(), &exclusive);
        let mut next = join(root.path(), &exclusive);
        let mut both =
            join(root.path(), &[claim("a", Mode::Exclusive), claim("m", Mode::Exclusive)]);
        let mut waiter = join(root.path(), &exclusive);
        assert!(is_held(&mut holder) && !is_held(&mut next));
        assert!(!is_held(&mut both) && !is_held(&mut waiter));
        assert!(both.who.holds_since.is_some());
        for place in both.places() {
            place.describe(&both.who).unwrap();
        }
        drop(both);
        wake(&waiter);
        assert!(!is_held(&mut waiter));
        holder.release().unwrap();
        assert!(!is_held(&mut waiter) && is_held(&mut next));
        next.release().unwrap();
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
        assert_eq!(second.advance().unwrap(), Advance::Blocked);
        assert!(second.blocked().unwrap()[0].foreign);
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
