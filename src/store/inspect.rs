//! Looking at a database without a change: for who wants to know whether it is whole.
//!
//! SQLite makes files beside a database that it only reads. So one that no agent has open is read without
//! them: as it stands, or, when an agent was killed, with its log (WAL) indexed in memory.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{StoreError, schema};

/// How many problems are told.
const MAX_PROBLEMS: u32 = 5;

/// How a database stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The version of its schema.
    pub version: u64,
    /// The version that this program knows.
    pub known: u64,
    /// What SQLite finds wrong with it; empty: nothing, as far as it came.
    pub problems: Vec<String>,
    /// Whether it came to the end within the limit.
    pub is_whole: bool,
    /// The ids of all scripts; none of a version that is not known.
    pub ids: Vec<String>,
}

/// Looks at the database at `path`, for about `limit` at most.
///
/// # Errors
/// When it is no database, is damaged so that nothing can be read, or this user may not read it.
pub fn inspect(path: &Path, is_in_use: bool, limit: Duration) -> Result<Inspection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let connection = open(path, is_in_use).map_err(failed)?;
    let interrupt = connection.get_interrupt_handle();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    // Without a thread there is no limit.
    drop(std::thread::Builder::new().name("inspect".to_owned()).spawn(move || {
        // It ends at the latest with the other end of the channel.
        if is_done.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            interrupt.interrupt();
        }
    }));
    let version = schema::version(&connection).map_err(failed)?;
    let known = schema::known();
    let ids = if version == known { ids(&connection).map_err(failed)? } else { Vec::new() };
    let (problems, is_whole) = match check(&connection) {
        Ok(problems) => (problems, true),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            (Vec::new(), false)
        }
        Err(error) => return Err(failed(error)),
    };
    drop(done);
    Ok(Inspection { version, known, problems, is_whole, ids })
}

fn open(path: &Path, is_in_use: bool) -> rusqlite::Result<Connection> {
    let log = path.with_extension("db-wal").metadata().map_or(0, |found| found.len());
    let how = match (is_in_use, log) {
        (true, _) => "mode=ro",
        (false, 0) => "mode=ro&immutable=1",
        // Without locks the index is one of this connection's own.
        (false, _) => "mode=ro&vfs=unix-none",
    };
    let mut name = String::from("file:");
    for character in path.to_string_lossy().chars() {
        match character {
            '%' => name.push_str("%25"),
            '?' => name.push_str("%3f"),
            '#' => name.push_str("%23"),
            other => name.push(other),
        }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("{name}?{how}"), flags)?;
    connection.busy_timeout(Duration::ZERO)?;
    if !is_in_use && log > 0 {
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    }
    Ok(connection)
}

fn ids(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT id FROM scripts WHERE typeof(id) = 'text'")?;
    let ids = statement.query_map([], |row| row.get(0))?;
    ids.collect()
}

fn check(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("PRAGMA quick_check({MAX_PROBLEMS})"))?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
    let lines: Vec<String> = lines.collect::<Result<_, _>>()?;
    Ok(if lines == ["ok"] { Vec::new() } else { lines })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    #[test]
    fn a_database_is_read_without_a_change_whoever_left_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("agent.db");
        let connection = schema::open(&path, |_| {}).unwrap();
        let row = "INSERT INTO scripts VALUES ('a', 1, x'', '{}', 0, '{}', 'm', 0, NULL, NULL, NULL, 0, NULL, NULL, NULL)";
        connection.execute(row, []).unwrap();
        // As a killed agent leaves it: with its log, and nobody who has it open.
        let left = root.path().join("left");
        std::fs::create_dir(&left).unwrap();
        for name in ["agent.db", "agent.db-wal"] {
            std::fs::copy(root.path().join(name), left.join(name)).unwrap();
        }
        assert!(left.join("agent.db-wal").metadata().unwrap().len() > 0);
        let before = files(&left);
        let seen = inspect(&left.join("agent.db"), false, LIMIT).unwrap();
        assert_eq!((seen.ids.as_slice(), seen.is_whole), (["a".to_owned()].as_slice(), true));
        assert_eq!(seen.problems, Vec::<String>::new());
        assert_eq!(files(&left), before);
        // As it is in use.
        assert_eq!(inspect(&path, true, LIMIT).unwrap().ids, ["a"]);
        // As an agent that ended leaves it.
        drop(connection);
        let rest = |path: &Path| std::fs::read_dir(path).unwrap().count();
        let count = rest(root.path());
        assert_eq!(inspect(&path, false, LIMIT).unwrap().ids, ["a"]);
        assert_eq!(rest(root.path()), count);
    }

    #[test]
    fn damage_and_other_versions_are_told() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("agent.db");
        drop(schema::open(&path, |_| {}).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        let newer = inspect(&path, false, LIMIT).unwrap();
        assert_eq!((newer.version, newer.ids), (99, Vec::new()));
        // All pages but the first.
        bytes[4096..].fill(0x5a);
        crate::durable::replace_file(&path, &bytes, 0o600).unwrap();
        let damaged = inspect(&path, false, LIMIT);
        assert!(damaged.is_err() || damaged.is_ok_and(|seen| !seen.problems.is_empty()));
        crate::durable::replace_file(&path, b"no database at all, but long enough", 0o600).unwrap();
        inspect(&path, false, LIMIT).unwrap_err();
    }
}
