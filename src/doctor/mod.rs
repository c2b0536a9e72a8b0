//! Looks for what keeps baton from working on this machine: all that a support engineer would ask for.
//! `baton doctor` prints it.
//!
//! 1. It changes nothing and leaves nothing, and needs neither root nor an agent nor a configuration that
//!    can be read.
//! 2. Each check has a thread of its own and all have one limit: what hangs is a finding, and holds up
//!    no other check.
//! 3. What this user may not see is unknown, never ok.
//! 4. Reading and judging are apart: what a check reads becomes a plain value, and a pure function with a
//!    table says what it means.
//!
//! One file per subject. What each check means and what to do: `docs/doctor.md`.

mod agent;
mod asking;
mod cgroup;
mod clock;
mod configuration;
mod coordination;
mod disk;
mod finding;
mod identity;
mod limits;
mod lines;
mod machine;
mod mutexes;
mod owner;
mod ports;
mod scene;
mod service;
mod shared;
mod state;
mod target;
mod units;
mod versions;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

pub use finding::{Finding, Verdict};
pub use scene::{Mutexes, Scene};
pub use target::{TARGET_CHECKS, Wanted};

/// How long all checks may take together. What they wait for by themselves has shorter limits, and says
/// more.
const LIMIT: Duration = Duration::from_secs(6);

/// One question.
pub struct Check {
    /// `SUBJECT.WHAT`, as docs/doctor.md has it.
    pub name: &'static str,
    look: fn(&Scene) -> Finding,
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The check's name.
    pub name: &'static str,
    /// What it found.
    pub finding: Finding,
}

/// What is looked at on this machine, in the order in which it is shown.
pub const CHECKS: &[Check] = &[
    Check { name: "versions.program", look: versions::program },
    Check { name: "versions.replaced", look: versions::replaced },
    Check { name: "versions.system", look: versions::system },
    Check { name: "configuration.agent", look: configuration::agent },
    Check { name: "configuration.client", look: configuration::client },
    Check { name: "configuration.environment", look: configuration::environment },
    Check { name: "configuration.permissions", look: configuration::permissions },
    Check { name: "identity.agent", look: identity::agent },
    Check { name: "identity.client", look: identity::client },
    Check { name: "identity.peers", look: identity::peers },
    Check { name: "agent.running", look: agent::running },
    Check { name: "agent.answers", look: agent::answers },
    Check { name: "agent.draining", look: agent::draining },
    Check { name: "agent.store", look: agent::store },
    Check { name: "service.unit", look: service::unit },
    Check { name: "service.settings", look: service::settings },
    Check { name: "service.instances", look: service::instances },
    Check { name: "ports.listen", look: ports::listen },
    Check { name: "clock.synchronised", look: clock::synchronised },
    Check { name: "clock.plausible", look: clock::plausible },
    Check { name: "cgroup.version", look: cgroup::version },
    Check { name: "cgroup.limits", look: cgroup::limits },
    Check { name: "disk.state", look: disk::state },
    Check { name: "disk.configuration", look: disk::configuration },
    Check { name: "disk.runtime", look: disk::runtime },
    Check { name: "disk.mutexes", look: disk::mutexes },
    Check { name: "disk.temporary", look: disk::temporary },
    Check { name: "state.database", look: state::database },
    Check { name: "state.workspaces", look: state::workspaces },
    Check { name: "mutexes.folder", look: mutexes::folder },
    Check { name: "mutexes.locks", look: mutexes::locks },
    Check { name: "mutexes.cleaners", look: mutexes::cleaners },
    Check { name: "mutexes.shared", look: shared::shared },
    Check { name: "mutexes.machine", look: lines::machine },
    Check { name: "mutexes.tickets", look: lines::tickets },
    Check { name: "limits.files", look: limits::files },
    Check { name: "limits.watches", look: limits::watches },
    Check { name: "limits.processes", look: limits::processes },
    Check { name: "machine.shells", look: machine::shells },
    Check { name: "coordination.etcd", look: coordination::etcd },
];

/// Asks all questions at the same time; the answers in their order (rule 2).
pub fn examine(scene: &Arc<Scene>, checks: &'static [Check]) -> Vec<Checked> {
    let until = Instant::now() + LIMIT;
    let (told, heard) = mpsc::channel();
    for (place, check) in checks.iter().enumerate() {
        let (scene, to_tell) = (Arc::clone(scene), told.clone());
        let look = move || to_tell.send((place, (check.look)(&scene))).unwrap_or_default();
        let started = std::thread::Builder::new().name(check.name.to_owned()).spawn(look);
        if let Err(error) = started {
            let finding = Finding::unknown(format!("no thread can be started for it: {error}"));
            // The receiver is here.
            told.send((place, finding)).unwrap_or_default();
        }
    }
    drop(told);
    let mut findings: Vec<Option<Finding>> = vec![None; checks.len()];
    while let Some((place, finding)) = next(&heard, until) {
        findings[place] = Some(finding);
    }
    let checked = checks.iter().zip(findings).map(|(check, finding)| Checked {
        name: check.name,
        finding: finding.unwrap_or_else(hangs),
    });
    checked.collect()
}

fn next(heard: &Receiver<(usize, Finding)>, until: Instant) -> Option<(usize, Finding)> {
    heard.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
}

fn hangs() -> Finding {
    Finding::error(format!("no answer within {} s", LIMIT.as_secs())).hint(
        "what it looks at hangs: a file system of another machine, a pipe in a file's place, or a stopped process",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Directories;

    fn scene(root: &std::path::Path) -> Arc<Scene> {
        let [config, state, runtime, mutex] =
            ["config", "state", "run", "mutex"].map(|name| root.join(name));
        let folders = Directories { config, state, runtime, mutex, instance: None };
        Arc::new(Scene::new(folders, Mutexes::Named, None))
    }

    fn hang(_: &Scene) -> Finding {
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn what_hangs_is_a_finding_and_holds_up_no_other_check() {
        const HANGING: &[Check] = &[
            Check { name: "a.hangs", look: hang },
            Check { name: "a.answers", look: |_| Finding::ok("here") },
        ];
        let root = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let checked = examine(&scene(root.path()), HANGING);
        assert!(begin.elapsed() < LIMIT * 2);
        assert_eq!(checked[0].finding.verdict, Verdict::Error);
        assert!(checked[0].finding.found.contains("no answer"), "{checked:?}");
        assert_eq!(checked[1].finding, Finding::ok("here"));
    }

    #[test]
    fn names_have_a_subject_and_come_once_and_subjects_stand_together() {
        let names: Vec<_> = CHECKS.iter().chain(TARGET_CHECKS).map(|check| check.name).collect();
        let mut subjects: Vec<_> = names.iter().map(|n| n.split_once('.').unwrap().0).collect();
        subjects.dedup();
        let mut once = subjects.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), subjects.len(), "{subjects:?}");
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }
}
