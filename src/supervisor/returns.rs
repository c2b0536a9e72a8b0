//! What the running script gives back: service messages in its output, progress, the output file.
//!
//! 1. The script is never held up: its pipe for progress is read as it comes, and what is too much is
//!    remarked.
//! 2. The output file is read when the tree is gone, so nobody writes into it any more.
//! 3. Secrets are overwritten in whatever is shown: output, progress, remarks, command lines of processes. Outputs are
//!    what the script wants to be known.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use rustix::fs::OFlags;

use super::job::Ending;
use super::mask::{Mask, Masked};
use crate::journal::Writer;
use crate::script::{Straggler, Stream};
use crate::values::file::{self, MAX_FILE_BYTES};
use crate::values::message::{Messages, Piece, Said};
use crate::values::progress::{MAX_LINE_BYTES, Pace};
use crate::values::{Place, Problem, Progress, Values};
use crate::workspace::Workspace;

/// How much of the channel is read at once: many lines, since a busy script writes many.
const READ_BYTES: usize = 16 * 1024;
/// How often the channel is read at the end, should somebody go on writing into it.
const LAST_READS: usize = 8;

/// What a script gives back while it runs.
#[derive(Debug)]
pub(super) struct Returns {
    /// `None`: service messages are output like any other.
    messages: Option<Messages>,
    /// `None`: there is no pipe, or it can't be read.
    channel: Option<File>,
    /// The beginning of a line of the channel.
    line: Vec<u8>,
    pace: Pace,
    values: Values,
    mask: Mask,
    stdout: Masked,
    stderr: Masked,
}

impl Returns {
    pub(super) fn open(workspace: &Workspace, service_messages: bool, mask: Mask) -> Self {
        let messages = service_messages.then(Messages::default);
        // Open for both, so that it never ends.
        let channel = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(no_wait())
            .open(workspace.progress());
        let mut values = Values::default();
        // A workspace of an earlier version has none.
        if channel.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            values.remark(Place::Progress, Problem::Unreadable, "");
        }
        let (line, pace) = (Vec::new(), Pace::default());
        let (stdout, stderr) = (Masked::default(), Masked::default());
        Self { messages, channel: channel.ok(), line, pace, values, mask, stdout, stderr }
    }

    /// What becomes readable when the script says how far it is.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(File::as_fd)
    }

    /// Puts output into the journal.
    pub(super) fn keep(&mut self, stream: Stream, bytes: &[u8], journal: &mut Writer) {
        let masked = match stream {
            Stream::Stdout => self.stdout.push(bytes, &self.mask),
            Stream::Stderr => self.stderr.push(bytes, &self.mask),
        };
        self.pass(stream, &masked, journal);
    }

    fn pass(&mut self, stream: Stream, bytes: &[u8], journal: &mut Writer) {
        let Self { messages, pace, values, .. } = self;
        match messages.as_mut().filter(|_| stream == Stream::Stdout) {
            Some(messages) => messages.feed(bytes, &mut |piece| take(piece, pace, values, journal)),
            None => journal.append_output(stream, bytes, Timestamp::now()),
        }
    }

    /// How far the script is, when that is to be told now.
    pub(super) fn progress(&mut self, now: Instant) -> Option<Progress> {
        self.read_channel();
        let Progress { percent, message } = self.pace.due(now)?;
        Some(Progress { percent, message: self.mask.shown(&message) })
    }

    /// When [`Returns::progress`] has something.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.pace.deadline(now)
    }

    /// All that was given back, when the tree is gone.
    pub(super) fn finish(mut self, workspace: &Workspace, journal: &mut Writer) -> Values {
        for (stream, rest) in
            [(Stream::Stdout, self.stdout.rest()), (Stream::Stderr, self.stderr.rest())]
        {
            self.pass(stream, &rest, journal);
        }
        let Self { messages, pace, values, .. } = &mut self;
        if let Some(messages) = messages {
            messages.finish(&mut |piece| take(piece, pace, values, journal));
        }
        for _ in 0..LAST_READS {
            if !self.read_channel() {
                break;
            }
        }
        match read_file(&workspace.output()) {
            Ok(text) => file::read(&text, &mut self.values),
            // The script has removed it: it gives nothing back.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => self.values.remark(Place::File(0), Problem::Unreadable, ""),
        }
        let last = self.pace.last();
        self.values.progress = last.map(|Progress { percent, message }| Progress {
            percent,
            message: self.mask.shown(&message),
        });
        for remark in &mut self.values.remarks {
            remark.name = self.mask.shown(&remark.name);
        }
        self.values
    }

    /// Processes as they may be shown.
    pub(super) fn shown(&self, mut processes: Vec<Straggler>) -> Vec<Straggler> {
        for process in &mut processes {
            process.command = self.mask.shown(&process.command);
        }
        processes
    }

    /// Reads once what the channel has; whether there was something.
    fn read_channel(&mut self) -> bool {
        let Some(channel) = &mut self.channel else {
            return false;
        };
        let mut buffer = [0; READ_BYTES];
        let length = match channel.read(&mut buffer) {
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return true,
            Err(_) => 0,
        };
        for part in buffer[..length].split_inclusive(|byte| *byte == b'\n') {
            // One byte more than allowed is enough to know that it is too long.
            let room = (MAX_LINE_BYTES + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                if let Some(progress) = Progress::parse(&line)
                    && line.len() <= MAX_LINE_BYTES
                {
                    self.pace.reached(progress);
                } else {
                    let text = String::from_utf8_lossy(&line);
                    self.values.remark(Place::Progress, Problem::NotUnderstood, text.trim());
                }
            }
        }
        length > 0
    }
}

/// Keeps a piece of output and does what it says.
fn take(piece: Piece<'_>, pace: &mut Pace, values: &mut Values, journal: &mut Writer) {
    let here = Place::Message(journal.output_len());
    journal.append_output_of(Stream::Stdout, piece.level, piece.bytes, Timestamp::now());
    match piece.said {
        Some(Said::Output { name, value }) => values.set(here, &name, &value),
        Some(Said::Progress(progress)) => pace.reached(progress),
        Some(Said::Nothing(problem, name)) => values.remark(here, problem, &name),
        Some(Said::Level(_)) | None => {}
    }
}

/// Reads the output file as far as its limit, and a byte more, so that it is known to be longer.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // The script may have put anything in its place.
    let file = OpenOptions::new().read(true).custom_flags(no_wait()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text)?;
    Ok(text)
}

fn no_wait() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// The same end without what was given back; `None` when there was nothing.
pub(super) fn without_values(mut ending: Ending) -> Option<Ending> {
    let values = std::mem::take(&mut ending.outcome.values);
    ending.outcome.values.remark(Place::File(0), Problem::NoRoom, "");
    (!values.is_empty()).then_some(ending)
}

/// What a script that is lost had put into its output file, if that is whole: nobody saw it end.
pub fn outputs_left(workspace: &Workspace) -> Values {
    let text = read_file(&workspace.output()).unwrap_or_default();
    let mut values = Values::default();
    if text.ends_with(b"\n") {
        file::read(&text, &mut values);
    }
    if values.remarks.is_empty() { values } else { Values::default() }
}
