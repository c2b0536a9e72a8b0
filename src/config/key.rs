//! The keys of `agent.toml`: one table, from which file, environment, `baton config show`, reload and the
//! documentation are derived.
//!
//! A new key is a field of [`Config`], a line here, and its comment in `agent.toml`. Tests hold these, and the
//! table in `docs/configuration.md`, to each other.

use toml::Value;

use super::value::{self as v, WrongValue};
use super::{Config, QUEUE_LENGTHS, files, retention};

use Applies::{AtReload, AtStart};
use Shape::{Items, Number, Table, Text, Words};

/// A key.
pub struct Key {
    /// Its name, with those of its tables: `retention.max_age`.
    pub name: &'static str,
    /// How the environment says its value.
    pub shape: Shape,
    /// When another value takes effect.
    pub applies: Applies,
    /// Its value, as TOML.
    pub(super) get: Get,
    /// Takes another value.
    pub(super) set: Set,
}

type Get = fn(&Config) -> Value;
type Set = fn(&mut Config, Value) -> Result<(), WrongValue>;

/// How the text of an environment variable becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As it is.
    Text,
    /// A number in digits.
    Number,
    /// Items with commas between them, or a list in TOML: `["a", "b"]`.
    Items,
    /// Words with spaces between them, or a list in TOML.
    Words,
    /// A table in TOML: `{ a = { … } }`.
    Table,
}

/// When another value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// When the agent is told to read its configuration again.
    AtReload,
    /// When the agent is started.
    AtStart,
}

/// All of them, in the order of `agent.toml`.
static KEYS: [Key; 18] = [
    key("name", Text, AtReload, |c| v::from_text(&c.name), |c, x| put(&mut c.name, v::name(x))),
    key(
        "listen",
        Text,
        AtStart,
        |c| v::from_address(c.listen),
        |c, x| put(&mut c.listen, v::address(x)),
    ),
    key(
        "queue_length",
        Number,
        AtReload,
        |c| v::from_number(c.queue_length),
        |c, x| put(&mut c.queue_length, v::length(&x, &QUEUE_LENGTHS)),
    ),
    key(
        "max_output_bytes",
        Number,
        AtReload,
        |c| v::from_number(c.max_output_bytes),
        |c, x| put(&mut c.max_output_bytes, v::bytes(&x)),
    ),
    key(
        "min_free_bytes",
        Number,
        AtReload,
        |c| v::from_number(c.min_free_bytes),
        |c, x| put(&mut c.min_free_bytes, v::bytes(&x)),
    ),
    key("grace", Text, AtReload, |c| v::from_time(c.grace), |c, x| put(&mut c.grace, v::time(x))),
    key(
        "stop_wait",
        Text,
        AtReload,
        |c| v::from_time(c.stop_wait),
        |c, x| put(&mut c.stop_wait, v::time(x)),
    ),
    key(
        "reboot_command",
        Words,
        AtReload,
        |c| v::from_texts(&c.reboot_command),
        |c, x| put(&mut c.reboot_command, v::command(x)),
    ),
    key(
        "files.max_file_bytes",
        Number,
        AtReload,
        |c| v::from_number(c.files.max_file_bytes),
        |c, x| put(&mut c.files.max_file_bytes, v::bytes(&x)),
    ),
    key(
        "files.min_free_bytes",
        Number,
        AtReload,
        |c| v::from_number(c.files.min_free_bytes),
        |c, x| put(&mut c.files.min_free_bytes, v::bytes(&x)),
    ),
    key(
        "files.max_transfers",
        Number,
        AtReload,
        |c| v::from_number(c.files.max_transfers),
        |c, x| put(&mut c.files.max_transfers, v::length(&x, &files::TRANSFER_COUNTS)),
    ),
    key(
        "files.roots",
        Table,
        AtReload,
        |c| v::from_roots(&c.files.roots),
        |c, x| put(&mut c.files.roots, v::roots(x)),
    ),
    key(
        "retention.max_age",
        Text,
        AtReload,
        |c| v::from_time_or_none(c.retention.max_age),
        |c, x| put(&mut c.retention.max_age, v::age_or_none(x)),
    ),
    key(
        "retention.max_scripts",
        Number,
        AtReload,
        |c| v::from_number(c.retention.max_scripts),
        |c, x| put(&mut c.retention.max_scripts, v::count(&x, &retention::SCRIPT_COUNTS)),
    ),
    key(
        "retention.max_bytes",
        Number,
        AtReload,
        |c| v::from_number(c.retention.max_bytes),
        |c, x| put(&mut c.retention.max_bytes, v::bytes(&x)),
    ),
    key(
        "retention.min_age",
        Text,
        AtReload,
        |c| v::from_time(c.retention.min_age),
        |c, x| put(&mut c.retention.min_age, v::age(x)),
    ),
    key(
        "upgrade.keys",
        Items,
        AtReload,
        |c| v::from_texts(&c.upgrade.keys),
        |c, x| put(&mut c.upgrade.keys, v::public_keys(x)),
    ),
    key(
        "upgrade.health_limit",
        Text,
        AtReload,
        |c| v::from_time(c.upgrade.health_limit),
        |c, x| put(&mut c.upgrade.health_limit, v::time_limit(x)),
    ),
];

const fn key(name: &'static str, shape: Shape, applies: Applies, get: Get, set: Set) -> Key {
    Key { name, shape, applies, get, set }
}

fn put<T>(place: &mut T, value: Result<T, WrongValue>) -> Result<(), WrongValue> {
    *place = value?;
    Ok(())
}

impl Key {
    /// All of them, in the order of `agent.toml`.
    pub fn all() -> &'static [Self] {
        &KEYS
    }

    /// The key with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::all().iter().find(|key| key.name == name)
    }

    /// The environment variable that overrides it: `BATON_RETENTION_MAX_AGE`.
    pub fn variable(&self) -> String {
        format!("BATON_{}", crate::script::variable(self.name))
    }

    /// Its value in a configuration, as it stands behind `=` in TOML.
    pub fn value(&self, config: &Config) -> String {
        (self.get)(config).to_string()
    }

    /// Whether a name is that of a table of keys: `retention`.
    pub(super) fn is_table(name: &str) -> bool {
        let below =
            |key: &Self| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
        Self::all().iter().any(below)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
