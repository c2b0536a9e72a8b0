//! The line of one mutex on disk: its folder, its tickets, who is alive.
//!
//! Only joining needs the line's guard (rule 1 of [`crate::mutex`]). Whoever has a ticket sees
//! every ticket before it complete: it was made, and locked, under an earlier hold of the guard. So
//! the line is looked at, and its dead are removed (rule 2), without it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{OFlags, RawDir};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::deadlock::Held;
use super::os::{self, Guard};
use super::survivors::{self, Living};
use super::{Mode, MutexError, MutexName};
use crate::format::{self, FormatError};
use crate::process::ProcessId;
use crate::script::Labels;

/// Who holds or wants a mutex: the one line of JSON in a ticket. For people; only what became of a
/// ticket that is dead is decided by it: whether it held (`holds_since`), and what lives on of its command
/// (`claim`, `leader`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Claimant {
    /// The process that keeps the ticket.
    pub pid: u32,
    /// The name of its user.
    pub user: String,
    /// The script, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script_id: Option<String>,
    /// What it is: the script's summary or the command line.
    pub command: String,
    /// The script's labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Why it wants the mutex, in the words of whoever started it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Names this claim: the same in the tickets of all mutexes that it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub claim: String,
    /// The tickets under which it was made: its script or wrapper holds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<Held>,
    /// The process for which it was acquired by a token, to be released by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_for: Option<u32>,
    /// The first process of the command that it protects, once that is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<ProcessId>,
    /// After how many milliseconds its hold is reported as too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warn_after_ms: Option<u64>,
    /// When it expires unless it is renewed, when it is an open lease. Its agent alone knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_expires_at: Option<Timestamp>,
    /// Since when it waits.
    pub waits_since: Timestamp,
    /// Since when it may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_since: Option<Timestamp>,
}

/// A claimant and its claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Who it is.
    pub who: Claimant,
    /// Whether its claim is exclusive.
    pub exclusive: bool,
}

impl Claimant {
    /// This process, doing `command`.
    pub fn this_process(command: String) -> Self {
        Self {
            pid: std::process::id(),
            user: os::user_name(rustix::process::geteuid().as_raw()),
            command,
            waits_since: Timestamp::now(),
            ..Self::default()
        }
    }

    /// The time that it was to hold at most, when it has held for longer at `now`.
    pub fn overdue(&self, now: Timestamp) -> Option<Duration> {
        let limit = Duration::from_millis(self.warn_after_ms?);
        let held = Duration::try_from(now - self.holds_since?).ok()?;
        (held > limit).then_some(limit)
    }
}

/// The folder of one mutex.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
    /// Of the plain OS lock; everything else in the folder is the owner's alone.
    lock_mode: u32,
}

/// The mode of tickets, guard and counter: who may not join has nothing to read there either.
const PRIVATE: u32 = 0o600;

/// The greatest number of a ticket: what all readers of JSON keep exactly. No clock and no counting gets
/// there, so a counter beyond it is damaged.
const MAX_NUMBER: u64 = (1 << 53) - 1;

/// A ticket in a line, by its file's name. Whether it lives is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) mode: Mode,
}

/// A live ticket of somebody else.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) entry: Entry,
    /// Open, for its JSON and to sleep in its lock.
    pub(super) file: File,
    /// Who keeps it without the lock, which whoever had it left behind.
    pub(super) survivors: Vec<Living>,
}

impl Other {
    /// What its owner wrote; a default when it can't be read.
    pub(super) fn claimant(&self) -> Claimant {
        let mut text = vec![0_u8; CLAIMANT_BYTES];
        let mut read = || {
            let mut length = self.file.read_at(&mut text, 0).unwrap_or(0);
            if length == CLAIMANT_BYTES {
                text.resize(MAX_CLAIMANT_BYTES, 0);
                length = self.file.read_at(&mut text, 0).unwrap_or(0);
            }
            serde_json::from_slice(text[..length].trim_ascii()).ok()
        };
        // Its owner may be writing just now.
        (0..CLAIMANT_READS).find_map(|_| read()).unwrap_or_default()
    }
}

/// Says which rules the whole folder has; none is the first. No mutex can have this name.
const FORMAT: &str = ".format";
/// More than it ever has.
const MAX_FORMAT_BYTES: u64 = 4096;
/// How much of a listing is read at once: some hundred tickets.
const LIST_BYTES: usize = 16 * 1024;
/// The length of the counter: a ticket's file name and room.
const COUNTER_BYTES: usize = 32;
/// How many numbers are tried for a new ticket.
const MAX_TRIES: u32 = 100;
/// How often a ticket is read that makes no sense yet.
const CLAIMANT_READS: u32 = 3;
/// Most tickets have less.
const CLAIMANT_BYTES: usize = 1024;
/// The longest line of JSON that is read back from a ticket.
const MAX_CLAIMANT_BYTES: usize = 1024 * 1024;

impl Folder {
    /// The folder of mutex `name` below `root`, made if need be.
    pub(super) fn open(root: &Path, name: &MutexName) -> Result<Self, MutexError> {
        let path = root.join(name.as_str());
        let (folder_mode, lock_mode) =
            if name.is_machine() { (0o700, 0o600) } else { (0o755, 0o644) };
        os::ensure_folder(root, 0o755)?;
        check_format(root)?;
        os::ensure_folder(&path, folder_mode)?;
        os::ensure_folder(&path.join("line"), folder_mode)?;
        Ok(Self { path, lock_mode })
    }

    /// The guard of the line; `None` when somebody else has it just now.
    pub(super) fn try_guard(&self) -> Result<Option<Guard>, MutexError> {
        Guard::try_lock(&self.guard_path(), PRIVATE)
    }

    /// Waits for the guard of the line: without a limit, so in a thread that may be left alone.
    pub(super) fn guard(&self) -> Result<Guard, MutexError> {
        Guard::lock(&self.guard_path(), PRIVATE)
    }

    /// The guard's file.
    pub(super) fn guard_path(&self) -> PathBuf {
        self.path.join("guard")
    }

    /// The plain OS lock's path.
    pub(super) fn os_lock_path(&self) -> PathBuf {
        self.path.join("os.lock")
    }

    /// Opens the plain OS lock.
    pub(super) fn open_os_lock(&self) -> Result<File, MutexError> {
        os::open_plain(&self.os_lock_path(), self.lock_mode)
    }

    /// The folder of the tickets.
    pub(super) fn line_path(&self) -> PathBuf {
        self.path.join("line")
    }

    /// Puts a new ticket at the end of the line, locked (rules 1 and 2); or leaves nothing there.
    pub(super) fn append(
        &self,
        _guard: &Guard,
        mode: Mode,
        who: &Claimant,
    ) -> Result<Ticket, MutexError> {
        // It is new: somebody may look at it whether it lives, in the moment before it is locked, and may
        // be stopped there. Then the next number will do.
        for _ in 0..MAX_TRIES {
            if let Some(ticket) = self.try_append(mode)? {
                return match ticket.describe(who) {
                    Ok(()) => Ok(ticket),
                    Err(error) => {
                        ticket.remove().unwrap_or_default();
                        Err(error)
                    }
                };
            }
        }
        let source = io::ErrorKind::WouldBlock.into();
        Err(MutexError::File { path: self.line_path(), source })
    }

    /// One new ticket; `None` when somebody looks at it just now.
    fn try_append(&self, mode: Mode) -> Result<Option<Ticket>, MutexError> {
        let (last, entry) = self.next_entry(mode)?;
        let path = self.ticket_path(entry);
        let failed = |source| MutexError::File { path: path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .custom_flags(os::plain_flags())
            .open(&path)
            .map_err(failed)?;
        if !os::try_lock_exclusive(&file).map_err(failed)? {
            remove(&path)?;
            return Ok(None);
        }
        let file = os::out_of_the_way(&file).map_err(failed)?;
        Ok(Some(Ticket { entry, last, path, file }))
    }

    /// The tickets before `number`, in order, dead ones among them.
    pub(super) fn before(&self, number: u64) -> Result<Vec<Entry>, MutexError> {
        let folder = self.line_path();
        let failed = |e: Errno| MutexError::Folder { path: folder.clone(), source: e.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = rustix::fs::open(&folder, flags, rustix::fs::Mode::empty()).map_err(failed)?;
        // Not on the stack: of a buffer there, every page is touched.
        let mut buffer: Vec<u8> = Vec::with_capacity(LIST_BYTES);
        let mut listing = RawDir::new(open, buffer.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(failed)?;
            // Other files are left alone.
            let entry = entry.file_name().to_str().ok().and_then(parse_file_name);
            entries.extend(entry.filter(|entry| entry.number < number));
        }
        entries.sort_unstable_by_key(|entry| entry.number);
        Ok(entries)
    }

    /// A ticket before one's own if it lives; it is removed if it is dead (rule 2).
    pub(super) fn living(&self, entry: Entry) -> Result<Option<Other>, MutexError> {
        let living = self.look(entry)?;
        if living.is_none() {
            // Numbers are given once: no other ticket has this name.
            remove(&self.ticket_path(entry))?;
        }
        Ok(living)
    }

    /// Takes a ticket out of the line for an owner that can't.
    pub(super) fn take_out(&self, entry: Entry) -> Result<(), MutexError> {
        remove(&self.ticket_path(entry))
    }

    /// A ticket if it lives: somebody has its lock, or it held and something of its command lives on
    /// (rule 6). Whoever has no place in the line removes nothing: a ticket may just be
    /// made.
    pub(super) fn look(&self, entry: Entry) -> Result<Option<Other>, MutexError> {
        let path = self.ticket_path(entry);
        let Some(file) = os::open_to_read(&path)? else {
            // Its owner removed it just now.
            return Ok(None);
        };
        let failed = |source| MutexError::File { path: path.clone(), source };
        let is_locked = !os::try_lock_shared(&file).map_err(failed)?;
        let mut other = Other { entry, file, survivors: Vec::new() };
        if is_locked {
            return Ok(Some(other));
        }
        // Who only looks keeps nothing.
        os::unlock(&other.file).map_err(failed)?;
        // Given back: it was removed first, while this one was looking.
        if !os::is_at(&other.file, &path).map_err(failed)? {
            return Ok(None);
        }
        let who = other.claimant();
        if who.holds_since.is_some() {
            other.survivors = survivors::of(&who).map_err(MutexError::Survivors)?;
        }
        Ok((!other.survivors.is_empty()).then_some(other))
    }

    /// The last ticket that was given out, if it is known, and the next: its number is one more than
    /// every number before (rule 1).
    fn next_entry(&self, mode: Mode) -> Result<(Option<Entry>, Entry), MutexError> {
        let path = self.path.join("next");
        let file = os::open_plain(&path, PRIVATE)?;
        let mut text = [0_u8; COUNTER_BYTES];
        let length = file.read_at(&mut text, 0).unwrap_or(0);
        let last =
            std::str::from_utf8(&text[..length]).ok().and_then(|t| parse_file_name(t.trim()));
        let last = last.filter(|last| last.number < MAX_NUMBER);
        let number = match last {
            Some(last) => last.number,
            // A lost or damaged counter: no live ticket may be overtaken.
            None => self.before(u64::MAX)?.last().map_or(0, |e| e.number).max(first_number()),
        };
        let next = Entry { number: number.saturating_add(1), mode };
        file.write_all_at(format!("{:<COUNTER_BYTES$}", file_name(next)).as_bytes(), 0)
            .map_err(|source| MutexError::File { path, source })?;
        Ok((last, next))
    }

    fn ticket_path(&self, entry: Entry) -> PathBuf {
        self.line_path().join(file_name(entry))
    }
}

/// Refuses a folder with rules that are not known here: nobody would exclude whom it should.
fn check_format(root: &Path) -> Result<(), MutexError> {
    let path = root.join(FORMAT);
    let Some(file) = os::open_to_read(&path)? else {
        return Ok(());
    };
    let failed = |source| MutexError::File { path: path.clone(), source };
    let mut text = Vec::new();
    file.take(MAX_FORMAT_BYTES).read_to_end(&mut text).map_err(failed)?;
    match format::check_json(format::MUTEXES, &text) {
        Ok(()) => Ok(()),
        Err(FormatError::Newer(source)) => Err(MutexError::Newer { path: root.to_owned(), source }),
        Err(FormatError::Json(error)) => Err(failed(error.into())),
    }
}

fn remove(path: &Path) -> Result<(), MutexError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(MutexError::File { path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// A place in the line. It lives until it is released, or until the last process that inherited
/// its descriptor is gone (rule 6).
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) entry: Entry,
    /// The ticket that was given out before it, if it is known.
    pub(super) last: Option<Entry>,
    path: PathBuf,
    pub(super) file: File,
}

impl Ticket {
    /// Writes who keeps the ticket.
    pub(super) fn describe(&self, who: &Claimant) -> Result<(), MutexError> {
        let failed = |source| MutexError::File { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(who).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        // Only grows: a reader that comes after sees one whole line.
        self.file.write_all_at(&line, 0).map_err(failed)
    }

    /// Wakes those who follow the line.
    pub(super) fn announce(&self) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(PRIVATE))
    }

    /// Leaves the line.
    pub(super) fn remove(self) -> Result<(), MutexError> {
        let removed = remove(&self.path);
        // Explicitly: a straggler that inherited the descriptor holds nothing.
        let unlocked = os::unlock(&self.file);
        removed?;
        unlocked.map_err(|source| MutexError::File { path: self.path, source })
    }
}

/// Where the numbers of a new line start: milliseconds since 1970. The folder may be gone after a
/// restart of the machine; its next numbers are greater than those before all the same, since nobody
/// joins a thousand times a second for long.
fn first_number() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

fn file_name(Entry { number, mode }: Entry) -> String {
    match mode {
        Mode::Exclusive => format!("{number:010}.x"),
        Mode::Shared => format!("{number:010}.s"),
        Mode::AtMost(n) => format!("{number:010}.s{n}"),
    }
}

fn parse_file_name(name: &str) -> Option<Entry> {
    let (number, mode) = name.split_once('.')?;
    let mode = match mode {
        "x" => Mode::Exclusive,
        "s" => Mode::Shared,
        counted => Mode::AtMost(counted.strip_prefix('s')?.parse::<NonZeroU32>().ok()?),
    };
    let number = number.parse().ok().filter(|number| *number <= MAX_NUMBER)?;
    Some(Entry { number, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path(), &"log".parse().unwrap()).unwrap();
        (root, folder)
    }

    fn append(folder: &Folder, mode: Mode) -> Ticket {
        let who = Claimant::this_process("test".to_owned());
        folder.append(&folder.guard().unwrap(), mode, &who).unwrap()
    }

    #[test]
    fn a_ticket_s_file_name_says_number_and_mode() {
        let at_most = Mode::AtMost(NonZeroU32::new(12).unwrap());
        for mode in [Mode::Exclusive, Mode::Shared, at_most] {
            let entry = Entry { number: 4_294_967_296_000, mode };
            let name = file_name(entry);
            assert_eq!(parse_file_name(&name), Some(entry), "{name}");
        }
        for strange in ["1", "1.y", "1.s0", "x.s", ".x", "1.x.tmp", "9007199254740992.x"] {
            assert_eq!(parse_file_name(strange), None, "{strange}");
        }
    }

    #[test]
    fn rule_1_numbers_only_grow() {
        let (_root, folder) = folder();
        let first = append(&folder, Mode::Exclusive);
        let number = first.entry.number;
        first.remove().unwrap();
        assert_eq!(append(&folder, Mode::Shared).entry.number, number + 1);
    }

    #[test]
    fn rule_1_numbers_grow_also_when_the_folder_was_lost() {
        let (root, folder) = folder();
        let number = append(&folder, Mode::Exclusive).entry.number;
        let before = first_number();
        std::fs::remove_dir_all(root.path().join("log")).unwrap();
        // The clock's next millisecond: numbers are compared across restarts, not within one.
        while first_number() == before {
            std::hint::spin_loop();
        }
        let again = Folder::open(root.path(), &"log".parse().unwrap()).unwrap();
        let ticket = append(&again, Mode::Exclusive);
        assert!(ticket.entry.number > number, "{} after {number}", ticket.entry.number);
    }

    #[test]
    fn rule_1_a_lost_or_damaged_counter_overtakes_no_live_ticket() {
        let (_root, folder) = folder();
        let live = append(&folder, Mode::Exclusive);
        let counter = folder.path.join("next");
        std::fs::remove_file(&counter).unwrap();
        let next = append(&folder, Mode::Exclusive);
        assert!(next.entry.number > live.entry.number);
        OpenOptions::new().write(true).truncate(true).open(&counter).unwrap();
        assert!(append(&folder, Mode::Exclusive).entry.number > next.entry.number);
    }

    #[test]
    fn rule_2_a_dead_ticket_is_removed_and_a_live_one_is_not() {
        let (_root, folder) = folder();
        let (live, dead) = (append(&folder, Mode::Exclusive), append(&folder, Mode::Exclusive));
        let (dead_path, dead_entry) = (dead.path.clone(), dead.entry);
        drop(dead);
        assert!(folder.look(dead_entry).unwrap().is_none() && dead_path.exists());
        assert!(folder.living(dead_entry).unwrap().is_none() && !dead_path.exists());
        assert!(folder.living(live.entry).unwrap().is_some() && live.path.exists());
        assert_eq!(folder.before(u64::MAX).unwrap(), [live.entry]);
        assert_eq!(folder.before(live.entry.number).unwrap(), []);
    }

    #[test]
    fn a_ticket_says_who_keeps_it() {
        let (_root, folder) = folder();
        let ticket = append(&folder, Mode::Exclusive);
        let mut who = Claimant::this_process("make it so".to_owned());
        ticket.describe(&who).unwrap();
        who.holds_since = Some(who.waits_since);
        ticket.describe(&who).unwrap();
        assert_eq!(folder.look(ticket.entry).unwrap().unwrap().claimant(), who);
    }

    #[test]
    fn a_folder_in_which_strangers_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let name = "log".parse().unwrap();
        for mode in [0o777, 0o775, 0o1777] {
            std::fs::set_permissions(root.path(), Permissions::from_mode(mode)).unwrap();
            let found = Folder::open(root.path(), &name);
            assert!(matches!(found, Err(MutexError::Unsafe { .. })), "{mode:o}");
        }
        std::fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        Folder::open(root.path(), &name).unwrap();
    }

    #[test]
    fn a_pipe_or_a_link_in_the_folder_is_refused_at_once() {
        let (root, folder) = folder();
        let pipe = root.path().join("log/guard");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert!(matches!(folder.guard(), Err(MutexError::Strange { .. })));
        std::os::unix::fs::symlink("/etc/hostname", folder.os_lock_path()).unwrap();
        folder.open_os_lock().unwrap_err();
        let elsewhere = root.path().join("elsewhere");
        std::os::unix::fs::symlink("/tmp", &elsewhere).unwrap();
        let found = Folder::open(root.path(), &"elsewhere".parse().unwrap());
        assert!(matches!(found, Err(MutexError::Strange { .. })));
    }
}
