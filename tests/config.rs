//! Promise: whoever looks sees what the agent is told, where from, and what it has not taken yet; a reload takes
//! all that can be taken at once and together, says the rest, and with a mistake in it changes nothing.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that can't go on fails here")]

mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use baton::config::{Applies, Config, Key};
use baton::filewatch::FileWatcher;
use baton::script::DropCause;
use baton::wire::v1;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::{Value, json};
use support::site::Site;
use support::{DEADLINE, TestAgent, World, exited, finish, reason, signal, soon, spawn, write};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A variable of no key. In two: a test looks whether the source has such a word.
const MISTYPED: &str = concat!("BATON", "_QUEUE_LENGHT");

fn configure(world: &World, text: &str) {
    let folder = world.path("a/config");
    std::fs::create_dir_all(&folder).unwrap();
    write(&folder.join("agent.toml"), text);
}

async fn agent(world: &World) -> TestAgent {
    world.agent_at("a", &["--listen", "none"]).await
}

fn baton(world: &World, words: &[&str]) -> (i32, String, String) {
    finish(world.baton_at("a").args(words))
}

/// What a command printed as JSON, one a line.
fn values(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What `baton config show --json` says of a key.
fn shown(world: &World, key: &str) -> Value {
    let (code, out, error) = baton(world, &["config", "show", "--json", key]);
    assert_eq!(code, 0, "{error}");
    let values = values(&out);
    assert_eq!(values.len(), 1, "{out}");
    values.into_iter().next().unwrap()
}

async fn reload(agent: &TestAgent) -> v1::ReloadResponse {
    soon("a reload", agent.client.reload()).await.unwrap()
}

fn names(changes: &[v1::ConfigChange]) -> Vec<&str> {
    changes.iter().map(|change| change.key.as_str()).collect()
}

/// Lines that a process writes.
struct Log(Receiver<String>);

impl Log {
    fn of(reader: impl Read + Send + 'static) -> Self {
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    /// Waits for a line that has all of these words.
    fn says(&self, words: &[&str]) -> String {
        let mut others = Vec::new();
        loop {
            let Ok(line) = self.0.recv_timeout(DEADLINE) else {
                panic!("nobody said {words:?}:\n{}", others.join("\n"));
            };
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
            others.push(line);
        }
    }
}

/// An agent whose log is read.
struct Logged {
    child: Child,
    log: Log,
}

impl Logged {
    fn start(command: &mut Command) -> Self {
        let mut child = spawn(command.args(["agent", "run"]).stderr(Stdio::piped()));
        let log = Log::of(child.stderr.take().unwrap());
        Self { child, log }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

#[test]
fn every_value_says_where_it_comes_from() {
    let world = World::new();
    configure(&world, "# mine\nqueue_length = 7\n[retention]\nmax_age = \"2d\"\n");
    let show = |words: &[&str]| {
        let mut command = world.baton_at("a");
        command.env("BATON_GRACE", "90s").env("BATON_RETENTION_MAX_AGE", "none");
        let (code, out, error) = finish(command.args(["config", "show"]).args(words));
        assert_eq!((code, error.as_str()), (0, ""));
        out
    };
    let all = values(&show(&["--json"]));
    let keys: Vec<&str> = all.iter().map(|row| row["key"].as_str().unwrap()).collect();
    assert_eq!(keys, Key::all().iter().map(|key| key.name).collect::<Vec<_>>());
    let row = |key: &str| all.iter().find(|row| row["key"] == key).unwrap();
    let path = world.path("a/config/agent.toml");
    assert_eq!(row("queue_length")["value"], 7);
    let file = json!({"kind": "file", "path": path, "line": 2});
    assert_eq!(row("queue_length")["from"], file);
    assert_eq!(row("grace")["value"], "1m30s");
    let variable = json!({"kind": "environment", "variable": "BATON_GRACE"});
    assert_eq!(row("grace")["from"], variable);
    assert_eq!(row("retention.max_age")["value"], "none");
    assert_eq!(row("stop_wait")["from"], json!({"kind": "default"}));
    assert_eq!(row("listen")["applies"], "restart");
    assert_eq!(row("files.max_transfers")["environment"], "BATON_FILES_MAX_TRANSFERS");
    // The same for people.
    let text = show(&["retention", "queue_length"]);
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap();
    assert!(line("retention.max_age").ends_with("BATON_RETENTION_MAX_AGE"), "{text}");
    assert!(line("queue_length").ends_with(&format!("{}, line 2", path.display())), "{text}");
    assert!(line("retention.min_age").ends_with("default"), "{text}");
    assert!(!text.contains("grace"), "{text}");
    let (code, _, error) = baton(&world, &["config", "show", "retenton"]);
    assert!(code == 2 && error.contains("did you mean \"retention\"?"), "{error}");
}

#[tokio::test]
async fn of_a_running_agent_is_shown_what_it_has_and_what_it_has_not_taken() {
    let world = World::new();
    configure(&world, "grace = \"5s\"\n");
    let mut command = world.baton_at("a");
    command.args(["agent", "run", "--listen", "none"]).env("BATON_QUEUE_LENGTH", "8");
    let agent = world.await_agent("a", command).await;
    assert_eq!(shown(&world, "listen")["from"], json!({"kind": "flag", "flag": "--listen"}));
    // Its own environment counts, not that of whoever asks.
    assert_eq!(shown(&world, "queue_length")["value"], 8);
    assert_eq!(shown(&world, "grace")["pending"], Value::Null);
    configure(&world, "\n\ngrace = \"6s\"\nqueue_length = 9\nlisten = \"127.0.0.1:1\"\n");
    let grace = shown(&world, "grace");
    assert_eq!((&grace["value"], &grace["from"]["line"]), (&json!("5s"), &json!(1)));
    assert_eq!(grace["pending"]["value"], "6s");
    assert_eq!(grace["pending"]["from"]["line"], 3);
    // A variable and a flag win over the file.
    assert_eq!(shown(&world, "queue_length")["pending"], Value::Null);
    assert_eq!(shown(&world, "listen")["pending"], Value::Null);
    let (_, text, _) = baton(&world, &["config", "show"]);
    assert!(text.contains("\"6s\" after a reload"), "{text}");
    // What one would have that is started now.
    let (_, out, _) = baton(&world, &["config", "show", "--no-agent", "--json", "listen"]);
    assert_eq!(values(&out)[0]["value"], "127.0.0.1:1");
    reload(&agent).await;
    let grace = shown(&world, "grace");
    assert_eq!((&grace["value"], &grace["pending"]), (&json!("6s"), &Value::Null));
    assert_eq!(grace["from"]["line"], 3);
    // A mistake is told; what the agent has is shown all the same.
    configure(&world, "grace = 1\n");
    let (code, out, error) = baton(&world, &["config", "show", "--json", "grace"]);
    assert_eq!((code, &values(&out)[0]["value"]), (1, &json!("6s")));
    assert!(error.contains("agent.toml, line 1: grace = 1: must be a text"), "{error}");
}

#[tokio::test]
async fn a_reload_takes_what_it_can_and_names_what_needs_a_restart() {
    let world = World::new();
    configure(&world, "listen = \"127.0.0.1:0\"\n");
    let agent = world.agent_at("a", &[]).await;
    let text = "name = \"renamed\"\nlisten = \"none\"\nqueue_length = 3\nmax_output_bytes = 4\n\
                grace = \"5s\"\nreboot_command = [\"true\"]\n[upgrade]\nhealth_limit = \"6s\"\n";
    configure(&world, text);
    let (code, out, error) = baton(&world, &["agent", "reload", "--json"]);
    assert_eq!(code, 0, "{error}");
    let told = &values(&out)[0];
    let change = |key, old: Value, new: Value| json!({"key": key, "old": old, "new": new});
    let host = baton::config::host_name();
    let expected = [
        change("name", json!(host), json!("renamed")),
        change("queue_length", json!(1000), json!(3)),
        change("max_output_bytes", json!(1 << 30), json!(4)),
        change("grace", json!("10s"), json!("5s")),
        change("reboot_command", json!([]), json!(["true"])),
        change("upgrade.health_limit", json!("30s"), json!("6s")),
    ];
    assert_eq!(told["applied"], json!(expected));
    let later = [change("listen", json!("127.0.0.1:0"), json!("none"))];
    assert_eq!(told["needs_restart"], json!(later));
    assert_eq!(told["unchanged"], Key::all().len() - 7);
    let info = agent.client.info().await.unwrap();
    let limits = info.limits.unwrap();
    assert_eq!((info.name.as_str(), limits.queue_length, limits.output_bytes), ("renamed", 3, 4));
    assert_eq!(limits.default_grace.unwrap().seconds, 5);
    // Once more: nothing is left to apply, and what needs a restart is still told.
    let (_, text, _) = baton(&world, &["agent", "reload"]);
    let expected = format!(
        "needs a restart: listen = \"none\" (was \"127.0.0.1:0\")\nunchanged: {} keys\n",
        Key::all().len() - 1
    );
    assert_eq!(text, expected);
    let listen = shown(&world, "listen");
    assert_eq!((&listen["value"], &listen["from"]["line"]), (&json!("127.0.0.1:0"), &json!(1)));
    assert_eq!(listen["pending"]["value"], "none");
}

#[tokio::test]
async fn a_mistake_changes_nothing_and_is_told_with_its_line() {
    let world = World::new();
    configure(&world, "grace = \"5s\"\n");
    let agent = agent(&world).await;
    configure(&world, "grace = \"6s\"\nqueue_lenght = 1\n\n[files]\nmax_transfers = 0\n");
    let (code, out, error) = baton(&world, &["agent", "reload"]);
    assert_eq!((code, out.as_str()), (2, ""), "{error}");
    for told in [
        "agent.toml, line 2: unknown key `queue_lenght`",
        "agent.toml, line 5: files.max_transfers = 0: must be 1 to 1000",
        "hint: nothing was changed",
    ] {
        assert!(error.contains(told), "{error}");
    }
    let refused = soon("a reload", agent.client.reload()).await.unwrap_err();
    assert_eq!(reason(&refused), "CONFIG_INVALID");
    assert_eq!(
        agent.client.info().await.unwrap().limits.unwrap().default_grace.unwrap().seconds,
        5
    );
    // A file that can't be read is one, too.
    let path = world.path("a/config/agent.toml");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let refused = soon("a reload", agent.client.reload()).await.unwrap_err();
    assert_eq!(reason(&refused), "CONFIG_INVALID");
    // One that is gone is the defaults.
    std::fs::remove_dir(&path).unwrap();
    assert_eq!(names(&reload(&agent).await.applied), ["grace"]);
}

#[test]
fn sighup_does_the_same_and_the_log_says_it() {
    let world = World::new();
    configure(&world, "listen = \"127.0.0.1:0\"\n");
    let mut command = world.baton_at("a");
    command.env(MISTYPED, "5");
    let agent = Logged::start(&mut command);
    let hint = "did you mean BATON_QUEUE_LENGTH?";
    agent.log.says(&["WARN", MISTYPED, hint]);
    agent.log.says(&["the agent serves"]);
    configure(&world, "listen = \"none\"\ngrace = \"5s\"\n");
    signal(&agent.child, Signal::HUP);
    agent.log.says(&["INFO", "applied", "grace", "5s", "10s"]);
    agent.log.says(&["WARN", "needs a restart", "listen", "none", "127.0.0.1:0"]);
    agent.log.says(&["read again", "applied=1"]);
    configure(&world, "grace = \"5s\"\nqueue = 1\n");
    signal(&agent.child, Signal::HUP);
    agent.log.says(&["ERROR", "stays as it was", "agent.toml, line 2: unknown key `queue`"]);
    configure(&world, "grace = \"5s\"\n");
    assert_eq!(shown(&world, "listen")["value"], "127.0.0.1:0");
}

#[tokio::test]
async fn a_shorter_queue_refuses_only_who_comes() {
    let world = World::new();
    let agent = agent(&world).await;
    let gate = world.gate();
    let mut scripts = Vec::new();
    for id in ["a", "b", "c"] {
        scripts.push(agent.script(gate.wait()).id(id).start().await);
    }
    scripts[0].is_running().await;
    configure(&world, "queue_length = 2\n");
    assert_eq!(names(&reload(&agent).await.applied), ["queue_length"]);
    let refused = agent.script("true").id("d").try_start().await.err().unwrap();
    assert_eq!(reason(&refused), "QUEUE_FULL");
    // One that is sent again is no new one.
    agent.script(gate.wait()).id("c").start().await;
    for script in &scripts {
        gate.open();
        assert!(exited(&script.outcome().await, 0));
    }
    assert!(exited(&agent.script("true").id("d").outcome().await, 0));
    configure(&world, "queue_length = 100\n");
    reload(&agent).await;
    let mut more = Vec::new();
    for number in 0..10 {
        more.push(agent.script("true").id(&format!("e{number}")).start().await);
    }
    for script in more {
        script.is_done().await;
    }
}

#[tokio::test]
async fn a_script_keeps_what_it_started_with() {
    let world = World::new();
    configure(&world, "grace = \"1h\"\nmax_output_bytes = 1000\n");
    let agent = agent(&world).await;
    let gate = world.gate();
    let runs = agent.script(format!("{}; printf 0123456789", gate.wait())).start().await;
    runs.is_running().await;
    configure(&world, "grace = \"1h\"\nmax_output_bytes = 4\n");
    reload(&agent).await;
    let next = agent.script("printf 0123456789").start().await;
    gate.open();
    let outcome = runs.outcome().await;
    assert_eq!((outcome.output_dropped_bytes, outcome.output_drop_cause), (0, None));
    let outcome = next.outcome().await;
    assert_eq!(outcome.output_dropped_bytes, 6);
    assert_eq!(outcome.output_drop_cause, Some(DropCause::Limit));
    // A grace of an hour would be waited for; the next one has the new one.
    configure(&world, "grace = \"10ms\"\n");
    reload(&agent).await;
    let stubborn = "trap '' TERM; echo on; while :; do sleep 0.05; done";
    let stubborn = agent.script(stubborn).start().await;
    stubborn.has_written(3).await;
    support::cancel(&stubborn, "enough").await;
    stubborn.is_done().await;
}

#[tokio::test]
async fn folders_and_limits_of_files_change_at_once() {
    let world = World::new();
    let agent = agent(&world).await;
    let file = world.path("file");
    write(&file, "0123456789");
    let file = file.display().to_string();
    let push = |to: &str| baton(&world, &["push", &file, to]);
    let (code, _, error) = push("files:one");
    assert_eq!(code, 0, "{error}");
    assert!(push("other:one").2.contains("root \"other\" is not known"));
    let other = world.path("other");
    std::fs::create_dir(&other).unwrap();
    configure(
        &world,
        &format!("[files.roots]\nother = {{ path = {other:?}, access = \"read-write\" }}\n"),
    );
    assert_eq!(names(&reload(&agent).await.applied), ["files.roots"]);
    let (code, _, error) = push("other:one");
    assert_eq!(code, 0, "{error}");
    assert_eq!(std::fs::read(other.join("one")).unwrap(), b"0123456789");
    assert!(push("files:two").2.contains("root \"files\" is not known"));
    configure(&world, "[files]\nmax_file_bytes = 9\n");
    reload(&agent).await;
    let (code, _, error) = push("files:two");
    assert!(code == 2 && error.contains("at most 9 are allowed"), "{error}");
    let package = world.path("package");
    std::fs::create_dir(&package).unwrap();
    write(&package.join("app"), "0123456789");
    let package = package.display().to_string();
    let send = ["package", "send", &package, "--id", "app", "--version", "1"];
    let (code, _, error) = baton(&world, &send);
    assert!(code == 2 && error.contains("at most 9"), "{error}");
    configure(&world, "[files]\nmax_file_bytes = 10\n");
    reload(&agent).await;
    assert_eq!((push("files:two").0, baton(&world, &send).0), (0, 0));
}

#[tokio::test]
async fn what_is_kept_is_what_the_new_limits_say_also_when_nothing_ends_any_more() {
    let world = World::new();
    let mut first = agent(&world).await;
    for id in ["a", "b", "c"] {
        first.script("true").id(id).outcome().await;
    }
    first.kill();
    // Of this one nothing ends.
    let agent = agent(&world).await;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let watcher = FileWatcher::start(&tasks, stop.clone()).unwrap();
    let mut watch = watcher.watch(&agent.folder.join("state/scripts/.removed")).unwrap();
    configure(&world, "[retention]\nmax_scripts = 1\nmin_age = \"0s\"\n");
    let changes = reload(&agent).await;
    assert_eq!(names(&changes.applied), ["retention.max_scripts", "retention.min_age"]);
    let kept = async {
        loop {
            let scripts = agent.client.list(&[], &[].into(), 10).await.unwrap();
            if scripts.len() == 1 {
                return scripts[0].script_id.to_string();
            }
            watch.changed().await;
        }
    };
    assert_eq!(soon("two to go", kept).await, "c");
    stop.cancel();
}

#[tokio::test]
async fn a_restart_that_a_script_waits_for_is_made_by_a_command_that_came_later() {
    let world = World::new();
    let agent = agent(&world).await;
    let script = agent.script("baton reboot-and-resume").id("asks").start().await;
    let awaits =
        |script: &baton::snapshot::Snapshot| script.waits.iter().any(|w| w.restart.is_some());
    script.until("waiting for a restart", awaits).await;
    // Without a command others go on.
    let bypass = |id: &str| agent.script("true").observer().id(id);
    assert!(exited(&bypass("beside").outcome().await, 0));
    let told = world.path("told");
    std::fs::create_dir(&told).unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let watcher = FileWatcher::start(&tasks, stop.clone()).unwrap();
    let mut watch = watcher.watch(&told).unwrap();
    let command = json!(["touch", told.join("now")]);
    configure(&world, &format!("reboot_command = {command}\n"));
    assert_eq!(names(&reload(&agent).await.applied), ["reboot_command"]);
    let is_run = async {
        while !told.join("now").exists() {
            watch.changed().await;
        }
    };
    soon("the command", is_run).await;
    stop.cancel();
    let waits = bypass("later").start().await.is_waiting().await;
    assert!(waits.waits[0].restart.is_some(), "{waits:?}");
    // Without it again, nothing is kept from starting.
    configure(&world, "");
    reload(&agent).await;
    let later = support::Started { client: agent.client.clone(), id: "later".parse().unwrap() };
    assert!(exited(&later.outcome().await, 0));
}

/// Whoever looks while it is reloaded again and again sees one configuration or the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_sees_half_of_a_reload() {
    let world = World::new();
    let text = |n: u32| format!("queue_length = {n}\nmax_output_bytes = {n}\ngrace = \"{n}s\"\n");
    configure(&world, &text(10));
    let agent = agent(&world).await;
    let stop = CancellationToken::new();
    let looks = (0..4).map(|_| {
        let (client, stop) = (agent.client.clone(), stop.clone());
        tokio::spawn(async move {
            let mut seen = std::collections::BTreeMap::new();
            while !stop.is_cancelled() {
                let limits = client.info().await.unwrap().limits.unwrap();
                let grace = limits.default_grace.unwrap().seconds;
                let all =
                    (u64::from(limits.queue_length), limits.output_bytes, grace.unsigned_abs());
                assert!(all.0 == all.1 && all.1 == all.2, "half of it: {all:?}");
                *seen.entry(all.0).or_insert(0) += 1;
            }
            seen
        })
    });
    let looks: Vec<_> = looks.collect();
    for round in 0..200 {
        configure(&world, &text(if round % 2 == 0 { 20 } else { 10 }));
        let changes = reload(&agent).await;
        assert_eq!(names(&changes.applied), ["queue_length", "max_output_bytes", "grace"]);
    }
    stop.cancel();
    for look in looks {
        let seen = soon("a look", look).await.unwrap();
        assert!(seen.len() == 2, "{seen:?}");
    }
}

#[tokio::test]
async fn the_configuration_of_another_machine_is_shown_and_reloaded_there() {
    let site = Site::new(1).await;
    let machine = &site.machines[0];
    std::fs::copy(site.targets(), site.home.path("home/config/targets.toml")).unwrap();
    let baton = |words: &[&str]| finish(site.baton().args(words));
    let (code, out, error) = baton(&["config", "show", "--target", "m1", "--json", "grace"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(values(&out)[0]["value"], "10s");
    let path = machine.agent.folder.join("config/agent.toml");
    write(&path, "grace = \"5s\"\n");
    let reload = || baton(&["agent", "reload", "-t", "m1"]);
    // Who may look and run may not reload.
    assert_eq!(reload().0, 77);
    let own = baton(&["identity"]).1;
    let own = own.split_whitespace().last().unwrap();
    let trust = ["agent", "trust", own, "--name", own.get(..8).unwrap(), "--role", "admin"];
    let (code, _, error) = finish(machine.world.baton_at("a").args(trust));
    assert_eq!(code, 0, "{error}");
    // The agent's answer is the event: it is told of the changed file a moment later.
    let since = std::time::Instant::now();
    let (code, out, error) = loop {
        let told = reload();
        if told.0 != 77 || since.elapsed() > DEADLINE {
            break told;
        }
    };
    assert_eq!(code, 0, "{error}");
    assert!(out.starts_with("applied: grace = \"5s\" (was \"10s\")\n"), "{out}");
    let (_, out, _) = baton(&["config", "show", "-t", "m1", "--json", "grace"]);
    assert_eq!(values(&out)[0]["from"], json!({"kind": "file", "path": path, "line": 1}));
}

#[test]
fn check_tells_all_mistakes_and_example_is_right() {
    let world = World::new();
    let (code, out, error) = baton(&world, &["config", "example"]);
    assert_eq!((code, error.as_str()), (0, ""));
    let file = world.path("new.toml");
    let name = file.display().to_string();
    write(&file, &out);
    let (code, out, error) = baton(&world, &["config", "check", &name]);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert_eq!(out, format!("{name} is right: 0 keys are set\n"));
    write(&file, "grace = \"1s\"\nqueue_lenght = 1\nlisten = 5\n");
    let (code, out, error) = baton(&world, &["config", "check", &name]);
    assert_eq!((code, out.as_str()), (1, ""));
    let expected = format!(
        "error: {name}, line 2: unknown key `queue_lenght`\n\
         hint: did you mean \"queue_length\"?\n\
         error: {name}, line 3: listen = 5: must be a text, in quotes\n"
    );
    assert_eq!(error, expected);
    let (code, out, _) = baton(&world, &["config", "check", "--json", &name]);
    assert_eq!(code, 1);
    let problems = values(&out);
    assert_eq!((problems.len(), &problems[1]["from"]["line"]), (2, &json!(3)));
    assert_eq!((&problems[1]["key"], &problems[1]["value"]), (&json!("listen"), &json!("5")));
    write(&file, "grace = \n");
    assert_eq!(baton(&world, &["config", "check", &name]).0, 1);
    // One that is named must be there; that of the machine need not.
    let (code, _, error) = baton(&world, &["config", "check", "nowhere.toml"]);
    assert!(code == 1 && error.contains("nowhere.toml"), "{error}");
    assert_eq!(baton(&world, &["config", "check"]).0, 0);
    // The environment belongs to the machine, not to a file.
    let with = |words: &[&str]| {
        let mut command = world.baton_at("a");
        finish(command.env("BATON_QUEUE_LENGTH", "many").args(["config", "check"]).args(words))
    };
    let (code, _, error) = with(&[]);
    assert!(
        code == 1 && error.contains("BATON_QUEUE_LENGTH = \"many\": must be a number"),
        "{error}"
    );
    write(&file, "grace = \"1s\"\n");
    assert_eq!(with(&[&name]).0, 0);
}

#[test]
fn an_agent_with_a_bad_variable_does_not_start_and_names_it() {
    let world = World::new();
    let mut command = world.baton_at("a");
    command.args(["agent", "run"]).env("BATON_FILES_MAX_TRANSFERS", "0").env("BATON_GRACE", "soon");
    let (code, _, error) = finish(&mut command);
    assert_eq!(code, 2);
    assert!(error.contains("BATON_FILES_MAX_TRANSFERS = 0: must be 1 to 1000"), "{error}");
    assert!(error.contains("BATON_GRACE = \"soon\": "), "{error}");
}

/// An agent at a terminal of its own, whose log is a pipe. `None`, and said, without script(1).
fn at_a_terminal(world: &World, before: &str) -> Option<(Child, Log, Pid)> {
    if Command::new("script").arg("--version").output().is_err() {
        println!("no script(1): there is no terminal to test at");
        return None;
    }
    let log = world.path("log");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    // Open for both: neither of the two waits for the other.
    let reader = File::options().read(true).write(true).open(&log).unwrap();
    let text = format!(
        "{before} echo $$ > '{log}'; exec {baton} agent run --listen none 2> '{log}'",
        log = log.display(),
        baton = support::BATON,
    );
    let like = world.baton_at("a");
    let mut command = Command::new("script");
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-q", "-c", &text, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::null());
    let child = spawn(&mut command);
    let log = Log::of(reader);
    let pid = log.says(&[]).trim().parse().unwrap();
    log.says(&["the agent serves"]);
    Some((child, log, Pid::from_raw(pid).unwrap()))
}

#[test]
fn an_agent_at_a_terminal_ends_with_it_unless_nohup_started_it() {
    let world = World::new();
    let Some((mut terminal, log, pid)) = at_a_terminal(&world, "") else { return };
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    // Asked by somebody it reloads, as everywhere.
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
    log.says(&["read again"]);
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    log.says(&["the terminal is gone"]);
    support::run::await_end(&process);
    let world = World::new();
    let Some((mut terminal, log, pid)) = at_a_terminal(&world, "trap '' HUP;") else { return };
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    log.says(&["read again"]);
    assert_eq!(shown(&world, "grace")["value"], "10s");
    support::kill(pid.as_raw_nonzero().get().cast_unsigned());
}

#[test]
fn the_documentation_has_every_key_as_it_is() {
    let text = std::fs::read_to_string("docs/configuration.md").unwrap();
    let section = text.split("\n## The keys\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let row = |key: &Key| {
        let applies = match key.applies {
            Applies::AtReload => "reload",
            Applies::AtStart => "restart",
        };
        let value = match key.name {
            "name" => "the host's name".to_owned(),
            _ => format!("`{}`", key.value(&Config::default())),
        };
        format!("| `{}` | `{}` | {value} | {applies} |", key.name, key.variable())
    };
    let expected: Vec<String> = Key::all().iter().map(row).collect();
    assert_eq!(documented, expected, "docs/configuration.md should say:\n{}", expected.join("\n"));
}
