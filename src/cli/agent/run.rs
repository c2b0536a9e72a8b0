//! `baton agent run`: serves until a signal.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::AGENT;
use super::reload::Hangups;
use crate::agent::{Agent, AgentError, Settings};
use crate::cli::failure::{Failure, code, complain};
use crate::config::instance::DEFAULT_NAME;
use crate::config::{Directories, Instance, Overrides, Sources};
use crate::filewatch::FileWatcher;
use crate::rpc::{self, Listeners, listen};
use crate::service::journal::Journal;
use crate::service::notify;
use crate::trust::tls::server_config;
use crate::trust::{Identity, PeerBook};

/// Serve until Ctrl-C or SIGTERM; running scripts go on without the agent
///
/// Told to stop, it first waits as long as stop_wait in agent.toml says for what runs, and starts nothing
/// more; a second Ctrl-C or SIGTERM ends the wait. The log goes to standard error; BATON_LOG says how much
/// of it (for example debug, or baton=debug). systemd is told when it serves, how busy it is, and that it
/// makes progress.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    // Not by clap's `env`: `baton config show` tells a flag from a variable.
    /// Where to listen for peers: ADDRESS:PORT, or none. Default: 0.0.0.0:10950 [env: BATON_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// What the agent calls itself. Default: the host's name [env: BATON_NAME]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The form of the log. Default: journal where systemd's journal reads standard error, else text
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
    /// To systemd's journal, with fields: BATON_SCRIPT_ID, BATON_INSTANCE and others
    Journal,
}

/// How an agent is told to stop.
#[derive(Debug, Clone, Default)]
struct Stop {
    /// It is to come to rest.
    asked: CancellationToken,
    /// It is to end now.
    now: CancellationToken,
}

/// Serves.
pub(super) fn agent_run(args: RunArgs, folders: Directories) -> Result<ExitCode, Failure> {
    start_log(args.log_format, folders.instance.as_ref());
    crate::cli::asynchronous(run(args, folders))
}

fn start_log(format: Option<LogFormat>, instance: Option<&Instance>) {
    let filter = log_filter(&std::env::var("BATON_LOG").unwrap_or_default());
    let is_journal = || Journal::reads_stderr().then_some(LogFormat::Journal);
    let format = format.or_else(is_journal).unwrap_or(LogFormat::Text);
    let journal = || Journal::connect(instance.map_or(DEFAULT_NAME, Instance::as_str));
    if let (LogFormat::Journal, Ok(journal)) = (format, journal()) {
        return tracing_subscriber::registry().with(filter).with(journal).init();
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(crate::cli::failure::has_colours())
        .with_writer(std::io::stderr);
    match format {
        // Also when there is no journal after all.
        LogFormat::Text | LogFormat::Journal => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// What `BATON_LOG` lets through. What can't be had is said: who sets it looks for something.
fn log_filter(wanted: &str) -> EnvFilter {
    const DEFAULT: &str = "info";
    if wanted.is_empty() {
        return EnvFilter::new(DEFAULT);
    }
    let (most, lowered) = (STATIC_MAX_LEVEL, with_debug_for_trace(wanted));
    let wanted = if most < LevelFilter::TRACE && lowered != wanted {
        complain(&format!("warning: BATON_LOG={wanted}: a release tells no more than {most}"));
        &lowered
    } else {
        wanted
    };
    EnvFilter::try_new(wanted).unwrap_or_else(|error| {
        complain(&format!("warning: BATON_LOG={wanted}: {error}; {DEFAULT} is taken"));
        EnvFilter::new(DEFAULT)
    })
}

/// Directives such as `info,baton=trace` with the level below.
fn with_debug_for_trace(directives: &str) -> String {
    let lower = |directive: &str| {
        let (target, level) = match directive.rsplit_once('=') {
            Some((target, level)) => (format!("{target}="), level),
            None => (String::new(), directive),
        };
        let is_trace = level.trim().eq_ignore_ascii_case("trace");
        format!("{target}{}", if is_trace { "debug" } else { level })
    };
    directives.split(',').map(lower).collect::<Vec<_>>().join(",")
}

async fn run(args: RunArgs, folders: Directories) -> Result<ExitCode, Failure> {
    // Each script takes a few; the usual limit of 1024 would be that of the queue.
    let open_files = crate::process::raise_open_files();
    let overrides = Overrides { listen: args.listen, name: args.name };
    let layers = Sources::of(&folders.config, overrides).read()?;
    for (variable, hint) in &layers.mistyped {
        warn!(variable, hint, "no key has this variable");
    }
    let hangups = Hangups::new()?;
    let Stop { asked, now: stop } = stop_on_signals()?;
    // Before the state is opened: a port in use is the commonest mistake.
    let tasks = TaskTracker::new();
    let mut listeners = Listeners::default();
    if let Some(address) = layers.config.listen {
        listeners.tcp = Some(listen_tcp(address, &folders, &tasks, &stop).await?);
    }
    // What comes back after a restart may wait for the disk.
    let open = Agent::open(settings(&folders, open_files)?, layers);
    let Some(agent) = asked.run_until_cancelled(open).await else {
        return Ok(ExitCode::SUCCESS);
    };
    let agent = agent?;
    let socket = folders.socket()?;
    listeners.unix = Some(listen::bind_unix(&socket).map_err(|error| {
        let failure =
            Failure::new(code::INTERNAL, anyhow::Error::new(error).context(socket_text(&socket)));
        failure.hint("an agent may run already; BATON_RUNTIME_DIR gives another one its own socket")
    })?);
    announce(&listeners, &folders)?;
    hangups.follow(agent.clone(), &tasks, asked.clone(), &stop);
    info!(name = agent.config().name, socket = %socket.display(), "the agent serves");
    notify::ready().await;
    let serving = rpc::serve(agent.clone(), listeners, stop.clone());
    let stopping = wind_down(&agent, Stop { asked: asked.clone(), now: stop.clone() });
    let (served, ()) = tokio::select! {
        both = async { tokio::join!(serving, stopping) } => both,
        () = notify::follow(&agent) => (Ok(()), ()),
    };
    info!("the agent stops; scripts go on");
    agent.close().await;
    stop.cancel();
    for path in [socket, folders.address_file()] {
        // Best effort: a stale socket is replaced by the next agent.
        std::fs::remove_file(path).unwrap_or_default();
    }
    served.map_err(|error| Failure::new(code::INTERNAL, error))?;
    if asked.is_cancelled() {
        agent.forgo_successor().await;
    }
    if let Some(error) = agent.become_successor() {
        return Err(Failure::new(code::INTERNAL, error));
    }
    Ok(ExitCode::SUCCESS)
}

fn socket_text(socket: &Path) -> String {
    format!("socket {}", socket.display())
}

fn settings(folders: &Directories, open_files: Option<u64>) -> Result<Settings, Failure> {
    Ok(Settings {
        state: folders.state.clone(),
        mutexes: folders.mutex.clone(),
        program: std::env::current_exe()?,
        open_files,
        socket: Some(folders.socket()?),
        tied: false,
        on_migration: notify::migrating,
    })
}

async fn listen_tcp(
    address: SocketAddr,
    folders: &Directories,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(TcpListener, Arc<rustls::ServerConfig>, PeerBook), Failure> {
    let identity = Identity::load_or_create(&folders.config, AGENT)?;
    let watcher = FileWatcher::start(tasks, stop.clone())?;
    let peers = PeerBook::follow(folders.config.clone(), &watcher, tasks, stop.clone())?;
    let tls = server_config(&identity, peers.clone())?;
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let text = format!("listening on {address}");
        let failure = Failure::new(code::INTERNAL, anyhow::Error::new(error).context(text));
        failure.hint("--listen takes another address; `--listen none` serves this machine only")
    })?;
    info!(address = %listener.local_addr()?, fingerprint = %identity.fingerprint(), "listening");
    Ok((listener, Arc::new(tls), peers))
}

/// Writes the address where the agent listens, for who starts it on port 0.
fn announce(listeners: &Listeners, folders: &Directories) -> Result<(), Failure> {
    if let Some((listener, ..)) = &listeners.tcp {
        let text = format!("{}\n", listener.local_addr()?);
        crate::durable::replace_file(&folders.address_file(), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// The first signal asks, the second one does not wait.
fn stop_on_signals() -> Result<Stop, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = Stop::default();
    let told = stop.clone();
    // The task ends with the agent.
    drop(tokio::spawn(async move {
        for token in [told.asked, told.now] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
        }
    }));
    Ok(stop)
}

/// Waits until the agent is told to stop, then for what runs; in the end it is to stop now.
async fn wind_down(agent: &Agent, stop: Stop) {
    tokio::select! {
        () = stop.asked.cancelled() => {}
        // The server has failed.
        () = stop.now.cancelled() => return,
    }
    notify::stopping().await;
    let wait = agent.config().stop_wait;
    if !wait.is_zero() {
        info!(wait = %humantime::format_duration(wait), "told to stop; waits for what runs");
        tokio::select! {
            () = agent.wind_down(wait) => {}
            () = stop.now.cancelled() => info!("told to stop again; waits no longer"),
            () = notify::ask_for_time() => {}
        }
    }
    stop.now.cancel();
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let in_use = matches!(error, AgentError::StateInUse { .. });
        let others = matches!(error, AgentError::OthersState { .. });
        let failure = Self::new(if others { code::REFUSED } else { code::INTERNAL }, error);
        if in_use {
            return failure.hint("BATON_STATE_DIR gives another agent its own state");
        }
        if others {
            return failure.hint(
                "`baton service start` starts the agent of that user; BATON_STATE_DIR gives root its own state",
            );
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_is_taken_as_debug_and_nothing_else_changes() {
        for (wanted, lowered) in [
            ("trace", "debug"),
            ("info,baton=TRACE", "info,baton=debug"),
            ("tracer=warn,baton[span{a=trace}]=info", "tracer=warn,baton[span{a=trace}]=info"),
            ("off", "off"),
        ] {
            assert_eq!(with_debug_for_trace(wanted), lowered);
        }
    }

    #[test]
    fn a_mistyped_level_leaves_the_usual_log() {
        for (wanted, taken) in [("", "info"), ("baton=loud", "info"), ("warn", "warn")] {
            assert_eq!(log_filter(wanted).to_string(), taken, "{wanted}");
        }
    }
}
