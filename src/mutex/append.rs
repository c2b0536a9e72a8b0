//! Appending lines to a file that many processes write: whole lines, in one write a batch, under a
//! named mutex. It needs no agent.
//!
//! 1. A line is in the file as a whole or not at all, also when the disk is full. It is a line of its
//!    own, also behind one that something else, or a writer that was killed, left without its end.
//! 2. Lines of one writer keep their order.
//! 3. With a limit the file is moved to `FILE.1` before it would grow over it.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::holder::{self, HolderError, Notice, Wish};
use super::{Blocked, Hold};

/// How much is read at once: the most that a pipe holds unless it was made larger.
const READ_BYTES: usize = 64 * 1024;
/// The longest line.
pub const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// Why lines could not be appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The mutex can't be used.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// The mutex was not obtained in time; these were in the way.
    #[error("mutex not obtained in time")]
    Busy(Vec<Blocked>),
    /// The input can't be read.
    #[error("input")]
    Input(#[source] io::Error),
    /// A line is longer than allowed.
    #[error("a line has more than {MAX_LINE_BYTES} bytes")]
    LongLine,
    /// The file can't be written.
    #[error("file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Appends the lines of `input` to the file at `path`; a last line without its end gets one. The mutex
/// is held for each batch only, so a slow input holds up nobody.
///
/// # Errors
/// What went wrong; lines before are in the file.
pub fn append(
    root: &Path,
    wish: &Wish,
    input: &mut impl Read,
    path: &Path,
    max_bytes: Option<u64>,
    mut tell: impl FnMut(Notice<'_>),
) -> Result<(), AppendError> {
    let mut pending = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let length = match input.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(AppendError::Input)?,
        };
        // What was there before has no end of a line.
        let known = pending.len();
        pending.extend_from_slice(&buffer[..length]);
        if length == 0 && !pending.is_empty() && !pending.ends_with(b"\n") {
            pending.push(b'\n');
        }
        let end = pending[known..].iter().rposition(|byte| *byte == b'\n');
        let whole = end.map_or(0, |end| known + end + 1);
        if whole > 0 {
            write_batch(root, wish, path, max_bytes, &pending[..whole], &mut tell)?;
            pending.drain(..whole);
        }
        if length == 0 {
            return Ok(());
        }
        if pending.len() > MAX_LINE_BYTES {
            return Err(AppendError::LongLine);
        }
    }
}

fn write_batch(
    root: &Path,
    wish: &Wish,
    path: &Path,
    max_bytes: Option<u64>,
    lines: &[u8],
    tell: impl FnMut(Notice<'_>),
) -> Result<(), AppendError> {
    let what = format!("append to {}", path.display());
    let hold: Hold = holder::acquire(root, wish, what, tell)?.map_err(AppendError::Busy)?;
    let written = write_lines(path, max_bytes, lines);
    hold.release().map_err(HolderError::from)?;
    written.map_err(|source| AppendError::File { path: path.to_owned(), source })
}

fn write_lines(path: &Path, max_bytes: Option<u64>, lines: &[u8]) -> io::Result<()> {
    let open = || {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o644);
        // Never waits for the reader of a pipe: everybody else waits for the mutex.
        let file = options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
        if file.metadata()?.file_type().is_fifo() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe"));
        }
        Ok(file)
    };
    let mut file = open()?;
    let size = file.metadata()?.len();
    let mut batch = Cow::Borrowed(lines);
    if lacks_end(path, size) {
        batch = [b"\n", lines].concat().into();
    }
    let grown = size.saturating_add(u64::try_from(batch.len()).unwrap_or(u64::MAX));
    if size > 0 && max_bytes.is_some_and(|limit| grown > limit) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        std::fs::rename(path, old)?;
        file = open()?;
        batch = Cow::Borrowed(lines);
    }
    let before = file.metadata()?.len();
    // Rule 1: what was written of a batch that does not fit is taken back.
    file.write_all(&batch).inspect_err(|_| take_back(&file, before))
}

/// Whether the last line of a file has no end. What may not be read counts as whole.
fn lacks_end(path: &Path, length: u64) -> bool {
    let Some(at) = length.checked_sub(1) else {
        return false;
    };
    let mut last = [0];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut last, at));
    read.is_ok() && last != *b"\n"
}

fn take_back(file: &File, length: u64) {
    file.set_len(length).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::super::{Claim, Mode};
    use super::*;

    fn wish() -> Wish {
        Wish::of(vec![Claim { name: "log".parse().unwrap(), mode: Mode::Exclusive }])
    }

    #[test]
    fn rule_1_a_last_line_without_its_end_gets_one_and_nothing_is_an_empty_batch() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let mutexes = root.path().join("mutex");
        append(&mutexes, &wish(), &mut &b""[..], &path, None, |_| {}).unwrap();
        assert!(!path.exists());
        append(&mutexes, &wish(), &mut &b"one\ntwo"[..], &path, None, |_| {}).unwrap();
        append(&mutexes, &wish(), &mut &b"three\n"[..], &path, None, |_| {}).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\n");
    }

    #[test]
    fn rule_1_a_line_without_its_end_is_ended_before_the_next_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let mutexes = root.path().join("mutex");
        File::create(&path).unwrap().write_all(b"whole\nof a killed writ").unwrap();
        for line in ["first\n", "second"] {
            append(&mutexes, &wish(), &mut line.as_bytes(), &path, Some(40), |_| {}).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "whole\nof a killed writ\nfirst\nsecond\n");
    }

    #[test]
    fn rule_1_a_disk_that_is_full_tears_no_line() {
        let path = Path::new("/dev/full");
        let root = tempfile::tempdir().unwrap();
        let error = append(root.path(), &wish(), &mut &b"x\n"[..], path, None, |_| {}).unwrap_err();
        assert!(matches!(error, AppendError::File { .. }), "{error}");
    }

    #[test]
    fn rule_3_the_file_is_moved_before_it_grows_over_the_limit() {
        let root = tempfile::tempdir().unwrap();
        let (path, mutexes) = (root.path().join("file"), root.path().join("mutex"));
        for line in ["first\n", "second\n", "third\n"] {
            append(&mutexes, &wish(), &mut line.as_bytes(), &path, Some(13), |_| {}).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"third\n");
        assert_eq!(std::fs::read(root.path().join("file.1")).unwrap(), b"first\nsecond\n");
    }

    #[test]
    fn a_line_without_end_is_refused_in_the_end() {
        let root = tempfile::tempdir().unwrap();
        let mut endless = io::repeat(b'x');
        let path = root.path().join("file");
        let error = append(root.path(), &wish(), &mut endless, &path, None, |_| {}).unwrap_err();
        assert!(matches!(error, AppendError::LongLine), "{error}");
    }
}
