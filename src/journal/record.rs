//! Pure: the bytes of a journal.
//!
//! ```text
//! file    │ magic 8 │ salt 8 │ record … │ record … │
//! record  │ header crc 4 │ payload crc 4 │ length 4 │ kind 1 │ level 1 │ zero 2 │ time 8 │ offset 8 │ payload │
//! ```
//!
//! All numbers are little endian. The header's checksum (CRC-32, begun with the salt) covers the rest
//! of the header, so also the payload's checksum. `time` is nanoseconds since 1970, signed; `offset`
//! is how many bytes of output come before. `kind` is 1 stdout, 2 stderr, 3 event; `level` is what a
//! piece of output is ([`Level`], 0 when nothing was said), one that is not known counts as 0.

use crate::script::Stream;
use crate::values::message::Level;

/// The levels by their number.
const LEVELS: [Level; 8] = [
    Level::Default,
    Level::Verbose,
    Level::Highlight,
    Level::Wait,
    Level::Warning,
    Level::Error,
    Level::Ignored,
    Level::Message,
];

/// What a journal begins with; the last byte before the newline is the version.
pub const MAGIC: [u8; 8] = *b"BATON-1\n";
/// The version in [`MAGIC`].
pub const VERSION: u64 = 1;
/// Magic and salt.
pub const FILE_HEADER_BYTES: usize = 16;
/// The header of a record.
pub const HEADER_BYTES: usize = 32;
/// The longest payload. Longer output is several records.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Output of the script, and what it is.
    Output(Stream, Level),
    /// An event of the supervisor.
    Event,
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the record holds.
    pub kind: Kind,
    /// When, in nanoseconds since 1970.
    pub time_ns: i64,
    /// How many bytes of output come before.
    pub offset: u64,
    /// The payload's length in bytes.
    pub length: usize,
    payload_crc: u32,
}

/// What stands where a record should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<T> {
    /// It.
    Whole(T),
    /// Its beginning at most: the journal's end, or it is still being written.
    Cut,
    /// Something else.
    Damaged,
}

/// The first bytes of a journal.
pub fn file_header(salt: [u8; 8]) -> [u8; FILE_HEADER_BYTES] {
    let mut bytes = [0; FILE_HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..].copy_from_slice(&salt);
    bytes
}

/// The version of a journal that begins with these bytes, if they are those of some version.
pub fn version(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.get(..8)?.strip_prefix(b"BATON-")?.strip_suffix(b"\n")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The salt of a journal that begins with these bytes.
pub fn salt(bytes: &[u8]) -> Verdict<[u8; 8]> {
    let Some((magic, salt)) = bytes.split_first_chunk::<8>() else {
        return Verdict::Cut;
    };
    match salt.first_chunk::<8>() {
        _ if *magic != MAGIC => Verdict::Damaged,
        Some(salt) => Verdict::Whole(*salt),
        None => Verdict::Cut,
    }
}

impl Header {
    /// The header for a payload of at most [`MAX_PAYLOAD_BYTES`].
    pub fn new(kind: Kind, time_ns: i64, offset: u64, payload: &[u8]) -> Self {
        let payload_crc = crc32fast::hash(payload);
        Self { kind, time_ns, offset, length: payload.len(), payload_crc }
    }

    /// Its bytes.
    pub fn encode(&self, salt: [u8; 8]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        // The length is at most MAX_PAYLOAD_BYTES, so it fits.
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        bytes[4..8].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12] = match self.kind {
            Kind::Output(Stream::Stdout, _) => 1,
            Kind::Output(Stream::Stderr, _) => 2,
            Kind::Event => 3,
        };
        bytes[13] = match self.kind {
            Kind::Output(_, level) => number(level),
            Kind::Event => 0,
        };
        bytes[16..24].copy_from_slice(&self.time_ns.to_le_bytes());
        bytes[24..].copy_from_slice(&self.offset.to_le_bytes());
        let crc = header_crc(salt, &bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header that these bytes begin with.
    pub fn decode(bytes: &[u8], salt: [u8; 8]) -> Verdict<Self> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Verdict::Cut;
        };
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let level = LEVELS.get(usize::from(bytes[13])).copied().unwrap_or_default();
        let kind = match bytes[12] {
            1 => Kind::Output(Stream::Stdout, level),
            2 => Kind::Output(Stream::Stderr, level),
            3 => Kind::Event,
            _ => return Verdict::Damaged,
        };
        let length = usize::try_from(u32_at(8)).unwrap_or(usize::MAX);
        if header_crc(salt, &bytes[4..]) != u32_at(0) || length > MAX_PAYLOAD_BYTES {
            return Verdict::Damaged;
        }
        Verdict::Whole(Self {
            kind,
            time_ns: u64_at(16).cast_signed(),
            offset: u64_at(24),
            length,
            payload_crc: u32_at(4),
        })
    }

    /// Whether this is the payload that belongs to the header.
    pub fn owns(&self, payload: &[u8]) -> bool {
        payload.len() == self.length && crc32fast::hash(payload) == self.payload_crc
    }

    /// How many bytes of output come before the next record.
    pub fn next_offset(&self) -> u64 {
        match self.kind {
            Kind::Output(..) => {
                self.offset.saturating_add(u64::try_from(self.length).unwrap_or(u64::MAX))
            }
            Kind::Event => self.offset,
        }
    }
}

fn number(level: Level) -> u8 {
    (0_u8..).zip(LEVELS).find_map(|(at, one)| (one == level).then_some(at)).unwrap_or(0)
}

fn header_crc(salt: [u8; 8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_magic_has_the_version() {
        assert_eq!(version(&MAGIC), Some(VERSION));
        assert_eq!(version(b"BATON-7\nmore"), Some(7));
        for other in [&b"BATON-"[..], b"BATON-x\n", b"BATON-12", b"baton-1\n"] {
            assert_eq!(version(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn a_header_reads_back_and_no_flipped_bit_passes(
            kind in prop_oneof![
                prop::sample::select(&LEVELS).prop_map(|level| Kind::Output(Stream::Stdout, level)),
                Just(Kind::Output(Stream::Stderr, Level::Default)),
                Just(Kind::Event)
            ],
            time_ns in any::<i64>(),
            offset in any::<u64>(),
            payload in prop::collection::vec(any::<u8>(), 0..300),
            salt in any::<[u8; 8]>(),
        ) {
            let header = Header::new(kind, time_ns, offset, &payload);
            let bytes = header.encode(salt);
            prop_assert_eq!(Header::decode(&bytes, salt), Verdict::Whole(header));
            prop_assert!(header.owns(&payload));
            prop_assert_eq!(Header::decode(&bytes[..HEADER_BYTES - 1], salt), Verdict::Cut);
            for bit in 0..HEADER_BYTES * 8 {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(Header::decode(&flipped, salt), Verdict::Damaged, "bit {}", bit);
            }
        }

        #[test]
        fn rule_3_another_salt_is_another_journal(salt in any::<[u8; 8]>(), bit in 0..64_usize) {
            let bytes = Header::new(Kind::Event, 1, 2, b"x").encode(salt);
            let mut other = salt;
            other[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Header::decode(&bytes, other), Verdict::Damaged);
        }
    }
}
