//! Pure: where an artifact is below its folder.

use std::fmt;
use std::str::FromStr;

/// The longest path, in bytes.
pub const MAX_PATH_BYTES: usize = 1024;
/// How deep a file may be: each folder on the way is opened.
pub const MAX_DEPTH: usize = 32;

/// A path below a folder: names with `/` between, that lead nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactPath(String);

/// Why a path is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It has too many bytes or parts.
    #[error("is too long: at most {MAX_PATH_BYTES} bytes and {MAX_DEPTH} parts")]
    TooLong,
    /// It leads elsewhere, or nowhere.
    #[error("has an empty part, `.` or `..`: it must be a path below the folder of artifacts")]
    Part,
    /// It has a control character.
    #[error("has a control character")]
    Control,
}

impl ArtifactPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders on the way, and the file's own name.
    pub fn parts(&self) -> (Vec<&str>, &str) {
        match self.0.rsplit_once('/') {
            Some((folders, name)) => (folders.split('/').collect(), name),
            None => (Vec::new(), &self.0),
        }
    }
}

impl FromStr for ArtifactPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.len() > MAX_PATH_BYTES || text.split('/').count() > MAX_DEPTH {
            return Err(PathError::TooLong);
        }
        if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(PathError::Part);
        }
        if text.chars().any(char::is_control) {
            return Err(PathError::Control);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ArtifactPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_nowhere_else() {
        for good in ["a", "a/b c/ä..", "...", &"x".repeat(MAX_PATH_BYTES)] {
            assert_eq!(good.parse::<ArtifactPath>().unwrap().as_str(), good);
        }
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b"] {
            assert_eq!(bad.parse::<ArtifactPath>(), Err(PathError::Part), "{bad:?}");
        }
        for bad in ["a\0", "a\nb"] {
            assert_eq!(bad.parse::<ArtifactPath>(), Err(PathError::Control), "{bad:?}");
        }
        for bad in ["x".repeat(MAX_PATH_BYTES + 1), "a/".repeat(MAX_DEPTH) + "a"] {
            assert_eq!(bad.parse::<ArtifactPath>(), Err(PathError::TooLong), "{bad:?}");
        }
    }

    #[test]
    fn a_path_has_folders_and_a_name() {
        let path: ArtifactPath = "a/b/c".parse().unwrap();
        assert_eq!(path.parts(), (vec!["a", "b"], "c"));
        let path: ArtifactPath = "c".parse().unwrap();
        assert_eq!(path.parts(), (vec![], "c"));
    }
}
