//! Pure: what packages and their versions are called. Both are names of folders.

use std::fmt;
use std::str::FromStr;

use crate::script::{NameError, check_name};

/// The longest id and the longest version, in bytes: names of folders, with room for a suffix.
const MAX_LEN: usize = 100;
/// The link to the version that is in use.
pub const CURRENT: &str = "current";

/// A package's id: letters, digits, `.`, `_` and `-`, not first `.` or `-`; at most 100 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackageId(String);

/// A package's version, compared only for being the same: letters, digits, `.`, `_`, `-` and `+`, not
/// first `.` or `-`; at most 100 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(String);

/// Why a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// As a name it breaks a rule.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It is the name of the link to the version that is in use.
    #[error("must not be \"current\": that names the version in use")]
    Reserved,
}

impl PackageId {
    /// As a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Version {
    /// As a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name(text, MAX_LEN)?;
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        // A name, and the plus sign of SemVer's build metadata.
        check_name(&text.replace('+', "_"), MAX_LEN)?;
        if text == CURRENT {
            return Err(VersionError::Reserved);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_versions_are_names_of_folders() {
        for good in ["app", "my.app_2-x", "0"] {
            assert_eq!(good.parse::<PackageId>().unwrap().as_str(), good);
        }
        for good in ["1.2.3", "1.2.3-rc.1+build.7", "main-4f2a", "2026_11_26", "v"] {
            assert_eq!(good.parse::<Version>().unwrap().as_str(), good);
        }
        let long = "x".repeat(MAX_LEN + 1);
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a b", "a\n", "ü", &long] {
            assert!(bad.parse::<PackageId>().is_err(), "{bad}");
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
        assert_eq!("current".parse::<Version>(), Err(VersionError::Reserved));
        "a+b".parse::<PackageId>().unwrap_err();
    }
}
