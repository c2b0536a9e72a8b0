//! Following how mutexes stand, for people and programs that look on. It takes part in no line.
//!
//! 1. A change of a line wakes at once: a ticket is made, written, announced, removed, or its keeper
//!    has ended. So does a mutex that is used for the first time.
//! 2. Who has only the plain OS lock gives no event: for that, and where the system has no watches
//!    left, it looks every [`LOOK_EVERY`]. Only who waits for a mutex must not poll; who looks on may.
//! 3. It looks at most once in [`SETTLE`], and once more after the last change.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::status::{self, Status};
use super::{MutexError, MutexName};

/// How often it looks for what gives no event.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long after a change it looks again: the kernel tells that a file was closed before it gives the
/// file's lock back. Long enough, too, that a busy line does not keep a processor busy.
pub const SETTLE: Duration = Duration::from_millis(20);

/// Follows one mutex, or all below a root.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    /// None: all.
    name: Option<MutexName>,
    /// None: the system has none left.
    changes: Option<OwnedFd>,
    is_settling: bool,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// It is time to look.
    Look,
    /// Nobody reads the output any more.
    ReaderGone,
}

impl Watch {
    /// Follows the mutex `name`, or all mutexes; they need not exist yet.
    pub fn new(root: &Path, name: Option<MutexName>) -> Self {
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        Self { root: root.to_owned(), name, changes, is_settling: false }
    }

    /// How the mutexes stand now, free ones among them. What changes afterwards wakes
    /// [`Watch::wait`].
    ///
    /// # Errors
    /// When a mutex folder can't be used.
    pub fn look(&self) -> Result<Vec<Status>, MutexError> {
        // Watched, then looked at: what is made in between wakes.
        self.follow(&self.root, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE);
        if let Some(name) = &self.name {
            self.follow_mutex(name);
            return Ok(vec![self.status(name)?]);
        }
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                self.follow_mutex(&name);
            }
        }
        status::names(&self.root)?.iter().map(|name| self.status(name)).collect()
    }

    fn status(&self, name: &MutexName) -> Result<Status, MutexError> {
        let look = || match status::status(&self.root, name) {
            // Somebody removes the folder just now.
            Err(MutexError::Folder { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Status::free(name.clone()))
            }
            other => other,
        };
        let status = look()?;
        // Seen twice: the line and the lock are not read in one moment.
        if status.foreign.is_empty() { Ok(status) } else { look() }
    }

    fn follow_mutex(&self, name: &MutexName) {
        let folder = self.root.join(name.as_str());
        // The line's folder is made after the mutex's.
        self.follow(&folder, WatchFlags::CREATE);
        // A ticket is written when it is locked: before, it looks dead.
        let changes = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::DELETE;
        self.follow(&folder.join("line"), changes | WatchFlags::CLOSE_WRITE);
    }

    /// Watches a folder; one that is watched already stays so.
    fn follow(&self, folder: &Path, changes: WatchFlags) {
        if let Some(watcher) = &self.changes {
            let only = WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
            // It may not be there yet, or the system has no watches left (rule 2).
            inotify::add_watch(watcher, folder, changes | only).map(drop).unwrap_or_default();
        }
    }

    /// Sleeps until it is time to look, or until nobody reads `output` any more.
    ///
    /// # Errors
    /// When the system can't wait.
    pub fn wait(&mut self, output: BorrowedFd<'_>) -> io::Result<Wake> {
        // No flags: only its end is told.
        let mut polled = vec![PollFd::from_borrowed_fd(output, PollFlags::empty())];
        let limit = if self.is_settling { SETTLE } else { LOOK_EVERY };
        if let Some(changes) = self.changes.as_ref().filter(|_| !self.is_settling) {
            polled.push(PollFd::new(changes, PollFlags::IN));
        }
        let limit = Timespec::try_from(limit).ok();
        match rustix::event::poll(&mut polled, limit.as_ref()) {
            Err(e) if e != Errno::INTR => return Err(e.into()),
            _ => {}
        }
        if polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return Ok(Wake::ReaderGone);
        }
        self.is_settling = self.has_changed();
        Ok(Wake::Look)
    }

    /// Takes all events; says whether there were any.
    fn has_changed(&self) -> bool {
        let Some(changes) = &self.changes else { return false };
        let (mut events, mut has_changed) = ([0_u8; 4096], false);
        // An empty one says EAGAIN; there is nothing else to do about it.
        while rustix::io::read(changes, &mut events).is_ok_and(|read| read > 0) {
            has_changed = true;
        }
        has_changed
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::super::line::{Claimant, Folder, Ticket};
    use super::super::{Mode, os};
    use super::*;

    /// Takes what happened so far.
    fn catch_up(watch: &mut Watch) {
        watch.look().unwrap();
        while watch.has_changed() {
            watch.look().unwrap();
        }
        watch.is_settling = false;
    }

    #[test]
    fn rule_1_each_change_wakes() {
        let root = tempfile::tempdir().unwrap();
        let quiet = File::open("/dev/null").unwrap();
        let mut watch = Watch::new(root.path(), None);
        let mut wakes = |what: &str, change: &mut dyn FnMut()| {
            catch_up(&mut watch);
            change();
            assert_eq!(watch.wait(quiet.as_fd()).unwrap(), Wake::Look);
            assert!(watch.is_settling, "{what} did not wake");
        };
        let mutex = root.path().join("log");
        wakes("a new mutex", &mut || os::ensure_folder(&mutex, 0o755).unwrap());
        wakes("its line", &mut || os::ensure_folder(&mutex.join("line"), 0o755).unwrap());
        let folder = Folder::open(root.path(), &"log".parse().unwrap()).unwrap();
        let append = || {
            let who = Claimant::this_process("test".to_owned());
            folder.append(&folder.guard().unwrap(), Mode::Exclusive, &who).unwrap()
        };
        // Guard and counter are there from now on.
        append().remove().unwrap();
        let mut ticket: Option<Ticket> = None;
        wakes("a ticket", &mut || ticket = Some(append()));
        wakes("its announcement", &mut || ticket.as_ref().unwrap().announce().unwrap());
        wakes("its keeper's end", &mut || drop(ticket.take()));
        ticket = Some(append());
        // A straggler has it open.
        let inherited = ticket.as_ref().unwrap().file.try_clone().unwrap();
        wakes("its release", &mut || ticket.take().unwrap().remove().unwrap());
        drop(inherited);
    }

    #[test]
    fn a_mutex_of_which_the_folder_goes_is_free() {
        let root = tempfile::tempdir().unwrap();
        let name: MutexName = "log".parse().unwrap();
        let watch = Watch::new(root.path(), Some(name.clone()));
        assert_eq!(watch.look().unwrap(), [Status::free(name.clone())]);
        drop(Folder::open(root.path(), &name).unwrap());
        assert_eq!(watch.look().unwrap(), [Status::free(name.clone())]);
        std::fs::remove_dir_all(root.path().join("log")).unwrap();
        assert_eq!(watch.look().unwrap(), [Status::free(name)]);
    }
}
