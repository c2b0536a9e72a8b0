//! Promise: strange files in a mutex folder, lock files that a cleaner removed, and other users: nobody
//! overlaps or overtakes, nothing outside is touched, and what can't be used is said at once.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]
#![allow(clippy::print_stderr, reason = "what is left out is said")]

mod support;

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use support::line::{AT_ONCE, Locked, Waiter, fence, holder, mutex, tickets, used};
use support::{DEADLINE, World, finish};

/// What of a file a stranger's write would change.
fn traits(path: &Path) -> (Vec<u8>, u32, i64, i64) {
    let found = path.metadata().unwrap();
    (std::fs::read(path).unwrap(), found.mode(), found.mtime(), found.mtime_nsec())
}

fn fifo(path: &Path) {
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), 0).unwrap();
}

#[test]
fn links_pipes_and_folders_in_the_place_of_a_file_are_refused_and_nothing_outside_is_touched() {
    let world = World::new();
    let folder = used(&world);
    let (victim, nowhere) = (world.path("victim"), world.path("nowhere"));
    support::write(&victim, "precious");
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o644)).unwrap();
    let before = traits(&victim);
    let link = |to: &Path, at: &Path| std::os::unix::fs::symlink(to, at).unwrap();
    let kinds: [&dyn Fn(&Path); 4] =
        [&|at| link(&victim, at), &|at| link(&nowhere, at), &|at| fifo(at), &|at| {
            std::fs::create_dir(at).unwrap();
        }];
    for name in ["guard", "next", "os.lock", "line/0000000001.x"] {
        for (number, put) in kinds.iter().enumerate() {
            let path = folder.join(name);
            drop(std::fs::remove_file(&path));
            put(&path);
            for words in
                [&["run", "log", "--", "true"][..], &["acquire", "log"], &["append", "log", "out"]]
            {
                let since = Instant::now();
                // `append` reads what it is to write before it needs the mutex.
                let mut command = mutex(&world, words);
                let input = File::open(&victim).unwrap();
                let (code, _, told) = finish(command.current_dir(world.path("")).stdin(input));
                let what = format!("{number} as {name}, {words:?}: {code} {told}");
                assert!(since.elapsed() < AT_ONCE, "{what}");
                let text = format!("{} is not a plain file", path.display());
                assert!(code == 70 && told.contains(&text), "{what}");
                assert!(words[0] == "acquire" || told.contains("hint:"), "{what}");
            }
            // Looking at it is as harmless.
            let (code, _, told) = finish(&mut mutex(&world, &["status", "log"]));
            assert_eq!(code, if name.starts_with("line") { 70 } else { 0 }, "{told}");
            if number == 3 {
                std::fs::remove_dir(&path).unwrap();
            } else {
                std::fs::remove_file(&path).unwrap();
            }
            assert_eq!(tickets(&folder), [""; 0], "{number} as {name}");
            assert_eq!(traits(&victim), before, "{number} as {name}");
            assert!(!nowhere.exists() && !world.path("out").exists(), "{number} as {name}");
            fence(&world);
        }
    }
}

#[test]
fn a_link_in_the_place_of_a_folder_is_refused_and_a_pipe_as_a_record_is_not_read() {
    let world = World::new();
    let folder = used(&world);
    let outside = world.path("outside");
    std::fs::create_dir(&outside).unwrap();
    for at in [folder.join("line"), world.mutexes().join("other")] {
        drop(std::fs::remove_dir(&at));
        std::os::unix::fs::symlink(&outside, &at).unwrap();
        let name = if at.ends_with("line") { "log" } else { "other" };
        for words in [&["run", name, "--", "true"][..], &["path", name], &["status", name]] {
            let (code, _, told) = finish(&mut mutex(&world, words));
            assert!(code == 70 && told.contains("is not a plain folder"), "{words:?}: {told}");
        }
        std::fs::remove_file(&at).unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
    assert_eq!(finish(&mut mutex(&world, &["once", "key", "--", "true"])).0, 0);
    let done = world.mutexes().join("once.key/done");
    std::fs::remove_file(&done).unwrap();
    fifo(&done);
    let (code, _, told) = finish(&mut mutex(&world, &["once", "key", "--", "true"]));
    assert!(code == 70 && told.contains("is not a plain file"), "{told}");
    assert_eq!(tickets(&world.mutexes().join("once.key")), [""; 0]);
    fifo(&folder.join("breaks"));
    fence(&world);
    assert_eq!(finish(&mut mutex(&world, &["status", "log"])).0, 0);
}

#[test]
fn rule_8_a_lock_file_that_was_removed_lets_nobody_of_baton_overlap_or_overtake() {
    let world = World::new();
    let folder = used(&world);
    let (lock, log) = (folder.join("os.lock"), world.path("order"));
    let gate = world.gate();
    let mut first = holder(&world, &gate);
    std::fs::remove_file(&lock).unwrap();
    let busy = || finish(&mut mutex(&world, &["run", "--no-wait", "log", "--", "true"]));
    assert_eq!(busy().0, 75);
    let says = |word: &str| {
        let text = format!(
            "flock -n '{}' echo free >> {log}; echo {word} >> {log}",
            lock.display(),
            log = log.display()
        );
        let mut waiter =
            Waiter::start(&mut mutex(&world, &["run", "log", "--", "sh", "-c", &text]));
        assert!(waiter.told().contains("waiting"));
        waiter
    };
    let waiters = [says("second"), says("third")];
    // The one that they would have made.
    drop(std::fs::remove_file(&lock));
    gate.open();
    assert!(first.wait().unwrap().success());
    assert_eq!(waiters.map(Waiter::end), [0, 0]);
    assert_eq!(support::lines(&log), ["second", "third"], "and the lock at the path was held");

    // A program outside baton has the lock whose file is removed: it is waited for all the same.
    let outsider = Locked::new(&lock);
    let waiter = says("fourth");
    std::fs::remove_file(&lock).unwrap();
    assert_eq!(busy().0, 75);
    drop(outsider);
    assert_eq!(waiter.end(), 0);
    assert_eq!(support::lines(&log), ["second", "third", "fourth"]);
}

/// Returns when somebody waits for the lock of a file; the child is not to end before.
fn waits_for(child: &mut Child, path: &Path) {
    let (inode, since) = (format!(":{} ", path.metadata().unwrap().ino()), Instant::now());
    let is_wait = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
    while !std::fs::read_to_string("/proc/locks").unwrap().lines().any(is_wait) {
        assert!(child.try_wait().unwrap().is_none(), "it took the lock of a removed file");
        assert!(since.elapsed() < DEADLINE, "nobody waits for {}", path.display());
        std::thread::yield_now();
    }
}

#[test]
fn rule_8_a_guard_that_was_removed_holds_nobody_up_and_nobody_overtakes() {
    let world = World::new();
    let guard = used(&world).join("guard");
    // Held, and somebody waits for it.
    let stuck = Locked::new(&guard);
    let mut late = Waiter::start(&mut mutex(&world, &["run", "log", "--", "true"]));
    assert!(late.told().contains("stopped while it joined"));
    std::fs::remove_file(&guard).unwrap();
    let since = Instant::now();
    fence(&world);
    assert!(since.elapsed() < AT_ONCE, "a new one was made");
    // Who waited for the old one does not take it for the guard.
    let taken = Locked::new(&guard);
    drop(stuck);
    waits_for(&mut late.child, &guard);
    drop(taken);
    assert_eq!(late.end(), 0);

    // The mutex is held, and somebody waits for it.
    let (gate, log) = (world.gate(), world.path("order"));
    let mut first = holder(&world, &gate);
    let waiters = [("second", 1), ("third", 2)].map(|(word, position)| {
        std::fs::remove_file(&guard).unwrap();
        let text = format!("echo {word} >> {}", log.display());
        let mut waiter =
            Waiter::start(&mut mutex(&world, &["run", "log", "--", "sh", "-c", &text]));
        let told = waiter.told();
        assert!(told.contains(&format!("position {position}:")), "{told}");
        waiter
    });
    gate.open();
    assert!(first.wait().unwrap().success());
    assert_eq!(waiters.map(Waiter::end), [0, 0]);
    assert_eq!(support::lines(&log), ["second", "third"]);
}

/// The user `nobody`.
const STRANGER: u32 = 65534;

/// `baton mutex …` as another user, for whom a copy of the program lies in the world.
fn stranger(world: &World, words: &[&str]) -> Command {
    let like = world.baton();
    let mut command = Command::new(world.path("baton"));
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.arg("mutex").args(words).stdin(Stdio::null()).uid(STRANGER).gid(STRANGER);
    command
}

/// A world that others may enter; `None` when this user can't become another one.
fn open_world() -> Option<World> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root becomes another user");
        return None;
    }
    let world = World::new();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(world.path(""), open.clone()).unwrap();
    std::fs::copy(support::BATON, world.path("baton")).unwrap();
    std::fs::set_permissions(world.path("baton"), open).unwrap();
    Some(world)
}

#[test]
fn another_user_has_the_plain_lock_only_and_of_the_machine_mutex_nothing() {
    let Some(world) = open_world() else {
        return;
    };
    let folder = used(&world);
    let (code, _, told) = finish(&mut mutex(&world, &["run", "machine", "--", "true"]));
    assert_eq!(code, 0, "{told}");
    for name in ["log", "machine", "new"] {
        let (code, _, told) = finish(&mut stranger(&world, &["run", name, "--", "true"]));
        assert_eq!(code, 70, "{name}: {told}");
        let path = world.mutexes().join(name).display().to_string();
        assert!(told.contains(&path) && told.contains("Permission denied"), "{told}");
        assert!(told.contains("hint: a mutex is for processes of one user"), "{told}");
    }
    let lock = |name: &str, text: &str| {
        let mut command = Command::new("flock");
        command.arg("-n").arg(world.mutexes().join(name).join("os.lock"));
        finish(command.args(["-c", text]).uid(STRANGER).gid(STRANGER))
    };
    assert_eq!(lock("machine", "true").0, 66, "it can't be opened");
    let (code, out, told) = finish(&mut stranger(&world, &["path", "log"]));
    assert_eq!((code, out), (0, format!("{}\n", folder.join("os.lock").display())), "{told}");
    assert_eq!(finish(&mut stranger(&world, &["path", "machine"])).0, 70);

    let (code, _, told) = lock("log", "exit 7");
    assert_eq!(code, 7, "{told}");
    let gate = world.gate();
    let mut first = holder(&world, &gate);
    assert_eq!(lock("log", "exit 7").0, 1, "held by root");
    let (code, _, told) = finish(&mut stranger(&world, &["status", "log"]));
    assert!(code == 70 && told.contains("hint: a mutex is for"), "{told}");
    gate.open();
    assert!(first.wait().unwrap().success());
}

#[test]
fn without_an_agent_a_user_has_a_folder_of_its_own_and_status_says_which() {
    let Some(world) = open_world() else {
        return;
    };
    let own = world.path("own");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(STRANGER), Some(STRANGER)).unwrap();
    let mine = |words: &[&str]| {
        let mut command = stranger(&world, words);
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command.env("HOME", &own).env("XDG_RUNTIME_DIR", &own);
        finish(&mut command)
    };
    let folder = own.join("baton/mutex");
    let (code, out, told) = mine(&["status"]);
    assert_eq!(code, 0, "{told}");
    assert!(out.ends_with(&format!("in {}\n", folder.display())), "{out}");
    let (code, out, told) = mine(&["run", "log", "--", "sh", "-c", "echo $BATON_MUTEX_DIR"]);
    assert_eq!((code, out.trim_end()), (0, folder.to_str().unwrap()), "{told}");
    assert_eq!(folder.metadata().unwrap().uid(), STRANGER);
    // Without a home it is said what would do.
    let mut homeless = stranger(&world, &["run", "log", "--", "true"]);
    let (code, _, told) = finish(homeless.env_clear().env("PATH", "/usr/bin:/bin"));
    assert_eq!(
        (code, told.as_str()),
        (2, "error: no home directory: set HOME, or BATON_MUTEX_DIR\n")
    );
    // Not even root joins a line in which somebody else may do as he likes.
    let mut root = mutex(&world, &["run", "log", "--", "true"]);
    let (code, _, told) = finish(root.env("BATON_MUTEX_DIR", &folder));
    assert!(code == 70 && told.contains("is not safe: owner 65534"), "{told}");
    assert!(told.contains("hint: a mutex is for processes of one user"), "{told}");
}
