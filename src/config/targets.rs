//! `<config>/targets.toml`: the machines that this client knows by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ConfigError, read_toml};

/// A machine with an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `HOST:PORT`
    pub address: String,
    /// The SHA-256 fingerprint of its certificate.
    pub fingerprint: String,
}

/// All targets by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    #[serde(default)]
    targets: BTreeMap<String, Target>,
}

impl Targets {
    /// Reads the file; none is no targets.
    ///
    /// # Errors
    /// When it can't be read or has another shape.
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        Ok(read_toml(&path(folder))?.unwrap_or_default())
    }

    /// Writes the file, durable.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), ConfigError> {
        let path = path(folder);
        let text = toml::to_string(self).unwrap_or_default();
        crate::durable::create_dir_all(folder, 0o755)
            .and_then(|()| crate::durable::replace_file(&path, text.as_bytes(), 0o644))
            .map_err(|source| ConfigError::File { path, source })
    }

    /// Adds a target; the same one again is no error.
    ///
    /// # Errors
    /// When the name is not allowed, or belongs to a target with other values.
    pub fn add(&mut self, name: &str, target: Target) -> Result<(), ConfigError> {
        crate::script::check_name(name, 128).map_err(|e| ConfigError::Value {
            key: "target",
            value: name.to_owned(),
            problem: e.to_string(),
        })?;
        if self.targets.get(name).is_some_and(|known| *known != target) {
            return Err(ConfigError::TargetExists(name.to_owned()));
        }
        self.targets.insert(name.to_owned(), target);
        Ok(())
    }

    /// Removes a target.
    ///
    /// # Errors
    /// When it is not known.
    pub fn remove(&mut self, name: &str) -> Result<Target, ConfigError> {
        let removed = self.targets.remove(name);
        removed.ok_or_else(|| ConfigError::UnknownTarget(name.to_owned()))
    }

    /// A target by its name.
    pub fn get(&self, name: &str) -> Option<&Target> {
        self.targets.get(name)
    }

    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Target)> {
        self.targets.iter().map(|(name, target)| (name.as_str(), target))
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("targets.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: &str) -> Target {
        Target { address: address.to_owned(), fingerprint: "ab".to_owned() }
    }

    #[test]
    fn targets_are_kept_and_a_name_is_not_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let mut targets = Targets::load(root.path()).unwrap();
        targets.add("web-1", target("web-1:10950")).unwrap();
        targets.add("web-1", target("web-1:10950")).unwrap();
        targets.add("web-1", target("other:10950")).unwrap_err();
        targets.add("../x", target("x:1")).unwrap_err();
        targets.save(root.path()).unwrap();
        let mut again = Targets::load(root.path()).unwrap();
        assert_eq!(again, targets);
        again.remove("web-1").unwrap();
        assert!(matches!(again.remove("web-1"), Err(ConfigError::UnknownTarget(_))));
    }
}
