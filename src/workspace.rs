//! A script's folder on disk, where the agent and the script's supervisor meet.
//!
//! ```text
//! <state>/scripts/<script id>/     0700
//!   job.json        what the supervisor is to do
//!   script          the body (script.ps1 for PowerShell, which insists on the ending)
//!   work/           BATON_WORKSPACE: the script's own folder, and where it starts
//!     files/        the small files of the request
//!   supervisor      locked by the supervisor as long as it lives; its process id, for people
//!   output          BATON_OUTPUT: what the script gives back
//!   progress        BATON_PROGRESS: a named pipe, from the script to its supervisor
//!   artifacts/      BATON_ARTIFACTS: files that clients may have
//!   lease.sock      of a lease: where its scripts get what it holds
//!   cancel.json     why the script is to stop; written before the supervisor is told
//!   output.journal  the output
//!   reboot.json     the script's wish: a restart of the machine when it exits with 0, and another run
//!   resume.json     that it is run again after a restart; by the supervisor, instead of an outcome, durable
//!   outcome.json    how it ended: written once, durable
//!   reserve         room on the disk for the outcome, should the script fill it
//! ```
//!
//! It knows names and shapes of files, not what they mean.

pub mod removal;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::durable;
use crate::format::{self, FormatError, Newer};
use crate::script::ScriptId;
use crate::spec::{Spec, What};

/// More than an outcome with all its stragglers has.
const RESERVED_BYTES: u64 = 64 * 1024;

/// A script's folder.
#[derive(Debug, Clone)]
pub struct Workspace {
    path: PathBuf,
}

/// What could not be done with a workspace.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// A file or folder of it.
    #[error("workspace file {path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A newer baton wrote a file of it.
    #[error("workspace file {path}")]
    Newer {
        /// Which one.
        path: PathBuf,
        /// How new.
        #[source]
        source: Newer,
    },
    /// A file of it has another shape than expected.
    #[error("workspace file {path} is damaged")]
    Damaged {
        /// Which one.
        path: PathBuf,
        /// How.
        #[source]
        source: serde_json::Error,
    },
}

impl Workspace {
    /// The workspace of a script below `<state>/scripts`.
    pub fn of(scripts: &Path, id: &ScriptId) -> Self {
        Self { path: scripts.join(id.as_str()) }
    }

    /// The workspace at a path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The script's own folder.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// The job for the supervisor.
    pub fn job(&self) -> PathBuf {
        self.path.join("job.json")
    }

    /// The file that a living supervisor keeps locked.
    pub fn supervisor(&self) -> PathBuf {
        self.path.join("supervisor")
    }

    /// Where a lease's scripts get what it holds. The path may be longer than that of a socket may be.
    pub fn lease_socket(&self) -> PathBuf {
        self.path.join("lease.sock")
    }

    /// Why the script is to stop.
    pub fn cancel(&self) -> PathBuf {
        self.path.join("cancel.json")
    }

    /// The output.
    pub fn journal(&self) -> PathBuf {
        self.path.join("output.journal")
    }

    /// The file in which the script gives values back.
    pub fn output(&self) -> PathBuf {
        self.path.join("output")
    }

    /// The named pipe in which the script says how far it is.
    pub fn progress(&self) -> PathBuf {
        self.path.join("progress")
    }

    /// The folder of the files that clients may have.
    pub fn artifacts(&self) -> PathBuf {
        self.path.join("artifacts")
    }

    /// The script's wish for a restart of the machine.
    pub fn reboot(&self) -> PathBuf {
        self.path.join("reboot.json")
    }

    /// That it is run again after a restart of the machine.
    pub fn resume(&self) -> PathBuf {
        self.path.join("resume.json")
    }

    /// How it ended.
    pub fn outcome(&self) -> PathBuf {
        self.path.join("outcome.json")
    }

    /// The body's file.
    pub fn body(&self, interpreter: &str) -> PathBuf {
        let name = Path::new(interpreter).file_stem().and_then(|name| name.to_str());
        let powershell = matches!(name, Some("pwsh" | "powershell"));
        self.path.join(if powershell { "script.ps1" } else { "script" })
    }

    /// Makes the folder anew with all that the request brings. What an earlier try left is removed.
    ///
    /// # Errors
    /// When something can't be written.
    pub fn create(&self, spec: &Spec) -> Result<(), WorkspaceError> {
        self.remove()?;
        let files = self.work().join("files");
        for folder in [self.path.as_path(), &self.work(), &files, &self.artifacts()] {
            self.check(folder, DirBuilder::new().recursive(true).mode(0o700).create(folder))?;
        }
        if let What::Body { text, interpreter } = &spec.what {
            let body = self.body(interpreter);
            self.check(&body, write_new(&body, text, 0o700))?;
        }
        // Empty, so that the agent can watch it before the supervisor writes into it.
        self.check(&self.journal(), write_new(&self.journal(), &[], 0o600))?;
        self.check(&self.output(), write_new(&self.output(), &[], 0o600))?;
        self.check(&self.progress(), make_pipe(&self.progress()))?;
        for file in &spec.files {
            let path = files.join(&file.name);
            let mode = if file.executable { 0o700 } else { 0o600 };
            self.check(&path, write_new(&path, &file.content, mode))?;
        }
        Ok(())
    }

    /// Removes the folder with all that is in it.
    ///
    /// # Errors
    /// When something can't be removed.
    pub fn remove(&self) -> Result<(), WorkspaceError> {
        self.check(&self.path, removal::remove_tree(&self.path))
    }

    /// Writes one of the JSON files, whole and durable.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_json<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), WorkspaceError> {
        let text = format::to_json(format::WORKSPACE, value)
            .map_err(|source| WorkspaceError::Damaged { path: path.to_owned(), source })?;
        self.check(path, durable::replace_file(path, &text, 0o600))
    }

    /// Reads one of the JSON files; `None` when it isn't there.
    ///
    /// # Errors
    /// When it can't be read, a newer baton wrote it, or it has another shape.
    pub fn read_json<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, WorkspaceError> {
        let text = match std::fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => self.check(path, other)?,
        };
        let path = path.to_owned();
        format::from_json(format::WORKSPACE, &text).map(Some).map_err(|error| match error {
            FormatError::Newer(source) => WorkspaceError::Newer { path, source },
            FormatError::Json(source) => WorkspaceError::Damaged { path, source },
        })
    }

    /// Writes the job, whole or not at all. Not durable: after a power failure there is no supervisor
    /// to read it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_job<T: Serialize>(&self, job: &T) -> Result<(), WorkspaceError> {
        let (path, new) = (self.job(), self.new_job());
        let text = format::to_json(format::WORKSPACE, job)
            .map_err(|source| WorkspaceError::Damaged { path: path.clone(), source })?;
        // What an agent that was killed here left; the folder is made anew only for a first attempt.
        if let Err(e) = std::fs::remove_file(&new)
            && e.kind() != io::ErrorKind::NotFound
        {
            return self.check(&new, Err(e));
        }
        let written = write_new(&new, &text, 0o600).and_then(|()| std::fs::rename(&new, &path));
        self.check(&path, written)
    }

    /// Takes room on the disk for the outcome.
    ///
    /// # Errors
    /// When there is none: a script that starts now might have an outcome that nobody hears of.
    pub fn reserve(&self) -> Result<(), WorkspaceError> {
        let path = self.reserved();
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = self.check(&path, options.open(&path))?;
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&file, flags, 0, RESERVED_BYTES) {
            Err(e @ (Errno::NOSPC | Errno::DQUOT)) => self.check(&path, Err(e.into())),
            // Not every file system can; then there is no reserve.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Gives the room back: the outcome is written now.
    pub fn use_reserve(&self) {
        std::fs::remove_file(self.reserved()).unwrap_or_default();
    }

    fn reserved(&self) -> PathBuf {
        self.path.join("reserve")
    }

    /// Makes the folder's entries and the folder itself durable.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<(), WorkspaceError> {
        let parent = self.path.parent().unwrap_or(&self.path);
        let synced = durable::sync_dir(&self.path).and_then(|()| durable::sync_dir(parent));
        self.check(&self.path, synced)
    }

    /// Takes the job away, also one that was being written: a supervisor that comes late finds nothing to do,
    /// and nobody finds the secrets in it.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn void_job(&self) -> Result<(), WorkspaceError> {
        for path in [self.job(), self.new_job()] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => self.check(&path, Err(e))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// A job that is being written.
    pub fn new_job(&self) -> PathBuf {
        self.path.join("job.json.new")
    }

    /// Opens the supervisor's file, to lock it.
    ///
    /// # Errors
    /// When the workspace isn't there.
    pub fn open_supervisor(&self) -> Result<File, WorkspaceError> {
        let path = self.supervisor();
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        self.check(&path, options.open(&path))
    }

    #[expect(clippy::unused_self, reason = "reads as a method where it is used")]
    fn check<T>(&self, path: &Path, result: io::Result<T>) -> Result<T, WorkspaceError> {
        result.map_err(|source| WorkspaceError::File { path: path.to_owned(), source })
    }
}

fn make_pipe(path: &Path) -> io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0)?)
}

/// Whether an error says that the machine lacks something (room on the disk, files, processes) which it may
/// have again: what failed is tried again later.
pub fn is_lack(error: &(dyn std::error::Error + 'static)) -> bool {
    const LACKS: [Errno; 6] =
        [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM];
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let code = error.raw_os_error();
            let is_one = LACKS.iter().any(|lack| Some(lack.raw_os_error()) == code);
            if is_one || error.kind() == io::ErrorKind::StorageFull {
                return true;
            }
        }
        source = error.source();
    }
    false
}

/// Not durable: the request in the store is, and a lost workspace is made again from it.
fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)
}
