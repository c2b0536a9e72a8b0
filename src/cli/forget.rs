//! `baton forget`: removing scripts that are done before their time.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::reach::Reach;
use super::screen::{write_json, write_out};
use crate::config::Directories;
use crate::script::ScriptId;

/// Remove scripts that are done, with their output and workspaces
///
/// The agent does that by itself, within the limits of [retention] in its agent.toml. A script that
/// is not done is refused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton forget 0199c0de-…
  baton forget --target web-1 first-id second-id")]
pub(super) struct ForgetArgs {
    #[command(flatten)]
    reach: Reach,
    /// The scripts' ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<ScriptId>,
    /// Print each as JSON, one a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn forget(args: ForgetArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    for id in args.ids {
        client.forget(&id).await?;
        if args.json {
            write_json(&json!({"script_id": id, "forgotten": true}))?;
        } else {
            write_out(format!("{id}: forgotten\n").as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
