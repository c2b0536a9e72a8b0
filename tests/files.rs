//! Promise: files come and go whole or not at all, never outside of the roots, and what has arrived is
//! not sent again: not after a break, not after a kill of the agent, not when it is there already.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use baton::client::{Client, FileError, Moved, Tell, Told, connect};
use baton::transfer::{Digest, Kind, Place};
use baton::trust::Identity;
use baton::wire::v1;
use futures_util::stream;
use serde_json::Value;
use support::disk::Small;
use support::standstill::Standstill;
use support::{DEADLINE, TestAgent, World, finish, reason, soon};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;
use v1::files_client::FilesClient;
use v1::upload_request::Part;

const MIB: usize = 1024 * 1024;
/// What may be on its way at once, and so be lost when a connection breaks: the window of a stream, the
/// socket's buffers, and the pieces being read and written.
const IN_FLIGHT: u64 = 4 * 1024 * 1024;

/// Bytes that repeat only far apart: a piece at the wrong place has another digest.
fn content(size: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A file of the test.
fn local(world: &World, name: &str, bytes: &[u8]) -> PathBuf {
    let path = world.path(name);
    baton::durable::replace_file(&path, bytes, 0o640).unwrap();
    path
}

fn place(path: &str) -> Place {
    Place { root: "files".to_owned(), path: path.parse().unwrap() }
}

/// The root that an agent has when nothing is configured.
fn root(agent: &TestAgent) -> PathBuf {
    agent.folder.join("state/files")
}

fn silent() -> Tell {
    Arc::new(|_| {})
}

async fn push(agent: &TestAgent, path: &Path, to: &str) -> Result<Moved, FileError> {
    soon("a push", agent.client.push(path, &place(to), silent())).await
}

async fn pull(agent: &TestAgent, from: &str, path: &Path) -> Result<Moved, FileError> {
    soon("a pull", agent.client.pull(&place(from), path, silent())).await
}

fn refusal(error: &FileError) -> &str {
    match error {
        FileError::Agent(error) => reason(error),
        FileError::Local { .. } | FileError::Receive(_) | FileError::Folder(_) => {
            panic!("not the agent's: {error}")
        }
    }
}

/// Writes an agent's configuration before it is started.
fn configure(world: &World, name: &str, text: &str) {
    let config = world.path(name).join("config");
    std::fs::create_dir_all(&config).unwrap();
    support::write(&config.join("agent.toml"), text);
}

/// A client as any other language has one.
async fn raw(agent: &TestAgent) -> FilesClient<tonic::transport::Channel> {
    FilesClient::new(connect::unix(&agent.folder.join("run/agent.sock")).await.unwrap())
}

fn upload_of(path: &str, bytes: &[u8]) -> v1::UploadStart {
    v1::UploadStart {
        root: "files".to_owned(),
        path: path.to_owned(),
        size: u64::try_from(bytes.len()).unwrap(),
        sha256: Digest::of(bytes).to_bytes(),
        ..v1::UploadStart::default()
    }
}

/// Sends an upload's start and these pieces, and returns all that is answered.
async fn upload(
    client: &mut FilesClient<tonic::transport::Channel>,
    start: v1::UploadStart,
    pieces: &[&[u8]],
) -> Result<Vec<v1::UploadResponse>, Status> {
    let data = pieces.iter().map(|piece| Part::Data(piece.to_vec().into()));
    let parts: Vec<_> = std::iter::once(Part::Start(start)).chain(data).collect();
    let requests = parts.into_iter().map(|part| v1::UploadRequest { part: Some(part) });
    let call = async {
        let mut answers = client.upload(stream::iter(requests)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(answer);
        }
        Ok(all)
    };
    soon("the answers", call).await
}

fn reason_of(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// All files below a folder, without what only waits for its rest.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_file_goes_there_and_back_with_its_mode_and_time() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    for size in [0, 1, 512 * 1024, 512 * 1024 + 1, 5 * MIB] {
        let bytes = content(size);
        let sent = local(&world, "sent", &bytes);
        std::fs::set_permissions(&sent, std::fs::Permissions::from_mode(0o751)).unwrap();
        let to = format!("folder/of/{size}");
        let moved = push(&agent, &sent, &to).await.unwrap();
        assert_eq!(moved.moved_bytes, u64::try_from(size).unwrap());
        let there = root(&agent).join(&to);
        assert_eq!(std::fs::read(&there).unwrap(), bytes);
        let back = world.path("back").join(size.to_string());
        std::fs::create_dir_all(world.path("back")).unwrap();
        let pulled = pull(&agent, &to, &back).await.unwrap();
        assert_eq!(pulled.file, moved.file);
        assert_eq!(std::fs::read(&back).unwrap(), bytes);
        for path in [&there, &back] {
            let (was, is) = (sent.metadata().unwrap(), path.metadata().unwrap());
            assert_eq!(is.permissions().mode() & 0o7777, 0o751, "{}", path.display());
            assert_eq!(is.modified().unwrap(), was.modified().unwrap(), "{}", path.display());
        }
    }
    // Nothing is left of the way, on neither side.
    assert_eq!(files_below(&root(&agent)).len(), 5);
    assert_eq!(files_below(&world.path("back")).len(), 5);
}

#[tokio::test]
async fn the_same_content_is_not_sent_twice() {
    let world = World::new();
    let _agent = world.agent_at("a", &["--listen", "none"]).await;
    let bytes = content(3 * MIB);
    let file = local(&world, "app", &bytes).display().to_string();
    let json = |arguments: &[&str]| -> Value {
        let (code, out, error) = finish(world.baton_at("a").args(arguments).arg("--json"));
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&out).unwrap()
    };
    let first = json(&["push", &file, "files:app"]);
    assert_eq!((&first["sent_bytes"], &first["unchanged"]), (&(3 * MIB).into(), &false.into()));
    assert_eq!(first["sha256"], Digest::of(&bytes).to_string());
    let again = json(&["push", &file, "files:app"]);
    assert_eq!((&again["sent_bytes"], &again["unchanged"]), (&0.into(), &true.into()));
    let back = world.path("back").display().to_string();
    let first = json(&["pull", "files:app", &back]);
    assert_eq!((&first["received_bytes"], &first["unchanged"]), (&(3 * MIB).into(), &false.into()));
    let again = json(&["pull", "files:app", &back]);
    assert_eq!((&again["received_bytes"], &again["unchanged"]), (&0.into(), &true.into()));
}

/// Kills the agent while a transfer stands still, and starts it again.
async fn kill(
    standstill: Standstill,
    world: &World,
    agent: &mut TestAgent,
    not_yet: &Path,
) -> TestAgent {
    let (go_on, _) = standstill.reach().await;
    agent.kill();
    assert!(!not_yet.exists(), "it appears before it is whole");
    go_on.send(()).unwrap();
    world.agent_at("a", &["--listen", "none"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_push_goes_on_by_itself_when_the_agent_is_killed_and_sends_nothing_twice() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let bytes = content(64 * MIB);
    let file = local(&world, "big", &bytes);
    let size = u64::try_from(bytes.len()).unwrap();
    let (standstill, tell) = Standstill::new();
    let interrupted = Arc::clone(&standstill.interrupted);
    let client = agent.client.clone();
    let pushing = tokio::spawn(async move { client.push(&file, &place("big"), tell).await });
    let there = root(&agent).join("big");
    let _again = kill(standstill, &world, &mut agent, &there).await;
    let moved = soon("the push", pushing).await.unwrap().unwrap();
    assert!(interrupted.load(Ordering::Relaxed), "it was told");
    assert!(!moved.unchanged);
    let sent = moved.moved_bytes;
    assert!((size..=size + IN_FLIGHT).contains(&sent), "{sent} bytes sent of {size}");
    assert!(std::fs::read(there).unwrap() == bytes);
    assert_eq!(files_below(&root(&agent)).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pull_goes_on_by_itself_when_the_agent_is_killed_and_fetches_nothing_twice() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let bytes = content(32 * MIB);
    std::fs::create_dir_all(root(&agent)).unwrap();
    baton::durable::replace_file(&root(&agent).join("big"), &bytes, 0o600).unwrap();
    let (standstill, tell) = Standstill::new();
    let interrupted = Arc::clone(&standstill.interrupted);
    let (client, back) = (agent.client.clone(), world.path("back"));
    let to = back.clone();
    let pulling = tokio::spawn(async move { client.pull(&place("big"), &to, tell).await });
    let _again = kill(standstill, &world, &mut agent, &back).await;
    let moved = soon("the pull", pulling).await.unwrap().unwrap();
    assert!(interrupted.load(Ordering::Relaxed), "it was told");
    assert_eq!(moved.moved_bytes, u64::try_from(bytes.len()).unwrap());
    assert!(std::fs::read(back).unwrap() == bytes);
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_stood_also_by_another_command() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let bytes = content(2 * MIB);
    let mut client = raw(&agent).await;
    // Its client says that it was all, in the middle.
    let status = upload(&mut client, upload_of("app", &bytes), &[&bytes[..MIB]]).await.unwrap_err();
    assert_eq!((status.code(), reason_of(&status).as_str()), (Code::Aborted, "UPLOAD_INCOMPLETE"));
    assert!(!root(&agent).join("app").exists());
    let file = local(&world, "app", &bytes).display().to_string();
    let words = ["push", &file, "files:app", "--json"];
    let (code, out, error) = finish(world.baton_at("a").args(words));
    assert_eq!(code, 0, "{error}");
    let line: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(line["sent_bytes"], MIB, "{line}");
    assert_eq!(std::fs::read(root(&agent).join("app")).unwrap(), bytes);
}

#[tokio::test]
async fn what_is_damaged_or_wrong_never_appears() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let bytes = content(MIB);
    let old = local(&world, "old", b"old");
    push(&agent, &old, "app").await.unwrap();
    let mut client = raw(&agent).await;
    let mut wrong = bytes.clone();
    wrong[MIB / 2] ^= 1;
    let status = upload(&mut client, upload_of("app", &bytes), &[&wrong]).await.unwrap_err();
    assert_eq!((status.code(), reason_of(&status).as_str()), (Code::DataLoss, "DIGEST_MISMATCH"));
    assert_eq!(std::fs::read(root(&agent).join("app")).unwrap(), b"old");
    assert_eq!(files_below(&root(&agent)).len(), 1, "nothing is kept of it");
    // What waits for its rest is damaged on the disk: the client begins anew, by itself.
    upload(&mut client, upload_of("app", &bytes), &[&wrong[..MIB * 3 / 4]]).await.unwrap_err();
    let file = local(&world, "new", &bytes);
    let moved = push(&agent, &file, "app").await.unwrap();
    assert_eq!(moved.moved_bytes, u64::try_from(MIB + MIB / 4).unwrap());
    assert_eq!(std::fs::read(root(&agent).join("app")).unwrap(), bytes);
}

/// A request's change, and the reason and field of the refusal.
type BadCase = (fn(&mut v1::UploadStart), &'static str, &'static str);

const BAD: &[BadCase] = &[
    (|s| s.root = String::new(), "FIELD_INVALID", "root"),
    (|s| s.root = "../state".into(), "ROOT_NOT_FOUND", ""),
    (|s| s.root = "other".into(), "ROOT_NOT_FOUND", ""),
    (|s| s.path = String::new(), "FIELD_INVALID", "path"),
    (|s| s.path = "..".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "../x".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "a/../../x".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "a/..".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "./x".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "/tmp/x".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "//x".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "a//x".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "x/".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "a\0b".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "a\nb".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "x".repeat(256), "FIELD_INVALID", "path"),
    (|s| s.path = "a/".repeat(600), "FIELD_INVALID", "path"),
    (|s| s.path = ".baton-staging/x".into(), "FIELD_INVALID", "path"),
    (|s| s.path = "link/x".into(), "PATH_IS_LINK", ""),
    (|s| s.path = "link/a/b".into(), "PATH_IS_LINK", ""),
    (|s| s.path = "link-to-file".into(), "PATH_IS_LINK", ""),
    (|s| s.path = "dangling".into(), "PATH_IS_LINK", ""),
    (|s| s.path = "folder".into(), "FILE_KIND_WRONG", ""),
    (|s| s.sha256 = Vec::new(), "FIELD_INVALID", "sha256"),
    (|s| s.sha256 = vec![0; 31], "FIELD_INVALID", "sha256"),
    (|s| s.mode = 0o4755, "FIELD_INVALID", "mode"),
    (|s| s.size = 1 << 62, "FILE_TOO_LARGE", ""),
];

#[tokio::test]
async fn nothing_outside_of_a_root_is_written_or_read() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let (root, outside) = (root(&agent), world.path("outside"));
    for folder in [&root.join("folder"), &outside] {
        std::fs::create_dir_all(folder).unwrap();
    }
    support::write(&outside.join("secret"), "secret");
    symlink(&outside, root.join("link")).unwrap();
    symlink(outside.join("secret"), root.join("link-to-file")).unwrap();
    symlink(outside.join("new"), root.join("dangling")).unwrap();
    let mut client = raw(&agent).await;
    for (break_it, reason, field) in BAD {
        let mut start = upload_of("x", b"bad");
        break_it(&mut start);
        let (root, path) = (start.root.clone(), start.path.clone());
        let status = upload(&mut client, start.clone(), &[b"bad"]).await.unwrap_err();
        assert_eq!(reason_of(&status), *reason, "{start:?}: {status}");
        let info = status.get_details_error_info().unwrap();
        let named = info.metadata.get("field").map_or("", String::as_str);
        assert_eq!(named, *field, "{start:?}: {status}");
        // The same place can't be read either.
        if *field == "path" || *reason == "PATH_IS_LINK" {
            let asked =
                v1::StatRequest { root: root.clone(), path: path.clone(), with_sha256: true };
            let status = soon("a refusal", client.stat(asked)).await.unwrap_err();
            assert_eq!(reason_of(&status), *reason, "{path}: {status}");
            let download = v1::DownloadRequest { root, path: path.clone(), offset: 0 };
            let status = soon("a refusal", client.download(download)).await.unwrap_err();
            assert_eq!(reason_of(&status), *reason, "{path}: {status}");
        }
    }
    assert_eq!(files_below(&outside), [outside.join("secret")]);
    assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    // The command says it too.
    let file = local(&world, "x", b"x").display().to_string();
    for (to, code) in [("files:../x", 2), ("files:link/x", 2), ("other:x", 2), ("/etc/x", 2)] {
        let (status, _, error) = finish(world.baton_at("a").args(["push", &file, to]));
        assert_eq!(status, code, "{to}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_that_is_swapped_in_while_files_come_leads_nowhere() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let (root, outside) = (root(&agent), world.path("outside"));
    for folder in [&root.join("folder"), &outside] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let link = root.join("link");
    symlink(&outside, &link).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let (over, folder) = (Arc::clone(&over), root.join("folder"));
        move || {
            let mut swaps = 0_u64;
            while !over.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let here = rustix::fs::CWD;
                rustix::fs::renameat_with(here, &folder, here, &link, flags).unwrap();
                swaps += 1;
            }
            swaps
        }
    });
    let (mut came, mut refused) = (0, 0);
    for number in 0..200_usize {
        let file = local(&world, "file", &number.to_be_bytes());
        match push(&agent, &file, &format!("folder/sub/{number}")).await {
            Ok(_) => came += 1,
            Err(error) => {
                assert_eq!(refusal(&error), "PATH_IS_LINK", "{error}");
                refused += 1;
            }
        }
        assert_eq!(files_below(&outside), Vec::<PathBuf>::new());
    }
    over.store(true, Ordering::Relaxed);
    let swaps = swapping.join().unwrap();
    assert!(std::fs::read_dir(&outside).unwrap().next().is_none());
    assert!(came > 0 && refused > 0, "{came} came, {refused} refused, {swaps} swaps");
}

#[tokio::test]
async fn uploads_of_one_path_at_the_same_time_all_end_and_the_file_is_one_of_them() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let contents: Vec<_> = (0..4_u8).map(|n| vec![n / 2; 3 * MIB]).collect();
    let pushes = contents.iter().enumerate().map(|(n, bytes)| {
        let (client, file) = (agent.client.clone(), local(&world, &format!("f{n}"), bytes));
        async move { client.push(&file, &place("file"), silent()).await.unwrap() }
    });
    let moved = soon("all pushes", futures_util::future::join_all(pushes)).await;
    assert_eq!(moved.len(), 4);
    let there = std::fs::read(root(&agent).join("file")).unwrap();
    assert!(contents.contains(&there));
    assert_eq!(files_below(&root(&agent)).len(), 1);
}

#[tokio::test]
async fn room_on_the_disk_is_checked_before_the_first_byte() {
    let world = World::new();
    configure(&world, "a", "[files]\nmin_free_bytes = 9000000000000000000\n");
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let file = local(&world, "file", &content(MIB));
    let error = push(&agent, &file, "file").await.unwrap_err();
    assert_eq!(refusal(&error), "DISK_FULL");
    assert_eq!(
        files_below(&root(&agent)).iter().map(|f| f.metadata().unwrap().len()).sum::<u64>(),
        0
    );
    let words = ["push", &file.display().to_string(), "files:file"];
    let (code, _, error) = finish(world.baton_at("a").args(words));
    assert_eq!(code, 75, "{error}");
    assert!(error.contains("hint: make room"), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_too_small_refuses_and_goes_on_when_there_is_room() {
    let world = World::new();
    let disk = world.path("disk");
    let Some(_small) = Small::mount(&disk, 4) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    let (inner, path) = (disk.join("root"), world.path("disk/root").display().to_string());
    std::fs::create_dir(&inner).unwrap();
    let text = format!(
        "[files]\nmin_free_bytes = 0\nroots.files = {{ path = {path:?}, access = \"read-write\" }}\n"
    );
    configure(&world, "a", &text);
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let ballast = local(&world, "ballast", &content(2 * MIB));
    std::fs::copy(&ballast, disk.join("ballast")).unwrap();
    let file = local(&world, "file", &content(3 * MIB));
    let error = push(&agent, &file, "file").await.unwrap_err();
    assert_eq!(refusal(&error), "DISK_FULL", "{error}");
    assert!(!inner.join("file").exists());
    std::fs::remove_file(disk.join("ballast")).unwrap();
    push(&agent, &file, "file").await.unwrap();
    assert_eq!(inner.join("file").metadata().unwrap().len(), u64::try_from(3 * MIB).unwrap());
    // What is mounted below a root is another disk: nothing can be moved there as a whole.
    let Some(_below) = Small::mount(&inner.join("below"), 4) else { return };
    let error = push(&agent, &local(&world, "x", b"x"), "below/x").await.unwrap_err();
    assert_eq!(refusal(&error), "OTHER_FILE_SYSTEM", "{error}");
}

#[tokio::test]
async fn who_may_only_read_a_root_pushes_nothing_there_and_who_is_not_trusted_gets_nothing() {
    let world = World::new();
    let shelf = world.path("shelf");
    std::fs::create_dir(&shelf).unwrap();
    support::write(&shelf.join("report"), "all is well");
    let text = format!("[files.roots]\nshelf = {{ path = {shelf:?}, access = \"read\" }}\n");
    configure(&world, "a", &text);
    let agent = world.agent_at("a", &["--listen", "127.0.0.1:0"]).await;
    let report = Place { root: "shelf".to_owned(), path: "report".parse().unwrap() };
    let file = local(&world, "file", b"x");
    let error = soon("a refusal", agent.client.push(&file, &report, silent())).await.unwrap_err();
    assert_eq!(refusal(&error), "ROOT_READ_ONLY");
    let words = ["push", &file.display().to_string(), "shelf:report"];
    let (code, _, error) = finish(world.baton_at("a").args(words));
    assert_eq!(code, 77, "{error}");
    assert_eq!(std::fs::read_to_string(shelf.join("report")).unwrap(), "all is well");
    assert_eq!(std::fs::read_dir(&shelf).unwrap().count(), 1, "not even a folder is made");
    let back = world.path("back");
    let pull = agent.client.pull(&report, &back, silent());
    soon("a pull", pull).await.unwrap();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "all is well");

    // Over the network: only a trusted peer.
    let address = std::fs::read_to_string(agent.folder.join("run/agent.address")).unwrap();
    let (_, out, _) = finish(world.baton_at("a").args(["agent", "init", "--json"]));
    let init: Value = serde_json::from_str(&out).unwrap();
    let me = Identity::load_or_create(&world.path("me/config"), "client").unwrap();
    let fingerprint = init["fingerprint"].as_str().unwrap();
    let pull = ["pull", "--target", address.trim(), "--fingerprint", fingerprint, "shelf:report"];
    let to = world.path("remote").display().to_string();
    let (code, _, error) = finish(world.baton_at("me").args(pull).arg(&to));
    assert_eq!(code, 77, "{error}");
    assert!(!world.path("remote").exists());
    let own = me.fingerprint().to_string();
    let trust = ["agent", "trust", &own, "--name", "ci"];
    assert_eq!(finish(world.baton_at("a").args(trust)).0, 0);
    let trusted = async {
        loop {
            let (code, _, error) = finish(world.baton_at("me").args(pull).arg(&to));
            if code != 77 {
                break (code, error);
            }
            tokio::task::yield_now().await;
        }
    };
    let (code, error) = soon("the trust to take effect", trusted).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(std::fs::read_to_string(world.path("remote")).unwrap(), "all is well");
}

#[tokio::test]
async fn transfers_are_counted_and_who_comes_too_late_waits_for_its_turn() {
    let world = World::new();
    configure(&world, "a", "[files]\nmax_transfers = 1\n");
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let mut client = raw(&agent).await;
    // An upload that says what comes, and then nothing.
    let (more, rest) = tokio::sync::mpsc::channel(1);
    let bytes = content(MIB);
    let start = Part::Start(upload_of("first", &bytes));
    more.send(v1::UploadRequest { part: Some(start) }).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(rest);
    let mut answers = soon("an answer", client.upload(requests)).await.unwrap().into_inner();
    soon("ready", answers.message()).await.unwrap().unwrap();
    let status = upload(&mut raw(&agent).await, upload_of("second", b"x"), &[b"x"]).await;
    let status = status.unwrap_err();
    assert_eq!(reason_of(&status), "TRANSFERS_FULL", "{status}");
    // The client waits for its turn by itself.
    let (interrupted, interrupts) = mpsc::channel();
    let tell: Tell = Arc::new(move |told| {
        if let Told::Interrupted(away) = told {
            interrupted.send(away.why).unwrap_or_default();
        }
    });
    let (second, file) = (agent.client.clone(), local(&world, "second", b"x"));
    let pushing = tokio::spawn(async move { second.push(&file, &place("second"), tell).await });
    let told = tokio::task::spawn_blocking(move || interrupts.recv_timeout(DEADLINE).unwrap());
    let told = soon("the wait", told).await.unwrap();
    assert!(told.contains("on their way"), "{told}");
    drop((more, answers));
    soon("the push", pushing).await.unwrap().unwrap();
    assert!(root(&agent).join("second").exists());
}

#[tokio::test]
async fn a_folder_is_pushed_with_what_is_in_it_and_without_links() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let site = world.path("site");
    std::fs::create_dir_all(site.join("css/deep")).unwrap();
    for name in ["index.html", "css/a.css", "css/deep/ü b.css"] {
        support::write(&site.join(name), name);
    }
    symlink("/etc/passwd", site.join("passwd")).unwrap();
    symlink(site.join("css"), site.join("styles")).unwrap();
    let words = ["push", &site.display().to_string(), "files:www"];
    let (code, out, error) = finish(world.baton_at("a").args(words));
    assert_eq!(code, 0, "{error}");
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(error.contains("passwd is a symbolic link: left out"), "{error}");
    assert!(error.contains("styles is a symbolic link: left out"), "{error}");
    for name in ["index.html", "css/a.css", "css/deep/ü b.css"] {
        let there = std::fs::read_to_string(root(&agent).join("www").join(name)).unwrap();
        assert_eq!(there, name);
    }
    assert_eq!(files_below(&root(&agent)).len(), 3);
    // Several, or a slash at the end: into it.
    let (index, css) = (site.join("index.html"), site.join("css/a.css"));
    let (code, _, error) =
        finish(world.baton_at("a").arg("push").args([&index, &css]).args(["files:all", "--quiet"]));
    assert_eq!((code, error.as_str()), (0, ""));
    let (code, out, _) = finish(world.baton_at("a").arg("push").arg(&index).arg("files:one/"));
    assert_eq!(code, 0);
    assert!(out.ends_with("-> files:one/index.html  10 B\n"), "{out}");
    for name in ["all/index.html", "all/a.css", "one/index.html"] {
        assert!(root(&agent).join(name).exists(), "{name}");
    }
    // Onto a folder, and what is not there.
    for (words, told) in [
        (["push", index.to_str().unwrap(), "files:www"], "ROOT:FOLDER/"),
        (["push", "no-such-file", "files:"], "no-such-file"),
        (["pull", "files:nothing", "x"], "files:nothing is not there"),
        (["pull", "files:www", "x"], "is a folder"),
        (["pull", "files:one/index.html", "no/such/"], "no/such/"),
    ] {
        let (code, _, error) = finish(world.baton_at("a").args(words));
        assert_eq!(code, 2, "{words:?}: {error}");
        assert!(error.contains(told), "{words:?}: {error}");
    }
}

#[tokio::test]
async fn a_large_file_takes_no_memory() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    // What the first transfer needs once is there afterwards.
    push(&agent, &local(&world, "warm", &content(8 * MIB)), "warm").await.unwrap();
    let before = peak_kib(agent.pid());
    let file = world.path("large");
    let sparse = std::fs::File::create(&file).unwrap();
    sparse.set_len(256 << 20).unwrap();
    push(&agent, &file, "large").await.unwrap();
    let back = world.path("back");
    pull(&agent, "large", &back).await.unwrap();
    assert_eq!(back.metadata().unwrap().len(), 256 << 20);
    let grown = peak_kib(agent.pid()) - before;
    assert!(grown < 16 * 1024, "the agent grew by {grown} KiB");
}

/// The most memory that a process has had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn stat_says_what_is_there_and_the_service_is_healthy() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    push(&agent, &local(&world, "file", b"abc"), "folder/file").await.unwrap();
    let stat = |path: &'static str, with_digest| {
        let client: Client = agent.client.clone();
        async move { soon("Stat", client.stat(&place(path), with_digest)).await }
    };
    let file = stat("folder/file", false).await.unwrap();
    assert_eq!((file.kind, file.mode), (Kind::File { size: 3, digest: None }, 0o640));
    let file = stat("folder/file", true).await.unwrap();
    assert_eq!(file.kind, Kind::File { size: 3, digest: Some(Digest::of(b"abc")) });
    assert_eq!(stat("folder", true).await.unwrap().kind, Kind::Folder);
    assert_eq!(reason(&stat("folder/none", false).await.unwrap_err()), "FILE_NOT_FOUND");
    assert_eq!(reason(&stat("none/none", false).await.unwrap_err()), "FILE_NOT_FOUND");
    let mut health =
        HealthClient::new(connect::unix(&agent.folder.join("run/agent.sock")).await.unwrap());
    let request = HealthCheckRequest { service: "baton.v1.Files".to_owned() };
    let answer = soon("health", health.check(request)).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let help = world.baton().args(["push", "--help"]).stdout(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8(help.stdout).unwrap().contains("Examples:"));
}
