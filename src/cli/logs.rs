//! `baton logs`: the output of a script.

use std::process::ExitCode;

use clap::Args;

use super::failure::Failure;
use super::reach::{AwayLimit, Reach};
use super::screen::Screen;
use crate::config::Directories;
use crate::script::ScriptId;

const EXAMPLES: &str = "\
Examples:
  baton logs 0199c0de-…              what it wrote so far
  baton logs --follow 0199c0de-…     to its end; exits with its exit status
  baton logs --offset 4096 ID        leave out the first 4096 bytes (stdout and stderr together)";

/// Show the output of a script
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    away: AwayLimit,
    /// The script's id
    id: ScriptId,
    /// Go on until the script has ended, and exit with its exit status
    #[arg(long, short)]
    follow: bool,
    /// How many bytes of output to leave out
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// Print events as JSON, one a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn logs(args: LogsArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.away.of(args.reach.client(&folders).await?);
    let following = client.watch(args.id, args.offset, args.follow);
    let screen = Screen::new(args.json).of(args.reach.name());
    let code = super::run::follow(following, screen).await?;
    Ok(if args.follow { code } else { ExitCode::SUCCESS })
}
