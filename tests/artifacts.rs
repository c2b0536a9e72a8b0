//! Promise: files that a script leaves for its clients can be listed and fetched, whole or not at all, and
//! nothing else can: neither there nor here.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::path::Path;

use baton::artifacts::{ArtifactPath, Beneath, Why};
use baton::client::ClientError;
use baton::client::artifacts::FetchError;
use baton::wire::v1;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use support::{TestAgent, World, exited, finish, soon};
use v1::download_artifact_response::Part;

fn path(text: &str) -> ArtifactPath {
    text.parse().unwrap()
}

/// The files below a folder with their content.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.push((name, std::fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// What the API itself sends for an artifact.
async fn download(
    agent: &TestAgent,
    id: &str,
    path: &str,
    offset: u64,
) -> Result<(v1::ArtifactInfo, Vec<u8>), tonic::Status> {
    let socket = agent.folder.join("run/agent.sock");
    let channel = baton::client::connect::unix(&socket).await.unwrap();
    let mut client = v1::scripts_client::ScriptsClient::new(channel);
    let (script_id, path) = (id.to_owned(), path.to_owned());
    let request = v1::DownloadArtifactRequest { script_id, path, offset };
    let mut parts = client.download_artifact(request).await?.into_inner();
    let first = parts.message().await?.unwrap().part.unwrap();
    let Part::Info(info) = first else { panic!("the info is first") };
    let mut bytes = Vec::new();
    while let Some(message) = parts.message().await? {
        let Some(Part::Data(data)) = message.part else { panic!("then come bytes") };
        assert!(!data.is_empty() && data.len() <= 256 * 1024);
        bytes.extend_from_slice(&data);
    }
    Ok((info, bytes))
}

#[tokio::test]
async fn what_a_script_leaves_is_listed_and_fetched() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let text = "cd $BATON_ARTIFACTS; echo report > report.html; mkdir -p 'logs/a b'; : > logs/empty
                head -c 3000000 /dev/urandom > 'logs/a b/large'; sha256sum 'logs/a b/large'";
    let script = agent.script(text).id("build-1").start().await;
    assert!(exited(&script.outcome().await, 0));
    let digest = String::from_utf8(script.output().await).unwrap();

    let (code, out, told) = finish(world.baton_at("a").args(["artifacts", "list", "build-1"]));
    let expected =
        "BYTES    PATH\n3000000  logs/a b/large\n0        logs/empty\n7        report.html\n";
    assert_eq!((code, out.as_str(), told.as_str()), (0, expected, ""));

    let into = world.path("into/new");
    let get = ["artifacts", "get", "build-1", "--output", into.to_str().unwrap()];
    let (code, out, told) = finish(world.baton_at("a").args(get));
    assert_eq!((code, told.as_str()), (0, ""), "{out}");
    let fetched = files(&into);
    let names: Vec<_> = fetched.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["logs/a b/large", "logs/empty", "report.html"]);
    assert_eq!(fetched[2].1, b"report\n");
    let (what, bytes) = download(&agent, "build-1", "logs/a b/large", 0).await.unwrap();
    assert!(bytes == fetched[0].1);
    assert_eq!(what.size_bytes, 3_000_000);
    assert!(digest.starts_with(&baton::artifacts::hex(&what.sha256)), "{digest}");
    assert_eq!(what.sha256, Sha256::digest(&bytes).to_vec());
    let (again, rest) = download(&agent, "build-1", "logs/a b/large", 2_999_990).await.unwrap();
    assert_eq!((again, rest.as_slice()), (what, &bytes[2_999_990..]));

    // One of them, again, over what is there.
    let one = ["artifacts", "get", "build-1", "report.html", "--json", "--output"];
    let (code, out, _) = finish(world.baton_at("a").args(one).arg(&into));
    let event: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &event["path"], &event["size_bytes"]), (0, &"report.html".into(), &7.into()));
    assert_eq!(files(&into).len(), 3);

    // They go with the script.
    agent.client.forget(&script.id).await.unwrap();
    let error = agent.client.artifacts(&script.id).await.unwrap_err();
    assert_eq!(support::reason(&error), "SCRIPT_NOT_FOUND");
}

#[tokio::test]
async fn no_path_and_no_link_leads_out_of_the_folder() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let secret = world.path("secret");
    support::write(&secret, "secret");
    let outside = secret.parent().unwrap().display().to_string();
    let text = format!(
        "cd $BATON_ARTIFACTS; echo good > good; ln -s {outside}/secret file; ln -s {outside} folder
         ln -s ../job.json job; ln -s good within; mkfifo pipe; ln -s / root; mkdir sub; ln -s .. sub/up",
    );
    let script = agent.script(text).id("evil").start().await;
    assert!(exited(&script.outcome().await, 0));
    let listing = agent.client.artifacts(&script.id).await.unwrap();
    assert_eq!(listing.artifacts, [(path("good"), 5)]);
    let skipped: Vec<_> =
        listing.skipped.iter().map(|skipped| (skipped.path.as_str(), skipped.why)).collect();
    let expected = [
        ("file", Why::Link),
        ("folder", Why::Link),
        ("job", Why::Link),
        ("pipe", Why::Special),
        ("root", Why::Link),
        ("sub/up", Why::Link),
        ("within", Why::Link),
    ];
    assert_eq!(skipped, expected);
    for behind in
        ["file", "folder/secret", "job", "within", "pipe", "root/etc/passwd", "sub/up/good"]
    {
        let status = soon("a refusal", download(&agent, "evil", behind, 0)).await.unwrap_err();
        let error = ClientError::from(status);
        assert_eq!(support::reason(&error), "ARTIFACT_NOT_A_FILE", "{behind}");
    }
    for bad in
        ["", "/etc/passwd", "../job.json", "good/../../job.json", "./good", "a\0b", "sub//up"]
    {
        let error = ClientError::from(download(&agent, "evil", bad, 0).await.unwrap_err());
        assert_eq!(support::reason(&error), "FIELD_INVALID", "{bad:?}");
    }
    let error = ClientError::from(download(&agent, "evil", "none", 0).await.unwrap_err());
    assert_eq!(support::reason(&error), "ARTIFACT_NOT_FOUND");
    let error = ClientError::from(download(&agent, "evil", "good", 6).await.unwrap_err());
    assert_eq!(support::reason(&error), "OFFSET_BEYOND_END");

    // The command says what it leaves out, and an artifact that isn't there is an error with a hint.
    let into = world.path("into");
    let get = ["artifacts", "get", "evil", "--output", into.to_str().unwrap()];
    let (code, _, told) = finish(world.baton_at("a").args(get));
    assert_eq!(code, 0, "{told}");
    assert!(
        told.contains("baton: pipe is left out: a device, a named pipe or a socket\n"),
        "{told}"
    );
    assert_eq!(files(&into), [("good".to_owned(), b"good\n".to_vec())]);
    let none = ["artifacts", "get", "evil", "none", "--output", into.to_str().unwrap()];
    let (code, _, told) = finish(world.baton_at("a").args(none));
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("hint: `baton artifacts list` shows"), "{told}");
    let (code, _, told) = finish(world.baton_at("a").args(["artifacts", "get", "evil", "../x"]));
    assert_eq!(code, 2, "{told}");
}

#[tokio::test]
async fn nothing_outside_of_the_chosen_folder_is_written() {
    let world = World::new();
    let agent = world.agent().await;
    let text = "cd $BATON_ARTIFACTS; mkdir etc; echo new > etc/secret; echo new > link";
    let script = agent.script(text).start().await;
    assert!(exited(&script.outcome().await, 0));
    let (outside, into) = (world.path("outside"), world.path("into"));
    std::fs::create_dir_all(&outside).unwrap();
    support::write(&outside.join("secret"), "old");
    let root = Beneath::chosen(&into).unwrap();
    std::os::unix::fs::symlink(&outside, into.join("etc")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), into.join("link")).unwrap();
    let behind = agent.client.fetch_artifact(&script.id, &path("etc/secret"), &root).await;
    assert!(matches!(behind, Err(FetchError::File { .. })), "{behind:?}");
    // A link in the file's own place is replaced, not followed.
    let over = agent.client.fetch_artifact(&script.id, &path("link"), &root).await;
    assert_eq!(over.unwrap(), 4);
    assert_eq!(files(&outside), [("secret".to_owned(), b"old".to_vec())]);
    assert_eq!(std::fs::read(into.join("link")).unwrap(), b"new\n");
    // What could not be had leaves nothing, not even a part of it.
    let none = agent.client.fetch_artifact(&script.id, &path("none"), &root).await;
    assert!(matches!(none, Err(FetchError::Client { .. })), "{none:?}");
    assert_eq!(std::fs::read_dir(&into).unwrap().count(), 2);
}

#[tokio::test]
async fn a_fetch_goes_on_when_the_agent_is_restarted() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let text = "head -c 40000000 /dev/urandom > $BATON_ARTIFACTS/large";
    let script = agent.script(text).start().await;
    assert!(exited(&script.outcome().await, 0));
    let into = world.path("into");
    let root = Beneath::chosen(&into).unwrap();
    let (client, id) = (agent.client.clone(), script.id.clone());
    let fetching =
        tokio::spawn(async move { client.fetch_artifact(&id, &path("large"), &root).await });
    // Some of it has come.
    let part = async {
        let of = |entry: std::fs::DirEntry| entry.metadata().map_or(0, |found| found.len());
        let size =
            || std::fs::read_dir(&into).unwrap().map(|entry| of(entry.unwrap())).sum::<u64>();
        while size() == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon("the first bytes", part).await;
    agent.kill();
    let _again = world.agent_at("a", &["--listen", "none"]).await;
    let size = soon("the rest", fetching).await.unwrap().unwrap();
    assert_eq!(size, 40_000_000);
    let workspace = world.path("a/state/scripts").join(script.id.as_str());
    let left = std::fs::read(workspace.join("artifacts/large")).unwrap();
    assert!(std::fs::read(into.join("large")).unwrap() == left);
    assert_eq!(std::fs::read_dir(&into).unwrap().count(), 1);
}

#[test]
fn a_command_without_an_agent_fetches_them_at_the_end() {
    let world = World::new();
    let into = world.path("into");
    let text = "echo one > $BATON_ARTIFACTS/a; exit 4";
    let words = ["run", "--artifacts", into.to_str().unwrap(), "-c", text];
    let (code, _, told) = finish(world.baton().args(words));
    assert_eq!((code, told), (4, format!("baton: artifact {}/a (4 bytes)\n", into.display())));
    assert_eq!(files(&into), [("a".to_owned(), b"one\n".to_vec())]);
}
