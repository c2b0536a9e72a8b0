//! Promise: a process that nothing can end keeps its script's mutex and is named, until an operator abandons
//! it, for the record. Needs to freeze a small file system, so it runs as root only.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use baton::process::Process;
use baton::script::{Fate, OutcomeKind};
use support::run::Run;
use support::{Started, World, exited, finish, lines};

/// A file system on which writers sleep without being killable. It thaws when this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    /// `None` where this may not be done.
    fn mount(world: &World) -> Option<Self> {
        let (image, path) = (world.path("image"), world.path("frozen"));
        std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        std::fs::create_dir(&path).unwrap();
        let done = run("mkfs.ext4", &[Path::new("-q"), &image])
            && run("mount", &[Path::new("-o"), Path::new("loop"), &image, &path]);
        if !done {
            return None;
        }
        let frozen = Self(path);
        run("fsfreeze", &[Path::new("-f"), &frozen.0]).then_some(frozen)
    }

    fn thaw(&self) {
        run("fsfreeze", &[Path::new("-u"), &self.0]);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        run("umount", &[Path::new("--lazy"), &self.0]);
    }
}

fn run(program: &str, words: &[&Path]) -> bool {
    Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn what_nothing_can_end_holds_the_mutex_until_it_is_abandoned_for_the_record() {
    let world = World::new();
    let Some(frozen) = Frozen::mount(&world) else {
        eprintln!("skipped: no file system may be frozen here");
        return;
    };
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let text = format!("echo on; exec echo x > {}/file", frozen.0.display());
    let script = agent.script(text).id("stuck").with(|spec| spec.grace = Some(Duration::ZERO));
    let script = script.start().await;
    script.has_written(3).await;
    let next = agent.script("echo next").start().await;
    agent.client.cancel(&script.id, "enough".to_owned()).await.unwrap();
    let told = script.until("said to be stuck", |script| !script.stuck.is_empty()).await;
    assert!(told.stuck[0].command.contains("scripts/stuck/script"), "{told:?}");
    let (_, out, _) = finish(world.baton_at("a").args(["show", "stuck"]));
    assert!(out.contains("can't be ended and keeps its mutexes"), "{out}");
    // It holds the machine, also for those outside.
    let machine = ["mutex", "run", "--no-wait", "machine", "--", "true"];
    assert_eq!(finish(world.baton_at("a").args(machine)).0, 75);
    assert!(!agent.client.get(&next.id).await.unwrap().phase.is_done());
    // Only for a reason.
    assert!(agent.client.abandon(&script.id, String::new()).await.is_err());
    let cancel = ["cancel", "stuck", "--abandon", "--reason", "the disk is gone", "--wait"];
    let (code, out, error) = finish(world.baton_at("a").args(cancel));
    assert_eq!((code, out.as_str()), (0, "stuck: cancelled: enough\n"), "{error}");
    let outcome = script.outcome().await;
    let reason = "enough".to_owned();
    assert_eq!(outcome.kind, OutcomeKind::Cancelled { while_queued: false, reason });
    assert_eq!(outcome.stragglers.len(), 1, "{outcome:?}");
    assert_eq!(outcome.stragglers[0].fate, Fate::Abandoned);
    // The next one runs, and its log says beside what.
    assert!(exited(&next.outcome().await, 0));
    let (_, out, error) = finish(world.baton_at("a").args(["logs", next.id.as_str()]));
    assert_eq!(out, "next\n");
    let mark = "abandoned by script stuck";
    assert!(error.contains(mark) && error.contains("the disk is gone"), "{error}");
    assert!(error.contains(&format!("pid {}", outcome.stragglers[0].pid)), "{error}");
    // Once.
    let (code, _, told) = finish(world.baton_at("a").args(machine));
    assert_eq!((code, told.as_str()), (0, ""));
    frozen.thaw();
}

/// The supervisor that alone could give the mutexes back is gone, and so is the agent for a while.
#[tokio::test]
async fn so_it_is_when_its_supervisor_was_killed_too() {
    let world = World::new();
    let Some(frozen) = Frozen::mount(&world) else {
        eprintln!("skipped: no file system may be frozen here");
        return;
    };
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let text = format!("echo on; exec echo x > {}/file", frozen.0.display());
    let script = agent.script(text).id("stuck").with(|spec| spec.grace = Some(Duration::ZERO));
    let script = script.start().await;
    script.has_written(3).await;
    let log = world.path("log");
    let next = agent.script(format!("echo next >> {}", log.display())).id("next").start().await;
    next.is_waiting().await;
    // It stands in the machine's line, with a supervisor that lives on.
    let mut line = Run::of(world.baton().args(["mutex", "status", "machine", "--json", "--watch"]));
    while !line.line().contains("\"next\"") {}
    drop(line);
    agent.kill();
    support::end_supervisor(&world.path("a/state/scripts/stuck"));
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let script = Started { client: again.client.clone(), id: script.id };
    let told = script.until("said to be stuck", |script| !script.stuck.is_empty()).await;
    let pid = told.stuck[0].pid;
    // Those of baton and those without wait for it.
    let plain = world.mutexes().join("machine/os.lock");
    let flock = |plain: &Path| run("flock", &[Path::new("-n"), plain, Path::new("true")]);
    assert!(!flock(&plain));
    let outside = Run::waiter(&world, "machine", "outside");
    let cancel = ["cancel", "stuck", "--abandon", "--reason", "the disk is gone", "--wait"];
    let (_, _, error) = finish(world.baton_at("a").args(cancel));
    let outcome = script.outcome().await;
    assert!(matches!(outcome.kind, OutcomeKind::Lost { .. }), "{outcome:?} {error}");
    assert_eq!(outcome.stragglers.len(), 1, "{outcome:?}");
    assert_eq!((outcome.stragglers[0].pid, outcome.stragglers[0].fate), (pid, Fate::Abandoned));
    assert!(Process::read(pid).is_some_and(|process| !process.is_zombie()));
    // In order, and told beside what they run.
    let next = Started { client: again.client.clone(), id: next.id };
    assert!(exited(&next.outcome().await, 0));
    let (_, _, error) = finish(world.baton_at("a").args(["logs", "next"]));
    let is_told = error.contains("abandoned by script stuck") && error.contains("the disk is gone");
    assert!(is_told, "{error}");
    assert_eq!(outside.end(), 0);
    assert_eq!(lines(&log), ["next", "outside"]);
    // Nobody passes by a lock: it is free, and who takes it excludes as before.
    assert!(flock(&plain));
    let gate = world.gate();
    let holder = again.script(gate.wait()).start().await;
    holder.is_running().await;
    assert!(!flock(&plain));
    gate.open();
    assert!(exited(&holder.outcome().await, 0));
    frozen.thaw();
}
