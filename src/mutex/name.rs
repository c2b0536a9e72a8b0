//! Pure: what a mutex may be called. A name is one component of a path, so nothing else gets in.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::script::{NameError, ScriptId, check_name, check_text, variable};

/// What the lines of leases begin with.
const LEASE: &str = "lease.";

/// The name of a mutex: 1 to 250 of the characters `A-Z a-z 0-9 . _ -`, not starting with a dot or a
/// dash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MutexName(String);

impl MutexName {
    /// How many bytes it may have: a folder's name on Linux has at most 255.
    pub const MAX_LEN: usize = 250;

    /// The mutex that holds the whole machine: the default of every script.
    pub fn machine() -> Self {
        Self("machine".to_owned())
    }

    /// The mutex that stands for an exclusive key: `web/prod` becomes `key.web_2Fprod`.
    ///
    /// Two different keys never become the same name: `_` itself is encoded too.
    pub fn for_key(key: &ExclusiveKey) -> Self {
        Self::encode("key.", key.0.as_bytes())
    }

    /// The line of the scripts of a lease, which stands in the agent's queue only: `lease.deploy-7`.
    pub fn for_lease(id: &ScriptId) -> Self {
        Self(format!("{LEASE}{id}"))
    }

    /// Whether it is such a line. A mutex that somebody named so is taken for one by the agent's queue;
    /// its scripts then wait there, and not on disk.
    pub fn is_lease_line(&self) -> bool {
        self.0.starts_with(LEASE)
    }

    /// The mutex under which something runs once: `migrate/web` becomes `once.migrate_2Fweb`.
    pub fn for_once(key: &ExclusiveKey) -> Self {
        Self::encode("once.", key.0.as_bytes())
    }

    /// The mutex in whose line those stand who lock the file at this path: `/run/web` becomes
    /// `flock._2Frun_2Fweb`, and a path that is too long for that `flock.sha256-` and its digest.
    pub fn for_file(path: &[u8]) -> Self {
        let mut name = Self::encode("flock.", path);
        if name.0.len() > Self::MAX_LEN {
            "flock.sha256-".clone_into(&mut name.0);
            for byte in Sha256::digest(path) {
                // Writing into a String can't fail.
                write!(name.0, "{byte:02x}").unwrap_or_default();
            }
        }
        name
    }

    fn encode(prefix: &str, text: &[u8]) -> Self {
        let mut name = String::from(prefix);
        for &byte in text {
            if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' {
                name.push(char::from(byte));
            } else {
                // Writing into a String can't fail.
                write!(name, "_{byte:02X}").unwrap_or_default();
            }
        }
        Self(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a part of an environment variable's: `iis-metabase` becomes `IIS_METABASE`.
    pub fn as_variable(&self) -> String {
        variable(&self.0)
    }

    /// Whether it is the machine mutex.
    pub fn is_machine(&self) -> bool {
        self.0 == "machine"
    }
}

impl FromStr for MutexName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text, Self::MAX_LEN)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for MutexName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        check_name(&text, Self::MAX_LEN)?;
        Ok(Self(text))
    }
}

impl From<MutexName> for String {
    fn from(name: MutexName) -> Self {
        name.0
    }
}

impl fmt::Display for MutexName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Two scripts with the same key never run together: free text such as `web/prod`, 1 to 80 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExclusiveKey(String);

impl ExclusiveKey {
    /// How many bytes it may have: each becomes at most three of a mutex name.
    pub const MAX_LEN: usize = 80;

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExclusiveKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for ExclusiveKey {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        check_text(&text, Self::MAX_LEN)?;
        Ok(Self(text))
    }
}

impl From<ExclusiveKey> for String {
    fn from(key: ExclusiveKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(key: &str) -> String {
        MutexName::for_key(&key.parse().unwrap()).to_string()
    }

    #[test]
    fn a_key_becomes_a_readable_name() {
        assert_eq!(named("web/prod"), "key.web_2Fprod");
        assert_eq!(named("web_prod"), "key.web_5Fprod");
        assert_eq!(named("../x"), "key..._2Fx");
    }

    #[test]
    fn the_longest_key_still_is_a_name() {
        let name = named(&"ä".repeat(ExclusiveKey::MAX_LEN / 2));
        assert!(name.parse::<MutexName>().is_ok(), "{name}");
    }

    #[test]
    fn a_file_s_path_becomes_a_name_that_no_other_path_has() {
        let named = |path: &str| MutexName::for_file(path.as_bytes()).to_string();
        assert_eq!(named("/run/web_1.lock"), "flock._2Frun_2Fweb_5F1.lock");
        let long = format!("/{}", "x".repeat(300));
        let (one, other) = (named(&long), named(&format!("{long}x")));
        assert!(one.starts_with("flock.sha256-") && one != other);
        assert!(one.parse::<MutexName>().is_ok() && named("/").parse::<MutexName>().is_ok());
    }

    proptest::proptest! {
        #[test]
        fn different_keys_have_different_names(a in "[ -~ä]{1,40}", b in "[ -~ä]{1,40}") {
            proptest::prop_assert_eq!(a == b, named(&a) == named(&b));
        }
    }

    #[test]
    fn a_name_is_one_safe_path_component() {
        for bad in ["", ".", "..", "a/b", "a\0", "a\n", ".hidden", &"x".repeat(251)] {
            assert!(bad.parse::<MutexName>().is_err(), "{bad:?}");
        }
        assert!("log".parse::<MutexName>().is_ok());
    }

    #[test]
    fn a_key_has_no_control_characters() {
        for bad in ["", "a\nb", "a\0b", &"x".repeat(81)] {
            assert!(bad.parse::<ExclusiveKey>().is_err(), "{bad:?}");
        }
    }
}
