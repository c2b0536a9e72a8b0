//! What a person or a program sees of a script that is followed: its output on the same streams,
//! waits on standard error, or all of it as JSON.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::failure::{Failure, code, complain, has_colours};
use super::show;
use crate::client::{Away, Heard};
use crate::script::{
    DropCause, Fate, Outcome, OutcomeKind, Phase, StartProblem, Straggler, Stream,
};
use crate::snapshot::Snapshot;
use crate::values::Progress;
use crate::values::message::Level;

/// How often the spinner turns.
const SPINNER_TICK: Duration = Duration::from_millis(100);

/// Writes to standard output and flushes.
pub(super) fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    // Its kind stays: a reader that is gone is no failure to tell.
    written.map_err(|error| io::Error::new(error.kind(), format!("standard output: {error}")))
}

/// Writes a line of JSON to standard output.
pub(super) fn write_json(value: &Value) -> io::Result<()> {
    write_out(format!("{value}\n").as_bytes())
}

/// Shows one script.
pub(super) struct Screen {
    json: bool,
    /// What people call the agent.
    agent: String,
    /// Whether people look at standard output, and not a program.
    is_seen: bool,
    spinner: Option<ProgressBar>,
    told: String,
    /// The processes that nothing ends, as they were told.
    stuck: Vec<Straggler>,
    /// Its supervisor, when it is stopped, as that was told.
    halted: Option<u32>,
    /// How far the script says that it is.
    progress: Option<Progress>,
    /// Whether the output ended with a whole line: a bar would write into a half one.
    at_start: bool,
    outcome: Option<Outcome>,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        let is_seen = io::stdout().is_terminal();
        let (told, stuck, progress) = (String::new(), Vec::new(), None);
        Self {
            json,
            agent: "the agent".to_owned(),
            is_seen,
            spinner: None,
            told,
            stuck,
            halted: None,
            progress,
            at_start: true,
            outcome: None,
        }
    }

    /// The same one, of an agent that people call so.
    pub(super) fn of(self, agent: &str) -> Self {
        Self { agent: agent.to_owned(), ..self }
    }

    /// Shows what was heard. It may block as long as nobody reads the output.
    pub(super) fn show(&mut self, heard: Heard) -> Result<(), Failure> {
        match heard {
            Heard::Script(script) => {
                if let Phase::Done(outcome) = &script.phase {
                    self.outcome = Some(outcome.clone());
                }
                if self.json {
                    let name = if script.phase.is_done() { "done" } else { script.phase.name() };
                    let event = json!({"event": name, "script": show::script_json(&script)});
                    return Ok(write_json(&event)?);
                }
                self.show_waits(&script);
                if script.stuck != self.stuck {
                    self.clear();
                    for left in &script.stuck {
                        complain(&format!("baton: {}", show::stuck(&script, left)));
                    }
                    self.stuck.clone_from(&script.stuck);
                }
                if let Some(pid) = script.halted.filter(|_| script.halted != self.halted) {
                    self.clear();
                    complain(&format!("baton: {}", show::halted(pid)));
                }
                self.halted = script.halted;
                self.progress = script.progress.filter(|_| !script.phase.is_done());
                self.show_progress();
            }
            Heard::Output { stream, level, data, offset } => {
                if self.json {
                    return Ok(write_json(&output_json(stream, level, &data, offset))?);
                }
                let shown = match stream {
                    Stream::Stdout if self.is_seen => paint(level, &data, has_colours()),
                    Stream::Stdout | Stream::Stderr => Some(data.to_vec()),
                };
                let Some(shown) = shown else { return Ok(()) };
                self.clear();
                match stream {
                    Stream::Stdout => write_out(&shown)?,
                    Stream::Stderr => io::stderr().lock().write_all(&shown)?,
                }
                self.at_start = data.ends_with(b"\n");
                self.show_progress();
            }
            Heard::OutputMissing { offset, bytes, cause } => {
                if self.json {
                    return Ok(write_json(&missing_json(offset, bytes, cause))?);
                }
                self.clear();
                complain(&missing(offset, bytes, cause));
            }
            Heard::Away(away) => self.show_away(&away)?,
            Heard::Back { since } => self.show_back(since)?,
        }
        Ok(())
    }

    /// Tells that the agent is away: on a terminal in one line, in which the time goes on.
    fn show_away(&mut self, away: &Away) -> Result<(), Failure> {
        if self.json {
            let Away { since, until, why } = away;
            let event = json!({"event": "away", "since": since, "until": until, "why": why});
            return Ok(write_json(&event)?);
        }
        self.clear();
        // What it waited for is told again when it is back.
        self.told.clear();
        let now = Timestamp::now();
        if self.at_start && io::stderr().is_terminal() {
            let text = format!("{} is {}", self.agent, away.at(away.since));
            self.spinner = Some(spinner());
            if let Some(spinner) = &self.spinner {
                spinner.set_elapsed(show::between(away.since, now));
                spinner.set_message(text);
            }
        } else {
            complain(&format!("baton: {} is {}", self.agent, away.at(now)));
        }
        Ok(())
    }

    fn show_back(&mut self, since: Timestamp) -> Result<(), Failure> {
        if self.json {
            return Ok(write_json(&json!({"event": "back", "since": since}))?);
        }
        self.clear();
        complain(&format!("baton: {} is back after {}", self.agent, show::since(since)));
        Ok(())
    }

    /// Tells what the script waits for: at once and on each change.
    fn show_waits(&mut self, script: &Snapshot) {
        let waits = script.waits.iter();
        let told: Vec<_> = waits
            .map(|wait| match &wait.restart {
                Some(_) => format!("waiting: {}", wait.reason()),
                None => format!("waiting, position {}: {}", wait.position, wait.reason()),
            })
            .collect();
        let told = told.join("; ");
        if told == self.told {
            return;
        }
        self.told = told;
        if self.told.is_empty() {
            self.clear();
        } else if io::stderr().is_terminal() {
            self.spinner.get_or_insert_with(spinner).set_message(self.told.clone());
        } else {
            complain(&format!("baton: {}", self.told));
        }
    }

    /// Draws a bar below the output, on a terminal.
    fn show_progress(&mut self) {
        let Some(progress) = self.progress.as_ref().filter(|_| self.at_start) else { return };
        if io::stderr().is_terminal() {
            let bar = self.spinner.get_or_insert_with(bar);
            bar.set_position(progress.percent.into());
            bar.set_message(progress.message.clone());
        }
    }

    fn clear(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// Says how it ended, as far as the exit status doesn't, and returns that.
    pub(super) fn finish(mut self) -> ExitCode {
        self.clear();
        let Some(outcome) = &self.outcome else {
            return ExitCode::SUCCESS;
        };
        if !self.json {
            tell(outcome);
        }
        ExitCode::from(exit_code(&outcome.kind))
    }
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    // The template is ours and well-formed.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(SPINNER_TICK);
    spinner
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(100);
    // The template is ours and well-formed.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos:>3} % {wide_msg}") {
        bar.set_style(style);
    }
    bar
}

/// What ends a colour.
const RESET: &[u8] = b"\x1b[0m";

/// Output as people see it; `None`: they don't.
fn paint(level: Level, data: &[u8], colours: bool) -> Option<Vec<u8>> {
    let colour: &[u8] = match level {
        Level::Default => b"",
        Level::Verbose => b"\x1b[2m",
        Level::Highlight => b"\x1b[1m",
        Level::Wait => b"\x1b[36m",
        Level::Warning => b"\x1b[33m",
        Level::Error => b"\x1b[31m",
        Level::Ignored | Level::Message => return None,
    };
    if !colours || colour.is_empty() {
        return Some(data.to_vec());
    }
    Some([colour, data, RESET].concat())
}

fn missing_json(offset: u64, bytes: u64, cause: Option<DropCause>) -> Value {
    let mut event = json!({"event": "output_missing", "offset": offset, "bytes": bytes});
    if let Some(cause) = cause {
        event["cause"] = json!(cause);
    }
    event
}

fn missing(offset: u64, bytes: u64, cause: Option<DropCause>) -> String {
    if let Some(cause) = cause {
        return format!("baton: {bytes} bytes of output are missing at byte {offset}: {cause}");
    }
    let what = if bytes > 0 { format!("{bytes} bytes of output") } else { "output".to_owned() };
    format!("baton: {what} from byte {offset} on can't be read: the log on disk is cut or damaged")
}

fn tell(outcome: &Outcome) {
    if !matches!(outcome.kind, OutcomeKind::Exited { .. }) {
        complain(&format!("baton: {}", outcome.kind));
    }
    for straggler in &outcome.stragglers {
        let what = match straggler.fate {
            Fate::Ended => "ended what the script left running",
            Fate::Kept => "the script left running",
            Fate::Abandoned => "could not end what the script left running",
        };
        complain(&format!("baton: {what}: {} (pid {})", straggler.command, straggler.pid));
    }
    if outcome.output_dropped_bytes > 0 {
        let why = outcome.output_drop_cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        let bytes = outcome.output_dropped_bytes;
        complain(&format!("baton: {bytes} bytes of output were not kept{why}"));
    }
    for line in show::values(&outcome.values) {
        complain(&format!("baton: {line}"));
    }
}

/// The exit status that tells an outcome.
pub(super) fn exit_code(outcome: &OutcomeKind) -> u8 {
    match outcome {
        OutcomeKind::Exited { code } => u8::try_from(*code).unwrap_or(code::INTERNAL),
        OutcomeKind::Signalled { signal } => u8::try_from(128 + *signal).unwrap_or(code::INTERNAL),
        OutcomeKind::Cancelled { .. } => code::CANCELLED,
        OutcomeKind::TimedOut { .. } => code::TIMED_OUT,
        OutcomeKind::QueueTimedOut { .. } => code::BUSY,
        OutcomeKind::NotStarted { cause, .. } => match cause {
            StartProblem::NotFound => code::NOT_FOUND,
            StartProblem::NotExecutable => code::NOT_EXECUTABLE,
            StartProblem::Agent => code::INTERNAL,
            StartProblem::Lease => code::CANCELLED,
        },
        OutcomeKind::Lost { .. } => code::INTERNAL,
        OutcomeKind::LeaseClosed { .. } => 0,
        OutcomeKind::LeaseExpired { .. } => code::TIMED_OUT,
    }
}

/// Output as JSON: as text when it is UTF-8, else as base64.
fn output_json(stream: Stream, level: Level, data: &[u8], offset: u64) -> Value {
    let mut event = json!({"event": "output", "stream": stream, "offset": offset});
    if level != Level::Default {
        event["level"] = json!(level);
    }
    match std::str::from_utf8(data) {
        Ok(text) => event["text"] = json!(text),
        Err(_) => {
            event["base64"] = json!(base64::engine::general_purpose::STANDARD.encode(data));
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_levels_in_colours_and_no_messages() {
        assert_eq!(paint(Level::Default, b"x\n", true).unwrap(), b"x\n");
        assert_eq!(paint(Level::Warning, b"x\n", true).unwrap(), b"\x1b[33mx\n\x1b[0m");
        assert_eq!(paint(Level::Warning, b"x\n", false).unwrap(), b"x\n");
        assert_eq!(paint(Level::Message, b"##octopus[stdout-error]\n", true), None);
        assert_eq!(paint(Level::Ignored, b"x\n", false), None);
    }

    #[test]
    fn a_level_is_told_to_programs_when_there_is_one() {
        assert_eq!(output_json(Stream::Stdout, Level::Default, b"x", 0).get("level"), None);
        assert_eq!(output_json(Stream::Stdout, Level::Verbose, b"x", 0)["level"], "verbose");
    }
}
