//! `<config>/client.toml`: what this user's commands need to know. An unknown key is an error that names
//! its line.
//!
//! ```toml
//! [coordination]
//! etcd = ["http://etcd-1:2379", "http://etcd-2:2379"]
//! etcd_ca = "/etc/etcd/ca.pem"      # only for https
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, read_toml};

/// What commands on this machine need to know of the others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// How machines exclude each other.
    #[serde(default)]
    pub coordination: Coordination,
}

/// How machines exclude each other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coordination {
    /// The members of the etcd cluster, `http://HOST:PORT` each; empty: there is none.
    #[serde(default)]
    pub etcd: Vec<String>,
    /// The certificates of its authority, in PEM; for https. Below the configuration folder when it is
    /// relative.
    pub etcd_ca: Option<PathBuf>,
}

impl ClientConfig {
    /// Reads the file in this folder; none is the defaults.
    ///
    /// # Errors
    /// When it can't be read or has another shape.
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = read_toml(&folder.join("client.toml"))?.unwrap_or_default();
        let authority = config.coordination.etcd_ca.take();
        config.coordination.etcd_ca = authority.map(|path| folder.join(path));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ClientConfig, ConfigError> {
        let root = tempfile::tempdir().unwrap();
        crate::durable::replace_file(&root.path().join("client.toml"), text.as_bytes(), 0o600)
            .unwrap();
        ClientConfig::load(root.path())
    }

    #[test]
    fn no_file_is_no_etcd_and_an_unknown_key_names_its_line() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(ClientConfig::load(root.path()).unwrap(), ClientConfig::default());
        let config = load("[coordination]\netcd = [\"http://a:1\"]\netcd_ca = \"/ca\"").unwrap();
        let expected = Coordination {
            etcd: vec!["http://a:1".to_owned()],
            etcd_ca: Some(PathBuf::from("/ca")),
        };
        assert_eq!(config.coordination, expected);
        let error = load("[coordination]\netcd = []\nzookeeper = 1").unwrap_err();
        assert!(matches!(error, ConfigError::Text { line: 3, .. }), "{error}");
    }
}
