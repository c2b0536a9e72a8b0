//! `baton pull`: a file of an agent to this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::failure::Failure;
use super::moving::{Telling, Way};
use super::reach::Reach;
use super::remote::Remote;
use crate::config::Directories;

const EXAMPLES: &str = "\
Examples:
  baton pull files:report.xml .
  baton pull --target web-1 logs:nginx/error.log web-1-error.log
  baton pull -t web-1 files:dump.sql.gz /backup/ --json

What is there already is not fetched again, and a pull that broke off goes on where it stood.";

/// Pull a file from an agent, whole or not at all
///
/// The file appears when all of it has arrived, is on disk, and has the right SHA-256. Until then it
/// grows beside its place in a hidden file, and what was there before stays.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PullArgs {
    #[command(flatten)]
    reach: Reach,
    /// The agent's file: ROOT:PATH
    #[arg(value_name = "REMOTE")]
    remote: Remote,
    /// Where to: a file, or a folder to keep the name
    #[arg(value_name = "LOCAL")]
    local: PathBuf,
    #[command(flatten)]
    telling: Telling,
}

pub(super) async fn pull(args: PullArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let PullArgs { reach, remote, local, telling } = args;
    let place = remote.place()?;
    let local = if local.is_dir() {
        local.join(place.path.name())
    } else if local.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(Failure::usage(format!("folder {} is not there", local.display())));
    } else {
        local
    };
    let client = reach.client(&folders).await?;
    let moving = telling.begin(&place.to_string());
    let moved = client.pull(&place, &local, moving.tell()).await?;
    moving.finish(Way::Pulled, &local.display().to_string(), &place, &moved)?;
    Ok(ExitCode::SUCCESS)
}
