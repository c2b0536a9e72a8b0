//! `baton queue` and `baton list`: which scripts there are.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::failure::{Failure, complain};
use super::reach::Reach;
use super::screen::{write_json, write_out};
use super::show::{self, Table};
use super::{key_value, moment};
use crate::config::Directories;
use crate::snapshot::Snapshot;
use crate::wire::{to_timestamp, v1};

/// More than any queue holds.
const WHOLE_QUEUE: usize = 1_000_000;

/// Show who runs, who waits, and for whom
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  baton queue\n  baton queue --target web-1 --json")]
pub(super) struct QueueArgs {
    #[command(flatten)]
    reach: Reach,
    /// Print the scripts as JSON, one a line
    #[arg(long)]
    json: bool,
}

/// Show the scripts that the agent knows, those that are done included
///
/// Those that are not done come first, in order of arrival, then the others, the newest first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton list --label project=web
  baton list --since 7d --outcome failed --label project=web    what went wrong this week
  baton list --since '2026-11-20 14:00' --until 2026-11-21      what was there in between
  baton list --phase done --limit 5 --json")]
pub(super) struct ListArgs {
    #[command(flatten)]
    reach: Reach,
    /// Only scripts with this label; may be given more than once
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Only scripts in this phase; may be given more than once
    #[arg(long, value_name = "PHASE")]
    phase: Vec<PhaseName>,
    /// Not those that had ended before: a time ago (7d, 90m) or a time (2026-11-20,
    /// '2026-11-20 14:00', 2026-11-20T13:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = moment::ago)]
    since: Option<Timestamp>,
    /// Only those that were accepted before
    #[arg(long, value_name = "WHEN", value_parser = moment::ago)]
    until: Option<Timestamp>,
    /// Only those that ended so; may be given more than once
    #[arg(long, value_name = "OUTCOME")]
    outcome: Vec<OutcomeName>,
    /// The newest arrival first, whatever became of it
    #[arg(long)]
    newest_first: bool,
    /// How many at most
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Print the scripts as JSON, one a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PhaseName {
    Queued,
    Waiting,
    Running,
    Stopping,
    Done,
}

impl From<PhaseName> for v1::Phase {
    fn from(name: PhaseName) -> Self {
        match name {
            PhaseName::Queued => Self::Queued,
            PhaseName::Waiting => Self::Waiting,
            PhaseName::Running => Self::Running,
            PhaseName::Stopping => Self::Stopping,
            PhaseName::Done => Self::Done,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OutcomeName {
    /// It exited with 0
    Succeeded,
    /// It neither succeeded nor was cancelled, nor was it a lease that was closed
    Failed,
    /// It exited, with whatever exit code
    Exited,
    /// A signal from elsewhere ended it
    Signalled,
    /// It was cancelled
    Cancelled,
    /// It reached its run time limit
    TimedOut,
    /// It reached its queue time limit
    QueueTimedOut,
    /// It could not be started
    NotStarted,
    /// What became of it isn't known
    Lost,
    /// It was a lease, and was closed
    LeaseClosed,
    /// It was a lease, and its client vanished
    LeaseExpired,
}

impl From<OutcomeName> for v1::OutcomeFilter {
    fn from(name: OutcomeName) -> Self {
        match name {
            OutcomeName::Succeeded => Self::Succeeded,
            OutcomeName::Failed => Self::Failed,
            OutcomeName::Exited => Self::Exited,
            OutcomeName::Signalled => Self::Signalled,
            OutcomeName::Cancelled => Self::Cancelled,
            OutcomeName::TimedOut => Self::TimedOut,
            OutcomeName::QueueTimedOut => Self::QueueTimedOut,
            OutcomeName::NotStarted => Self::NotStarted,
            OutcomeName::Lost => Self::Lost,
            OutcomeName::LeaseClosed => Self::LeaseClosed,
            OutcomeName::LeaseExpired => Self::LeaseExpired,
        }
    }
}

impl From<ListArgs> for v1::ListRequest {
    fn from(args: ListArgs) -> Self {
        let order =
            if args.newest_first { v1::ListOrder::NewestFirst } else { v1::ListOrder::Unspecified };
        let outcomes = args.outcome.into_iter().map(v1::OutcomeFilter::from);
        Self {
            phases: args.phase.into_iter().map(|phase| v1::Phase::from(phase).into()).collect(),
            labels: args.label.into_iter().collect(),
            since: args.since.map(to_timestamp),
            until: args.until.map(to_timestamp),
            outcomes: outcomes.map(i32::from).collect(),
            order: order.into(),
            ..Self::default()
        }
    }
}

pub(super) async fn queue(args: QueueArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    let living = [v1::Phase::Queued, v1::Phase::Waiting, v1::Phase::Running, v1::Phase::Stopping];
    let scripts = client.list(&living, &[].into(), WHOLE_QUEUE).await?;
    if args.json {
        return print_json(&scripts);
    }
    let status = client.info().await?.status.unwrap_or_default();
    if let Some(drain) = super::drain::draining(&status) {
        write_out(format!("{drain}\n").as_bytes())?;
    }
    if scripts.is_empty() {
        write_out(b"nothing runs and nothing waits\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["ID", "STATE", "FOR", "ISOLATION", "WHAT", "WAITS FOR"]);
    for script in &scripts {
        let since = script.started_at.unwrap_or(script.queued_at);
        table.row(vec![
            script.script_id.to_string(),
            show::state(script),
            show::since(since),
            show::isolation(script),
            what(script),
            script.waits.iter().map(crate::snapshot::Wait::reason).collect::<Vec<_>>().join("; "),
        ]);
    }
    write_out(table.render().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn list(args: ListArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    let (limit, json) = (args.limit, args.json);
    let (scripts, more) = client.find(args.into(), limit).await?;
    if json {
        return print_json(&scripts);
    }
    let mut table = Table::new(&["ID", "STATE", "QUEUED", "WAITED", "RAN", "ISOLATION", "WHAT"]);
    for script in &scripts {
        let waited = script.started_at.or(script.ended_at);
        let ran = script.started_at.map(|start| match script.ended_at {
            Some(end) => show::span(show::between(start, end)),
            None => show::since(start),
        });
        table.row(vec![
            script.script_id.to_string(),
            show::state(script),
            crate::snapshot::clock(script.queued_at),
            waited.map_or_else(
                || show::since(script.queued_at),
                |end| show::span(show::between(script.queued_at, end)),
            ),
            ran.unwrap_or_else(|| "-".to_owned()),
            show::isolation(script),
            what(script),
        ]);
    }
    write_out(table.render().as_bytes())?;
    if more {
        complain(&format!("baton: only the first {limit}; --limit shows more"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Labels and summary in one cell.
fn what(script: &Snapshot) -> String {
    let labels = show::labels(&script.labels);
    if labels.is_empty() {
        script.summary.clone()
    } else {
        format!("[{labels}] {}", script.summary)
    }
}

fn print_json(scripts: &[Snapshot]) -> Result<ExitCode, Failure> {
    for script in scripts {
        write_json(&show::script_json(script))?;
    }
    Ok(ExitCode::SUCCESS)
}
