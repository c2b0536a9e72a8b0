//! `baton mutex run`: a command under named mutexes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGQUIT};
use signal_hook::low_level::emulate_default_handler;

use super::fleet::{self, FleetArgs};
use super::wish::WishArgs;
use crate::cli::failure::{Failure, code, complain};
use crate::cli::interval;
use crate::config::Directories;
use crate::config::directories::DirectoryOverrides;
use crate::mutex::holder::{self, HolderError, Notice, Ran, Wish};
use crate::mutex::{Blocked, MutexError, MutexName};
use crate::snapshot::Wait;
use crate::text::chain;

pub(super) const EXAMPLES: &str = "\
Examples:
  baton mutex run log -- sh -c 'date >> /var/log/deploy.log'
  baton mutex run --timeout 5m iis-metabase -- ./configure-site.sh
  baton mutex run --no-wait machine -- apt-get upgrade    75 when a deployment runs
  baton mutex run a b -- ./both.sh      several at once; two callers never block each other
  baton mutex run --fleet web --etcd http://etcd:2379 -- ./deploy.sh    one of all machines

Exit status: the command's own; 75 when a mutex was not obtained in time, 126/127 when the command
could not be started, 70 when the mutex folder can't be used. With --fleet also 76 when the mutex was
lost and the command ended for that, 69 when etcd can't be reached.";

/// Run a command while holding one or more mutexes
///
/// It waits in order of arrival. The mutex is free again when the command ends, however it ends; if
/// this command is killed, when the last process that it started has ended.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct RunArgs {
    #[command(flatten)]
    wish: WishArgs,
    /// Report when the mutexes are held longer, again and again
    #[arg(long, value_name = "TIME", value_parser = interval, conflicts_with = "fleet")]
    warn_after: Option<Duration>,
    #[command(flatten)]
    fleet: FleetArgs,
    /// The mutexes, then -- and the command
    // Options end at the first name, so that they can't be mistaken for the command's.
    #[arg(value_name = "NAME… -- COMMAND", required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

impl RunArgs {
    /// What the parser makes of `NAME… -- COMMAND…`; `None` when there are options, or something is
    /// missing. To build the parser takes longer than to take a mutex.
    pub(in crate::cli) fn plain(words: &[OsString]) -> Option<Self> {
        let end = words.iter().position(|word| word == "--")?;
        let is_option = |word: &OsString| word.as_encoded_bytes().starts_with(b"-");
        if end == 0 || words[..end].iter().any(is_option) {
            return None;
        }
        let (wish, fleet) = (WishArgs::plain(), FleetArgs::plain());
        Some(Self { wish, warn_after: None, fleet, words: words.to_vec() })
    }
}

pub(in crate::cli) fn run(args: &RunArgs, set: DirectoryOverrides) -> Result<ExitCode, Failure> {
    if let Some(name) = &args.fleet.fleet {
        return fleet::run(name, &args.fleet, &args.wish, &args.words, set);
    }
    let root = &Directories::mutex_folder(set)?;
    let (names, command) = split(&args.words)?;
    let wish = Wish { warn_after: args.warn_after, ..args.wish.wish(names) };
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).env("BATON_MUTEX_DIR", root);
    let ran = match holder::run(root, &wish, &mut process, teller(&wish)) {
        Err(HolderError::Mutex(error @ MutexError::Deadlock(_))) => {
            return Err(deadlock(error, args.wish.conflict_exit_code));
        }
        other => other?,
    };
    ended(ran, &command[0], args.wish.conflict_exit_code)
}

/// Says on standard error what there is to tell about a wish.
pub(super) fn teller(wish: &Wish) -> impl Fn(Notice<'_>) + use<> {
    let names: Vec<String> = wish.claims.iter().map(|claim| format!("`{}`", claim.name)).collect();
    let names = names.join(", ");
    let reason = if wish.reason.is_empty() { String::new() } else { format!(": {}", wish.reason) };
    move |notice| {
        complain(&match notice {
            Notice::Waits(blocked) => format!("baton: {}", describe(blocked)),
            Notice::Overdue(held) => {
                let held = humantime::format_duration(held);
                format!("baton: {names} held for {held} now by pid {}{reason}", std::process::id())
            }
            Notice::Abandoned(name, mark) => format!("baton: {}", mark.describe(name)),
            Notice::LeftBehind(error) => format!("baton: {names} given back, but {}", chain(error)),
        });
    }
}

/// What came of a protected command, as an exit status; `busy` when it was not obtained in time.
pub(super) fn ended(ran: Ran, program: &OsStr, busy: u8) -> Result<ExitCode, Failure> {
    match ran {
        Ran::Ended(status) => {
            die_of_the_keyboard(status);
            Ok(exit_code(status))
        }
        Ran::Busy(blocked) => {
            let text = anyhow::anyhow!("not obtained: {}", describe(&blocked));
            Err(Failure::new(busy, text))
        }
        Ran::NotStarted(error) => {
            let name = program.to_string_lossy();
            let found = error.kind() != io::ErrorKind::NotFound;
            let (code, problem) = if found {
                (code::NOT_EXECUTABLE, error.to_string())
            } else {
                (code::NOT_FOUND, "not found".to_owned())
            };
            Err(Failure::new(code, anyhow::anyhow!("`{name}`: {problem}")))
        }
    }
}

/// Splits `NAME… -- COMMAND…`.
fn split(words: &[OsString]) -> Result<(Vec<MutexName>, &[OsString]), Failure> {
    let hint = "for example: baton mutex run log -- sh -c 'date >> log'";
    let Some(end) = words.iter().position(|word| word == "--") else {
        return Err(
            Failure::usage("names of mutexes, then `--` and a command are expected").hint(hint)
        );
    };
    let (names, command) = (&words[..end], &words[end + 1..]);
    if names.is_empty() || command.is_empty() {
        let missing = if names.is_empty() { "mutex name" } else { "command" };
        return Err(Failure::usage(format!("there is no {missing}")).hint(hint));
    }
    let names = names.iter().map(|name| {
        let name = name.to_string_lossy();
        name.parse().map_err(|error| {
            let failure = Failure::usage(format!("mutex name {name:?} {error}"));
            if name.starts_with('-') {
                return failure.hint("options stand before the names");
            }
            failure
        })
    });
    Ok((names.collect::<Result<_, _>>()?, command))
}

/// Who is in the way, in words.
pub(super) fn describe(blocked: &[Blocked]) -> String {
    let tell = |blocked: &Blocked| {
        let wait = wait_of(blocked);
        format!("waiting, position {}: {}", wait.position, wait.reason())
    };
    blocked.iter().map(tell).collect::<Vec<_>>().join("; ")
}

/// Who is in the way, as a script's waits tell it.
pub(in crate::cli) fn wait_of(blocked: &Blocked) -> Wait {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Wait {
        mutex: blocked.mutex.clone(),
        position: count(blocked.position),
        holder_count: count(blocked.holders.len()),
        holders: blocked.holders.clone(),
        ahead: blocked.ahead.clone(),
        ahead_count: count(blocked.position.saturating_sub(1)),
        foreign: blocked.foreign,
        drain: None,
        restart: None,
    }
}

/// Ends this process as the keyboard ended the command: a shell that sees an exit status instead takes
/// it that the command went on after Ctrl-C, and goes on itself.
fn die_of_the_keyboard(status: ExitStatus) {
    if let Some(signal) = status.signal().filter(|signal| matches!(*signal, SIGINT | SIGQUIT)) {
        // The command's own dump is enough.
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(Resource::Core, none).unwrap_or_default();
        // It does not return; if it did, the exit status says the same.
        emulate_default_handler(signal).unwrap_or_default();
    }
}

/// The command's exit status; 128 and the signal when one ended it, as shells have it.
pub(in crate::cli) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    let code = code.and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(code::INTERNAL))
}

/// A claim that would wait for itself, and what to do about it.
pub(super) fn deadlock(error: MutexError, code: u8) -> Failure {
    let is_same = matches!(&error, MutexError::Deadlock(cycle)
        if cycle.iter().all(|step| step.mutex == cycle[0].mutex));
    let hint = if is_same {
        "it is held already: leave the inner one out"
    } else {
        "name all mutexes at once: `baton mutex run a b -- …`"
    };
    Failure::new(code, error).hint(hint)
}

impl From<HolderError> for Failure {
    fn from(error: HolderError) -> Self {
        match error {
            HolderError::Mutex(error @ MutexError::Deadlock(_)) => deadlock(error, code::BUSY),
            HolderError::Mutex(error) => error.into(),
            HolderError::System(_) => Self::new(code::INTERNAL, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Whole {
        #[command(flatten)]
        args: RunArgs,
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_has_no_options_is_understood_without_the_parser_as_with_it() {
        for text in ["log -- true", "a b -- sh -c -- -x", "log --", "log -- -- x", " -- x"] {
            let parsed = Whole::try_parse_from([vec![OsString::from("run")], words(text)].concat());
            let (plain, parsed) = (RunArgs::plain(&words(text)).unwrap(), parsed.unwrap().args);
            assert_eq!(format!("{plain:?}"), format!("{parsed:?}"), "{text}");
        }
        for text in ["-s log -- true", "log -s -- true", "--help", "-- true", "log true", "-"] {
            assert!(RunArgs::plain(&words(text)).is_none(), "{text}");
        }
    }
}
