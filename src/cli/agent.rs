//! `baton agent`: running an agent, its identity, whom it trusts.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::drain::{self, DrainArgs, ResumeArgs};
use super::failure::{Failure, code};
use super::moment;
use super::reach::Reach;
use super::screen::{write_json, write_out};
use super::show::Table;
use crate::agent::{Agent, AgentError, Settings};
use crate::config::{Config, ConfigError, Directories, Overrides, TEMPLATE};
use crate::filewatch::FileWatcher;
use crate::rpc::{self, Listeners, listen};
use crate::trust::tls::server_config;
use crate::trust::{Fingerprint, Identity, Peer, PeerBook, Peers};

/// The stem of the agent's identity files.
const AGENT: &str = "agent";

const EXAMPLES: &str = "\
Examples:
  baton agent init                                     make identity and configuration
  baton agent trust 5f3c… --name ci --expires 90d      let a client in
  baton agent run                                      serve, until Ctrl-C
  baton agent run --listen none                        serve callers of this machine only
  baton agent drain --wait                             let the machine come to rest";

/// Run an agent, and say whom it trusts
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AgentArgs {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Make the agent's identity and configuration, and print its fingerprint
    ///
    /// What is there already is kept.
    Init {
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    Run(RunArgs),
    Trust(TrustArgs),
    /// Trust a client no longer; its open connections end at once
    Untrust {
        /// Its name or fingerprint
        peer: String,
    },
    /// Show whom the agent trusts
    Peers {
        /// Print them as JSON, one a line
        #[arg(long)]
        json: bool,
    },
    Drain(DrainArgs),
    Resume(ResumeArgs),
    /// Show what a running agent is, how busy, and whether it drains
    #[command(visible_alias = "status")]
    Info {
        #[command(flatten)]
        reach: Reach,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Serve until Ctrl-C or SIGTERM; running scripts go on without the agent
///
/// The log goes to standard error; BATON_LOG says how much of it (for example debug, or
/// baton=trace).
#[derive(Debug, Args)]
struct RunArgs {
    /// Where to listen for peers: ADDRESS:PORT, or none. Default: 0.0.0.0:10950
    #[arg(long, env = "BATON_LISTEN", value_name = "ADDRESS")]
    listen: Option<String>,
    /// What the agent calls itself. Default: the host's name
    #[arg(long, env = "BATON_NAME", value_name = "NAME")]
    name: Option<String>,
    /// The form of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Let a client call this agent; takes effect at once
///
/// The client's fingerprint is what `baton identity` prints there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton agent trust 5f3c… --name ci
  baton agent trust 5f3c… --name contractor --expires 30d
  baton agent trust 5f3c… --name release --expires 2027-01-01")]
struct TrustArgs {
    /// The client's fingerprint
    fingerprint: Fingerprint,
    /// The name for it
    #[arg(long)]
    name: String,
    /// When the trust ends: after a time (30d), or on a date (2027-01-01). Default: never
    #[arg(long, value_name = "WHEN", value_parser = expiry)]
    expires: Option<Timestamp>,
}

pub(super) fn agent(args: AgentArgs, folders: Directories) -> Result<ExitCode, Failure> {
    match args.command {
        AgentCommand::Init { json } => init(&folders, json)?,
        AgentCommand::Run(args) => {
            log_to_stderr(args.log_format);
            return super::asynchronous(run(args, folders));
        }
        AgentCommand::Trust(TrustArgs { fingerprint, name, expires }) => {
            let peer = Peer { name: name.clone(), fingerprint, expires, added: Timestamp::now() };
            Peers::change(&folders.config, |peers| peers.trust(peer))?;
            write_out(format!("{name} is trusted\n").as_bytes())?;
        }
        AgentCommand::Untrust { peer } => {
            let peer = Peers::change(&folders.config, |peers| peers.untrust(&peer))?;
            write_out(format!("{} is not trusted any more\n", peer.name).as_bytes())?;
        }
        AgentCommand::Peers { json } => peers(&folders.config, json)?,
        AgentCommand::Drain(args) => return super::asynchronous(drain::drain(args, folders)),
        AgentCommand::Resume(args) => return super::asynchronous(drain::resume(args, folders)),
        AgentCommand::Info { reach, json } => {
            return super::asynchronous(agent_info(reach, folders, json));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn expiry(text: &str) -> Result<Timestamp, String> {
    let end = moment::ahead(text)?;
    if end <= Timestamp::now() {
        return Err("is over already".to_owned());
    }
    Ok(end)
}

fn init(folders: &Directories, json: bool) -> Result<(), Failure> {
    let fingerprint = Identity::load_or_create(&folders.config, AGENT)?.fingerprint();
    let path = folders.config.join("agent.toml");
    if !path.exists() {
        crate::durable::replace_file(&path, TEMPLATE.as_bytes(), 0o644)
            .map_err(|source| ConfigError::File { path: path.clone(), source })?;
    }
    let config = Config::load(&folders.config, Overrides::default())?;
    if json {
        let folder = &folders.config;
        write_json(&json!({"fingerprint": fingerprint, "name": config.name, "folder": folder}))?;
        return Ok(());
    }
    let port = config.listen.map_or(crate::config::DEFAULT_PORT, |address| address.port());
    let host = crate::config::host_name();
    let text = format!(
        "identity and configuration are in {folder}\n\
         fingerprint: {fingerprint}\n\
         \n\
         next:\n\
         \x20 on a client:   baton identity\n\
         \x20 here:          baton agent trust CLIENT-FINGERPRINT --name CLIENT\n\
         \x20 here:          baton agent run\n\
         \x20 on the client: baton target add {host} {host}:{port} --fingerprint {fingerprint}\n",
        folder = folders.config.display(),
    );
    Ok(write_out(text.as_bytes())?)
}

fn peers(config: &Path, json: bool) -> Result<(), Failure> {
    let peers = Peers::load(config)?;
    let now = Timestamp::now();
    let mut table = Table::new(&["NAME", "FINGERPRINT", "EXPIRES"]);
    for peer in peers.iter() {
        if json {
            write_json(&json!({
                "name": peer.name,
                "fingerprint": peer.fingerprint,
                "expires": peer.expires,
                "added": peer.added,
            }))?;
        }
        let expires = match peer.expires {
            Some(end) if end <= now => format!("{end} (expired)"),
            Some(end) => end.to_string(),
            None => "never".to_owned(),
        };
        table.row(vec![peer.name.clone(), peer.fingerprint.to_string(), expires]);
    }
    if !json {
        write_out(table.render().as_bytes())?;
    }
    Ok(())
}

fn log_to_stderr(format: LogFormat) {
    let filter = || EnvFilter::try_from_env("BATON_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_ansi(super::failure::has_colours())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

async fn run(args: RunArgs, folders: Directories) -> Result<ExitCode, Failure> {
    // Each script takes a few; the usual limit of 1024 would be that of the queue.
    let open_files = crate::process::raise_open_files();
    let overrides = Overrides { listen: args.listen, name: args.name };
    let config = Config::load(&folders.config, overrides)?;
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    // Before the state is opened: a port in use is the commonest mistake.
    let tasks = TaskTracker::new();
    let mut listeners = Listeners::default();
    if let Some(address) = config.listen {
        listeners.tcp = Some(listen_tcp(address, &folders, &tasks, &stop).await?);
    }
    // What comes back after a restart may wait for the disk.
    let open = Agent::open(settings(&folders, &config, open_files)?);
    let Some(agent) = stop.run_until_cancelled(open).await else {
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
    info!(name = config.name, socket = %socket.display(), "the agent serves");
    let served = rpc::serve(agent.clone(), config.name, listeners, stop.clone()).await;
    info!("the agent stops; scripts go on");
    agent.close().await;
    stop.cancel();
    for path in [socket, folders.address_file()] {
        // Best effort: a stale socket is replaced by the next agent.
        std::fs::remove_file(path).unwrap_or_default();
    }
    served.map_err(|error| Failure::new(code::INTERNAL, error))?;
    Ok(ExitCode::SUCCESS)
}

fn socket_text(socket: &Path) -> String {
    format!("socket {}", socket.display())
}

fn settings(
    folders: &Directories,
    config: &Config,
    open_files: Option<u64>,
) -> Result<Settings, Failure> {
    Ok(Settings {
        state: folders.state.clone(),
        mutexes: folders.mutex.clone(),
        program: std::env::current_exe()?,
        queue_length: config.queue_length,
        max_output_bytes: config.max_output_bytes,
        min_free_bytes: config.min_free_bytes,
        grace: config.grace,
        files: config.files.clone(),
        reboot_command: config.reboot_command.clone(),
        retention: Some(config.retention.clone()),
        open_files,
        tied: false,
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

fn stop_on_signals(stop: CancellationToken) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // The task ends with the agent.
    drop(tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
    }));
    Ok(())
}

async fn agent_info(reach: Reach, folders: Directories, json: bool) -> Result<ExitCode, Failure> {
    let info = reach.client(&folders).await?.info().await?;
    let status = info.status.unwrap_or_default();
    if json {
        write_json(&json!({
            "version": info.version,
            "name": info.name,
            "hostname": info.hostname,
            "os": info.os,
            "architecture": info.architecture,
            "mutex_directory": info.mutex_directory,
            "queued": status.queued,
            "waiting": status.waiting,
            "running": status.running,
            "draining": drain::status_json(&status)["draining"],
            "store_problem": drain::status_json(&status)["store_problem"],
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let line = |text: String| format!("{text}\n");
    let drains = drain::draining(&status).map(line).unwrap_or_default();
    let problem = drain::store_problem(&status).map(line).unwrap_or_default();
    let text = format!(
        "{name}: baton {version} on {hostname} ({os}, {architecture})\n\
         scripts: {running} running, {waiting} waiting, {queued} queued\n\
         mutexes: {mutexes}\n\
         {drains}{problem}",
        name = info.name,
        version = info.version,
        hostname = info.hostname,
        os = info.os,
        architecture = info.architecture,
        running = status.running,
        waiting = status.waiting,
        queued = status.queued,
        mutexes = info.mutex_directory,
    );
    write_out(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let in_use = matches!(error, AgentError::StateInUse { .. });
        let failure = Self::new(code::INTERNAL, error);
        if in_use {
            return failure.hint("BATON_STATE_DIR gives another agent its own state");
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_ends_after_a_time_or_on_a_date() {
        assert!(expiry("30d").unwrap() > Timestamp::now());
        assert!(expiry("2027-01-01").is_ok());
        assert!(expiry("2027-01-01T12:00:00Z").is_ok());
        assert!(expiry("2020-01-01").unwrap_err().contains("over"));
        assert!(expiry("0s").is_err());
        assert!(expiry("some day").unwrap_err().contains("30d"));
    }
}
