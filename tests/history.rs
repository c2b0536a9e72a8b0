//! Promise: history answers what was asked: by time, outcome and label, a page at a time, also while
//! scripts come and go and with rows that are damaged.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use baton::client::{Client, connect};
use baton::script::{OutcomeKind, Phase};
use baton::wire::{to_timestamp, v1};
use support::{Draft, TestAgent, World, finish, reason};

/// The ids that `baton list` prints, in its order.
fn listed(world: &World, agent: &TestAgent, arguments: &[&str]) -> String {
    let mut command = world.baton_at(&agent.name);
    let (code, out, error) = finish(command.args(["list", "--json"]).args(arguments));
    assert_eq!(code, 0, "{error}");
    let id = |line: &str| {
        let script: serde_json::Value = serde_json::from_str(line).unwrap();
        script["script_id"].as_str().unwrap().to_owned()
    };
    out.lines().map(id).collect::<Vec<_>>().join(" ")
}

/// A script of a project.
fn draft(agent: &TestAgent, id: &str, project: &str, text: &str) -> Draft {
    agent.script(text).id(id).with(|spec| {
        spec.labels.insert("project".to_owned(), project.to_owned());
    })
}

fn request() -> v1::ListRequest {
    v1::ListRequest::default()
}

#[tokio::test]
async fn history_is_asked_by_time_outcome_and_label() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    draft(&agent, "web-ok", "web", "true").outcome().await;
    draft(&agent, "web-bad", "web", "exit 3").outcome().await;
    draft(&agent, "db-bad", "db", "kill -9 $$").outcome().await;
    let runs = draft(&agent, "runs", "web", &gate.wait()).start().await;
    runs.is_running().await;
    let waits = draft(&agent, "cancelled", "web", "true").start().await;
    support::cancel(&waits, "enough").await;
    waits.is_done().await;
    let list = |arguments: &[&str]| listed(&world, &agent, arguments);
    assert_eq!(list(&[]), "runs cancelled db-bad web-bad web-ok");
    let week = ["--since", "7d", "--outcome", "failed", "--label", "project=web"];
    assert_eq!(list(&week), "web-bad");
    assert_eq!(list(&["--outcome", "failed"]), "db-bad web-bad");
    assert_eq!(list(&["--outcome", "succeeded", "--outcome", "cancelled"]), "cancelled web-ok");
    assert_eq!(list(&["--outcome", "signalled"]), "db-bad");
    assert_eq!(list(&["--outcome", "exited", "--limit", "1"]), "web-bad");
    assert_eq!(list(&["--until", "7d"]), "");
    assert_eq!(list(&["--newest-first"]), "cancelled runs db-bad web-bad web-ok");
    assert_eq!(list(&["--newest-first", "--label", "project=db"]), "db-bad");
    // What was there when the second one ran: what had ended before and what came later was not.
    let bad = agent.client.get(&"web-bad".parse().unwrap()).await.unwrap();
    let (start, end) = (bad.started_at.unwrap().to_string(), bad.ended_at.unwrap().to_string());
    assert_eq!(list(&["--since", &start, "--until", &end]), "web-bad");
    assert_eq!(list(&["--since", &end]), "runs cancelled db-bad web-bad");
    gate.open();
    runs.is_done().await;
}

#[tokio::test]
async fn what_was_cut_off_is_said_and_a_wrong_question_is_refused() {
    let world = World::new();
    let agent = world.agent().await;
    for id in ["a", "b"] {
        agent.script("true").id(id).outcome().await;
    }
    let list = |arguments: &[&str]| finish(world.baton_at(&agent.name).arg("list").args(arguments));
    let (code, out, error) = list(&["--limit", "1"]);
    assert_eq!((code, out.lines().count()), (0, 2), "{out}");
    assert!(error.contains("only the first 1; --limit shows more"), "{error}");
    assert_eq!(list(&["--limit", "2"]).2, "");
    for (arguments, told) in [
        (&["--since", "yesterday"][..], "30d"),
        (&["--outcome", "bad"], "failed"),
        (&["--since", "1h", "--until", "2h"], "until must be later than since"),
    ] {
        let (code, _, error) = list(arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(told), "{arguments:?}: {error}");
    }
    let out_of_range = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
    let labels = (0..33).map(|number| (number.to_string(), String::new())).collect();
    for (request, told) in [
        (v1::ListRequest { outcomes: vec![0], ..request() }, "outcomes"),
        (v1::ListRequest { outcomes: vec![99], ..request() }, "outcomes"),
        (v1::ListRequest { outcomes: vec![1; 33], ..request() }, "outcomes"),
        (v1::ListRequest { order: 7, ..request() }, "order"),
        (v1::ListRequest { since: Some(out_of_range), ..request() }, "since"),
        (v1::ListRequest { labels, ..request() }, "labels"),
        (v1::ListRequest { page_token: "n-1".to_owned(), ..request() }, "page_token"),
    ] {
        let error = agent.client.find(request, 1).await.unwrap_err();
        assert_eq!(reason(&error), "FIELD_INVALID", "{told}");
        assert!(error.to_string().starts_with(told), "{error}");
    }
}

/// One page; its ids are added, and the token of the next one is returned.
async fn page(agent: &TestAgent, token: String, seen: &mut Vec<String>) -> String {
    let socket = agent.folder.join("run/agent.sock");
    let channel = connect::unix(&socket).await.unwrap();
    let mut scripts = v1::scripts_client::ScriptsClient::new(channel);
    let order = v1::ListOrder::NewestFirst.into();
    let request = v1::ListRequest { page_size: 2, page_token: token, order, ..request() };
    let page = scripts.list(request).await.unwrap().into_inner();
    assert!(page.scripts.len() <= 2);
    seen.extend(page.scripts.into_iter().map(|script| script.script_id));
    page.next_page_token
}

#[tokio::test]
async fn the_newest_come_first_and_each_script_once_while_scripts_come_and_go() {
    let world = World::new();
    let agent = world.agent().await;
    let gate = world.gate();
    let mut scripts = Vec::new();
    // Every other one waits at the gate; it takes no mutex, so the others run.
    for number in 0..8 {
        let text = if number % 2 == 0 { gate.wait() } else { "true".to_owned() };
        let script = agent.script(text).observer().id(&format!("s{number}")).start().await;
        if number % 2 == 0 {
            script.is_running().await;
        } else {
            script.is_done().await;
        }
        scripts.push(script);
    }
    let mut seen = Vec::new();
    let mut token = page(&agent, String::new(), &mut seen).await;
    assert_eq!(seen, ["s7", "s6"]);
    // What comes now is no part of this list; what ends now keeps its place in it.
    agent.script("true").observer().id("new").outcome().await;
    for _ in 0..4 {
        gate.open();
    }
    for script in &scripts {
        script.is_done().await;
    }
    while !token.is_empty() {
        token = page(&agent, token, &mut seen).await;
    }
    assert_eq!(seen, ["s7", "s6", "s5", "s4", "s3", "s2", "s1", "s0"]);
}

/// Changes the database of an agent that doesn't run.
fn damage(agent: &TestAgent, statements: &str) {
    let connection = rusqlite::Connection::open(agent.folder.join("state/agent.db")).unwrap();
    connection.execute_batch(statements).unwrap();
}

async fn outcome(client: &Client, id: &str) -> OutcomeKind {
    let script = client.get(&id.parse().unwrap()).await.unwrap();
    let Phase::Done(outcome) = script.phase else { panic!("{script:?}") };
    outcome.kind
}

#[tokio::test]
async fn a_damaged_row_is_shown_as_such_and_holds_up_nothing() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    for id in ["good", "phase", "request", "labels", "id"] {
        draft(&agent, id, "web", "true").outcome().await;
    }
    let runs = draft(&agent, "runs", "web", &gate.wait()).start().await;
    runs.is_running().await;
    let waits = draft(&agent, "waits", "web", "true").start().await;
    waits.is_waiting().await;
    agent.kill();
    damage(
        &agent,
        "UPDATE scripts SET phase = '{torn' WHERE id IN ('phase', 'waits');
         UPDATE scripts SET request = x'ff' WHERE id = 'request';
         UPDATE scripts SET labels = 'torn' WHERE id = 'labels';
         UPDATE scripts SET id = '../id' WHERE id = 'id';",
    );
    let again = world.agent_at("a", &["--listen", "none"]).await;
    gate.open();
    let waits = support::Started { client: again.client.clone(), id: waits.id };
    assert!(support::exited(&waits.outcome().await, 0));
    let expected = "waits runs labels request phase good";
    assert_eq!(listed(&world, &again, &["--newest-first"]), expected);
    assert_eq!(listed(&world, &again, &["--label", "project=web"]), expected);
    let OutcomeKind::Lost { reason } = outcome(&again.client, "phase").await else {
        panic!("not lost");
    };
    assert_eq!(reason, "its row in the database is damaged");
    for id in ["good", "request", "labels"] {
        assert_eq!(outcome(&again.client, id).await, OutcomeKind::Exited { code: 0 }, "{id}");
    }
    let (_, out, _) = finish(world.baton_at("a").arg("list"));
    assert!(out.contains("request in the database is damaged"), "{out}");
    let since = Some(to_timestamp(jiff::Timestamp::UNIX_EPOCH));
    let all = again.client.find(v1::ListRequest { since, ..request() }, 100).await.unwrap();
    assert_eq!((all.0.len(), all.1), (6, false));
}
