//! Other processes, by `/proc`: who is below whom, a signal to exactly one. And of this one, what it has
//! open and may open.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal, WaitOptions, getrlimit,
    pidfd_getfd, pidfd_open, pidfd_send_signal, setrlimit,
};

use crate::text::shorten;

/// How often an environment is read that seems to be empty.
const ENVIRONMENT_READS: u32 = 5;
/// How much of a command line is kept.
pub const COMMAND_CHARS: usize = 256;

/// Names one process of this run of the machine, whoever has its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in ticks since the machine was.
    started: u64,
}

/// A process, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Who started it, or took it over.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// Its session; 0 when the leader of that is in no namespace of ours (a container's first process).
    pub session: u32,
    /// When it was started, in ticks since the machine was: with the id it names one process only.
    started: u64,
    /// Where its stack begins: a random place, that only a fork leaves as it is. 0: not to be seen.
    stack: u64,
    state: char,
}

impl Process {
    /// Reads one; `None` when there is none, or it can't be read.
    pub fn read(pid: u32) -> Option<Self> {
        Self::try_read(pid).ok().flatten()
    }

    /// Reads one; `None` when there is none.
    ///
    /// # Errors
    /// When the system has no descriptor left, say: whether there is one is not known.
    pub fn try_read(pid: u32) -> io::Result<Option<Self>> {
        Ok(read_of(pid, "stat")?.and_then(|stat| Self::parse(pid, &stat)))
    }

    fn parse(pid: u32, stat: &[u8]) -> Option<Self> {
        // The name in parentheses may hold anything, also parentheses and half a character.
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(stat.get(end + 2..)?).ok()?.split(' ');
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        // Field 22 of proc_pid_stat(5); the session is field 6.
        let started = fields.nth(15)?.parse().ok()?;
        // Field 28.
        let stack = fields.nth(5)?.parse().ok()?;
        Some(Self { pid, parent, group, session, started, stack, state })
    }

    /// What names it for good.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, started: self.started }
    }

    /// A variable of the environment that it was started with; `None` also when this user may not
    /// read it.
    ///
    /// # Errors
    /// When the system has no descriptor left, say.
    pub fn variable(&self, name: &str) -> io::Result<Option<String>> {
        let mut environment = read_of(self.pid, "environ")?.unwrap_or_default();
        for _ in 0..ENVIRONMENT_READS {
            if !environment.is_empty() {
                break;
            }
            // It may be on its way into another program, and has none for that moment.
            std::thread::yield_now();
            environment = read_of(self.pid, "environ")?.unwrap_or_default();
        }
        let value = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        Ok(value.and_then(|value| String::from_utf8(value.to_owned()).ok()))
    }

    /// Whether both are the same process, whatever it does now.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }

    /// Whether it is a copy of another that has started no program of its own: a subshell is.
    pub fn is_copy_of(&self, other: &Self) -> bool {
        let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        self.stack != 0 && self.stack == other.stack && program(self.pid) == program(other.pid)
    }

    /// Whether it has ended and only waits to be reaped.
    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }

    /// Whether it was stopped, by SIGSTOP or a debugger say: it does nothing until it goes on.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// What becomes readable when exactly this process has ended; `None` when it is gone.
    pub fn watch(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid.cast_signed())?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The id may have passed to another process since it was read: the descriptor can't.
        Self::read(self.pid)?.is_same(self).then_some(descriptor)
    }

    /// What becomes readable when it has ended, unless it has. One that looks dead may have lost its first
    /// thread only.
    pub fn living(&self) -> Option<OwnedFd> {
        self.watch().filter(|descriptor| !has_ended(descriptor.as_fd()))
    }

    /// One of its descriptors: not the file anew, but the same open file, with its locks.
    ///
    /// # Errors
    /// When it is gone, has no such descriptor, or this user may not trace it.
    pub fn copy_descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        let process = self.watch().ok_or(io::ErrorKind::NotFound)?;
        Ok(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?)
    }

    /// Sends a signal to exactly this process, as far as this user may; returns what becomes readable
    /// when it has ended.
    pub fn signal(&self, signal: Signal) -> Option<OwnedFd> {
        let descriptor = self.watch()?;
        match pidfd_send_signal(descriptor.as_fd(), signal) {
            Err(rustix::io::Errno::SRCH) => None,
            // EPERM: it is another user's now; it is waited for all the same.
            _ => Some(descriptor),
        }
    }

    /// Reaps it if it is a child of this process and has ended.
    pub fn reap(&self) -> bool {
        let pid = Pid::from_raw(self.pid.cast_signed());
        // ECHILD: it is its parent's to reap.
        pid.is_some_and(|pid| {
            rustix::process::waitpid(Some(pid), WaitOptions::NOHANG).is_ok_and(|end| end.is_some())
        })
    }

    /// Its command line, cut to length; empty when it has ended.
    pub fn command_line(&self) -> String {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        shorten(words.join(" ").trim_end(), COMMAND_CHARS)
    }
}

/// What becomes readable when the process with this id has ended; `None` when it has.
pub fn living(id: ProcessId) -> Option<OwnedFd> {
    Process::read(id.pid).filter(|process| process.id() == id)?.living()
}

/// Waits until a process has ended; says whether it has within the limit.
pub fn await_end(process: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    let limit = Timespec::try_from(limit).unwrap_or_default();
    rustix::event::poll(&mut polled, Some(&limit)).is_ok_and(|ready| ready > 0)
}

/// This process and those above it, as far as this user may see them.
pub fn ancestors() -> impl Iterator<Item = Process> {
    std::iter::successors(Process::read(std::process::id()), |below| Process::read(below.parent))
}

/// All processes that this user may see, as far as they can be read.
pub fn all() -> impl Iterator<Item = Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?))
}

/// The processes that `is_root` names, and all below them, also those that only wait to be reaped; those
/// above first. The system's list is read once.
///
/// # Errors
/// When it can't be read whole: then nobody may take it that there are none.
pub fn trees(is_root: impl Fn(&Process) -> io::Result<bool>) -> io::Result<Vec<Process>> {
    let (mut found, mut children) = (Vec::new(), BTreeMap::<u32, Vec<Process>>::new());
    for entry in std::fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(process) = pid.map_or(Ok(None), Process::try_read)? {
            if is_root(&process)? {
                found.push(process.clone());
            }
            children.entry(process.parent).or_default().push(process);
        }
    }
    if children.is_empty() {
        // This process at least is there: it is no list of processes.
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut above = 0;
    while let Some(pid) = found.get(above).map(|process| process.pid) {
        for process in children.remove(&pid).unwrap_or_default() {
            if !found.iter().any(|known| known.pid == process.pid) {
                found.push(process);
            }
        }
        above += 1;
    }
    Ok(found)
}

fn has_ended(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// A file of a process; `None` when there is no such process, or this user may not read it.
fn read_of(pid: u32, file: &str) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(format!("/proc/{pid}/{file}")) {
        Ok(content) => Ok(Some(content)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Ok(None)
        }
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// All processes below the one with this id, in no order.
pub fn below(pid: u32) -> Vec<Process> {
    let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
    for process in all() {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for process in children.remove(&parent).unwrap_or_default() {
            parents.push(process.pid);
            found.push(process);
        }
    }
    found
}

/// Lets this process open as many files as it may (the soft limit becomes the hard one). Returns how many
/// it was before, unless there was nothing to raise.
pub fn raise_open_files() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let before = current.filter(|current| maximum.is_none_or(|maximum| *current < maximum))?;
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    raised.is_ok().then_some(before)
}

/// Sets how many files this process, and those that it starts from now on, may open (the soft limit; the
/// hard one stays). What is open stays open.
pub fn limit_open_files(count: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = Some(maximum.map_or(count, |maximum| count.min(maximum)));
    // Lowering is always allowed.
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap_or_default();
}

/// Closes what the caller had open beyond the standard streams, at the start of a process that outlives
/// it: a lock or the end of a pipe there would be held as long as this process lives.
pub fn close_inherited() {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<RawFd> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The listing's own descriptor is closed already.
    let is_open = |fd: &RawFd| Path::new(&format!("/proc/self/fd/{fd}")).is_symlink();
    for descriptor in open.into_iter().filter(|fd| *fd > 2 && is_open(fd)) {
        // SAFETY: it is open, and at the start of a process nothing in it owns a descriptor.
        #[expect(unsafe_code, reason = "descriptors that were inherited have no owner")]
        unsafe {
            rustix::io::close(descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_and_is_below_its_parent() {
        let me = Process::read(std::process::id()).unwrap();
        assert!(me.watch().is_some() && !me.is_zombie());
        assert!(below(me.parent).iter().any(|process| process.pid == me.pid));
        let other = Process { started: me.started + 1, ..me };
        assert!(other.watch().is_none(), "another process that had the same id");
    }
}
