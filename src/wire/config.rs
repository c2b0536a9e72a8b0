//! The configuration as messages.

use std::path::PathBuf;

use super::{WireError, v1};
use crate::config::{Change, Changes, Key, Layers, Origin};

impl From<&Origin> for v1::ConfigOrigin {
    fn from(origin: &Origin) -> Self {
        let (source, name, line) = match origin {
            Origin::Default => (v1::ConfigSource::Default, String::new(), 0),
            Origin::File { path, line } => {
                let line = u32::try_from(*line).unwrap_or(u32::MAX);
                (v1::ConfigSource::File, path.display().to_string(), line)
            }
            Origin::Variable(name) => (v1::ConfigSource::Environment, name.clone(), 0),
            Origin::Flag(name) => (v1::ConfigSource::Flag, name.clone(), 0),
        };
        Self { source: source.into(), name, line }
    }
}

impl TryFrom<v1::ConfigOrigin> for Origin {
    type Error = WireError;

    fn try_from(message: v1::ConfigOrigin) -> Result<Self, WireError> {
        let source = message.source();
        let v1::ConfigOrigin { name, line, .. } = message;
        match source {
            v1::ConfigSource::Unspecified => Err(WireError::Field("source")),
            v1::ConfigSource::Default => Ok(Self::Default),
            v1::ConfigSource::File => {
                let line = usize::try_from(line).map_err(|_| WireError::Field("line"))?;
                Ok(Self::File { path: PathBuf::from(name), line })
            }
            v1::ConfigSource::Environment => Ok(Self::Variable(name)),
            v1::ConfigSource::Flag => Ok(Self::Flag(name)),
        }
    }
}

impl From<Change> for v1::ConfigChange {
    fn from(Change { key, old, new }: Change) -> Self {
        Self { key: key.to_owned(), old_value: old, new_value: new }
    }
}

impl From<Changes> for v1::ReloadResponse {
    fn from(Changes { applied, needs_restart, unchanged }: Changes) -> Self {
        let messages = |changes: Vec<Change>| changes.into_iter().map(Into::into).collect();
        Self {
            applied: messages(applied),
            needs_restart: messages(needs_restart),
            unchanged: u32::try_from(unchanged).unwrap_or(u32::MAX),
        }
    }
}

/// What an agent has, and what it would have if it read its configuration again.
pub fn config_keys(running: &Layers, next: Option<&Layers>) -> Vec<v1::ConfigKey> {
    let message = |key: &Key| {
        let value = key.value(&running.config);
        let next = next.map(|next| (key.value(&next.config), next.origin(key)));
        let pending = next.filter(|(next, _)| *next != value);
        v1::ConfigKey {
            key: key.name.to_owned(),
            value,
            origin: Some(running.origin(key).into()),
            pending: pending.map(|(value, origin)| {
                let origin = Some(origin.into());
                v1::ConfigPending { value, origin }
            }),
        }
    };
    Key::all().iter().map(message).collect()
}
