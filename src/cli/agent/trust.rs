//! `baton agent trust`, `untrust` and `peers`: who may call this agent.

use std::path::Path;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use crate::cli::failure::Failure;
use crate::cli::moment;
use crate::cli::screen::{write_json, write_out};
use crate::cli::show::Table;
use crate::trust::{Fingerprint, Peer, Peers, Role};

/// Let a client call this agent; takes effect at once
///
/// The client's fingerprint is what `baton identity` prints there. To trust it again changes its role and its end.
///
/// An observer reads: scripts, output, files. An operator also runs and cancels scripts, sends files and
/// packages, and drains. An admin also upgrades the agent, and abandons what nothing can end.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton agent trust 5f3c… --name ci
  baton agent trust 5f3c… --name dashboard --role observer
  baton agent trust 5f3c… --name contractor --expires 30d
  baton agent trust 5f3c… --name release --expires 2027-01-01")]
pub(super) struct TrustArgs {
    /// The client's fingerprint
    fingerprint: Fingerprint,
    /// The name for it
    #[arg(long)]
    name: String,
    /// What it may do: observer, operator or admin
    #[arg(long, value_name = "ROLE", default_value_t = Role::Operator)]
    role: Role,
    /// When the trust ends: after a time (30d), or on a date (2027-01-01). Default: never
    #[arg(long, value_name = "WHEN", value_parser = expiry)]
    expires: Option<Timestamp>,
}

/// Trusts a client.
pub(super) fn trust(args: TrustArgs, config: &Path) -> Result<(), Failure> {
    let TrustArgs { fingerprint, name, role, expires } = args;
    let peer = Peer { name: name.clone(), fingerprint, role, expires, added: Timestamp::now() };
    Peers::change(config, |peers| peers.trust(peer))?;
    Ok(write_out(format!("{name} is trusted as {role}\n").as_bytes())?)
}

/// Trusts it no longer.
pub(super) fn untrust(peer: &str, config: &Path) -> Result<(), Failure> {
    let peer = Peers::change(config, |peers| peers.untrust(peer))?;
    Ok(write_out(format!("{} is not trusted any more\n", peer.name).as_bytes())?)
}

/// Shows them.
pub(super) fn peers(config: &Path, json: bool) -> Result<(), Failure> {
    let peers = Peers::load(config)?;
    let now = Timestamp::now();
    let mut table = Table::new(&["NAME", "ROLE", "FINGERPRINT", "EXPIRES"]);
    for peer in peers.iter() {
        if json {
            write_json(&json!({
                "name": peer.name,
                "fingerprint": peer.fingerprint,
                "role": peer.role,
                "expires": peer.expires,
                "added": peer.added,
            }))?;
        }
        let expires = match peer.expires {
            Some(end) if end <= now => format!("{end} (expired)"),
            Some(end) => end.to_string(),
            None => "never".to_owned(),
        };
        table.row(vec![
            peer.name.clone(),
            peer.role.to_string(),
            peer.fingerprint.to_string(),
            expires,
        ]);
    }
    if !json {
        write_out(table.render().as_bytes())?;
    }
    Ok(())
}

fn expiry(text: &str) -> Result<Timestamp, String> {
    let end = moment::ahead(text)?;
    if end <= Timestamp::now() {
        return Err("is over already".to_owned());
    }
    Ok(end)
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
