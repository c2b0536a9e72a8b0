//! The lines of the named mutexes: who holds the machine, who is stuck, what the dead left.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;

use super::finding::Finding;
use super::scene::Scene;
use crate::mutex::status::{self, Standing, Status};
use crate::mutex::{MutexName, Party};
use crate::process::Process;
use crate::snapshot;
use crate::text::chain;

/// How many tickets of the dead are told: those behind them take them out, one after the other.
const MANY_DEAD: usize = 1000;

/// A holder, as far as its process is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    Lives,
    Stopped,
    Gone,
}

/// Who holds the machine, and since when.
pub(super) fn machine(scene: &Scene) -> Finding {
    let (root, name) = (scene.mutexes(), MutexName::machine());
    if !has_line(&root, &name) {
        return Finding::ok("free; nobody has used it yet");
    }
    if let Some(finding) = others(scene, &root) {
        return finding;
    }
    match status::status(&root, &name) {
        Ok(status) => judge_machine(&status, keeper, Timestamp::now()),
        Err(error) => {
            Finding::unknown(chain(&error)).hint("run it as root, or as the mutexes' user")
        }
    }
}

/// What is to be said of the lines of another user.
///
/// # Security
/// Root does not follow what that user may have put there.
fn others(scene: &Scene, root: &Path) -> Option<Finding> {
    let owner = scene.owner()?;
    let uid = owner.uid?;
    let is_others = root.symlink_metadata().is_ok_and(|found| found.uid() == uid);
    is_others.then(|| {
        let (name, shown) = (&owner.name, root.display());
        Finding::unknown(format!("the lines in {shown} are for user {name} to read")).hint(format!(
            "`runuser -u {name} -- env BATON_MUTEX_DIR={shown} baton mutex status` shows them"
        ))
    })
}

fn keeper(pid: u32) -> Keeper {
    match Process::read(pid) {
        Some(process) if process.is_stopped() => Keeper::Stopped,
        Some(process) if !process.is_zombie() => Keeper::Lives,
        Some(_) | None => Keeper::Gone,
    }
}

/// Whether it was ever used. Looking at one that was not would make its folder.
fn has_line(root: &Path, name: &MutexName) -> bool {
    root.join(name.as_str()).join("line").is_dir()
}

fn judge_machine(status: &Status, keeper: impl Fn(u32) -> Keeper, now: Timestamp) -> Finding {
    let mut findings: Vec<Finding> =
        status.holders().iter().map(|standing| judge_holder(standing, &keeper, now)).collect();
    for foreign in &status.foreign {
        findings.push(Finding::ok(format!(
            "pid {} ({}) holds its plain lock without baton",
            foreign.pid, foreign.command
        )));
    }
    if findings.is_empty() {
        return Finding::ok("free");
    }
    let waiters = status.waiters().len();
    findings.push(Finding::ok(format!("{waiters} wait")));
    Finding::all(findings)
}

fn judge_holder(standing: &Standing, keeper: &impl Fn(u32) -> Keeper, now: Timestamp) -> Finding {
    let Standing { ticket, mode, who } = standing;
    let party = Party { who: who.clone(), exclusive: mode.is_exclusive() };
    let since = who.holds_since.unwrap_or(who.waits_since);
    let held = std::time::Duration::try_from(now - since).unwrap_or_default();
    let held = humantime::format_duration(std::time::Duration::from_secs(held.as_secs()));
    let found = format!("held for {held} by {}", snapshot::describe(&party));
    let end = format!(
        "`baton mutex break machine --holder {ticket} --reason TEXT` ends it with all that it started"
    );
    match keeper(who.pid) {
        Keeper::Stopped => Finding::error(format!("{found}, and pid {} is stopped", who.pid))
            .hint(format!("`kill -CONT {}` lets it go on", who.pid))
            .hint(end),
        Keeper::Gone => {
            Finding::warning(format!("{found}; that process is gone, and what it started has it"))
                .hint(end)
        }
        Keeper::Lives => match who.overdue(now) {
            Some(limit) => {
                let limit = humantime::format_duration(limit);
                Finding::warning(format!("{found}, longer than {limit}")).hint(end)
            }
            None => Finding::ok(found),
        },
    }
}

/// What the dead left in the lines, and what was given up.
pub(super) fn tickets(scene: &Scene) -> Finding {
    let root = scene.mutexes();
    if let Some(finding) = others(scene, &root) {
        return finding;
    }
    let names = match status::names(&root) {
        Ok(names) => names,
        Err(error) => {
            return Finding::unknown(chain(&error)).hint("run it as root, or as the mutexes' user");
        }
    };
    let (mut living, mut all, mut unseen, mut given_up) = (0, 0, 0, Vec::new());
    for name in &names {
        let folder = root.join(name.as_str());
        let before = std::fs::read_dir(folder.join("line")).map(Iterator::count);
        match (before, status::status(&root, name)) {
            (Ok(count), Ok(status)) => {
                all += count;
                living += status.line.len();
            }
            _ => unseen += 1,
        }
        if folder.join("abandoned").exists() {
            given_up.push(name.to_string());
        }
    }
    judge_tickets(&Lines {
        mutexes: names.len(),
        living,
        dead: all.saturating_sub(living),
        unseen,
        given_up,
    })
}

/// All lines together.
struct Lines {
    mutexes: usize,
    living: usize,
    dead: usize,
    unseen: usize,
    given_up: Vec<String>,
}

fn judge_tickets(lines: &Lines) -> Finding {
    let Lines { mutexes, living, dead, unseen, given_up } = lines;
    let found = format!("{mutexes} mutexes, {living} tickets, {dead} of the dead");
    let mut findings = vec![Finding::ok(found.clone())];
    if *dead > MANY_DEAD {
        findings.push(
            Finding::warning(found)
                .hint("whoever joins a line takes its dead out: `baton mutex run NAME -- true`"),
        );
    }
    if *unseen > 0 {
        findings.push(Finding::needs_root(&format!("{unseen} of them")));
    }
    if !given_up.is_empty() {
        let found = format!("given up while something of it still ran: {}", given_up.join(", "));
        findings.push(
            Finding::warning(found)
                .hint("the next holder is told; look for what still runs: `baton mutex status`"),
        );
    }
    Finding::all(findings)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::mutex::{Claimant, Mode};

    #[test]
    fn a_holder_that_is_stopped_gone_or_late_is_told() {
        let now: Timestamp = "2026-11-26T01:00:00Z".parse().unwrap();
        let since: Timestamp = "2026-11-26T00:00:00Z".parse().unwrap();
        for (process, warn_after_ms, verdict) in [
            (Keeper::Lives, None, Verdict::Ok),
            (Keeper::Lives, Some(60_000), Verdict::Warning),
            (Keeper::Lives, Some(7_200_000), Verdict::Ok),
            (Keeper::Gone, None, Verdict::Warning),
            (Keeper::Stopped, None, Verdict::Error),
        ] {
            let who = Claimant {
                pid: 7,
                holds_since: Some(since),
                waits_since: since,
                warn_after_ms,
                ..Claimant::default()
            };
            let mut status = Status::free(MutexName::machine());
            status.line.push(Standing { ticket: 42, mode: Mode::Exclusive, who });
            status.holding = 1;
            let finding = judge_machine(&status, |_| process, now);
            assert_eq!(finding.verdict, verdict, "{process:?}: {finding:?}");
            assert!(finding.found.contains("for 1h"), "{finding:?}");
        }
        let free = judge_machine(&Status::free(MutexName::machine()), keeper, now);
        assert_eq!(free, Finding::ok("free"));
    }

    #[test]
    fn many_dead_tickets_and_what_was_given_up_are_told() {
        let lines = |dead, unseen, given_up: &[&str]| Lines {
            mutexes: 1,
            living: 0,
            dead,
            unseen,
            given_up: given_up.iter().map(|&name| name.to_owned()).collect(),
        };
        for (lines, verdict) in [
            (lines(1000, 0, &[]), Verdict::Ok),
            (lines(1001, 0, &[]), Verdict::Warning),
            (lines(0, 1, &[]), Verdict::Unknown),
            (lines(0, 0, &["log"]), Verdict::Warning),
        ] {
            assert_eq!(judge_tickets(&lines).verdict, verdict);
        }
    }
}
