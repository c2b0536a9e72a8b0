//! The store's thread: takes what waits, does it in one transaction, commits, answers.

use std::collections::VecDeque;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, named_params, params};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{
    Accepted, DoneCursor, DoneFilter, DonePage, Kept, Record, ScriptUpdate, StoreError, erase,
    history, kept,
};
use crate::crash;
use crate::script::{Drain, Labels, OutcomeKind, Phase, ScriptId};

/// How many calls are committed together at most: bounds how long the first one waits.
const MAX_BATCH: usize = 128;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A call.
#[derive(Debug)]
pub(super) enum Command {
    Accept(Box<Record>, Reply<Accepted>),
    Update(Box<ScriptUpdate>, Reply<()>),
    Get(ScriptId, Reply<Option<Record>>),
    Living(Reply<Vec<Record>>),
    DonePage { filter: DoneFilter, after: Option<DoneCursor>, limit: usize, reply: Reply<DonePage> },
    Forget(Option<ScriptId>, u64, Reply<bool>),
    Kept(usize, Reply<Kept>),
    Unmeasured(usize, Reply<Vec<(Option<ScriptId>, u64)>>),
    Measured(u64, u64, Reply<()>),
    Unknown(Vec<ScriptId>, Reply<Vec<ScriptId>>),
    Drain(Reply<Option<Drain>>),
    SetDrain(Option<Drain>, Reply<()>),
    TryChange(Reply<()>),
    MaxSeq(Reply<u64>),
    Sweep { which: erase::Which, after: u64, rewrite: erase::Rewrite, reply: Reply<erase::Looked> },
    EraseMark(Reply<Option<Timestamp>>),
    SetEraseMark(Option<Timestamp>, Reply<()>),
    Alone(Alone),
    Close,
}

/// A call that SQLite carries out only outside of a transaction.
#[derive(Debug)]
pub(super) enum Alone {
    EmptyLog(Reply<bool>),
    Rebuild(Reply<()>),
}

/// An answer that waits for the commit.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

/// Runs until [`Command::Close`], or until nobody can call any more.
pub(super) fn run(mut connection: Connection, mut commands: mpsc::Receiver<Command>) {
    while let Some(first) = commands.blocking_recv() {
        let mut batch = VecDeque::from([first]);
        while batch.len() < MAX_BATCH
            && let Ok(next) = commands.try_recv()
        {
            batch.push_back(next);
        }
        let close = batch.iter().any(|command| matches!(command, Command::Close));
        while let Some(next) = batch.pop_front() {
            if let Command::Alone(alone) = next {
                carry_out_alone(&connection, alone);
            } else {
                batch.push_front(next);
                commit(&mut connection, &mut batch);
            }
        }
        if close {
            return;
        }
    }
}

fn carry_out_alone(connection: &Connection, command: Alone) {
    match command {
        // Whoever asked may be gone.
        Alone::EmptyLog(reply) => drop(reply.send(erase::empty_log(connection))),
        Alone::Rebuild(reply) => drop(reply.send(erase::rebuild(connection))),
    }
}

/// Carries out the first calls of a batch in one transaction: all of them, or up to one at which the
/// database took the transaction back (the disk is full, say).
fn commit(connection: &mut Connection, batch: &mut VecDeque<Command>) {
    let mut answers: Vec<Answer> = Vec::with_capacity(batch.len());
    let (before, after) = crash_points(batch);
    let committed = connection.transaction().and_then(|transaction| {
        // Outside a transaction a call would be kept at once, whatever its caller is told.
        while !transaction.is_autocommit()
            && let Some(command) = batch.pop_front_if(|next| !matches!(next, Command::Alone(_)))
        {
            answers.extend(carry_out(&transaction, command));
        }
        crash::point(before);
        transaction.commit()
    });
    crash::point(after);
    if answers.is_empty() && committed.is_err() {
        // Not even a transaction was to be had: the first call hears of it.
        batch.pop_front();
    }
    let problem = committed.err().map(|error| error.to_string());
    for answer in answers {
        answer(problem.clone().map_or(Ok(()), |text| Err(StoreError::Commit(text))));
    }
}

/// The points of [`crash`] before and after this batch is on disk.
fn crash_points(batch: &VecDeque<Command>) -> (&'static str, &'static str) {
    if batch.iter().any(|command| matches!(command, Command::Accept(..))) {
        return ("before accept", "after accept");
    }
    let is_end = |command: &Command| matches!(command, Command::Update(change, _) if change.phase.as_ref().is_some_and(Phase::is_done));
    if batch.iter().any(is_end) { ("before end", "after end") } else { ("", "") }
}

fn carry_out(transaction: &Transaction<'_>, command: Command) -> Option<Answer> {
    let answer = match command {
        Command::Accept(record, reply) => answer(reply, accept(transaction, &record)),
        Command::Update(change, reply) => answer(reply, update(transaction, &change)),
        Command::Get(id, reply) => answer(reply, get(transaction, &id)),
        Command::Living(reply) => answer(reply, living(transaction)),
        Command::DonePage { filter, after, limit, reply } => {
            answer(reply, history::done_page(transaction, &filter, after, limit))
        }
        Command::Forget(id, seq, reply) => {
            answer(reply, kept::forget(transaction, id.as_ref(), seq))
        }
        Command::Kept(limit, reply) => answer(reply, kept::kept(transaction, limit)),
        Command::Unmeasured(limit, reply) => answer(reply, kept::unmeasured(transaction, limit)),
        Command::Measured(seq, bytes, reply) => {
            answer(reply, kept::measured(transaction, seq, bytes))
        }
        Command::Unknown(ids, reply) => answer(reply, kept::unknown(transaction, ids)),
        Command::Drain(reply) => answer(reply, drain(transaction)),
        Command::SetDrain(drain, reply) => answer(reply, set_drain(transaction, drain.as_ref())),
        Command::TryChange(reply) => answer(reply, try_change(transaction)),
        Command::MaxSeq(reply) => answer(reply, max_seq(transaction)),
        Command::Sweep { which, after, rewrite, reply } => {
            answer(reply, erase::sweep(transaction, which, after, &rewrite))
        }
        Command::EraseMark(reply) => answer(reply, erase::mark(transaction)),
        Command::SetEraseMark(at, reply) => {
            answer(reply, erase::set_mark(transaction, at).map_err(StoreError::from))
        }
        Command::Alone(_) | Command::Close => return None,
    };
    Some(answer)
}

fn answer<T: 'static>(reply: Reply<T>, result: Result<T, StoreError>) -> Answer {
    Box::new(move |committed| {
        // Whoever asked may be gone.
        drop(reply.send(committed.and(result)));
    })
}

fn accept(transaction: &Transaction<'_>, record: &Record) -> Result<Accepted, StoreError> {
    let mut inserted = transaction.prepare_cached(
        "INSERT INTO scripts (id, seq, request, phase, done, labels, mutex, queued_at, started_at,
             ended_at, stop_reason, output_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) ON CONFLICT (id) DO NOTHING",
    )?;
    let count = inserted.execute(params![
        record.id.as_str(),
        signed(record.seq),
        record.request,
        json(&record.phase),
        record.phase.is_done(),
        json(&record.labels),
        record.mutex,
        nanoseconds(record.queued_at),
        record.started_at.map(nanoseconds),
        record.ended_at.map(nanoseconds),
        record.stop_reason,
        signed(record.output_bytes),
    ])?;
    if count == 1 {
        return Ok(Accepted::New);
    }
    let existing = get(transaction, &record.id)?;
    let existing = existing.ok_or_else(|| StoreError::Row(record.id.to_string()))?;
    Ok(Accepted::Existing(Box::new(existing)))
}

fn update(transaction: &Transaction<'_>, change: &ScriptUpdate) -> Result<(), StoreError> {
    let mut statement = transaction.prepare_cached(
        "UPDATE scripts SET
             phase = coalesce(:phase, phase), done = coalesce(:done, done),
             request = coalesce(:request, request),
             started_at = coalesce(:started_at, started_at),
             ended_at = coalesce(:ended_at, ended_at),
             stop_reason = coalesce(:stop_reason, stop_reason),
             output_bytes = coalesce(:output_bytes, output_bytes),
             outcome = coalesce(:outcome, outcome), exit_code = coalesce(:exit_code, exit_code)
         WHERE id = :id",
    )?;
    let (outcome, exit_code) = outcome(change.phase.as_ref());
    statement.execute(named_params! {
        ":id": change.id.as_str(),
        ":phase": change.phase.as_ref().map(json),
        ":done": change.phase.as_ref().map(Phase::is_done),
        ":request": change.request,
        ":started_at": change.started_at.map(nanoseconds),
        ":ended_at": change.ended_at.map(nanoseconds),
        ":stop_reason": change.stop_reason,
        ":output_bytes": change.output_bytes.map(signed),
        ":outcome": outcome,
        ":exit_code": exit_code,
    })?;
    Ok(())
}

/// The kind of an outcome, and its exit code.
fn outcome(phase: Option<&Phase>) -> (Option<String>, Option<i32>) {
    let Some(Phase::Done(outcome)) = phase else {
        return (None, None);
    };
    let exit_code = if let OutcomeKind::Exited { code } = outcome.kind { Some(code) } else { None };
    (kind(&outcome.kind), exit_code)
}

/// The kind of an outcome, as its JSON names it.
pub(super) fn kind(outcome: &OutcomeKind) -> Option<String> {
    let value = serde_json::to_value(outcome).ok()?;
    value.get("kind").and_then(|kind| kind.as_str()).map(str::to_owned)
}

fn get(transaction: &Transaction<'_>, id: &ScriptId) -> Result<Option<Record>, StoreError> {
    let mut statement = transaction.prepare_cached("SELECT * FROM scripts WHERE id = ?1")?;
    let found = statement.query_row([id.as_str()], |row| Ok(record(row))).optional()?;
    found.transpose()
}

fn living(transaction: &Transaction<'_>) -> Result<Vec<Record>, StoreError> {
    let mut statement =
        transaction.prepare_cached("SELECT * FROM scripts WHERE done = 0 ORDER BY seq")?;
    let rows = statement.query_map([], |row| Ok(record(row)))?;
    readable(rows)
}

/// The records whose rows can be read (rule 4).
pub(super) fn readable(
    rows: impl Iterator<Item = rusqlite::Result<Result<Record, StoreError>>>,
) -> Result<Vec<Record>, StoreError> {
    let mut records = Vec::new();
    for row in rows {
        match row? {
            Ok(record) => records.push(record),
            Err(error @ StoreError::Row(_)) => warn!(%error, "left out"),
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

fn drain(transaction: &Transaction<'_>) -> Result<Option<Drain>, StoreError> {
    let mut statement = transaction.prepare_cached("SELECT since, caller, reason FROM drain")?;
    let found = statement.query_row([], |row| {
        let since = Timestamp::from_nanosecond(i128::from(row.get::<_, i64>(0)?));
        let since = since.unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Drain { since, by: row.get(1)?, reason: row.get(2)? })
    });
    Ok(found.optional()?)
}

fn set_drain(transaction: &Transaction<'_>, drain: Option<&Drain>) -> Result<(), StoreError> {
    transaction.prepare_cached("DELETE FROM drain")?.execute([])?;
    if let Some(Drain { since, by, reason }) = drain {
        let mut insert = transaction.prepare_cached("INSERT INTO drain VALUES (1, ?1, ?2, ?3)")?;
        insert.execute(params![nanoseconds(*since), by, reason])?;
    }
    Ok(())
}

/// A change of nothing that has to be written all the same.
fn try_change(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(transaction.pragma_update(None, "user_version", version)?)
}

fn max_seq(transaction: &Transaction<'_>) -> Result<u64, StoreError> {
    let greatest: Option<i64> =
        transaction.query_row("SELECT max(seq) FROM scripts", [], |row| row.get(0))?;
    Ok(greatest.map_or(0, unsigned))
}

/// Reads a row. What is damaged in it is lost; without an id it is no row of ours.
pub(super) fn record(row: &Row<'_>) -> Result<Record, StoreError> {
    let id: String = row.get("id")?;
    let time =
        |ns: i64| Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(Timestamp::UNIX_EPOCH);
    let started_at: Option<i64> = row.get("started_at")?;
    let ended_at: Option<i64> = row.get("ended_at")?;
    Ok(Record {
        seq: unsigned(row.get("seq")?),
        request: row.get("request")?,
        phase: phase(&id, &row.get::<_, String>("phase")?, row.get("done")?),
        labels: labels(&id, &row.get::<_, String>("labels")?),
        mutex: row.get("mutex")?,
        queued_at: time(row.get("queued_at")?),
        started_at: started_at.map(time),
        ended_at: ended_at.map(time),
        stop_reason: row.get("stop_reason")?,
        output_bytes: unsigned(row.get("output_bytes")?),
        id: id.parse().map_err(|_| StoreError::Row(id.clone()))?,
    })
}

fn phase(id: &str, text: &str, done: bool) -> Phase {
    match serde_json::from_str::<Phase>(text) {
        Ok(phase) if phase.is_done() == done => phase,
        Ok(_) | Err(_) => {
            warn!(id, "its row in the database is damaged: {}", crate::text::shorten(text, 200));
            let reason = "its row in the database is damaged".to_owned();
            // Where a living one stands is in its workspace.
            if done { Phase::Done(OutcomeKind::Lost { reason }.into()) } else { Phase::Queued }
        }
    }
}

fn labels(id: &str, text: &str) -> Labels {
    serde_json::from_str(text).unwrap_or_else(|_| {
        warn!(id, "its labels in the database are damaged");
        Labels::new()
    })
}

/// What is ours always has a JSON form.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// SQLite's integers are signed.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Until the year 2262.
pub(super) fn nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}
