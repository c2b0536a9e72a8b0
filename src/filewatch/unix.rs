//! Watching files on Linux: one inotify descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// Lets a task wait until a descriptor is readable.
///
/// # Errors
/// When the system has no room for it.
pub fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always gives the same descriptor, and keeps it open as long as it lives.
    #[expect(unsafe_code, reason = "the promise that AsyncFd asks for is what OwnedFd is")]
    unsafe {
        Ok(AsyncFd::register(descriptor)?)
    }
}

/// Names a watched file.
pub(super) type WatchId = i32;

/// What changed.
pub(super) enum Changes {
    /// These files.
    These(Vec<WatchId>),
    /// The system had more events than it could keep.
    Unknown,
}

/// The descriptor.
#[derive(Debug)]
pub(super) struct Watcher(AsyncFd<OwnedFd>);

impl Watcher {
    pub(super) fn new() -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self(register(descriptor)?))
    }

    pub(super) fn add(&self, path: &Path) -> io::Result<WatchId> {
        // Only a file's own writes say MODIFY usefully; in a folder it would ring for each write.
        let what = if path.is_dir() {
            WatchFlags::CREATE
                | WatchFlags::MOVED_TO
                | WatchFlags::CLOSE_WRITE
                | WatchFlags::DELETE
                | WatchFlags::MOVE_SELF
                | WatchFlags::DELETE_SELF
        } else {
            WatchFlags::MODIFY
        };
        Ok(inotify::add_watch(self.0.get_ref(), path, what)?)
    }

    pub(super) fn remove(&self, id: WatchId) {
        // EINVAL: the file is gone, and its watch with it.
        inotify::remove_watch(self.0.get_ref(), id).unwrap_or_default();
    }

    /// Waits for events and takes all that there are.
    pub(super) async fn changes(&self) -> io::Result<Changes> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.read() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                other => return other,
            }
        }
    }

    fn read(&self) -> io::Result<Changes> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
        let mut reader = Reader::new(self.0.get_ref().as_fd(), &mut buffer);
        let mut ids = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) if !ids.is_empty() => return Ok(Changes::These(ids)),
                Err(e) => return Err(e.into()),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                return Ok(Changes::Unknown);
            }
            ids.push(event.wd());
            if reader.is_buffer_empty() {
                return Ok(Changes::These(ids));
            }
        }
    }
}
