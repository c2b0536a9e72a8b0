//! How much is kept of scripts that are done: the table `[retention]` of `agent.toml`.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, wrong};

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
pub const SCRIPT_COUNTS: RangeInclusive<u64> = 0..=1_000_000;

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

/// The table's shape.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionTable {
    max_age: Option<String>,
    max_scripts: Option<i64>,
    max_bytes: Option<i64>,
    min_age: Option<String>,
}

impl Retention {
    pub(super) fn resolve(table: RetentionTable) -> Result<Self, ConfigError> {
        let default = Self::default();
        let max_age = match table.max_age.as_deref() {
            None => default.max_age,
            Some("none") => None,
            Some(text) => Some(span("retention.max_age", text, ", or none")?),
        };
        let min_age = table.min_age.as_deref();
        let min_age =
            min_age.map_or(Ok(default.min_age), |text| span("retention.min_age", text, ""));
        let min_age = min_age?;
        if max_age.is_some_and(|max_age| max_age < min_age) {
            let least = humantime::format_duration(min_age);
            let text = table.max_age.unwrap_or_default();
            let problem = format!("is less than retention.min_age, which is {least}");
            return Err(wrong("retention.max_age", &text, &problem));
        }
        let max_scripts = table.max_scripts.map_or(Ok(default.max_scripts), |number| {
            let count = u64::try_from(number).ok().filter(|count| SCRIPT_COUNTS.contains(count));
            count.ok_or_else(|| {
                let problem =
                    format!("must be {} to {}", SCRIPT_COUNTS.start(), SCRIPT_COUNTS.end());
                wrong("retention.max_scripts", &number, &problem)
            })
        })?;
        let max_bytes = table.max_bytes.map_or(Ok(default.max_bytes), |number| {
            u64::try_from(number)
                .map_err(|_| wrong("retention.max_bytes", &number, &"must not be negative"))
        })?;
        Ok(Self { max_age, max_scripts, max_bytes, min_age })
    }
}

fn span(key: &'static str, text: &str, or: &str) -> Result<Duration, ConfigError> {
    humantime::parse_duration(text).map_err(|error| {
        wrong(key, &text, &format!("{error}; must be a time such as 30d or 12h{or}"))
    })
}
