//! The process between a holder and its command: what `baton tether` runs.
//!
//! ```text
//! baton mutex run --fleet ──► baton tether ──► the command and all that it starts
//!          renewals ─────────► a deadline
//!          its own end ──────► asks all to stop
//! ```
//!
//! It knows nothing of etcd. It has two moments and is told later ones: at the first it asks the whole tree to
//! stop, at the second it kills it. When the holder is killed, hangs or is stopped, no later ones come; when
//! its end of the socket is closed, it asks at once. Should this process itself be killed, the holder
//! ends the tree.
//!
//! The socket carries the two moments, 8 bytes each, to it, and one line of JSON, its report, back.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitCode};

use serde::{Deserialize, Serialize};

use super::clock::{Alarm, Moment};
use super::{ending, unix};
use crate::mutex::holder::{Signals, pass_on};
use crate::mutex::os;

/// How long a message of the holder's is.
pub(super) const LIMITS_BYTES: usize = 16;

/// Until when a command may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// When its tree is asked to stop.
    pub(super) ask_at: Moment,
    /// When it is killed.
    pub(super) force_at: Moment,
}

impl Limits {
    pub(super) fn to_bytes(self) -> [u8; LIMITS_BYTES] {
        let mut bytes = [0; LIMITS_BYTES];
        bytes[..8].copy_from_slice(&self.ask_at.as_micros().to_be_bytes());
        bytes[8..].copy_from_slice(&self.force_at.as_micros().to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; LIMITS_BYTES]) -> Self {
        let both = u128::from_be_bytes(bytes);
        let part = |number: u128| Moment::from_micros(u64::try_from(number).unwrap_or(u64::MAX));
        Self { ask_at: part(both >> 64), force_at: part(both & u128::from(u64::MAX)) }
    }
}

/// What came of the command.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// It ended by itself; as `wait` has it.
    Ended(i32),
    /// It could not be started; the system's number of the reason.
    NotStarted(Option<i32>),
    /// It was ended, and all that it started but for these.
    Lost(Vec<String>),
}

/// Runs `baton tether DESCRIPTOR COMMAND…`.
pub fn main(words: &[OsString]) -> ExitCode {
    let [number, program, arguments @ ..] = words else {
        return ExitCode::FAILURE;
    };
    let number = number.to_str().and_then(|number| number.parse().ok()).unwrap_or(-1);
    let Ok(mut holder) = unix::inherited(number).map(UnixStream::from) else {
        return ExitCode::FAILURE;
    };
    let mut command = Command::new(program);
    command.args(arguments);
    // Without a report, the holder ends what is left.
    let Ok(report) = tether(&mut holder, &mut command) else {
        return ExitCode::FAILURE;
    };
    let line = serde_json::to_vec(&report).unwrap_or_default();
    // The holder may be gone.
    holder.write_all(&line).unwrap_or_default();
    ExitCode::SUCCESS
}

fn tether(holder: &mut UnixStream, command: &mut Command) -> io::Result<Report> {
    let mut first = [0; LIMITS_BYTES];
    holder.read_exact(&mut first)?;
    holder.set_nonblocking(true)?;
    ending::adopt()?;
    // Before the start: no signal is missed.
    let signals = Signals::register()?;
    #[expect(clippy::disallowed_methods, reason = "a protected command, as in mutex::holder")]
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(Report::NotStarted(error.raw_os_error())),
    };
    let limits = Limits::from_bytes(first);
    let (stage, alarm) = (Stage::Running, Alarm::new()?);
    Tether { holder, child, signals, limits, stage, alarm }.run()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Asked,
}

struct Tether<'a> {
    holder: &'a mut UnixStream,
    child: Child,
    signals: Signals,
    limits: Limits,
    stage: Stage,
    alarm: Alarm,
}

impl Tether<'_> {
    fn run(mut self) -> io::Result<Report> {
        loop {
            match self.stage {
                Stage::Running => {
                    if let Some(status) = self.child.try_wait()? {
                        return Ok(Report::Ended(status.into_raw()));
                    }
                    if self.limits.ask_at.is_over() {
                        self.stage = Stage::Asked;
                        ending::ask_all();
                    }
                    ending::reap_adopted(self.child.id());
                }
                Stage::Asked if ending::have_ended() => return Ok(Report::Lost(Vec::new())),
                Stage::Asked => {}
            }
            if self.limits.force_at.is_over() {
                let left = ending::kill_all()?;
                let name =
                    |p: &crate::process::Process| format!("{} ({})", p.pid, p.command_line());
                return Ok(Report::Lost(left.iter().map(name).collect()));
            }
            self.sleep()?;
        }
    }

    /// Sleeps until there is something to look at, and hears what there is to hear.
    fn sleep(&mut self) -> io::Result<()> {
        let Limits { ask_at, force_at } = self.limits;
        let is_asked = self.stage == Stage::Asked;
        self.alarm.set(if is_asked { force_at } else { ask_at })?;
        let wakers: [BorrowedFd<'_>; 2] =
            [self.signals.descriptor(), self.alarm.descriptor().as_fd()];
        // Who was asked to stop is not told otherwise.
        let holder = (!is_asked).then(|| self.holder.as_fd());
        os::sleep(wakers.into_iter().chain(holder), None)?;
        for signal in self.signals.unheard() {
            pass_on(&self.child, signal);
        }
        if !is_asked {
            self.listen()?;
        }
        Ok(())
    }

    /// Hears later limits; or that the holder is gone: then the tree is asked now.
    fn listen(&mut self) -> io::Result<()> {
        let mut message = [0; LIMITS_BYTES];
        loop {
            match self.holder.read(&mut message) {
                // Each message is written and read as a whole: a socket takes so few bytes at once.
                Ok(LIMITS_BYTES) => self.limits = Limits::from_bytes(message),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Ok(_) | Err(_) => {
                    self.limits.ask_at = self.limits.ask_at.min(Moment::now());
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn limits_survive_the_way() {
        let ask_at = Moment::from_micros(Moment::now().as_micros());
        let limits = Limits { ask_at, force_at: ask_at.after(Duration::from_secs(3)) };
        assert_eq!(Limits::from_bytes(limits.to_bytes()), limits);
    }
}
