//! Who has an OS lock on a file, by the kernel's list (`/proc/locks`).

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::MutexError;
use crate::process::{self as processes, Process};

/// A process that has an OS lock on a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    /// The process that took the lock; it may have left it to a child.
    pub pid: u32,
    /// Its command line; empty when it has ended.
    pub command: String,
    /// Whether it has it alone.
    pub exclusive: bool,
}

impl LockOwner {
    fn new(pid: u32, exclusive: bool) -> Self {
        Self { pid, command: command_line(pid), exclusive }
    }
}

/// Who has a lock on the file at `path`; nobody has one on a file that is not there.
///
/// # Errors
/// When the file or the kernel's list can't be seen.
pub fn owners(path: &Path) -> Result<Vec<LockOwner>, MutexError> {
    let failed = |source| MutexError::File { path: path.to_owned(), source };
    let found = match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let file = file_id(found.dev(), found.ino());
    let mut owners = Vec::new();
    for owner in kernel_list().map_err(failed)?.lines().filter_map(|line| parse(line, &file)) {
        // One that is doubled because the list changed between two reads.
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }
    if owners.is_empty() && is_in_container() {
        owners = heirs(path, &found);
    }
    Ok(owners)
}

/// Whether this process sees only some of the machine's.
fn is_in_container() -> bool {
    /// PROC_PID_INIT_INO of the kernel: the machine's own namespace of processes.
    const OF_THE_MACHINE: u64 = 0xEFFF_FFFC;
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|found| found.ino() != OF_THE_MACHINE)
}

/// Who has the lock of a file from one that has ended. In a container the kernel's list leaves those
/// locks out. A tree that stands in the line beside the file has its lock by its ticket: it is none.
fn heirs(path: &Path, file: &Metadata) -> Vec<LockOwner> {
    let line = path.with_file_name("line");
    // As the kernel names it, without links.
    let line = line.canonicalize().unwrap_or(line);
    let has_ticket = |pid: u32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut opened = open.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
        opened.any(|opened| opened.parent() == Some(&line))
    };
    let having: Vec<(Process, bool)> = processes::all()
        .filter_map(|process| {
            let descriptor = *descriptors(process.pid, file).first()?;
            Some((process.clone(), lock_of(process.pid, descriptor)?))
        })
        .collect();
    let is_first = |process: &Process| !having.iter().any(|(p, _)| p.pid == process.parent);
    let heirs = having.iter().filter(|(p, _)| is_first(p) && !has_ticket(p.pid));
    heirs.map(|(p, exclusive)| LockOwner::new(p.pid, *exclusive)).collect()
}

/// The descriptors of a process by which a lock on the file is held, as far as this user may see them.
/// Those that are only open, to look at it or to sleep on it, are none.
pub(super) fn descriptors(pid: u32, file: &Metadata) -> Vec<RawFd> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let locking = open.filter_map(|descriptor| {
        let found = std::fs::metadata(descriptor.path()).ok()?;
        let number: RawFd = descriptor.file_name().to_str()?.parse().ok()?;
        let is_wanted = found.dev() == file.dev() && found.ino() == file.ino();
        (is_wanted && is_locking(pid, number)).then_some(number)
    });
    locking.collect()
}

/// Whether a process keeps a ticket. Who looks at one, or sleeps on it, has a shared lock for a moment.
pub(super) fn keeps(pid: u32, ticket: &Metadata) -> bool {
    let is_kept = |number: &RawFd| lock_of(pid, *number) == Some(true);
    descriptors(pid, ticket).iter().any(is_kept)
}

/// Whether a lock is held by a descriptor.
pub(super) fn is_locking(pid: u32, descriptor: RawFd) -> bool {
    lock_of(pid, descriptor).is_some()
}

/// Whether the lock of a descriptor is exclusive; `None` when it has none. Its list has lines such as
/// `lock: 1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF`.
fn lock_of(pid: u32, descriptor: RawFd) -> Option<bool> {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()?;
    let has_lock = |line: &&str| line.starts_with("lock:") && line.contains(" FLOCK ");
    info.lines().find(has_lock).map(|line| line.contains(" WRITE "))
}

/// How much of the kernel's list is read at once: it walks the list anew for each read, so that small
/// reads miss locks, or see them twice, while others come and go.
const LIST_BYTES: usize = 64 * 1024;

fn kernel_list() -> io::Result<String> {
    let mut file = File::open("/proc/locks")?;
    let (mut list, mut length) = (Vec::new(), 0);
    loop {
        list.resize(length + LIST_BYTES, 0);
        match file.read(&mut list[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(String::from_utf8_lossy(&list[..length]).into_owned())
}

/// A file as the kernel's list has it: `fe:00:2102`.
fn file_id(device: u64, inode: u64) -> String {
    format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// A line such as `3: FLOCK  ADVISORY  WRITE 7104 fe:00:2102 0 EOF`. Those who wait have `->`.
fn parse(line: &str, file: &str) -> Option<LockOwner> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, access, pid, locked, ..] = fields.as_slice() else {
        return None;
    };
    if *locked != file {
        return None;
    }
    Some(LockOwner::new(pid.parse().ok()?, *access == "WRITE"))
}

/// The command line of a process, cut to length; empty when it has ended.
pub(super) fn command_line(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    crate::text::shorten(words.join(" ").trim_end(), 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_s_list_is_read_and_others_are_not() {
        let line = "3: FLOCK  ADVISORY  WRITE 1 fe:00:2102 0 EOF";
        let found = parse(line, "fe:00:2102").unwrap();
        assert_eq!((found.pid, found.exclusive), (1, true));
        for other in ["fe:00:2103", "fe:01:2102", "00:2102"] {
            assert_eq!(parse(line, other), None, "{other}");
        }
        assert_eq!(parse("3: -> FLOCK  ADVISORY  WRITE 1 fe:00:2102 0 EOF", "fe:00:2102"), None);
        assert_eq!(parse("4: POSIX  ADVISORY  WRITE 1 fe:00:2102 0 EOF", "fe:00:2102"), None);
    }

    #[test]
    fn the_owner_of_a_lock_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(owners(file.path()).unwrap(), []);
        assert!(super::super::os::try_lock_exclusive(file.as_file()).unwrap());
        let found = owners(file.path()).unwrap();
        assert_eq!((found.len(), found[0].pid, found[0].exclusive), (1, std::process::id(), true));
    }
}
