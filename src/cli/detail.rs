//! `baton show`: one script, with all that is known of it.

use std::process::ExitCode;

use clap::Args;

use super::failure::Failure;
use super::reach::Reach;
use super::screen::{write_json, write_out};
use super::show;
use crate::config::Directories;
use crate::script::{Fate, Outcome, Phase, ScriptId};
use crate::snapshot::{Snapshot, clock};

const EXAMPLES: &str = "\
Examples:
  baton show 0199c0de-…
  baton show 0199c0de-… --json | jq -r .outcome.outputs.version";

/// Show how one script stands, or how it ended and what it gave back
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    reach: Reach,
    /// The script's id
    id: ScriptId,
    /// Print the script as JSON; values come whole there
    #[arg(long)]
    json: bool,
}

pub(super) async fn show(args: ShowArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    let script = client.get(&args.id).await?;
    if args.json {
        write_json(&show::script_json(&script))?;
    } else {
        write_out(lines(&script).concat().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(script: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{:<11}{value}\n", format!("{name}:")));
        }
    };
    line("script", script.script_id.to_string());
    line("what", script.summary.clone());
    line("labels", show::labels(&script.labels));
    line("isolation", format!("{} ({})", show::isolation(script), script.mutex));
    line("lease", script.lease.as_ref().map(ToString::to_string).unwrap_or_default());
    if let Some(standing) = &script.lease_standing {
        line("why", standing.terms.reason.clone());
        line("expires", standing.expires_at.map(clock).unwrap_or_default());
    }
    let outcome = match &script.phase {
        Phase::Done(outcome) => Some(outcome),
        Phase::Queued | Phase::Waiting | Phase::Running | Phase::Stopping => None,
    };
    line("state", outcome.map_or_else(|| show::state(script), |done| done.kind.to_string()));
    for wait in &script.waits {
        line("waits", wait.reason());
    }
    line("halted", script.halted.map(show::halted).unwrap_or_default());
    for left in &script.stuck {
        line("stuck", show::stuck(script, left));
    }
    if let Some(progress) = &script.progress {
        line("progress", format!("{} % {}", progress.percent, progress.message));
    }
    line("queued", clock(script.queued_at));
    line("started", script.started_at.map(clock).unwrap_or_default());
    line("ended", script.ended_at.map(clock).unwrap_or_default());
    if let Some(waited) = outcome.and_then(|outcome| outcome.waited.as_ref()) {
        line("waited", show::span(waited.time));
        for blocker in &waited.blockers {
            line("for", blocker.describe());
        }
    }
    let attempts = outcome.map(|outcome| outcome.attempts).filter(|attempts| *attempts > 1);
    line("attempts", attempts.map(|attempts| attempts.to_string()).unwrap_or_default());
    line("output", format!("{} bytes", script.output_bytes));
    if let Some(Outcome { stragglers, output_dropped_bytes, output_drop_cause, values, .. }) =
        outcome
    {
        if *output_dropped_bytes > 0 {
            let why = output_drop_cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            line("not kept", format!("{output_dropped_bytes} bytes of output{why}"));
        }
        for straggler in stragglers {
            let fate = match straggler.fate {
                Fate::Ended => "ended",
                Fate::Kept => "goes on",
                Fate::Abandoned => "could not be ended, abandoned",
            };
            line("left over", format!("{} (pid {}): {fate}", straggler.command, straggler.pid));
        }
        for value in show::values(values) {
            line("gave", value);
        }
    }
    lines
}
