//! Pure: the line of a fleet-wide mutex as keys in etcd, and who stands in it.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::script::{NameError, check_text, variable};
use crate::text::shorten;

/// What all keys begin with.
const ROOT: &str = "baton/";
/// How much is shown of a text that another machine wrote.
const SHOWN_CHARS: usize = 80;

/// The name of a fleet-wide mutex: any text of 1 to 250 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LockName(String);

impl LockName {
    /// How many bytes it may have.
    pub const MAX_LEN: usize = 250;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a part of an environment variable's: `web/prod` becomes `WEB_PROD`.
    pub fn as_variable(&self) -> String {
        variable(&self.0)
    }

    /// What the keys of its line begin with. No line's begins with another one's: a slash in a name is
    /// encoded, as is all but letters, digits, dot, dash and underscore.
    pub(super) fn prefix(&self) -> String {
        let mut prefix = String::from(ROOT);
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') {
                prefix.push(char::from(byte));
            } else {
                // Writing into a String can't fail.
                write!(prefix, "%{byte:02X}").unwrap_or_default();
            }
        }
        prefix.push('/');
        prefix
    }

    /// The key of the place that lives by this lease.
    pub(super) fn key(&self, lease: i64) -> Vec<u8> {
        format!("{}{:x}", self.prefix(), lease.cast_unsigned()).into_bytes()
    }

    /// The first key behind the line: the slash's next is `0`.
    pub(super) fn range_end(&self) -> Vec<u8> {
        let mut end = self.prefix();
        end.pop();
        end.push('0');
        end.into_bytes()
    }
}

impl FromStr for LockName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        check_text(text, Self::MAX_LEN)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who wants or holds a fleet-wide mutex, as others are told: the value of its key, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Its user there.
    pub user: String,
    /// What it does.
    pub command: String,
    /// Why; may be empty.
    #[serde(default)]
    pub reason: String,
    /// Since when it stands in the line, by its machine's clock.
    pub waits_since: Timestamp,
    /// Since when it holds, by its machine's clock.
    #[serde(default)]
    pub holds_since: Option<Timestamp>,
}

impl Who {
    pub(super) fn to_value(&self) -> Vec<u8> {
        // Texts and numbers: it can't fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// In words: `root@web-1, pid 7 (make deploy): release 4`.
    pub fn describe(&self) -> String {
        let Self { host, pid, user, command, reason, .. } = self;
        let colon = if reason.is_empty() { "" } else { ": " };
        let text = format!("{user}@{host}, pid {pid} ({command}){colon}{reason}");
        shorten(&text, 3 * SHOWN_CHARS)
    }
}

/// A place in the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// The revision at which its key was made: its place, and once it holds its fencing number.
    pub place: u64,
    /// Who it is; `None`: the key's value is no such text.
    pub who: Option<Who>,
}

impl Party {
    pub(super) fn new(place: u64, value: &[u8]) -> Self {
        Self { place, who: serde_json::from_slice(value).ok() }
    }

    /// In words.
    pub fn describe(&self) -> String {
        self.who.as_ref().map_or_else(|| format!("key {}", self.place), Who::describe)
    }
}

/// Who stands before somebody in the line: the first one holds. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// Who holds.
    pub holder: Party,
    /// Who is just before.
    pub before: Party,
    /// How many are before: 1 for the next one.
    pub position: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> LockName {
        text.parse().unwrap()
    }

    #[test]
    fn no_line_is_a_part_of_another_one() {
        assert_eq!(name("a/b").prefix(), "baton/a%2Fb/");
        for (a, b) in [("a", "a/b"), ("a", "ab"), ("a%2F", "a/"), ("ä", "a"), ("a.b", "a")] {
            let (a, b) = (name(a), name(b));
            let range = a.prefix().into_bytes()..a.range_end();
            assert!(range.contains(&a.key(i64::MAX)) && range.contains(&a.key(-1)));
            assert!(!range.contains(&b.key(1)), "{a} {b}");
        }
    }

    #[test]
    fn a_name_is_any_text_on_one_line() {
        for bad in ["", "a\nb", &"x".repeat(251)] {
            assert!(bad.parse::<LockName>().is_err(), "{bad:?}");
        }
        assert_eq!(name("Acme/Web shop/Production").as_variable(), "ACME_WEB_SHOP_PRODUCTION");
    }

    #[test]
    fn who_it_is_survives_the_way_and_what_is_none_is_told_as_such() {
        let who = Who {
            host: "web-1".to_owned(),
            pid: 7,
            user: "root".to_owned(),
            command: "make\ndeploy".to_owned(),
            reason: String::new(),
            waits_since: Timestamp::UNIX_EPOCH,
            holds_since: None,
        };
        let party = Party::new(3, &who.to_value());
        assert_eq!(party.who.as_ref(), Some(&who));
        assert_eq!(party.describe(), "root@web-1, pid 7 (make deploy)");
        assert_eq!(Party::new(3, b"x").describe(), "key 3");
    }
}
