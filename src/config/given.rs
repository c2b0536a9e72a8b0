//! Pure: a value that is given, where it comes from, and what is wrong with one.

use std::fmt;
use std::path::PathBuf;

use toml::Value;

use super::key::Key;
use super::value::WrongValue;

/// Where the value of a key comes from. What stands later in this list wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody says anything else.
    Default,
    /// A line of a file.
    File {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag of `baton agent run`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A value that one of the layers gives.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) key: &'static Key,
    pub(super) value: Value,
    pub(super) origin: Origin,
    /// The lines of a table's entries.
    pub(super) lines: Vec<(String, usize)>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// The key, for example `retention.max_age`; empty: the file is no TOML.
    pub key: String,
    /// What it is set to; `None`: that is not what is wrong.
    pub value: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What helps.
    pub hint: Option<String>,
}

impl Problem {
    /// A value that a key does not take, or an entry of it.
    pub(super) fn value(origin: Origin, key: &Key, value: &Value, wrong: &WrongValue) -> Self {
        let entry = wrong.entry.as_ref();
        let inner = entry.and_then(|entry| Some((entry, value.get(entry)?)));
        let (key, value) = match inner {
            Some((entry, inner)) => (format!("{}.{entry}", key.name), inner),
            None => (key.name.to_owned(), value),
        };
        let value = Some(value.to_string());
        Self { origin, key, value, message: wrong.problem.clone(), hint: None }
    }

    /// The order in which they are told.
    fn rank(&self) -> (u8, usize, &str) {
        match &self.origin {
            Origin::Default => (0, 0, ""),
            Origin::File { line, .. } => (0, *line, ""),
            Origin::Variable(name) => (1, 0, name),
            Origin::Flag(name) => (2, 0, name),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, value, message, .. } = self;
        match (origin, value) {
            (_, None) => write!(f, "{origin}: {message}"),
            (Origin::Variable(_) | Origin::Flag(_), Some(value)) if Key::named(key).is_some() => {
                write!(f, "{origin} = {value}: {message}")
            }
            (_, Some(value)) => write!(f, "{origin}: {key} = {value}: {message}"),
        }
    }
}

/// All that is wrong; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `Ok` when there is none.
    ///
    /// # Errors
    /// When there are some.
    pub(super) fn none_of(mut problems: Vec<Problem>) -> Result<(), Self> {
        problems.sort_by(|one, other| one.rank().cmp(&other.rank()));
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    /// Each: those of the file in the order of its lines, then those of environment and flags.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let separator = if at > 0 { "\n" } else { "" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
