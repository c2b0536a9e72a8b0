//! `baton target`: the machines that this client knows by name.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::failure::Failure;
use super::screen::{write_json, write_out};
use super::show::Table;
use crate::config::Directories;
use crate::config::targets::{Target, Targets};
use crate::trust::Fingerprint;

/// Name the machines that this client knows
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton target add web-1 10.0.0.7:10950 --fingerprint 5f3c…
  baton run --target web-1 deploy.sh
  baton target remove web-1")]
pub(super) struct TargetArgs {
    #[command(subcommand)]
    command: TargetCommand,
}

#[derive(Debug, Subcommand)]
enum TargetCommand {
    /// Add a machine
    Add {
        /// The name for it
        name: String,
        /// HOST:PORT of its agent
        address: String,
        /// The fingerprint that `baton agent init` prints there
        #[arg(long)]
        fingerprint: Fingerprint,
    },
    /// Show the machines
    List {
        /// Print them as JSON, one a line
        #[arg(long)]
        json: bool,
    },
    /// Forget a machine
    Remove {
        /// Its name
        name: String,
    },
}

pub(super) fn target(args: TargetArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    let mut targets = Targets::load(&folders.config)?;
    match args.command {
        TargetCommand::Add { name, address, fingerprint } => {
            if !is_host_and_port(&address) {
                return Err(Failure::usage(format!("{address:?} is not HOST:PORT"))
                    .hint("the default port of an agent is 10950"));
            }
            let fingerprint = fingerprint.to_string();
            targets.add(&name, Target { address, fingerprint })?;
            targets.save(&folders.config)?;
            write_out(format!("added {name}\n").as_bytes())?;
        }
        TargetCommand::List { json } => list(&targets, json)?,
        TargetCommand::Remove { name } => {
            targets.remove(&name)?;
            targets.save(&folders.config)?;
            write_out(format!("removed {name}\n").as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether it is `HOST:PORT`, or `[IPv6]:PORT`.
fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(plain),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn list(targets: &Targets, json: bool) -> Result<(), Failure> {
    let mut table = Table::new(&["NAME", "ADDRESS", "FINGERPRINT"]);
    for (name, Target { address, fingerprint }) in targets.iter() {
        if json {
            let target = json!({"name": name, "address": address, "fingerprint": fingerprint});
            write_json(&target)?;
        }
        table.row(vec![name.to_owned(), address.clone(), fingerprint.clone()]);
    }
    if !json {
        write_out(table.render().as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["web-1:10950", "10.0.0.7:1", "[::1]:10950", "a_b.example:2"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in ["web", ":1", "::1:1", "a b:1", "https://a:1", "a:0", "a:70000", "[x]:1", "a:"] {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
