//! The disks: room, inodes, and whether they can be written, for each folder that baton uses.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};

use super::finding::Finding;
use super::scene::Scene;

/// What a folder needs at least where nothing else says: tickets, sockets, small files.
const MIN_BYTES: u64 = 1 << 20;
/// What is enough of inodes.
const MIN_INODES: u64 = 1000;

/// A disk as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    /// The folder that is meant, or the next one above it that is there.
    path: PathBuf,
    free_bytes: u64,
    total_bytes: u64,
    free_inodes: u64,
    /// 0: its file system counts none.
    total_inodes: u64,
    is_read_only: bool,
    /// Whether this user may write there.
    is_writable: bool,
}

/// What a folder needs.
struct Needs {
    /// Below it something fails.
    least: u64,
    /// Below it something is refused.
    enough: u64,
    /// What is refused or fails.
    why: &'static str,
    /// Whether others than root may be its owner, so that it need not be written by this user.
    is_agents: bool,
}

/// Room for the database, workspaces and output.
pub(super) fn state(scene: &Scene) -> Finding {
    let config = scene.config_or_default();
    let least = config.as_ref().map_or(MIN_BYTES, |config| config.min_free_bytes);
    let enough = config.as_ref().map_or(least, |config| config.files.min_free_bytes);
    let why = "output beyond `min_free_bytes` is not kept, pushes beyond `files.min_free_bytes` are refused";
    look(&scene.folders.state, &Needs { least, enough, why, is_agents: true })
}

/// Identity, peers, targets.
pub(super) fn configuration(scene: &Scene) -> Finding {
    let why = "neither peers nor targets can be changed";
    look(&scene.folders.config, &Needs { least: 64 << 10, enough: 64 << 10, why, is_agents: true })
}

/// The agent's socket.
pub(super) fn runtime(scene: &Scene) -> Finding {
    let why = "the agent can't make its socket";
    look(&scene.folders.runtime, &Needs { least: 4 << 10, enough: 4 << 10, why, is_agents: true })
}

/// Tickets.
pub(super) fn mutexes(scene: &Scene) -> Finding {
    let why = "nobody can join a line";
    look(&scene.mutexes(), &Needs { least: 64 << 10, enough: MIN_BYTES, why, is_agents: true })
}

/// What scripts take for temporary files.
pub(super) fn temporary(_: &Scene) -> Finding {
    let why = "scripts that make temporary files fail";
    let needs = Needs { least: MIN_BYTES, enough: 16 << 20, why, is_agents: false };
    let folder = std::env::temp_dir();
    if !folder.is_dir() {
        return Finding::error(format!("{} is no folder", folder.display()))
            .hint("make it (mode 1777), or set TMPDIR to one that is there");
    }
    look(&folder, &needs)
}

fn look(folder: &Path, needs: &Needs) -> Finding {
    let Some(path) = folder.ancestors().find(|path| path.exists()) else {
        return Finding::error(format!("{} is nowhere", folder.display()))
            .hint("give it by an absolute path");
    };
    if !path.is_dir() {
        return Finding::error(format!("{} is no folder", path.display()))
            .hint("something else stands in its place: look at it, then move it away");
    }
    match statvfs(path) {
        Ok(found) => {
            let block = found.f_frsize;
            judge(
                &Disk {
                    path: path.to_owned(),
                    free_bytes: found.f_bavail.saturating_mul(block),
                    total_bytes: found.f_blocks.saturating_mul(block),
                    free_inodes: found.f_favail,
                    total_inodes: found.f_files,
                    is_read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
                    is_writable: access(path, Access::WRITE_OK).is_ok(),
                },
                needs,
            )
        }
        Err(error) => Finding::error(format!("{}: {error}", path.display()))
            .hint("its file system does not answer as one: `dmesg` may say why"),
    }
}

fn judge(disk: &Disk, needs: &Needs) -> Finding {
    let shown = disk.path.display();
    let why = needs.why;
    if disk.is_read_only {
        return Finding::error(format!("the file system of {shown} is read-only"))
            .hint(format!("{why}; `dmesg` may say why the kernel made it so"));
    }
    // On a small disk less is left free, as the agent does it.
    let least = needs.least.min(disk.total_bytes / 20);
    let enough = needs.enough.min(disk.total_bytes / 20).max(least);
    let room = format!("{} free of {} on {shown}", size(disk.free_bytes), size(disk.total_bytes));
    if disk.free_bytes < least {
        return Finding::error(room).hint(format!("make room: {why}"));
    }
    if disk.total_inodes > 0 && disk.free_inodes == 0 {
        return Finding::error(format!("no inode is free on {shown}"))
            .hint(format!("remove small files: {why}"));
    }
    if !disk.is_writable {
        let found = format!("this user may not write {shown}");
        return if needs.is_agents {
            Finding::unknown(found).hint("run it as root, or as the agent's user")
        } else {
            Finding::error(found).hint(why)
        };
    }
    if disk.free_bytes < enough {
        return Finding::warning(room).hint(format!("make room: {why}"));
    }
    if disk.total_inodes > 0 && disk.free_inodes < MIN_INODES.min(disk.total_inodes / 20) {
        return Finding::warning(format!("{} inodes are free on {shown}", disk.free_inodes))
            .hint(format!("remove small files: {why}"));
    }
    Finding::ok(room)
}

/// In the unit in which people think of a disk.
fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mebibytes @ 0..10_240 => format!("{mebibytes} MiB"),
        mebibytes => format!("{} GiB", mebibytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn little_room_few_inodes_and_what_can_t_be_written_are_told() {
        let well = Disk {
            path: PathBuf::from("/s"),
            free_bytes: 50 * GIB,
            total_bytes: 100 * GIB,
            free_inodes: 100_000,
            total_inodes: 1_000_000,
            is_read_only: false,
            is_writable: true,
        };
        let needs = Needs { least: 64 << 20, enough: 256 << 20, why: "x", is_agents: true };
        let but = |change: fn(&mut Disk)| {
            let mut disk = well.clone();
            change(&mut disk);
            disk
        };
        for (disk, verdict) in [
            (well.clone(), Verdict::Ok),
            (but(|d| d.free_bytes = 63 << 20), Verdict::Error),
            (but(|d| d.free_bytes = 65 << 20), Verdict::Warning),
            (but(|d| d.free_inodes = 0), Verdict::Error),
            (but(|d| d.free_inodes = 999), Verdict::Warning),
            (but(|d| (d.free_inodes, d.total_inodes) = (0, 0)), Verdict::Ok),
            (but(|d| d.is_read_only = true), Verdict::Error),
            (but(|d| d.is_writable = false), Verdict::Unknown),
            // 1 MiB of 20 is enough on a small disk.
            (but(|d| (d.free_bytes, d.total_bytes) = (1 << 20, 20 << 20)), Verdict::Ok),
            (but(|d| (d.free_bytes, d.total_bytes) = (1 << 19, 20 << 20)), Verdict::Error),
        ] {
            assert_eq!(judge(&disk, &needs).verdict, verdict, "{disk:?}");
        }
        let needs = Needs { is_agents: false, ..needs };
        assert_eq!(judge(&but(|d| d.is_writable = false), &needs).verdict, Verdict::Error);
    }
}
