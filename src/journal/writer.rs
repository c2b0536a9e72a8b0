//! Writing a journal. One process, one thread, one [`Writer`].

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::{self, FILE_HEADER_BYTES, HEADER_BYTES, Header, Kind, MAX_PAYLOAD_BYTES};
use super::{JournalError, reader};
use crate::crash;
use crate::script::{DropCause, Stream};
use crate::values::message::Level;

/// How much output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of this script, in bytes.
    pub max_bytes: u64,
    /// How much room on the disk is left for others, in bytes; of a small disk at most a twentieth.
    pub min_free_bytes: u64,
}

/// After how much output it is looked again how much room there is.
const LOOK_AGAIN_BYTES: u64 = 1024 * 1024;

/// Appends records to a journal.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    salt: [u8; 8],
    /// Where the last whole record ends.
    end: u64,
    output_len: u64,
    limits: Limits,
    /// Until which length of the output there is room on the disk, as far as the last look saw.
    room_until: u64,
    dropped: Option<DropCause>,
    dropped_bytes: u64,
    /// Output that is missing where the writer stands.
    gap: Gap,
    mark: Option<Mark>,
}

/// The event that marks missing output at its place.
pub type Mark = fn(&Missing) -> Vec<u8>;

/// Output that was not kept, for the mark at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Why, here.
    pub cause: DropCause,
    /// How many bytes since the last mark.
    pub here: u64,
    /// How many bytes of the whole output so far.
    pub total: u64,
}

/// What is missing at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Gap {
    cause: Option<DropCause>,
    /// How many bytes no mark tells yet.
    untold: u64,
    is_marked: bool,
}

impl Writer {
    /// Begins a journal in a file that is empty or not there yet. Output beyond the limits is counted and
    /// not kept.
    ///
    /// # Errors
    /// When the file can't be written, or somebody else began it.
    pub fn create(path: &Path, limits: Limits) -> Result<Self, JournalError> {
        let failed = |source| JournalError::File { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        let mut file = options.open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > 0 {
            return Err(JournalError::NotEmpty(path.to_owned()));
        }
        let salt = random_salt();
        file.write_all(&record::file_header(salt)).map_err(failed)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            salt,
            end: bytes(FILE_HEADER_BYTES),
            output_len: 0,
            limits,
            room_until: 0,
            dropped: None,
            dropped_bytes: 0,
            gap: Gap::default(),
            mark: None,
        })
    }

    /// Goes on with a journal behind its last good record; one without a whole head is begun anew. `dropped`
    /// is what was not kept before.
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub fn resume(
        path: &Path,
        limits: Limits,
        dropped: Option<(DropCause, u64)>,
    ) -> Result<Self, JournalError> {
        let failed = |source| JournalError::File { path: path.to_owned(), source };
        let end = match reader::end(path) {
            Err(JournalError::Missing) => None,
            other => other?,
        };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        let file = file.map_err(failed)?;
        file.set_len(end.as_ref().map_or(0, |end| end.position)).map_err(failed)?;
        let mut writer = match end {
            None => Self::create(path, limits)?,
            Some(reader::End { salt, position, output_len }) => Self {
                file,
                path: path.to_owned(),
                salt,
                end: position,
                output_len,
                limits,
                room_until: 0,
                dropped: None,
                dropped_bytes: 0,
                gap: Gap::default(),
                mark: None,
            },
        };
        if let Some((cause, bytes)) = dropped {
            writer.dropped = Some(cause);
            writer.dropped_bytes = bytes;
        }
        Ok(writer)
    }

    /// Lets missing output be marked at its place: when the first of it is dropped, and before what comes
    /// after it.
    #[must_use]
    pub fn marking(self, mark: Mark) -> Self {
        Self { mark: Some(mark), ..self }
    }

    /// Appends output. What can't be kept is counted (rule 4).
    pub fn append_output(&mut self, stream: Stream, output: &[u8], time: Timestamp) {
        self.append_output_of(stream, Level::Default, output, time);
    }

    /// Appends output of a level.
    pub fn append_output_of(
        &mut self,
        stream: Stream,
        level: Level,
        output: &[u8],
        time: Timestamp,
    ) {
        for piece in output.chunks(MAX_PAYLOAD_BYTES) {
            let room = self.limits.max_bytes.saturating_sub(self.output_len);
            let kept = &piece[..piece.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
            let kept = if self.has_room() { kept } else { &[] };
            // Never behind a gap that is not marked.
            let written = if kept.is_empty() || !self.mark_gap(time) {
                0
            } else {
                self.append(Kind::Output(stream, level), kept, time).map_or(0, |()| kept.len())
            };
            if written > 0 {
                self.gap = Gap::default();
            }
            self.output_len += bytes(written);
            self.count_dropped(piece.len() - written, || {
                if bytes(piece.len()) > room {
                    DropCause::Limit
                } else if kept.is_empty() {
                    DropCause::FreeSpace
                } else {
                    DropCause::Disk
                }
            });
            if !self.gap.is_marked {
                self.mark_gap(time);
            }
        }
    }

    /// Marks what is missing here and not told yet; `false`: the disk refused.
    fn mark_gap(&mut self, time: Timestamp) -> bool {
        let (Some(mark), Some(cause)) = (self.mark, self.gap.cause) else { return true };
        if self.gap.untold == 0 {
            return true;
        }
        let missing = Missing { cause, here: self.gap.untold, total: self.dropped_bytes };
        let is_marked = self.append_event(&mark(&missing), time).is_ok();
        if is_marked {
            self.gap.untold = 0;
            self.gap.is_marked = true;
        }
        is_marked
    }

    /// What is missing at the end and not told yet. The caller tells it.
    pub fn untold(&self) -> u64 {
        self.gap.untold
    }

    fn count_dropped(&mut self, count: usize, cause: impl FnOnce() -> DropCause) {
        if count > 0 {
            let cause = cause();
            self.dropped_bytes += bytes(count);
            self.dropped.get_or_insert(cause);
            self.gap.untold += bytes(count);
            self.gap.cause.get_or_insert(cause);
        }
    }

    /// Whether the disk has more room than is to be left for others; it is looked rarely while it has.
    fn has_room(&mut self) -> bool {
        if self.output_len < self.room_until {
            return true;
        }
        // A system that can't say it has no floor.
        let Ok(disk) = rustix::fs::fstatvfs(&self.file) else { return true };
        let floor = self.limits.min_free_bytes.min(disk.f_blocks * disk.f_frsize / 20);
        let has_room = disk.f_bavail * disk.f_frsize >= floor;
        if has_room {
            self.room_until = self.output_len + LOOK_AGAIN_BYTES;
        }
        has_room
    }

    /// Appends an event of the supervisor.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub fn append_event(&mut self, event: &[u8], time: Timestamp) -> Result<(), JournalError> {
        let failed = |source| JournalError::File { path: self.path.clone(), source };
        if event.len() > MAX_PAYLOAD_BYTES {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        self.append(Kind::Event, event, time)
            .map_err(|source| JournalError::File { path: self.path.clone(), source })
    }

    /// How many bytes of output were kept so far.
    pub fn output_len(&self) -> u64 {
        self.output_len
    }

    /// How many bytes of output were not kept, and the first reason.
    pub fn dropped(&self) -> Option<(DropCause, u64)> {
        self.dropped.map(|cause| (cause, self.dropped_bytes))
    }

    /// Puts all that was appended on disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<(), JournalError> {
        let synced = self.file.sync_data();
        synced.map_err(|source| JournalError::File { path: self.path.clone(), source })
    }

    fn append(&mut self, kind: Kind, payload: &[u8], time: Timestamp) -> io::Result<()> {
        // Until the year 2262.
        let time_ns = i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX);
        let header = Header::new(kind, time_ns, self.output_len, payload).encode(self.salt);
        let whole = HEADER_BYTES + payload.len();
        if kind != Kind::Event && crash::is_due("mid record") {
            // Whatever came of it.
            drop(self.write(&header, &payload[..payload.len() / 2]));
            crash::die();
        }
        let written = self.write(&header, payload);
        if matches!(written, Ok(length) if length == whole) {
            self.end += bytes(whole);
            return Ok(());
        }
        // The disk is full: what was written of the record goes, so that later ones can be read.
        self.file.set_len(self.end)?;
        written.and(Err(io::ErrorKind::StorageFull.into()))
    }

    /// One write for a record, so that a reader rarely sees a part of it.
    fn write(&mut self, header: &[u8], payload: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write_vectored(&[IoSlice::new(header), IoSlice::new(payload)]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn random_salt() -> [u8; 8] {
    let random = uuid::Uuid::now_v7().into_bytes();
    let mut salt = [0; 8];
    // The second half of a UUID of version 7 is random.
    salt.copy_from_slice(&random[8..]);
    salt
}
