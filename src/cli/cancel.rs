//! `baton cancel`: asks a script to stop.

use std::process::ExitCode;

use clap::Args;

use super::failure::{Failure, complain};
use super::reach::Reach;
use super::screen::{write_json, write_out};
use super::show;
use crate::client::Heard;
use crate::config::Directories;
use crate::script::{Phase, ScriptId};

const EXAMPLES: &str = "\
Examples:
  baton cancel 0199c0de-… --reason 'wrong version'
  baton cancel 0199c0de-… --wait      return when it has ended
  baton cancel 0199c0de-… --abandon --reason 'NFS server is gone'   when nothing can end it";

/// Ask a script to stop, wherever it stands
///
/// A queued script leaves the line. A running one is asked (SIGTERM) and, after its grace, forced
/// (SIGKILL). One that is done stays as it is.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CancelArgs {
    #[command(flatten)]
    reach: Reach,
    /// The script's id
    id: ScriptId,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Give its mutexes back although processes of it can't be ended: they may go on beside the next
    /// holder, who is told
    #[arg(long, requires = "reason")]
    abandon: bool,
    /// Return when the script has ended
    #[arg(long)]
    wait: bool,
    /// Print the script as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn cancel(args: CancelArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    let reason = args.reason.unwrap_or_default();
    let mut script = if args.abandon {
        client.abandon(&args.id, reason).await?
    } else {
        client.cancel(&args.id, reason).await?
    };
    if args.wait && !script.phase.is_done() {
        let mut following = client.watch(args.id, script.output_bytes, true);
        while let Some(heard) = following.next().await? {
            if let Heard::Script(now) = heard {
                if let Some(pid) = now.halted.filter(|_| now.halted != script.halted) {
                    complain(&format!("baton: waiting: {}", show::halted(pid)));
                }
                script = *now;
            }
        }
    }
    if args.json {
        write_json(&show::script_json(&script))?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = match &script.phase {
        Phase::Done(outcome) => outcome.kind.to_string(),
        phase @ (Phase::Queued | Phase::Waiting | Phase::Running | Phase::Stopping) => {
            phase.name().to_owned()
        }
    };
    write_out(format!("{}: {text}\n", script.script_id).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
