//! What is kept of scripts that are done: how many, how much, the oldest; and removing them.

use jiff::Timestamp;
use rusqlite::Transaction;

use super::StoreError;
use super::worker::{signed, unsigned};
use crate::script::ScriptId;

/// What is kept of scripts that are done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// How many scripts.
    pub count: u64,
    /// What they take on the disk, as far as it is known.
    pub bytes: u64,
    /// Those that ended first, in this order.
    pub oldest: Vec<Oldest>,
}

/// One of those that ended first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    /// Its id; `None`: it can't be read, so it is nobody's.
    pub id: Option<ScriptId>,
    /// The number of its arrival.
    pub seq: u64,
    /// When it ended.
    pub ended_at: Timestamp,
    /// What it takes on the disk; 0 when that is not known.
    pub bytes: u64,
}

pub(super) fn kept(transaction: &Transaction<'_>, limit: usize) -> Result<Kept, StoreError> {
    let mut statement = transaction.prepare_cached(
        "SELECT count(*), coalesce(sum(disk_bytes), 0) FROM scripts INDEXED BY scripts_by_end
         WHERE done = 1",
    )?;
    let (count, bytes): (i64, i64) =
        statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut statement = transaction.prepare_cached(
        "SELECT id, seq, ended_at, coalesce(disk_bytes, 0) FROM scripts INDEXED BY scripts_by_end
         WHERE done = 1 ORDER BY ended_at, seq LIMIT ?1",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map([limit], |row| {
        let ended_at: Option<i64> = row.get(2)?;
        let ended_at = Timestamp::from_nanosecond(i128::from(ended_at.unwrap_or_default()));
        Ok(Oldest {
            id: row.get::<_, String>(0)?.parse().ok(),
            seq: unsigned(row.get(1)?),
            ended_at: ended_at.unwrap_or(Timestamp::UNIX_EPOCH),
            bytes: unsigned(row.get(3)?),
        })
    })?;
    let oldest = rows.collect::<Result<_, _>>()?;
    Ok(Kept { count: unsigned(count), bytes: unsigned(bytes), oldest })
}

pub(super) fn unmeasured(
    transaction: &Transaction<'_>,
    limit: usize,
) -> Result<Vec<(Option<ScriptId>, u64)>, StoreError> {
    let mut statement = transaction.prepare_cached(
        "SELECT id, seq FROM scripts WHERE done = 1 AND disk_bytes IS NULL ORDER BY seq LIMIT ?1",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map([limit], |row| {
        Ok((row.get::<_, String>(0)?.parse().ok(), unsigned(row.get(1)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn measured(
    transaction: &Transaction<'_>,
    seq: u64,
    bytes: u64,
) -> Result<(), StoreError> {
    let mut statement = transaction
        .prepare_cached("UPDATE scripts SET disk_bytes = ?2 + length(request) WHERE seq = ?1")?;
    // Sums of so many stay far from the greatest number.
    statement.execute([signed(seq), signed(bytes.min(1 << 50))])?;
    Ok(())
}

pub(super) fn forget(
    transaction: &Transaction<'_>,
    id: Option<&ScriptId>,
    seq: u64,
) -> Result<bool, StoreError> {
    let mut statement = transaction.prepare_cached(
        "DELETE FROM scripts WHERE seq = ?1 AND (?2 IS NULL OR id = ?2) AND done = 1",
    )?;
    Ok(statement.execute((signed(seq), id.map(ScriptId::as_str)))? == 1)
}

pub(super) fn unknown(
    transaction: &Transaction<'_>,
    ids: Vec<ScriptId>,
) -> Result<Vec<ScriptId>, StoreError> {
    let mut statement = transaction.prepare_cached("SELECT 1 FROM scripts WHERE id = ?1")?;
    let mut unknown = Vec::new();
    for id in ids {
        if !statement.exists([id.as_str()])? {
            unknown.push(id);
        }
    }
    Ok(unknown)
}
