//! Promise: over TCP both sides are pinned by fingerprint, a change of trust takes effect at once, also
//! for connections that are open, and who is not trusted is told so.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::sync::Arc;

use baton::client::{Client, ClientError, ConnectError, Heard, connect};
use baton::trust::{Fingerprint, Identity};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use support::{TestAgent, World, exited, finish, soon, spawn};
use tokio::io::AsyncReadExt as _;

/// An agent that listens on TCP too, and its address and fingerprint.
struct Remote {
    agent: TestAgent,
    address: String,
    fingerprint: Fingerprint,
}

async fn remote(world: &World) -> Remote {
    let agent = world.agent_at("a", &["--listen", "127.0.0.1:0"]).await;
    let address = std::fs::read_to_string(agent.folder.join("run/agent.address")).unwrap();
    let (_, fingerprint, _) = finish(world.baton_at("a").args(["agent", "init", "--json"]));
    let fingerprint: serde_json::Value = serde_json::from_str(&fingerprint).unwrap();
    let fingerprint = fingerprint["fingerprint"].as_str().unwrap().parse().unwrap();
    Remote { agent, address: address.trim().to_owned(), fingerprint }
}

impl Remote {
    async fn connect(&self, identity: &Identity) -> Result<Client, ConnectError> {
        let connecting = connect::tcp(&self.address, self.fingerprint, identity);
        soon("a connection", connecting).await.map(Client::new)
    }
}

fn identity(world: &World, name: &str) -> Identity {
    Identity::load_or_create(&world.path(name), "client").unwrap()
}

fn trust(world: &World, identity: &Identity, more: &[&str]) {
    let fingerprint = identity.fingerprint().to_string();
    let mut command = world.baton_at("a");
    command.args(["agent", "trust", &fingerprint, "--name", "ci"]).args(more);
    let (code, out, error) = finish(&mut command);
    assert_eq!((code, out.as_str()), (0, "ci is trusted as operator\n"), "{error}");
}

/// Connects until the agent has seen its changed file of peers. Each try is an event of its own: the
/// answer of the agent.
async fn connect_when_trusted(remote: &Remote, identity: &Identity) -> Client {
    let tries = async {
        loop {
            match remote.connect(identity).await {
                Ok(client) => break client,
                Err(ConnectError::NotTrusted { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon("the trust to take effect", tries).await
}

#[tokio::test]
async fn trust_is_given_and_taken_without_a_restart_also_for_open_connections() {
    let world = World::new();
    let remote = remote(&world).await;
    let me = identity(&world, "me");
    let error = remote.connect(&me).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotTrusted { own, .. } if own == me.fingerprint()));

    trust(&world, &me, &[]);
    let client = connect_when_trusted(&remote, &me).await;
    let gate = world.gate();
    let spec = support::spec(&format!("echo on; {}", gate.wait()));
    let id = spec.script_id.clone();
    let mut following = client.run(spec);
    let output =
        async { while !matches!(following.next().await.unwrap(), Some(Heard::Output { .. })) {} };
    soon("output", output).await;

    // The open stream ends, and nobody gets in again.
    let untrust = finish(world.baton_at("a").args(["agent", "untrust", "ci"]));
    assert_eq!(untrust.0, 0, "{untrust:?}");
    let refused = async {
        loop {
            match following.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended as if the script had"),
                Err(error) => break error,
            }
        }
    };
    let error = soon("the refusal", refused).await;
    assert!(
        matches!(error, ClientError::Connect(ConnectError::NotTrusted { .. })),
        "{error:?} {error}"
    );
    assert!(client.get(&id).await.is_err());

    // The script goes on.
    gate.open();
    let script = support::Started { client: remote.agent.client.clone(), id };
    assert!(exited(&script.outcome().await, 0));
}

#[tokio::test]
async fn trust_that_expires_ends_an_open_connection_too() {
    let world = World::new();
    let remote = remote(&world).await;
    let me = identity(&world, "me");
    trust(&world, &me, &["--expires", "10s"]);
    let client = connect_when_trusted(&remote, &me).await;
    let gate = world.gate();
    let mut following = client.run(support::spec(&gate.wait()));
    let refused = async {
        loop {
            if let Err(error) = following.next().await {
                break error;
            }
        }
    };
    let error = soon("the end of the trust", refused).await;
    assert!(matches!(error, ClientError::Connect(ConnectError::NotTrusted { .. })), "{error}");
    let (_, peers, _) = finish(world.baton_at("a").args(["agent", "peers"]));
    assert!(peers.contains("(expired)"), "{peers}");
    gate.open();
}

#[tokio::test]
async fn an_agent_with_another_certificate_is_not_spoken_with() {
    let world = World::new();
    let remote = remote(&world).await;
    let me = identity(&world, "me");
    trust(&world, &me, &[]);
    let other = identity(&world, "other").fingerprint();
    let error = connect::tcp(&remote.address, other, &me).await.err().unwrap();
    assert!(matches!(error, ConnectError::WrongAgent { .. }), "{error}");
}

/// Shows a certificate with a key that is not its own.
#[derive(Debug)]
struct Stolen(Arc<CertifiedKey>);

impl ResolvesClientCert for Stolen {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_copied_certificate_without_its_key_gets_nobody_in() {
    let world = World::new();
    let remote = remote(&world).await;
    let (me, thief) = (identity(&world, "me"), identity(&world, "thief"));
    trust(&world, &me, &[]);
    connect_when_trusted(&remote, &me).await;
    // The certificate is public; the thief signs with a key of its own.
    let certificate = CertificateDer::from_pem_file(world.path("me/client.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(world.path("thief/client.key")).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let mut config = baton::trust::tls::client_config(&thief, remote.fingerprint).unwrap();
    let stolen = Stolen(Arc::new(CertifiedKey::new(vec![certificate], key)));
    config.client_auth_cert_resolver = Arc::new(stolen);
    let stream = tokio::net::TcpStream::connect(&remote.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = "baton-agent".try_into().unwrap();
    // In TLS 1.3 the client learns only by its first read what the agent says to it.
    let heard = async {
        let mut stream = connector.connect(name, stream).await?;
        stream.read(&mut [0; 1]).await
    };
    let heard = soon("the refusal", heard).await;
    assert!(!matches!(heard, Ok(1)), "the thief is in");
    let error = heard.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("DecryptError") || error.contains("alert"), "{error}");
}

/// What a client says that knows TLS 1.2 only.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.extend([0]); // no session
    hello.extend([0, 2, 0xc0, 0x2f]); // one cipher suite
    hello.extend([1, 0]); // no compression
    let groups = [0, 10, 0, 4, 0, 2, 0, 0x1d];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, 16]);
    hello.extend(groups);
    hello.extend(signatures);
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    let world = World::new();
    let remote = remote(&world).await;
    let mut stream = std::net::TcpStream::connect(&remote.address).unwrap();
    stream.write_all(&hello_of_tls_1_2()).unwrap();
    stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    // A fatal alert: protocol version.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

#[tokio::test]
async fn a_caller_that_says_nothing_holds_up_nobody() {
    let world = World::new();
    let remote = remote(&world).await;
    let me = identity(&world, "me");
    trust(&world, &me, &[]);
    // More than the handshakes that may go on at once.
    let silent: Vec<_> =
        (0..100).map(|_| std::net::TcpStream::connect(&remote.address).unwrap()).collect();
    let client = connect_when_trusted(&remote, &me).await;
    assert_eq!(client.info().await.unwrap().version, env!("CARGO_PKG_VERSION"));
    drop(silent);
}

/// What a person does: identity, trust, target, run.
#[tokio::test]
async fn a_person_runs_a_script_on_another_machine() {
    let world = World::new();
    let remote = remote(&world).await;
    let me = || world.baton_at("me");
    let (_, own, _) = finish(me().arg("identity"));
    let fingerprint = remote.fingerprint.to_string();
    let run = ["run", "--target", "web-1", "-c", "echo on $1; exit 3", "web"];

    let add = ["target", "add", "web-1", &remote.address, "--fingerprint", &fingerprint];
    assert_eq!(finish(me().args(add)).0, 0);
    let (code, _, error) = finish(me().args(run));
    assert_eq!(code, 77, "{error}");
    assert!(error.contains(&format!("baton agent trust {}", own.trim())), "{error}");

    let own: Fingerprint = own.trim().parse().unwrap();
    let give = ["agent", "trust", &own.to_string(), "--name", "me"];
    assert_eq!(finish(world.baton_at("a").args(give)).0, 0);
    let tries = async {
        loop {
            let (code, out, error) = finish(me().args(run));
            if code != 77 {
                break (code, out, error);
            }
        }
    };
    let (code, out, error) = soon("the trust to take effect", tries).await;
    assert_eq!((code, out.as_str()), (3, "on web\n"), "{error}");

    // Another fingerprint than the pinned one, a port where nobody listens.
    let other = identity(&world, "other").fingerprint().to_string();
    let wrong = ["run", "--target", &remote.address, "--fingerprint", &other, "-c", "true"];
    let (code, _, error) = finish(me().args(wrong));
    assert_eq!(code, 77, "{error}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody =
        ["run", "--target", &free.to_string(), "--fingerprint", &fingerprint, "-c", "true"];
    let (code, _, error) = finish(me().args(nobody));
    assert_eq!(code, 69, "{error}");
    assert!(error.contains("refused"), "{error}");
    let (_, list, _) = finish(me().args(["target", "list"]));
    assert!(list.contains(&remote.address), "{list}");
    assert_eq!(finish(me().args(["target", "remove", "web-1"])).0, 0);
}

#[tokio::test]
async fn a_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    assert_eq!(finish(world.baton_at("a").args(["agent", "init"])).0, 0);
    let key = world.path("a/config/agent.key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, _, error) = finish(world.baton_at("a").args(["agent", "run"]));
    assert_eq!(code, 77, "{error}");
    assert!(error.contains("hint: chmod 600"), "{error}");
}

#[tokio::test]
async fn init_keeps_what_is_there() {
    let world = World::new();
    let first = finish(world.baton_at("a").args(["agent", "init"]));
    let again = finish(world.baton_at("a").args(["agent", "init"]));
    assert_eq!(first, again);
    assert!(first.1.contains("fingerprint: "), "{first:?}");
    // Two at once agree on one identity.
    let mut both: Vec<_> = (0..2)
        .map(|_| {
            let mut command = world.baton_at("b");
            spawn(command.args(["agent", "init"]).stdout(Stdio::piped()))
        })
        .collect();
    let texts: Vec<_> = both
        .drain(..)
        .map(|child| child.wait_with_output().unwrap())
        .inspect(|output| assert!(output.status.success(), "{output:?}"))
        .map(|output| String::from_utf8(output.stdout).unwrap())
        .collect();
    assert_eq!(texts[0], texts[1]);
}
