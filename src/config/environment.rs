//! Pure: what environment variables say of which key. An empty variable counts as unset.
//!
//! Many variables of scripts and of commands have baton's name too; one is warned of only when it is like that of
//! a key, and not known otherwise.

use std::ffi::OsString;

use toml::Value;

use super::given::{Given, Origin, Problem};
use super::key::{Key, Shape};
use super::value::WrongValue;

/// What all variables of baton begin with.
const PREFIX: &str = "BATON_";

/// Folders and instance: whoever mistypes one is told as well.
const FOLDERS: [&str; 5] = [
    "BATON_CONFIG_DIR",
    "BATON_STATE_DIR",
    "BATON_RUNTIME_DIR",
    "BATON_MUTEX_DIR",
    "BATON_INSTANCE",
];

/// Variables that mean something else, or are told to scripts.
const OTHERS: [&str; 16] = [
    "BATON_ARTIFACTS",
    "BATON_ATTEMPT",
    "BATON_END",
    "BATON_ETCD",
    "BATON_ETCD_CA",
    "BATON_ISOLATION",
    "BATON_LEASE",
    "BATON_LOG",
    "BATON_MUTEX_CLAIMS",
    "BATON_MUTEX_HELD",
    "BATON_OUTPUT",
    "BATON_PACKAGES",
    "BATON_PROGRESS",
    "BATON_SCRIPT_ID",
    "BATON_UPDATE_SCHEMA",
    "BATON_WORKSPACE",
];

/// What the names of others begin with.
const OTHER_PREFIXES: [&str; 3] = ["BATON_LABEL_", "BATON_MUTEX_FENCE", "BATON_TEST_"];

/// What the environment says.
#[derive(Debug, Default)]
pub(super) struct Environment {
    pub(super) given: Vec<Given>,
    pub(super) problems: Vec<Problem>,
    /// Variables that look like those of keys, each with what helps.
    pub(super) mistyped: Vec<(String, String)>,
}

impl Environment {
    pub(super) fn read(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Self::default();
        let own = variables.into_iter().filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
            Some((name, value))
        });
        let mut own: Vec<_> = own.filter(|(_, value)| !value.is_empty()).collect();
        own.sort();
        for (name, value) in own {
            match Key::all().iter().find(|key| key.variable() == name) {
                Some(key) => environment.value(key, name, &value),
                None => environment.mistyped.extend(near(&name).map(|hint| (name, hint))),
            }
        }
        environment
    }

    fn value(&mut self, key: &'static Key, name: String, value: &OsString) {
        let origin = Origin::Variable(name);
        let text = value.to_str().map(str::trim);
        let parsed = text.map_or_else(|| Err(wrong("is not UTF-8")), |text| key.shape.parse(text));
        match parsed {
            Ok(value) => self.given.push(Given { key, value, origin, lines: Vec::new() }),
            Err(wrong) => {
                let value = Value::String(value.to_string_lossy().into_owned());
                self.problems.push(Problem::value(origin, key, &value, &wrong));
            }
        }
    }
}

/// What is like a variable that nothing has, unless it has another meaning.
fn near(name: &str) -> Option<String> {
    let is_other = FOLDERS.contains(&name)
        || OTHERS.contains(&name)
        || OTHER_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    if is_other {
        return None;
    }
    let variables: Vec<_> = Key::all().iter().map(Key::variable).collect();
    let known = variables.iter().map(String::as_str).chain(FOLDERS);
    // Without what all of them have: it would make everything alike.
    let stem = name.strip_prefix(PREFIX)?;
    let hint = crate::text::did_you_mean(stem, known.filter_map(|name| name.strip_prefix(PREFIX)))?;
    let meant = hint.split('"').nth(1)?;
    Some(format!("did you mean {PREFIX}{meant}?"))
}

impl Shape {
    /// A value as a variable says it.
    fn parse(self, text: &str) -> Result<Value, WrongValue> {
        let texts = |words: Vec<&str>| {
            let words = words.into_iter().filter(|word| !word.is_empty());
            Value::Array(words.map(|word| Value::String(word.to_owned())).collect())
        };
        match self {
            Self::Text => Ok(Value::String(text.to_owned())),
            Self::Number => {
                let number = text.parse().map(Value::Integer);
                number.map_err(|_| wrong("must be a number"))
            }
            Self::Items | Self::Words if text.starts_with('[') => toml_value(text),
            Self::Items => Ok(texts(text.split(',').map(str::trim).collect())),
            Self::Words => Ok(texts(text.split_whitespace().collect())),
            Self::Table => toml_value(text),
        }
    }
}

fn toml_value(text: &str) -> Result<Value, WrongValue> {
    text.parse().map_err(|error: toml::de::Error| wrong(format!("is no TOML: {}", error.message())))
}

fn wrong(problem: impl Into<String>) -> WrongValue {
    WrongValue { problem: problem.into(), entry: None }
}

/// The variables that are known to be no key's.
#[cfg(test)]
pub(super) fn known() -> impl Iterator<Item = &'static str> {
    OTHERS.into_iter().chain(FOLDERS)
}
