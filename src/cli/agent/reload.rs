//! `baton agent reload`, and SIGHUP: an agent reads its configuration again.

use std::fs::File;
use std::process::ExitCode;

use clap::Args;
use rustix::process::Signal as SignalNumber;
use serde_json::{Value, json};
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::agent::Agent;
use crate::cli::failure::Failure;
use crate::cli::reach::Reach;
use crate::cli::screen::{write_json, write_out};
use crate::cli::show::toml_as_json;
use crate::config::Directories;
use crate::mutex::os;
use crate::wire::v1;

/// Let a running agent read its configuration again
///
/// What can be applied without a restart is, at once and together; running scripts keep what they started
/// with. It says what has changed, and what needs a restart. When anything in it is wrong nothing is
/// changed. SIGHUP does the same; the agent's log then says what this command says.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  baton agent reload
  baton agent reload --target web-1
  baton config check && baton agent reload --json")]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    reach: Reach,
    /// Print what has changed as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn reload(args: ReloadArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let response = args.reach.client(&folders).await?.reload().await?;
    let v1::ReloadResponse { applied, needs_restart, unchanged } = response;
    if args.json {
        write_json(&json!({
            "applied": applied.iter().map(change_json).collect::<Vec<_>>(),
            "needs_restart": needs_restart.iter().map(change_json).collect::<Vec<_>>(),
            "unchanged": unchanged,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let applied = applied.iter().map(|change| format!("applied: {}\n", change_text(change)));
    let later = needs_restart.iter();
    let later = later.map(|change| format!("needs a restart: {}\n", change_text(change)));
    let text: String = applied.chain(later).collect();
    write_out(format!("{text}unchanged: {unchanged} keys\n").as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn change_text(change: &v1::ConfigChange) -> String {
    let v1::ConfigChange { key, old_value, new_value } = change;
    format!("{key} = {new_value} (was {old_value})")
}

fn change_json(change: &v1::ConfigChange) -> Value {
    let v1::ConfigChange { key, old_value, new_value } = change;
    json!({"key": key, "old": toml_as_json(old_value), "new": toml_as_json(new_value)})
}

/// SIGHUP: a wish to read the configuration again, unless it means that the terminal is gone.
pub(super) struct Hangups {
    signal: Signal,
    /// Whether the agent is to end with its terminal: it has one, and nohup did not start it.
    ends_with_terminal: bool,
}

impl Hangups {
    /// From here on SIGHUP does not end the process.
    pub(super) fn new() -> std::io::Result<Self> {
        let number = SignalNumber::HUP.as_raw();
        let ends_with_terminal = !os::not_ignored(&[number]).is_empty() && has_terminal();
        let kind = tokio::signal::unix::SignalKind::hangup();
        Ok(Self { signal: tokio::signal::unix::signal(kind)?, ends_with_terminal })
    }

    /// Reloads at each until `stop`; asks the agent to stop when its terminal is gone.
    pub(super) fn follow(
        self,
        agent: Agent,
        tasks: &TaskTracker,
        asked: CancellationToken,
        stop: &CancellationToken,
    ) {
        let Self { mut signal, ends_with_terminal } = self;
        let follow = async move {
            while signal.recv().await.is_some() {
                if ends_with_terminal && !has_terminal() {
                    info!("the terminal is gone");
                    asked.cancel();
                    continue;
                }
                // It tells what has changed itself.
                if let Err(error) = agent.reload().await {
                    error!(error = crate::text::chain(&error), "the configuration stays as it was");
                }
            }
        };
        drop(tasks.spawn(stop.clone().run_until_cancelled_owned(follow)));
    }
}

fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}
