//! Control groups: which kind there is, in which one the agent is, and how near its limits are. baton needs
//! none; a limit of others ends scripts all the same.

use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::scene::Scene;

/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";
/// statfs(2): the file system of version 2.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// From how many hundredths of a limit on it is told.
const NEAR_PERCENT: u64 = 90;
/// Version 1 writes a number near the greatest where there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// A limit of a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    /// Of what: `memory`, in bytes, or `pids`.
    what: &'static str,
    used: u64,
    max: u64,
    path: PathBuf,
}

/// Version 1, 2 or both, and the agent's group.
pub(super) fn version(scene: &Scene) -> Finding {
    let is_two = |path: &Path| {
        rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(CGROUP2_MAGIC))
    };
    let root = Path::new(ROOT);
    let version = match (is_two(root), is_two(&root.join("unified")), root.is_dir()) {
        (true, ..) => "version 2",
        (_, true, _) => "hybrid",
        (_, _, true) => "version 1",
        _ => "none",
    };
    let groups = groups(scene);
    let group = group_of(&groups, "").or_else(|| group_of(&groups, "memory"));
    judge_version(version, group.as_deref())
}

fn judge_version(version: &str, group: Option<&str>) -> Finding {
    Finding::ok(match group {
        Some(group) => format!("{version}; group {group}"),
        None => version.to_owned(),
    })
}

/// `/proc/PID/cgroup` of the agent, or of this process.
fn groups(scene: &Scene) -> String {
    let pid = scene.process().map_or_else(|| "self".to_owned(), |process| process.pid.to_string());
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}

/// The group for a controller, out of lines such as `0::/a` and `4:memory:/a`; version 2 has the name "".
fn group_of(groups: &str, controller: &str) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let controllers = fields.nth(1)?;
        let is_it = controllers.split(',').any(|name| name == controller);
        is_it.then(|| fields.next().map(str::to_owned)).flatten()
    })
}

/// None of the limits above the agent is near.
pub(super) fn limits(scene: &Scene) -> Finding {
    let groups = groups(scene);
    let mut limits = Vec::new();
    let two = [ROOT.to_owned(), format!("{ROOT}/unified")];
    let two = two.iter().find(|root| Path::new(root).join("cgroup.controllers").exists());
    if let (Some(root), Some(group)) = (two, group_of(&groups, "")) {
        for folder in above(Path::new(root), &group) {
            limits.extend(read(&folder, "memory", ["memory.current", "memory.max"]));
            limits.extend(read(&folder, "pids", ["pids.current", "pids.max"]));
        }
    }
    for (what, files) in [
        ("memory", ["memory.usage_in_bytes", "memory.limit_in_bytes"]),
        ("pids", ["pids.current", "pids.max"]),
    ] {
        if let Some(group) = group_of(&groups, what) {
            for folder in above(&Path::new(ROOT).join(what), &group) {
                limits.extend(read(&folder, what, files));
            }
        }
    }
    judge_limits(&limits)
}

/// A group's folder and those above it.
fn above(root: &Path, group: &str) -> Vec<PathBuf> {
    let folder = root.join(group.trim_start_matches('/'));
    folder.ancestors().take_while(|path| path.starts_with(root)).map(Path::to_owned).collect()
}

fn read(folder: &Path, what: &'static str, [used, max]: [&str; 2]) -> Option<Limit> {
    let number = |name: &str| -> Option<u64> {
        std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
    };
    let (used, max) = (number(used)?, number(max)?);
    // What the system gives back before it kills anybody does not count.
    let cached = if what == "memory" { reclaimable(folder) } else { 0 };
    let used = used.saturating_sub(cached);
    (max < NO_LIMIT).then(|| Limit { what, used, max, path: folder.to_owned() })
}

fn reclaimable(folder: &Path) -> u64 {
    let text = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let find =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    find("total_inactive_file ").or_else(|| find("inactive_file ")).unwrap_or(0)
}

fn judge_limits(limits: &[Limit]) -> Finding {
    let share = |limit: &Limit| limit.used.saturating_mul(100) / limit.max.max(1);
    let told = |limit: &Limit| {
        let Limit { what, used, max, .. } = limit;
        format!("{what}: {used} of {max} ({} %) in {}", share(limit), limit.path.display())
    };
    let mut findings = Vec::new();
    for limit in limits {
        let found = told(limit);
        findings.push(if share(limit) >= NEAR_PERCENT {
            Finding::warning(found).hint("raise the limit (MemoryMax=, TasksMax= of the unit or slice): scripts count too, and what is beyond it is killed or not started")
        } else {
            Finding::ok(found)
        });
    }
    if findings.is_empty() {
        return Finding::ok("none is set");
    }
    Finding::all(findings)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn groups_are_found_by_their_controller() {
        let groups = "4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/system.slice/x.service\n";
        assert_eq!(group_of(groups, "memory").as_deref(), Some("/a/b"));
        assert_eq!(group_of(groups, "cpuacct").as_deref(), Some("/c"));
        assert_eq!(group_of(groups, "").as_deref(), Some("/system.slice/x.service"));
        assert_eq!(group_of(groups, "pids"), None);
        let folders = above(Path::new("/sys/fs/cgroup"), "/a/b");
        assert_eq!(
            folders,
            ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_limit_that_is_near_is_a_warning() {
        for (used, max, verdict) in
            [(89, 100, Verdict::Ok), (90, 100, Verdict::Warning), (0, 0, Verdict::Ok)]
        {
            let limit = Limit { what: "pids", used, max, path: PathBuf::from("/g") };
            assert_eq!(judge_limits(&[limit]).verdict, verdict, "{used} of {max}");
        }
        assert_eq!(judge_limits(&[]), Finding::ok("none is set"));
    }
}
