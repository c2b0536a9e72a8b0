//! `[upgrade]` of `agent.toml`: whose new versions of the agent are taken.

use std::time::Duration;

/// How long a new version may take until it serves.
pub const DEFAULT_HEALTH_LIMIT: Duration = Duration::from_secs(30);

/// Whose new versions are taken, and how long one may take to come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Public keys of minisign, in base64; empty: no upgrade is taken.
    pub keys: Vec<String>,
    /// How long a new version may take until it serves.
    pub health_limit: Duration,
}

impl Default for Upgrade {
    fn default() -> Self {
        Self { keys: Vec::new(), health_limit: DEFAULT_HEALTH_LIMIT }
    }
}
