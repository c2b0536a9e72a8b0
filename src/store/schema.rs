//! Opening the database and bringing its schema up to date, one step a version.
//!
//! The version is that of the whole state folder: a change of any file there that older programs would
//! misread is a step here too, be it an empty one. So one number says, before anything is changed, whether
//! this baton may use the folder.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use tracing::info;

use super::{Migration, StoreError, backup, erase};
use crate::crash;
use crate::format::{self, Newer};

/// Each step brings the schema from one version to the next. Never change one that was released.
const STEPS: [&str; 4] = [
    include_str!("steps/1-scripts.sql"),
    include_str!("steps/2-history.sql"),
    include_str!("steps/3-drain.sql"),
    include_str!("steps/4-about.sql"),
];

/// How long another reader, an operator's `sqlite3` say, may hold things up.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// After how many instructions of SQLite's machine it is looked at the clock: some milliseconds.
const STEP_INSTRUCTIONS: i32 = 100_000;
/// The least time between two words of a step.
const PAUSE: Duration = Duration::from_secs(1);

/// The version that this baton writes.
pub fn known() -> u64 {
    u64::try_from(STEPS.len()).unwrap_or(u64::MAX)
}

/// Refuses the database at `path` if a newer baton wrote it, and changes nothing. None is fine.
///
/// # Errors
/// When a newer baton wrote it, or it can't be read.
pub(super) fn check(path: &Path) -> Result<(), StoreError> {
    if !path.exists() {
        return Ok(());
    }
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri(path), flags).map_err(failed)?;
    connection.busy_timeout(BUSY_LIMIT).map_err(failed)?;
    let found = version(&connection).map_err(failed)?;
    check_version(path, &connection, found)
}

/// A database without a log is looked at so that no empty one is left beside it.
fn uri(path: &Path) -> String {
    let encode = |byte: &u8| match byte {
        b'/' | b'-' | b'.' | b'_' => char::from(*byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        byte => format!("%{byte:02x}"),
    };
    let encoded: String = path.as_os_str().as_bytes().iter().map(encode).collect();
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let options = if Path::new(&log).exists() { "" } else { "?immutable=1" };
    format!("file:{encoded}{options}")
}

fn check_version(path: &Path, connection: &Connection, found: u64) -> Result<(), StoreError> {
    let writer = if found > known() { writer(connection) } else { None };
    Newer::check(found, known(), writer)
        .map_err(|source| StoreError::Newer { path: path.to_owned(), source })
}

/// Opens the database at `path`; rules 1, 3, 5 and 6 of the module.
pub(super) fn open(path: &Path, told: fn(Migration)) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    check(path)?;
    private(path).map_err(|e| failed(rusqlite::Error::ToSqlConversionFailure(Box::new(e))))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_LIMIT).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "secure_delete", "ON").map_err(failed)?;
    let is_new = version(&connection).map_err(failed)? == 0;
    migrate(path, &mut connection, told)?;
    sign(&mut connection).map_err(failed)?;
    if is_new {
        erase::set_mark(&connection, Some(Timestamp::now())).map_err(failed)?;
    }
    Ok(connection)
}

/// Requests may hold secrets: nobody else reads the file.
pub(super) fn private(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path)?.set_permissions(Permissions::from_mode(0o600))
}

/// The version of a database; 0: there is nothing in it yet.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<u64> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // A number below zero is none of ours.
    Ok(u64::try_from(found).unwrap_or(u64::MAX))
}

/// All steps that are missing, or none of them.
fn migrate(
    path: &Path,
    connection: &mut Connection,
    told: fn(Migration),
) -> Result<(), StoreError> {
    let found = version(connection)?;
    check_version(path, connection, found)?;
    if found == known() {
        return Ok(());
    }
    let failed =
        |source| StoreError::Migrate { path: path.to_owned(), found, known: known(), source };
    if found > 0 {
        crash::point("before copy");
        let copy = backup::make(path, connection, known(), told)
            .map_err(|source| StoreError::Copy { path: path.to_owned(), source })?;
        info!(from = found, to = known(), copy = %copy.display(), "the database is migrated");
        crash::point("before migration");
        tell_while_it_works(connection, told).map_err(failed)?;
    }
    let transaction = connection.transaction().map_err(failed)?;
    for (_, step) in (1..).zip(STEPS).filter(|(version, _)| *version > found) {
        transaction.execute_batch(step).map_err(failed)?;
        crash::point("mid migration");
    }
    let version = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    transaction.pragma_update(None, "user_version", version).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    connection.progress_handler(0, None::<fn() -> bool>).map_err(failed)?;
    crash::point("after migration");
    Ok(())
}

/// Tells now, and while SQLite works at a step: of one that hangs nothing is told.
fn tell_while_it_works(connection: &mut Connection, told: fn(Migration)) -> rusqlite::Result<()> {
    told(Migration::Changing(known()));
    let mut last = Instant::now();
    let tell = move || {
        if last.elapsed() >= PAUSE {
            last = Instant::now();
            told(Migration::Changing(known()));
        }
        // It goes on.
        false
    };
    connection.progress_handler(STEP_INSTRUCTIONS, Some(tell))
}

/// Leaves word which baton opened it last.
fn sign(connection: &mut Connection) -> rusqlite::Result<()> {
    let writer = writer(connection);
    if writer.as_deref() == Some(format::PROGRAM) {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    if let Some(writer) = writer {
        erase::take_mark_over(&transaction, &writer)?;
    }
    let sign = "INSERT INTO about VALUES ('baton', ?1)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    transaction.execute(sign, [format::PROGRAM])?;
    transaction.commit()
}

/// The version of the baton that opened it last, if it says so.
fn writer(connection: &Connection) -> Option<String> {
    let asked =
        connection.query_row("SELECT value FROM about WHERE key = 'baton'", [], |row| row.get(0));
    // Older than the table, or damaged: then nobody knows.
    asked.optional().ok().flatten()
}
