//! `baton agent info`: what a running agent is.

use std::process::ExitCode;

use serde_json::json;

use super::drain;
use crate::cli::failure::Failure;
use crate::cli::reach::Reach;
use crate::cli::screen::{write_json, write_out};
use crate::config::Directories;
use crate::wire::{self, v1};

/// Shows it.
pub(super) async fn agent_info(
    reach: Reach,
    folders: Directories,
    json: bool,
) -> Result<ExitCode, Failure> {
    let info = reach.client(&folders).await?.info().await?;
    let role = wire::role(info.role()).map(|role| role.to_string());
    let status = info.status.unwrap_or_default();
    if json {
        write_json(&json!({
            "version": info.version,
            "name": info.name,
            "hostname": info.hostname,
            "os": info.os,
            "architecture": info.architecture,
            "mutex_directory": info.mutex_directory,
            "role": role,
            "api_revision": info.api_revision.max(1),
            "state_format": info.state_format,
            "queued": status.queued,
            "waiting": status.waiting,
            "running": status.running,
            "draining": drain::status_json(&status)["draining"],
            "stops_by": drain::status_json(&status)["stops_by"],
            "upgrade": upgrade_json(&status),
            "store_problem": drain::status_json(&status)["store_problem"],
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let line = |text: String| format!("{text}\n");
    let drains = drain::draining(&status).map(line).unwrap_or_default();
    let stops = drain::stopping(&status).map(line).unwrap_or_default();
    let problem = drain::store_problem(&status).map(line).unwrap_or_default();
    let upgrade = upgrade(&status).map(line).unwrap_or_default();
    let text = format!(
        "{name}: baton {version} on {hostname} ({os}, {architecture})\n\
         scripts: {running} running, {waiting} waiting, {queued} queued\n\
         mutexes: {mutexes}\n\
         {you}\
         {stops}{drains}{problem}{upgrade}",
        name = info.name,
        version = info.version,
        hostname = info.hostname,
        os = info.os,
        architecture = info.architecture,
        running = status.running,
        waiting = status.waiting,
        queued = status.queued,
        mutexes = info.mutex_directory,
        you = role.map(|role| format!("you are: {role}\n")).unwrap_or_default(),
    );
    write_out(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn phase(upgrade: &v1::AgentUpgrade) -> &'static str {
    match upgrade.phase() {
        v1::UpgradePhase::InProgress => "in_progress",
        v1::UpgradePhase::Upgraded => "upgraded",
        v1::UpgradePhase::RolledBack => "rolled_back",
        v1::UpgradePhase::Unspecified => "unknown",
    }
}

fn upgrade_json(status: &v1::AgentStatus) -> Option<serde_json::Value> {
    let time = |time: Option<prost_types::Timestamp>| {
        time.and_then(wire::from_timestamp).map(|time| time.to_string())
    };
    status.upgrade.as_ref().map(|upgrade| {
        json!({
            "upgrade_id": upgrade.upgrade_id,
            "from": upgrade.from_version,
            "to": upgrade.to_version,
            "caller": upgrade.caller,
            "phase": phase(upgrade),
            "reason": upgrade.reason,
            "begun_at": time(upgrade.begun_at),
            "ended_at": time(upgrade.ended_at),
        })
    })
}

/// The last upgrade, for people.
fn upgrade(status: &v1::AgentStatus) -> Option<String> {
    let upgrade = status.upgrade.as_ref()?;
    let v1::AgentUpgrade { from_version: from, to_version: to, caller, reason, .. } = upgrade;
    let when = upgrade.ended_at.or(upgrade.begun_at).and_then(wire::from_timestamp);
    let when = when.map(|when| format!(", {when}")).unwrap_or_default();
    Some(match upgrade.phase() {
        v1::UpgradePhase::Upgraded => format!("upgraded: {from} to {to} by {caller}{when}"),
        v1::UpgradePhase::RolledBack => {
            format!("upgrade to {to} by {caller} was rolled back{when}: {reason}")
        }
        v1::UpgradePhase::InProgress | v1::UpgradePhase::Unspecified => {
            format!("upgrade to {to} by {caller} is in progress{when}")
        }
    })
}
