//! The operating system's side of a mutex: the guard (named-lock), OS locks on files, and what a
//! waiter sleeps with.
//!
//! named-lock's own descriptor is close-on-exec and has no accessor, so on Unix it guards the line,
//! and tickets and `os.lock` are locked on descriptors of ours (the same flock).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use named_lock::{NamedLock, NamedLockGuard};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, OFlags, flock, inotify};
use rustix::io::Errno;

use super::MutexError;

/// Makes a folder with a mode, and its parents; checks that it is a folder and no link, and that no
/// stranger can change what is in it.
pub(super) fn ensure_folder(path: &Path, mode: u32) -> Result<(), MutexError> {
    let failed = |source| MutexError::Folder { path: path.to_owned(), source };
    let found = match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed)?;
            path.symlink_metadata().map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    if !found.is_dir() {
        return Err(MutexError::Strange { path: path.to_owned(), expected: "folder" });
    }
    let owner = found.uid();
    let is_ours = owner == 0 || owner == rustix::process::geteuid().as_raw();
    if !is_ours || found.mode() & 0o022 != 0 {
        return Err(MutexError::Unsafe {
            path: path.to_owned(),
            owner,
            mode: found.mode() & 0o7777,
        });
    }
    Ok(())
}

/// Opens a plain file for reading and writing, makes it with `mode` if need be. Never follows a
/// link, never hangs on a pipe.
pub(super) fn open_plain(path: &Path, mode: u32) -> Result<File, MutexError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(mode);
    open_if_plain(path, &mut options)
}

/// Opens a plain file for reading, as [`open_plain`] does; `None` when there is none.
pub(super) fn open_to_read(path: &Path) -> Result<Option<File>, MutexError> {
    match open_if_plain(path, &mut OpenOptions::new()) {
        Err(MutexError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn open_if_plain(path: &Path, options: &mut OpenOptions) -> Result<File, MutexError> {
    let strange = || MutexError::Strange { path: path.to_owned(), expected: "file" };
    let failed = |source: io::Error| {
        let errno = Errno::from_io_error(&source);
        // What the system says of a link, of a socket, and of a folder.
        match errno {
            Some(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => strange(),
            _ => MutexError::File { path: path.to_owned(), source },
        }
    };
    let file = options.read(true).custom_flags(plain_flags()).open(path).map_err(failed)?;
    let is_plain = file.metadata().map_err(failed)?.is_file();
    if is_plain { Ok(file) } else { Err(strange()) }
}

/// Flags for opening what must be a plain file.
pub(super) fn plain_flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// The guard of a line, held until it is dropped. Keep that short: everybody waits.
pub(super) struct Guard(#[expect(dead_code, reason = "held for its Drop")] NamedLockGuard);

impl Guard {
    /// Takes the guard file `path`; `None` when somebody else has it.
    pub(super) fn try_lock(path: &Path, mode: u32) -> Result<Option<Self>, MutexError> {
        Self::take(path, mode, NamedLock::try_lock)
    }

    /// Waits for the guard file `path`: without a limit, so in a thread that may be left alone.
    pub(super) fn lock(path: &Path, mode: u32) -> Result<Self, MutexError> {
        loop {
            if let Some(guard) = Self::take(path, mode, NamedLock::lock)? {
                return Ok(guard);
            }
        }
    }

    fn take(
        path: &Path,
        mode: u32,
        lock: impl Fn(&NamedLock) -> named_lock::Result<NamedLockGuard>,
    ) -> Result<Option<Self>, MutexError> {
        // named-lock would make the file 0644 and hang on a pipe: check, and make it first.
        let before = plain_file_id(path, mode)?;
        let failed = |source| {
            let path = path.to_owned();
            if let named_lock::Error::CreateFailed(source) = source {
                MutexError::File { path, source }
            } else {
                MutexError::Guard { path, source }
            }
        };
        let named = NamedLock::with_path(path).map_err(failed)?;
        match lock(&named) {
            // A cleaner removed the file: what was locked guards nothing any more.
            Ok(_) if plain_file_id(path, mode)? != before => Ok(None),
            Ok(guard) => Ok(Some(Self(guard))),
            Err(named_lock::Error::WouldBlock) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }
}

/// Which file is at `path`; it is made with `mode` if need be.
fn plain_file_id(path: &Path, mode: u32) -> Result<(u64, u64), MutexError> {
    let failed = |source| MutexError::File { path: path.to_owned(), source };
    let found = match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => open_plain(path, mode)?.metadata(),
        other => other,
    };
    let found = found.map_err(failed)?;
    if found.is_file() {
        Ok((found.dev(), found.ino()))
    } else {
        Err(MutexError::Strange { path: path.to_owned(), expected: "file" })
    }
}

/// Takes an exclusive OS lock if nobody has one; says whether it did.
///
/// # Errors
/// When the file's file system has no locks.
pub fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    try_flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Waits until the exclusive OS lock is there.
///
/// # Errors
/// When the file's file system has no locks.
pub fn lock_exclusive(file: &File) -> io::Result<()> {
    lock_blocking(file, true)
}

/// Waits until the shared OS lock is there.
///
/// # Errors
/// When the file's file system has no locks.
pub fn lock_shared(file: &File) -> io::Result<()> {
    lock_blocking(file, false)
}

/// Takes a shared OS lock if nobody has an exclusive one; says whether it did.
pub(super) fn try_lock_shared(file: &File) -> io::Result<bool> {
    try_flock(file, FlockOperation::NonBlockingLockShared)
}

/// Gives the lock of this open file back, also for those who inherited its descriptor.
pub(super) fn unlock(file: &File) -> io::Result<()> {
    flock(file, FlockOperation::Unlock).map_err(io::Error::from)
}

fn try_flock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Sleeps until the lock is there.
fn lock_blocking(file: &File, exclusive: bool) -> io::Result<()> {
    let operation =
        if exclusive { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Lets programs that this process starts inherit the descriptor.
///
/// Only for processes that start programs from one thread.
pub(super) fn make_inheritable(file: &File) -> io::Result<()> {
    rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).map_err(io::Error::from)
}

/// Where the descriptors of places are: scripts redirect low numbers, and a shell keeps 10 to 255 for
/// itself.
const HIGH_DESCRIPTOR: i32 = 300;

/// The same open file with a number that a protected command's redirections do not meet; with any
/// number where so many are not allowed.
pub(super) fn out_of_the_way(file: &File) -> io::Result<File> {
    match rustix::io::fcntl_dupfd_cloexec(file, HIGH_DESCRIPTOR) {
        Ok(high) => Ok(high.into()),
        Err(_) => file.try_clone(),
    }
}

/// Whether the open file still is the one at `path`.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match path.symlink_metadata() {
        Ok(found) => Ok(found.dev() == open.dev() && found.ino() == open.ino()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// What a waiter sleeps with: becomes readable when it should look again.
#[derive(Debug)]
pub(super) struct Waker {
    /// Counted up by the sleepers' threads.
    bell: OwnedFd,
    /// Tells when tickets are removed, for waiters that say how the line changes.
    removals: Option<OwnedFd>,
}

/// How long a sleeper rests when the system refuses to let it wait for a lock.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// A sleeper mostly waits in one system call.
const SLEEPER_STACK_BYTES: usize = 256 * 1024;

impl Waker {
    /// A waker that only sleepers ring.
    pub(super) fn new() -> Result<Self, MutexError> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| MutexError::Wake(e.into()))?;
        Ok(Self { bell, removals: None })
    }

    /// From now on it also wakes when a ticket is removed from one of these folders, or announced.
    pub(super) fn follow(&mut self, folders: &[PathBuf]) -> Result<(), MutexError> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let watcher = inotify::init(flags).map_err(|e| MutexError::Wake(e.into()))?;
        let changes = inotify::WatchFlags::DELETE | inotify::WatchFlags::ATTRIB;
        for folder in folders {
            inotify::add_watch(&watcher, folder, changes)
                .map_err(|e| MutexError::Wake(e.into()))?;
        }
        self.removals = Some(watcher);
        Ok(())
    }

    /// Whether it follows removals.
    pub(super) fn is_following(&self) -> bool {
        self.removals.is_some()
    }

    /// The descriptors that become readable; with `removals` those that tell about them too.
    pub(super) fn descriptors(&self, removals: bool) -> impl Iterator<Item = BorrowedFd<'_>> {
        let removals = self.removals.as_ref().filter(|_| removals);
        [Some(&self.bell), removals].into_iter().flatten().map(AsFd::as_fd)
    }

    /// Forgets what rang so far; says whether a sleeper did. Call it before looking, so that nothing is
    /// missed.
    pub(super) fn quiet(&self) -> bool {
        if let Some(removals) = &self.removals {
            let mut events = [0_u8; 4096];
            // An empty one says EAGAIN; there is nothing else to do about it.
            while rustix::io::read(removals, &mut events).is_ok_and(|read| read > 0) {}
        }
        rustix::io::read(&self.bell, &mut [0_u8; 8]).is_ok()
    }

    /// What rings this waker.
    pub(super) fn bell(&self) -> Result<Bell, MutexError> {
        self.bell.try_clone().map(Bell).map_err(MutexError::Wake)
    }

    /// Starts a thread that sleeps until the lock of `file` can be had, then rings and closes
    /// `file`. When the caller has the same open file, the lock stays with it.
    pub(super) fn ring_when_locked(&self, file: File, exclusive: bool) -> Result<(), MutexError> {
        let bell = self.bell()?;
        sleeper(move || {
            // The system is out of locks, say: there is nothing to wait for but time.
            while lock_blocking(&file, exclusive).is_err() {
                std::thread::sleep(TRY_AGAIN);
            }
            drop(file);
            bell.ring();
        })
    }

    /// Starts a thread that rings it when nobody has the file's lock, and leaves it unlocked.
    pub(super) fn ring_when_free(&self, file: File) -> Result<(), MutexError> {
        let bell = self.bell()?;
        sleeper(move || {
            while lock_blocking(&file, false).is_err() {
                std::thread::sleep(TRY_AGAIN);
            }
            // Others have the same open file: the lock would stay.
            unlock(&file).unwrap_or_default();
            drop(file);
            bell.ring();
        })
    }

    /// Starts a thread that rings it when the descriptor becomes readable.
    pub(super) fn ring_when_readable(&self, descriptor: OwnedFd) -> Result<(), MutexError> {
        let bell = self.bell()?;
        sleeper(move || {
            while sleep([descriptor.as_fd()].into_iter(), None).is_err() {
                std::thread::sleep(TRY_AGAIN);
            }
            bell.ring();
        })
    }
}

/// Rings a [`Waker`].
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    /// Wakes who sleeps, or is about to.
    pub(super) fn ring(&self) {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).unwrap_or_default();
    }
}

/// Starts a thread that mostly sleeps in one system call, and may be left there.
pub(super) fn sleeper(sleep: impl FnOnce() + Send + 'static) -> Result<(), MutexError> {
    std::thread::Builder::new()
        .name("sleeper".to_owned())
        .stack_size(SLEEPER_STACK_BYTES)
        .spawn(sleep)
        .map(drop)
        .map_err(MutexError::Wake)
}

/// Sleeps until one of the descriptors is readable, or the deadline.
pub(crate) fn sleep<'a>(
    descriptors: impl Iterator<Item = BorrowedFd<'a>>,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut polled: Vec<_> =
        descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let left = deadline.map(|until| until.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match rustix::event::poll(&mut polled, left.as_ref()) {
        Err(e) if e != Errno::INTR => Err(e.into()),
        _ => Ok(()),
    }
}

/// Whether a descriptor is readable, or at its end.
pub fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Those of `signals` that this process was not started to ignore, by nohup say.
pub fn not_ignored(signals: &[i32]) -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let bit = |signal: i32| u32::try_from(signal - 1).ok().and_then(|bit| mask.checked_shr(bit));
    signals.iter().copied().filter(|signal| bit(*signal).is_none_or(|rest| rest & 1 == 0)).collect()
}

/// The name of the user with this id, from `/etc/passwd`; `uid N` when it isn't there.
pub(super) fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid {uid}"))
}
