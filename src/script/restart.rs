//! Pure: a script's wish for a restart of the machine.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::DropCause;

/// The most runs of one script: one that asks for a restart each time would keep its machine restarting.
pub const MAX_ATTEMPTS: u32 = 16;

/// That a script asked for a restart of the machine, to be run again after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Which of its attempts asked, from 1.
    pub attempt: u32,
    /// The run of the machine in which it did: in the next one it is run again.
    pub boot_id: String,
    /// When its attempt had ended.
    pub since: Timestamp,
    /// Why, for people; may be empty.
    pub reason: String,
    /// How many bytes of output were not kept so far, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<(DropCause, u64)>,
}

impl Restart {
    /// The attempt that runs after it.
    pub fn next_attempt(&self) -> u32 {
        self.attempt.saturating_add(1)
    }
}
