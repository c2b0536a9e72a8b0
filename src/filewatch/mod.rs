//! Told when a file changes, instead of looking again and again.
//!
//! One [`FileWatcher`] serves a whole process. It says *that* something changed, never what: who is
//! told looks for itself.
//!
//! 1. A change between two calls of [`FileWatch::changed`] is never lost; several may be one.
//! 2. When the system lost events, everybody is told.

#[path = "unix.rs"]
mod os;

pub use os::register;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Watches files and folders. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FileWatcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    os: os::Watcher,
    watched: Mutex<HashMap<os::WatchId, watch::Sender<()>>>,
}

/// One watched file or folder. Dropping it ends the watch.
#[derive(Debug)]
pub struct FileWatch {
    changes: watch::Receiver<()>,
    id: os::WatchId,
    shared: Arc<Shared>,
}

impl FileWatcher {
    /// Starts to watch; the task ends with `stop`.
    ///
    /// # Errors
    /// When the system gives no watcher (`fs.inotify.max_user_instances`).
    pub fn start(tasks: &TaskTracker, stop: CancellationToken) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { os: os::Watcher::new()?, watched: Mutex::new(HashMap::new()) });
        let listener = Arc::clone(&shared);
        drop(tasks.spawn(async move {
            stop.run_until_cancelled(listener.listen()).await.unwrap_or(());
        }));
        Ok(Self { shared })
    }

    /// Watches a file's content, or a folder's entries.
    ///
    /// # Errors
    /// When it isn't there, or there are too many watches (`fs.inotify.max_user_watches`).
    pub fn watch(&self, path: &Path) -> io::Result<FileWatch> {
        let mut watched = self.shared.watched();
        let id = self.shared.os.add(path)?;
        // The system has one watch for a file, however often it is asked for.
        let changes = watched.entry(id).or_insert_with(|| watch::Sender::new(())).subscribe();
        Ok(FileWatch { changes, id, shared: Arc::clone(&self.shared) })
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, HashMap<os::WatchId, watch::Sender<()>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(&self) {
        loop {
            match self.os.changes().await {
                Ok(os::Changes::These(ids)) => {
                    let watched = self.watched();
                    for sender in ids.iter().filter_map(|id| watched.get(id)) {
                        sender.send_replace(());
                    }
                }
                // Rule 2.
                Ok(os::Changes::Unknown) => {
                    for sender in self.watched().values() {
                        sender.send_replace(());
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "files can't be watched any more");
                    return;
                }
            }
        }
    }
}

impl FileWatch {
    /// Waits for a change since the last call, or since the watch began.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The sender lives as long as this watch.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        let mut watched = self.shared.watched();
        // This one still counts.
        if watched.get(&self.id).is_some_and(|sender| sender.receiver_count() <= 1) {
            drop(watched.remove(&self.id));
            self.shared.os.remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    async fn soon(watch: &mut FileWatch) {
        tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.unwrap();
    }

    fn watcher() -> FileWatcher {
        FileWatcher::start(&TaskTracker::new(), CancellationToken::new()).unwrap()
    }

    #[tokio::test]
    async fn rule_1_a_change_is_told_to_all_who_watch_also_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("journal");
        let mut file = std::fs::File::create(&path).unwrap();
        let watcher = watcher();
        let mut first = watcher.watch(&path).unwrap();
        let mut second = watcher.watch(&path).unwrap();
        file.write_all(b"x").unwrap();
        soon(&mut first).await;
        soon(&mut second).await;
        drop(second);
        file.write_all(b"y").unwrap();
        soon(&mut first).await;
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_is_a_change_of_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let mut watch = watcher().watch(root.path()).unwrap();
        crate::durable::replace_file(&root.path().join("peers.toml"), b"", 0o600).unwrap();
        soon(&mut watch).await;
    }

    #[tokio::test]
    async fn what_is_not_there_can_not_be_watched() {
        let root = tempfile::tempdir().unwrap();
        let error = watcher().watch(&root.path().join("nothing")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
