//! `[upgrade]` of `agent.toml`: whose new versions of the agent are taken.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{ConfigError, time, wrong};

/// How long a new version may take until it serves.
pub const DEFAULT_HEALTH_LIMIT: Duration = Duration::from_secs(30);
/// The bytes of a minisign public key: algorithm (2), key id (8), Ed25519 key (32).
const KEY_BYTES: usize = 42;

/// Whose new versions are taken, and how long one may take to come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Public keys of minisign, in base64; empty: no upgrade is taken.
    pub keys: Vec<String>,
    /// How long a new version may take until it serves.
    pub health_limit: Duration,
}

/// The table's shape.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpgradeTable {
    #[serde(default)]
    keys: Vec<String>,
    health_limit: Option<String>,
}

impl UpgradeTable {
    pub(super) fn resolve(self) -> Result<Upgrade, ConfigError> {
        let problem = "is no public key of minisign (the last line of minisign.pub)";
        for key in &self.keys {
            let is_key = STANDARD
                .decode(key)
                .is_ok_and(|bytes| bytes.len() == KEY_BYTES && bytes.starts_with(b"Ed"));
            if !is_key {
                return Err(wrong("upgrade.keys", key, &problem));
            }
        }
        let limit = self.health_limit.as_deref();
        let health_limit = time("upgrade.health_limit", limit, DEFAULT_HEALTH_LIMIT)?;
        if health_limit.is_zero() {
            return Err(wrong("upgrade.health_limit", &"0s", &"must not be zero"));
        }
        Ok(Upgrade { keys: self.keys, health_limit })
    }
}
