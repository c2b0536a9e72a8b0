//! How much is kept of scripts that are done: the table `[retention]` of `agent.toml`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::value::WrongValue;

/// How long a script that is done is kept: 30 days.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_hours(30 * 24);
/// How many scripts that are done are kept.
pub const DEFAULT_MAX_SCRIPTS: u64 = 10_000;
/// How much is kept of scripts that are done, workspaces and output together: 10 GiB.
pub const DEFAULT_MAX_BYTES: u64 = 10 << 30;
/// How long a script that is done is kept whatever the limits say: who runs it must be able to read
/// its end, also after an interruption.
pub const DEFAULT_MIN_AGE: Duration = Duration::from_mins(10);
/// What the number of scripts may be: all of them are counted again and again.
pub(super) const SCRIPT_COUNTS: RangeInclusive<u64> = 0..=1_000_000;

/// What is kept of scripts that are done. What is beyond one of the limits goes, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// How long; `None`: for ever.
    pub max_age: Option<Duration>,
    /// How many.
    pub max_scripts: u64,
    /// How much, workspaces and output together, in bytes.
    pub max_bytes: u64,
    /// How long whatever the others say.
    pub min_age: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age: Some(DEFAULT_MAX_AGE),
            max_scripts: DEFAULT_MAX_SCRIPTS,
            max_bytes: DEFAULT_MAX_BYTES,
            min_age: DEFAULT_MIN_AGE,
        }
    }
}

impl Retention {
    /// The key whose value contradicts another one, and why.
    pub(super) fn contradiction(&self) -> Option<(&'static str, WrongValue)> {
        let least = self.min_age;
        self.max_age.filter(|max_age| *max_age < least)?;
        let least = humantime::format_duration(least);
        let problem = format!("is less than retention.min_age, which is {least}");
        Some(("retention.max_age", WrongValue { problem, entry: None }))
    }
}
