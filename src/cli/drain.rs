//! `baton agent drain` and `baton agent resume`: letting a machine come to rest.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Failure, code, complain};
use super::reach::Reach;
use super::screen::{write_json, write_out};
use super::show;
use crate::client::{Client, ClientError};
use crate::config::Directories;
use crate::script::Drain;
use crate::snapshot::{Snapshot, clock, describe_drain};
use crate::wire::{from_timestamp, v1};

/// How many of the scripts that are waited for are named.
const MAX_NAMED: usize = 8;

/// What stays true after this command has left.
const GOES_ON: &str = "the agent goes on draining; `baton agent resume` takes that back";

/// Finish what runs, take nothing new, keep the queue
///
/// New scripts are refused, health checks (--observe) included. What runs goes on to its end. What
/// is queued stays on disk in its place and is not started; its queue time limit goes on. It stays
/// so when the agent or the machine is restarted, until `baton agent resume`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton agent drain --reason 'kernel update'
  baton agent drain --wait --timeout 30m && reboot
  baton agent drain --target web-1 --wait
  baton agent resume

Exit status with --wait: 0 nothing runs, 124 timeout, 130 Ctrl-C (the agent goes on draining),
1 somebody lets the agent take scripts again.")]
pub(super) struct DrainArgs {
    #[command(flatten)]
    reach: Reach,
    /// Why; whoever is refused is told
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Return when nothing runs any more, and say what is waited for
    #[arg(long)]
    wait: bool,
    /// How long to wait at most; the agent goes on draining. Default: for ever
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = super::time_limit)]
    timeout: Option<Duration>,
    /// Print what happens as JSON, one event a line
    #[arg(long)]
    json: bool,
}

/// Take scripts again, and start what is queued, in its order
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  baton agent resume\n  baton agent resume --target web-1")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    reach: Reach,
    /// Print how the agent stands as JSON
    #[arg(long)]
    json: bool,
}

/// What ended the wait.
enum Noticed {
    Rest(Box<Result<v1::AgentStatus, Failure>>),
    Timeout(Duration),
    Interrupt,
}

pub(super) async fn drain(args: DrainArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let client = args.reach.client(&folders).await?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let status = client.drain(args.reason).await?;
    tell(args.json, "draining", &status)?;
    if !args.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let mut waits = Waits { client, json: args.json, told: String::new() };
    let noticed = tokio::select! {
        rest = waits.until_rest() => Noticed::Rest(Box::new(rest)),
        limit = timeout(args.timeout) => Noticed::Timeout(limit),
        _ = interrupt.recv() => Noticed::Interrupt,
        _ = terminate.recv() => Noticed::Interrupt,
    };
    match noticed {
        Noticed::Rest(status) => {
            tell(args.json, "at_rest", &(*status)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Noticed::Timeout(limit) => {
            let limit = humantime::format_duration(limit);
            let text = format!("the agent is not at rest after {limit}: {}", waits.told);
            let failure = Failure::new(code::TIMED_OUT, anyhow::Error::msg(text)).hint(GOES_ON);
            Err(failure.hint("`baton cancel ID` stops a script"))
        }
        Noticed::Interrupt => {
            complain(&format!("baton: leaving; {GOES_ON}"));
            Ok(ExitCode::from(code::CANCELLED))
        }
    }
}

async fn timeout(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

pub(super) async fn resume(args: ResumeArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let status = args.reach.client(&folders).await?.resume().await?;
    tell(args.json, "resumed", &status)?;
    Ok(ExitCode::SUCCESS)
}

/// Says how the agent stands.
fn tell(json: bool, event: &str, status: &v1::AgentStatus) -> Result<(), Failure> {
    if json {
        let mut value = status_json(status);
        value["event"] = json!(event);
        return Ok(write_json(&value)?);
    }
    let v1::AgentStatus { queued, waiting, running, .. } = status;
    let busy = running + waiting;
    let text = match (draining(status), busy) {
        (Some(drain), 0) => format!("{drain}\nat rest: nothing runs, {queued} queued\n"),
        (Some(drain), _) => format!("{drain}\nfinishing {busy}, {queued} queued\n"),
        (None, _) => {
            format!(
                "the agent takes scripts: {running} running, {waiting} waiting, {queued} queued\n"
            )
        }
    };
    Ok(write_out(text.as_bytes())?)
}

/// That the agent stops, in words, if it does.
pub(super) fn stopping(status: &v1::AgentStatus) -> Option<String> {
    let until = clock(status.stops_by.and_then(from_timestamp)?);
    Some(format!("the agent stops: it starts nothing more and waits for what runs until {until}"))
}

/// A drain in words, if there is one.
pub(super) fn draining(status: &v1::AgentStatus) -> Option<String> {
    status.draining.clone().map(|drain| describe_drain(&drain.into()))
}

/// How an agent stands as JSON.
pub(super) fn status_json(status: &v1::AgentStatus) -> Value {
    let draining = status.draining.clone().map(|drain| drain_json(&drain.into()));
    json!({
        "queued": status.queued,
        "waiting": status.waiting,
        "running": status.running,
        "draining": draining,
        "stops_by": status.stops_by.and_then(from_timestamp),
        "store_problem": status.store_problem.as_ref().map(store_json),
    })
}

fn store_json(problem: &v1::StoreProblem) -> Value {
    json!({"since": problem.since.and_then(from_timestamp), "reason": problem.reason})
}

/// That the agent's database takes no change, in words, if it is so.
pub(super) fn store_problem(status: &v1::AgentStatus) -> Option<String> {
    let v1::StoreProblem { since, reason } = status.store_problem.as_ref()?;
    let since = since.and_then(from_timestamp).map(clock).unwrap_or_default();
    Some(format!("the database takes no change since {since}: {reason}"))
}

/// A drain as JSON.
pub(super) fn drain_json(drain: &Drain) -> Value {
    json!({"since": drain.since, "by": drain.by, "reason": drain.reason})
}

/// Waiting for the end of what runs.
struct Waits {
    client: Client,
    json: bool,
    /// What was said last.
    told: String,
}

impl Waits {
    async fn until_rest(&mut self) -> Result<v1::AgentStatus, Failure> {
        let mut standing = self.client.watch_agent();
        loop {
            let status = standing.next().await?;
            if status.draining.is_none() {
                let text = "the agent takes scripts again: somebody ended the drain";
                return Err(Failure::new(code::REFUSED, anyhow::Error::msg(text)));
            }
            if status.running + status.waiting == 0 {
                return Ok(status);
            }
            match self.living().await {
                Ok(scripts) => self.say(&scripts)?,
                // It is restarted: it says how it stands when it is back.
                Err(error) if error.is_passing() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn living(&self) -> Result<Vec<Snapshot>, ClientError> {
        let phases = [v1::Phase::Waiting, v1::Phase::Running, v1::Phase::Stopping];
        self.client.list(&phases, &[].into(), MAX_NAMED + 1).await
    }

    /// Says what is waited for, when that is something else than before.
    fn say(&mut self, scripts: &[Snapshot]) -> Result<(), Failure> {
        let more = if scripts.len() > MAX_NAMED { ", and others" } else { "" };
        let first = &scripts[..scripts.len().min(MAX_NAMED)];
        let names: Vec<_> = first.iter().map(name).collect();
        let told = format!("waits for {}{more}", names.join(", "));
        if scripts.is_empty() || told == self.told {
            return Ok(());
        }
        self.told = told;
        if self.json {
            let scripts: Vec<_> = first.iter().map(show::script_json).collect();
            write_json(&json!({"event": "waits", "scripts": scripts}))?;
        } else {
            complain(&format!("baton: {}", self.told));
        }
        Ok(())
    }
}

fn name(script: &Snapshot) -> String {
    let labels = show::labels(&script.labels);
    let mut more = vec![script.summary.clone(), labels];
    more.retain(|text| !text.is_empty());
    format!("script {} ({})", script.script_id, more.join(", "))
}
