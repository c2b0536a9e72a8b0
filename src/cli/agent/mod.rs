//! `baton agent`: running an agent, its identity, whom it trusts.

mod info;
mod reload;
mod run;
mod trust;
mod upgrade;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use self::reload::ReloadArgs;
use self::run::RunArgs;
use self::trust::TrustArgs;
use self::upgrade::UpgradeArgs;
use super::drain::{self, DrainArgs, ResumeArgs};
use super::failure::Failure;
use super::reach::Reach;
use super::screen::{write_json, write_out};
use crate::config::{Config, ConfigError, Directories, Overrides, TEMPLATE};
use crate::trust::Identity;

/// The stem of the agent's identity files.
const AGENT: &str = "agent";

const EXAMPLES: &str = "\
Examples:
  baton agent init                                     make identity and configuration
  baton agent trust 5f3c… --name ci --expires 90d      let a client in
  baton agent run                                      serve, until Ctrl-C
  baton agent run --listen none                        serve callers of this machine only
  baton agent reload                                   take a changed agent.toml
  baton agent drain --wait                             let the machine come to rest
  baton agent upgrade --target web-1 ./baton           another version, scripts go on";

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
    Reload(ReloadArgs),
    Upgrade(UpgradeArgs),
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

pub(super) fn agent(args: AgentArgs, folders: Directories) -> Result<ExitCode, Failure> {
    match args.command {
        AgentCommand::Init { json } => init(&folders, json)?,
        AgentCommand::Run(args) => return run::agent_run(args, folders),
        AgentCommand::Trust(args) => trust::trust(args, &folders.config)?,
        AgentCommand::Untrust { peer } => trust::untrust(&peer, &folders.config)?,
        AgentCommand::Peers { json } => trust::peers(&folders.config, json)?,
        AgentCommand::Drain(args) => return super::asynchronous(drain::drain(args, folders)),
        AgentCommand::Resume(args) => return super::asynchronous(drain::resume(args, folders)),
        AgentCommand::Reload(args) => return super::asynchronous(reload::reload(args, folders)),
        AgentCommand::Upgrade(args) => return super::asynchronous(upgrade::upgrade(args, folders)),
        AgentCommand::Info { reach, json } => {
            return super::asynchronous(info::agent_info(reach, folders, json));
        }
    }
    Ok(ExitCode::SUCCESS)
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
