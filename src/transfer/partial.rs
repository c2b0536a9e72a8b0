//! What has come of a content so far: a hidden file, named by the content's digest, that waits for the
//! rest.
//!
//! 1. Who writes to it has its OS lock. A second upload of the same content at the same time has a file
//!    of its own.
//! 2. The lock of an upload whose connection has just broken is waited for: its client comes again.
//! 3. It counts only as long as it has its name: one that was moved into place while somebody else
//!    opened it is not written to.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FallocateFlags, fallocate};

use super::digest::Digesting;
use super::folder::{Folder, Found, inode};
use super::step::step;
use crate::mutex::os;

/// How long a lock is waited for (rule 2): a broken connection is noticed within milliseconds.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(1);
/// How many uploads of one content there may be: more than transfers at once.
const MAX_SLOTS: u32 = 1000;
/// How often a file that was moved away is opened anew: each time, another upload ended in between.
const MAX_TRIES: u32 = 100;
/// How long a broken upload may be continued: over a night.
pub(super) const KEPT_FOR: Duration = Duration::from_hours(24);
/// How many broken uploads are kept: the oldest go first.
const MAX_KEPT: usize = 256;
/// How much is read at once.
pub(super) const BUFFER_BYTES: usize = 512 * 1024;

/// Rings when an upload of this process ends, and with it its lock.
#[derive(Debug, Default)]
pub(super) struct Freed {
    count: Mutex<u64>,
    ring: Condvar,
}

/// A content that grows. It is this upload's alone.
#[derive(Debug)]
pub(super) struct Partial {
    folder: Folder,
    name: String,
    file: File,
    freed: Arc<Freed>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Growing,
    /// It has its name elsewhere, and is others' from then on.
    Placed,
}

impl Freed {
    fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.ring.notify_all();
    }

    /// Waits until it rings again; not beyond the deadline. Whether it rang.
    fn rings_after(&self, seen: u64, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ring.wait_timeout_while(count, left, |count| *count == seen);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Partial {
    /// Takes what there is of a content, or begins it. `stem` names the content.
    pub(super) fn take(folder: Folder, stem: &str, freed: &Arc<Freed>) -> io::Result<Self> {
        let deadline = Instant::now() + TAKEOVER_LIMIT;
        let mut slot = 0;
        while slot < MAX_SLOTS {
            let seen = freed.count();
            let name = format!("{stem}.{slot}");
            if let Some(file) = lock(&folder, &name)? {
                let (freed, stage) = (Arc::clone(freed), Stage::Growing);
                return Ok(Self { folder, name, file, freed, stage });
            }
            // Only the first one is worth a wait: the others are begun anew.
            if slot > 0 || !freed.rings_after(seen, deadline) {
                slot += 1;
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// How many bytes there are, after adding them to the digest. More than `limit` are none.
    pub(super) fn read_into(&self, digesting: &mut Digesting, limit: u64) -> io::Result<u64> {
        let length = self.file.metadata()?.len();
        if length > limit {
            step()?;
            self.file.set_len(0)?;
            return Ok(0);
        }
        add_file(&self.file, length, digesting)?;
        Ok(length)
    }

    /// How many bytes of the disk it has already, also beyond its end.
    pub(super) fn allocated_bytes(&self) -> io::Result<u64> {
        // The unit of st_blocks, whatever the file system's.
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }

    /// Makes sure of room on the disk for so many bytes, where the file system can.
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        step()?;
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Err(error) if error != rustix::io::Errno::OPNOTSUPP => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        step()?;
        self.file.write_all_at(bytes, offset)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Gives it its name in another folder: from then on it is no partial any more.
    pub(super) fn move_to(&mut self, folder: &Folder, name: &str) -> io::Result<()> {
        self.folder.move_to(&self.name, folder, name)?;
        self.stage = Stage::Placed;
        Ok(())
    }

    /// Removes it: what came is of no use.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.folder.remove(&self.name)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.stage == Stage::Growing {
            trim(&self.file);
        }
        // Explicitly: a process that is being started may have the descriptor for a moment.
        self.file.unlock().unwrap_or_default();
        self.freed.ring();
    }
}

/// Adds the first bytes of a file to a digest.
pub(super) fn add_file(file: &File, length: u64, digesting: &mut Digesting) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = 0;
    while offset < length {
        step()?;
        let left = usize::try_from(length - offset).unwrap_or(usize::MAX);
        let count = file.read_at(&mut buffer[..left.min(BUFFER_BYTES)], offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        digesting.add(&buffer[..count]);
        offset += u64::try_from(count).unwrap_or(u64::MAX);
    }
    Ok(())
}

/// Gives back the room that was reserved and not used.
fn trim(file: &File) {
    let length = file.metadata().map(|found| found.len());
    // Best effort: it is removed after its time.
    length.and_then(|length| file.set_len(length)).unwrap_or_default();
}

/// Opens and locks the file of that name; `None` when another upload has it.
fn lock(folder: &Folder, name: &str) -> io::Result<Option<File>> {
    for _ in 0..MAX_TRIES {
        let file = folder.open_or_new_file(name)?;
        match claim(folder, name, &file)? {
            Claim::Ours => return Ok(Some(file)),
            Claim::Others => return Ok(None),
            Claim::Moved => {}
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// What comes of a try to lock an opened file.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Ours,
    /// Another upload has it.
    Others,
    /// It has lost its name since it was opened.
    Moved,
}

fn claim(folder: &Folder, name: &str, file: &File) -> io::Result<Claim> {
    if !os::try_lock_exclusive(file)? {
        return Ok(Claim::Others);
    }
    // Rule 3.
    if folder.find(name)?.1 == Some(inode(&file.metadata()?)) {
        return Ok(Claim::Ours);
    }
    file.unlock()?;
    Ok(Claim::Moved)
}

/// Removes what is too old or too much. What is being written to stays.
pub(super) fn sweep(folder: &Folder, now: SystemTime) -> io::Result<()> {
    sweep_only(folder, now, |_| true)
}

/// Removes what is too old or too much of a folder that has other files too.
pub(super) fn sweep_only(
    folder: &Folder,
    now: SystemTime,
    is_partial: impl Fn(&str) -> bool,
) -> io::Result<()> {
    let mut kept = Vec::new();
    for name in folder.names()?.into_iter().filter(|name| is_partial(name)) {
        if folder.find(&name)?.0 != Found::File {
            continue;
        }
        let Ok(file) = folder.open_file(&name) else {
            // It was moved into place meanwhile.
            continue;
        };
        kept.push((file.metadata()?.modified()?, name));
    }
    kept.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    for (place, (time, name)) in kept.iter().enumerate() {
        let old = now.duration_since(*time).is_ok_and(|age| age > KEPT_FOR);
        if (old || place >= MAX_KEPT)
            && let Some(file) = lock(folder, name)?
        {
            folder.remove(name)?;
            file.unlock()?;
        }
    }
    Ok(())
}

/// Gives back what uploads of a killed agent had reserved.
pub(super) fn trim_all(folder: &Folder, freed: &Freed) -> io::Result<()> {
    for name in folder.names()? {
        if folder.find(&name)?.0 == Found::File
            && let Some(file) = lock(folder, &name)?
        {
            // The time stays: it says when the last bytes came.
            let time = file.metadata()?.modified()?;
            trim(&file);
            file.set_modified(time)?;
            file.unlock()?;
            // An upload may have come meanwhile (rule 2).
            freed.ring();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(root: &tempfile::TempDir) -> Folder {
        Folder::open(root.path()).unwrap()
    }

    fn take(root: &tempfile::TempDir, freed: &Arc<Freed>) -> Partial {
        Partial::take(folder(root), "content", freed).unwrap()
    }

    #[test]
    fn rule_1_two_uploads_of_one_content_never_share_a_file() {
        let root = tempfile::tempdir().unwrap();
        let freed = Arc::new(Freed::default());
        let first = take(&root, &freed);
        let second = take(&root, &freed);
        assert_eq!((first.name.as_str(), second.name.as_str()), ("content.0", "content.1"));
    }

    #[test]
    fn rule_2_the_lock_of_an_upload_that_just_ended_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let freed = Arc::new(Freed::default());
        let first = take(&root, &freed);
        first.write(b"abc", 0).unwrap();
        let (begun, begins) = std::sync::mpsc::channel();
        let next = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                begun.send(()).unwrap();
                take(&root, &freed)
            });
            begins.recv().unwrap();
            drop(first);
            waiting.join().unwrap()
        });
        assert_eq!(next.name, "content.0");
        assert_eq!(next.read_into(&mut Digesting::default(), 10).unwrap(), 3);
    }

    #[test]
    fn rule_3_a_file_that_was_moved_into_place_is_not_written_to() {
        let root = tempfile::tempdir().unwrap();
        let freed = Arc::new(Freed::default());
        let mut first = take(&root, &freed);
        first.write(b"whole", 0).unwrap();
        // Opened before the move, locked after it.
        let opened = folder(&root).open_or_new_file("content.0").unwrap();
        let claimed = || claim(&folder(&root), "content.0", &opened).unwrap();
        assert_eq!(claimed(), Claim::Others);
        first.move_to(&folder(&root), "placed").unwrap();
        drop(first);
        assert_eq!(claimed(), Claim::Moved);
        let second = take(&root, &freed);
        second.write(b"XX", 0).unwrap();
        assert_eq!(std::fs::read(root.path().join("placed")).unwrap(), b"whole");
    }

    #[test]
    fn what_is_longer_than_the_content_is_none_of_it() {
        let root = tempfile::tempdir().unwrap();
        let partial = take(&root, &Arc::default());
        partial.write(b"too long", 0).unwrap();
        assert_eq!(partial.read_into(&mut Digesting::default(), 3).unwrap(), 0);
        assert_eq!(partial.file().metadata().unwrap().len(), 0);
    }

    #[test]
    fn room_is_reserved_and_given_back_when_the_upload_breaks() {
        let root = tempfile::tempdir().unwrap();
        let freed = Arc::default();
        let partial = take(&root, &freed);
        partial.write(b"x", 0).unwrap();
        partial.reserve(1 << 20).unwrap();
        assert!(partial.allocated_bytes().unwrap() >= 1 << 20);
        drop(partial);
        let again = take(&root, &freed);
        assert!(again.allocated_bytes().unwrap() < 1 << 20);
        // What a killed agent reserved is given back by the next one.
        again.reserve(1 << 20).unwrap();
        let descriptor = again.file.try_clone().unwrap();
        again.file.unlock().unwrap();
        trim_all(&folder(&root), &freed).unwrap();
        assert!(descriptor.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn what_is_old_is_removed_unless_somebody_writes_to_it() {
        let root = tempfile::tempdir().unwrap();
        let freed = Arc::default();
        let busy = take(&root, &freed);
        drop(Partial::take(folder(&root), "idle", &freed).unwrap());
        let later = SystemTime::now() + KEPT_FOR + Duration::from_mins(1);
        sweep(&folder(&root), SystemTime::now()).unwrap();
        assert_eq!(folder(&root).names().unwrap().len(), 2);
        sweep(&folder(&root), later).unwrap();
        assert_eq!(folder(&root).names().unwrap(), ["content.0"]);
        drop(busy);
        sweep(&folder(&root), later).unwrap();
        assert!(folder(&root).names().unwrap().is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_go() {
        let root = tempfile::tempdir().unwrap();
        let freed = Arc::default();
        for number in 0..MAX_KEPT + 2 {
            let partial = Partial::take(folder(&root), &number.to_string(), &freed).unwrap();
            let file = partial.file().try_clone().unwrap();
            drop(partial);
            let time = SystemTime::now() - Duration::from_secs(u64::try_from(number).unwrap());
            file.set_modified(time).unwrap();
        }
        sweep(&folder(&root), SystemTime::now()).unwrap();
        let names = folder(&root).names().unwrap();
        assert_eq!(names.len(), MAX_KEPT);
        assert!(!names.contains(&format!("{}.0", MAX_KEPT + 1)), "{names:?}");
    }
}
