//! The agent as a service of the system: units, what systemd is told, the journal.
//!
//! Nothing here decides about scripts. What is changed on the machine is a plan first ([`plan`]), which can be
//! shown instead of carried out.

pub mod installed;
pub mod journal;
pub mod notify;
pub mod plan;
pub mod systemctl;
pub mod unit;

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;

/// Why a service is not installed, removed or asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The machine has another init.
    #[error("systemd does not run this machine")]
    NoSystemd,
    /// Only root changes services.
    #[error("only root may change services")]
    NotRoot,
    /// There is nothing to start or stop.
    #[error("{0} is not installed")]
    NotInstalled(String),
    /// There is no such user.
    #[error("user {0:?} is not known")]
    UnknownUser(String),
    /// The agents would not exclude each other.
    #[error("{unit} is run by {user}: agents of different users do not exclude each other")]
    OtherUser {
        /// The other agent.
        unit: String,
        /// Its user.
        user: String,
    },
    /// Another agent listens there.
    #[error("port {port} is that of {unit}")]
    Port {
        /// Which.
        port: u16,
        /// Whose.
        unit: String,
    },
    /// Scripts run whose state would be removed.
    #[error("scripts still run ({0}); their state would be removed under them")]
    Busy(usize),
    /// What one user left, another one would run.
    #[error("state folder {path} is that of user {owner}")]
    OthersState {
        /// Which.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// Scripts of root run, whose files would be another user's.
    #[error("scripts still run as root ({0}); their state would be another user's")]
    RootsScripts(usize),
    /// A file can't be read, written or removed.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A configuration can't be changed.
    #[error("configuration file {path}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml_edit::TomlError>,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A command can't be run.
    #[error("`{command}` can't be run")]
    Command {
        /// Which.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command failed; it said why itself.
    #[error("`{command}` failed with status {code}")]
    Failed {
        /// Which.
        command: String,
        /// Its exit status.
        code: i32,
    },
}
