//! Pure: the versions of what baton writes for another baton, which may be an older or a newer one.
//! `docs/formats.md` names every file, who writes and who reads it.
//!
//! 1. What is older is read. What is newer is refused, with both numbers and who wrote it, and stays as
//!    it is.
//! 2. What has no number has the first: so was what was written before there were numbers.
//! 3. Within a number, fields that are not known are ignored, and those that are missing have a default. A
//!    number is raised only when a reader that does so would be wrong.
//! 4. A workspace has the number of its `job.json` for as long as it is there: whoever writes into it,
//!    agent or supervisor, writes what a reader of that number understands.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// This baton.
pub const PROGRAM: &str = env!("CARGO_PKG_VERSION");
/// The files in a script's workspace, what agent and supervisor tell each other there, and a lease's terms.
pub const WORKSPACE: u32 = 1;
/// The folder of the named mutexes, with all lines in it.
pub const MUTEXES: u32 = 1;
/// The list of peers.
pub const PEERS: u32 = 1;
/// The record of a deployment.
pub const DEPLOYMENT: u32 = 1;
/// What the agent remembers of restarts of the machine.
pub const REBOOT: u32 = 1;
/// The API: raised with each release that adds to it. Nothing is ever taken away.
pub const API_REVISION: u32 = 2;

/// Something has a format that this baton does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it has format {found}{}; this baton, {PROGRAM}, knows up to {known}", by(.writer.as_deref()))]
pub struct Newer {
    /// Its number.
    pub found: u64,
    /// The greatest number that is known.
    pub known: u64,
    /// The version of the baton that wrote it, if it says so.
    pub writer: Option<String>,
}

fn by(writer: Option<&str>) -> String {
    writer.map(|version| format!(", written by baton {version}")).unwrap_or_default()
}

impl Newer {
    /// Refuses a number that is greater than the known one.
    ///
    /// # Errors
    /// When it is.
    pub fn check(found: u64, known: u64, writer: Option<String>) -> Result<(), Self> {
        if found > known { Err(Self { found, known, writer }) } else { Ok(()) }
    }

    /// What helps.
    pub fn hint(&self) -> String {
        match &self.writer {
            Some(version) => format!("install baton {version} or a newer one; nothing was changed"),
            None => {
                "install the baton that wrote it, or a newer one; nothing was changed".to_owned()
            }
        }
    }
}

/// Why a text is not read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A newer baton wrote it.
    #[error(transparent)]
    Newer(#[from] Newer),
    /// It has another shape.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// What is read of a text before anything else.
#[derive(Debug, Deserialize)]
struct Head {
    #[serde(default = "first")]
    format: u64,
    #[serde(default)]
    baton: Option<String>,
}

fn first() -> u64 {
    1
}

#[derive(Serialize)]
struct Stamped<'a, T> {
    format: u32,
    baton: &'static str,
    #[serde(flatten)]
    content: &'a T,
}

/// A value as JSON, with its number and who wrote it.
///
/// # Errors
/// When it has no JSON form, or none with fields.
pub fn to_json<T: Serialize>(format: u32, content: &T) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Stamped { format, baton: PROGRAM, content })
}

/// Reads such a value, of this number or an older one.
///
/// # Errors
/// When a newer baton wrote it, or it has another shape.
pub fn from_json<T: DeserializeOwned>(known: u32, text: &[u8]) -> Result<T, FormatError> {
    check_json(known, text)?;
    Ok(serde_json::from_slice(text)?)
}

/// Looks only at the number of a JSON object.
///
/// # Errors
/// When a newer baton wrote it, or it is no such object.
pub fn check_json(known: u32, text: &[u8]) -> Result<(), FormatError> {
    let Head { format, baton } = serde_json::from_slice(text)?;
    Ok(Newer::check(format, known.into(), baton)?)
}

/// The first line of a file that has a value on each line.
pub fn line(format: u32) -> String {
    format!("{{\"format\":{format},\"baton\":\"{PROGRAM}\"}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Content {
        what: String,
    }

    fn content() -> Content {
        Content { what: "x".to_owned() }
    }

    #[test]
    fn rules_1_and_2_no_number_and_the_known_one_are_read_and_a_newer_one_is_refused() {
        let text = to_json(2, &content()).unwrap();
        assert_eq!(from_json::<Content>(2, &text).unwrap(), content());
        assert_eq!(from_json::<Content>(3, &text).unwrap(), content());
        assert_eq!(from_json::<Content>(1, br#"{"what":"x"}"#).unwrap(), content());
        let error = from_json::<Content>(1, &text).unwrap_err().to_string();
        let expected = format!(
            "it has format 2, written by baton {PROGRAM}; this baton, {PROGRAM}, knows up to 1"
        );
        assert_eq!(error, expected);
        // Also when nothing else of it is understood.
        let newer = from_json::<Content>(1, br#"{"format":7,"other":[]}"#).unwrap_err();
        assert!(matches!(newer, FormatError::Newer(Newer { found: 7, writer: None, .. })));
    }

    #[test]
    fn rule_3_fields_that_are_not_known_are_ignored() {
        let text = br#"{"format":1,"more":{"a":[1]},"what":"x"}"#;
        assert_eq!(from_json::<Content>(1, text).unwrap(), content());
    }

    #[test]
    fn a_number_that_is_none_is_refused() {
        for text in [&br#"{"format":"1","what":"x"}"#[..], br#"{"format":-1,"what":"x"}"#, b"[]"] {
            let error = from_json::<Content>(1, text).unwrap_err();
            assert!(matches!(error, FormatError::Json(_)), "{error}");
        }
    }

    #[test]
    fn the_line_says_the_same_as_the_fields() {
        check_json(4, line(4).as_bytes()).unwrap();
        assert!(matches!(check_json(3, line(4).as_bytes()), Err(FormatError::Newer(_))));
    }
}
