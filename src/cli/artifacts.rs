//! `baton artifacts`: the files that a script left.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::failure::{Failure, code, complain};
use super::reach::Reach;
use super::screen::{write_json, write_out};
use super::show::Table;
use crate::artifacts::{ArtifactPath, Beneath, Listing};
use crate::client::Client;
use crate::client::artifacts::FetchError;
use crate::config::Directories;
use crate::script::ScriptId;

const LIST_EXAMPLES: &str = "\
Examples:
  baton artifacts list 0199c0de-…
  baton artifacts list 0199c0de-… --json | jq -r .path";

const GET_EXAMPLES: &str = "\
Examples:
  baton artifacts get 0199c0de-…                          all, into this folder
  baton artifacts get 0199c0de-… report.html --output out
  baton artifacts get --target web-1 0199c0de-… logs/a.log logs/b.log";

/// List and fetch the files that a script put into its folder $BATON_ARTIFACTS
///
/// They are kept until the script is forgotten.
#[derive(Debug, Args)]
pub(super) struct ArtifactsArgs {
    #[command(subcommand)]
    command: ArtifactsCommand,
}

#[derive(Debug, Subcommand)]
enum ArtifactsCommand {
    List(ListArgs),
    Get(GetArgs),
}

/// Show which files a script left, and how large they are
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
struct ListArgs {
    #[command(flatten)]
    reach: Reach,
    /// The script's id
    id: ScriptId,
    /// Print the files as JSON, one a line
    #[arg(long)]
    json: bool,
}

/// Fetch files that a script left, each whole or not at all
///
/// Nothing outside of the folder is written: what is a symbolic link there is not followed.
#[derive(Debug, Args)]
#[command(after_help = GET_EXAMPLES)]
struct GetArgs {
    #[command(flatten)]
    reach: Reach,
    /// The script's id
    id: ScriptId,
    /// Which ones. Default: all
    #[arg(value_name = "PATH")]
    paths: Vec<ArtifactPath>,
    /// The folder to put them into; it is made if need be
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Print the files as JSON, one a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn artifacts(
    args: ArtifactsArgs,
    folders: Directories,
) -> Result<ExitCode, Failure> {
    match args.command {
        ArtifactsCommand::List(args) => list(args, folders).await,
        ArtifactsCommand::Get(args) => {
            let client = args.reach.client(&folders).await?;
            get(&client, &args).await
        }
    }
}

async fn list(args: ListArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    let listing = client.artifacts(&args.id).await?;
    if args.json {
        for (path, size) in &listing.artifacts {
            write_json(&artifact_json(path, *size))?;
        }
    } else if !listing.artifacts.is_empty() {
        let mut table = Table::new(&["BYTES", "PATH"]);
        for (path, size) in &listing.artifacts {
            table.row(vec![size.to_string(), path.to_string()]);
        }
        write_out(table.render().as_bytes())?;
    }
    tell_the_rest(&listing);
    Ok(ExitCode::SUCCESS)
}

async fn get(client: &Client, args: &GetArgs) -> Result<ExitCode, Failure> {
    let paths = if args.paths.is_empty() {
        let listing = client.artifacts(&args.id).await?;
        tell_the_rest(&listing);
        listing.artifacts.into_iter().map(|(path, _)| path).collect()
    } else {
        args.paths.clone()
    };
    let into = open(&args.output)?;
    for path in &paths {
        let size = client.fetch_artifact(&args.id, path, &into).await?;
        if args.json {
            write_json(&artifact_json(path, size))?;
        } else {
            write_out(format!("{}\n", args.output.join(path.as_str()).display()).as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches all that a script left, at the end of the command that ran it.
pub(super) async fn get_all(
    client: &Client,
    id: &ScriptId,
    folder: &Path,
    json: bool,
) -> Result<(), Failure> {
    let listing = client.artifacts(id).await?;
    tell_the_rest(&listing);
    let into = open(folder)?;
    for (path, _) in &listing.artifacts {
        let size = client.fetch_artifact(id, path, &into).await?;
        if json {
            let (event, path) = ("artifact", path.as_str());
            write_json(&json!({"event": event, "path": path, "size_bytes": size}))?;
        } else {
            let path = folder.join(path.as_str());
            complain(&format!("baton: artifact {} ({size} bytes)", path.display()));
        }
    }
    Ok(())
}

fn open(folder: &Path) -> Result<Beneath, Failure> {
    Beneath::chosen(folder)
        .map_err(|error| Failure::usage(format!("folder {}: {error}", folder.display())))
}

/// What a list doesn't have.
fn tell_the_rest(listing: &Listing) {
    for skipped in &listing.skipped {
        complain(&format!("baton: {} is left out: {}", skipped.path, skipped.why));
    }
    match (listing.left_out, listing.is_cut) {
        (0, false) => {}
        (more, cut) => {
            let and = if cut { "at least " } else { "" };
            complain(&format!("baton: {and}{more} more are not in the list"));
        }
    }
}

fn artifact_json(path: &ArtifactPath, size: u64) -> Value {
    json!({"path": path.as_str(), "size_bytes": size})
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        match error {
            // The agent names it.
            FetchError::Client { source, .. } => Self::from(source),
            FetchError::Changes(_) => Self::new(code::BUSY, error)
                .hint("it is still being written; try again when the script has ended"),
            FetchError::File { .. } => Self::new(code::INTERNAL, error),
        }
    }
}
