//! A secret, looked for as an attacker would: each byte of each file below a folder.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use baton::filewatch::FileWatcher;
use baton::spec::Spec;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{TestAgent, World};

/// A value that is found nowhere by chance, with characters that JSON escapes.
#[derive(Debug, Clone)]
pub struct Secret {
    core: String,
    pub value: String,
}

impl Secret {
    pub fn new() -> Self {
        // Backwards: what differs from others of the same instant comes first.
        let core: String = uuid::Uuid::now_v7().simple().to_string().chars().rev().collect();
        Self { value: format!("\"\\é\t{core}'$"), core }
    }

    /// Gives it to a script, as the variable `SECRET`.
    pub fn give(&self, spec: &mut Spec) {
        spec.environment.insert("SECRET".to_owned(), self.value.clone());
        spec.sensitive.push("SECRET".to_owned());
    }

    /// What it looks like as it is, also cut, in base64 at each place of three, in hexadecimal.
    fn forms(&self) -> Vec<Vec<u8>> {
        let core = self.core.as_bytes();
        let base64 = (0..3).map(|before| {
            let text = STANDARD_NO_PAD.encode([&vec![0; before], core].concat());
            // Without what depends on what stands before and behind it.
            text.as_bytes()[4..text.len() - 4].to_vec()
        });
        let hex = core.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        base64.chain([core[..16].to_vec(), hex.into_bytes()]).collect()
    }

    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms().iter().any(|form| memchr::memmem::find(bytes, form).is_some())
    }

    /// In which files below a folder it is.
    pub fn found(&self, root: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for (path, bytes) in files(root) {
            if self.is_in(&bytes) {
                found.push(path);
            }
        }
        found
    }

    /// Waits until it is nowhere in a world any more.
    pub async fn is_gone(&self, world: &World, agent: &TestAgent) {
        are_gone(&[self], world, agent).await;
    }
}

/// Waits until none of these is anywhere in a world any more. The last thing that an agent does for that is to empty
/// the log of its database.
pub async fn are_gone(secrets: &[&Secret], world: &World, agent: &TestAgent) {
    let (tasks, stop, root) = (TaskTracker::new(), CancellationToken::new(), world.path(""));
    let watcher = FileWatcher::start(&tasks, stop.clone()).unwrap();
    let mut watch = watcher.watch(&agent.folder.join("state/agent.db-wal")).unwrap();
    let found =
        || secrets.iter().find_map(|secret| Some(secret.found(&root)).filter(|f| !f.is_empty()));
    let search = async {
        while found().is_some() {
            watch.changed().await;
        }
    };
    let gone = tokio::time::timeout(super::DEADLINE, search).await;
    assert!(gone.is_ok(), "still there: {:?}", found());
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

/// The content of all files below a folder.
fn files(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut folders, mut files) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        // What goes meanwhile is gone.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    let bytes = std::fs::read(&path).unwrap_or_default();
                    files.push((path, bytes));
                }
                _ => {}
            }
        }
    }
    files
}
