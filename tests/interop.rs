//! Promise: a mutex is a real lock of the operating system: programs that know only its plain lock
//! file exclude and are excluded. Here flock(1), Python and the crate named-lock; .NET has
//! `tests/clients/dotnet/run.sh`.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use support::{BATON, World, finish, lines, spawn};

/// A process that says "held" when it has the mutex and keeps it until its standard input ends.
struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    out: BufReader<ChildStdout>,
    told: BufReader<ChildStderr>,
}

/// What the protected command of a holder does.
const HOLD: &str = "echo held; cat > /dev/null";

impl Peer {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let input = child.stdin.take();
        let out = BufReader::new(child.stdout.take().unwrap());
        let told = BufReader::new(child.stderr.take().unwrap());
        Self { child, input, out, told }
    }

    /// Starts it and waits until it holds.
    fn holding(command: Command) -> Self {
        let mut peer = Self::start(command);
        peer.holds();
        peer
    }

    /// Starts it and waits until it says for whom it waits.
    fn waiting(command: Command) -> (Self, String) {
        let mut peer = Self::start(command);
        let told = line(&mut peer.told);
        (peer, told)
    }

    fn holds(&mut self) {
        assert_eq!(line(&mut self.out), "held\n");
    }

    /// Lets it give the mutex back, and waits for its end.
    fn end(mut self) {
        drop(self.input.take());
        assert_eq!(line(&mut self.out), "", "it ends");
        assert!(self.child.wait().unwrap().success());
    }

    /// Kills it: it can't do anything about it.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The next line, with the deadline of tests; empty at the end.
fn line(from: &mut BufReader<impl Read + AsFd>) -> String {
    if from.buffer().is_empty() {
        let mut polled = [PollFd::new(from.get_ref(), PollFlags::IN)];
        let limit = Timespec::try_from(support::DEADLINE).unwrap();
        assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 1, "it says nothing");
    }
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line
}

/// A way to take the plain lock without baton.
#[derive(Debug, Clone, Copy)]
enum Outsider {
    Flock,
    Python,
    NamedLock,
}

/// How it takes the lock. Where it is to wait it says "busy" before; where it isn't it fails with 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Wait,
    WaitShared,
    Try,
    TryShared,
}

const FLOCK_TRY: &str = r#"exec flock "$0" -n "$1" true"#;
const FLOCK_WAIT: &str =
    r#"flock "$0" -n "$1" true || echo busy >&2; exec flock "$0" "$1" sh -c "$2""#;
const PYTHON: &str = "
import fcntl, sys
how = fcntl.LOCK_SH if 'shared' in sys.argv[2:] else fcntl.LOCK_EX
with open(sys.argv[1]) as lock:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        if 'try' in sys.argv[2:]:
            sys.exit(1)
        print('busy', file=sys.stderr, flush=True)
        fcntl.flock(lock, how)
    print('held', flush=True)
    sys.stdin.read()
";

impl Outsider {
    fn command(self, path: &Path, manner: Manner) -> Command {
        let is_shared = matches!(manner, Manner::WaitShared | Manner::TryShared);
        let is_try = matches!(manner, Manner::Try | Manner::TryShared);
        let mut command;
        match self {
            Self::Flock => {
                let how = if is_shared { "-s" } else { "-x" };
                command = Command::new("sh");
                command.args(["-c", if is_try { FLOCK_TRY } else { FLOCK_WAIT }, how]);
                command.arg(path).arg(HOLD);
            }
            Self::Python => {
                command = Command::new("python3");
                command.args(["-c", PYTHON]).arg(path);
                command.args(is_shared.then_some("shared")).args(is_try.then_some("try"));
            }
            Self::NamedLock => {
                assert!(!is_shared, "named-lock knows exclusive locks only");
                command = Command::new(named_lock());
                command.args(is_try.then_some("--try")).arg(path);
            }
        }
        command
    }

    /// Whether the program is on this machine; says so if it isn't.
    fn is_here(self) -> bool {
        let program = match self {
            Self::Flock => "flock",
            Self::Python => "python3",
            Self::NamedLock => return true,
        };
        let is_here = Command::new(program).arg("--version").output().is_ok();
        if !is_here {
            // A macro's text is never shown when the test passes.
            let text = format!("skipped: there is no {program} on this machine\n");
            std::io::stderr().write_all(text.as_bytes()).unwrap();
        }
        is_here
    }

    /// The exit status of an attempt that does not wait: 0 or 1.
    fn attempt(self, path: &Path, manner: Manner) -> i32 {
        finish(self.command(path, manner).stdin(Stdio::null())).0
    }
}

/// The example program, which `cargo test` builds; `cargo test --test interop` alone does not.
fn named_lock() -> PathBuf {
    let path = Path::new(BATON).with_file_name("examples").join("named_lock");
    if !path.exists() {
        let build = ["build", "--quiet", "--locked", "--example", "named_lock"];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    }
    path
}

/// `baton mutex run` with options, holding `log`.
fn run(world: &World, options: &[&str]) -> Command {
    run_text(world, options, HOLD)
}

fn run_text(world: &World, options: &[&str], text: &str) -> Command {
    let mut command = world.baton();
    command.args(["mutex", "run"]).args(options).args(["log", "--", "sh", "-c", text]);
    command
}

/// The plain lock file of `log`, as a user finds it.
fn lock_path(world: &World) -> PathBuf {
    let (code, path, told) = finish(world.baton().args(["mutex", "path", "log"]));
    assert_eq!(code, 0, "{told}");
    let path = PathBuf::from(path.trim_end());
    assert_eq!(path, world.mutexes().join("log/os.lock"));
    path
}

/// An attempt of baton's that does not wait: the exit status, and what it says.
fn attempt(world: &World, options: &[&str]) -> (i32, String) {
    let options: Vec<&str> = ["--no-wait"].iter().chain(options).copied().collect();
    let (code, _, told) = finish(&mut run(world, &options));
    (code, told)
}

fn assert_is_busy_outside((code, told): (i32, String)) {
    assert_eq!(code, 75, "{told}");
    assert!(told.contains("`log` is held by a program outside baton"), "{told}");
}

/// What every outsider is to see.
fn excludes_and_is_excluded(outsider: Outsider) {
    if !outsider.is_here() {
        return;
    }
    let world = World::new();
    let path = lock_path(&world);
    let inside = Peer::holding(run(&world, &[]));
    assert_eq!(outsider.attempt(&path, Manner::Try), 1);
    let (mut outside, told) = Peer::waiting(outsider.command(&path, Manner::Wait));
    assert_eq!(told, "busy\n");
    inside.end();
    outside.holds();

    assert_is_busy_outside(attempt(&world, &[]));
    assert_is_busy_outside(attempt(&world, &["--shared"]));
    let (mut inside, told) = Peer::waiting(run(&world, &[]));
    assert!(told.contains("position 1") && told.contains("a program outside baton"), "{told}");
    outside.end();
    inside.holds();
    inside.end();
    assert_eq!(outsider.attempt(&path, Manner::Try), 0);

    // A shared one counts too.
    let shared = Peer::holding(run(&world, &["--shared"]));
    assert_eq!(outsider.attempt(&path, Manner::Try), 1);
    shared.end();
    assert_eq!(outsider.attempt(&path, Manner::Try), 0);
}

#[test]
fn flock_excludes_and_is_excluded() {
    excludes_and_is_excluded(Outsider::Flock);
}

#[test]
fn python_excludes_and_is_excluded() {
    excludes_and_is_excluded(Outsider::Python);
}

#[test]
fn named_lock_excludes_and_is_excluded() {
    excludes_and_is_excluded(Outsider::NamedLock);
}

fn shares(outsider: Outsider) {
    if !outsider.is_here() {
        return;
    }
    let world = World::new();
    let path = lock_path(&world);
    let inside = Peer::holding(run(&world, &["--shared"]));
    let outside = Peer::holding(outsider.command(&path, Manner::WaitShared));
    inside.end();
    let (mut alone, told) = Peer::waiting(run(&world, &[]));
    assert!(told.contains("a program outside baton"), "{told}");
    outside.end();
    alone.holds();
    assert_eq!(outsider.attempt(&path, Manner::TryShared), 1);
    alone.end();

    let outside = Peer::holding(outsider.command(&path, Manner::WaitShared));
    let inside = Peer::holding(run(&world, &["--shared"]));
    assert_is_busy_outside({
        inside.end();
        attempt(&world, &[])
    });
    outside.end();
    assert_eq!(attempt(&world, &[]).0, 0);
}

#[test]
fn flock_shared_and_shared_runs_hold_together() {
    shares(Outsider::Flock);
}

#[test]
fn python_shared_and_shared_runs_hold_together() {
    shares(Outsider::Python);
}

/// Behind an outsider the order is baton's, also where the plain lock would let a later one in.
#[test]
fn nobody_overtakes_the_first_one_behind_an_outsider() {
    let outsider = Outsider::Python;
    if !outsider.is_here() {
        return;
    }
    let world = World::new();
    let path = lock_path(&world);
    for manner in [Manner::Wait, Manner::WaitShared] {
        let log = world.path(&format!("{manner:?}"));
        let note = |name: &str| format!("echo {name} >> '{}'; {HOLD}", log.display());
        let outside = Peer::holding(outsider.command(&path, manner));
        let (mut first, _) = Peer::waiting(run_text(&world, &[], &note("first")));
        let (mut second, _) = Peer::waiting(run_text(&world, &["--shared"], &note("second")));
        let (mut third, _) = Peer::waiting(run_text(&world, &[], &note("third")));
        for options in [&[][..], &["--shared"][..]] {
            assert_eq!(attempt(&world, options).0, 75);
        }
        outside.end();
        first.holds();
        assert_eq!(lines(&log), ["first"]);
        first.end();
        second.holds();
        second.end();
        third.holds();
        third.end();
        assert_eq!(lines(&log), ["first", "second", "third"]);
    }
}

#[test]
fn the_status_names_the_outsider_and_those_who_wait_for_it() {
    for (outsider, program) in [(Outsider::Flock, "flock"), (Outsider::Python, "python")] {
        if !outsider.is_here() {
            continue;
        }
        let world = World::new();
        let path = lock_path(&world);
        let status = || {
            let (_, json, _) = finish(world.baton().args(["mutex", "status", "log", "--json"]));
            serde_json::from_str::<serde_json::Value>(&json).unwrap()
        };
        for (manner, exclusive) in [(Manner::Wait, true), (Manner::WaitShared, false)] {
            let outside = Peer::holding(outsider.command(&path, manner));
            let (mut first, _) = Peer::waiting(run(&world, &[]));
            let seen = status();
            let foreign = &seen["foreign"][0];
            assert_eq!(foreign["pid"], outside.child.id(), "{seen}");
            let command = foreign["command"].as_str().unwrap();
            assert!(command.contains(program), "{seen}");
            assert_eq!(foreign["exclusive"], exclusive, "{seen}");
            assert_eq!(seen["holders"], serde_json::json!([]), "{seen}");
            assert_eq!(seen["waiters"][0]["pid"], first.child.id(), "{seen}");
            outside.end();
            first.holds();
            let seen = status();
            assert_eq!(seen["foreign"], serde_json::json!([]), "{seen}");
            assert_eq!(seen["holders"][0]["pid"], first.child.id(), "{seen}");
            first.end();
        }
    }
}

#[test]
fn an_outsider_that_is_killed_holds_nothing_any_more() {
    for outsider in [Outsider::Python, Outsider::NamedLock] {
        if !outsider.is_here() {
            continue;
        }
        let world = World::new();
        let path = lock_path(&world);
        let mut outside = Peer::holding(outsider.command(&path, Manner::Wait));
        let (mut inside, _) = Peer::waiting(run(&world, &[]));
        outside.kill();
        inside.holds();
        inside.end();
    }
}

/// Rule 6: also for outsiders.
#[test]
fn an_outsider_is_excluded_until_the_tree_of_a_killed_wrapper_has_ended() {
    let outsider = Outsider::NamedLock;
    let world = World::new();
    let path = lock_path(&world);
    let mut inside = Peer::holding(run(&world, &[]));
    inside.kill();
    assert_eq!(outsider.attempt(&path, Manner::Try), 1);
    let (mut outside, _) = Peer::waiting(outsider.command(&path, Manner::Wait));
    drop(inside.input.take());
    outside.holds();
    outside.end();

    // What a command that ended left in the background holds nothing.
    let gate = world.gate();
    let text = format!("echo held; ({}) > /dev/null 2>&1 & cat > /dev/null", gate.wait());
    Peer::holding(run_text(&world, &[], &text)).end();
    assert_eq!(outsider.attempt(&path, Manner::Try), 0);
    gate.open();
}

/// The fragments in a language that the documentation shows for other tools.
fn documented(language: &str) -> Vec<String> {
    let text = std::fs::read_to_string("docs/mutexes.md").unwrap();
    let section = text.split("\n## Joining from other tools\n").nth(1).unwrap();
    let section = section.split("\n###").next().unwrap();
    let start = format!("```{language}\n");
    let fragments = section.split(&start).skip(1);
    fragments.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn what_the_documentation_shows_excludes_and_is_excluded() {
    let world = World::new();
    let folder = world.path("");
    let protected = folder.join("rotate-log.sh");
    support::write(&protected, &format!("#!/bin/sh\necho outside >> order; {HOLD}\n"));
    rustix::fs::chmod(&protected, rustix::fs::Mode::RWXU).unwrap();
    let path = format!(
        "{}:{}",
        Path::new(BATON).parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut count = 0;
    for (language, program, outsider) in
        [("sh", "sh", Outsider::Flock), ("python", "python3", Outsider::Python)]
    {
        for fragment in documented(language) {
            count += 1;
            if !outsider.is_here() {
                continue;
            }
            let mut command = Command::new(program);
            command.args(["-c", &fragment]).current_dir(&folder);
            command.env("PATH", &path).env("BATON_MUTEX_DIR", world.mutexes());
            support::write(&folder.join("order"), "");
            let note = format!("{HOLD}; echo inside >> '{}'", folder.join("order").display());
            let inside = Peer::holding(run_text(&world, &[], &note));
            let mut outside = Peer::start(command);
            inside.end();
            outside.holds();
            assert_eq!(lines(&folder.join("order")), ["inside", "outside"], "{fragment}");
            assert_is_busy_outside(attempt(&world, &[]));
            outside.end();
            assert_eq!(attempt(&world, &[]).0, 0, "{fragment}");
        }
    }
    assert_eq!(count, 3);
}

#[test]
fn what_the_documentation_shows_is_in_the_programs_that_are_tested() {
    for (language, program) in
        [("rust", "examples/named_lock.rs"), ("csharp", "tests/clients/dotnet/Lock.cs")]
    {
        let program = std::fs::read_to_string(program).unwrap();
        let program: Vec<&str> = program.lines().map(str::trim).collect();
        let fragments = documented(language);
        assert_eq!(fragments.len(), 1);
        for line in fragments[0].lines().map(str::trim) {
            assert!(program.contains(&line), "{line}");
        }
    }
}
