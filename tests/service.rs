//! Promise: an agent under systemd says when it serves, how busy it is and that it makes progress; told to
//! stop, it waits for what runs and starts nothing more.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use baton::script::Phase;
use baton::snapshot::Snapshot;
use rustix::process::{Pid, Signal, kill_process};
use support::old::{Release, newest};
use support::{
    BATON, DEADLINE, Started, TestAgent, World, exited, finish, lines, reason, soon, write,
};

/// What systemd would hear.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(world: &World) -> Self {
        let socket = UnixDatagram::bind(world.path("notify")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket }
    }

    /// An agent that tells it, and its configuration.
    async fn agent(&self, world: &World, config: &str, more: &[(&str, &str)]) -> TestAgent {
        std::fs::create_dir_all(world.path("a/config")).unwrap();
        write(&world.path("a/config/agent.toml"), config);
        let mut command = world.baton_at("a");
        command.args(["agent", "run", "--listen", "none"]);
        command.env("NOTIFY_SOCKET", world.path("notify")).envs(more.iter().copied());
        world.await_agent("a", command).await
    }

    /// The next word; `None` when none comes in that time.
    fn hears_within(&self, limit: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(limit)).unwrap();
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap().trim_end().to_owned())
    }

    /// Hears until it is so.
    fn hears(&self, mut wanted: impl FnMut(&str) -> bool) -> String {
        let start = Instant::now();
        let mut heard = Vec::new();
        while let Some(left) = DEADLINE.checked_sub(start.elapsed()) {
            let Some(word) = self.hears_within(left) else { break };
            if wanted(&word) {
                return word;
            }
            heard.push(word);
        }
        panic!("not heard, but {heard:?}");
    }
}

fn stop(agent: &TestAgent) {
    let pid = Pid::from_raw(agent.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

#[tokio::test]
async fn systemd_is_told_when_the_agent_serves_and_how_busy_it_is() {
    let world = World::new();
    let manager = Manager::new(&world);
    let mut agent = manager.agent(&world, "", &[]).await;
    assert_eq!(manager.hears(|word| word == "READY=1"), "READY=1");
    // It serves already: whoever was told so may call.
    agent.client.info().await.unwrap();
    manager.hears(|word| word == "STATUS=idle");
    let gate = world.gate();
    let first = agent.script(gate.wait()).start().await;
    first.is_running().await;
    manager.hears(|word| word == "STATUS=1 running");
    let second = agent.script("true").start().await;
    manager.hears(|word| word == "STATUS=1 running, 1 queued");
    agent.client.drain("kernel".to_owned()).await.unwrap();
    manager.hears(|word| word == "STATUS=draining (kernel): 1 running, 1 queued");
    agent.client.resume().await.unwrap();
    gate.open();
    assert!(exited(&second.outcome().await, 0));
    manager.hears(|word| word == "STATUS=idle");
    stop(&agent);
    manager.hears(|word| word == "STOPPING=1");
    agent.ends().await;
}

/// A database of the oldest version, large enough to be copied in several steps.
fn old_database(world: &World) {
    let state = world.path("a/state");
    std::fs::create_dir_all(&state).unwrap();
    let (_, oldest) = newest().databases().swap_remove(0);
    let database = state.join("agent.db");
    Release::make_database(&oldest, &database);
    let more = "CREATE TABLE padding (bytes BLOB);
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
        INSERT INTO padding SELECT zeroblob(500000) FROM n";
    rusqlite::Connection::open(database).unwrap().execute_batch(more).unwrap();
}

#[tokio::test]
async fn a_migration_asks_for_more_time_as_long_as_it_makes_progress() {
    let world = World::new();
    let manager = Manager::new(&world);
    old_database(&world);
    let due = world.path("due");
    drop(File::create(&due).unwrap());
    let mut command = world.baton_at("a");
    command.args(["agent", "run", "--listen", "none"]);
    command.env("NOTIFY_SOCKET", world.path("notify"));
    command.env(baton::crash::HANG_VARIABLE, format!("mid migration={}", due.display()));
    let mut hanging = support::spawn(&mut command);
    let step = "STATUS=the database is migrated to version ";
    let mut copied = Vec::new();
    manager.hears(|word| {
        assert!(word.ends_with("\nEXTEND_TIMEOUT_USEC=300000000"), "{word}");
        let percent = word.strip_prefix("STATUS=the database is copied before its migration: ");
        copied.extend(percent.map(|rest| rest.split(' ').next().unwrap().parse::<u32>().unwrap()));
        word.starts_with(step)
    });
    assert!(copied.len() > 2 && copied.is_sorted(), "{copied:?}");
    assert_eq!(copied.last(), Some(&100));
    // It hangs: nobody asks for time for it.
    assert_eq!(manager.hears_within(Duration::from_secs(2)), None);
    assert!(!due.exists(), "it does not come so far");
    hanging.kill().unwrap();
    hanging.wait().unwrap();

    let agent = manager.agent(&world, "", &[]).await;
    let mut is_migrated = false;
    manager.hears(|word| {
        is_migrated |= word.starts_with(step);
        word == "READY=1"
    });
    assert!(is_migrated);
    manager.hears(|word| word == "STATUS=idle");
    agent.client.info().await.unwrap();
}

#[tokio::test]
async fn pings_come_as_long_as_the_agent_makes_progress_and_no_longer() {
    let world = World::new();
    let manager = Manager::new(&world);
    let limit = Duration::from_millis(600);
    let due = world.path("due");
    drop(File::create(&due).unwrap());
    let hang = format!("before accept={}", due.display());
    let variables = [("WATCHDOG_USEC", "600000"), (baton::crash::HANG_VARIABLE, hang.as_str())];
    let agent = manager.agent(&world, "", &variables).await;
    for _ in 0..3 {
        manager.hears(|word| word == "WATCHDOG=1");
    }
    // Its database hangs, say on a disk that does not answer; the rest of it is well.
    let draft = agent.script("true");
    let start = tokio::spawn(async move { draft.try_start().await.is_ok() });
    let start_of_silence = Instant::now();
    while due.exists() {
        assert!(start_of_silence.elapsed() < DEADLINE, "the database does not hang");
        tokio::task::yield_now().await;
    }
    // The one that was on its way.
    let mut last = Instant::now();
    while let Some(word) = manager.hears_within(limit * 5) {
        let is_ping = word == "WATCHDOG=1";
        assert!(!is_ping || last.elapsed() < limit, "a ping of an agent that hangs");
        if is_ping {
            last = Instant::now();
        }
        assert!(start_of_silence.elapsed() < DEADLINE, "it goes on pinging");
    }
    agent.client.info().await.unwrap();
    start.abort();
}

#[tokio::test]
async fn no_pings_are_sent_for_another_process() {
    let world = World::new();
    let manager = Manager::new(&world);
    let variables = [("WATCHDOG_USEC", "300000"), ("WATCHDOG_PID", "1")];
    let _agent = manager.agent(&world, "", &variables).await;
    manager.hears(|word| word == "STATUS=idle");
    assert_eq!(manager.hears_within(Duration::from_secs(1)), None);
}

#[tokio::test]
async fn a_stop_waits_for_what_runs_and_starts_nothing_more() {
    let world = World::new();
    let manager = Manager::new(&world);
    let mut agent = manager.agent(&world, "stop_wait = \"1h\"", &[]).await;
    let (gate, log) = (world.gate(), world.path("log"));
    let running = agent.script(format!("{}; echo first >> {}", gate.wait(), log.display()));
    let running = running.start().await;
    running.is_running().await;
    let mut queued = Vec::new();
    for number in 0..3 {
        let draft = agent.script(format!("echo {number} >> {}", log.display()));
        queued.push(draft.start().await.id);
    }
    stop(&agent);
    manager.hears(|word| word == "STOPPING=1");
    manager.hears(|word| word == "EXTEND_TIMEOUT_USEC=30000000");
    manager.hears(|word| {
        word.starts_with("STATUS=stopping, until ") && word.ends_with("1 running, 3 queued")
    });
    let error = agent.script("true").try_start().await.err().unwrap();
    assert_eq!(reason(&error), "AGENT_STOPPING");
    assert!(error.to_string().contains("stop"), "{error}");
    let mut status = world.baton_at("a");
    let (code, said, _) = finish(status.args(["agent", "status"]));
    assert_eq!(code, 0);
    assert!(said.contains("the agent stops"), "{said}");
    // Who follows goes on to hear of it: from here on, the agent may end at once.
    let follows = |script: &Snapshot| {
        gate.open();
        script.phase.is_done()
    };
    let Phase::Done(outcome) = running.until("done", follows).await.phase else { unreachable!() };
    assert!(exited(&outcome, 0));
    agent.ends().await;
    assert_eq!(lines(&log), ["first"]);
    // No drain is left behind.
    let again = world.agent_at("a", &["--listen", "none"]).await;
    for id in queued {
        let script = Started { client: again.client.clone(), id };
        assert!(exited(&script.outcome().await, 0));
    }
    assert_eq!(lines(&log), ["first", "0", "1", "2"]);
}

#[tokio::test]
async fn what_outlasts_the_wait_of_a_stop_goes_on_and_is_found_again() {
    let world = World::new();
    let manager = Manager::new(&world);
    let mut agent = manager.agent(&world, "stop_wait = \"300ms\"", &[]).await;
    let gate = world.gate();
    let script = agent.script(gate.wait()).start().await;
    script.is_running().await;
    stop(&agent);
    soon("the end of the agent", agent.ends()).await;
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let script = Started { client: again.client.clone(), id: script.id };
    assert_eq!(script.is_running().await.phase, Phase::Running);
    gate.open();
    assert!(exited(&script.outcome().await, 0));
}

#[tokio::test]
async fn who_is_told_twice_to_stop_waits_no_longer() {
    let world = World::new();
    let manager = Manager::new(&world);
    let mut agent = manager.agent(&world, "stop_wait = \"1h\"", &[]).await;
    let gate = world.gate();
    let script = agent.script(gate.wait()).start().await;
    script.is_running().await;
    stop(&agent);
    manager.hears(|word| word.starts_with("STATUS=stopping"));
    stop(&agent);
    soon("the end of the agent", agent.ends()).await;
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let script = Started { client: again.client.clone(), id: script.id };
    gate.open();
    assert!(exited(&script.outcome().await, 0));
}

/// The command of a user who is not root, with a home of its own.
fn as_nobody(world: &World) -> Command {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let home = world.path("home");
    std::fs::create_dir_all(&home).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let mut command = if is_root { Command::new("setpriv") } else { Command::new(BATON) };
    if is_root {
        // Root's folders are the system's: nobody's are in his home.
        std::fs::set_permissions(world.path(""), Permissions::from_mode(0o755)).unwrap();
        chown(&home, Some(65534), Some(65534)).unwrap();
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", BATON]);
    }
    command.env_clear().env("HOME", &home).env("PATH", std::env::var("PATH").unwrap());
    command
}

#[test]
fn a_dry_run_of_an_installation_says_all_of_it_to_anybody() {
    let world = World::new();
    let mut command = as_nobody(&world);
    command.args([
        "--instance",
        "of-a-test",
        "service",
        "install",
        "--dry-run",
        "--user",
        "nobody",
    ]);
    command.args(["--state-dir", "/srv/state"]);
    let (code, said, error) = finish(command.arg("--separate-mutex"));
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("not used: BATON_STATE_DIR\n") && !said.contains("/srv"), "{error}");
    for part in [
        "# write /etc/baton/instances/of-a-test/agent.toml:\n",
        "# write /etc/systemd/system/baton@of-a-test.service.d/50-baton.conf:\n",
        "\nUser=nobody\n",
        "# write /etc/tmpfiles.d/baton-nobody.conf:\n",
        "# run: systemctl enable baton@of-a-test.service\n",
        "# run: systemctl restart baton@of-a-test.service\n",
    ] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    assert!(error.contains("/run/lock/baton-nobody"), "{error}");
    assert!(!Path::new("/etc/baton/instances/of-a-test").exists());
}

#[test]
fn who_can_t_change_services_is_told_what_helps() {
    let world = World::new();
    let has_systemd = Path::new("/run/systemd/system").is_dir();
    let (expected, hint) = if has_systemd { (77, "sudo") } else { (1, "packaging/openrc") };
    for verb in ["install", "uninstall", "start", "stop", "restart"] {
        let (code, said, error) = finish(as_nobody(&world).args(["service", verb]));
        assert_eq!((code, said.as_str()), (expected, ""), "{verb}: {error}");
        let hints: Vec<_> = error.lines().filter(|line| line.starts_with("hint: ")).collect();
        assert!(hints.iter().any(|line| line.contains(hint)), "{error}");
    }
    let mut unknown = as_nobody(&world);
    let (code, _, error) =
        finish(unknown.args(["service", "install", "--dry-run", "--user", "no-such-user"]));
    assert_eq!(code, 2);
    assert!(error.contains("\"no-such-user\" is not known"), "{error}");
}

#[test]
fn an_instance_has_folders_of_its_own_and_the_mutexes_are_common() {
    let world = World::new();
    let home = world.path("home");
    let baton = |instance: &str, words: &[&str]| {
        let mut command = as_nobody(&world);
        let (code, said, error) = finish(command.args(["--instance", instance]).args(words));
        (code, said.trim().to_owned(), error)
    };
    let folder = |instance: &str| {
        let (code, said, error) = baton(instance, &["identity", "--json"]);
        assert_eq!(code, 0, "{error}");
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        said["folder"].as_str().unwrap().to_owned()
    };
    let config = home.join(".config/baton");
    assert_eq!(Path::new(&folder("default")), config);
    assert_eq!(Path::new(&folder("blue")), config.join("instances/blue"));
    let path = |instance: &str| baton(instance, &["mutex", "path", "log"]).1;
    assert_ne!(path("blue"), "");
    assert_eq!(path("blue"), path("default"));
    let (code, _, error) = baton("../etc", &["identity"]);
    assert_eq!(code, 2);
    assert!(error.contains("must begin with a letter or a digit"), "{error}");
}
