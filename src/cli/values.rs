//! `baton output` and `baton progress`: what a script says to baton while it runs. They speak with no
//! agent, and hold up nobody.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;

use super::failure::{Failure, code, complain};
use crate::mutex::os;
use crate::values::{self, MAX_VALUE_BYTES, Progress, file};

/// How long a script is held up at most by progress that nobody reads.
const PROGRESS_LIMIT: Duration = Duration::from_secs(1);

const OUTPUT_EXAMPLES: &str = "\
Examples:
  baton output version 1.2
  git log --oneline -5 | baton output changes -
  echo \"version=1.2\" >> \"$BATON_OUTPUT\"      the same as the first

Values come back with the outcome: baton show ID --json | jq .outcome.outputs";

/// Inside a script: give a value back to whoever started it
#[derive(Debug, Args)]
#[command(after_help = OUTPUT_EXAMPLES)]
pub(super) struct OutputArgs {
    /// The name: at most 255 bytes, without = and <<
    name: String,
    /// The value, at most 64 KiB; - reads standard input, without the newline at its end
    #[arg(allow_hyphen_values = true)]
    value: String,
}

/// Inside a script: say how far it is
///
/// It is shown by `baton run`, `queue` and `show`, and to all who watch. It never holds the script up and
/// never fails because of who reads it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton progress 40 copying
  echo \"40 copying\" > \"$BATON_PROGRESS\"      the same, without a process")]
pub(super) struct ProgressArgs {
    /// 0 to 100
    #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
    percent: u8,
    /// What it does, at most 160 characters
    #[arg(default_value = "")]
    message: String,
}

pub(super) fn output(args: &OutputArgs) -> Result<ExitCode, Failure> {
    let path = named_by("BATON_OUTPUT", "output")?;
    values::check_name(&args.name)
        .map_err(|problem| Failure::usage(format!("name {:?} {problem}", args.name)))?;
    let value = if args.value == "-" { read_value()? } else { args.value.clone() };
    if value.len() > MAX_VALUE_BYTES {
        let text = format!("the value has more than {MAX_VALUE_BYTES} bytes");
        return Err(Failure::usage(text).hint("put what is large into a file in $BATON_ARTIFACTS"));
    }
    append(&path, &file::write(&args.name, &value))
        .map_err(|error| Failure::new(code::INTERNAL, in_file(&path, error)))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn progress(args: &ProgressArgs) -> Result<ExitCode, Failure> {
    let path = named_by("BATON_PROGRESS", "progress")?;
    let progress = Progress::new(args.percent, &args.message)
        .ok_or_else(|| Failure::usage("PERCENT is more than 100"))?;
    // A script with `set -e` does not end because of this.
    if let Err(error) = send(&path, &progress.line()) {
        complain(&format!("baton: progress is not told: {error}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The file that a script's environment names.
fn named_by(variable: &str, command: &str) -> Result<PathBuf, Failure> {
    let path = std::env::var_os(variable).filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| {
        Failure::usage(format!("{variable} is not set: this is no script that baton runs")).hint(
            format!("`baton {command}` works inside scripts: baton run -c 'baton {command} …'"),
        )
    })
}

fn in_file(path: &Path, error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("file {}", path.display()))
}

/// Standard input, without the newline at its end.
fn read_value() -> Result<String, Failure> {
    let limit = u64::try_from(MAX_VALUE_BYTES).unwrap_or(u64::MAX);
    let mut value = Vec::new();
    // More than the limit and a newline is enough to know that it is too long.
    io::stdin().lock().take(limit + 2).read_to_end(&mut value)?;
    if value.ends_with(b"\n") {
        value.pop();
    }
    String::from_utf8(value).map_err(|_| Failure::usage("the value is not UTF-8"))
}

/// Appends whole, also beside others who do the same and behind half a line.
fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).mode(0o600).open(path)?;
    os::lock_exclusive(&file)?;
    let text = if has_half_a_line(&file)? { format!("\n{text}") } else { text.to_owned() };
    file.write_all(text.as_bytes())
}

fn has_half_a_line(file: &File) -> io::Result<bool> {
    let mut last = [0];
    let Some(at) = file.metadata()?.len().checked_sub(1) else { return Ok(false) };
    Ok(file.read_at(&mut last, at)? == 1 && last != *b"\n")
}

/// Writes a line into a named pipe, if somebody reads it.
fn send(path: &Path, line: &str) -> io::Result<()> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut pipe = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let mut polled = [PollFd::new(&pipe, PollFlags::OUT)];
    let limit = Timespec::try_from(PROGRESS_LIMIT).map_err(io::Error::other)?;
    rustix::event::poll(&mut polled, Some(&limit))?;
    // At once: it is shorter than what a pipe takes whole.
    pipe.write_all(line.as_bytes())
}
