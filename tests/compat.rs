//! Promise: what an older release left on disk is read by this one: history, logs, queue, what was interrupted,
//! identity, peers, packages, mutexes, deployments; and its database can be put back.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::path::Path;

use baton::deploy::record;
use baton::script::{Drain, OutcomeKind, ScriptId};
use baton::store::{DoneFilter, Store};
use jiff::Timestamp;
use support::old::{OLD, Release, assert_history, json_lines, newest, releases};
use support::{Started, TestAgent, World, exited, finish, lines};

fn started(agent: &TestAgent, id: &str) -> Started {
    Started { client: agent.client.clone(), id: id.parse().unwrap() }
}

/// The output of a command that succeeds, with the folders of the copy.
fn baton(world: &World, words: &[&str]) -> String {
    let (code, out, error) = finish(world.baton_at(OLD).args(words));
    assert_eq!(code, 0, "{words:?}: {error}");
    out
}

#[tokio::test]
async fn an_agent_of_this_release_goes_on_where_one_of_an_older_release_was_killed() {
    for release in releases() {
        let world = World::new();
        release.unpack(&world);
        let agent = world.agent_at(OLD, &["--listen", "none"]).await;

        // What had not started runs in its order; who asked for a restart of the machine goes first.
        let waiting = ["restarts", "queued-1", "queued-2", "queued-3", "queued-shared"];
        for id in waiting {
            assert!(exited(&started(&agent, id).outcome().await, 0), "{id}");
        }
        let expected: Vec<_> = waiting.iter().map(|id| format!("{id} 1")).collect();
        let order = lines(&world.path(OLD).join("state/order"));
        assert_eq!(
            order,
            [&["restarts 1".to_owned(), "restarts 2".to_owned()], &expected[1..]].concat()
        );
        let output = started(&agent, "queued-shared").output().await;
        assert!(output.starts_with(b"project = \"web\""), "its file came along");
        // What ran when the machine went down is lost, and nothing else is.
        let interrupted = started(&agent, "interrupted");
        let reason = "the machine was restarted".to_owned();
        assert_eq!(interrupted.outcome().await.kind, OutcomeKind::Lost { reason });
        assert_eq!(interrupted.output().await, b"before\n");

        let listed = baton(&world, &["list", "--phase", "done", "--limit", "1000", "--json"]);
        assert_history(&release.history(), &json_lines(&listed));
        for entry in std::fs::read_dir(release.folder.join("logs")).unwrap() {
            let path = entry.unwrap().path();
            let id = path.file_name().unwrap().to_str().unwrap();
            let logs = world.baton_at(OLD).args(["logs", id]).output().unwrap();
            assert_eq!(logs.stdout, std::fs::read(&path).unwrap(), "{id}");
        }
        check_what_was_given_back(&world, &agent).await;
        // Its requests are known: the same id stands for the same one.
        let other = agent.script("another one").id("exited-0").try_start().await;
        assert_eq!(support::reason(&other.err().unwrap()), "SCRIPT_ID_CONFLICT");
        assert!(exited(&agent.script("true").outcome().await, 0));
    }
}

async fn check_what_was_given_back(world: &World, agent: &TestAgent) {
    let script = started(agent, "exited-0");
    let outcome = script.outcome().await;
    let outputs: Vec<_> = outcome.values.outputs.iter().collect();
    assert_eq!(format!("{outputs:?}"), r#"[("found", "42"), ("version", "1.2")]"#);
    assert_eq!(script.is_done().await.progress.unwrap().percent, 100);
    let output = script.output().await;
    assert!(output.windows(9).any(|part| part == b"to stderr"));
    let into = world.path("artifacts");
    let to = into.to_str().unwrap();
    baton(world, &["artifacts", "get", "exited-0", "report.txt", "--output", to]);
    assert_eq!(lines(&into.join("report.txt")), ["report"]);
    let straggler = started(agent, "straggler").outcome().await;
    assert_eq!(straggler.stragglers[0].command, "sleep 1000");
}

#[tokio::test]
async fn identity_peers_packages_mutexes_and_deployments_of_an_older_release_are_used() {
    for release in releases() {
        let world = World::new();
        release.unpack(&world);
        let identity: serde_json::Value =
            serde_json::from_str(&baton(&world, &["agent", "init", "--json"])).unwrap();
        assert_eq!(identity["fingerprint"], release.text("identity").trim());
        let peers = json_lines(&baton(&world, &["agent", "peers", "--json"]));
        let names: Vec<_> = peers.iter().map(|peer| peer["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["ci", "until-2099"]);
        check_mutexes(&world);

        let state = world.path(OLD).join("state");
        let done = record::done_targets(&state, "succeeded").unwrap();
        assert_eq!(done.into_keys().collect::<Vec<_>>(), ["web-1"]);
        assert!(record::done_targets(&state, "failed").unwrap().is_empty());

        let agent = world.agent_at(OLD, &["--listen", "none"]).await;
        let kept = json_lines(&baton(&world, &["package", "list", "--json"]));
        let mut versions: Vec<_> =
            kept.iter().map(|kept| kept["version"].as_str().unwrap()).collect();
        versions.sort_unstable();
        assert_eq!(versions, ["1.0", "2.0"]);
        // The one that is installed is whole; the other one is installed from what is kept.
        let text = "baton package install app 2.0 && baton package install app 1.0 && \
            $BATON_PACKAGES/installed/app/current/latest";
        let install = agent.script(text).start().await;
        let output = String::from_utf8(install.output().await).unwrap();
        assert!(exited(&install.outcome().await, 0), "{output}");
        assert!(output.ends_with("app 1\n"), "{output}");
    }
}

fn check_mutexes(world: &World) {
    // It was done: `false` is not run.
    baton(world, &["mutex", "once", "migrate/web", "--", "false"]);
    // Its holder was killed; the number that is given now is greater.
    let old = std::fs::read_dir(world.mutexes().join("killed/line")).unwrap().next().unwrap();
    let old = old.unwrap().file_name().into_string().unwrap();
    let text = "echo $BATON_MUTEX_FENCE";
    let now = baton(world, &["mutex", "run", "--no-wait", "killed", "--", "sh", "-c", text]);
    assert!(now.trim().parse::<u64>().unwrap() > old.trim_end_matches(".x").parse().unwrap());
    let last = baton::mutex::breaking::last_break(&world.mutexes(), &"broken".parse().unwrap());
    assert_eq!(last.unwrap().reason, "it hangs");
}

/// The schema of a database, without how it is laid out.
fn schema(database: &Path) -> Vec<String> {
    let connection = rusqlite::Connection::open(database).unwrap();
    let text = "SELECT coalesce(sql, name) FROM sqlite_master ORDER BY type, name";
    let mut statement = connection.prepare(text).unwrap();
    let all = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    all.map(|sql| sql.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

async fn done_ids(store: &Store) -> Vec<String> {
    let page = store.done_page(DoneFilter::default(), None, 1000).await.unwrap();
    page.records.iter().map(|record| record.id.to_string()).collect()
}

#[tokio::test]
async fn every_older_version_of_the_database_is_migrated_to_the_schema_of_a_new_one() {
    let root = tempfile::tempdir().unwrap();
    let new = root.path().join("new.db");
    Store::open(&new).unwrap().close().await;
    for release in releases() {
        let databases = release.databases();
        assert!(!databases.is_empty());
        for (version, sql) in databases {
            let path = root.path().join(format!("{version}.db"));
            Release::make_database(&sql, &path);
            let store = Store::open(&path).unwrap();
            let history = release.history();
            assert_eq!(done_ids(&store).await, support::old::ids(&history), "version {version}");
            let living = store.living().await.unwrap();
            assert_eq!(living.len(), 6, "version {version}");
            let id: ScriptId = "exited-3".parse().unwrap();
            let record = store.get(&id).await.unwrap().unwrap();
            assert_eq!(record.labels, [("project".to_owned(), "web".to_owned())].into());
            store.close().await;
            assert_eq!(schema(&path), schema(&new), "version {version}");
        }
    }
}

#[tokio::test]
async fn the_last_two_copies_from_before_a_migration_are_kept_and_one_can_be_put_back() {
    let release = newest();
    let (version, sql) = release.databases().pop().unwrap();
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("agent.db");
    Release::make_database(&sql, &path);
    for older in [1, 2] {
        support::write(&root.path().join(format!("agent.db.before-v{older}")), "no database");
    }
    let store = Store::open(&path).unwrap();
    let before = done_ids(&store).await;
    // Something happens that the older program will not know.
    let drain = Drain { since: Timestamp::now(), by: "ci".to_owned(), reason: String::new() };
    store.set_drain(Some(drain.clone())).await.unwrap();
    let forgotten: ScriptId = "exited-3".parse().unwrap();
    let seq = store.get(&forgotten).await.unwrap().unwrap().seq;
    assert!(store.forget(Some(&forgotten), seq).await.unwrap());
    store.close().await;

    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let now = baton::store::known_version();
    let copy = format!("agent.db.before-v{now}");
    assert_eq!(names(root.path()), ["agent.db", "agent.db.before-v2", &copy]);

    let put_back = Store::put_back(&path).unwrap();
    assert_eq!(put_back.before, now);
    let connection = rusqlite::Connection::open(&path).unwrap();
    let found: i64 = connection
        .query_row("SELECT user_version FROM pragma_user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(u64::try_from(found).unwrap(), version);
    drop(connection);
    // What came since is beside it, and the copy is there for another try.
    let expected = ["agent.db", "agent.db.before-v2", &copy, "agent.db.replaced"];
    assert_eq!(names(root.path()), expected);
    let replaced = Store::open(&root.path().join("agent.db.replaced")).unwrap();
    assert_eq!(replaced.drain().await.unwrap(), Some(drain));
    replaced.close().await;
    let store = Store::open(&path).unwrap();
    assert_eq!((done_ids(&store).await, store.drain().await.unwrap()), (before, None));
    store.close().await;
}

#[tokio::test]
async fn without_a_copy_that_can_be_read_nothing_is_put_back() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("agent.db");
    Store::open(&path).unwrap().close().await;
    support::write(&root.path().join("agent.db.before-v9"), "no database");
    let before = support::old::content(root.path());
    let error = Store::put_back(&path).unwrap_err();
    assert!(baton::text::chain(&error).contains("there is no copy"), "{error:?}");
    support::old::assert_unchanged(root.path(), &before);
}
