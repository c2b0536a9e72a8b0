//! Defaults, file, environment and flags, one over the other: a configuration, and where each value of it comes
//! from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Value;

use super::document::Document;
use super::environment::Environment;
use super::given::{Given, Origin, Problem, Problems};
use super::key::{Applies, Key};
use super::{Config, ConfigError};

/// What flags set.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// See [`Config::listen`]; `none` for no TCP.
    pub listen: Option<String>,
    /// See [`Config::name`].
    pub name: Option<String>,
}

/// A file and flags; the environment is the process's own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    file: PathBuf,
    overrides: Overrides,
}

/// A configuration, and where each value of it comes from.
#[derive(Debug, Clone)]
pub struct Layers {
    /// The values.
    pub config: Arc<Config>,
    /// In the order of the keys.
    origins: Vec<Origin>,
    /// Variables that look like those of keys, each with what helps.
    pub mistyped: Vec<(String, String)>,
    sources: Sources,
}

/// A key that has another value than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub key: &'static str,
    /// Its value before, in TOML.
    pub old: String,
    /// Its value now.
    pub new: String,
}

/// What a configuration changes in a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// What has taken effect.
    pub applied: Vec<Change>,
    /// What takes effect when the agent is started again.
    pub needs_restart: Vec<Change>,
    /// How many keys have the value that they had.
    pub unchanged: usize,
}

impl Sources {
    /// The file `agent.toml` in a folder, and flags.
    pub fn of(folder: &Path, overrides: Overrides) -> Self {
        Self::new(folder.join("agent.toml"), overrides)
    }

    /// A file of any name, without flags.
    pub fn file(path: PathBuf) -> Self {
        Self::new(path, Overrides::default())
    }

    /// A file of any name, and flags.
    pub fn new(file: PathBuf, overrides: Overrides) -> Self {
        Self { file, overrides }
    }

    /// The file; it need not be there.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Reads them.
    ///
    /// # Errors
    /// When the file can't be read, or something is said that isn't known or allowed: all of it.
    pub fn read(&self) -> Result<Layers, ConfigError> {
        self.read_with(std::env::vars_os())
    }

    /// The same with another environment.
    ///
    /// # Errors
    /// As [`Sources::read`].
    pub fn read_with(
        &self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Layers, ConfigError> {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::File { path: self.file.clone(), source }),
        };
        self.read_text(&text, variables)
    }

    /// The same with a text instead of the file.
    ///
    /// # Errors
    /// When something is said that isn't known or allowed.
    pub fn read_text(
        &self,
        text: &str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Layers, ConfigError> {
        let Document { given: mut layers, mut problems } = Document::read(&self.file, text);
        let environment = Environment::read(variables);
        layers.extend(environment.given);
        layers.extend(self.overrides.given());
        let mut found = Layers::default();
        for given in layers {
            problems.extend(found.take(given));
        }
        problems.extend(environment.problems);
        if problems.is_empty() {
            problems.extend(found.contradiction());
        }
        Problems::none_of(problems).map_err(ConfigError::Invalid)?;
        Ok(Layers { mistyped: environment.mistyped, sources: self.clone(), ..found })
    }
}

impl Overrides {
    fn given(&self) -> Vec<Given> {
        let flags = [("listen", &self.listen), ("name", &self.name)];
        let given = flags.into_iter().filter_map(|(name, text)| {
            let value = Value::String(text.clone()?);
            let origin = Origin::Flag(format!("--{name}"));
            Some(Given { key: Key::named(name)?, value, origin, lines: Vec::new() })
        });
        given.collect()
    }
}

impl Default for Layers {
    fn default() -> Self {
        let origins = vec![Origin::Default; Key::all().len()];
        let (config, mistyped, sources) = Default::default();
        Self { config, origins, mistyped, sources }
    }
}

impl Layers {
    /// Reads the same file and flags, as they are now.
    ///
    /// # Errors
    /// As [`Sources::read`].
    pub fn read_again(&self) -> Result<Self, ConfigError> {
        self.sources.read()
    }

    /// The file; it need not be there.
    pub fn path(&self) -> &Path {
        self.sources.path()
    }

    /// How many keys somebody set.
    pub fn set_keys(&self) -> usize {
        self.origins.iter().filter(|origin| **origin != Origin::Default).count()
    }

    /// Where the value of a key comes from.
    pub fn origin(&self, key: &Key) -> &Origin {
        // Each key has one.
        position(key).and_then(|at| self.origins.get(at)).unwrap_or(&Origin::Default)
    }

    fn put(&mut self, key: &Key, origin: Origin) {
        if let Some(place) = position(key).and_then(|at| self.origins.get_mut(at)) {
            *place = origin;
        }
    }

    /// Lays a value over what there is; says what is wrong with it.
    fn take(&mut self, given: Given) -> Option<Problem> {
        let Given { key, value, origin, lines } = given;
        let Err(wrong) = (key.set)(Arc::make_mut(&mut self.config), value.clone()) else {
            self.put(key, origin);
            return None;
        };
        let entry = wrong.entry.as_ref();
        let line = entry.and_then(|entry| lines.iter().find(|(name, _)| name == entry));
        let origin = match (origin, line) {
            (Origin::File { path, .. }, Some((_, line))) => Origin::File { path, line: *line },
            (origin, _) => origin,
        };
        Some(Problem::value(origin, key, &value, &wrong))
    }

    /// Values that are right each, and not together.
    fn contradiction(&self) -> Option<Problem> {
        let (key, wrong) = self.config.retention.contradiction()?;
        let key = Key::named(key)?;
        Some(Problem::value(self.origin(key).clone(), key, &(key.get)(&self.config), &wrong))
    }

    /// What becomes of a running agent that reads `new`: its next configuration, and what that changes.
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> (Self, Changes) {
        let mut next = new.clone();
        let mut changes = Changes::default();
        for key in Key::all() {
            let (old, now) = (key.value(&self.config), key.value(&new.config));
            if old == now {
                changes.unchanged += 1;
                continue;
            }
            let change = Change { key: key.name, old, new: now };
            match key.applies {
                Applies::AtReload => changes.applied.push(change),
                Applies::AtStart => {
                    let kept = (key.get)(&self.config);
                    // A value that a configuration has is taken by another one.
                    drop((key.set)(Arc::make_mut(&mut next.config), kept));
                    next.put(key, self.origin(key).clone());
                    changes.needs_restart.push(change);
                }
            }
        }
        (next, changes)
    }
}

fn position(key: &Key) -> Option<usize> {
    Key::all().iter().position(|known| known.name == key.name)
}

#[cfg(test)]
mod tests;
