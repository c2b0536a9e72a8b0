//! A small file system of a test. Mounting one needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, unmounted at the end.
pub struct Small(PathBuf);

impl Small {
    /// One of so many MiB; `None` where this may not be done.
    pub fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let options = format!("size={mebibytes}m,mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "baton-test"]).arg(path);
        mount.status().is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}
