//! Erasing what requests hold: so that nothing of it is left in the database's file, its log and its copies.
//!
//! 1. `secure_delete`: what a change frees is overwritten.
//! 2. The log has what was; it is emptied after that, as soon as nobody reads in it.
//! 3. A database that was changed without rule 1, by an older baton, is built anew. That it was is on record in
//!    `about`, with the baton that did it: when another one had the database since, it is done again.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction};

use super::schema::BUSY_LIMIT;
use super::worker::{Alone, Command, nanoseconds, signed, unsigned};
use super::{CopyError, Store, StoreError, backup};
use crate::format::PROGRAM;
use crate::script::ScriptId;

/// How many requests are looked at before others have their turn.
const BATCH: i64 = 64;

type Rewriting = dyn Fn(&[u8], bool) -> Option<Vec<u8>> + Send + Sync;

/// What becomes of a request in a copy: from the script's id, and its bytes.
pub(super) type InCopy<'a> = dyn Fn(&str, &[u8]) -> Option<Vec<u8>> + 'a;

/// What becomes of a request: from its bytes, and whether its script is done. `None`: it stays as it is.
#[derive(Clone)]
pub struct Rewrite(Arc<Rewriting>);

impl Rewrite {
    /// This.
    pub fn new(rewrite: impl Fn(&[u8], bool) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(rewrite))
    }
}

impl Store {
    /// Looks at the requests of all living scripts, and of those that are done and ended from `since` on;
    /// `None`: of all.
    ///
    /// # Errors
    /// When the disk refuses, or the index can't be read.
    pub async fn sweep(
        &self,
        since: Option<Timestamp>,
        rewrite: &Rewrite,
    ) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for which in [Which::Living, Which::Done(since)] {
            let mut after = Some(0);
            while let Some(from) = after {
                let sweep = |reply| {
                    let rewrite = rewrite.clone();
                    Command::Sweep { which, after: from, rewrite, reply }
                };
                let looked = self.call(sweep).await?;
                swept += looked.swept;
                after = looked.last;
            }
        }
        Ok(swept)
    }

    /// From which end on requests are to be looked at; `None`: this or an older baton never looked.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn erase_mark(&self) -> Result<Option<Timestamp>, StoreError> {
        self.call(Command::EraseMark).await
    }

    /// Puts that on record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn set_erase_mark(&self, at: Option<Timestamp>) -> Result<(), StoreError> {
        self.call(|reply| Command::SetEraseMark(at, reply)).await
    }

    /// Empties the log, so that what was is not in it any more; says whether it could: not while somebody
    /// reads in it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn empty_log(&self) -> Result<bool, StoreError> {
        self.call(|reply| Command::Alone(Alone::EmptyLog(reply))).await
    }

    /// Builds the database anew: nothing is left of what was removed or changed. Other calls wait.
    ///
    /// # Errors
    /// When there is no room, or a page is damaged. Then it is as it was.
    pub async fn rebuild(&self) -> Result<(), StoreError> {
        self.call(|reply| Command::Alone(Alone::Rebuild(reply))).await
    }

    /// Rewrites requests in the copies of the database at `path`, by id and bytes: of one script, or of all,
    /// and then nothing is left in them of what was removed or changed.
    ///
    /// # Errors
    /// When one can't be read or written; the others are done.
    pub fn rewrite_copies(
        path: &Path,
        only: Option<&ScriptId>,
        rewrite: impl Fn(&str, &[u8]) -> Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        backup::rewrite(path, only.map(ScriptId::as_str), &rewrite)
    }
}

impl fmt::Debug for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rewrite")
    }
}

/// Which requests are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which {
    /// Those of living scripts.
    Living,
    /// Those of scripts that are done, from an end on.
    Done(Option<Timestamp>),
}

/// What came of looking at some requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looked {
    /// The last one; `None`: there are no more.
    pub(super) last: Option<u64>,
    pub(super) swept: Swept,
}

/// What came of looking at requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// How many are other ones now.
    pub rewritten: u64,
    /// How many could not be read.
    pub unread: u64,
}

impl std::ops::AddAssign for Swept {
    fn add_assign(&mut self, other: Self) {
        self.rewritten += other.rewritten;
        self.unread += other.unread;
    }
}

/// Looks at the next requests behind the number of an arrival.
pub(super) fn sweep(
    transaction: &Transaction<'_>,
    which: Which,
    after: u64,
    rewrite: &Rewrite,
) -> Result<Looked, StoreError> {
    let (done, since) = match which {
        Which::Living => (false, None),
        Which::Done(since) => (true, since.map(nanoseconds)),
    };
    // From the index alone: one damaged row does not hide the others.
    let mut next = transaction.prepare_cached(
        "SELECT seq FROM scripts INDEXED BY scripts_by_arrival
         WHERE done = ?1 AND seq > ?2 AND (?3 IS NULL OR ended_at IS NULL OR ended_at >= ?3)
         ORDER BY seq LIMIT ?4",
    )?;
    let next = next.query_map((done, signed(after), since, BATCH), |row| row.get(0))?;
    let next = next.collect::<Result<Vec<i64>, _>>()?;
    let mut read = transaction.prepare_cached("SELECT request FROM scripts WHERE seq = ?1")?;
    let mut write = transaction.prepare_cached("UPDATE scripts SET request = ?2 WHERE seq = ?1")?;
    let mut looked = Looked { last: next.last().copied().map(unsigned), ..Looked::default() };
    for seq in next {
        let Ok(request) = read.query_row([seq], |row| row.get::<_, Vec<u8>>(0)) else {
            looked.swept.unread += 1;
            continue;
        };
        if let Some(request) = (rewrite.0)(&request, done) {
            write.execute((seq, request))?;
            looked.swept.rewritten += 1;
        }
    }
    Ok(looked)
}

/// Empties the log; says whether it could: not while somebody reads in it.
pub(super) fn empty_log(connection: &Connection) -> Result<bool, StoreError> {
    // Others wait for this thread.
    connection.busy_timeout(Duration::ZERO)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    connection.busy_timeout(BUSY_LIMIT)?;
    Ok(busy.map(|busy: i64| busy == 0)?)
}

/// Builds the database anew.
pub(super) fn rebuild(connection: &Connection) -> Result<(), StoreError> {
    Ok(connection.execute_batch("VACUUM")?)
}

/// From which end on requests are to be looked at; `None`: all, and the database is to be built anew.
pub(super) fn mark(connection: &Connection) -> Result<Option<Timestamp>, StoreError> {
    let mut asked = connection.prepare_cached("SELECT value FROM about WHERE key = 'erased'")?;
    let value: Option<String> = asked.query_row([], |row| row.get(0)).optional()?;
    let parse = |value: String| {
        let (by, at) = value.split_once(' ')?;
        let at = Timestamp::from_nanosecond(at.parse().ok()?).ok()?;
        (by == PROGRAM).then_some(at)
    };
    Ok(value.and_then(parse))
}

/// Puts that on record.
pub(super) fn set_mark(connection: &Connection, at: Option<Timestamp>) -> rusqlite::Result<()> {
    let Some(at) = at else {
        return connection.execute("DELETE FROM about WHERE key = 'erased'", []).map(drop);
    };
    let value = format!("{PROGRAM} {}", nanoseconds(at));
    let set = "INSERT INTO about VALUES ('erased', ?1)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    connection.execute(set, [value]).map(drop)
}

/// This baton takes the database over from the one that opened it last: what that one put on record holds.
pub(super) fn take_mark_over(connection: &Connection, from: &str) -> rusqlite::Result<()> {
    let sql = "UPDATE about SET value = ?2 || substr(value, length(?1) + 1)
        WHERE key = 'erased' AND substr(value, 1, length(?1) + 1) = ?1 || ' '";
    connection.execute(sql, [from, PROGRAM]).map(drop)
}

/// Rewrites requests in one of the copies of a database: of one script, or of all and the copy is built anew.
pub(super) fn rewrite_copy(
    copy: &Path,
    only: Option<&str>,
    rewrite: &InCopy<'_>,
) -> Result<(), CopyError> {
    let work = || {
        let mut connection = Connection::open(copy)?;
        connection.busy_timeout(BUSY_LIMIT)?;
        connection.pragma_update(None, "secure_delete", "ON")?;
        // Nothing is left beside it.
        connection.pragma_update(None, "journal_mode", "DELETE")?;
        let transaction = connection.transaction()?;
        let rows: Vec<i64> = transaction
            .prepare("SELECT rowid FROM scripts WHERE ?1 IS NULL OR id = ?1")?
            .query_map([only], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for row in rows {
            let read = "SELECT id, request FROM scripts WHERE rowid = ?1";
            let (id, request): (String, Vec<u8>) =
                transaction.query_row(read, [row], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if let Some(request) = rewrite(&id, &request) {
                let write = "UPDATE scripts SET request = ?2 WHERE rowid = ?1";
                transaction.execute(write, (row, request))?;
            }
        }
        transaction.commit()?;
        if only.is_none() { connection.execute_batch("VACUUM") } else { Ok(()) }
    };
    work().map_err(backup::sql(copy))
}
