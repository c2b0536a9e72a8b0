//! Small and read-only file systems of a test. Mounting one needs root.

use std::fs::File;
use std::io::Write as _;
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
        unmount(&self.0);
    }
}

/// A file that leaves no room on its disk, until this is dropped.
pub struct Ballast(PathBuf);

impl Ballast {
    pub fn fill(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
        Self(path.to_owned())
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

/// A folder that is read-only as a file system is, until this is dropped. What was open before is not.
pub struct ReadOnly(PathBuf);

impl ReadOnly {
    /// `None` where this may not be done.
    pub fn make(path: &Path) -> Option<Self> {
        let mount = |options: &str, source: &Path| {
            let mut mount = Command::new("mount");
            mount.args(["-o", options]).arg(source).arg(path);
            mount.status().is_ok_and(|status| status.success())
        };
        if !mount("bind", path) {
            return None;
        }
        let read_only = Self(path.to_owned());
        mount("remount,bind,ro", path).then_some(read_only)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

fn unmount(path: &Path) {
    drop(Command::new("umount").arg("--lazy").arg(path).status());
}
