//! File, environment and flags become one validated configuration.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. An
//! unknown key is an error that names its line.

pub mod client;
pub mod directories;
pub mod files;
pub mod instance;
pub mod retention;
pub mod upgrade;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use directories::Directories;
pub use instance::Instance;
pub use retention::Retention;
use retention::RetentionTable;
pub use upgrade::Upgrade;
use upgrade::UpgradeTable;

/// The TCP port of an agent.
pub const DEFAULT_PORT: u16 = 10950;
/// How many scripts may be queued or running.
pub const DEFAULT_QUEUE_LENGTH: usize = 1000;
/// What the queue length may be.
pub const QUEUE_LENGTHS: RangeInclusive<usize> = 1..=100_000;
/// How much output is kept of a script: 1 GiB.
pub const DEFAULT_MAX_OUTPUT_BYTES: u64 = 1 << 30;
/// How much room on the disk output leaves, unless the file says otherwise.
const DEFAULT_MIN_FREE_BYTES: u64 = 64 * 1024 * 1024;
/// The time between asking a script to stop and forcing it.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// The most words of a command: whoever needs more writes a script.
const MAX_COMMAND_WORDS: usize = 64;
/// The longest grace: 1 day.
pub const MAX_GRACE: Duration = MAX_TIME;
/// The longest of the times that end by themselves.
const MAX_TIME: Duration = Duration::from_hours(24);

/// What `baton agent init` writes. Every key is there, as a comment, with its default.
pub const TEMPLATE: &str = include_str!("agent.toml");

/// The configuration of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the agent calls itself.
    pub name: String,
    /// Where it listens for peers; `None`: only on its Unix socket.
    pub listen: Option<SocketAddr>,
    /// How many scripts may be queued or running.
    pub queue_length: usize,
    /// How much output is kept of a script.
    pub max_output_bytes: u64,
    /// How much room on the disk output leaves for others.
    pub min_free_bytes: u64,
    /// The grace of a script whose request gives none.
    pub grace: Duration,
    /// The folders that are open to clients.
    pub files: files::Files,
    /// What restarts the machine when a script asks for it: a program and its arguments; empty: nothing does.
    pub reboot_command: Vec<String>,
    /// What is kept of scripts that are done.
    pub retention: Retention,
    /// How long an agent that is told to stop waits for what runs, while it starts nothing.
    pub stop_wait: Duration,
    /// Whose new versions of the agent are taken, and how long one may take to come up.
    pub upgrade: Upgrade,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file can't be read or written.
    #[error("configuration file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file's text is wrong.
    #[error("configuration file {path}, line {line}: {message}")]
    Text {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A value is wrong.
    #[error("{key} = {value:?}: {problem}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What it is set to.
        value: String,
        /// What is wrong.
        problem: String,
    },
    /// No directory is known for a purpose.
    #[error("no home directory: set HOME, or {0}")]
    NoHome(&'static str),
    /// A Unix socket's path has a limit.
    #[error("socket path {0} is longer than {max} bytes", max = directories::MAX_SOCKET_PATH)]
    SocketPath(PathBuf),
}

/// The file's shape.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    name: Option<String>,
    listen: Option<String>,
    queue_length: Option<i64>,
    max_output_bytes: Option<i64>,
    min_free_bytes: Option<i64>,
    grace: Option<String>,
    #[serde(default)]
    reboot_command: Vec<String>,
    #[serde(default)]
    files: files::FilesTable,
    retention: Option<RetentionTable>,
    stop_wait: Option<String>,
    #[serde(default)]
    upgrade: UpgradeTable,
}

/// What flags and environment set.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// See [`Config::listen`]; `none` for no TCP.
    pub listen: Option<String>,
    /// See [`Config::name`].
    pub name: Option<String>,
}

impl Config {
    /// Reads `<config>/agent.toml`, if there is one.
    ///
    /// # Errors
    /// When it can't be read, or says something that isn't known or allowed.
    pub fn load(folder: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let file: ConfigFile = read_toml(&folder.join("agent.toml"))?.unwrap_or_default();
        Self::resolve(file, overrides)
    }

    fn resolve(file: ConfigFile, overrides: Overrides) -> Result<Self, ConfigError> {
        let listen = overrides.listen.or(file.listen);
        let name = overrides.name.or(file.name).unwrap_or_else(host_name);
        if name.trim().is_empty() {
            return Err(wrong("name", &name, &"must not be empty"));
        }
        crate::script::check_text(&name, 255).map_err(|e| wrong("name", &name, &e))?;
        let grace = time("grace", file.grace.as_deref(), DEFAULT_GRACE)?;
        Ok(Self {
            name,
            listen: listen.as_deref().map_or(Ok(Some(default_listen())), parse_listen)?,
            queue_length: file.queue_length.map_or(Ok(DEFAULT_QUEUE_LENGTH), |number| {
                let length = usize::try_from(number).ok();
                length
                    .filter(|length| QUEUE_LENGTHS.contains(length))
                    .ok_or_else(|| wrong("queue_length", &number, &"must be 1 to 100000"))
            })?,
            max_output_bytes: bytes(
                "max_output_bytes",
                file.max_output_bytes,
                DEFAULT_MAX_OUTPUT_BYTES,
            )?,
            min_free_bytes: bytes("min_free_bytes", file.min_free_bytes, DEFAULT_MIN_FREE_BYTES)?,
            grace,
            files: file.files.resolve()?,
            reboot_command: check_command(file.reboot_command)?,
            retention: Retention::resolve(file.retention.unwrap_or_default())?,
            stop_wait: time("stop_wait", file.stop_wait.as_deref(), Duration::ZERO)?,
            upgrade: file.upgrade.resolve()?,
        })
    }
}

fn bytes(key: &'static str, number: Option<i64>, default: u64) -> Result<u64, ConfigError> {
    number.map_or(Ok(default), |number| {
        u64::try_from(number).map_err(|_| wrong(key, &number, &"must not be negative"))
    })
}

fn time(key: &'static str, text: Option<&str>, default: Duration) -> Result<Duration, ConfigError> {
    text.map_or(Ok(default), |text| {
        let time = humantime::parse_duration(text).map_err(|e| wrong(key, &text, &e))?;
        if time > MAX_TIME {
            return Err(wrong(key, &text, &"must be at most 1 day"));
        }
        Ok(time)
    })
}

fn check_command(words: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let problem = match words.first() {
        None => return Ok(words),
        Some(program) if program.is_empty() => "names no program",
        Some(_) if words.len() > MAX_COMMAND_WORDS => "has more than 64 words",
        Some(_) if words.iter().any(|word| word.contains('\0')) => "has a NUL",
        Some(_) => return Ok(words),
    };
    Err(wrong("reboot_command", &format!("{words:?}"), &problem))
}

fn wrong(key: &'static str, value: &dyn ToString, problem: &dyn ToString) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), problem: problem.to_string() }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT))
}

fn parse_listen(text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if text == "none" {
        return Ok(None);
    }
    let problem = "must be ADDRESS:PORT, for example 0.0.0.0:10950, or none";
    text.parse().map(Some).map_err(|_| wrong("listen", &text, &problem))
}

/// The name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Reads a TOML file; `None` when it isn't there.
fn read_toml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ConfigError::File { path: path.to_owned(), source }),
    };
    toml::from_str(&text).map(Some).map_err(|error| ConfigError::Text {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1),
        message: error.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let root = tempfile::tempdir().unwrap();
        crate::durable::replace_file(&root.path().join("agent.toml"), text.as_bytes(), 0o600)
            .unwrap();
        Config::load(root.path(), Overrides::default())
    }

    #[test]
    fn no_file_and_the_template_are_the_defaults() {
        let root = tempfile::tempdir().unwrap();
        let defaults = Config::load(root.path(), Overrides::default()).unwrap();
        assert_eq!(defaults.listen, Some(default_listen()));
        assert_eq!(load(TEMPLATE).unwrap(), defaults);
        // The values in the comments are the defaults too.
        let uncommented: Vec<_> = TEMPLATE
            .lines()
            .map(|line| line.strip_prefix("#").filter(|l| l.contains(" = ")).unwrap_or(line))
            .filter(|line| !line.starts_with("name"))
            .collect();
        assert_eq!(load(&uncommented.join("\n")).unwrap(), defaults);
    }

    #[test]
    fn an_unknown_key_names_its_line() {
        let error = load("name = \"a\"\n\nqueue = 1\n").unwrap_err();
        assert!(matches!(&error, ConfigError::Text { line: 3, .. }), "{error:?}");
        assert!(error.to_string().contains("queue_length"), "{error}");
    }

    #[test]
    fn a_bad_value_names_its_key() {
        for (text, key) in [
            ("listen = \"here\"", "listen"),
            ("queue_length = 0", "queue_length"),
            ("max_output_bytes = -1", "max_output_bytes"),
            ("grace = \"soon\"", "grace"),
            ("grace = \"2d\"", "grace"),
            ("stop_wait = \"2d\"", "stop_wait"),
            ("[upgrade]\nhealth_limit = \"0s\"", "upgrade.health_limit"),
            ("[upgrade]\nkeys = [\"RWQ\"]", "upgrade.keys"),
            ("name = \" \"", "name"),
            ("reboot_command = [\"\"]", "reboot_command"),
            ("[files]\nmin_free_bytes = -1", "files.min_free_bytes"),
            ("[files]\nmax_file_bytes = -1", "files.max_file_bytes"),
            ("[files]\nmax_transfers = 0", "files.max_transfers"),
            ("[files.roots]\n\"a/b\" = { path = \"/x\", access = \"read\" }", "files.roots"),
            ("[retention]\nmax_age = \"soon\"", "retention.max_age"),
            ("[retention]\nmax_age = \"1m\"", "retention.max_age"),
            ("[retention]\nmin_age = \"x\"", "retention.min_age"),
            ("[retention]\nmax_scripts = -1", "retention.max_scripts"),
            ("[retention]\nmax_bytes = -1", "retention.max_bytes"),
        ] {
            assert!(load(text).unwrap_err().to_string().starts_with(key), "{text}");
        }
    }

    #[test]
    fn what_is_kept_is_a_table_of_its_own() {
        let table = "[retention]\nmax_age = \"none\"\nmax_scripts = 0\nmin_age = \"0s\"";
        let expected = Retention {
            max_age: None,
            max_scripts: 0,
            min_age: Duration::ZERO,
            ..Retention::default()
        };
        assert_eq!(load(table).unwrap().retention, expected);
        let error = load("[retention]\nmax = 1").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn a_flag_wins_over_the_file_and_none_is_no_tcp() {
        let file = ConfigFile { listen: Some("127.0.0.1:1".to_owned()), ..ConfigFile::default() };
        let flag = Overrides { listen: Some("none".to_owned()), ..Overrides::default() };
        assert_eq!(Config::resolve(file, flag).unwrap().listen, None);
    }
}
