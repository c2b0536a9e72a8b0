//! Pure: a path below a root, as clients name it.

use std::fmt;
use std::str::FromStr;

/// The hidden folder of a root in which uploads grow. No path leads there.
pub(super) const STAGING: &str = ".baton-staging";
/// The longest path, in bytes: a deep tree of packages has 300.
const MAX_PATH_BYTES: usize = 1024;
/// The most parts: each costs a system call or two.
const MAX_PARTS: usize = 64;
/// The longest part, in bytes: that of Linux's file systems.
const MAX_PART_BYTES: usize = 255;

/// A path below a root: one part or more, none of which leads up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelativePath {
    /// The folders on the way, outermost first.
    pub(super) folders: Vec<String>,
    /// The file's own name.
    pub(super) name: String,
}

/// Why a text is no path below a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// There is nothing.
    #[error("is empty")]
    Empty,
    /// It starts at the top of the file system.
    #[error("is absolute: a path below the root is expected")]
    Absolute,
    /// A part is `.` or `..`.
    #[error("has the part {0:?}: each part names what is below the one before")]
    Dots(String),
    /// Two slashes in a row, or one at the end.
    #[error("has an empty part")]
    EmptyPart,
    /// A control character.
    #[error("has the character {0:?}")]
    Character(char),
    /// Too long, too deep, or with too long a part.
    #[error("is too long: at most 1024 bytes, 64 parts, 255 bytes a part")]
    TooLong,
    /// The agent's own folder.
    #[error("leads to {STAGING}, which is the agent's own")]
    Staging,
}

impl FromStr for RelativePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute);
        }
        if let Some(bad) = text.chars().find(|c| c.is_control()) {
            return Err(PathError::Character(bad));
        }
        let mut folders: Vec<String> = text.split('/').map(str::to_owned).collect();
        let too_long = |part: &String| part.len() > MAX_PART_BYTES;
        if text.len() > MAX_PATH_BYTES || folders.len() > MAX_PARTS || folders.iter().any(too_long)
        {
            return Err(PathError::TooLong);
        }
        for part in &folders {
            match part.as_str() {
                "" => return Err(PathError::EmptyPart),
                "." | ".." => return Err(PathError::Dots(part.clone())),
                _ => {}
            }
        }
        if folders.first().is_some_and(|part| part == STAGING) {
            return Err(PathError::Staging);
        }
        let name = folders.pop().ok_or(PathError::Empty)?;
        Ok(Self { folders, name })
    }
}

impl RelativePath {
    /// The file's own name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.folders.iter().try_for_each(|folder| write!(f, "{folder}/"))?;
        f.write_str(&self.name)
    }
}

/// A file in a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The root's name.
    pub root: String,
    /// Where below it.
    pub path: RelativePath,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.root, self.path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_stays_below_the_root_is_a_path() {
        let long = "x".repeat(256);
        let deep = "a/".repeat(64) + "a";
        for (text, error) in [
            ("", PathError::Empty),
            ("/etc/passwd", PathError::Absolute),
            ("..", PathError::Dots("..".to_owned())),
            ("a/../b", PathError::Dots("..".to_owned())),
            ("./a", PathError::Dots(".".to_owned())),
            ("a//b", PathError::EmptyPart),
            ("a/", PathError::EmptyPart),
            ("a\0b", PathError::Character('\0')),
            ("a\nb", PathError::Character('\n')),
            (".baton-staging/x", PathError::Staging),
            (".baton-staging", PathError::Staging),
            (&long, PathError::TooLong),
            (&deep, PathError::TooLong),
        ] {
            assert_eq!(text.parse::<RelativePath>(), Err(error), "{text}");
        }
        for text in ["a", "a/b c/ü", "..a", "a/...", "a/.baton-staging", "-", "a\\..\\b", "~"] {
            assert_eq!(text.parse::<RelativePath>().unwrap().to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_has_no_part_that_leads_up(text in "[./a\\\\]{0,12}") {
            if let Ok(path) = text.parse::<RelativePath>() {
                prop_assert_eq!(path.to_string(), text);
                for part in path.folders.iter().chain([&path.name]) {
                    prop_assert!(!part.is_empty() && part != "." && part != "..");
                    prop_assert!(!part.contains('/'));
                }
            }
        }
    }
}
