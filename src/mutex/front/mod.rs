//! Locking a file as flock(1) does, but in order of arrival: what `baton flock` does.
//!
//! ```text
//! Subject::open / inherited ──► lock() ── Busy
//!                                 └──► Locked ──► run() / exec() / leave()
//! ```
//!
//! 1. The system's lock on the file itself is what excludes: programs that know only that one exclude
//!    and are excluded. It lives as flock(1)'s does, until the last process that has the open file
//!    has closed it.
//! 2. Who comes this way stands first in the line of a mutex that belongs to the file's path, and
//!    keeps its place until its command has ended; with an inherited descriptor, until it has the lock.
//! 3. A file that is the plain lock of a mutex is that mutex: its line is the mutex's own.
//! 4. What flock(1) does not wait for is not waited for here: who has a lock already changes it
//!    without a line, and so does who would wait for a process that waits for it.
//! 5. A line that can't be used is told and left out.
//! 6. Nobody polls.

mod held;
mod locked;
mod subject;
mod unix;

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::deadlock::{self, HELD_VARIABLE};
use super::holder::{self, HolderError, Notice, Patience, Wish};
use super::locks::{self, LockOwner};
use super::os::Waker;
use super::{Advance, Blocked, Claim, Claimant, Hold, Mode, MutexError, MutexName, os};
use locked::Place;
pub use locked::{Locked, RunError};
pub use subject::Subject;

/// How a file is to be locked.
#[derive(Debug)]
pub struct Request {
    /// The folder of the mutexes; none when there is no line to stand in.
    pub root: Option<PathBuf>,
    /// Alone, or together with others that do the same.
    pub exclusive: bool,
    /// How long to wait, in the line and for the lock together.
    pub patience: Patience,
    /// What others in the line are told about.
    pub what: String,
    /// How often a wait is told again while nothing changes; none when waits are not told at all.
    pub remind: Option<Duration>,
}

/// What there is to tell while a lock is not there yet.
#[derive(Debug)]
pub enum Told<'a> {
    /// The line can't be used; it goes on without one.
    NoLine(&'a HolderError),
    /// It waits on the lock itself for what will, as far as is known, never end.
    Cycle(&'a HolderError),
    /// Who is in the way.
    Waits(&'a Busy),
}

/// Who is in the way.
#[derive(Debug)]
pub enum Busy {
    /// Others who are before it in the line.
    InLine(Vec<Blocked>),
    /// Programs that have the lock without a place in the line.
    Outside(Vec<LockOwner>),
}

/// Why a file was not locked, but for others who have it.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The system refused the lock.
    #[error("no lock")]
    Lock(#[source] io::Error),
    /// The system gave no means to sleep.
    #[error("no wake-up for a waiter")]
    Sleep(#[source] io::Error),
}

/// Where it stands in a line.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, for a moment")]
enum Stood {
    /// Nowhere. With the reason when it would wait for itself.
    Alone(Option<HolderError>),
    /// It is its turn.
    First(Hold, Line),
    /// The time is over; these are before it.
    Busy(Vec<Blocked>),
}

/// The line of a file.
#[derive(Debug)]
struct Line {
    root: PathBuf,
    name: MutexName,
    /// Whether the file is the mutex's plain lock (rule 3).
    is_own: bool,
}

impl Line {
    fn of(root: &Path, path: &Path) -> Self {
        let own = own_line(root, path);
        let is_own = own.is_some();
        let name = own.unwrap_or_else(|| MutexName::for_file(path.as_os_str().as_bytes()));
        Self { root: root.to_owned(), name, is_own }
    }
}

/// The mutex of which this is the plain lock.
fn own_line(root: &Path, path: &Path) -> Option<MutexName> {
    let folder = path.parent()?;
    let is_lock = path.file_name()? == "os.lock" && folder.parent()? == root.canonicalize().ok()?;
    let name = folder.file_name()?.to_str()?;
    name.parse().ok().filter(|_| is_lock)
}

/// Locks a file, or returns who is in the way when the time is over. `tell` hears about waits if the
/// request says so, and about lines that can't be used.
///
/// # Errors
/// When the system refuses the lock.
pub fn lock(
    mut subject: Subject,
    request: &Request,
    mut tell: impl FnMut(&Told<'_>),
) -> Result<Result<Locked, Busy>, LockError> {
    let deadline = match request.patience {
        Patience::Unlimited => None,
        Patience::Limited(limit) => Instant::now().checked_add(limit),
        Patience::None => Some(Instant::now()),
    };
    let (place, cycle) = match stand(&subject, request, &mut tell) {
        Stood::Busy(blocked) => return Ok(Err(Busy::InLine(blocked))),
        Stood::Alone(cycle) => (Place::None, cycle),
        Stood::First(hold, line) if !line.is_own => (Place::InLine(hold), None),
        Stood::First(hold, line) if !subject.is_inherited() => {
            return Ok(Ok(Locked { file: subject.file, place: Place::Mutex(hold, line) }));
        }
        // First the lock goes over to the descriptor, then the place to who is next.
        Stood::First(hold, _) => (hand_over(hold, &subject, request.exclusive), None),
    };
    let locked = match subject.try_lock(request.exclusive) {
        Ok(false) => {
            // Who gives up after a time does not hang.
            if let Some(cycle) = cycle.filter(|_| request.patience == Patience::Unlimited) {
                tell(&Told::Cycle(&cycle));
            }
            wait_for_lock(&mut subject, request, deadline, &mut tell)
        }
        other => other,
    };
    if let Ok(true) = locked {
        return Ok(Ok(Locked { file: subject.file, place }));
    }
    place.leave();
    locked?;
    Ok(Err(Busy::Outside(outsiders(&subject))))
}

/// Takes a place in the file's line and waits until it is its turn.
fn stand(subject: &Subject, request: &Request, tell: &mut impl FnMut(&Told<'_>)) -> Stood {
    let (Some(root), Some(path)) = (&request.root, &subject.path) else {
        return Stood::Alone(None);
    };
    // Rule 4.
    if subject.is_inherited() && held::is_locked(&subject.file) {
        return Stood::Alone(None);
    }
    let line = Line::of(root, path);
    match stand_in(line, subject, request, tell) {
        Ok(stood) => stood,
        Err(cycle @ HolderError::Mutex(MutexError::Deadlock(_))) => Stood::Alone(Some(cycle)),
        Err(error) => {
            tell(&Told::NoLine(&error));
            Stood::Alone(None)
        }
    }
}

fn stand_in(
    line: Line,
    subject: &Subject,
    request: &Request,
    tell: &mut impl FnMut(&Told<'_>),
) -> Result<Stood, HolderError> {
    let within = deadlock::from_variable(&std::env::var(HELD_VARIABLE).unwrap_or_default());
    let who = Claimant { within, ..Claimant::this_process(request.what.clone()) };
    let mode = if request.exclusive { Mode::Exclusive } else { Mode::Shared };
    let claims = [Claim { name: line.name.clone(), mode }];
    let wish = Wish {
        patience: request.patience,
        remind: request.remind.unwrap_or(Duration::MAX),
        is_told: request.remind.is_some(),
        ..Wish::of(claims.to_vec())
    };
    let mut hold = Hold::join(&line.root, &claims, who, wish.is_told)?;
    let waited = match first_look(&mut hold) {
        Ok(Advance::Held) => return Ok(Stood::First(hold, line)),
        Ok(_) if held::is_held_by_ancestor(&subject.file) => Ok(Stood::Alone(None)),
        Ok(Advance::Blocked | Advance::NothingNew) => {
            let mut tell = |notice: Notice<'_>| {
                if let Notice::Waits(blocked) = notice {
                    tell(&Told::Waits(&Busy::InLine(blocked.to_vec())));
                }
            };
            match holder::wait(&mut hold, &wish, &[], &mut tell) {
                Ok(None) => return Ok(Stood::First(hold, line)),
                Ok(Some(blocked)) => Ok(Stood::Busy(blocked)),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    hold.release().unwrap_or_default();
    waited
}

/// The first look that has a place to look from, or that found the guard of the line stuck.
fn first_look(hold: &mut Hold) -> Result<Advance, HolderError> {
    loop {
        let advance = hold.advance()?;
        if advance != Advance::NothingNew {
            return Ok(advance);
        }
        os::sleep(hold.descriptors(), hold.look_again())?;
    }
}

/// Keeps the place of a mutex and gives back its plain lock, so that a descriptor can take it.
fn hand_over(hold: Hold, subject: &Subject, exclusive: bool) -> Place {
    // A shared one is not in the way of another.
    if !exclusive || held::unlock_own(&subject.file).unwrap_or(false) {
        return Place::InLine(hold);
    }
    hold.release().unwrap_or_default();
    Place::None
}

/// Sleeps until the lock is there; no when the time is over before.
fn wait_for_lock(
    subject: &mut Subject,
    request: &Request,
    deadline: Option<Instant>,
    tell: &mut impl FnMut(&Told<'_>),
) -> Result<bool, LockError> {
    let is_over = |deadline: Instant| deadline <= Instant::now();
    while !deadline.is_some_and(is_over) {
        let file = subject.to_sleep_on(deadline).map_err(LockError::Sleep)?;
        let no_sleep = |error| LockError::Sleep(io::Error::other::<MutexError>(error));
        let waker = Waker::new().map_err(no_sleep)?;
        waker.ring_when_locked(file, request.exclusive).map_err(no_sleep)?;
        loop {
            if request.remind.is_some() {
                tell(&Told::Waits(&Busy::Outside(outsiders(subject))));
            }
            let reminder = request.remind.and_then(|remind| Instant::now().checked_add(remind));
            let wake_at = deadline.into_iter().chain(reminder).min();
            os::sleep(waker.descriptors(false), wake_at).map_err(LockError::Sleep)?;
            if waker.quiet() {
                break;
            }
            if deadline.is_some_and(is_over) {
                return Ok(false);
            }
        }
        if subject.try_lock(request.exclusive)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Who has the lock, as far as the system tells.
fn outsiders(subject: &Subject) -> Vec<LockOwner> {
    let path = subject.path.as_deref();
    path.and_then(|path| locks::owners(path).ok()).unwrap_or_default()
}
