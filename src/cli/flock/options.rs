//! Pure: the command line of flock(1).
//!
//! Read as getopt_long reads it: options end at the first word that is none, short ones may be joined
//! (`-nw5`), long ones may be cut short (`--non`). What stands behind FILE is the command's.

use std::ffi::OsString;
use std::time::Duration;

/// What is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wanted {
    Help,
    Version,
    Lock(Options),
}

/// How and what to lock.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Options {
    pub(super) kind: Kind,
    pub(super) no_wait: bool,
    pub(super) limit: Option<Limit>,
    pub(super) conflict_exit_code: u8,
    pub(super) start: Start,
    pub(super) verbose: bool,
    pub(super) form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exclusive,
    Shared,
    Unlock,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Time(Duration),
    /// A number, but none that a timer takes: flock(1) says so only when the file is open.
    Impossible,
}

/// How the command is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Inheriting,
    /// Without the lock's descriptor.
    Closed,
    /// In the place of this process.
    NoFork,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    Descriptor(i32),
    /// FILE COMMAND ARGUMENT…
    Command(OsString, OsString, Vec<OsString>),
    /// FILE -c TEXT
    Shell(OsString, OsString),
}

/// A command line that flock(1) refuses as well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OptionError {
    #[error("a file and a command, or the number of a descriptor, is missing")]
    Nothing,
    #[error("unknown option {0}")]
    Unknown(String),
    #[error("option {0} may mean {1}")]
    Ambiguous(String, String),
    #[error("option {0} needs a value")]
    NoValue(String),
    #[error("option {0} takes no value")]
    Value(String),
    #[error("time {0:?} is not a number of seconds")]
    Time(String),
    #[error("exit code {0:?} is not 0 to 255")]
    ExitCode(String),
    #[error("--close and --no-fork exclude each other")]
    CloseAndNoFork,
    #[error("behind FILE {0} stands one command in one word")]
    OneCommand(String),
    #[error("{0:?} is not the number of a descriptor, and a command is missing")]
    Descriptor(String),
}

/// The long options and their letters. `V` and `h` as in flock(1); `v` has no letter there.
const LONG: [(&str, char); 13] = [
    ("shared", 's'),
    ("exclusive", 'x'),
    ("unlock", 'u'),
    ("nonblocking", 'n'),
    ("nb", 'n'),
    ("timeout", 'w'),
    ("wait", 'w'),
    ("conflict-exit-code", 'E'),
    ("close", 'o'),
    ("no-fork", 'F'),
    ("verbose", 'v'),
    ("help", 'h'),
    ("version", 'V'),
];
const SHORT: &str = "sxeunwEoFhV";

fn takes_value(letter: char) -> bool {
    matches!(letter, 'w' | 'E')
}

/// What options said so far.
#[derive(Debug)]
struct Said {
    kind: Kind,
    limit: Option<Limit>,
    conflict_exit_code: u8,
    /// The letters of the others.
    flags: String,
}

/// Understands the words behind `flock`.
pub(super) fn parse(words: &[OsString]) -> Result<Wanted, OptionError> {
    if words.is_empty() {
        return Err(OptionError::Nothing);
    }
    let mut said =
        Said { kind: Kind::Exclusive, limit: None, conflict_exit_code: 1, flags: String::new() };
    let mut rest = words.iter();
    loop {
        let ahead = rest.clone();
        let word = match rest.next() {
            Some(word) if word == "--" => break,
            Some(word) if word.len() > 1 && word.as_encoded_bytes()[0] == b'-' => word,
            _ => {
                rest = ahead;
                break;
            }
        };
        // A value that is not UTF-8 is no number either.
        let word = word.to_string_lossy();
        let mut value = || rest.next().map(|value| value.to_string_lossy().into_owned());
        for (letter, value) in letters(&word, &mut value)? {
            match letter {
                'h' => return Ok(Wanted::Help),
                'V' => return Ok(Wanted::Version),
                _ => said.hear(letter, value)?,
            }
        }
    }
    said.conclude(rest.as_slice()).map(Wanted::Lock)
}

/// The options of a word, with their values.
fn letters(
    word: &str,
    next: &mut impl FnMut() -> Option<String>,
) -> Result<Vec<(char, String)>, OptionError> {
    if let Some(long) = word.strip_prefix("--") {
        return Ok(vec![long_option(long, next)?]);
    }
    let mut found = Vec::new();
    let mut rest = word[1..].chars();
    while let Some(letter) = rest.next() {
        let name = format!("-{letter}");
        if !SHORT.contains(letter) {
            return Err(OptionError::Unknown(name));
        }
        let mut value = String::new();
        if takes_value(letter) {
            value = match rest.as_str() {
                "" => next().ok_or(OptionError::NoValue(name))?,
                joined => joined.to_owned(),
            };
            rest = "".chars();
        }
        found.push((letter, value));
    }
    Ok(found)
}

fn long_option(
    text: &str,
    next: &mut impl FnMut() -> Option<String>,
) -> Result<(char, String), OptionError> {
    let (name, joined) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    let shown = format!("--{name}");
    let exact = LONG.iter().filter(|(long, _)| *long == name);
    let mut meant: Vec<_> = exact.copied().collect();
    if meant.is_empty() {
        meant = LONG.iter().filter(|(long, _)| long.starts_with(name)).copied().collect();
    }
    let Some((_, letter)) = meant.first().copied() else {
        return Err(OptionError::Unknown(shown));
    };
    if meant.iter().any(|(_, other)| *other != letter) {
        let names: Vec<_> = meant.iter().map(|(long, _)| format!("--{long}")).collect();
        return Err(OptionError::Ambiguous(shown, names.join(", ")));
    }
    match (takes_value(letter), joined) {
        (true, Some(value)) => Ok((letter, value)),
        (true, None) => Ok((letter, next().ok_or(OptionError::NoValue(shown))?)),
        (false, None) => Ok((letter, String::new())),
        (false, Some(_)) => Err(OptionError::Value(shown)),
    }
}

impl Said {
    fn hear(&mut self, letter: char, value: String) -> Result<(), OptionError> {
        match letter {
            's' => self.kind = Kind::Shared,
            'x' | 'e' => self.kind = Kind::Exclusive,
            'u' => self.kind = Kind::Unlock,
            'w' => self.limit = Some(limit(value)?),
            'E' => {
                let code = integer(&value).and_then(|code| u8::try_from(code).ok());
                self.conflict_exit_code = code.ok_or(OptionError::ExitCode(value))?;
            }
            flag => self.flags.push(flag),
        }
        Ok(())
    }

    /// With what stands behind the options.
    fn conclude(self, operands: &[OsString]) -> Result<Options, OptionError> {
        let start = match (self.flags.contains('o'), self.flags.contains('F')) {
            (true, true) => return Err(OptionError::CloseAndNoFork),
            (true, false) => Start::Closed,
            (false, true) => Start::NoFork,
            (false, false) => Start::Inheriting,
        };
        let form = match operands {
            [] => return Err(OptionError::Nothing),
            [number] => {
                let number = number.to_string_lossy();
                let number = integer(&number).ok_or(OptionError::Descriptor(number.into()))?;
                Form::Descriptor(number)
            }
            [file, flag, text @ ..] if flag == "-c" || flag == "--command" => match text {
                [text] => Form::Shell(file.clone(), text.clone()),
                _ => return Err(OptionError::OneCommand(flag.to_string_lossy().into())),
            },
            [file, program, arguments @ ..] => {
                Form::Command(file.clone(), program.clone(), arguments.to_vec())
            }
        };
        let (no_wait, verbose) = (self.flags.contains('n'), self.flags.contains('v'));
        let Self { kind, limit, conflict_exit_code, .. } = self;
        Ok(Options { kind, no_wait, limit, conflict_exit_code, start, verbose, form })
    }
}

/// A number as strtol(3) reads it: spaces before are skipped.
fn integer(text: &str) -> Option<i32> {
    text.trim_ascii_start().parse().ok()
}

/// Seconds; what is less than a microsecond is none.
fn limit(text: String) -> Result<Limit, OptionError> {
    let Ok(seconds) = text.trim_ascii_start().parse::<f64>() else {
        return Err(OptionError::Time(text));
    };
    let time = Duration::try_from_secs_f64(seconds).ok();
    // The timer counts seconds in 63 bits.
    let time = time.filter(|time| i64::try_from(time.as_secs()).is_ok());
    Ok(time.map_or(Limit::Impossible, |time| {
        Limit::Time(if time < Duration::from_micros(1) { Duration::ZERO } else { time })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    fn options(text: &str) -> Options {
        match parse(&words(text)) {
            Ok(Wanted::Lock(options)) => options,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn joined_and_cut_options_are_what_they_stand_for() {
        for (short, long) in [
            ("-nw5 9", "--nonblock --timeout 5 9"),
            ("-sE7 9", "--sh --conflict=7 9"),
            ("-n 9", "--nb 9"),
            ("-w 1 9", "--wait=1. 9"),
            ("-e 9", "--exclusive 9"),
            ("-o -- f true", "--clo f true"),
        ] {
            assert_eq!(options(short), options(long), "{short}");
        }
    }

    #[test]
    fn options_end_at_the_file() {
        let Form::Command(file, program, arguments) = options("-n f grep -s -c x").form else {
            panic!("no command");
        };
        assert_eq!((file, program, arguments), ("f".into(), "grep".into(), words("-s -c x")));
        assert_eq!(options("f --command ls").form, Form::Shell("f".into(), "ls".into()));
        assert_eq!(options("-- -1").form, Form::Descriptor(-1));
    }

    #[test]
    fn what_flock_refuses_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "is missing"),
            ("-n", "is missing"),
            ("-", "\"-\" is not the number"),
            ("9x", "\"9x\" is not the number"),
            ("99999999999", "is not the number"),
            ("-Z 9", "unknown option -Z"),
            ("-c true f", "unknown option -c"),
            ("--zzz 9", "unknown option --zzz"),
            ("--no 9", "--no may mean --nonblocking, --no-fork"),
            ("--ver 9", "may mean --verbose, --version"),
            ("-w", "-w needs a value"),
            ("--timeout", "--timeout needs a value"),
            ("--shared=1 9", "--shared takes no value"),
            ("-w 1s 9", "\"1s\" is not a number of seconds"),
            ("-E 256 9", "\"256\" is not 0 to 255"),
            ("-E 0x5 9", "\"0x5\" is not 0 to 255"),
            ("-oF f true", "exclude each other"),
            ("f -c a b", "behind FILE -c stands one command"),
        ] {
            let error = parse(&words(text)).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_time_that_no_timer_takes_is_told_apart_from_nonsense() {
        let limit = |text: &str| options(&format!("-w {text} 9")).limit.unwrap();
        assert_eq!(limit("0.25"), Limit::Time(Duration::from_millis(250)));
        for zero in ["0", "-0", ".0", "1e-9"] {
            assert_eq!(limit(zero), Limit::Time(Duration::ZERO), "{zero}");
        }
        for impossible in ["-1", "-0.5", "inf", "nan", "1e30", "9223372036854775807"] {
            assert_eq!(limit(impossible), Limit::Impossible, "{impossible}");
        }
    }
}
