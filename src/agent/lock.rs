//! One agent on one state folder: `agent.lock` in it is locked as long as the agent lives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::AgentError;
use crate::filewatch::register;
use crate::mutex::os;

/// How long the lock of an agent that has ended is waited for.
const DEAD_LOCK_LIMIT: Duration = Duration::from_secs(10);
/// How long the end of the agent that has the lock is waited for: it may have been killed just now.
const DYING_LIMIT: Duration = Duration::from_secs(2);

/// Refuses a state folder that is another user's, to root.
///
/// # Security
/// Who owns the folder could put other scripts, or links, in the place of root's.
pub(crate) fn check_owner(state: &Path) -> Result<(), AgentError> {
    let own = rustix::process::geteuid();
    match state.metadata() {
        Ok(found) if own.is_root() && found.uid() != own.as_raw() => {
            Err(AgentError::OthersState { state: state.to_owned(), owner: found.uid() })
        }
        // One that is not there is made; one that can't be used is told by who uses it.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Locks the state folder.
///
/// An agent that was killed while it started a supervisor leaves the lock to that process for the
/// moment until it is another program: such a lock is waited for.
pub(super) async fn lock_state(state: &Path) -> Result<File, AgentError> {
    let path = state.join("agent.lock");
    let failed = |source| AgentError::State { path: path.clone(), source };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut lock = options.open(&path).map_err(failed)?;
    if !os::try_lock_exclusive(&lock).map_err(failed)? {
        let mut pid = String::new();
        lock.read_to_string(&mut pid).map_err(failed)?;
        let in_use = || AgentError::StateInUse { state: state.to_owned(), pid: pid.clone() };
        if !ends_soon(&pid).await {
            return Err(in_use());
        }
        let same_file = lock.try_clone().map_err(failed)?;
        let waiting = tokio::task::spawn_blocking(move || os::lock_exclusive(&same_file));
        let waited = tokio::time::timeout(DEAD_LOCK_LIMIT, waiting).await.map_err(|_| in_use())?;
        waited.map_err(|_| AgentError::Stopping)?.map_err(failed)?;
    }
    write_pid(&mut lock).map_err(failed)?;
    Ok(lock)
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(std::process::id().to_string().as_bytes())
}

/// Whether the process has ended, or does in a moment. One that said no process id yet does not.
async fn ends_soon(pid: &str) -> bool {
    let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) else {
        return false;
    };
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from).and_then(register);
    // There is none, or it can't be watched: its lock will tell.
    let Ok(process) = process else { return true };
    // Readable: it has ended, and only waits to be reaped.
    tokio::time::timeout(DYING_LIMIT, process.readable()).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_runs_nothing_in_the_folder_of_another_user() {
        let root = tempfile::tempdir().unwrap();
        check_owner(root.path()).unwrap();
        check_owner(&root.path().join("none")).unwrap();
        // Only root can give a folder away, and only root is refused.
        if std::os::unix::fs::chown(root.path(), Some(7), None).is_ok() {
            let error = check_owner(root.path()).unwrap_err();
            assert!(matches!(error, AgentError::OthersState { owner: 7, .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn the_lock_of_a_living_agent_is_refused_and_that_of_a_dead_one_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let first = lock_state(root.path()).await.unwrap();
        let error = lock_state(root.path()).await.unwrap_err();
        assert!(matches!(error, AgentError::StateInUse { .. }), "{error}");
        // The first one's process is said to be one that has ended.
        let path = root.path().join("agent.lock");
        let mut text = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        text.write_all(i32::MAX.to_string().as_bytes()).unwrap();
        let (_lock, ()) = tokio::join!(
            async { tokio::time::timeout(DEAD_LOCK_LIMIT, lock_state(root.path())).await.unwrap() },
            async { drop(first) },
        );
    }
}
