//! Pure: what a lease is opened with, and how it may end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Problem, SpecError};
use crate::script::check_text;

/// What a lease is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseTerms {
    /// How long its client may be silent.
    pub ttl: Duration,
    /// Why it is held, for people; may be empty.
    pub reason: String,
}

impl LeaseTerms {
    /// The time-to-live of a lease whose request gives none.
    pub const DEFAULT_TTL: Duration = Duration::from_mins(1);
    /// The shortest time-to-live: a machine may be busy for a moment.
    pub const MIN_TTL: Duration = Duration::from_secs(1);
    /// The longest time-to-live: nobody may use the machine when the client vanished.
    pub const MAX_TTL: Duration = Duration::from_hours(1);
    /// The longest reason, in bytes.
    pub const MAX_REASON_BYTES: usize = 256;

    /// Checks what the types don't.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub(super) fn check(&self) -> Result<(), SpecError> {
        if !(Self::MIN_TTL..=Self::MAX_TTL).contains(&self.ttl) {
            let problem = Problem::Invalid("is out of range: 1 second to 1 hour");
            return Err(SpecError::new("ttl", problem));
        }
        check_text(&self.reason, Self::MAX_REASON_BYTES).map_err(|e| SpecError::new("reason", e))
    }
}

/// What becomes of the running scripts of a lease that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLeaseEnd {
    /// They go on to their end.
    Wait,
    /// They are cancelled.
    Cancel,
}
