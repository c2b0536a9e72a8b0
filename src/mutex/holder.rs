//! Running a command while holding mutexes: what `baton mutex run` does. It needs no agent.
//!
//! The command has the terminal, the signals and the standard streams as if it were started
//! directly. While it runs, its whole tree keeps the mutexes if this process is killed; when it ends,
//! they are given back at once.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpgid, getpgrp, getpid, getppid,
    kill_process, pidfd_open, waitid,
};
use rustix::termios::tcgetpgrp;
use signal_hook::consts::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

use super::abandoned::Abandoned;
use super::deadlock::{self, HELD_VARIABLE, Held};
use super::survivors::CLAIMS_VARIABLE;
use super::{Advance, Blocked, Claim, Claimant, Hold, MutexError, MutexName, os, unix};

/// How long to wait for the mutexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Patience {
    /// As long as it takes.
    Unlimited,
    /// So long.
    Limited(Duration),
    /// Not at all.
    None,
}

/// What came of it.
#[derive(Debug)]
pub enum Ran {
    /// The command ran and ended.
    Ended(ExitStatus),
    /// The mutexes were not to be had in time; these were in the way.
    Busy(Vec<Blocked>),
    /// The command could not be started.
    NotStarted(io::Error),
}

/// Why the command could not be run, or its end not be seen.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// A mutex can't be used.
    #[error(transparent)]
    Mutex(#[from] MutexError),
    /// The system refused.
    #[error("system call")]
    System(#[from] io::Error),
}

/// What is wanted, and how patiently.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Wish {
    /// The mutexes.
    pub claims: Vec<Claim>,
    /// How long to wait for them.
    pub patience: Patience,
    /// What others are told about why; may be empty.
    pub reason: String,
    /// How often a wait is told again while nothing changes.
    pub remind: Duration,
    /// Whether waits are told at all: who need not tell sleeps longer.
    pub is_told: bool,
    /// After how long a hold is reported, again and again.
    pub warn_after: Option<Duration>,
}

impl Wish {
    /// To hold these, however long it takes, without a word.
    pub fn of(claims: Vec<Claim>) -> Self {
        let (patience, reason) = (Patience::Unlimited, String::new());
        let remind = Duration::from_mins(1);
        Self { claims, patience, reason, remind, is_told: false, warn_after: None }
    }
}

/// What is told while a wish is fulfilled.
#[derive(Debug, Clone, Copy)]
pub enum Notice<'a> {
    /// These are in the way: told at once, on changes, and as a reminder.
    Waits(&'a [Blocked]),
    /// It is held for so long now, a multiple of [`Wish::warn_after`].
    Overdue(Duration),
    /// Who held it before was given up, and goes on.
    Abandoned(&'a MutexName, &'a Abandoned),
    /// It was given back, and something could not be removed.
    LeftBehind(&'a MutexError),
}

/// Takes the mutexes, runs the command, gives them back.
///
/// # Errors
/// When a mutex folder can't be used or a system call fails.
pub fn run(
    root: &Path,
    wish: &Wish,
    command: &mut Command,
    mut tell: impl FnMut(Notice<'_>),
) -> Result<Ran, HolderError> {
    let hold = match acquire(root, wish, command_line(command), &mut tell)? {
        Ok(hold) => hold,
        Err(busy) => return Ok(Ran::Busy(busy)),
    };
    run_held(hold, wish, command, tell, |_| Ok(()))
}

/// Runs the command under mutexes that are held already, and gives them back. `before_release` sees
/// what came of it.
///
/// # Errors
/// When a system call fails; and what `before_release` says.
pub(super) fn run_held(
    mut hold: Hold,
    wish: &Wish,
    command: &mut Command,
    mut tell: impl FnMut(Notice<'_>),
    before_release: impl FnOnce(&Ran) -> io::Result<()>,
) -> Result<Ran, HolderError> {
    hold.make_inheritable()?;
    command.envs(variables(&hold, &wish.claims));
    unix::inherit_signals(command);
    // Before the start: no signal is missed.
    let mut signals = Signals::register()?;
    let ran = match start(command) {
        Ok(child) => {
            hold.protects(child.id());
            for claim in &wish.claims {
                for mark in hold.take_abandoned(&claim.name) {
                    tell(Notice::Abandoned(&claim.name, &mark));
                }
            }
            Ran::Ended(follow(child, &mut signals, wish.warn_after, &mut tell)?)
        }
        Err(error) => Ran::NotStarted(error),
    };
    let noted = before_release(&ran);
    // The command's end is worth more than what is left behind: it is dead all the same.
    if let Err(error) = hold.release() {
        tell(Notice::LeftBehind(&error));
    }
    noted?;
    Ok(ran)
}

/// Starts a program; a text without `#!` is given to the shell, as execvp(3) does.
#[expect(clippy::disallowed_methods, reason = "this is the home of protected commands")]
pub(super) fn start(command: &mut Command) -> io::Result<Child> {
    match command.spawn() {
        Err(e) if e.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
            let Some(program) = find(Path::new(command.get_program())) else {
                return Err(e);
            };
            let mut shell = Command::new("/bin/sh");
            shell.arg(program).args(command.get_args());
            for (name, value) in command.get_envs() {
                value.map(|value| shell.env(name, value));
            }
            unix::inherit_signals(&mut shell);
            shell.spawn()
        }
        other => other,
    }
}

/// The file of a program that was found in the PATH.
fn find(program: &Path) -> Option<PathBuf> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return Some(program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(program));
    found.find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
}

/// Takes the mutexes for this process, which does `what`; or returns who is in the way when the time
/// is over. `tell` as in [`run`].
///
/// # Errors
/// When a mutex folder can't be used or a system call fails.
pub fn acquire(
    root: &Path,
    wish: &Wish,
    what: String,
    mut tell: impl FnMut(Notice<'_>),
) -> Result<Result<Hold, Vec<Blocked>>, HolderError> {
    let mut hold = Hold::join(root, &wish.claims, claimant(wish, what), wish.is_told)?;
    match wait(&mut hold, wish, &[], &mut tell) {
        Ok(None) => Ok(Ok(hold)),
        Ok(Some(busy)) => {
            hold.release()?;
            Ok(Err(busy))
        }
        Err(error) => {
            // What can't be removed is dead all the same.
            hold.release().unwrap_or_default();
            Err(error)
        }
    }
}

/// This process, which does `what`, as others are told about it.
pub(super) fn claimant(wish: &Wish, what: String) -> Claimant {
    let within = std::env::var(HELD_VARIABLE).unwrap_or_default();
    let within = deadlock::from_variable(&within);
    let warn_after_ms = wish.warn_after.and_then(|after| u64::try_from(after.as_millis()).ok());
    let reason = wish.reason.clone();
    Claimant { reason, within, warn_after_ms, ..Claimant::this_process(what) }
}

/// Waits until all mutexes are held; or returns who is in the way when the time is over, or when one
/// of `watched` becomes readable.
pub(super) fn wait(
    hold: &mut Hold,
    wish: &Wish,
    watched: &[BorrowedFd<'_>],
    tell: &mut impl FnMut(Notice<'_>),
) -> Result<Option<Vec<Blocked>>, HolderError> {
    let patience = match wish.patience {
        Patience::Unlimited => None,
        Patience::Limited(limit) => Instant::now().checked_add(limit),
        Patience::None => Some(Instant::now()),
    };
    let (mut told, mut reminder, mut is_checked) = (Vec::new(), None, false);
    loop {
        let advance = hold.advance()?;
        if advance == Advance::Held {
            return Ok(None);
        }
        if !is_checked && hold.has_joined() {
            is_checked = true;
            hold.refuse_deadlock_with_tokens()?;
        }
        let now = Instant::now();
        let deadline = patience.map(|patience| hold.guard_deadline().max(Some(patience)));
        let deadline = deadline.flatten();
        let is_over = deadline.is_some_and(|deadline| now >= deadline);
        if is_over || watched.iter().any(|descriptor| os::is_readable(*descriptor)) {
            return Ok(Some(hold.blocked()?));
        }
        let is_due = reminder.is_some_and(|reminder| now >= reminder);
        if wish.is_told && (advance == Advance::Blocked || is_due) {
            let blocked = hold.blocked()?;
            if is_due || blocked != told {
                tell(Notice::Waits(&blocked));
                told = blocked;
                reminder = now.checked_add(wish.remind);
            }
        }
        let wake_at = deadline.into_iter().chain(reminder).chain(hold.look_again()).min();
        os::sleep(hold.descriptors().chain(watched.iter().copied()), wake_at)?;
    }
}

/// The variable of a protected command that has the fencing number of its (first) mutex; with `_NAME`
/// behind it, that of each.
pub const FENCE_VARIABLE: &str = "BATON_MUTEX_FENCE";

/// What a protected command is told about its mutexes: their fencing numbers, and under which tickets
/// it runs.
pub fn variables(hold: &Hold, claims: &[Claim]) -> Vec<(String, String)> {
    let fence = |claim: &Claim| Some((claim.name.clone(), hold.fence(&claim.name)?));
    let fences: Vec<_> = claims.iter().filter_map(fence).collect();
    variables_of(hold.claim(), &fences, &hold.held())
}

/// The same of a claim, by its fencing numbers and tickets.
pub(super) fn variables_of(
    claim: &str,
    fences: &[(MutexName, u64)],
    held: &[Held],
) -> Vec<(String, String)> {
    let outer = std::env::var(CLAIMS_VARIABLE).unwrap_or_default();
    let claims_of_tree = [outer.as_str(), claim].join(" ").trim().to_owned();
    let first = fences.first().map(|(_, number)| (FENCE_VARIABLE.to_owned(), number.to_string()));
    let each = fences.iter().map(|(name, number)| {
        (format!("{FENCE_VARIABLE}_{}", name.as_variable()), number.to_string())
    });
    let tickets = (HELD_VARIABLE.to_owned(), deadlock::to_variable(held));
    let tree = (CLAIMS_VARIABLE.to_owned(), claims_of_tree);
    first.into_iter().chain(each).chain([tickets, tree]).collect()
}

/// The signals that concern a protected command.
pub(crate) struct Signals(SignalDelivery<UnixStream, WithOrigin>);

impl Signals {
    pub(crate) fn register() -> io::Result<Self> {
        // What is ignored here (nohup, say) the command is to ignore too.
        let passed_on =
            [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT, SIGWINCH];
        let wanted = os::not_ignored(&passed_on).into_iter().chain([SIGCHLD]);
        let (read, write) = UnixStream::pair()?;
        Ok(Self(SignalDelivery::with_pipe(read, write, WithOrigin::default(), wanted)?))
    }

    /// Becomes readable when there are some.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }

    /// Those that came, and whether the command was told too: the terminal's.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = (i32, bool)> {
        self.0.pending().map(|Origin { signal, cause, .. }| {
            // A terminal that is gone tells only the leader of its session: this process, maybe.
            (signal, cause == Cause::Kernel && signal != SIGHUP)
        })
    }

    /// Those that came and are the command's to hear.
    pub(crate) fn unheard(&mut self) -> impl Iterator<Item = i32> {
        let heard = self.take().filter(|(signal, is_told)| *signal != SIGCHLD && !is_told);
        heard.map(|(signal, _)| signal)
    }
}

/// Waits for the command; passes on the signals that were sent to this process. Those of the terminal
/// went to the command as well.
fn follow(
    mut child: Child,
    signals: &mut Signals,
    warn_after: Option<Duration>,
    mut tell: impl FnMut(Notice<'_>),
) -> io::Result<ExitStatus> {
    let since = Instant::now();
    let mut warn_at = warn_after.and_then(|after| since.checked_add(after));
    // Not by SIGCHLD alone: whoever started this process may have blocked it.
    let end = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let end = end.iter().map(OwnedFd::as_fd);
        os::sleep(end.chain([signals.descriptor()]), warn_at)?;
        for signal in signals.unheard() {
            pass_on(&child, signal);
        }
        // Last: with a SIGCONT that has come the command goes on.
        stop_with(&child);
        let now = Instant::now();
        if let (Some(at), Some(after)) = (warn_at, warn_after)
            && now >= at
        {
            tell(Notice::Overdue(at - since));
            warn_at = now.checked_add(after).map(|_| at + after);
        }
    }
}

/// Stops this process when the command has stopped itself (`suspend`, `~^Z` of ssh) and an interactive shell
/// waits for both: it hears of its own child only. Anywhere else nobody would continue this process
/// together with the command.
fn stop_with(child: &Child) {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
    let stopped = waitid(WaitId::Pid(Pid::from_child(child)), options).ok().flatten();
    let signal = stopped.and_then(|stopped| stopped.stopping_signal());
    if let Some(signal) = signal.and_then(Signal::from_named_raw)
        && is_job_at_terminal(Pid::from_child(child)).unwrap_or(false)
    {
        kill_process(getpid(), signal).unwrap_or_default();
    }
}

/// Whether this process was started as a job of its own, and has the terminal, or the command has.
fn is_job_at_terminal(child: Pid) -> io::Result<bool> {
    let terminal = File::open("/dev/tty")?;
    let (own, front) = (getpgrp(), tcgetpgrp(&terminal)?);
    let is_in_front = front == own || front == getpgid(Some(child))?;
    Ok(is_in_front && getppid().is_some_and(|parent| getpgid(Some(parent)) != Ok(own)))
}

/// Sends a signal to the command, which is not reaped yet.
pub(crate) fn pass_on(child: &Child, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // ESRCH can't be: it is not reaped yet.
        kill_process(Pid::from_child(child), signal).unwrap_or_default();
    }
}

/// A command in words.
pub(crate) fn command_line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    crate::text::shorten(&words.join(" "), 80)
}
