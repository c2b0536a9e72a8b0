//! Reading a journal, also while it grows.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;

use super::JournalError;
use super::record::{self, FILE_HEADER_BYTES, HEADER_BYTES, Header, Kind, Verdict};
use crate::format::Newer;
use crate::script::Stream;
use crate::values::message::Level;

/// How much is read at once by who wants the output.
const READ_BYTES: usize = 64 * 1024;
/// How much is read at once by who hops from header to header.
const HOP_BYTES: usize = 4 * 1024;

/// A record as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Output of the script.
    Output {
        /// Where it was written.
        stream: Stream,
        /// What it is.
        level: Level,
        /// The bytes.
        data: Bytes,
        /// How many bytes of output come before.
        offset: u64,
        /// When it was read from the script.
        time: Timestamp,
    },
    /// An event of the supervisor.
    Event {
        /// What it wrote.
        payload: Bytes,
        /// When.
        time: Timestamp,
    },
}

/// Reads records in order, from an output offset on.
#[derive(Debug)]
pub struct Reader {
    cursor: Cursor,
    /// Output before this offset is left out.
    from: u64,
}

impl Reader {
    /// Opens a journal to read its output from `offset` on.
    ///
    /// # Errors
    /// When there is no journal, it can't be read, or there is less output so far.
    pub fn open_at_output(path: &Path, offset: u64) -> Result<Self, JournalError> {
        let mut cursor = Cursor::open(path, HOP_BYTES)?;
        while let Some(header) = cursor.header()? {
            // Events at that place are no output that was read already.
            let is_there = header.kind == Kind::Event && header.offset == offset;
            if is_there || header.next_offset() > offset || !cursor.has_payload(&header)? {
                break;
            }
            cursor.skip(&header);
        }
        let end = cursor.output_len;
        let has_more = match cursor.header()? {
            Some(header) => cursor.has_payload(&header)? && header.next_offset() > offset,
            None => false,
        };
        if offset > end && !has_more {
            return Err(JournalError::OffsetBeyondEnd { offset, end });
        }
        cursor.read_bytes = READ_BYTES;
        Ok(Self { cursor, from: offset })
    }

    /// The next record; `None`: no more so far, or the rest is damaged.
    ///
    /// # Errors
    /// When the file can't be read.
    #[expect(clippy::should_implement_trait, reason = "it may go on after a None")]
    pub fn next(&mut self) -> Result<Option<Record>, JournalError> {
        while let Some((header, payload)) = self.cursor.record()? {
            let time = time_of(&header);
            let (stream, level) = match header.kind {
                Kind::Event => return Ok(Some(Record::Event { payload, time })),
                Kind::Output(stream, level) => (stream, level),
            };
            let left_out = self.from.saturating_sub(header.offset);
            let left_out = usize::try_from(left_out).unwrap_or(usize::MAX).min(payload.len());
            if left_out < payload.len() {
                let data = payload.slice(left_out..);
                let offset = header.offset.max(self.from);
                return Ok(Some(Record::Output { stream, level, data, offset, time }));
            }
        }
        Ok(None)
    }

    /// How many bytes of output come before the place where the reader stands.
    pub fn offset(&self) -> u64 {
        self.cursor.output_len.max(self.from)
    }

    /// Whether the journal is damaged where the reader stands: what comes after is lost.
    pub fn is_damaged(&self) -> bool {
        self.cursor.damaged
    }
}

/// Where a journal can be gone on with: behind its last good record.
#[derive(Debug)]
pub(super) struct End {
    pub(super) salt: [u8; 8],
    pub(super) position: u64,
    pub(super) output_len: u64,
}

/// The end of a journal, every record checked whole; `None`: it has not even a whole head.
pub(super) fn end(path: &Path) -> Result<Option<End>, JournalError> {
    let mut cursor = Cursor::open(path, READ_BYTES)?;
    while cursor.record()?.is_some() {}
    let (position, output_len) = (cursor.position, cursor.output_len);
    Ok(cursor.salt()?.map(|salt| End { salt, position, output_len }))
}

/// Follows the events and the amount of output, without reading the output itself.
#[derive(Debug)]
pub struct EventScanner {
    path: PathBuf,
    cursor: Option<Cursor>,
}

impl EventScanner {
    /// A scanner of a journal that may not be there yet.
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned(), cursor: None }
    }

    /// The next event; `None`: no more so far, or the rest is damaged.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn next_event(&mut self) -> Result<Option<(Timestamp, Bytes)>, JournalError> {
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            None => match Cursor::open(&self.path, HOP_BYTES) {
                Ok(cursor) => self.cursor.insert(cursor),
                Err(JournalError::Missing) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        while let Some(header) = cursor.header()? {
            if header.kind == Kind::Event {
                return Ok(cursor.record()?.map(|(header, payload)| (time_of(&header), payload)));
            }
            if !cursor.has_payload(&header)? {
                return Ok(None);
            }
            cursor.skip(&header);
        }
        Ok(None)
    }

    /// How many bytes of output there are up to where the scanner stands.
    pub fn output_len(&self) -> u64 {
        self.cursor.as_ref().map_or(0, |cursor| cursor.output_len)
    }
}

fn time_of(header: &Header) -> Timestamp {
    Timestamp::from_nanosecond(header.time_ns.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A place in a journal: always between two records.
#[derive(Debug)]
struct Cursor {
    file: File,
    path: PathBuf,
    salt: Option<[u8; 8]>,
    /// Where the next record begins.
    position: u64,
    output_len: u64,
    damaged: bool,
    /// Bytes of the file; those from `start` on are the ones at `position`.
    buffer: Vec<u8>,
    start: usize,
    read_bytes: usize,
}

impl Cursor {
    fn open(path: &Path, read_bytes: usize) -> Result<Self, JournalError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(JournalError::Missing),
            Err(source) => return Err(JournalError::File { path: path.to_owned(), source }),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            salt: None,
            position: 0,
            output_len: 0,
            damaged: false,
            buffer: Vec::new(),
            start: 0,
            read_bytes,
        })
    }

    /// The next record's header, if it is there and good.
    fn header(&mut self) -> Result<Option<Header>, JournalError> {
        let Some(salt) = self.salt()? else {
            return Ok(None);
        };
        if self.damaged || !self.fill(HEADER_BYTES)? {
            return Ok(None);
        }
        match Header::decode(self.ahead(), salt) {
            Verdict::Whole(header) => Ok(Some(header)),
            Verdict::Cut => Ok(None),
            Verdict::Damaged => {
                self.damaged = true;
                Ok(None)
            }
        }
    }

    /// The next record, checked whole; goes behind it.
    fn record(&mut self) -> Result<Option<(Header, Bytes)>, JournalError> {
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        let whole = HEADER_BYTES + header.length;
        if !self.fill(whole)? {
            return Ok(None);
        }
        let payload = Bytes::copy_from_slice(&self.ahead()[HEADER_BYTES..whole]);
        if !header.owns(&payload) {
            self.damaged = true;
            return Ok(None);
        }
        self.skip(&header);
        Ok(Some((header, payload)))
    }

    /// Goes behind a record.
    fn skip(&mut self, header: &Header) {
        self.advance(HEADER_BYTES + header.length);
        self.output_len = header.next_offset();
    }

    /// Whether the file goes on to the end of the record.
    fn has_payload(&self, header: &Header) -> Result<bool, JournalError> {
        let whole = HEADER_BYTES + header.length;
        if self.ahead().len() >= whole {
            return Ok(true);
        }
        let size = self.file.metadata().map_err(|source| self.failed(source))?.len();
        Ok(size.saturating_sub(self.position) >= u64::try_from(whole).unwrap_or(u64::MAX))
    }

    fn salt(&mut self) -> Result<Option<[u8; 8]>, JournalError> {
        if self.salt.is_none() && !self.damaged && self.fill(FILE_HEADER_BYTES)? {
            match record::salt(self.ahead()) {
                Verdict::Whole(salt) => {
                    self.salt = Some(salt);
                    self.advance(FILE_HEADER_BYTES);
                }
                Verdict::Cut => {}
                Verdict::Damaged => {
                    self.check_version()?;
                    self.damaged = true;
                }
            }
        }
        Ok(self.salt)
    }

    /// A newer journal is whole, and not understood: neither damaged nor empty.
    fn check_version(&self) -> Result<(), JournalError> {
        let found = record::version(self.ahead()).unwrap_or_default();
        Newer::check(found, record::VERSION, None)
            .map_err(|source| JournalError::Newer { path: self.path.clone(), source })
    }

    fn advance(&mut self, count: usize) {
        self.position += u64::try_from(count).unwrap_or(u64::MAX);
        self.start = self.buffer.len().min(self.start + count);
    }

    fn ahead(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Reads on until there are `count` bytes ahead. `false`: the file has no more so far.
    fn fill(&mut self, count: usize) -> Result<bool, JournalError> {
        while self.ahead().len() < count {
            self.buffer.drain(..self.start);
            self.start = 0;
            let have = self.buffer.len();
            let at = self.position + u64::try_from(have).unwrap_or(u64::MAX);
            self.buffer.resize(have + self.read_bytes.max(count - have), 0);
            let read = self.file.read_at(&mut self.buffer[have..], at);
            self.buffer.truncate(have + read.as_ref().map_or(0, |read| *read));
            match read {
                Ok(0) => {
                    // The writer takes back a record that it could not finish: what was read of it
                    // must not be mixed with the one that comes in its place.
                    self.buffer.clear();
                    return Ok(false);
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(true)
    }

    fn failed(&self, source: io::Error) -> JournalError {
        JournalError::File { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Limits, Writer};
    use crate::script::DropCause;

    const NO_LIMIT: Limits = Limits { max_bytes: u64::MAX, min_free_bytes: 0 };

    fn now() -> Timestamp {
        Timestamp::now()
    }

    /// A journal with output and events; returns its path and the output.
    fn sample(root: &Path) -> (PathBuf, Vec<u8>) {
        let path = root.join("output.journal");
        let mut writer = Writer::create(&path, NO_LIMIT).unwrap();
        writer.append_event(b"first", now()).unwrap();
        writer.append_output(Stream::Stdout, b"hello ", now());
        writer.append_output(Stream::Stderr, b"\x00\xff", now());
        writer.append_event(b"second", now()).unwrap();
        writer.append_output(Stream::Stdout, b"world\n", now());
        (path, b"hello \x00\xffworld\n".to_vec())
    }

    /// All output from an offset on, and whether the journal is damaged.
    fn output(path: &Path, offset: u64) -> (Vec<u8>, bool) {
        let mut reader = Reader::open_at_output(path, offset).unwrap();
        let mut all = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            if let Record::Output { data, offset: at, .. } = record {
                assert_eq!(at, offset + u64::try_from(all.len()).unwrap());
                all.extend_from_slice(&data);
            }
        }
        (all, reader.is_damaged())
    }

    fn events(path: &Path) -> Vec<Bytes> {
        let mut scanner = EventScanner::open(path);
        std::iter::from_fn(|| scanner.next_event().unwrap()).map(|(_, payload)| payload).collect()
    }

    #[test]
    fn a_journal_is_gone_on_with_behind_its_last_good_record() {
        let root = tempfile::tempdir().unwrap();
        let (path, whole) = sample(root.path());
        let len = std::fs::metadata(&path).unwrap().len();
        for cut in [0, 1, 7] {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(len - cut).unwrap();
            // The last record is whole, or it is gone.
            let kept = if cut == 0 { whole.len() } else { 8 };
            let limits = Limits { max_bytes: 20, ..NO_LIMIT };
            let mut writer = Writer::resume(&path, limits, Some((DropCause::Disk, 3))).unwrap();
            writer.append_event(b"third", now()).unwrap();
            writer.append_output(Stream::Stdout, b"0123456789", now());
            let mut all = whole[..kept].to_vec();
            all.extend_from_slice(&b"0123456789"[..10.min(20 - kept)]);
            assert_eq!(output(&path, 0), (all.clone(), false), "{cut}");
            assert_eq!(output(&path, 10).0, all[10..], "{cut}");
            let dropped = 3 + kept + 10 - all.len();
            assert_eq!(writer.dropped(), Some((DropCause::Disk, dropped.try_into().unwrap())));
            std::fs::remove_file(&path).unwrap();
            sample(root.path());
        }
        std::fs::remove_file(&path).unwrap();
        let mut writer = Writer::resume(&path, NO_LIMIT, None).unwrap();
        writer.append_output(Stream::Stdout, b"new", now());
        assert_eq!(output(&path, 0), (b"new".to_vec(), false));
    }

    #[test]
    fn rule_5_output_resumes_at_every_offset() {
        let root = tempfile::tempdir().unwrap();
        let (path, all) = sample(root.path());
        for offset in 0..=all.len() {
            let from = u64::try_from(offset).unwrap();
            assert_eq!(output(&path, from), (all[offset..].to_vec(), false), "from {offset}");
        }
        let beyond = Reader::open_at_output(&path, 15);
        assert!(matches!(beyond, Err(JournalError::OffsetBeyondEnd { offset: 15, end: 14 })));
        assert_eq!(events(&path), ["first", "second"]);
    }

    #[test]
    fn rule_2_a_journal_that_is_cut_anywhere_is_a_shorter_one() {
        let root = tempfile::tempdir().unwrap();
        let (path, all) = sample(root.path());
        let bytes = std::fs::read(&path).unwrap();
        let cut = root.path().join("cut");
        for length in 0..bytes.len() {
            durable_write(&cut, &bytes[..length]);
            let (part, damaged) = output(&cut, 0);
            assert!(all.starts_with(&part) && part.len() < all.len(), "cut at {length}");
            assert!(!damaged, "cut at {length}");
            assert!(["first", "second"].map(Bytes::from).starts_with(&events(&cut)));
        }
    }

    #[test]
    fn rule_2_no_flipped_bit_becomes_output() {
        let root = tempfile::tempdir().unwrap();
        let (path, all) = sample(root.path());
        let bytes = std::fs::read(&path).unwrap();
        let flipped = root.path().join("flipped");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            durable_write(&flipped, &damaged);
            if record::version(&damaged).is_some_and(|version| version > record::VERSION) {
                let error = Reader::open_at_output(&flipped, 0).unwrap_err();
                assert!(matches!(error, JournalError::Newer { .. }), "bit {bit}");
                continue;
            }
            let (part, _) = output(&flipped, 0);
            assert!(all.starts_with(&part) && part.len() <= all.len(), "bit {bit}");
        }
    }

    fn durable_write(path: &Path, bytes: &[u8]) {
        crate::durable::replace_file(path, bytes, 0o600).unwrap();
    }

    #[test]
    fn rule_3_a_journal_in_the_output_is_output() {
        let root = tempfile::tempdir().unwrap();
        let (inner, _) = sample(root.path());
        let bytes = std::fs::read(&inner).unwrap();
        let outer = root.path().join("outer");
        let mut writer = Writer::create(&outer, NO_LIMIT).unwrap();
        writer.append_output(Stream::Stdout, &bytes, now());
        assert_eq!(output(&outer, 0).0, bytes);
        assert_eq!(events(&outer), Vec::<Bytes>::new());
    }

    #[test]
    fn rule_4_output_over_the_limit_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("j");
        let mut writer = Writer::create(&path, Limits { max_bytes: 5, ..NO_LIMIT }).unwrap();
        writer.append_output(Stream::Stdout, b"abc", now());
        writer.append_output(Stream::Stdout, b"defg", now());
        writer.append_output(Stream::Stdout, b"h", now());
        assert_eq!(writer.dropped(), Some((DropCause::Limit, 3)));
        assert_eq!(output(&path, 0).0, b"abcde");
    }

    #[test]
    fn rule_4_room_on_the_disk_is_left_for_others() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("j");
        let disk = rustix::fs::statvfs(root.path()).unwrap();
        // More than a twentieth of the disk is not left: a test's has more free than that.
        let all = Limits { min_free_bytes: u64::MAX, ..NO_LIMIT };
        let mut writer = Writer::create(&path, all).unwrap();
        writer.append_output(Stream::Stdout, b"abc", now());
        let is_nearly_full = disk.f_bavail < disk.f_blocks / 20;
        let dropped = is_nearly_full.then_some((DropCause::FreeSpace, 3));
        assert_eq!(writer.dropped(), dropped);
    }

    #[test]
    fn a_reader_goes_on_where_the_writer_does() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("j");
        let mut writer = Writer::create(&path, NO_LIMIT).unwrap();
        let mut reader = Reader::open_at_output(&path, 0).unwrap();
        assert_eq!(reader.next().unwrap(), None);
        let large = vec![7; 3 * record::MAX_PAYLOAD_BYTES];
        writer.append_output(Stream::Stdout, &large, now());
        let mut read = 0;
        while let Some(Record::Output { data, .. }) = reader.next().unwrap() {
            read += data.len();
        }
        assert_eq!(read, large.len());
        let mut scanner = EventScanner::open(&path);
        assert_eq!(scanner.next_event().unwrap(), None);
        assert_eq!(scanner.output_len(), u64::try_from(large.len()).unwrap());
    }

    #[test]
    fn a_journal_is_begun_once() {
        let root = tempfile::tempdir().unwrap();
        let (path, _) = sample(root.path());
        assert!(matches!(Writer::create(&path, NO_LIMIT), Err(JournalError::NotEmpty(_))));
    }
}
