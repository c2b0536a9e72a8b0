//! Promise: `baton doctor` finds what is broken, says what to do, changes nothing, and ends within seconds
//! whatever hangs. Each breakage here is a real one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails here")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use baton::doctor::{CHECKS, TARGET_CHECKS};
use rustix::process::Signal;
use serde_json::Value;
use support::disk::{Ballast, ReadOnly, Small};
use support::run::Run;
use support::{BATON, Stopped, World, finish, signal, soon, write};

/// How long a doctor may take on a busy machine; its own limit is six seconds.
const LIMIT: Duration = Duration::from_secs(25);

/// What a doctor said.
struct Report {
    code: i32,
    checks: BTreeMap<String, Value>,
}

impl Report {
    /// A check has this verdict, and what it found, or the hint, has this in it.
    fn says(&self, check: &str, verdict: &str, part: &str) {
        let said = &self.checks[check];
        assert_eq!(said["verdict"], verdict, "{check}: {said}");
        assert!(said.to_string().contains(part), "{check}: no {part:?} in {said}");
    }

    /// The checks with a verdict.
    fn with(&self, verdict: &str) -> Vec<&str> {
        let is_it = |(_, said): &(&String, &Value)| said["verdict"] == verdict;
        self.checks.iter().filter(is_it).map(|(name, _)| name.as_str()).collect()
    }
}

fn doctor(command: &mut Command) -> Report {
    let begin = Instant::now();
    let (code, out, error) = finish(command.arg("--json"));
    assert!(begin.elapsed() < LIMIT, "it took {:?}", begin.elapsed());
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code} {out} {error}"));
    let checks = said["checks"].as_array().unwrap().iter();
    let checks: BTreeMap<_, _> =
        checks.map(|one| (one["check"].as_str().unwrap().to_owned(), one.clone())).collect();
    for said in
        checks.values().filter(|said| said["verdict"] == "warning" || said["verdict"] == "error")
    {
        assert_ne!(said["hints"].as_array().unwrap().len(), 0, "no hint: {said}");
    }
    let report = Report { code, checks };
    assert_eq!(report.code, i32::from(!report.with("error").is_empty()), "{said}");
    report
}

/// The doctor on the folders of `name`.
fn doctor_at(world: &World, name: &str) -> Report {
    doctor(world.baton_at(name).arg("doctor"))
}

/// An agent's folders, set up for callers of this machine only.
fn set_up(world: &World, name: &str) -> PathBuf {
    let (code, _, error) = finish(world.baton_at(name).args(["agent", "init"]));
    assert_eq!(code, 0, "{error}");
    let config = world.path(name).join("config");
    write(&config.join("agent.toml"), "listen = \"none\"\n");
    config
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Everything below a folder: mode, time and content.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let found = path.symlink_metadata().unwrap();
            let content = if found.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            if found.is_dir() {
                folders.push(path.clone());
            }
            all.insert(path, (found.mode(), found.mtime_nsec(), content));
        }
    }
    all
}

#[tokio::test]
async fn where_all_is_well_there_is_no_error_and_each_check_says_what_it_saw() {
    let world = World::new();
    let config = set_up(&world, "a");
    write(&config.join("agent.toml"), "");
    let (_, own, _) = finish(world.baton_at("a").args(["identity"]));
    let own = own.split_whitespace().last().unwrap();
    finish(world.baton_at("a").args(["agent", "trust", own, "--name", "ci"]));
    let agent = world.agent_at("a", &["--listen", "127.0.0.1:0"]).await;
    let gate = world.gate();
    let script = agent.script(gate.wait()).start().await;
    script.is_running().await;
    let report = doctor_at(&world, "a");
    assert_eq!(report.with("error"), Vec::<&str>::new(), "{:?}", report.checks);
    assert_eq!(report.code, 0);
    let pid = agent.pid();
    for (check, part) in [
        ("agent.running", format!("pid {pid}")),
        ("agent.answers", "1 running".to_owned()),
        ("ports.listen", format!("is the agent's (pid {pid})")),
        ("identity.agent", "fingerprint".to_owned()),
        ("identity.peers", "1 trusted".to_owned()),
        ("state.database", "whole".to_owned()),
        ("state.workspaces", "1, each".to_owned()),
        ("mutexes.folder", "mode 755".to_owned()),
        ("mutexes.locks", "inherited".to_owned()),
        ("mutexes.shared", "the agent and what runs".to_owned()),
        ("mutexes.machine", script.id.to_string()),
        ("versions.replaced", "the agent runs".to_owned()),
        ("agent.draining", String::new()),
        ("agent.store", String::new()),
        ("configuration.agent", String::new()),
        ("configuration.permissions", String::new()),
        ("cgroup.version", String::new()),
        ("machine.shells", "/sh".to_owned()),
    ] {
        report.says(check, "ok", &part);
    }
    gate.open();
    assert!(support::exited(&script.outcome().await, 0));
}

#[tokio::test]
async fn it_changes_nothing_whoever_left_what() {
    let world = World::new();
    std::fs::create_dir(world.path("tmp")).unwrap();
    let look =
        |name: &str| doctor(world.baton_at(name).arg("doctor").env("TMPDIR", world.path("tmp")));
    // Nothing is there, and nothing is made.
    let before = snapshot(&world.path(""));
    look("nobody");
    assert_eq!(snapshot(&world.path("")), before);
    // An agent was killed with its database open, while a script held the machine.
    set_up(&world, "a");
    let mut agent = world.agent_at("a", &[]).await;
    assert!(support::exited(&agent.script("true").outcome().await, 0));
    agent.kill();
    assert!(world.path("a/state/agent.db-wal").metadata().unwrap().len() > 0);
    let before = snapshot(&world.path(""));
    look("a").says("state.database", "ok", "1 scripts");
    assert_eq!(snapshot(&world.path("")), before);
    // It ended as it should.
    let mut agent = world.agent_at("a", &[]).await;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(agent.pid().cast_signed()).unwrap(),
        Signal::TERM,
    )
    .unwrap();
    agent.ends().await;
    let before = snapshot(&world.path(""));
    look("a").says("agent.running", "warning", "no agent");
    assert_eq!(snapshot(&world.path("")), before);
    // It can't be read.
    write(&world.path("a/config/agent.toml"), "broken");
    let before = snapshot(&world.path(""));
    look("a").says("configuration.agent", "error", "line 1");
    assert_eq!(snapshot(&world.path("")), before);
}

#[test]
fn what_is_wrong_with_identity_and_configuration_is_found() {
    let world = World::new();
    let config = set_up(&world, "a");
    let key = config.join("agent.key");
    doctor_at(&world, "a").says("identity.agent", "ok", "fingerprint");

    set_mode(&key, 0o644);
    doctor_at(&world, "a").says("identity.agent", "error", "chmod 600");
    set_mode(&key, 0o600);

    let other = set_up(&world, "b");
    std::fs::rename(&key, config.join("kept")).unwrap();
    std::fs::copy(other.join("agent.key"), &key).unwrap();
    doctor_at(&world, "a").says("identity.agent", "error", "don't belong together");
    std::fs::rename(config.join("kept"), &key).unwrap();

    write(&config.join("agent.toml"), "listen = \"none\"\nqueue = 1\n");
    let report = doctor_at(&world, "a");
    report.says("configuration.agent", "error", "line 2");
    report.says("configuration.agent", "error", "`queue`");
    report.says("ports.listen", "unknown", "configuration");
    write(&config.join("agent.toml"), "listen = \"none\"\n");

    let mut mistyped = world.baton_at("a");
    let report = doctor(mistyped.arg("doctor").env("BATON_QUEU_LENGTH", "5"));
    report.says("configuration.environment", "warning", "BATON_QUEUE_LENGTH");

    set_mode(&config, 0o777);
    doctor_at(&world, "a").says("configuration.permissions", "error", "chmod go-w");
    set_mode(&config, 0o755);

    let fingerprint = "ab".repeat(32);
    let peer = |name: &str, more: &str| {
        format!(
            "[[peer]]\nname = \"{name}\"\nfingerprint = \"{fingerprint}\"\nadded = \"2020-01-01T00:00:00Z\"\n{more}"
        )
    };
    write(&config.join("peers.toml"), &peer("old", "expires = \"2020-02-01T00:00:00Z\"\n"));
    doctor_at(&world, "a").says("identity.peers", "warning", "trust in old expired");
    write(&config.join("peers.toml"), &(peer("one", "") + &peer("two", "")));
    doctor_at(&world, "a").says("identity.peers", "error", &fingerprint);
    write(&config.join("peers.toml"), "nonsense");
    doctor_at(&world, "a").says("identity.peers", "error", "peers.toml");
    std::fs::remove_file(config.join("peers.toml")).unwrap();

    write(&config.join("client.toml"), "[coordination]\netcd = [\"http://127.0.0.1:1\"]\n");
    doctor_at(&world, "a").says("coordination.etcd", "error", "0 of 1 members answer");
    write(&config.join("client.toml"), "[coordination]\nzookeeper = 1\n");
    doctor_at(&world, "a").says("configuration.client", "error", "line 2");
}

#[test]
fn a_port_that_another_process_has_is_named_with_it() {
    let world = World::new();
    let config = set_up(&world, "a");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    write(&config.join("agent.toml"), &format!("listen = \"0.0.0.0:{}\"\n", address.port()));
    let report = doctor_at(&world, "a");
    report.says("ports.listen", "error", &format!("pid {}", std::process::id()));
    drop(other);
    doctor_at(&world, "a").says("ports.listen", "ok", "free");
}

#[tokio::test]
async fn a_damaged_database_and_one_of_a_newer_baton_are_found() {
    let world = World::new();
    set_up(&world, "a");
    drop(world.agent_at("a", &[]).await);
    let path = world.path("a/state/agent.db");
    // What is read last puts the log into the file.
    let sqlite = rusqlite::Connection::open(&path).unwrap();
    let version: i64 = sqlite.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    drop(sqlite);
    doctor_at(&world, "a").says("state.database", "ok", &format!("version {version}"));
    let mut bytes = std::fs::read(&path).unwrap();
    let sqlite = rusqlite::Connection::open(&path).unwrap();
    sqlite.pragma_update(None, "user_version", 99).unwrap();
    drop(sqlite);
    doctor_at(&world, "a").says("state.database", "error", "version 99");

    bytes[4096..].fill(0x5a);
    baton::durable::replace_file(&path, &bytes, 0o600).unwrap();
    doctor_at(&world, "a").says("state.database", "error", "recover");
    write(&path, "no database at all, and long enough to be taken for one, were it one");
    doctor_at(&world, "a").says("state.database", "error", "agent.db");
}

#[tokio::test]
async fn an_agent_that_is_stopped_is_found_within_seconds() {
    let world = World::new();
    let agent = world.agent().await;
    let pid = agent.pid();
    let stopped = Stopped::new(pid);
    let report = doctor_at(&world, &agent.name);
    report.says("agent.running", "error", &format!("kill -CONT {pid}"));
    report.says("agent.answers", "error", "does not answer");
    // What does not need it is found all the same.
    report.says("state.database", "ok", "whole");
    drop(agent);
    drop(stopped);
}

#[test]
fn what_hangs_is_found_and_holds_up_nothing_else() {
    let world = World::new();
    let config = set_up(&world, "a");
    std::fs::remove_file(config.join("agent.toml")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let pipe = rustix::fs::FileType::Fifo;
    for name in ["agent.toml", "peers.toml"] {
        rustix::fs::mknodat(rustix::fs::CWD, config.join(name), pipe, mode, 0).unwrap();
    }
    let report = doctor_at(&world, "a");
    report.says("configuration.agent", "error", "does not answer");
    report.says("identity.peers", "error", "no answer within");
    report.says("identity.agent", "ok", "fingerprint");
    report.says("mutexes.locks", "ok", "inherited");
}

#[tokio::test]
async fn a_mutex_folder_that_excludes_nobody_is_found() {
    let world = World::new();
    set_up(&world, "a");
    doctor_at(&world, "a").says("mutexes.folder", "ok", "the first use makes it");
    std::fs::create_dir(world.mutexes()).unwrap();
    set_mode(&world.mutexes(), 0o777);
    doctor_at(&world, "a").says("mutexes.folder", "error", "chmod go-w");
    set_mode(&world.mutexes(), 0o755);

    let file = world.path("file");
    write(&file, "");
    let mut below_a_file = world.baton_at("a");
    below_a_file.arg("doctor").env("BATON_MUTEX_DIR", file.join("mutex"));
    doctor(&mut below_a_file).says("mutexes.folder", "error", "can't be made");

    // The agent means another one than this command.
    let mut command = world.baton_at("a");
    command.args(["agent", "run"]).env("BATON_MUTEX_DIR", world.path("other"));
    command.env("BATON_MIN_FREE_BYTE", "1");
    let agent = world.await_agent("a", command).await;
    let report = doctor_at(&world, "a");
    report.says("mutexes.shared", "error", "BATON_MUTEX_DIR");
    // Of the agent's environment, not of this command's.
    report.says("configuration.environment", "warning", "BATON_MIN_FREE_BYTES");
    drop(agent);
}

#[tokio::test]
async fn an_agent_with_file_systems_of_its_own_is_found() {
    let world = World::new();
    set_up(&world, "a");
    std::fs::create_dir(world.mutexes()).unwrap();
    let folder = world.mutexes().display().to_string();
    let text =
        format!("mount -t tmpfs -o mode=755 baton-test '{folder}' && exec {BATON} agent run");
    let mut command = Command::new("unshare");
    let like = world.baton_at("a");
    command.args(["--mount", "sh", "-c", &text]);
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|s| s.success()) {
        eprintln!("skipped: no namespace may be made here");
        return;
    }
    let agent = world.await_agent("a", command).await;
    doctor_at(&world, "a").says("mutexes.shared", "error", "another folder");
    drop(agent);
}

#[test]
fn a_holder_that_is_stopped_or_killed_is_found() {
    let world = World::new();
    let gate = world.gate();
    let mut holder = Run::holder(&world, "machine", &gate);
    doctor_at(&world, "a").says("mutexes.machine", "ok", "held for");
    signal(&holder.child, Signal::STOP);
    doctor_at(&world, "a").says("mutexes.machine", "error", "baton mutex break machine");
    signal(&holder.child, Signal::CONT);
    holder.kill();
    doctor_at(&world, "a").says("mutexes.machine", "warning", "that process is gone");
    gate.open();
}

#[tokio::test]
async fn a_disk_without_room_and_one_that_is_read_only_are_found() {
    let world = World::new();
    let state = world.path("a/state");
    let Some(_small) = Small::mount(&state, 8) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    set_up(&world, "a");
    doctor_at(&world, "a").says("disk.state", "ok", "MiB free");
    let ballast = Ballast::fill(&state.join("fill"));
    let report = doctor_at(&world, "a");
    report.says("disk.state", "error", "make room");
    report.says("mutexes.locks", "ok", "inherited");
    drop(ballast);
    let read_only = ReadOnly::make(&state).unwrap();
    doctor_at(&world, "a").says("disk.state", "error", "read-only");
    drop(read_only);
}

#[tokio::test]
async fn a_program_that_was_replaced_and_a_drain_are_found() {
    let world = World::new();
    let program = world.path("baton");
    std::fs::copy(BATON, &program).unwrap();
    let agent = world.agent_of(&program, "a").await;
    doctor_at(&world, "a").says("versions.replaced", "ok", "runs");
    std::fs::copy(BATON, world.path("new")).unwrap();
    std::fs::rename(world.path("new"), &program).unwrap();
    soon("Drain", agent.client.drain("kernel".to_owned())).await.unwrap();
    std::fs::create_dir(world.path("a/state/scripts/nobodys")).unwrap();
    let report = doctor_at(&world, "a");
    report.says("versions.replaced", "warning", "restart the agent");
    report.says("agent.draining", "warning", "kernel");
    report.says("state.workspaces", "warning", "1 of 1");
    assert_eq!(report.code, 0);
}

#[test]
fn few_open_files_are_a_warning_and_strict_counts_it() {
    let world = World::new();
    set_up(&world, "a");
    let like = world.baton_at("a");
    let limited = |words: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n 200; exec {BATON} doctor {words} \"$@\""), "sh"]);
        command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    };
    doctor(&mut limited("")).says("limits.files", "warning", "ulimit -n");
    assert_eq!(finish(&mut limited("--strict")).0, 1);
    assert_eq!(finish(&mut limited("")).0, 0);
}

#[test]
fn what_this_user_may_not_see_is_unknown_and_never_ok() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let world = World::new();
    set_up(&world, "a");
    let program = world.path("baton");
    std::fs::copy(BATON, &program).unwrap();
    std::fs::create_dir(world.path("a/state")).unwrap();
    write(&world.path("a/state/agent.db"), "");
    std::fs::create_dir(world.mutexes()).unwrap();
    set_mode(&world.path(""), 0o755);
    set_mode(&world.path("a/state"), 0o700);
    let like = world.baton_at("a");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("doctor");
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let report = doctor(&mut command);
    for check in
        ["identity.agent", "state.database", "state.workspaces", "agent.running", "disk.state"]
    {
        report.says(check, "unknown", "");
    }
    for check in ["agent.answers", "versions.replaced", "agent.draining", "mutexes.shared"] {
        report.says(check, "unknown", "");
    }
    report.says("mutexes.locks", "unknown", "can't be tried");
    assert_eq!(report.code, 0);
}

#[tokio::test]
async fn a_target_is_asked_what_can_be_asked_of_it() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "127.0.0.1:0"]).await;
    let address = std::fs::read_to_string(agent.folder.join("run/agent.address")).unwrap();
    let (_, said, _) = finish(world.baton_at("a").args(["agent", "init", "--json"]));
    let said: Value = serde_json::from_str(&said).unwrap();
    let fingerprint = said["fingerprint"].as_str().unwrap().to_owned();
    let look = || {
        let mut command = world.baton_at("client");
        command.args(["doctor", "--target", address.trim(), "--fingerprint", &fingerprint]);
        doctor(&mut command)
    };
    look().says("target.reached", "error", "baton identity");
    assert!(!world.path("client/config").exists(), "it made something");
    let (_, own, _) = finish(world.baton_at("client").arg("identity"));
    let own = own.split_whitespace().last().unwrap();
    let report = look();
    report.says("target.reached", "error", &format!("baton agent trust {own}"));
    report.says("target.clock", "unknown", "not reached");
    finish(world.baton_at("a").args(["agent", "trust", own, "--name", "ci"]));
    let seen = Instant::now();
    let report = loop {
        let report = look();
        if report.code == 0 {
            break report;
        }
        assert!(seen.elapsed() < support::DEADLINE, "{:?}", report.checks);
    };
    for check in TARGET_CHECKS {
        report.says(check.name, "ok", "");
    }
    report.says("target.clock", "ok", "s apart");
    let mut unknown = world.baton_at("client");
    doctor(unknown.args(["doctor", "--target", "web-9"])).says("target.reached", "error", "web-9");
}

#[test]
fn people_read_aligned_lines_with_hints_and_a_sum() {
    let world = World::new();
    let config = set_up(&world, "a");
    set_mode(&config.join("agent.key"), 0o644);
    let (code, out, error) = finish(world.baton_at("a").arg("doctor"));
    assert_eq!((code, error.as_str()), (1, ""));
    let lines: Vec<&str> = out.lines().collect();
    let place = lines.iter().position(|line| *line == "identity").unwrap();
    assert!(lines[place + 1].starts_with("  error    agent "), "{out}");
    let names = CHECKS.iter().map(|check| check.name.split_once('.').unwrap().1.len());
    let column = "  warning  ".len() + names.max().unwrap() + 2;
    for line in lines.iter().filter(|line| line.starts_with("  ")) {
        let (before, found) = line.split_at(column);
        assert!(before.ends_with("  ") && !found.starts_with(' '), "not aligned: {line:?}");
    }
    assert!(lines[place + 2].trim_start().starts_with("hint: chmod 600"), "{out}");
    let sum = lines.last().unwrap();
    assert!(sum.contains(" ok, ") && sum.contains("1 error"), "{sum}");
    let (code, help, _) = finish(world.baton_at("a").args(["doctor", "--help"]));
    assert!(code == 0 && help.contains("Exit status: 0") && help.contains("Examples:"), "{help}");
}

#[test]
fn each_check_stands_in_the_documentation_with_what_to_do() {
    let text = std::fs::read_to_string("docs/doctor.md").unwrap();
    let text = text.split("## The checks").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let rows: Vec<(&str, usize)> = rows
        .map(|(name, rest)| (name, rest.split(" | ").filter(|cell| !cell.is_empty()).count()))
        .collect();
    let names: Vec<&str> = CHECKS.iter().chain(TARGET_CHECKS).map(|check| check.name).collect();
    let shown: Vec<&str> = rows.iter().map(|(name, _)| *name).collect();
    assert_eq!(shown, names);
    let short: BTreeSet<&str> =
        rows.iter().filter(|(_, n)| *n < 2).map(|(name, _)| *name).collect();
    assert_eq!(short, BTreeSet::new());
}
