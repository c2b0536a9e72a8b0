//! Promise: each peer has a role, what it may not do is refused with the role that it lacks, and a change of a role
//! takes effect at once, also on connections that are open.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails here")]

mod support;

use std::collections::BTreeMap;

use baton::client::{Client, ClientError, Heard, connect};
use baton::script::Outcome;
use baton::trust::{Fingerprint, Identity};
use support::{Draft, Started, TestAgent, World, finish, reason, soon, spec};
use tonic::Code;

struct Remote {
    world: World,
    agent: TestAgent,
    address: String,
    fingerprint: Fingerprint,
    me: Identity,
}

impl Remote {
    /// An agent and a peer that it trusts in a role.
    async fn new(role: &str) -> Self {
        let world = World::new();
        let me = Identity::load_or_create(&world.path("me/config"), "client").unwrap();
        let (_, init, _) = finish(world.baton_at("a").args(["agent", "init", "--json"]));
        let init: serde_json::Value = serde_json::from_str(&init).unwrap();
        let fingerprint = init["fingerprint"].as_str().unwrap().parse().unwrap();
        trust(&world, &me, role);
        let agent = world.agent_at("a", &["--listen", "127.0.0.1:0"]).await;
        let address = std::fs::read_to_string(agent.folder.join("run/agent.address")).unwrap();
        Self { world, agent, address: address.trim().to_owned(), fingerprint, me }
    }

    async fn connect(&self) -> Client {
        let connecting = connect::tcp(&self.address, self.fingerprint, &self.me);
        Client::new(soon("a connection", connecting).await.unwrap())
    }

    fn trust(&self, role: &str) {
        trust(&self.world, &self.me, role);
    }

    /// The command of the peer.
    fn command(&self, words: &[&str]) -> (i32, String, String) {
        let fingerprint = self.fingerprint.to_string();
        let mut command = self.world.baton_at("me");
        let target = ["--target", &self.address, "--fingerprint", &fingerprint];
        finish(command.args(words).args(target))
    }
}

fn trust(world: &World, me: &Identity, role: &str) {
    let mut command = world.baton_at("a");
    command.args(["agent", "trust", &me.fingerprint().to_string(), "--name", "ci"]);
    if !role.is_empty() {
        command.args(["--role", role]);
    }
    let (code, _, error) = finish(&mut command);
    assert_eq!(code, 0, "{error}");
}

fn draft(client: &Client, text: &str) -> Draft {
    Draft::of(client.clone(), spec(text))
}

/// What a refusal says of roles: the one that is needed, and the one that the peer has.
fn roles(error: &ClientError) -> (String, String) {
    let ClientError::Refused { reason, code, metadata, .. } = error else {
        panic!("not refused: {error}");
    };
    assert_eq!((reason.as_str(), *code), ("ROLE_TOO_LOW", Code::PermissionDenied), "{error}");
    (metadata["needed"].clone(), metadata["role"].clone())
}

fn pair(needed: &str, role: &str) -> (String, String) {
    (needed.to_owned(), role.to_owned())
}

/// Calls until the agent has seen its changed file of peers; each try is an event of its own.
async fn until_refused(client: &Client) -> ClientError {
    let tries = async {
        loop {
            match draft(client, "true").try_start().await {
                Ok(_) => {}
                Err(error) if error.is_passing() => {}
                Err(error) => break error,
            }
        }
    };
    Box::pin(soon("the role to be taken back", tries)).await
}

#[tokio::test]
async fn an_observer_reads_and_changes_nothing() {
    let remote = Remote::new("observer").await;
    let client = remote.connect().await;
    let script = remote.agent.script("echo hello").id("one").start().await;
    assert!(support::exited(&script.outcome().await, 0));

    // All that reads is answered.
    assert_eq!(client.info().await.unwrap().version, env!("CARGO_PKG_VERSION"));
    assert_eq!(client.get(&script.id).await.unwrap().script_id, script.id);
    let seen = Started { client: client.clone(), id: script.id.clone() };
    assert_eq!(seen.output().await, b"hello\n");
    assert_eq!(client.list(&[], &BTreeMap::new(), 10).await.unwrap().len(), 1);

    // What changes something is not, and nothing is changed.
    let needs = pair("operator", "observer");
    let touched = remote.world.path("touched");
    let touch = format!("touch {}", touched.display());
    assert_eq!(roles(&draft(&client, &touch).try_start().await.err().unwrap()), needs);
    let mut run = client.run(spec(&touch));
    let refused = async {
        loop {
            match run.next().await {
                Ok(Some(Heard::Away(_))) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        }
    };
    assert_eq!(roles(&soon("the refusal", refused).await), needs);
    assert_eq!(roles(&client.cancel(&script.id, String::new()).await.unwrap_err()), needs);
    assert_eq!(roles(&client.forget(&script.id).await.unwrap_err()), needs);
    assert_eq!(roles(&client.drain(String::new()).await.unwrap_err()), needs);
    assert_eq!(remote.agent.client.list(&[], &BTreeMap::new(), 10).await.unwrap().len(), 1);
    assert!(remote.agent.client.info().await.unwrap().status.unwrap().draining.is_none());
    assert!(!touched.exists());
}

#[tokio::test]
async fn who_is_trusted_without_a_word_is_an_operator_and_abandons_nothing() {
    let remote = Remote::new("").await;
    let client = remote.connect().await;
    let gate = remote.world.gate();
    let script = draft(&client, &gate.wait()).start().await;
    script.is_running().await;
    let error = client.abandon(&script.id, "stuck".to_owned()).await.unwrap_err();
    assert_eq!(roles(&error), pair("admin", "operator"));
    assert!(script.client.get(&script.id).await.unwrap().phase == baton::script::Phase::Running);
    // A cancel is its right.
    client.cancel(&script.id, "enough".to_owned()).await.unwrap();
    let Outcome { kind, .. } = script.outcome().await;
    assert_eq!(kind.to_string(), "cancelled: enough");
    drop(gate);
}

#[tokio::test]
async fn a_role_is_given_and_taken_at_once_also_on_open_connections() {
    let remote = Remote::new("observer").await;
    let client = remote.connect().await;
    let error = draft(&client, "true").try_start().await.err().unwrap();
    assert_eq!(roles(&error), pair("operator", "observer"));

    // Given: the same connection may call more.
    remote.trust("admin");
    let tries = async {
        loop {
            match draft(&client, "true").try_start().await {
                Ok(script) => break script,
                Err(error) => assert_eq!(reason(&error), "ROLE_TOO_LOW"),
            }
        }
    };
    let script = Box::pin(soon("the role to be given", tries)).await;
    assert!(support::exited(&script.outcome().await, 0));
    let gate = remote.world.gate();
    let script = draft(&client, &format!("echo on; {}", gate.wait())).start().await;
    script.is_running().await;
    client.abandon(&script.id, "an admin may".to_owned()).await.unwrap();
    script.outcome().await;

    // Taken: the next call is refused, and a stream that began under the greater role has ended.
    let gate = remote.world.gate();
    let mut run = client.run(spec(&format!("echo on; {}", gate.wait())));
    let output =
        async { while !matches!(run.next().await.unwrap(), Some(Heard::Output { .. })) {} };
    soon("output", output).await;
    remote.trust("observer");
    let error = Box::pin(until_refused(&client)).await;
    assert_eq!(roles(&error), pair("operator", "observer"));
    let interrupted = async { while !matches!(run.next().await.unwrap(), Some(Heard::Away(_))) {} };
    soon("the end of the stream", interrupted).await;
    // It is followed on by what an observer may, to its end.
    gate.open();
    let rest = async { while run.next().await.unwrap().is_some() {} };
    soon("the end of the script", rest).await;
}

#[tokio::test]
async fn people_see_roles_and_are_told_what_to_do() {
    let remote = Remote::new("observer").await;
    let own = remote.me.fingerprint();
    let (code, out, error) = remote.command(&["run", "-c", "true"]);
    assert_eq!((code, out.as_str()), (77, ""), "{error}");
    assert!(error.contains("needs the role operator, and ci has the role observer"), "{error}");
    let hint = format!("hint: on the target: baton agent trust {own} --name ci --role operator");
    assert!(error.contains(&hint), "{error}");
    assert_eq!(remote.command(&["list"]).0, 0);
    assert!(remote.command(&["agent", "info"]).1.contains("you are: observer"));

    let peers = |words: &[&str]| finish(remote.world.baton_at("a").args(words)).1;
    assert!(peers(&["agent", "peers"]).contains("observer"));
    let json: serde_json::Value =
        serde_json::from_str(&peers(&["agent", "peers", "--json"])).unwrap();
    assert_eq!(json["role"], "observer");
    let (code, _, error) = finish(remote.world.baton_at("a").args([
        "agent",
        "trust",
        &own.to_string(),
        "--name",
        "ci",
        "--role",
        "root",
    ]));
    assert_eq!(code, 2);
    assert!(error.contains("observer, operator or admin"), "{error}");
    // Callers of this machine are admins.
    let (code, out, error) = finish(remote.world.baton_at("a").args(["run", "-c", "echo in"]));
    assert_eq!((code, out.as_str()), (0, "in\n"), "{error}");
}
