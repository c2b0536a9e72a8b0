//! Promise: what a newer release wrote is refused by name, before anything is changed; a migration is whole or
//! has not begun, whenever it is killed; agent and supervisor of two releases understand each other, both ways.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use baton::script::{OutcomeKind, Phase};
use baton::supervisor::job::Ending;
use baton::workspace::Workspace;
use serde_json::{Value, json};
use support::old::{OLD, Release, assert_history, assert_unchanged, content, json_lines, newest};
use support::{BATON, Started, World, exited, finish, lines, spawn, write};

/// EX_CONFIG: what is here is of a newer baton.
const NEWER: i32 = 78;

/// Makes a file into another one.
type Edit = fn(&Path);
/// Makes a job into that of another release.
type Change = fn(&mut Value);

fn old_machine() -> (World, PathBuf) {
    let world = World::new();
    newest().unpack(&world);
    let folder = world.path(OLD);
    (world, folder)
}

fn agent_run(world: &World) -> Command {
    let mut command = world.baton_at(OLD);
    command.args(["agent", "run", "--listen", "none"]);
    command
}

/// Changes a text file.
fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    write(path, &change(std::fs::read_to_string(path).unwrap()));
}

/// Raises the number of one of the JSON files.
fn raise(path: &Path) {
    edit(path, |text| {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value["format"] = json!(value["format"].as_u64().unwrap_or(1) + 1);
        value["baton"] = json!("9.9.9");
        value.to_string()
    });
}

fn version(database: &Path) -> i64 {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn the_state_of_a_newer_release_is_refused_and_stays_as_it_is() {
    let (world, folder) = old_machine();
    let state = folder.join("state");
    let database = state.join("agent.db");
    baton::store::Store::open(&database).unwrap().close().await;
    let known = baton::store::known_version();
    let newer = i64::try_from(known).unwrap() + 1;
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection.execute("UPDATE about SET value = '9.9.9'", []).unwrap();
    connection.pragma_update(None, "user_version", newer).unwrap();
    drop(connection);
    let before = content(&state);
    let (code, out, error) = finish(&mut agent_run(&world));
    assert_eq!((code, out.as_str()), (NEWER, ""), "{error}");
    let program = baton::format::PROGRAM;
    let expected = format!(
        "error: store: database {}: it has format {newer}, written by baton 9.9.9; this baton, \
         {program}, knows up to {known}\n\
         hint: install baton 9.9.9 or a newer one; nothing was changed\n",
        database.display()
    );
    assert!(error.ends_with(&expected), "{error}");
    assert_unchanged(&state, &before);
}

#[test]
fn each_file_of_a_newer_release_is_refused_by_name() {
    let files: [(&str, Edit); 6] = [
        ("state/scripts/interrupted/job.json", raise),
        ("state/scripts/restarts/resume.json", raise),
        ("state/scripts/queued-1/outcome.json", |path| {
            let other = path.parent().unwrap().with_file_name("exited-0/outcome.json");
            std::fs::copy(other, path).unwrap();
            raise(path);
        }),
        ("state/reboot.json", |path| {
            write(path, r#"{"format":2,"baton":"9.9.9","all":"else is new"}"#);
        }),
        ("config/peers.toml", |path| edit(path, |text| format!("format = 2\nnew = 1\n{text}"))),
        ("config/peers.toml", |path| write(path, "format = 2\n")),
    ];
    for (name, change) in files {
        let (world, folder) = old_machine();
        let path = folder.join(name);
        change(&path);
        let mut command = agent_run(&world);
        if name.contains("peers") {
            command = world.baton_at(OLD);
            command.args(["agent", "run", "--listen", "127.0.0.1:0"]);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let (code, _, error) = finish(&mut command);
        assert_eq!(code, NEWER, "{name}: {error}");
        assert!(error.contains(&path.display().to_string()), "{name}: {error}");
        assert!(error.contains("it has format 2"), "{name}: {error}");
        assert!(error.contains("knows up to 1\nhint: install "), "{name}: {error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{name}");
    }
}

#[test]
fn so_are_mutexes_and_deployments_of_a_newer_release() {
    let (world, folder) = old_machine();
    let format = world.mutexes().join(".format");
    let words = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        finish(world.baton_at(OLD).args(words))
    };
    // One that says that it has the first rules is as good as one that says nothing.
    write(&format, r#"{"format":1}"#);
    assert_eq!(words("mutex run log -- true").0, 0);
    write(&format, r#"{"format":2,"baton":"9.9.9"}"#);
    for command in ["mutex run log -- true", "mutex status", "mutex acquire log", "run -c true"] {
        let (code, _, error) = words(command);
        assert_ne!(code, 0, "{command}");
        let expected = "it has format 2, written by baton 9.9.9";
        assert!(error.contains(expected), "{command}: {error}");
    }
    assert_eq!(words("mutex run log -- true").0, NEWER);

    let project = world.path("web.toml");
    write(&project, "project = \"web\"\n[[steps]]\nname = \"Install\"\nrun = \"true\"\n");
    let events = folder.join("state/deployments/succeeded/events.jsonl");
    edit(&events, |text| format!("{{\"format\":2,\"baton\":\"9.9.9\"}}\n{text}"));
    let deploy = format!("deploy {} -e Live --release 1.4 --run succeeded", project.display());
    let (code, _, error) = words(&deploy);
    assert_eq!(code, NEWER, "{error}");
    assert!(error.contains(&events.display().to_string()), "{error}");
}

#[tokio::test]
async fn so_are_logs_and_packages_of_a_newer_release() {
    let (world, folder) = old_machine();
    let journal = folder.join("state/scripts/exited-0/output.journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    assert_eq!(&bytes[..8], b"BATON-1\n");
    bytes[6] = b'2';
    std::fs::remove_file(&journal).unwrap();
    baton::durable::replace_file(&journal, &bytes, 0o600).unwrap();
    let manifest = folder.join("state/packages/kept/app/1.0");
    edit(&manifest, |text| text.replacen("baton-package 1\n", "baton-package 2\nnew\n", 1));
    let stamp = folder.join("state/packages/installed/app/2.0/.baton-package");
    edit(&stamp, |text| text.replacen("baton-package 1\n", "baton-package 2\nnew\n", 1));

    let agent = world.agent_at(OLD, &["--listen", "none"]).await;
    let (code, out, error) = finish(world.baton_at(OLD).args(["logs", "exited-0"]));
    assert_ne!(code, 0);
    assert_eq!(out, "");
    assert!(error.contains("output.journal: it has format 2; this baton"), "{error}");
    for version in ["1.0", "2.0"] {
        let install = agent.script(format!("baton package install app {version}")).start().await;
        let output = String::from_utf8(install.output().await).unwrap();
        assert!(exited(&install.outcome().await, NEWER), "{output}");
        assert!(output.contains("a newer baton made it: it has format 2"), "{output}");
    }
    assert!(std::fs::read_to_string(&stamp).unwrap().starts_with("baton-package 2\nnew"));
}

#[tokio::test]
async fn a_migration_that_is_killed_is_done_at_the_next_start() {
    for (point, before) in [
        ("before copy", true),
        ("mid copy", true),
        ("before migration", true),
        ("mid migration", true),
        ("after migration", false),
    ] {
        let (world, folder) = old_machine();
        let database = folder.join("state/agent.db");
        let (_, oldest) = newest().databases().swap_remove(0);
        for file in ["agent.db", "agent.db-wal", "agent.db-shm"] {
            std::fs::remove_file(folder.join("state").join(file)).unwrap();
        }
        Release::make_database(&oldest, &database);
        let due = world.path("due");
        drop(File::create(&due).unwrap());
        let mut command = agent_run(&world);
        command.env(baton::crash::VARIABLE, format!("{point}={}", due.display()));
        let status = command.stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), Some(9), "{point}: {status:?}");
        assert_eq!(version(&database) == 1, before, "{point}");

        let agent = world.agent_at(OLD, &["--listen", "none"]).await;
        let list = ["list", "--phase", "done", "--limit", "1000", "--json"];
        let (code, listed, error) = finish(world.baton_at(OLD).args(list));
        assert_eq!(code, 0, "{point}: {error}");
        assert_history(&newest().history(), &json_lines(&listed));
        let known = baton::store::known_version();
        assert_eq!(version(&database), i64::try_from(known).unwrap(), "{point}");
        // The copy is that of the old one, whole; nothing half made is left.
        assert_eq!(version(&database.with_file_name(format!("agent.db.before-v{known}"))), 1);
        assert!(!database.with_file_name("agent.db.copy").exists(), "{point}");
        let queued = Started { client: agent.client.clone(), id: "queued-shared".parse().unwrap() };
        assert!(exited(&queued.outcome().await, 0), "{point}");
    }
}

#[test]
fn a_migration_that_fails_leaves_the_database_as_it_was() {
    let rows = |database: &Path| -> Vec<(String, String)> {
        let connection = rusqlite::Connection::open(database).unwrap();
        let mut all = connection.prepare("SELECT id, phase FROM scripts ORDER BY seq").unwrap();
        let all = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        all.map(Result::unwrap).collect()
    };
    let (_, sql) = newest().databases().swap_remove(0);
    let cases: [(&str, Edit); 2] = [
        // The last step finds something in its way; those before it went well.
        ("can't be migrated from version 1 to ", |database| {
            let connection = rusqlite::Connection::open(database).unwrap();
            connection.execute_batch("CREATE TABLE about (mine TEXT)").unwrap();
        }),
        // There is no room for a copy.
        ("copy of database ", |database| {
            std::fs::create_dir(database.with_extension("db.copy")).unwrap();
        }),
    ];
    for (expected, spoil) in cases {
        let world = World::new();
        let state = world.path(OLD).join("state");
        std::fs::create_dir_all(&state).unwrap();
        let database = state.join("agent.db");
        Release::make_database(&sql, &database);
        spoil(&database);
        let before = rows(&database);
        let (code, _, error) = finish(&mut agent_run(&world));
        assert_eq!(code, 70, "{error}");
        assert!(error.contains(expected) && error.contains("as it was"), "{error}");
        assert_eq!((version(&database), rows(&database)), (1, before), "{expected}");
    }
}

/// A script's workspace as an agent makes it, and the job in it.
fn workspace(world: &World, change: impl FnOnce(&mut Value)) -> (Workspace, Value) {
    let spec = support::spec("echo out; exit 3");
    let workspace = Workspace::at(world.path("workspace"));
    workspace.create(&spec).unwrap();
    // As 0.1.0 wrote it: no number, and nothing that came later.
    let (_old, folder) = old_machine();
    let text = std::fs::read(folder.join("state/scripts/exited-3/job.json")).unwrap();
    let mut job: Value = serde_json::from_slice(&text).unwrap();
    job["command"] = json!(["bash", workspace.path().join("script")]);
    job["directory"] = json!(workspace.work());
    job["mutexes"] = json!(world.mutexes());
    change(&mut job);
    write(&workspace.job(), &job.to_string());
    (workspace, job)
}

/// Lets a supervisor work on it; says how that ended.
fn supervise(workspace: &Workspace, assignment: &Value) -> i32 {
    use std::io::Write as _;
    let mut command = Command::new(BATON);
    command.arg("supervise").stdin(Stdio::piped()).stderr(Stdio::null());
    let mut child = spawn(&mut command);
    let line = format!("{assignment}\n");
    child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let status = child.wait().unwrap();
    assert!(workspace.path().is_dir());
    status.code().unwrap()
}

#[test]
fn a_supervisor_works_for_an_older_and_for_a_newer_agent() {
    let more = |value: &mut Value| value["from_the_future"] = json!({"a": [1], "b": null});
    let older: Change = |job| {
        // All that came with later releases has a default.
        for field in ["open_files", "sensitive", "service_messages", "may_resume"] {
            job.as_object_mut().unwrap().remove(field).unwrap();
        }
        for field in ["reboot_exit_code", "restart", "lease"] {
            job.as_object_mut().unwrap().remove(field).unwrap();
        }
    };
    let newer: Change = |job| {
        job["format"] = json!(1);
        job["baton"] = json!("9.9.9");
        for place in ["", "/claimant", "/output", "/claims/0"] {
            let place = job.pointer_mut(place).unwrap();
            place["from_the_future"] = json!({"a": [1], "b": null});
        }
    };
    for (change, is_newer) in [(older, false), (newer, true)] {
        let world = World::new();
        let (workspace, job) = workspace(&world, change);
        let mut assignment =
            json!({"workspace": workspace.path(), "token": job["token"], "tied": false});
        if is_newer {
            more(&mut assignment);
        }
        assert_eq!(supervise(&workspace, &assignment), 0);
        let ending: Ending = workspace.read_json(&workspace.outcome()).unwrap().unwrap();
        assert_eq!(ending.outcome.kind, OutcomeKind::Exited { code: 3 }, "{is_newer}");
    }
}

#[test]
fn a_supervisor_that_is_too_old_says_so_and_starts_nothing() {
    for in_assignment in [true, false] {
        let world = World::new();
        let (workspace, job) = workspace(&world, |job| {
            job["format"] = json!(if in_assignment { 1 } else { 2 });
        });
        let mut assignment =
            json!({"workspace": workspace.path(), "token": job["token"], "tied": false});
        if in_assignment {
            assignment = json!({"format": 2, "all": "else is new"});
        }
        let status = supervise(&workspace, &assignment);
        assert_eq!(status, i32::from(baton::supervisor::OUTDATED));
        assert!(!workspace.outcome().exists());
        assert_eq!(std::fs::metadata(workspace.journal()).unwrap().len(), 0);
    }
}

/// Puts a shell script in a program's place. `$1` is what follows.
fn replace(program: &Path, text: &str) {
    let newer = program.with_extension("new");
    write(&newer, &format!("#!/bin/sh\n{text}\n"));
    std::fs::set_permissions(&newer, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&newer, program).unwrap();
}

#[tokio::test]
async fn an_agent_understands_a_newer_supervisor_and_waits_when_there_is_an_older_one() {
    let world = World::new();
    let program = world.path("baton");
    std::fs::copy(BATON, &program).unwrap();
    let mut agent = world.agent_of(&program, "a").await;
    // The first one has the supervisor that is ready, of the program as it was.
    assert!(exited(&agent.script("true").outcome().await, 0));

    // A newer one tells more than the agent knows, in its outcome.
    let workspace =
        "workspace=$(printf '%s' \"$line\" | sed 's/.*\"workspace\":\"\\([^\"]*\\)\".*/\\1/')";
    let run = format!("printf '%s\\n' \"$line\" | {BATON} supervise");
    let more = "s/^{/{\"from_the_future\":{\"x\":[1]},/; s/\"kind\":{/\"kind\":{\"more\":1,/";
    replace(
        &program,
        &format!("read -r line\n{workspace}\n{run}\nsed -i '{more}' \"$workspace/outcome.json\""),
    );
    // Whoever was ready is of the old program still.
    assert!(exited(&agent.script("true").outcome().await, 0));
    let newer = agent.script("echo newer; exit 7").id("newer").start().await;
    assert!(exited(&newer.outcome().await, 7));
    assert_eq!(newer.output().await, b"newer\n");
    let path = agent.folder.join("state/scripts/newer/outcome.json");
    assert!(std::fs::read_to_string(path).unwrap().contains("from_the_future"));

    // One that is too old for its agent: the script keeps its place, however often it is tried.
    let tries = world.gate();
    let raise = "sed -i 's/\"format\":1/\"format\":2/' \"$workspace/job.json\"";
    let text = format!("read -r line\n{workspace}\n{}\n{raise}\n{run}", tries.say());
    replace(&program, &text);
    assert!(exited(&agent.script("true").outcome().await, 0));
    let waits = agent.script("echo once >> ../../../../once").id("waits").start().await;
    let behind = agent.script("true").id("behind").start().await;
    // More often than a supervisor may fail.
    for _ in 0..5 {
        tries.is_said().await;
    }
    let now = agent.client.get(&waits.id).await.unwrap();
    assert!(matches!(now.phase, Phase::Queued | Phase::Waiting), "{:?}", now.phase);
    // The right program comes back, and the agent with it.
    std::fs::copy(BATON, program.with_extension("new")).unwrap();
    std::fs::rename(program.with_extension("new"), &program).unwrap();
    assert!(exited(&waits.outcome().await, 0));
    assert!(exited(&behind.outcome().await, 0));
    assert_eq!(lines(&agent.folder.join("once")), ["once"]);
    agent.kill();
}
