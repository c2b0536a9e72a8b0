//! Pure: what is wrong with a file, at which line and key. All problems of a file are told together.

use std::fmt;

use serde::Serialize;

pub use crate::text::did_you_mean;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1; `None`: it belongs to no line.
    pub line: Option<usize>,
    /// The key, for example `steps[0].roles`; empty: the file as a whole.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What helps.
    pub hint: Option<String>,
}

impl Problem {
    /// Adds what helps, if anything does.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into().or(self.hint);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ", {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All that is wrong; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `Ok` when there is none. Each is told once, in the order of lines.
    ///
    /// # Errors
    /// When there are some.
    pub fn none_of(mut problems: Vec<Problem>) -> Result<(), Self> {
        problems.sort();
        problems.dedup();
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    /// Each, in the order of lines.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_in_the_order_of_lines_and_once() {
        let at = |line| Problem {
            file: "f".to_owned(),
            line: Some(line),
            key: "k".to_owned(),
            message: "m".to_owned(),
            hint: None,
        };
        let problems = Problems::none_of(vec![at(10), at(2), at(10)]).unwrap_err();
        assert_eq!(problems.to_string(), "f, line 2, k: m\nf, line 10, k: m");
        Problems::none_of(Vec::new()).unwrap();
    }
}
