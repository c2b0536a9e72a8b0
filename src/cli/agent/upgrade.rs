//! `baton agent upgrade`: another version of the program takes the agent's place.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::cli::failure::{Failure, code};
use crate::cli::moving::Telling;
use crate::cli::reach::Reach;
use crate::cli::screen::{write_json, write_out};
use crate::client::UpgradeWish;
use crate::config::Directories;
use crate::upgrade::MAX_SIGNATURE_BYTES;
use crate::wire::{from_duration, v1};

/// Put another version in the place of a running agent's program; scripts go on
///
/// The agent takes it only with a signature of minisign by one of the keys in upgrade.keys of its agent.toml. It
/// lets it say its version, puts it in the place of its own program, and becomes it. When the new version does
/// not serve within upgrade.health_limit, the old one comes back by itself. What runs and what is queued goes on
/// throughout. Needs the role admin.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  minisign -S -m baton                                 sign it, once; makes baton.minisig
  baton agent upgrade ./baton                          this machine's agent
  baton agent upgrade --target web-1 ./baton
  baton agent upgrade --target web-1 ./baton --dry-run check it there, replace nothing

Exit status: 0 upgraded, or it runs already; 1 rolled back; 75 another upgrade is in progress;
77 not allowed, or not signed by a known key; 70 what became of it is not known; 2 refused.")]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    reach: Reach,
    /// The program
    file: PathBuf,
    /// Its signature. Default: FILE.minisig
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Take it also when it is older than what runs
    #[arg(long)]
    allow_downgrade: bool,
    /// Check it only: replace nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    telling: Telling,
}

/// What is told in the end.
struct End<'a> {
    event: &'static str,
    response: &'a v1::UpgradeResponse,
    reason: &'a str,
}

/// Upgrades.
pub(super) async fn upgrade(args: UpgradeArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let UpgradeArgs { reach, file, signature, allow_downgrade, dry_run, telling } = args;
    // A name that is mistyped has no signature either.
    std::fs::metadata(&file).map_err(|error| {
        Failure::new(code::USAGE, anyhow::Error::new(error).context(format!("{}", file.display())))
    })?;
    let signature = signature.unwrap_or_else(|| crate::client::signature_path(&file));
    let text = read_signature(&signature)?;
    let client = reach.client(&folders).await?;
    let moving = telling.begin(&file.display().to_string());
    let wish = UpgradeWish { program: file, signature: text, allow_downgrade, dry_run };
    let response = client.upgrade(wish, moving.tell()).await?;
    drop(moving);
    let v1::UpgradeResponse { from_version: from, to_version: to, .. } = &response;
    if response.unchanged {
        let text = format!("the agent runs this program already (version {to})");
        let end = End { event: "unchanged", response: &response, reason: "" };
        return end.tell(telling, &text, ExitCode::SUCCESS);
    }
    if response.upgrade_id.is_empty() {
        let text = format!("version {to} would take the place of {from}; nothing was replaced");
        let end = End { event: "checked", response: &response, reason: "" };
        return end.tell(telling, &text, ExitCode::SUCCESS);
    }
    telling.note(&format!("version {to} is in place of {from}; the agent restarts"));
    let limit = response.health_limit.and_then(from_duration).unwrap_or_default();
    let Some(upgrade) = client.upgraded(&response.upgrade_id, limit).await? else {
        let text = "agent did not say in time what became of the upgrade";
        return Err(Failure::new(code::INTERNAL, anyhow::Error::msg(text))
            .hint("`baton agent info` says so when it is reached; its log says more"));
    };
    match upgrade.phase() {
        v1::UpgradePhase::Upgraded => {
            let text = format!("upgraded from {from} to {to}");
            let end = End { event: "upgraded", response: &response, reason: "" };
            end.tell(telling, &text, ExitCode::SUCCESS)
        }
        v1::UpgradePhase::RolledBack
        | v1::UpgradePhase::InProgress
        | v1::UpgradePhase::Unspecified => {
            let reason = &upgrade.reason;
            if telling.json() {
                let end = End { event: "rolled_back", response: &response, reason };
                return end.tell(telling, "", ExitCode::from(code::REFUSED));
            }
            let text = format!("upgrade to {to} was rolled back, {from} serves again: {reason}");
            Err(Failure::new(code::REFUSED, anyhow::Error::msg(text))
                .hint("the agent's log says what the new version said"))
        }
    }
}

impl End<'_> {
    fn tell(self, telling: Telling, text: &str, code: ExitCode) -> Result<ExitCode, Failure> {
        let Self { event, response, reason } = self;
        if telling.json() {
            write_json(&json!({
                "event": event,
                "upgrade_id": response.upgrade_id,
                "from": response.from_version,
                "to": response.to_version,
                "reason": reason,
            }))?;
        } else if !telling.quiet() {
            write_out(format!("{text}\n").as_bytes())?;
        }
        Ok(code)
    }
}

fn read_signature(path: &std::path::Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        let text = format!("signature {}", path.display());
        Failure::new(code::USAGE, anyhow::Error::new(error).context(text))
            .hint("minisign -S -m FILE makes it; --signature names another file")
    };
    let length = path.metadata().map_err(failed)?.len();
    if length > u64::try_from(MAX_SIGNATURE_BYTES).unwrap_or(u64::MAX) {
        return Err(Failure::usage(format!("{} is too long for a signature", path.display())));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    // What is no text is refused by the agent as no signature.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
