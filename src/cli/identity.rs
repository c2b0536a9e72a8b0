//! `baton identity`: who this client is.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::reach::CLIENT;
use super::screen::{write_json, write_out};
use crate::config::Directories;
use crate::trust::Identity;

/// Show this client's fingerprint; its identity is made at first use
///
/// An agent that is to serve this client must trust it: `baton agent trust FINGERPRINT --name NAME`
/// on the agent's machine.
#[derive(Debug, Args)]
pub(super) struct IdentityArgs {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn identity(args: &IdentityArgs, folders: &Directories) -> Result<ExitCode, Failure> {
    let fingerprint = Identity::load_or_create(&folders.config, CLIENT)?.fingerprint();
    if args.json {
        write_json(&json!({"fingerprint": fingerprint, "folder": folders.config}))?;
    } else {
        write_out(format!("{fingerprint}\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
