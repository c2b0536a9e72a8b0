//! File, environment and flags become one validated configuration.
//!
//! ```text
//!  defaults ◄─ agent.toml ◄─ BATON_… ◄─ flags      each lays its values over those before it
//! ```
//!
//! 1. All that is wrong is told together, each with its line, variable or flag; then nothing of it counts.
//! 2. Each value knows where it comes from.
//! 3. [`Key`] is the one table of keys. Its names, the environment's, and whether a running agent takes another
//!    value come from nowhere else.

pub mod client;
pub mod directories;
mod document;
mod environment;
pub mod files;
mod given;
pub mod instance;
mod key;
mod layers;
pub mod retention;
pub mod upgrade;
mod value;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use directories::Directories;
pub use given::{Origin, Problem, Problems};
pub use instance::Instance;
pub use key::{Applies, Key, Shape};
pub use layers::{Change, Changes, Layers, Overrides, Sources};
pub use retention::Retention;
pub use upgrade::Upgrade;

/// The TCP port of an agent.
pub const DEFAULT_PORT: u16 = 10950;
/// How many scripts may be queued or running.
pub const DEFAULT_QUEUE_LENGTH: usize = 1000;
/// What the queue length may be.
const QUEUE_LENGTHS: RangeInclusive<u64> = 1..=100_000;
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
    /// Values are wrong, or keys are not known.
    #[error(transparent)]
    Invalid(Problems),
    /// That is no name of an instance.
    #[error("instance = {name:?}: {problem}")]
    Instance {
        /// What was given.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No directory is known for a purpose.
    #[error("no home directory: set HOME, or {0}")]
    NoHome(&'static str),
    /// A Unix socket's path has a limit.
    #[error("socket path {0} is longer than {max} bytes", max = directories::MAX_SOCKET_PATH)]
    SocketPath(PathBuf),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: host_name(),
            listen: Some(SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT))),
            queue_length: DEFAULT_QUEUE_LENGTH,
            max_output_bytes: DEFAULT_MAX_OUTPUT_BYTES,
            min_free_bytes: DEFAULT_MIN_FREE_BYTES,
            grace: DEFAULT_GRACE,
            files: files::Files::default(),
            reboot_command: Vec::new(),
            retention: Retention::default(),
            stop_wait: Duration::ZERO,
            upgrade: Upgrade::default(),
        }
    }
}

impl Config {
    /// Reads `<config>/agent.toml`, if there is one, the environment and flags.
    ///
    /// # Errors
    /// When it can't be read, or says something that isn't known or allowed.
    pub fn load(folder: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let layers = Sources::of(folder, overrides).read()?;
        Ok(Arc::unwrap_or_clone(layers.config))
    }
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
