//! Pure: what a script gives back beside its output: named outputs, progress, and remarks about what
//! was not understood or not kept.
//!
//! 1. Nothing is lost silently: what is refused becomes a remark, or is counted.
//! 2. A script never fails because of its values.
//! 3. A later output replaces an earlier one of the same name. Service messages come first, in the
//!    order of the output, then the output file line by line: the file wins.
//! 4. A sensitive value is not kept at all.

pub mod file;
pub mod message;
pub mod progress;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::shorten;
pub use progress::Progress;

/// The longest name of an output, in bytes: as much as a file's name has.
pub const MAX_NAME_BYTES: usize = 255;
/// The longest value, in bytes: an output is a result, not a log; what is larger is an artifact.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;
/// How many outputs a script may have.
pub const MAX_OUTPUTS: usize = 256;
/// All names and values together, in bytes: they travel with the outcome, in one message of 4 MiB.
pub const MAX_TOTAL_BYTES: usize = 256 * 1024;
/// How many remarks are kept; a program that writes nonsense writes a lot of it. The others are
/// counted.
pub const MAX_REMARKS: usize = 32;
/// How much of a name a remark tells.
const REMARK_NAME_CHARS: usize = 64;

/// What a script gave back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Values {
    /// Its outputs by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, String>,
    /// What was not understood or not kept, in the order in which that was seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<Remark>,
    /// How many further remarks there were.
    pub remarks_dropped: u32,
    /// How far it said that it was, the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// Something that was not understood or not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// Where it was.
    pub place: Place,
    /// What it was.
    pub problem: Problem,
    /// The output or message that it is about, cut to 64 characters; empty when there is none.
    pub name: String,
}

/// Where a value was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In the output file, in this line; the first is 1, and 0 is the file as a whole.
    File(u64),
    /// In a service message that stands at this offset of the output.
    Message(u64),
    /// In the progress channel.
    Progress,
}

/// What was wrong with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// It has another form than it should.
    NotUnderstood,
    /// A service message that baton does not know.
    UnknownMessage,
    /// The name is empty, too long, or has a character that it must not have.
    BadName,
    /// The delimiter of a value of several lines never came.
    NoEnd,
    /// It is not UTF-8.
    NotText,
    /// The value, the message or the file is too long.
    TooLong,
    /// There are too many outputs, or they are too long together.
    TooMany,
    /// It is sensitive: baton has no place for secrets.
    Sensitive,
    /// It can't be read: it is no file any more, or the system refuses.
    Unreadable,
    /// The disk had no room for it.
    NoRoom,
}

impl Values {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes an output, or remarks why not.
    pub fn set(&mut self, place: Place, name: &str, value: &str) {
        match self.refusal(name, value) {
            Some(problem) => self.remark(place, problem, name),
            None => drop(self.outputs.insert(name.to_owned(), value.to_owned())),
        }
    }

    /// Says that something was not understood or not kept.
    pub fn remark(&mut self, place: Place, problem: Problem, name: &str) {
        if self.remarks.len() < MAX_REMARKS {
            let name = shorten(name, REMARK_NAME_CHARS);
            self.remarks.push(Remark { place, problem, name });
        } else {
            self.remarks_dropped = self.remarks_dropped.saturating_add(1);
        }
    }

    fn refusal(&self, name: &str, value: &str) -> Option<Problem> {
        if check_name(name).is_err() {
            return Some(Problem::BadName);
        }
        if value.len() > MAX_VALUE_BYTES {
            return Some(Problem::TooLong);
        }
        let others = self.outputs.iter().filter(|(other, _)| *other != name);
        let (mut count, mut total) = (1, name.len() + value.len());
        for (name, value) in others {
            count += 1;
            total += name.len() + value.len();
        }
        (count > MAX_OUTPUTS || total > MAX_TOTAL_BYTES).then_some(Problem::TooMany)
    }
}

/// Checks the name of an output.
///
/// # Errors
/// A text that says what is wrong.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > MAX_NAME_BYTES {
        return Err("has more than 255 bytes");
    }
    if name.trim() != name {
        return Err("begins or ends with a blank");
    }
    if name.contains('=') || name.contains("<<") || name.chars().any(char::is_control) {
        return Err("has `=`, `<<` or a control character");
    }
    Ok(())
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::File(0) => f.write_str("output file")?,
            Place::File(line) => write!(f, "output file, line {line}")?,
            Place::Message(offset) => write!(f, "service message at output offset {offset}")?,
            Place::Progress => f.write_str("progress")?,
        }
        if !self.name.is_empty() {
            write!(f, ", `{}`", self.name)?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotUnderstood => "not understood",
            Self::UnknownMessage => "not a service message that baton knows",
            Self::BadName => {
                "the name is empty, longer than 255 bytes, or has a character that it must not have"
            }
            Self::NoEnd => "the delimiter at its end never came",
            Self::NotText => "not UTF-8",
            Self::TooLong => "too long: not kept",
            Self::TooMany => "too many outputs, or too long together: not kept",
            Self::Sensitive => "sensitive: not kept",
            Self::Unreadable => "can't be read",
            Self::NoRoom => "not kept: the disk is full",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_a_limit_is_remarked_and_the_rest_is_kept() {
        let mut values = Values::default();
        let place = Place::File(1);
        for name in ["", " a", "a ", "a=b", "a<<b", "a\nb", &"x".repeat(256)] {
            values.set(place, name, "v");
            let remark = values.remarks.pop().unwrap();
            assert_eq!((remark.problem, values.outputs.len()), (Problem::BadName, 0), "{name:?}");
        }
        values.set(place, "größe [1].x", "v");
        values.set(place, "long", &"x".repeat(MAX_VALUE_BYTES + 1));
        assert_eq!(values.remarks.pop().unwrap().problem, Problem::TooLong);
        let full = "x".repeat(MAX_VALUE_BYTES);
        for name in ["a", "b", "c", "d"] {
            values.set(place, name, &full);
        }
        assert_eq!(values.remarks.pop().unwrap().problem, Problem::TooMany);
        assert_eq!(values.outputs.keys().collect::<Vec<_>>(), ["a", "b", "c", "größe [1].x"]);
        // In place of another one there is room.
        values.set(place, "c", &full);
        assert_eq!(values.remarks, []);
    }

    #[test]
    fn too_many_outputs_and_remarks_are_counted() {
        let mut values = Values::default();
        for number in 0..MAX_OUTPUTS + MAX_REMARKS + 5 {
            values.set(Place::File(1), &format!("n{number}"), "");
        }
        assert_eq!(values.outputs.len(), MAX_OUTPUTS);
        assert_eq!((values.remarks.len(), values.remarks_dropped), (MAX_REMARKS, 5));
    }

    #[test]
    fn a_remark_says_where_and_what() {
        let remark =
            Remark { place: Place::File(3), problem: Problem::NoEnd, name: "log".to_owned() };
        let text = "output file, line 3, `log`: the delimiter at its end never came";
        assert_eq!(remark.to_string(), text);
    }
}
