//! The process beside each script. It takes the mutexes, starts the script, keeps its output, sees
//! that its whole tree ends, records the outcome, and gives the mutexes back, in this order.
//!
//! ```text
//! assignment ──► wait in the lines ──► start ──► run ──► end the tree ──► outcome.json ──► release
//! ```
//!
//! 1. It shares no memory with the agent: they meet in the workspace, and a SIGTERM means "stop the
//!    script" (`cancel.json` says why), a SIGUSR1 "don't start it now". So it outlives the agent.
//! 2. The mutexes are given back only when the tree is gone, or an operator abandoned what can't be
//!    ended, and the outcome is on disk.
//! 3. Exactly one supervisor works on a workspace: it keeps `supervisor` locked, and its token must
//!    be the job's.
//! 4. One that asks for a restart of the machine is not over: its place in the lines is kept until then.
//! 5. A lease runs nothing: it holds, and lends what it holds to its scripts' supervisors.
//! 6. No runtime, no command line, no logging before the script starts.

mod course;
mod grip;
pub mod job;
mod lease;
mod mask;
mod record;
mod restart;
mod returns;
mod run;
mod tree;
mod wait;

use std::cell::Cell;
use std::io::{self, BufRead as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use crate::format::{self, FormatError, Newer};
use crate::journal::{self, Missing, Writer};
use crate::mutex::abandoned::{self, Abandoned};
use crate::mutex::{MutexError, os};
use crate::script::{Fate, Outcome, OutcomeKind, StartProblem};
use crate::text::chain;
use crate::workspace::{Workspace, WorkspaceError, is_lack};
use grip::Grip;
use job::{Assignment, Cancel, Job, Report};
pub(crate) use mask::Mask;
pub use record::Unwritten;
use restart::Asked;
pub use returns::outputs_left;

/// The exit status of a supervisor that could not begin because the machine lacks something now:
/// EX_TEMPFAIL of sysexits(3).
pub const LACK: u8 = 75;

/// The exit status of a supervisor whose agent is newer than itself, and says what it does not understand.
pub const OUTDATED: u8 = 93;

/// Why a supervisor could not do its work.
#[derive(Debug, thiserror::Error)]
enum SuperviseError {
    #[error("assignment")]
    Assignment(#[source] io::Error),
    #[error("assignment")]
    Newer(#[source] Newer),
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    #[error(transparent)]
    Mutex(#[from] MutexError),
    #[error("output journal")]
    Journal(#[from] journal::JournalError),
    #[error("outcome")]
    Outcome(#[source] WorkspaceError),
    #[error("system call")]
    System(#[from] io::Error),
}

impl SuperviseError {
    /// Whether its agent is a newer baton.
    fn is_newer(&self) -> bool {
        matches!(self, Self::Newer(_) | Self::Workspace(WorkspaceError::Newer { .. }))
    }
}

/// Runs `baton supervise`: reads an [`Assignment`] from standard input and does it.
pub fn main() -> ExitCode {
    // Not the script's: a lock there would be held as long as it runs.
    crate::process::close_inherited();
    // A session of its own: a script finds no terminal at which it would stop and wait for ever, and
    // a Ctrl-C there is the client's to pass on. EPERM: it has one already.
    rustix::process::setsid().map(drop).unwrap_or_default();
    match read_assignment().and_then(|assignment| assignment.map_or(Ok(()), supervise)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            if let SuperviseError::Outcome(error) = &error {
                return Unwritten::from_error(error).status().into();
            }
            if error.is_newer() {
                return OUTDATED.into();
            }
            if is_lack(&error) { LACK.into() } else { ExitCode::FAILURE }
        }
    }
}

#[expect(clippy::print_stderr, reason = "the agent's own standard error; there is no logging here")]
fn complain(error: &SuperviseError) {
    eprintln!("baton supervise: {}", chain(error));
}

/// `None` when the agent ended without one: a supervisor that was kept ready and not needed.
fn read_assignment() -> Result<Option<Assignment>, SuperviseError> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(SuperviseError::Assignment)?;
    if !line.ends_with('\n') {
        return Ok(None);
    }
    match format::from_json(format::WORKSPACE, line.as_bytes()) {
        Ok(assignment) => Ok(Some(assignment)),
        Err(FormatError::Newer(error)) => Err(SuperviseError::Newer(error)),
        Err(FormatError::Json(error)) => Err(SuperviseError::Assignment(error.into())),
    }
}

fn supervise(assignment: Assignment) -> Result<(), SuperviseError> {
    let workspace = Workspace::at(assignment.workspace);
    // Rule 3. Held until this process ends; not inherited by the script.
    let mut lock = workspace.open_supervisor()?;
    if !os::try_lock_exclusive(&lock)? {
        return Ok(());
    }
    let job: Option<Job> = workspace.read_json(&workspace.job())?;
    let Some(job) = job.filter(|job| job.token == assignment.token) else {
        return Ok(());
    };
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(format!("{}\n", std::process::id()).as_bytes())?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(io::Error::from)?;
    let signals = Signals::register(assignment.tied)?;
    let journal = open_journal(&workspace, &job)?;
    Supervision { workspace, job, signals, journal }.carry_out()
}

/// The script's journal; after a restart of the machine it goes on with the one that is there.
fn open_journal(workspace: &Workspace, job: &Job) -> Result<Writer, SuperviseError> {
    let path = workspace.journal();
    let Some(restart) = &job.restart else {
        return Ok(Writer::create(&path, job.output)?.marking(mark));
    };
    let mut journal = Writer::resume(&path, job.output, restart.dropped)?.marking(mark);
    let report = Report::Launched { token: job.token.clone() };
    let text = serde_json::to_vec(&report).map_err(io::Error::from)?;
    journal.append_event(&text, Timestamp::now())?;
    Ok(journal)
}

/// The report that marks missing output.
fn mark(missing: &Missing) -> Vec<u8> {
    let Missing { cause, here, total } = *missing;
    // Numbers and a name: nothing that can't be written.
    serde_json::to_vec(&Report::OutputDropped { cause, bytes: total, here }).unwrap_or_default()
}

/// What tells a supervisor to stop or to step back, and that a process has ended.
struct Signals {
    stop: UnixStream,
    /// Whether one of those was a person's: a machine that goes down sends no SIGINT.
    is_a_person_s: Arc<AtomicBool>,
    /// Looked at only while it waits: who runs goes on.
    step_back: UnixStream,
    child: UnixStream,
    /// Whether the script ends with its owner, whose end has not been seen yet.
    tied: Cell<bool>,
}

impl Signals {
    fn register(tied: bool) -> io::Result<Self> {
        let (stop, stop_writer) = UnixStream::pair()?;
        let is_a_person_s = Arc::new(AtomicBool::new(false));
        // First of all: who is woken sees it.
        signal_hook::flag::register(SIGINT, Arc::clone(&is_a_person_s))?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, stop_writer.try_clone()?)?;
        }
        let (child, child_writer) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(SIGCHLD, child_writer)?;
        let (step_back, step_back_writer) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(SIGUSR1, step_back_writer)?;
        for stream in [&stop, &step_back, &child] {
            stream.set_nonblocking(true)?;
        }
        Ok(Self { stop, is_a_person_s, step_back, child, tied: Cell::new(tied) })
    }

    /// Whether a signal came since the last call.
    fn take(stream: &UnixStream) -> bool {
        let mut bytes = [0_u8; 64];
        let mut came = false;
        while rustix::io::read(stream, &mut bytes).is_ok_and(|read| read > 0) {
            came = true;
        }
        came
    }

    /// Whether the owner that the script is tied to is gone; says so once.
    fn owner_is_gone(&self) -> bool {
        let stdin = io::stdin();
        let mut polled = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        let now = Timespec::default();
        let gone = self.tied.get()
            && rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
            && rustix::io::read(stdin.as_fd(), &mut [0_u8; 16]).is_ok_and(|read| read == 0);
        if gone {
            self.tied.set(false);
        }
        gone
    }
}

/// That a script is to stop.
enum Stop {
    /// For this reason.
    Said(String),
    /// Nobody said why.
    Unsaid,
}

/// One script's supervision: what all its stages need.
struct Supervision {
    workspace: Workspace,
    job: Job,
    signals: Signals,
    journal: Writer,
}

impl Supervision {
    /// All stages.
    fn carry_out(mut self) -> Result<(), SuperviseError> {
        let mut grip = match self.claim() {
            Ok(wait::Waited::Held(grip)) => grip,
            Ok(wait::Waited::Over(kind)) => return self.record(kind.into(), None),
            Ok(wait::Waited::SteppedBack) => return Ok(()),
            // It did not begin: it keeps its place, and is tried again.
            Err(error) if is_lack(&error) => return Err(error),
            Err(error) => {
                let reason = chain(&error);
                let kind = OutcomeKind::NotStarted { cause: StartProblem::Agent, reason };
                return self.record(kind.into(), None);
            }
        };
        if let Some(restart) = self.job.awaited().cloned() {
            let kept = self.keep_place(restart, None);
            grip.release()?;
            return kept;
        }
        if let Err(error) = self.tell_start() {
            grip.release()?;
            return Err(error);
        }
        if let (job::Lease::Itself, Grip::Own(hold)) = (&self.job.lease, &grip) {
            let held = self.hold_lease(hold);
            let recorded = self.record(held.kind.into(), held.started_at);
            if held.is_returned {
                grip.release()?;
            }
            return recorded;
        }
        let (outcome, started_at) = self.run(&mut grip);
        self.mark_abandoned(&outcome, &grip);
        let recorded = match self.asked_restart(outcome) {
            Asked::Nothing(outcome) => self.record(outcome, started_at),
            Asked::Restart(restart) => self.await_restart(restart, started_at),
        };
        // Rule 2.
        grip.release()?;
        recorded
    }

    /// Leaves word for the next holders that processes of this one go on.
    fn mark_abandoned(&self, outcome: &Outcome, grip: &Grip) {
        let left = outcome.stragglers.iter().filter(|left| left.fate == Fate::Abandoned);
        let processes: Vec<String> =
            left.map(|left| format!("pid {} ({})", left.pid, left.command)).collect();
        if processes.is_empty() {
            return;
        }
        let reason = self.cancel().and_then(|cancel| cancel.abandon).unwrap_or_default();
        let holder = format!("script {}", self.job.script_id);
        let mark = Abandoned { at: Timestamp::now(), holder, reason, processes };
        for name in grip.names(&self.job.claims) {
            // The outcome tells it too.
            abandoned::mark(&self.job.mutexes, &name, &mark).unwrap_or_default();
        }
    }

    /// Tells the agent, if the disk takes it: a full one holds nobody up.
    fn tell(&mut self, report: &Report) {
        self.report(report).unwrap_or_default();
    }

    /// Tells the agent.
    fn report(&mut self, report: &Report) -> Result<(), SuperviseError> {
        let text = serde_json::to_vec(report).map_err(io::Error::from)?;
        Ok(self.journal.append_event(&text, Timestamp::now())?)
    }

    fn cancel(&self) -> Option<Cancel> {
        self.workspace.read_json(&self.workspace.cancel()).ok().flatten()
    }

    /// Whether the script is to stop.
    fn stop(&self) -> Option<Stop> {
        if Signals::take(&self.signals.stop) {
            if let Some(cancel) = self.cancel() {
                return Some(Stop::Said(cancel.reason));
            }
            let is_a_person_s = self.signals.is_a_person_s.load(Ordering::SeqCst);
            let reason = || "its supervisor was told to stop".to_owned();
            return Some(if is_a_person_s { Stop::Said(reason()) } else { Stop::Unsaid });
        }
        let gone = || Stop::Said("the command that ran it is gone".to_owned());
        self.signals.owner_is_gone().then(gone)
    }

    /// Sleeps until one of `more`, a signal, the owner's end, or the deadline.
    fn sleep(&self, more: &[BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
        let stdin = io::stdin();
        let owner = self.signals.tied.get().then(|| stdin.as_fd());
        let signals = [self.signals.stop.as_fd(), self.signals.child.as_fd()];
        let all = more.iter().copied().chain(signals).chain(owner);
        let mut polled: Vec<_> =
            all.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
        let left = deadline.map(|until| until.saturating_duration_since(Instant::now()));
        // A time that the system can't express is for ever.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Err(e) if e != rustix::io::Errno::INTR => Err(e.into()),
            _ => Ok(()),
        }
    }
}
