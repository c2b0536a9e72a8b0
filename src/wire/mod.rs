//! The messages of `proto/baton/v1` as Rust types, and their conversions to and from the nouns.

mod artifacts;
mod config;
mod file;
mod outcome;
mod package;
mod role;
mod snapshot;
mod spec;
mod stored;
mod upgrade;
mod values;

use std::time::Duration;

use jiff::Timestamp;

pub use config::config_keys;
pub(crate) use outcome::drop_cause;
pub use role::role;
pub use stored::{Stored, decode_stored, encode_spec, erase, pad_again};

/// The generated messages, clients and servers.
#[expect(
    unused_qualifications,
    clippy::pedantic,
    clippy::as_conversions,
    clippy::allow_attributes,
    clippy::large_enum_variant,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("baton.v1");
}

/// The encoded descriptors, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// A message that another version of baton, or none, must have written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is no message of this kind.
    #[error("message can't be decoded")]
    Decode(#[from] prost::DecodeError),
    /// A field breaks a rule.
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    /// A field that must be there isn't.
    #[error("field {0} is missing or not known")]
    Field(&'static str),
}

/// A time as a message.
pub fn to_timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// A message as a time; `None` when it is out of range.
pub fn from_timestamp(time: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// A time span as a message.
pub fn to_duration(time: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: time.subsec_nanos().cast_signed() }
}

/// A message as a time span; `None` when it is negative.
pub fn from_duration(time: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(time).ok()
}
