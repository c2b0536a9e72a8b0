//! Promise: when a script has ended its secrets are gone from all that the agent keeps, and the same request is known
//! again all the same.
//!
//! Each test looks as an attacker would: at each byte of each file below the folders of agent, clients and mutexes.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use baton::script::OutcomeKind;
use baton::wire::v1;
use prost::Message as _;
use support::secret::{Secret, are_gone};
use support::{Draft, Started, TestAgent, World, exited, finish, lines, reason, soon, write};

/// How the text of a script says its secret in all the ways that are masked.
const SAYS: &str =
    "echo \"it is $SECRET\"; echo \"$SECRET\" >&2; echo \"$SECRET\" > $BATON_PROGRESS
baton progress 30 \"$(printf 'x%.0s' {1..132})$SECRET\"; baton progress 40 \"with $SECRET\"
tail -f /dev/null \"/$SECRET\" 2> /dev/null &";

fn script(agent: &TestAgent, secret: &Secret, text: &str) -> Draft {
    agent.script(format!("{SAYS}\n{text}")).with(|spec| secret.give(spec))
}

/// What a person is shown of a script.
fn shown(world: &World, agent: &TestAgent, id: &str) -> String {
    let commands: [&[&str]; 6] = [
        &["show", id],
        &["show", "--json", id],
        &["list", "--json"],
        &["logs", id],
        &["logs", "--json", id],
        &["queue", "--json"],
    ];
    let mut all = String::new();
    for words in commands {
        let (code, out, told) = finish(world.baton_at(&agent.name).args(words));
        assert_eq!(code, 0, "{words:?}: {told}");
        all += &(out + &told);
    }
    all
}

/// It is kept as long as its script lives, and shown never.
fn assert_is_kept(world: &World, agent: &TestAgent, secret: &Secret, id: &str) {
    let found = secret.found(&world.path(""));
    assert!(!found.is_empty());
    for place in found {
        let name = place.file_name().unwrap().to_string_lossy().into_owned();
        assert!(["job.json", "agent.db", "agent.db-wal"].contains(&&*name), "{}", place.display());
    }
    assert!(!secret.is_in(shown(world, agent, id).as_bytes()));
}

async fn assert_is_gone(world: &World, agent: &TestAgent, secret: &Secret, id: &str) {
    secret.is_gone(world, agent).await;
    assert!(!secret.is_in(shown(world, agent, id).as_bytes()));
}

#[tokio::test]
async fn however_a_script_ends_its_secrets_are_gone_from_the_disk() {
    let world = World::new();
    let agent = world.agent().await;
    // What lives beside them keeps its own.
    let (stays, gate) = (Secret::new(), world.gate());
    let staying = script(&agent, &stays, &gate.wait()).observer().id("stays").start().await;
    staying.is_running().await;
    for (text, ends) in [
        ("true", "exited"),
        ("exit 3", "exited"),
        ("kill -9 $$", "signalled"),
        ("sleep 600 & disown; exit 0", "exited"),
        ("exec sleep 600", "cancelled"),
        ("exec sleep 600", "timed_out"),
        ("exec sleep 600", "lost"),
    ] {
        let (secret, id) = (Secret::new(), format!("{ends}-{}", text.len()));
        let open = world.gate();
        let draft = script(&agent, &secret, &format!("echo on; {}; {text}", open.wait())).id(&id);
        let limit = (ends == "timed_out").then_some(Duration::from_secs(2));
        let running = draft.with(|spec| spec.run_time_limit = limit).start().await;
        running.is_running().await;
        if limit.is_none() {
            assert_is_kept(&world, &agent, &secret, &id);
        }
        open.open();
        match ends {
            "cancelled" => support::cancel(&running, "wrong version").await,
            "lost" => support::end_supervisor(&agent.folder.join("state/scripts").join(&id)),
            _ => {}
        }
        let outcome = running.outcome().await;
        assert_eq!(serde_json::to_value(&outcome.kind).unwrap()["kind"], ends, "{outcome:?}");
        assert_is_gone(&world, &agent, &secret, &id).await;
        assert_is_kept(&world, &agent, &stays, "stays");
    }
    gate.open();
    assert!(exited(&staying.outcome().await, 0));
    assert_is_gone(&world, &agent, &stays, "stays").await;
}

#[tokio::test]
async fn what_never_ran_leaves_no_secret_either() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    agent.script(gate.wait()).start().await.is_running().await;
    // One stands in the machine's line, the others are queued.
    for (id, ends) in [("line", "cancelled"), ("queue", "cancelled"), ("limit", "queue_timed_out")]
    {
        let secret = Secret::new();
        let first = agent.script("true").start().await;
        if id == "line" {
            support::cancel(&first, "not this one").await;
            first.is_done().await;
        }
        let limit = (id == "limit").then_some(Duration::from_secs(2));
        let draft = script(&agent, &secret, "true").id(id);
        let waits = draft.with(|spec| spec.queue_time_limit = limit).start().await;
        waits.is_waiting().await;
        if limit.is_none() {
            assert_is_kept(&world, &agent, &secret, id);
            support::cancel(&waits, "wrong version").await;
        }
        let outcome = waits.outcome().await;
        assert_eq!(serde_json::to_value(&outcome.kind).unwrap()["kind"], ends, "{outcome:?}");
        assert_is_gone(&world, &agent, &secret, id).await;
    }
    let (secret, draft) = (Secret::new(), agent.script("true").id("never"));
    let draft =
        draft.observer().with(|spec| spec.what = baton::spec::What::Program("/none".into()));
    let outcome = draft.with(|spec| secret.give(spec)).outcome().await;
    assert!(matches!(outcome.kind, OutcomeKind::NotStarted { .. }), "{outcome:?}");
    assert_is_gone(&world, &agent, &secret, "never").await;
}

#[tokio::test]
async fn the_same_request_is_known_again_when_its_secrets_are_gone() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let (secret, log) = (Secret::new(), world.path("log"));
    let text = format!("echo ran >> {}", log.display());
    let spec = script(&agent, &secret, &text).id("deploy-1").spec;
    agent.client.start(spec.clone()).await.unwrap();
    let done = Started { client: agent.client.clone(), id: spec.script_id.clone() };
    done.is_done().await;
    secret.is_gone(&world, &agent).await;
    for round in 0..2 {
        assert!(agent.client.start(spec.clone()).await.unwrap().phase.is_done());
        let others: [(&str, Draft); 4] = [
            ("environment", script(&agent, &Secret::new(), &text)),
            (
                "environment",
                Draft::of(agent.client.clone(), spec.clone()).with(|spec| {
                    // As it stands on the disk now.
                    spec.environment.insert("SECRET".to_owned(), String::new());
                }),
            ),
            ("body", script(&agent, &secret, "true")),
            (
                "sensitive",
                Draft::of(agent.client.clone(), spec.clone()).with(|spec| {
                    spec.sensitive.clear();
                }),
            ),
        ];
        for (differs, other) in others {
            let error = other.id("deploy-1").try_start().await.err().unwrap();
            assert_eq!(reason(&error), "SCRIPT_ID_CONFLICT");
            assert!(error.to_string().contains(differs), "{round} {error}");
        }
        secret.is_gone(&world, &agent).await;
        agent.kill();
        agent = world.agent_at("a", &["--listen", "none"]).await;
    }
    assert_eq!(lines(&log), ["ran"]);
    // Whose key is lost can't tell: nothing runs twice, and the agent is none the worse.
    agent.kill();
    let key = agent.folder.join("state/secrets.key");
    assert_eq!(std::fs::read(&key).unwrap().len(), 32);
    std::fs::remove_file(&key).unwrap();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let error = agent.client.start(spec).await.unwrap_err();
    assert_eq!(reason(&error), "SCRIPT_ID_CONFLICT");
    assert!(exited(&script(&agent, &secret, "true").outcome().await, 0));
    assert_eq!(lines(&log), ["ran"]);
}

#[tokio::test]
async fn an_agent_that_dies_in_between_leaves_the_erasing_to_the_next_one() {
    for point in ["before end", "after end"] {
        let world = World::new();
        let secret = Secret::new();
        let mut agent = world.agent_to_crash("a", point).await;
        let spec = script(&agent, &secret, "exit 3").id("s").spec;
        agent.client.start(spec.clone()).await.unwrap();
        agent.ends().await;
        // Its log is not emptied.
        assert!(!secret.found(&world.path("a")).is_empty(), "{point}");
        let next = world.agent_at("a", &["--listen", "none"]).await;
        let script = Started { client: next.client.clone(), id: spec.script_id.clone() };
        assert!(exited(&script.outcome().await, 3), "{point}");
        assert_is_gone(&world, &next, &secret, "s").await;
        assert!(next.client.start(spec).await.unwrap().phase.is_done());
    }
}

#[tokio::test]
async fn a_script_that_waits_or_runs_keeps_its_secrets_over_restarts_of_the_agent() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let (runs, waits, gate) = (Secret::new(), Secret::new(), world.gate());
    let text = format!("{}; test ${{#SECRET}} -gt 30", gate.wait());
    let running = script(&agent, &runs, &text).id("runs").start().await;
    running.is_running().await;
    let waiting = script(&agent, &waits, "test ${#SECRET} -gt 30").id("waits").start().await;
    for _ in 0..2 {
        agent.kill();
        std::mem::forget(std::mem::replace(
            &mut agent,
            world.agent_at("a", &["--listen", "none"]).await,
        ));
        assert_is_kept(&world, &agent, &runs, "runs");
        assert_is_kept(&world, &agent, &waits, "waits");
    }
    gate.open();
    for (id, secret) in [(running.id, runs), (waiting.id, waits)] {
        let script = Started { client: agent.client.clone(), id };
        let outcome = script.outcome().await;
        assert!(exited(&outcome, 0), "{outcome:?}");
        assert_is_gone(&world, &agent, &secret, script.id.as_str()).await;
    }
}

#[tokio::test]
async fn many_of_all_sizes_that_come_change_and_go_leave_nothing() {
    let world = World::new();
    let agent = world.agent().await;
    let secrets: Vec<Secret> = (0..120).map(|_| Secret::new()).collect();
    let drafts = secrets.iter().enumerate().map(|(i, secret)| {
        // Rows with and without secrets, of one page and of several.
        let draft = agent.script("true").observer().id(&format!("s{i}"));
        let draft = draft.with(|spec| {
            spec.environment.insert("PLAIN".to_owned(), "x".repeat(i * i % 9000));
        });
        if i % 3 == 0 { draft } else { draft.with(|spec| secret.give(spec)) }
    });
    let ends = drafts.map(|draft| async {
        let script = draft.start().await;
        script.is_done().await;
        if script.id.as_str().ends_with('7') {
            agent.client.forget(&script.id).await.unwrap();
        }
    });
    soon("all of them", futures_util::future::join_all(ends)).await;
    are_gone(&secrets.iter().collect::<Vec<_>>(), &world, &agent).await;
}

#[tokio::test]
async fn who_reads_the_database_with_a_tool_holds_up_only_the_erasing() {
    let world = World::new();
    let agent = world.agent().await;
    let secret = Secret::new();
    let (running, gate) = (script(&agent, &secret, "true").observer(), world.gate());
    let blocks = agent.script(gate.wait()).observer().start().await;
    blocks.is_running().await;
    let database = agent.folder.join("state/agent.db");
    let reader = rusqlite::Connection::open(&database).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM scripts").unwrap();
    assert!(exited(&running.id("s").outcome().await, 0));
    // Others go on meanwhile.
    gate.open();
    assert!(exited(&blocks.outcome().await, 0));
    assert!(exited(&agent.script("true").outcome().await, 0));
    assert!(!secret.found(&world.path("")).is_empty());
    reader.execute_batch("COMMIT").unwrap();
    drop(reader);
    assert_is_gone(&world, &agent, &secret, "s").await;
}

#[test]
fn a_command_without_an_agent_leaves_no_secret() {
    let world = World::new();
    let secret = Secret::new();
    let mut command = world.baton_at("c");
    command.args(["run", "--secret", "SECRET", "-c", &format!("{SAYS}\nexit 4")]);
    let (code, out, told) = finish(command.env("SECRET", &secret.value));
    assert_eq!(code, 4, "{told}");
    assert!(out.contains("it is *****") && !secret.is_in((out + &told).as_bytes()));
    assert_eq!(secret.found(&world.path("")), Vec::<PathBuf>::new());
}

/// A request as an older baton kept it.
fn kept_before(id: &str, secret: &Secret, text: &str) -> Vec<u8> {
    let mut spec = support::spec(text);
    spec.script_id = id.parse().unwrap();
    secret.give(&mut spec);
    v1::ScriptSpec::from(spec).encode_to_vec()
}

#[tokio::test]
async fn what_an_older_baton_kept_is_erased_at_the_first_start() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let ids: Vec<String> = (0..40).map(|i| format!("done{i}")).collect();
    for id in &ids {
        agent.script("exit 2").observer().id(id).outcome().await;
    }
    agent.script("exit 2").observer().id("damaged").outcome().await;
    let gate = world.gate();
    agent.script(gate.wait()).start().await.is_running().await;
    let queued = agent.script("true").id("queued").start().await;
    queued.is_waiting().await;
    agent.kill();
    // As if an older baton had done all that: it erases nothing and overwrites nothing.
    let state = agent.folder.join("state");
    let database = state.join("agent.db");
    let (done, lives, gone) = (Secret::new(), Secret::new(), Secret::new());
    let old = rusqlite::Connection::open(&database).unwrap();
    old.pragma_update(None, "secure_delete", "OFF").unwrap();
    let put = |id: &str, request: Vec<u8>| {
        let sql = "UPDATE scripts SET request = ?2 WHERE id = ?1";
        assert_eq!(old.execute(sql, (id, request)).unwrap(), 1);
    };
    for id in &ids {
        // What it leaves on a free page is still there.
        put(id, kept_before(id, &gone, &format!("exit 2 # {}", "x".repeat(5000))));
        put(id, kept_before(id, &done, "exit 2"));
    }
    put("damaged", [&[0xff, 0xff][..], done.value.as_bytes()].concat());
    put("queued", kept_before("queued", &lives, "test ${#SECRET} -gt 30"));
    old.execute_batch("DELETE FROM about WHERE key = 'erased'").unwrap();
    old.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    // Of before a migration, of before a roll-back, and of a copy that a kill left.
    for copy in ["agent.db.before-v4", "agent.db.replaced"] {
        std::fs::copy(&database, state.join(copy)).unwrap();
    }
    drop(old);
    let job = state.join("scripts/done3/job.json");
    let text = std::fs::read_to_string(&job).unwrap();
    let text = text.replace("\"sensitive\":[]", "\"sensitive\":[\"SECRET\"]");
    let text = text
        .replace("\"environment\":{", &format!("\"environment\":{{\"SECRET\":{:?},", done.value));
    write(&job, &text);
    assert!(done.found(&state).contains(&job));
    assert!(gone.found(&state).len() >= 3, "{:?}", gone.found(&state));
    let next = world.agent_at("a", &["--listen", "none"]).await;
    are_gone(&[&done, &gone], &world, &next).await;
    // Whoever goes back to the older baton has that of a living one.
    for name in ["agent.db", "agent.db.before-v4", "agent.db.replaced"] {
        assert!(lives.found(&state).contains(&state.join(name)), "{name}");
    }
    for id in &ids {
        let mut spec = support::spec("exit 2");
        spec.script_id = id.parse().unwrap();
        let same = Draft::of(next.client.clone(), spec).with(|spec| done.give(spec));
        assert!(next.client.start(same.spec).await.unwrap().phase.is_done());
    }
    gate.open();
    let queued = Started { client: next.client.clone(), id: queued.id };
    let outcome = queued.outcome().await;
    assert!(exited(&outcome, 0), "{outcome:?}");
    assert_is_gone(&world, &next, &lives, "queued").await;
}
