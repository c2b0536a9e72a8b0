//! `baton flock`: flock(1) in order of arrival, for scripts that know only that one. Also by being
//! called as `flock`.
//!
//! Exit codes and standard output are flock(1)'s. What it has to say beyond that goes to a terminal
//! or is asked for by `--verbose`: scripts may capture standard error.

mod options;

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::{Args, CommandFactory as _};
use rustix::io::Errno;

use super::failure::{Failure, complain};
use super::mutex::{exit_code, outsider, wait_of};
use super::screen::write_out;
use crate::config::Directories;
use crate::config::directories::DirectoryOverrides;
use crate::mutex::front::{self, Busy, LockError, Locked, Request, RunError, Subject, Told};
use crate::mutex::holder::Patience;
use crate::text::{chain, shorten};
use options::{Form, Kind, Limit, OptionError, Options, Start, Wanted};

/// Exit codes that flock(1) has from `sysexits.h`.
mod code {
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 64;
    pub(super) const DATA: u8 = 65;
    pub(super) const NO_INPUT: u8 = 66;
    pub(super) const UNAVAILABLE: u8 = 69;
    pub(super) const SYSTEM: u8 = 71;
    pub(super) const CANNOT_CREATE: u8 = 73;
}

const REMIND: Duration = Duration::from_mins(1);

const HELP: &str = "\
Options, before FILE; what stands behind it belongs to the command:
  -x, -e, --exclusive   lock alone (default)
  -s, --shared          lock together with others that do the same
  -u, --unlock          unlock the descriptor
  -n, --nb, --nonblock  give up at once
  -w, --timeout, --wait SECONDS
                        give up after so long, for example 2.5; 0 is -n
  -E, --conflict-exit-code N
                        the exit status then, 0 to 255. Default: 1
  -o, --close           the command does not inherit the lock: what it leaves running holds nothing
  -F, --no-fork         become the command instead of waiting for it
      --verbose         tell on standard output how long it took, and on standard error who holds
  -h, --help            print help
  -V, --version         print version

Examples:
  baton flock /tmp/build.lock make              alone among all that lock this file
  baton flock -n /tmp/build.lock -c 'make all'  or not at all: exit status 1
  (baton flock -s 9; cat data) 9>data.lock      an open descriptor, until it is closed
  ln -s \"$(command -v baton)\" ~/bin/flock       for scripts that call flock

Whoever locks the same file with another flock excludes and is excluded, but has no place in the
line. The lock file of a mutex (`baton mutex path NAME`) is the mutex: its line is the one of
`baton mutex run NAME`. Waits are told on a terminal or with --verbose.

Exit status: the command's own, 128 and the signal when one ended it; 1 (or -E) when the lock was
not obtained in time, 64 usage, 65 no lock possible, 66 file not opened, 69 command not started,
71 the system refused, 73 file not made.";

/// flock(1), but in order of arrival: run a command while a file is locked
///
/// A drop-in for the flock of util-linux, with the same options, exit codes and effects. Those who
/// use it on the same file stand in one line. Called as `flock` it does the same.
#[derive(Debug, Args)]
#[command(
    after_help = HELP,
    disable_help_flag = true,
    help_template = "{about-with-newline}\n{usage-heading} {usage}\n\n{after-help}",
    override_usage = "baton flock [OPTIONS] FILE COMMAND [ARGUMENT]…\n       baton flock [OPTIONS] FILE -c TEXT\n       baton flock [OPTIONS] DESCRIPTOR"
)]
pub(super) struct FlockArgs {
    /// The words of flock(1)
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) words: Vec<OsString>,
}

/// The words for flock, when the program is called as `flock` or the first word says so. Not by
/// clap: the options are flock(1)'s, and it is on the way of every protected command.
pub(super) fn words_of(all: &[OsString]) -> Option<&[OsString]> {
    let (name, words) = all.split_first()?;
    if Path::new(name).file_name() == Some(OsStr::new("flock")) {
        return Some(words);
    }
    let (first, words) = words.split_first()?;
    (first == "flock").then_some(words)
}

pub(super) fn flock(words: &[OsString], set: DirectoryOverrides) -> Result<ExitCode, Failure> {
    match options::parse(words)? {
        Wanted::Help => {
            write_out(help().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Wanted::Version => {
            let version = env!("CARGO_PKG_VERSION");
            write_out(format!("flock from baton {version}\n").as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Wanted::Lock(options) => lock_and_run(&options, set),
    }
}

fn help() -> String {
    let mut baton = super::Cli::command();
    baton.build();
    let flock = baton.find_subcommand_mut("flock");
    flock.map(|flock| flock.render_long_help().to_string()).unwrap_or_default()
}

fn lock_and_run(options: &Options, set: DirectoryOverrides) -> Result<ExitCode, Failure> {
    let (subject, shown) = open(&options.form)?;
    let patience = match options.limit {
        Some(Limit::Impossible) => {
            let text = anyhow::anyhow!("the system has no timer for such a time");
            return Err(Failure::new(code::SYSTEM, text));
        }
        Some(Limit::Time(limit)) if !limit.is_zero() && !options.no_wait => {
            Patience::Limited(limit)
        }
        Some(Limit::Time(limit)) if limit.is_zero() => Patience::None,
        _ if options.no_wait => Patience::None,
        _ => Patience::Unlimited,
    };
    let since = Instant::now();
    let locked = match options.kind {
        Kind::Unlock => subject.unlock(),
        Kind::Exclusive | Kind::Shared => {
            let tells = options.verbose || io::stderr().is_terminal();
            let request = Request {
                root: root(set, &shown),
                exclusive: options.kind == Kind::Exclusive,
                patience,
                what: what(&options.form),
                remind: tells.then_some(REMIND),
            };
            match front::lock(subject, &request, |told| tell(told, &shown)) {
                Ok(Err(busy)) => {
                    if tells {
                        complain(&format!("baton: not obtained: {}", describe_busy(&busy, &shown)));
                    }
                    return Ok(ExitCode::from(options.conflict_exit_code));
                }
                Ok(Ok(locked)) => Ok(locked),
                Err(error) => Err(error),
            }
        }
    };
    let locked = locked.map_err(|error| refused(error, &shown))?;
    if options.verbose {
        say(&format!("getting lock took {:.6} seconds", since.elapsed().as_secs_f64()));
    }
    run(locked, options)
}

/// Opens what is to be locked; with how people know it.
fn open(form: &Form) -> Result<(Subject, String), Failure> {
    match form {
        Form::Descriptor(number) => {
            let subject = Subject::inherited(*number).map_err(|error| {
                let text = format!("descriptor {number}");
                Failure::new(code::DATA, anyhow::Error::new(error).context(text))
            })?;
            let shown = subject.path().map(|path| format!("`{}`", path.display()));
            Ok((subject, shown.unwrap_or_else(|| format!("descriptor {number}"))))
        }
        Form::Command(file, ..) | Form::Shell(file, _) => {
            let shown = format!("`{}`", file.to_string_lossy());
            let subject = Subject::open(Path::new(file)).map_err(|error| {
                let code = if is_among(&error, &[Errno::ROFS, Errno::NOSPC]) {
                    code::CANNOT_CREATE
                } else if is_shortage(&error) {
                    code::SYSTEM
                } else {
                    code::NO_INPUT
                };
                Failure::new(code, anyhow::Error::new(error).context(format!("file {shown}")))
            })?;
            Ok((subject, shown))
        }
    }
}

/// Whether the system had no memory, descriptors or locks left.
fn is_shortage(error: &io::Error) -> bool {
    is_among(error, &[Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::NOLCK])
}

fn is_among(error: &io::Error, all: &[Errno]) -> bool {
    all.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The folder of the mutexes. Without one there is no line, and the lock excludes all the same.
fn root(set: DirectoryOverrides, shown: &str) -> Option<PathBuf> {
    match Directories::mutex_folder(set) {
        Ok(root) => Some(root),
        Err(error) => {
            no_line(&error, shown);
            None
        }
    }
}

/// What others in the line are told about.
fn what(form: &Form) -> String {
    let words = match form {
        Form::Descriptor(number) => format!("flock {number}"),
        Form::Shell(_, text) => text.to_string_lossy().into_owned(),
        Form::Command(_, program, arguments) => {
            let words = [program].into_iter().chain(arguments);
            words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
        }
    };
    shorten(&words, 80)
}

fn tell(told: &Told<'_>, shown: &str) {
    let text = match told {
        Told::NoLine(error) => return no_line(error, shown),
        Told::Cycle(error) => format!("{shown}: {error}; waiting for its lock all the same"),
        Told::Waits(busy) => describe_busy(busy, shown),
    };
    complain(&format!("baton: {text}"));
}

fn no_line(error: &dyn std::error::Error, shown: &str) {
    let error = chain(error);
    complain(&format!("baton: {shown} has no line, only its lock is taken: {error}"));
}

fn describe_busy(busy: &Busy, shown: &str) -> String {
    match busy {
        Busy::InLine(blocked) => {
            let tell = |blocked| {
                let wait = wait_of(blocked);
                format!("waiting, position {}: {}", wait.position, wait.reason_of(shown))
            };
            blocked.iter().map(tell).collect::<Vec<_>>().join("; ")
        }
        Busy::Outside(outsiders) => {
            let holder =
                outsiders.first().map_or_else(|| "a program outside baton".to_owned(), outsider);
            format!("waiting, position 1: {shown} is held by {holder}")
        }
    }
}

/// A line on standard output, as flock(1) has them. The lock is there, so a reader that is gone stops
/// nothing.
fn say(text: &str) {
    write_out(format!("flock: {text}\n").as_bytes()).unwrap_or_default();
}

fn run(locked: Locked, options: &Options) -> Result<ExitCode, Failure> {
    let mut command = match &options.form {
        Form::Descriptor(_) => {
            locked.leave();
            return Ok(ExitCode::SUCCESS);
        }
        Form::Command(_, program, arguments) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        Form::Shell(_, text) => {
            let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
            let mut command = Command::new(shell.unwrap_or_else(|| "/bin/sh".into()));
            command.arg("-c").arg(text);
            command
        }
    };
    let program = command.get_program().to_string_lossy().into_owned();
    if options.verbose {
        say(&format!("executing {program}"));
    }
    let ended = match options.start {
        Start::NoFork => Err(RunError::NotStarted(locked.exec(&mut command))),
        Start::Closed => locked.run(&mut command, true),
        Start::Inheriting => locked.run(&mut command, false),
    };
    match ended {
        Ok(status) => Ok(exit_code(status)),
        Err(error) => {
            let code = match &error {
                RunError::NotStarted(error) if is_shortage(error) => code::SYSTEM,
                RunError::NotStarted(_) => code::UNAVAILABLE,
                RunError::Wait(_) => code::FAILED,
            };
            Err(Failure::new(code, anyhow::Error::new(error).context(format!("`{program}`"))))
        }
    }
}

fn refused(error: LockError, shown: &str) -> Failure {
    let code = match &error {
        LockError::Lock(error) if is_shortage(error) => code::SYSTEM,
        LockError::Lock(_) => code::DATA,
        LockError::Sleep(_) => code::SYSTEM,
    };
    Failure::new(code, anyhow::Error::new(error).context(shown.to_owned()))
}

impl From<OptionError> for Failure {
    fn from(error: OptionError) -> Self {
        Self::new(code::USAGE, error).hint("`baton flock --help` shows the options")
    }
}
