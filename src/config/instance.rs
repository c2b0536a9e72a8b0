//! Pure: the name of an agent among several on one machine.

use std::fmt;
use std::str::FromStr;

use super::ConfigError;

/// The name that stands for the instance without one.
pub const DEFAULT_NAME: &str = "default";
/// The longest name: it is part of a socket's path, which has a limit.
const MAX_NAME_BYTES: usize = 32;

/// The name of an instance: letters, digits, `-`, `_` and `.`, at most 32, the first one a letter or digit.
/// It is part of paths and of a unit's name as it stands: systemd would escape anything else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance(String);

impl Instance {
    /// Parses a name; `None` for that of the default instance.
    ///
    /// # Errors
    /// When it is no name.
    pub fn parse(name: &str) -> Result<Option<Self>, ConfigError> {
        if name == DEFAULT_NAME { Ok(None) } else { name.parse().map(Some) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Instance {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let problem = match name.chars().next() {
            None => "must not be empty",
            Some(first) if !first.is_ascii_alphanumeric() => "must begin with a letter or a digit",
            Some(_) if !name.chars().all(allowed) => "may have letters, digits, `-`, `_` and `.`",
            Some(_) if name.len() > MAX_NAME_BYTES => "is longer than 32",
            Some(_) => return Ok(Self(name.to_owned())),
        };
        Err(ConfigError::Instance { name: name.to_owned(), problem })
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_in_paths_and_in_units() {
        for good in ["blue", "web-01", "a.b_c", "7"] {
            assert_eq!(good.parse::<Instance>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "a@b", "é", &"x".repeat(33)] {
            let error = bad.parse::<Instance>().unwrap_err();
            assert!(error.to_string().starts_with("instance = "), "{error}");
        }
    }

    #[test]
    fn the_default_instance_has_a_name_too() {
        assert_eq!(Instance::parse("default").unwrap(), None);
        assert_eq!(Instance::parse("blue").unwrap().unwrap().to_string(), "blue");
    }
}
