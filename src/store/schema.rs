//! Opening the database and bringing its schema up to date, one step a version.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// Each step brings the schema from one version to the next. Never change one that was released.
const STEPS: [&str; 3] = [FIRST, HISTORY, DRAIN];

pub(super) const FIRST: &str = "
    CREATE TABLE scripts (
        id           TEXT PRIMARY KEY,
        seq          INTEGER NOT NULL UNIQUE,   -- order of arrival
        request      BLOB NOT NULL,             -- baton.v1.ScriptSpec
        phase        TEXT NOT NULL,             -- JSON, with the outcome
        done         INTEGER NOT NULL,          -- 1 when the phase is done
        labels       TEXT NOT NULL,             -- JSON
        mutex        TEXT NOT NULL,
        queued_at    INTEGER NOT NULL,          -- all times: nanoseconds since 1970
        started_at   INTEGER,
        ended_at     INTEGER,
        stop_reason  TEXT,
        output_bytes INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX scripts_by_arrival ON scripts (done, seq);
";

/// What history is asked by, and what its limits count. No request is read to answer: they are large.
/// A row that is damaged holds up no step: its outcome counts as lost.
const HISTORY: &str = "
    ALTER TABLE scripts ADD COLUMN outcome TEXT;        -- the outcome's kind, when it is done
    ALTER TABLE scripts ADD COLUMN exit_code INTEGER;   -- of the kind 'exited'
    ALTER TABLE scripts ADD COLUMN disk_bytes INTEGER;  -- of all that is kept of it; NULL: not known
    UPDATE scripts SET
        ended_at = coalesce(ended_at, started_at, queued_at),
        outcome = CASE
            WHEN NOT json_valid(phase) THEN 'lost'
            WHEN json_type(phase, '$.outcome.kind.kind') = 'text'
                THEN json_extract(phase, '$.outcome.kind.kind')
            ELSE 'lost' END,
        exit_code = CASE
            WHEN NOT json_valid(phase) THEN NULL
            WHEN json_type(phase, '$.outcome.kind.code') = 'integer'
                THEN json_extract(phase, '$.outcome.kind.code') END
        WHERE done = 1;
    CREATE TABLE script_labels (
        key   TEXT NOT NULL,
        value TEXT NOT NULL,
        seq   INTEGER NOT NULL,                         -- the script's
        PRIMARY KEY (key, value, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX script_labels_by_script ON script_labels (seq);
    INSERT OR IGNORE INTO script_labels SELECT label.key, label.value, scripts.seq
        FROM scripts, json_each(CASE WHEN json_valid(labels) THEN labels ELSE '{}' END) AS label
        WHERE label.type = 'text';
    CREATE TRIGGER scripts_inserted AFTER INSERT ON scripts BEGIN
        INSERT INTO script_labels SELECT key, value, NEW.seq FROM json_each(NEW.labels);
    END;
    CREATE TRIGGER scripts_deleted AFTER DELETE ON scripts BEGIN
        DELETE FROM script_labels WHERE seq = OLD.seq;
    END;
    DROP INDEX scripts_by_arrival;
    CREATE INDEX scripts_by_arrival
        ON scripts (done, seq, queued_at, ended_at, outcome, exit_code);
    CREATE INDEX scripts_by_end ON scripts (ended_at, seq, disk_bytes) WHERE done = 1;
    CREATE INDEX scripts_unmeasured ON scripts (seq) WHERE done = 1 AND disk_bytes IS NULL;
";

/// That the agent drains: one row, or none.
const DRAIN: &str = "
    CREATE TABLE drain (
        one    INTEGER PRIMARY KEY CHECK (one = 1),
        since  INTEGER NOT NULL,
        caller TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
";

/// How long another reader, an operator's `sqlite3` say, may hold things up.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// Opens the database at `path`; rules 1 and 3 of the module.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    private(path).map_err(|e| failed(rusqlite::Error::ToSqlConversionFailure(Box::new(e))))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_LIMIT).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Requests may hold secrets: nobody else reads the file.
fn private(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path)?.set_permissions(Permissions::from_mode(0o600))
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for (version, step) in (1_i64..).zip(STEPS).filter(|(version, _)| *version > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}
