//! How a command fails: what is printed, and the exit status.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use tonic::Code;

use crate::client::embedded::EmbeddedError;
use crate::client::{ClientError, ConnectError};
use crate::config::{self, ConfigError};
use crate::deploy::load::LoadError;
use crate::deploy::problem::{Problem, Problems};
use crate::deploy::target_edit::EditError;
use crate::format::Newer;
use crate::trust::TrustError;

/// Exit statuses that are not the script's, after `sysexits.h` and coreutils' `timeout`.
pub(super) mod code {
    /// What was named is not what is there.
    pub(crate) const REFUSED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const UNREACHABLE: u8 = 69;
    pub(crate) const INTERNAL: u8 = 70;
    pub(crate) const BUSY: u8 = 75;
    /// A fleet-wide mutex was lost while its command ran.
    pub(crate) const LOST: u8 = 76;
    pub(crate) const NOT_ALLOWED: u8 = 77;
    /// A newer baton wrote what is here: EX_CONFIG.
    pub(crate) const NEWER: u8 = 78;
    pub(crate) const TIMED_OUT: u8 = 124;
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    pub(crate) const NOT_FOUND: u8 = 127;
    /// 128 + SIGHUP: the terminal is gone.
    pub(crate) const HUNG_UP: u8 = 129;
    pub(crate) const CANCELLED: u8 = 130;
    /// 128 + SIGPIPE: the reader of the output is gone.
    pub(crate) const BROKEN_PIPE: u8 = 141;
}

/// A failed command.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    /// None: there is nothing to say.
    error: Option<anyhow::Error>,
    hints: Vec<String>,
    /// What else is wrong.
    more: Vec<Self>,
}

impl Failure {
    pub(super) fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        // Wherever it was met: it is the same for all commands.
        let newer = error.chain().find_map(|cause| cause.downcast_ref::<Newer>());
        let hints: Vec<String> = newer.map(Newer::hint).into_iter().collect();
        let code = if hints.is_empty() { code } else { code::NEWER };
        Self { code, error: Some(error), hints, more: Vec::new() }
    }

    /// A mistake of the caller.
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self::new(code::USAGE, anyhow::Error::msg(text.into()))
    }

    /// The reader of the output is gone: nothing to say, and nobody to say it to.
    fn broken_pipe() -> Self {
        Self { code: code::BROKEN_PIPE, error: None, hints: Vec::new(), more: Vec::new() }
    }

    /// All that is wrong, one after the other.
    pub(super) fn several(code: u8, failures: Vec<Self>) -> Self {
        Self { code, error: None, hints: Vec::new(), more: failures }
    }

    /// The same with another exit status.
    pub(super) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    pub(super) fn is_broken_pipe(&self) -> bool {
        self.code == code::BROKEN_PIPE
    }

    /// Whether the agent can't be reached, or not any more.
    pub(super) fn is_connection(&self) -> bool {
        matches!(self.code, code::UNREACHABLE | code::NOT_ALLOWED)
    }

    pub(super) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(text.into());
        self
    }

    /// Prints it and returns the exit status.
    pub(super) fn report(self) -> ExitCode {
        self.tell();
        ExitCode::from(self.code)
    }

    fn tell(&self) {
        if let Some(error) = &self.error {
            complain(&format!("{} {error:#}", mark("error:")));
        }
        for hint in &self.hints {
            complain(&format!("{} {hint}", mark("hint:")));
        }
        self.more.iter().for_each(Self::tell);
    }
}

/// Whether standard error is a terminal on which colours are wanted.
pub(super) fn has_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    io::stderr().is_terminal() && !unwanted
}

/// A word that stands out, on a terminal that has colours.
fn mark(word: &str) -> String {
    match word {
        _ if !has_colours() => word.to_owned(),
        "error:" => format!("\u{1b}[1;31m{word}\u{1b}[0m"),
        _ => format!("\u{1b}[1;36m{word}\u{1b}[0m"),
    }
}

/// Prints a line for people on standard error.
pub(super) fn complain(text: &str) {
    use std::io::Write as _;
    // Nobody may be left to read it.
    writeln!(io::stderr().lock(), "{text}").unwrap_or_default();
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::broken_pipe();
        }
        Self::new(code::INTERNAL, error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        if let ConfigError::Invalid(problems) = &error {
            let one = |problem: &config::Problem| {
                let failure = Self::usage(problem.to_string());
                problem.hint.iter().cloned().fold(failure, Self::hint)
            };
            return Self::several(code::USAGE, problems.iter().map(one).collect());
        }
        let hint = match &error {
            ConfigError::SocketPath(_) => Some("set BATON_RUNTIME_DIR to a shorter path"),
            ConfigError::File { .. }
            | ConfigError::Text { .. }
            | ConfigError::Invalid(_)
            | ConfigError::Instance { .. }
            | ConfigError::NoHome(_) => None,
        };
        let failure = Self::new(code::USAGE, error);
        hint.into_iter().fold(failure, Self::hint)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        let one = |problem: &Problem| {
            let failure = Self::usage(problem.to_string());
            problem.hint.iter().cloned().fold(failure, Self::hint)
        };
        Self::several(code::USAGE, problems.iter().map(one).collect())
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Problems(problems) => problems.into(),
            LoadError::File { .. } => Self::new(code::USAGE, error),
        }
    }
}

impl From<EditError> for Failure {
    fn from(error: EditError) -> Self {
        let hint = match error {
            EditError::Problems(problems) => return problems.into(),
            EditError::Unknown(_) => Some("`baton target list` shows the known ones"),
            EditError::Exists(_) => Some("`baton target remove` it first"),
            EditError::Syntax(_) => None,
        };
        let failure = Self::new(code::USAGE, error);
        hint.into_iter().fold(failure, Self::hint)
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        match &error {
            TrustError::KeyIsOpen { path, .. } => {
                let hint = format!("chmod 600 {}", path.display());
                Self::new(code::NOT_ALLOWED, error).hint(hint)
            }
            TrustError::UnknownPeer(_) => {
                Self::new(code::USAGE, error).hint("`baton agent peers` shows the known ones")
            }
            TrustError::PeerExists { .. } | TrustError::PeerName { .. } => {
                Self::new(code::USAGE, error)
            }
            TrustError::File { .. }
            | TrustError::Newer { .. }
            | TrustError::Damaged { .. }
            | TrustError::Generate(_)
            | TrustError::Tls(_) => Self::new(code::INTERNAL, error),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::NoAgent(_) => Self::new(code::UNREACHABLE, error)
                .hint("start one with `baton agent run`, or name another machine with --target"),
            ConnectError::NotAllowed(_) => {
                Self::new(code::NOT_ALLOWED, error).hint("the agent's own user and root may use it")
            }
            ConnectError::NotTrusted { own, .. } => Self::new(code::NOT_ALLOWED, error)
                .hint(format!("on the target: baton agent trust {own} --name NAME")),
            ConnectError::WrongAgent { .. } => Self::new(code::NOT_ALLOWED, error)
                .hint("if the machine was set up anew: `baton target remove` it and add it again"),
            ConnectError::Unreachable { .. }
            | ConnectError::TimedOut(_)
            | ConnectError::Transport(_) => Self::new(code::UNREACHABLE, error),
            ConnectError::Identity(error) => error.into(),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (status, hint) = match &error {
            ClientError::Connect(_) => (code::UNREACHABLE, None),
            ClientError::Broken(_) | ClientError::Away(_) => (code::UNREACHABLE, None),
            ClientError::Wire(_) => {
                (code::INTERNAL, Some("agent and client may be of different versions"))
            }
            ClientError::Refused { reason, code: status, .. } => {
                let hint = match reason.as_str() {
                    "CONFIG_INVALID" => Some("nothing was changed; correct it and reload again"),
                    "AGENT_DRAINING" => Some("`baton agent resume` lets it take scripts again"),
                    "QUEUE_FULL" => Some("`baton queue` shows what is in it; try again later"),
                    "SCRIPT_ID_CONFLICT" => Some("an id stands for one request; choose another id"),
                    "ARTIFACT_NOT_FOUND" => Some("`baton artifacts list` shows the script's"),
                    "LEASE_NOT_FOUND" => Some("`baton lease list` shows the known ones"),
                    "LEASE_ENDED" => Some("open another one: `baton lease open`"),
                    "SCRIPT_NOT_DONE" => Some("`baton cancel --wait` stops it"),
                    "SCRIPT_NOT_FOUND" => Some("`baton list` shows the known scripts"),
                    "ROOT_NOT_FOUND" | "ROOT_UNUSABLE" => {
                        Some("the agent's agent.toml names its roots, in its table [files]")
                    }
                    "ROOT_READ_ONLY" => {
                        Some("the agent's agent.toml may give it access = \"read-write\"")
                    }
                    "UPGRADE_NOT_CONFIGURED" => {
                        Some("on the target: upgrade.keys in agent.toml, then restart the agent")
                    }
                    "UPGRADE_IN_PROGRESS" => Some("`baton agent info` shows it"),
                    "SIGNATURE_INVALID" => Some("sign the file anew: minisign -S -m FILE"),
                    "SIGNATURE_KEY_UNKNOWN" => {
                        Some("the key must stand in upgrade.keys of the target's agent.toml")
                    }
                    "PROGRAM_OLDER" => Some("--allow-downgrade takes it all the same"),
                    "PROGRAM_NOT_WRITABLE" => {
                        Some("who owns the program replaces it: a package manager, say")
                    }
                    "PATH_IS_LINK" => Some("name the file itself, or make its folder a root"),
                    "FILE_KIND_WRONG" => {
                        Some("to push into a folder, end its path with / (ROOT:FOLDER/)")
                    }
                    "OTHER_FILE_SYSTEM" => Some("make it a root of its own"),
                    "DISK_FULL" => {
                        Some("make room; the agent's files.min_free_bytes is what stays free")
                    }
                    "PACKAGE_CONFLICT" => Some("send it as a new version, or with --replace"),
                    "PACKAGE_NOT_FOUND" => Some("`baton package list` shows what is there"),
                    "PACKAGE_TOO_LARGE" => Some("the agent's files.max_file_bytes is the limit"),
                    "FILE_TOO_LARGE" => Some("the agent's files.max_file_bytes is the limit"),
                    "DIGEST_MISMATCH" => {
                        Some("the file was changed while it was sent; push it again")
                    }
                    _ => None,
                };
                // It is there, and busy with coming to rest.
                let busy = matches!(reason.as_str(), "AGENT_DRAINING" | "UPGRADE_IN_PROGRESS");
                (if busy { code::BUSY } else { exit_code(*status) }, hint)
            }
        };
        if let ClientError::Connect(error) = error {
            return error.into();
        }
        let more = role_hint(&error);
        let failure = Self::new(status, error);
        let failure = more.into_iter().fold(failure, Self::hint);
        hint.into_iter().fold(failure, Self::hint)
    }
}

/// How a peer is given the role that it lacks.
fn role_hint(error: &ClientError) -> Option<String> {
    let ClientError::Refused { reason, metadata, .. } = error else {
        return None;
    };
    let of = |key| metadata.get(key).map(String::as_str);
    if reason != "ROLE_TOO_LOW" {
        return None;
    }
    let (fingerprint, name, needed) = (of("fingerprint")?, of("peer")?, of("needed")?);
    Some(format!("on the target: baton agent trust {fingerprint} --name {name} --role {needed}"))
}

fn exit_code(status: Code) -> u8 {
    match status {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::FailedPrecondition => code::USAGE,
        Code::PermissionDenied | Code::Unauthenticated => code::NOT_ALLOWED,
        Code::ResourceExhausted => code::BUSY,
        Code::Unavailable => code::UNREACHABLE,
        Code::Cancelled => code::CANCELLED,
        Code::Ok
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => code::INTERNAL,
    }
}

impl From<EmbeddedError> for Failure {
    fn from(error: EmbeddedError) -> Self {
        match error {
            EmbeddedError::Agent(error) => error.into(),
            error @ (EmbeddedError::State { .. } | EmbeddedError::Connect(_)) => {
                Self::new(code::INTERNAL, error)
            }
        }
    }
}
