//! `baton package list` and `remove`: what an agent keeps.

use std::process::ExitCode;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use crate::cli::failure::Failure;
use crate::cli::reach::Reach;
use crate::cli::screen::{write_json, write_out};
use crate::cli::show::Table;
use crate::config::Directories;
use crate::packages::{Kept, PackageId, Version};

/// Show the packages that an agent keeps
///
/// Of each package the last 10 versions are kept.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton package list
  baton package list shop --target web-1 --json | jq -r .version")]
pub(super) struct ListArgs {
    #[command(flatten)]
    reach: Reach,
    /// Only this one
    id: Option<PackageId>,
    /// Print them as JSON, one a line
    #[arg(long)]
    json: bool,
}

/// Remove a package that an agent keeps
///
/// What scripts installed of it stays where it is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton package remove shop 1.3.0
  baton package remove shop 1.3.0 --target web-1")]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    reach: Reach,
    /// The package's id
    id: PackageId,
    /// Its version
    version: Version,
    /// Print what was removed as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn list(args: ListArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    let mut table = Table::new(&["ID", "VERSION", "SIZE", "FILES", "RECEIVED", "SHA256"]);
    for kept in client.list_packages(args.id.as_ref()).await? {
        if args.json {
            write_json(&kept_json(&kept))?;
            continue;
        }
        table.row(vec![
            kept.id.to_string(),
            kept.version.to_string(),
            HumanBytes(kept.bytes).to_string(),
            kept.files.to_string(),
            kept.received_at.strftime("%F %T").to_string(),
            kept.digest.to_string(),
        ]);
    }
    if !args.json {
        write_out(table.render().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn remove(args: RemoveArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    let kept = client.remove_package(&args.id, &args.version).await?;
    if args.json {
        write_json(&kept_json(&kept))?;
    } else {
        write_out(format!("{} {}: removed\n", kept.id, kept.version).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn kept_json(kept: &Kept) -> Value {
    json!({
        "id": kept.id.as_str(),
        "version": kept.version.as_str(),
        "sha256": kept.digest.to_string(),
        "size_bytes": kept.bytes,
        "files": kept.files,
        "chunks": kept.chunks,
        "received_at": kept.received_at,
    })
}
