//! Running a command while a fleet-wide mutex is held: the holder's side of [`tether`](super::tether).

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::clock::Moment;
use super::ending;
use super::lease::{Loss, Standing, Terms};
use super::lock::FleetLock;
use super::signals::{Heard, Inbox};
use super::tether::{Limits, Report};
use crate::mutex::holder::FENCE_VARIABLE;

/// The longest report.
const MAX_REPORT_BYTES: usize = 64 * 1024;

/// What came of a command.
#[derive(Debug)]
pub enum Ran {
    /// It ended by itself.
    Ended(ExitStatus),
    /// It could not be started.
    NotStarted(io::Error),
    /// The lock was lost: the command was ended, with all that it started but for these processes.
    Lost(Vec<String>),
    /// What watched over the command was killed: it was ended, with all but these.
    Unwatched(Vec<String>),
}

/// Runs a command, a program and its arguments, under a lock. `tell` hears at once when the lock is lost;
/// the command is being ended then. The lock is the caller's to release.
///
/// # Errors
/// When the system refuses. Nothing of the command is left running.
pub async fn run(
    lock: &FleetLock,
    command: &[OsString],
    signals: &mut Inbox,
    tell: impl FnMut(Loss),
) -> io::Result<Ran> {
    let mut standing = lock.standing();
    let first = limits(*standing.borrow_and_update(), lock.terms());
    // Should the tether be killed, its command becomes this process's.
    ending::adopt()?;
    let (child, mut socket) = start(lock, command)?;
    socket.write_all(&first.to_bytes()).await?;
    let (terms, report) = (lock.terms(), Vec::new());
    let mut holding = Holding { child, socket, standing, terms, report };
    let followed = holding.follow(lock, signals, tell).await;
    drop(holding.socket);
    holding.child.wait().await?;
    let is_reported = followed.and_then(|()| Ok(serde_json::from_slice(&holding.report)?));
    match is_reported {
        Ok(Report::Ended(status)) => Ok(Ran::Ended(ExitStatus::from_raw(status))),
        Ok(Report::NotStarted(errno)) => {
            let error = errno.map(io::Error::from_raw_os_error);
            Ok(Ran::NotStarted(error.unwrap_or_else(|| io::ErrorKind::InvalidInput.into())))
        }
        Ok(Report::Lost(left)) => Ok(Ran::Lost(left)),
        Err(_) => {
            let left =
                tokio::task::spawn_blocking(ending::kill_all).await.map_err(io::Error::other)??;
            let name = |p: &crate::process::Process| format!("{} ({})", p.pid, p.command_line());
            Ok(Ran::Unwatched(left.iter().map(name).collect()))
        }
    }
}

fn start(lock: &FleetLock, words: &[OsString]) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let fence = lock.fence().to_string();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("tether")
        .arg(theirs.as_raw_fd().to_string())
        .args(words)
        .env(format!("{FENCE_VARIABLE}_{}", lock.name().as_variable()), &fence)
        .env(FENCE_VARIABLE, fence);
    #[expect(clippy::disallowed_methods, reason = "a protected command, as in mutex::holder")]
    let child = command.spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

/// Until when a command may run under a lease that stands so.
fn limits(standing: Standing, terms: Terms) -> Limits {
    match standing {
        Standing::Alive { sent } => {
            Limits { ask_at: terms.ask_at(sent), force_at: terms.force_at(sent) }
        }
        Standing::Gone => {
            let now = Moment::now();
            Limits { ask_at: now, force_at: now.after(terms.grace()) }
        }
    }
}

/// Whether the other side is closed. What it had not read yet makes that an error.
fn is_end(read: &io::Result<usize>) -> bool {
    match read {
        Ok(bytes) => *bytes == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

struct Holding {
    child: Child,
    socket: UnixStream,
    standing: watch::Receiver<Standing>,
    terms: Terms,
    report: Vec<u8>,
}

enum Event {
    Signal(io::Result<Heard>),
    /// The lease was confirmed, or is gone.
    Standing,
    Lost(Loss),
    /// So many bytes of the report; none: its end.
    Report(io::Result<usize>),
}

impl Holding {
    /// Hands on what comes, until the tether has ended.
    async fn follow(
        &mut self,
        lock: &FleetLock,
        signals: &mut Inbox,
        mut tell: impl FnMut(Loss),
    ) -> io::Result<()> {
        let mut is_lost = false;
        loop {
            let event = tokio::select! {
                heard = signals.next() => Event::Signal(heard),
                Ok(()) = self.standing.changed() => Event::Standing,
                loss = lock.lost(), if !is_lost => Event::Lost(loss),
                read = self.socket.read_buf(&mut self.report) => Event::Report(read),
            };
            match event {
                Event::Signal(heard) => self.pass_on(heard?),
                Event::Standing => {
                    let limits = limits(*self.standing.borrow_and_update(), self.terms);
                    // Full only when the tether is stopped: it acts on what it heard last.
                    self.socket.try_write(&limits.to_bytes()).map(drop).unwrap_or_default();
                }
                Event::Lost(loss) => {
                    is_lost = true;
                    tell(loss);
                }
                Event::Report(read) if is_end(&read) => return Ok(()),
                Event::Report(read) => {
                    read?;
                    if self.report.len() > MAX_REPORT_BYTES {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                }
            }
        }
    }

    /// The tether hands it on to the command.
    fn pass_on(&self, heard: Heard) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let (Some(pid), Some(signal), false) =
            (pid, Signal::from_named_raw(heard.signal), heard.is_told)
        {
            // It is not reaped yet.
            kill_process(pid, signal).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_report_is_read_to_its_end_also_when_limits_were_left_unread() {
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ours = UnixStream::from_std(ours).unwrap();
        ours.write_all(b"limits").await.unwrap();
        theirs.write_all(b"report").unwrap();
        drop(theirs);
        let mut report = Vec::new();
        assert_eq!(ours.read_buf(&mut report).await.unwrap(), 6);
        let end = ours.read_buf(&mut report).await;
        assert!(end.is_err() && is_end(&end), "{end:?}");
    }
}
