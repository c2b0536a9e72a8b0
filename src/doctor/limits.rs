//! Limits of the system: open files, watches, processes.

use rustix::process::{Resource, Rlimit, getrlimit};

use super::finding::Finding;
use super::scene::Scene;
use crate::process;

/// The fewest open files with which the agent's queue works.
const MIN_AGENT_FILES: u64 = 4096;
/// The fewest with which commands here do.
const MIN_OWN_FILES: u64 = 512;
/// From how many hundredths of a limit on it is told.
const NEAR_PERCENT: u64 = 80;
/// The fewest inotify instances of a user: an agent and each waiter that is told of changes have one.
const MIN_INSTANCES: u64 = 32;
/// The fewest watches of a user: some of each script that is followed.
const MIN_WATCHES: u64 = 8192;

/// How much of a limit is used; no `max`: it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Use {
    used: Option<u64>,
    max: Option<u64>,
}

impl Use {
    fn is_near(self) -> bool {
        matches!((self.used, self.max), (Some(used), Some(max))
            if used.saturating_mul(100) >= max.saturating_mul(NEAR_PERCENT))
    }

    fn is_below(self, least: u64) -> bool {
        self.max.is_some_and(|max| max < least)
    }

    fn told(self) -> String {
        let max = self.max.map_or_else(|| "no limit".to_owned(), |max| max.to_string());
        self.used.map_or_else(|| max.clone(), |used| format!("{used} of {max}"))
    }
}

/// How many files the agent and this shell may open.
pub(super) fn files(scene: &Scene) -> Finding {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(agent) = scene.process() else {
        return judge_files((current, maximum), None);
    };
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid));
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid));
    let (Ok(limits), Ok(open)) = (limits, open) else {
        return Finding::all(vec![
            judge_files((current, maximum), None),
            Finding::needs_root("the agent's open files"),
        ]);
    };
    let used = u64::try_from(open.count()).ok();
    judge_files((current, maximum), Some(Use { used, max: soft_limit(&limits, "Max open files") }))
}

/// A soft limit out of `/proc/PID/limits`; `None`: unlimited.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn judge_files((soft, hard): (Option<u64>, Option<u64>), agent: Option<Use>) -> Finding {
    let told = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |n| n.to_string());
    let own = format!("here {} (at most {})", told(soft), told(hard));
    let raise = "`ulimit -n 65536`, LimitNOFILE= of the unit, or /etc/security/limits.conf";
    let mut findings = vec![if soft.is_some_and(|soft| soft < MIN_OWN_FILES) {
        Finding::warning(own).hint(raise)
    } else {
        Finding::ok(own)
    }];
    match agent {
        Some(agent) if agent.is_near() || agent.is_below(MIN_AGENT_FILES) => {
            let hint = format!("each script takes a few; {raise}, then restart the agent");
            findings.push(Finding::warning(format!("the agent {}", agent.told())).hint(hint));
        }
        Some(agent) => findings.push(Finding::ok(format!("the agent {}", agent.told()))),
        None if hard.is_some_and(|hard| hard < MIN_AGENT_FILES) => {
            let found = format!("an agent started here would have {}", told(hard));
            findings.push(Finding::warning(found).hint(raise));
        }
        None => {}
    }
    Finding::all(findings)
}

/// What the agent and waiters are told of changes with.
pub(super) fn watches(scene: &Scene) -> Finding {
    let max = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
    };
    let user = scene.process().map_or(std::process::id(), |process| process.pid);
    let instances = Use { used: instances_of_user_of(user), max: max("max_user_instances") };
    judge_watches(instances, Use { used: None, max: max("max_user_watches") })
}

/// How many inotify instances the user of a process has, as far as they are seen.
fn instances_of_user_of(pid: u32) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = |pid: u32| std::fs::metadata(format!("/proc/{pid}")).ok().map(|found| found.uid());
    let user = owner(pid)?;
    let mut count = 0;
    for process in process::all().filter(|process| owner(process.pid) == Some(user)) {
        let open = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten();
        let links = open.flatten().filter_map(|entry| entry.path().read_link().ok());
        count += links.filter(|link| link.as_os_str() == "anon_inode:inotify").count();
    }
    u64::try_from(count).ok()
}

fn judge_watches(instances: Use, watches: Use) -> Finding {
    let found = format!("inotify instances {}, watches {}", instances.told(), watches.told());
    if instances.is_near() || instances.is_below(MIN_INSTANCES) || watches.is_below(MIN_WATCHES) {
        return Finding::warning(found).hint(
            "sysctl fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=65536, and so in /etc/sysctl.d",
        );
    }
    Finding::ok(found)
}

/// How many processes and threads there may be.
pub(super) fn processes(_: &Scene) -> Finding {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    // "0.00 0.01 0.05 1/321 4711": how many there are stands behind the slash.
    let load = read("loadavg");
    let used =
        load.split_whitespace().nth(3).and_then(|field| field.split('/').nth(1)?.parse().ok());
    let max = |name: &str| read(&format!("sys/kernel/{name}")).trim().parse().ok();
    judge_processes(used, max("pid_max"), max("threads-max"), getrlimit(Resource::Nproc).current)
}

fn judge_processes(
    used: Option<u64>,
    pids: Option<u64>,
    threads: Option<u64>,
    own: Option<u64>,
) -> Finding {
    let max = [pids, threads].into_iter().flatten().min();
    let all = Use { used, max };
    let own_limit = own.map_or_else(|| "no limit".to_owned(), |own| own.to_string());
    let found = format!("{} threads of all; this user may have {own_limit}", all.told());
    if all.is_near() {
        return Finding::warning(found).hint(
            "end what makes so many, or raise kernel.pid_max and kernel.threads-max by sysctl",
        );
    }
    if own.is_some_and(|own| own < 256) {
        return Finding::warning(found).hint("`ulimit -u 4096`, or LimitNPROC= of the unit");
    }
    Finding::ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn few_open_files_are_told_of_the_agent_and_of_this_shell() {
        let agent = |used, max| Some(Use { used: Some(used), max: Some(max) });
        for (own, agent, verdict) in [
            ((Some(1024), Some(524_288)), None, Verdict::Ok),
            ((Some(1024), Some(1024)), None, Verdict::Warning),
            ((Some(256), Some(524_288)), None, Verdict::Warning),
            ((None, None), None, Verdict::Ok),
            ((Some(1024), Some(1024)), agent(30, 65_536), Verdict::Ok),
            ((Some(1024), Some(4096)), agent(30, 1024), Verdict::Warning),
            ((Some(1024), Some(4096)), agent(60_000, 65_536), Verdict::Warning),
        ] {
            assert_eq!(judge_files(own, agent).verdict, verdict, "{own:?} {agent:?}");
        }
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\nMax processes             unlimited            unlimited            processes\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024));
        assert_eq!(soft_limit(limits, "Max processes"), None);
    }

    #[test]
    fn few_watches_and_few_processes_are_told() {
        let of = |used, max| Use { used, max: Some(max) };
        for (instances, watches, verdict) in [
            (of(Some(5), 128), of(None, 65_536), Verdict::Ok),
            (of(Some(110), 128), of(None, 65_536), Verdict::Warning),
            (of(Some(0), 8), of(None, 65_536), Verdict::Warning),
            (of(Some(5), 128), of(None, 100), Verdict::Warning),
        ] {
            assert_eq!(judge_watches(instances, watches).verdict, verdict);
        }
        for (used, pids, own, verdict) in [
            (300, 4_194_304, None, Verdict::Ok),
            (30_000, 32_768, None, Verdict::Warning),
            (300, 32_768, Some(100), Verdict::Warning),
        ] {
            let finding = judge_processes(Some(used), Some(pids), Some(100_000), own);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
        }
    }
}
