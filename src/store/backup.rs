//! Copies of the database from before each migration: `agent.db.before-vN`, N being what it became. With one
//! the program that could read it can be put back.
//!
//! 1. A copy has its name only when it is whole and on disk.
//! 2. The last two are kept.
//! 3. It is put back only by somebody who asks for it: what came since the migration is lost with it.
//! 4. What is erased from the database is erased from the copies too.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, Progress, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::schema::{known, private, version};
use super::{Migration, StoreError, erase};
use crate::{crash, durable};

/// How many copies are kept: of this migration, and of the one before.
const KEPT: usize = 2;
/// How many pages are copied at once. Nobody else waits for the database then.
const STEP_PAGES: i32 = 4096;

/// Why a copy could not be made or put back.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file of it.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// SQLite refused.
    #[error("{path}")]
    Sql {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// There is none that this baton can read.
    #[error("there is no copy of {0} from before a migration that this baton can read")]
    None(PathBuf),
}

/// A copy from before a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The file.
    pub path: PathBuf,
    /// The version to which the database was migrated then.
    pub before: u64,
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> CopyError + use<> {
    let path = path.to_owned();
    move |source| CopyError::File { path, source }
}

pub(super) fn sql(path: &Path) -> impl Fn(rusqlite::Error) -> CopyError + use<> {
    let path = path.to_owned();
    move |source| CopyError::Sql { path: path.clone(), source }
}

fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// The copies that there are, the newest first.
///
/// # Errors
/// When the folder can't be read.
pub fn copies(database: &Path) -> Result<Vec<Copy>, CopyError> {
    let folder = database.parent().unwrap_or(Path::new("."));
    let prefix = beside(Path::new(database.file_name().unwrap_or_default()), ".before-v");
    let mut copies = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(file(folder))? {
        let path = entry.map_err(file(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let before = name.and_then(|name| name.strip_prefix(prefix.to_str()?)?.parse().ok());
        copies.extend(before.map(|before| Copy { path, before }));
    }
    copies.sort_unstable_by_key(|copy| std::cmp::Reverse(copy.before));
    Ok(copies)
}

/// Copies the database, with what is only in its log so far, before it becomes version `before`.
pub(super) fn make(
    database: &Path,
    connection: &Connection,
    before: u64,
    told: fn(Migration),
) -> Result<PathBuf, CopyError> {
    let path = beside(database, &format!(".before-v{before}"));
    let unfinished = beside(database, ".copy");
    // What a kill left.
    remove(&unfinished)?;
    private(&unfinished).map_err(file(&unfinished))?;
    copy_into(connection, &unfinished, told)?;
    crash::point("mid copy");
    place(&unfinished, &path)?;
    for old in copies(database)?.into_iter().skip(KEPT) {
        remove(&old.path)?;
    }
    Ok(path)
}

fn copy_into(from: &Connection, path: &Path, told: fn(Migration)) -> Result<(), CopyError> {
    let mut to = Connection::open(path).map_err(sql(path))?;
    // It has no name yet, and is synced before it gets one: nothing to roll back is left beside it.
    to.pragma_update(None, "journal_mode", "OFF").map_err(sql(path))?;
    to.pragma_update(None, "synchronous", "OFF").map_err(sql(path))?;
    let backup = Backup::new(from, &mut to).map_err(sql(path))?;
    let mut last = None;
    while backup.step(STEP_PAGES).map_err(sql(path))? != StepResult::Done {
        let percent = percent(backup.progress());
        if last.replace(percent) != Some(percent) {
            told(Migration::Copying(percent));
        }
        // Busy: somebody reads it with a tool just now.
        std::thread::sleep(Duration::from_millis(10));
    }
    // What comes now, to have it on disk, may take as long as the whole copy.
    told(Migration::Copying(100));
    Ok(())
}

fn percent(progress: Progress) -> i32 {
    let Progress { remaining, pagecount } = progress;
    let done = i64::from(pagecount - remaining) * 100 / i64::from(pagecount).max(1);
    i32::try_from(done).unwrap_or(0)
}

/// Gives a file that is on disk its name.
fn place(unfinished: &Path, path: &Path) -> Result<(), CopyError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(unfinished)
        .and_then(|copy| copy.sync_all())
        .and_then(|()| std::fs::rename(unfinished, path))
        .and_then(|()| durable::sync_dir(folder))
        .map_err(file(path))
}

fn remove(path: &Path) -> Result<(), CopyError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(path)(error)),
        _ => Ok(()),
    }
}

/// Puts the newest copy that this baton can read in the place of the database. Nobody may have it open: the
/// caller has the state folder's lock. What came after the migration is kept beside it, as
/// `agent.db.replaced`, for people.
///
/// # Durability
/// A kill at any instant leaves the one or the other.
///
/// # Errors
/// When there is no such copy, or a file can't be written. Then the database is as it was.
pub(super) fn put_back(database: &Path) -> Result<Copy, StoreError> {
    let failed = |source| StoreError::Copy { path: database.to_owned(), source };
    let is_readable = |copy: &Copy| open(&copy.path).is_ok_and(|found| found <= known());
    let copy = copies(database).map_err(failed)?.into_iter().find(is_readable);
    let copy = copy.ok_or_else(|| failed(CopyError::None(database.to_owned())))?;
    let replace = || {
        let (unfinished, replaced) = (beside(database, ".copy"), beside(database, ".replaced"));
        for (from, to) in [(database, &replaced), (&copy.path, &database.to_owned())] {
            remove(&unfinished)?;
            private(&unfinished).map_err(file(&unfinished))?;
            let source = Connection::open(from).map_err(sql(from))?;
            if from == database {
                // Its log must not be taken for that of the one that comes into its place.
                truncate_log(&source).map_err(sql(from))?;
            }
            copy_into(&source, &unfinished, |_| {})?;
            drop(source);
            place(&unfinished, to)?;
        }
        Ok(())
    };
    replace().map_err(failed)?;
    Ok(copy)
}

/// Rewrites requests in all that was copied or put aside: of one script, or of all. Each is tried; the first
/// error is told.
pub(super) fn rewrite(
    database: &Path,
    only: Option<&str>,
    rewrite: &erase::InCopy<'_>,
) -> Result<(), StoreError> {
    let failed = |source| StoreError::Copy { path: database.to_owned(), source };
    let replaced = beside(database, ".replaced");
    let copies = copies(database).map_err(failed)?.into_iter().map(|copy| copy.path);
    let all = copies.chain(replaced.exists().then_some(replaced));
    let rewrite = |copy: PathBuf| erase::rewrite_copy(&copy, only, rewrite);
    // All of them before the first error is told.
    let results: Vec<Result<(), CopyError>> = all.map(rewrite).collect();
    results.into_iter().collect::<Result<(), _>>().map_err(failed)
}

fn open(path: &Path) -> rusqlite::Result<u64> {
    version(&Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?)
}

fn truncate_log(connection: &Connection) -> rusqlite::Result<()> {
    let busy: i64 =
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy == 0 {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    Err(rusqlite::Error::SqliteFailure(code, None))
}
