//! How scripts are shown: a table for people, JSON for programs.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::mutex::Party;
use crate::script::{Isolation, Labels, Outcome, OutcomeKind, Phase, Straggler};
use crate::snapshot::{AwaitedRestart, LeaseStanding, Snapshot, Wait};
use crate::spec::LeaseTerms;
use crate::text::shorten;
use crate::values::{Place, Remark, Values};

/// A script as JSON.
pub(super) fn script_json(script: &Snapshot) -> Value {
    let outcome = match &script.phase {
        Phase::Done(outcome) => outcome_json(outcome),
        Phase::Queued | Phase::Waiting | Phase::Running | Phase::Stopping => Value::Null,
    };
    let (isolation, at_most) = match script.isolation {
        Isolation::Exclusive => ("exclusive", None),
        Isolation::Shared { at_most } => ("shared", at_most),
        Isolation::Observer => ("observer", None),
    };
    json!({
        "script_id": script.script_id,
        "phase": script.phase.name(),
        "labels": script.labels,
        "isolation": isolation,
        "at_most": at_most,
        "mutex": script.mutex,
        "exclusive_key": script.exclusive_key,
        "waits": script.waits.iter().map(wait_json).collect::<Vec<_>>(),
        "outcome": outcome,
        "queued_at": script.queued_at,
        "started_at": script.started_at,
        "ended_at": script.ended_at,
        "output_bytes": script.output_bytes,
        "stuck": script.stuck,
        "halted_supervisor": script.halted,
        "summary": script.summary,
        "progress": script.progress,
        "lease": script.lease,
        "lease_standing": script.lease_standing.as_ref().map(standing_json),
    })
}

/// An outcome as JSON: `kind` and what belongs to it.
fn outcome_json(outcome: &Outcome) -> Value {
    let mut value = match &outcome.kind {
        OutcomeKind::Exited { code } => json!({"kind": "exited", "code": code}),
        OutcomeKind::Signalled { signal } => json!({"kind": "signalled", "signal": signal}),
        OutcomeKind::Cancelled { while_queued, reason } => {
            json!({"kind": "cancelled", "while_queued": while_queued, "reason": reason})
        }
        OutcomeKind::TimedOut { limit } => {
            json!({"kind": "timed_out", "limit_seconds": limit.as_secs_f64()})
        }
        OutcomeKind::QueueTimedOut { limit } => {
            json!({"kind": "queue_timed_out", "limit_seconds": limit.as_secs_f64()})
        }
        OutcomeKind::NotStarted { cause, reason } => {
            json!({"kind": "not_started", "cause": cause, "reason": reason})
        }
        OutcomeKind::Lost { reason } => json!({"kind": "lost", "reason": reason}),
        OutcomeKind::LeaseClosed { reason } => json!({"kind": "lease_closed", "reason": reason}),
        OutcomeKind::LeaseExpired { reason } => json!({"kind": "lease_expired", "reason": reason}),
    };
    if !outcome.stragglers.is_empty() {
        value["stragglers"] = json!(outcome.stragglers);
    }
    if outcome.output_dropped_bytes > 0 {
        value["output_dropped_bytes"] = json!(outcome.output_dropped_bytes);
        value["output_drop_cause"] = json!(outcome.output_drop_cause);
    }
    let Values { outputs, remarks, remarks_dropped, .. } = &outcome.values;
    if !outputs.is_empty() {
        value["outputs"] = json!(outputs);
    }
    if !remarks.is_empty() {
        value["remarks"] = remarks.iter().map(remark_json).collect();
    }
    if *remarks_dropped > 0 {
        value["remarks_dropped"] = json!(remarks_dropped);
    }
    if let Some(waited) = &outcome.waited {
        value["waited_seconds"] = json!(waited.time.as_secs_f64());
        if !waited.blockers.is_empty() {
            value["waited_for"] = json!(waited.blockers);
        }
    }
    value["attempts"] = json!(outcome.attempts);
    value
}

fn remark_json(remark: &Remark) -> Value {
    let mut value = json!({"problem": remark.problem, "text": remark.to_string()});
    match remark.place {
        Place::File(line) => value["line"] = json!(line),
        Place::Message(offset) => value["output_offset"] = json!(offset),
        Place::Progress => {}
    }
    if !remark.name.is_empty() {
        value["name"] = json!(remark.name);
    }
    value
}

/// How much of an output's value is shown in a line.
const VALUE_CHARS: usize = 80;

/// What a script gave back, in lines for people.
pub(super) fn values(values: &Values) -> Vec<String> {
    let Values { outputs, remarks, remarks_dropped, .. } = values;
    let output = |(name, value): (&String, &String)| {
        format!("output {}={}", shorten(name, VALUE_CHARS), shorten(value, VALUE_CHARS))
    };
    let outputs = outputs.iter().map(output);
    let dropped = (*remarks_dropped > 0).then(|| format!("{remarks_dropped} more such remarks"));
    outputs.chain(remarks.iter().map(Remark::to_string)).chain(dropped).collect()
}

/// A process that nothing ends, and what can be done.
pub(super) fn stuck(script: &Snapshot, left: &Straggler) -> String {
    format!(
        "pid {} ({}) can't be ended and keeps its mutexes; `baton cancel {} --abandon --reason TEXT` gives them back",
        left.pid, left.command, script.script_id
    )
}

/// That the supervisor of a script is stopped, and what can be done.
pub(super) fn halted(pid: u32) -> String {
    format!(
        "its supervisor (pid {pid}) is stopped, so nothing happens; `kill -CONT {pid}` lets it go on"
    )
}

fn wait_json(wait: &Wait) -> Value {
    json!({
        "mutex": wait.mutex,
        "position": wait.position,
        "holders": wait.holders.iter().map(party_json).collect::<Vec<_>>(),
        "holder_count": wait.holder_count,
        "ahead": wait.ahead.iter().map(party_json).collect::<Vec<_>>(),
        "ahead_count": wait.ahead_count,
        "foreign": wait.foreign,
        "draining": wait.drain.as_ref().map(super::drain::drain_json),
        "restart": wait.restart.as_ref().map(restart_json),
        "reason": wait.reason(),
    })
}

fn restart_json(restart: &AwaitedRestart) -> Value {
    json!({
        "since": restart.since,
        "reason": restart.reason,
        "attempt": restart.attempt,
        "problem": restart.problem,
    })
}

/// Somebody who holds or wants a mutex as JSON.
pub(super) fn party_json(party: &Party) -> Value {
    let who = &party.who;
    json!({
        "script_id": who.script_id,
        "pid": who.pid,
        "user": who.user,
        "command": who.command,
        "labels": who.labels,
        "reason": who.reason,
        "exclusive": party.exclusive,
        "since": who.holds_since.unwrap_or(who.waits_since),
        "lease_expires_at": who.lease_expires_at,
    })
}

fn standing_json(standing: &LeaseStanding) -> Value {
    let LeaseStanding { terms: LeaseTerms { ttl, reason }, expires_at } = standing;
    json!({"ttl_seconds": ttl.as_secs_f64(), "reason": reason, "expires_at": expires_at})
}

/// Lines that share columns.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&text| text.to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The text; the last column isn't padded.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let padding = width - cell.chars().count();
                line += cell;
                line.extend(std::iter::repeat_n(' ', padding + 2));
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// A value in TOML as JSON; text that is none stays text.
pub(super) fn toml_as_json(toml: &str) -> Value {
    toml.parse::<toml::Value>()
        .ok()
        .and_then(|value| serde_json::to_value(value).ok())
        .unwrap_or_else(|| json!(toml))
}

/// How it stands, in a word or two.
pub(super) fn state(script: &Snapshot) -> String {
    match &script.phase {
        Phase::Done(outcome) => match &outcome.kind {
            OutcomeKind::Exited { code: 0 } => "ok".to_owned(),
            OutcomeKind::Exited { code } => format!("exit {code}"),
            OutcomeKind::Signalled { signal } => format!("signal {signal}"),
            OutcomeKind::Cancelled { .. } => "cancelled".to_owned(),
            OutcomeKind::TimedOut { .. } => "timed out".to_owned(),
            OutcomeKind::QueueTimedOut { .. } => "queue timed out".to_owned(),
            OutcomeKind::NotStarted { .. } => "not started".to_owned(),
            OutcomeKind::Lost { .. } => "lost".to_owned(),
            OutcomeKind::LeaseClosed { .. } => "closed".to_owned(),
            OutcomeKind::LeaseExpired { .. } => "expired".to_owned(),
        },
        Phase::Queued | Phase::Waiting => match script.waits.first() {
            Some(Wait { restart: Some(_), .. }) => "awaits restart".to_owned(),
            Some(wait) => format!("waiting #{}", wait.position),
            None => "starting".to_owned(),
        },
        Phase::Running if script.lease_standing.is_some() => open_lease(script),
        phase @ (Phase::Running | Phase::Stopping) => match &script.progress {
            Some(progress) => format!("{} {}%", phase.name(), progress.percent),
            None => phase.name().to_owned(),
        },
    }
}

/// An open lease, and how long it lasts if its client stays silent.
fn open_lease(lease: &Snapshot) -> String {
    let expires_at = lease.lease_standing.as_ref().and_then(|standing| standing.expires_at);
    match expires_at {
        Some(end) => format!("open, {} left", span(between(Timestamp::now(), end))),
        None => "open".to_owned(),
    }
}

/// Its claim, in a word.
pub(super) fn isolation(script: &Snapshot) -> String {
    if let Some(lease) = &script.lease {
        return format!("{}, under {lease}", claim(script));
    }
    claim(script)
}

fn claim(script: &Snapshot) -> String {
    match script.isolation {
        Isolation::Exclusive => "exclusive".to_owned(),
        Isolation::Shared { at_most: None } => "bypass".to_owned(),
        Isolation::Shared { at_most: Some(n) } => format!("bypass ≤{n}"),
        Isolation::Observer => "observer".to_owned(),
    }
}

/// Labels in one cell.
pub(super) fn labels(labels: &Labels) -> String {
    let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(" ")
}

/// A time span to the second, or to the tenth of a second when it is short.
pub(super) fn span(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        return format!("{:.1}s", time.as_secs_f64());
    }
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string().replace(' ', "")
}

/// How long ago.
pub(super) fn since(time: Timestamp) -> String {
    span(between(time, Timestamp::now()))
}

/// The time between two moments; zero when the clock went back.
pub(super) fn between(start: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end - start).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&["ID", "STATE", "WHAT"]);
        table.row(vec!["a".to_owned(), "running".to_owned(), String::new()]);
        table.row(vec!["längst".to_owned(), "ok".to_owned(), "x".to_owned()]);
        assert_eq!(table.render(), "ID      STATE    WHAT\na       running\nlängst  ok       x\n");
    }

    #[test]
    fn a_span_is_as_exact_as_people_want() {
        assert_eq!(span(Duration::from_millis(1234)), "1.2s");
        assert_eq!(span(Duration::from_millis(90_999)), "1m30s");
    }
}
