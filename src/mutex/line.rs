//! The line of one mutex on disk: its folder, its tickets, who is alive.
//!
//! Everything here that changes or reads the line is done while the caller holds the line's
//! `Guard` (rules 1 and 2 of [`crate::mutex`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::deadlock::Held;
use super::os::{self, Guard};
use super::{Mode, MutexError, MutexName};
use crate::script::Labels;

/// Who holds or wants a mutex: the one line of JSON in a ticket. For people, never for decisions.
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

/// A live ticket of somebody else.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) number: u64,
    pub(super) mode: Mode,
    /// Open, for its JSON and to sleep in its lock.
    pub(super) file: File,
}

impl Other {
    /// What its owner wrote; a default when it can't be read.
    pub(super) fn claimant(&self) -> Claimant {
        let mut text = vec![0_u8; MAX_CLAIMANT_BYTES];
        let length = self.file.read_at(&mut text, 0).unwrap_or(0);
        serde_json::from_slice(text[..length].trim_ascii()).unwrap_or_default()
    }
}

/// The longest line of JSON that is read back from a ticket.
const MAX_CLAIMANT_BYTES: usize = 32 * 1024;

impl Folder {
    /// The folder of mutex `name` below `root`, made if need be.
    pub(super) fn open(root: &Path, name: &MutexName) -> Result<Self, MutexError> {
        let path = root.join(name.as_str());
        let (folder_mode, lock_mode) =
            if name.is_machine() { (0o700, 0o600) } else { (0o755, 0o644) };
        os::ensure_folder(root, 0o755)?;
        os::ensure_folder(&path, folder_mode)?;
        os::ensure_folder(&path.join("line"), folder_mode)?;
        Ok(Self { path, lock_mode })
    }

    /// Waits for the guard of the line.
    pub(super) fn guard(&self) -> Result<Guard, MutexError> {
        Guard::lock(&self.path.join("guard"), PRIVATE)
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

    /// Puts a new ticket at the end of the line, locked (rules 1 and 2).
    pub(super) fn append(&self, _guard: &Guard, mode: Mode) -> Result<Ticket, MutexError> {
        let number = self.next_number()?;
        let path = self.line_path().join(file_name(number, mode));
        let failed = |source| MutexError::File { path: path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .custom_flags(os::plain_flags())
            .open(&path)
            .map_err(failed)?;
        // It is new and the guard is ours: nobody else can have it open.
        match os::try_lock_exclusive(&file) {
            Ok(true) => Ok(Ticket { number, mode, path, file }),
            Ok(false) => Err(failed(io::ErrorKind::WouldBlock.into())),
            Err(e) => Err(failed(e)),
        }
    }

    /// The live tickets before `number`, in order. Removes the dead ones (rule 2).
    pub(super) fn live_before(
        &self,
        _guard: &Guard,
        number: u64,
    ) -> Result<Vec<Other>, MutexError> {
        let mut before = self.tickets()?;
        before.retain(|(other, _, _)| *other < number);
        let mut live = Vec::with_capacity(before.len());
        for (number, mode, path) in before {
            if let Some(file) = open_living(&path)? {
                live.push(Other { number, mode, file });
            }
        }
        Ok(live)
    }

    /// One more than every number that was ever given out (rule 1).
    fn next_number(&self) -> Result<u64, MutexError> {
        let path = self.path.join("next");
        let file = os::open_plain(&path, PRIVATE)?;
        let mut text = [0_u8; 20];
        let length = file.read_at(&mut text, 0).unwrap_or(0);
        let counted = std::str::from_utf8(&text[..length]).ok().and_then(|t| t.trim().parse().ok());
        // A lost or damaged counter: no live ticket may be overtaken.
        let in_line = self.tickets()?.last().map_or(0, |(number, _, _)| *number);
        let next = counted.unwrap_or_else(first_number).max(in_line) + 1;
        file.write_all_at(format!("{next:020}").as_bytes(), 0)
            .map_err(|source| MutexError::File { path, source })?;
        Ok(next)
    }

    /// All tickets by number: the number, the mode, the path. Other files are left alone.
    fn tickets(&self) -> Result<Vec<(u64, Mode, PathBuf)>, MutexError> {
        let folder = self.line_path();
        let failed = |source| MutexError::Folder { path: folder.clone(), source };
        let mut tickets = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some((number, mode)) = entry.file_name().to_str().and_then(parse_file_name) {
                tickets.push((number, mode, entry.path()));
            }
        }
        tickets.sort_unstable_by_key(|(number, _, _)| *number);
        Ok(tickets)
    }
}

/// Opens a ticket that lives; removes one that is dead.
fn open_living(path: &Path) -> Result<Option<File>, MutexError> {
    let failed = |source| MutexError::File { path: path.to_owned(), source };
    let opened = OpenOptions::new().read(true).custom_flags(os::plain_flags()).open(path);
    let file = match opened {
        Ok(file) => file,
        // Its owner removed it just now.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if !os::try_lock_shared(&file).map_err(failed)? {
        return Ok(Some(file));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(None),
    }
}

/// A place in the line. It lives until it is released, or until the last process that inherited
/// its descriptor is gone (rule 6).
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) number: u64,
    pub(super) mode: Mode,
    path: PathBuf,
    pub(super) file: File,
}

impl Ticket {
    /// Writes who keeps the ticket.
    pub(super) fn describe(&self, _guard: &Guard, who: &Claimant) -> Result<(), MutexError> {
        let failed = |source| MutexError::File { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(who).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        // Only grows: a reader that comes after sees one whole line.
        self.file.write_all_at(&line, 0).map_err(failed)?;
        (&self.file).flush().map_err(failed)
    }

    /// Leaves the line.
    pub(super) fn remove(self) -> Result<(), MutexError> {
        let failed = |source| MutexError::File { path: self.path.clone(), source };
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        // Explicitly: a straggler that inherited the descriptor holds nothing.
        os::unlock(&self.file).map_err(failed)
    }
}

/// Where the numbers of a new line start: milliseconds since 1970. The folder may be gone after a
/// restart of the machine; its next numbers are greater than those before all the same, since nobody
/// joins a thousand times a second for long.
fn first_number() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

fn file_name(number: u64, mode: Mode) -> String {
    match mode {
        Mode::Exclusive => format!("{number:010}.x"),
        Mode::Shared => format!("{number:010}.s"),
        Mode::AtMost(n) => format!("{number:010}.s{n}"),
    }
}

fn parse_file_name(name: &str) -> Option<(u64, Mode)> {
    let (number, mode) = name.split_once('.')?;
    let mode = match mode {
        "x" => Mode::Exclusive,
        "s" => Mode::Shared,
        counted => Mode::AtMost(counted.strip_prefix('s')?.parse::<NonZeroU32>().ok()?),
    };
    Some((number.parse().ok()?, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path(), &"log".parse().unwrap()).unwrap();
        (root, folder)
    }

    #[test]
    fn a_ticket_s_file_name_says_number_and_mode() {
        let at_most = Mode::AtMost(NonZeroU32::new(12).unwrap());
        for mode in [Mode::Exclusive, Mode::Shared, at_most] {
            let name = file_name(4_294_967_296_000, mode);
            assert_eq!(parse_file_name(&name), Some((4_294_967_296_000, mode)), "{name}");
        }
        for strange in ["1", "1.y", "1.s0", "x.s", ".x", "1.x.tmp"] {
            assert_eq!(parse_file_name(strange), None, "{strange}");
        }
    }

    #[test]
    fn rule_1_numbers_only_grow() {
        let (_root, folder) = folder();
        let guard = folder.guard().unwrap();
        let first = folder.append(&guard, Mode::Exclusive).unwrap();
        let number = first.number;
        first.remove().unwrap();
        assert_eq!(folder.append(&guard, Mode::Shared).unwrap().number, number + 1);
    }

    #[test]
    fn rule_1_numbers_grow_also_when_the_folder_was_lost() {
        let (root, folder) = folder();
        let number = folder.append(&folder.guard().unwrap(), Mode::Exclusive).unwrap().number;
        let before = first_number();
        std::fs::remove_dir_all(root.path().join("log")).unwrap();
        // The clock's next millisecond: numbers are compared across restarts, not within one.
        while first_number() == before {
            std::hint::spin_loop();
        }
        let again = Folder::open(root.path(), &"log".parse().unwrap()).unwrap();
        let ticket = again.append(&again.guard().unwrap(), Mode::Exclusive).unwrap();
        assert!(ticket.number > number, "{} after {number}", ticket.number);
    }

    #[test]
    fn rule_1_a_lost_counter_overtakes_no_live_ticket() {
        let (_root, folder) = folder();
        let guard = folder.guard().unwrap();
        let live = folder.append(&guard, Mode::Exclusive).unwrap();
        std::fs::remove_file(folder.path.join("next")).unwrap();
        assert!(folder.append(&guard, Mode::Exclusive).unwrap().number > live.number);
    }

    #[test]
    fn rule_2_a_dead_ticket_is_removed_and_a_live_one_is_not() {
        let (_root, folder) = folder();
        let guard = folder.guard().unwrap();
        let live = folder.append(&guard, Mode::Exclusive).unwrap();
        let dead = folder.append(&guard, Mode::Exclusive).unwrap();
        let dead_path = dead.path.clone();
        drop(dead);
        assert_eq!(folder.live_before(&guard, u64::MAX).unwrap().len(), 1);
        assert!(live.path.exists());
        assert!(!dead_path.exists());
    }

    #[test]
    fn a_ticket_says_who_keeps_it() {
        let (_root, folder) = folder();
        let guard = folder.guard().unwrap();
        let ticket = folder.append(&guard, Mode::Exclusive).unwrap();
        let mut who = Claimant::this_process("make it so".to_owned());
        ticket.describe(&guard, &who).unwrap();
        who.holds_since = Some(who.waits_since);
        ticket.describe(&guard, &who).unwrap();
        let seen = folder.live_before(&guard, u64::MAX).unwrap();
        assert_eq!(seen[0].claimant(), who);
    }

    #[test]
    fn a_folder_in_which_strangers_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let name = "log".parse().unwrap();
        for mode in [0o777, 0o775, 0o1777] {
            std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let found = Folder::open(root.path(), &name);
            assert!(matches!(found, Err(MutexError::Unsafe { .. })), "{mode:o}");
        }
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
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
