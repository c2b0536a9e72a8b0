//! Promise: a package comes to a machine once and only what changed of it, whole or not at all, and is
//! installed so that at every instant `current` leads to a whole version.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use baton::client::{ClientError, SendError, Sent, Tell, connect};
use baton::packages::manifest::{Chunk, Entry, EntryKind};
use baton::packages::{Manifest, Package};
use baton::transfer::Digest;
use baton::wire::v1;
use futures_util::stream;
use serde_json::Value;
use support::disk::Small;
use support::standstill::Standstill;
use support::{TestAgent, World, exited, finish, reason, soon};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use v1::packages_client::PackagesClient;
use v1::send_package_request::Part;
use v1::send_package_response::Kind;

const MIB: usize = 1024 * 1024;
/// What may be on its way at once, and so be lost when a connection breaks.
const IN_FLIGHT: u64 = 4 * 1024 * 1024;

/// Bytes that can't be compressed and repeat only far apart.
fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        // xorshift64*
        word ^= word >> 12;
        word ^= word << 25;
        word ^= word >> 27;
        bytes.extend_from_slice(&word.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    baton::durable::replace_file(path, bytes, 0o644).unwrap();
}

fn open(path: &Path, id: &str, version: &str) -> Package {
    Package::open(path, id.parse().unwrap(), version.parse().unwrap()).unwrap()
}

/// A directory with a program, a link, an empty folder, a file of its own and one that all have.
fn tree(world: &World, version: &str) -> PathBuf {
    let top = world.path(&format!("tree-{version}"));
    write(&top.join("version"), version.as_bytes());
    write(&top.join("lib/data"), &content(1, 300_000));
    write(&top.join("bin/app"), format!("#!/bin/sh\necho {version}\n").as_bytes());
    let program = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(top.join("bin/app"), program).unwrap();
    std::fs::create_dir(top.join("empty")).unwrap();
    symlink("../lib/data", top.join("bin/data")).unwrap();
    top
}

fn silent() -> Tell {
    Arc::new(|_| {})
}

async fn send(agent: &TestAgent, package: &Package) -> Result<Sent, SendError> {
    soon("a package", agent.client.send_package(package, silent())).await
}

/// Sends a tree of that version as the package `app`.
async fn send_tree(world: &World, agent: &TestAgent, version: &str) -> Sent {
    send(agent, &open(&tree(world, version), "app", version)).await.unwrap()
}

fn refusal(error: &SendError) -> &str {
    match error {
        SendError::Agent(error) => reason(error),
        SendError::Source(error) => panic!("not the agent's: {error}"),
    }
}

fn store(agent: &TestAgent) -> PathBuf {
    agent.folder.join("state/packages")
}

/// `baton package install`, as a script runs it.
fn install(world: &World, agent: &TestAgent, words: &[&str]) -> std::process::Command {
    let mut command = world.baton();
    command.env("BATON_PACKAGES", store(agent)).args(["package", "install"]).args(words);
    command
}

/// Installs a version of `app` and returns what is told.
fn installed(world: &World, agent: &TestAgent, to: &Path, words: &[&str]) -> Value {
    let to = to.display().to_string();
    let words = [&["app"], words, &["--to", &to, "--json"]].concat();
    let (code, out, error) = finish(&mut install(world, agent, &words));
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&out).unwrap()
}

/// The version that `current` leads to, all of it.
fn current(to: &Path) -> String {
    let top = to.join("app/current");
    let version = std::fs::read_to_string(top.join("version")).unwrap();
    assert_eq!(top.read_link().unwrap(), Path::new(&version));
    assert!(std::fs::read(top.join("bin/data")).unwrap() == content(1, 300_000));
    let (code, out, _) = finish(&mut std::process::Command::new(top.join("bin/app")));
    assert_eq!((code, out.trim()), (0, version.as_str()));
    version
}

/// The names in a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// How many chunks an agent has.
fn chunks(agent: &TestAgent) -> usize {
    let folder = store(agent).join("chunks");
    names(&folder).iter().map(|name| names(&folder.join(name)).len()).sum()
}

/// A client as any other language has one.
async fn raw(agent: &TestAgent) -> PackagesClient<tonic::transport::Channel> {
    PackagesClient::new(connect::unix(&agent.folder.join("run/agent.sock")).await.unwrap())
}

/// Sends a manifest and these chunks, and returns all that is answered.
async fn send_raw(
    agent: &TestAgent,
    manifest: &[u8],
    chunks: &[Vec<u8>],
) -> Result<Vec<Kind>, Status> {
    let start = v1::SendPackageStart {
        id: "app".to_owned(),
        version: "1".to_owned(),
        sha256: Digest::of(manifest).to_bytes(),
        manifest_bytes: u32::try_from(manifest.len()).unwrap(),
        replace: false,
    };
    send_parts(agent, start, manifest, chunks).await
}

async fn send_parts(
    agent: &TestAgent,
    start: v1::SendPackageStart,
    manifest: &[u8],
    chunks: &[Vec<u8>],
) -> Result<Vec<Kind>, Status> {
    let pieces = manifest.chunks(MIB).map(|piece| Part::Manifest(piece.to_vec().into()));
    let chunks = chunks.iter().map(|chunk| Part::Chunk(chunk.clone().into()));
    let parts: Vec<_> = [Part::Start(start)].into_iter().chain(pieces).chain(chunks).collect();
    let requests = parts.into_iter().map(|part| v1::SendPackageRequest { part: Some(part) });
    let mut client = raw(agent).await;
    let call = async {
        let mut answers = client.send_package(stream::iter(requests)).await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.extend(answer.kind);
        }
        Ok(all)
    };
    soon("the answers", call).await
}

fn reason_of(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

#[tokio::test]
async fn a_package_comes_once_is_installed_by_a_script_and_is_what_it_was() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let tree = tree(&world, "1.0+x").display().to_string();
    // Transfers wait for no mutex.
    let gate = world.gate();
    let holder = agent.script(gate.wait()).start().await;
    holder.is_running().await;
    let json = |words: &[&str]| -> Value {
        let (code, out, error) = finish(world.baton_at("a").args(["package"]).args(words));
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&out).unwrap()
    };
    let words = ["send", &tree, "--id", "app", "--version", "1.0+x", "--json"];
    let first = json(&words);
    assert_eq!(first["already_there"], false, "{first}");
    assert_eq!(first["chunks"], first["sent_chunks"]);
    let again = json(&words);
    assert_eq!(again["already_there"], true, "{again}");
    assert_eq!((&again["sent_bytes"], &again["sent_chunks"]), (&0.into(), &0.into()));
    let listed = json(&["list", "--json"]);
    for key in ["id", "version", "sha256", "size_bytes", "chunks"] {
        assert_eq!(listed[key], first[key], "{key}");
    }
    assert_eq!(listed["files"], 3);
    gate.open();

    let to = world.path("opt");
    let text = format!(
        "baton package install app 1.0+x --to {}; umask 077; baton package install app 1.0+x",
        to.display()
    );
    let script = agent.script(text).start().await;
    assert!(exited(&script.outcome().await, 0));
    let out = String::from_utf8(script.output().await).unwrap();
    let by_default = store(&agent).join("installed");
    let paths = [&to, &by_default].map(|to| to.join("app/1.0+x").display().to_string());
    assert_eq!(out.lines().collect::<Vec<_>>(), paths);
    for to in [&to, &by_default] {
        assert_eq!(current(to), "1.0+x");
        let top = to.join("app/1.0+x");
        let names = names(&top);
        assert_eq!(
            names,
            [".baton-package", "bin", "empty", "lib", "version"].map(Into::into).into()
        );
        let mode = |path: &str| top.join(path).metadata().unwrap().permissions().mode() & 0o777;
        let expected = if to == &by_default { (0o700, 0o600) } else { (0o755, 0o644) };
        assert_eq!((mode("bin/app"), mode("version")), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_large_file_only_what_changed_is_sent() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let path = world.path("big");
    let mut bytes = content(7, 50 * MIB);
    write(&path, &bytes);
    let began = Instant::now();
    let package = open(&path, "big", "1");
    let read = began.elapsed();
    let first = send(&agent, &package).await.unwrap();
    eprintln!("first: read {read:.2?}, all {:.2?}, {first:?}", began.elapsed());
    assert_eq!(first.bytes_total, u64::try_from(50 * MIB).unwrap());
    drop(bytes.splice(25 * MIB..25 * MIB, *b"a few bytes"));
    write(&path, &bytes);
    let began = Instant::now();
    let package = open(&path, "big", "2");
    let read = began.elapsed();
    let second = send(&agent, &package).await.unwrap();
    eprintln!("second: read {read:.2?}, all {:.2?}, {second:?}", began.elapsed());
    assert!(second.bytes_sent < u64::try_from(MIB).unwrap(), "{second:?}");
    assert!(second.chunks_sent > 0 && !second.already_there);
    let to = world.path("opt").display().to_string();
    let began = Instant::now();
    let mut command = install(&world, &agent, &["big", "2", "--to", &to]);
    assert_eq!(finish(&mut command).0, 0);
    eprintln!("installed in {:.2?}", began.elapsed());
    assert!(std::fs::read(world.path("opt/big/2/big")).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_package_goes_on_by_itself_when_the_agent_is_killed_and_sends_nothing_twice() {
    let world = World::new();
    let mut agent = world.agent_at("a", &["--listen", "none"]).await;
    let path = world.path("big");
    let bytes = content(3, 48 * MIB);
    write(&path, &bytes);
    let package = open(&path, "big", "1");
    let (standstill, tell) = Standstill::new();
    let (client, sent) = (agent.client.clone(), package.clone());
    let sending = tokio::spawn(async move { client.send_package(&sent, tell).await });
    let (go_on, interrupted) = standstill.reach().await;
    agent.kill();
    assert_eq!(names(&store(&agent).join("kept")), BTreeSet::new(), "it is kept too early");
    go_on.send(()).unwrap();
    let again = world.agent_at("a", &["--listen", "none"]).await;
    let sent = soon("the package", sending).await.unwrap().unwrap();
    assert!(interrupted.load(Ordering::Relaxed), "it was told");
    let total = u64::try_from(bytes.len()).unwrap();
    // Compressed chunks of noise are some bytes longer.
    let limit = total + IN_FLIGHT + 64 * 1024;
    assert!((total..limit).contains(&sent.bytes_sent), "{sent:?}");
    assert!(!sent.already_there);
    let to = world.path("opt").display().to_string();
    assert_eq!(finish(&mut install(&world, &again, &["big", "1", "--to", &to])).0, 0);
    assert!(std::fs::read(world.path("opt/big/1/big")).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_send_the_same_and_others_at_once_and_removing_takes_nothing_from_them() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let path = world.path("big");
    write(&path, &content(5, 8 * MIB));
    let old = open(&path, "old", "1");
    send(&agent, &old).await.unwrap();
    let before = chunks(&agent);
    write(&world.path("other/big"), &content(5, 8 * MIB));
    write(&world.path("other/more"), &content(6, 8 * MIB));
    let package = open(&world.path("other"), "new", "1");
    // Half of it is there: it is told at once, and stands still.
    let (standstill, tell) = Standstill::new();
    let (client, one) = (agent.client.clone(), package.clone());
    let sending = tokio::spawn(async move { client.send_package(&one, tell).await });
    let (go_on, _) = standstill.reach().await;
    agent.client.remove_package(old.id(), old.version()).await.unwrap();
    assert!(chunks(&agent) >= before, "what a transfer counts on was removed");
    let others = [(); 3].map(|()| {
        let (client, package) = (agent.client.clone(), package.clone());
        tokio::spawn(async move { client.send_package(&package, silent()).await })
    });
    for other in others {
        soon("another sender", other).await.unwrap().unwrap();
    }
    go_on.send(()).unwrap();
    soon("the package", sending).await.unwrap().unwrap();
    assert_eq!(chunks(&agent), package.distinct_chunks().len());
    let to = world.path("opt").display().to_string();
    assert_eq!(finish(&mut install(&world, &agent, &["new", "1", "--to", &to])).0, 0);
    // The last one takes the chunks with it.
    agent.client.remove_package(package.id(), package.version()).await.unwrap();
    assert_eq!(chunks(&agent), 0);
    let error = agent.client.remove_package(package.id(), package.version()).await.unwrap_err();
    assert_eq!(reason(&error), "PACKAGE_NOT_FOUND");
    assert_eq!(names(&world.path("opt/new/1")).len(), 3, "what is installed stays");
}

#[tokio::test]
async fn one_version_stands_for_one_content_unless_it_is_replaced() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let to = world.path("opt");
    send_tree(&world, &agent, "1").await;
    installed(&world, &agent, &to, &["1"]);
    let path = world.path("tree-1");
    std::fs::remove_file(path.join("version")).unwrap();
    write(&path.join("extra"), b"another content");
    let other = open(&path, "app", "1");
    let error = send(&agent, &other).await.unwrap_err();
    assert_eq!(refusal(&error), "PACKAGE_CONFLICT");
    let SendError::Agent(ClientError::Refused { code, .. }) = error else { panic!("{error}") };
    assert_eq!(code, Code::AlreadyExists);
    let words = ["send", &path.display().to_string(), "--id", "app", "--version", "1"];
    let (code, _, told) = finish(world.baton_at("a").arg("package").args(words));
    assert_eq!(code, 2);
    assert!(told.contains("hint: send it as a new version, or with --replace"), "{told}");
    send(&agent, &other.replacing()).await.unwrap();
    let told = installed(&world, &agent, &to, &["1"]);
    assert_eq!(told["event"], "repaired", "{told}");
    // Nothing of the old content is left.
    let top = to.join("app/1");
    assert!(!top.join("version").exists() && top.join("extra").exists());
}

const POINTS: [&str; 6] = [
    "package file",
    "package written",
    "package in place",
    "package placed",
    "package link",
    "package switched",
];

#[tokio::test]
async fn an_install_that_is_killed_at_any_point_leaves_a_whole_version() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    for version in ["1", "2", "3"] {
        send_tree(&world, &agent, version).await;
    }
    for (number, point) in POINTS.into_iter().chain(["package removing"]).enumerate() {
        let to = world.path(&format!("opt{number}"));
        installed(&world, &agent, &to, &["1"]);
        installed(&world, &agent, &to, &["2"]);
        let due = world.path("due");
        write(&due, b"");
        let words = ["app", "3", "--keep", "2", "--to", &to.display().to_string()];
        let mut command = install(&world, &agent, &words);
        command.env(baton::crash::VARIABLE, format!("{point}={}", due.display()));
        let (code, out, _) = finish(&mut command);
        assert_eq!((code, out.as_str()), (-1, ""), "nobody came to {point}");
        assert!(!due.exists(), "{point}");
        let now = current(&to);
        let is_switched = ["package switched", "package removing"].contains(&point);
        assert_eq!(now, if is_switched { "3" } else { "2" }, "{point}");
        // The same again brings it to the end, and tidies up.
        assert_eq!(finish(&mut install(&world, &agent, &words)).0, 0, "{point}");
        assert_eq!(current(&to), "3");
        let left = names(&to.join("app"));
        assert_eq!(left, [".lock", "2", "3", "current"].map(Into::into).into(), "{point}");
    }
}

#[tokio::test]
async fn a_version_that_was_changed_is_put_right_also_when_that_is_killed() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    send_tree(&world, &agent, "1").await;
    let to = world.path("opt");
    assert_eq!(installed(&world, &agent, &to, &["1"])["event"], "installed");
    assert_eq!(installed(&world, &agent, &to, &["1"])["event"], "unchanged");
    let top = to.join("app/1");
    write(&top.join("log"), b"what is there besides is no change");
    assert_eq!(installed(&world, &agent, &to, &["1"])["event"], "unchanged");
    let damages: [(&str, &dyn Fn()); 6] = [
        ("version", &|| write(&top.join("version"), b"2")),
        ("lib/data", &|| std::fs::remove_file(top.join("lib/data")).unwrap()),
        ("bin/app", &|| {
            let mode = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(top.join("bin/app"), mode).unwrap();
        }),
        ("bin/data", &|| {
            std::fs::remove_file(top.join("bin/data")).unwrap();
            symlink("/etc/passwd", top.join("bin/data")).unwrap();
        }),
        ("empty", &|| std::fs::remove_dir(top.join("empty")).unwrap()),
        (".baton-package", &|| write(&top.join(".baton-package"), b"damaged")),
    ];
    for (path, damage) in damages {
        damage();
        let due = world.path("due");
        write(&due, b"");
        let words = ["app", "1", "--to", &to.display().to_string()];
        let mut command = install(&world, &agent, &words);
        // Just when the new one has changed places with it.
        command.env(baton::crash::VARIABLE, format!("package in place={}", due.display()));
        assert_eq!(finish(&mut command).0, -1, "{path}");
        assert_eq!(current(&to), "1", "{path}");
        damage();
        let told = installed(&world, &agent, &to, &["1"]);
        assert_eq!((&told["event"], &told["wrong"][0]), (&"repaired".into(), &path.into()));
        assert_eq!(current(&to), "1", "{path}");
    }
    assert_eq!(names(&to.join("app")), [".lock", "1", "current"].map(Into::into).into());
    // A folder that somebody else made is not touched.
    write(&to.join("app/2/mine"), b"mine");
    send_tree(&world, &agent, "2").await;
    let words = ["app", "2", "--to", &to.display().to_string()];
    let (code, _, told) = finish(&mut install(&world, &agent, &words));
    assert_eq!(code, 1);
    assert!(told.contains("no package that baton installed"), "{told}");
    assert_eq!(current(&to), "1");
}

#[tokio::test]
async fn the_last_versions_stay_and_the_current_one_always() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let to = world.path("opt");
    let versions = || {
        let mut names = names(&to.join("app"));
        names.retain(|name| !name.starts_with('.') && name != "current");
        names
    };
    for version in ["1", "2", "3", "4"] {
        send_tree(&world, &agent, version).await;
        installed(&world, &agent, &to, &[version]);
    }
    assert_eq!(versions(), ["1", "2", "3", "4"].map(Into::into).into());
    // Back to an old one: it is the last now.
    let told = installed(&world, &agent, &to, &["1", "--keep", "3"]);
    assert_eq!((&told["before"], &told["removed"][0]), (&"4".into(), &"2".into()), "{told}");
    assert_eq!((versions(), current(&to).as_str()), (["1", "3", "4"].map(Into::into).into(), "1"));
    installed(&world, &agent, &to, &["3", "--keep", "2"]);
    assert_eq!((versions(), current(&to).as_str()), (["1", "3"].map(Into::into).into(), "3"));
    // What the agent does not keep any more can be made current again, as long as it is whole.
    let id = "app".parse().unwrap();
    agent.client.remove_package(&id, &"1".parse().unwrap()).await.unwrap();
    assert_eq!(installed(&world, &agent, &to, &["1"])["event"], "unchanged");
    assert_eq!(current(&to), "1");
    write(&to.join("app/1/version"), b"x");
    let words = ["app", "1", "--to", &to.display().to_string()];
    let (code, _, told) = finish(&mut install(&world, &agent, &words));
    assert_eq!(code, 1);
    assert!(told.contains("does not keep it any more"), "{told}");
    let (code, _, told) = finish(&mut install(&world, &agent, &["app", "9"]));
    assert_eq!(code, 1);
    assert!(told.contains("hint: send it first"), "{told}");
}

#[tokio::test]
async fn installs_at_the_same_time_leave_whole_versions() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let to = world.path("opt");
    let mut running = Vec::new();
    for version in ["1", "2", "3"] {
        send_tree(&world, &agent, version).await;
    }
    for version in ["1", "2", "3", "1", "2", "3"] {
        let words = ["app", version, "--to", &to.display().to_string()];
        let mut command = install(&world, &agent, &words);
        running.push(support::spawn(command.stdout(Stdio::null())));
    }
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    current(&to);
    let left = names(&to.join("app"));
    assert_eq!(left, [".lock", "1", "2", "3", "current"].map(Into::into).into());
}

#[tokio::test]
async fn what_is_damaged_on_disk_is_never_installed_and_is_sent_again() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let package = open(&tree(&world, "1"), "app", "1");
    send(&agent, &package).await.unwrap();
    let digest = package.distinct_chunks()[0].digest.to_string();
    let path = store(&agent).join("chunks").join(&digest[..2]).join(&digest);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    write(&path, &bytes);
    let to = world.path("opt");
    let words = ["app", "1", "--to", &to.display().to_string()];
    let (code, _, told) = finish(&mut install(&world, &agent, &words));
    assert_eq!(code, 1);
    assert!(told.contains("damaged") && told.contains("hint: send the package again"), "{told}");
    assert_eq!(names(&to.join("app")), [".lock".to_owned()].into());
    let sent = send(&agent, &package).await.unwrap();
    assert_eq!((sent.chunks_sent, sent.already_there), (1, false));
    installed(&world, &agent, &to, &["1"]);
    assert_eq!(current(&to), "1");
    // A damaged manifest is as good as none.
    write(&store(&agent).join("kept/app/1"), b"damaged");
    assert_eq!(agent.client.list_packages(None).await.unwrap(), []);
    assert_eq!(send(&agent, &package).await.unwrap().chunks_sent, 0);
    assert_eq!(agent.client.list_packages(None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn hostile_packages_are_refused_and_nothing_is_kept_of_them() {
    let world = World::new();
    support::write(
        &{
            std::fs::create_dir_all(world.path("a/config")).unwrap();
            world.path("a/config/agent.toml")
        },
        "[files]\nmax_file_bytes = 1000000\n",
    );
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let digest = Digest::of(b"x");
    for body in [
        "f ../x\n".to_owned(),
        "f /etc/passwd\n".to_owned(),
        "d a\nf a/../../x\n".to_owned(),
        "l a\t/etc\n".to_owned(),
        "l a\t../b\n".to_owned(),
        "l a\tb/../../c\n".to_owned(),
        "l a\tb\nf a/x\n".to_owned(),
        "f .baton-package\n".to_owned(),
        format!("f a\nc {digest} 999999999\n"),
        format!("f a\nc {digest} 99999999999999999999\n"),
        "f b\nf a\n".to_owned(),
        String::new(),
    ] {
        let manifest = format!("baton-package 1\n{body}");
        let status = send_raw(&agent, manifest.as_bytes(), &[]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{body:?}");
        assert_eq!(reason_of(&status), "PACKAGE_INVALID", "{body:?}");
    }
    // A file that is larger than it may be, made of one chunk again and again.
    let again = format!("c {digest} 250000\n").repeat(5);
    let manifest = format!("baton-package 1\nf a\n{again}");
    let status = send_raw(&agent, manifest.as_bytes(), &[]).await.unwrap_err();
    assert_eq!(reason_of(&status), "PACKAGE_TOO_LARGE");
    assert_eq!(agent.client.list_packages(None).await.unwrap(), []);
}

#[tokio::test]
async fn chunks_and_starts_that_lie_are_refused_and_nothing_is_kept_of_them() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let digest = Digest::of(b"x");
    // Chunks that are not what was said: another one, none, a bomb.
    let chunk = Chunk { digest, size: 1 };
    let kind = EntryKind::File { executable: false, chunks: vec![chunk] };
    let manifest = Manifest::new(vec![Entry { path: "a".to_owned(), kind }]).unwrap().encode();
    let compress = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    for wrong in [
        compress(b"y"),
        b"no zstd".to_vec(),
        Vec::new(),
        compress(&vec![0; 100 * MIB]),
        content(1, 300_000),
    ] {
        let status = send_raw(&agent, &manifest, &[wrong]).await.unwrap_err();
        assert_eq!(reason_of(&status), "CHUNK_INVALID");
    }
    let status = send_raw(&agent, &manifest, &[]).await.unwrap_err();
    assert_eq!(reason_of(&status), "UPLOAD_INCOMPLETE");
    let start = |change: &dyn Fn(&mut v1::SendPackageStart)| {
        let mut start = v1::SendPackageStart {
            id: "app".to_owned(),
            version: "1".to_owned(),
            sha256: Digest::of(&manifest).to_bytes(),
            manifest_bytes: u32::try_from(manifest.len()).unwrap(),
            replace: false,
        };
        change(&mut start);
        start
    };
    for (start, expected) in [
        (start(&|start| start.sha256[0] ^= 1), "DIGEST_MISMATCH"),
        (start(&|start| start.manifest_bytes = 33 << 20), "PACKAGE_INVALID"),
        (start(&|start| start.manifest_bytes -= 1), "FIELD_TOO_LARGE"),
        (start(&|start| start.sha256.clear()), "FIELD_INVALID"),
        (start(&|start| start.id = "../x".to_owned()), "FIELD_INVALID"),
        (start(&|start| start.version = "current".to_owned()), "FIELD_INVALID"),
    ] {
        let status = send_parts(&agent, start, &manifest, &[]).await.unwrap_err();
        assert_eq!(reason_of(&status), expected);
    }
    assert_eq!(agent.client.list_packages(None).await.unwrap(), []);
    assert_eq!(chunks(&agent), 0);
    // And what is right is taken.
    let answers = send_raw(&agent, &manifest, &[compress(b"x")]).await.unwrap();
    assert!(matches!(answers.last(), Some(Kind::Done(_))), "{answers:?}");
}

#[tokio::test]
async fn a_full_disk_is_told_and_changes_nothing() {
    let world = World::new();
    let Some(_small) = Small::mount(&world.path("a/state"), 8) else {
        eprintln!("skipped: no file system may be mounted here");
        return;
    };
    std::fs::create_dir_all(world.path("a/config")).unwrap();
    support::write(&world.path("a/config/agent.toml"), "[files]\nmin_free_bytes = 1000000\n");
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let path = world.path("big");
    write(&path, &content(4, 7 * MIB));
    let error = send(&agent, &open(&path, "big", "1")).await.unwrap_err();
    assert_eq!(refusal(&error), "DISK_FULL");
    assert_eq!(chunks(&agent), 0, "nothing came");
    send_tree(&world, &agent, "1").await;
    send_tree(&world, &agent, "2").await;
    let to = world.path("small");
    let _other = Small::mount(&to, 1);
    installed(&world, &agent, &to, &["1"]);
    let ballast = to.join("ballast");
    write(&ballast, &content(2, 500_000));
    let words = ["app", "2", "--to", &to.display().to_string()];
    let (code, _, told) = finish(&mut install(&world, &agent, &words));
    assert_eq!(code, 75, "{told}");
    assert!(told.contains("No space left"), "{told}");
    assert_eq!(current(&to), "1");
    assert_eq!(names(&to.join("app")), [".lock", "1", "current"].map(Into::into).into());
    std::fs::remove_file(ballast).unwrap();
    installed(&world, &agent, &to, &["2"]);
    assert_eq!(current(&to), "2");
}

#[tokio::test]
async fn an_agent_keeps_the_last_ten_versions() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let path = world.path("file");
    for version in 0..12 {
        write(&path, format!("version {version}").as_bytes());
        send(&agent, &open(&path, "app", &version.to_string())).await.unwrap();
    }
    let kept = agent.client.list_packages(Some(&"app".parse().unwrap())).await.unwrap();
    let versions: Vec<_> = kept.iter().map(|kept| kept.version.to_string()).collect();
    let expected: Vec<_> = (2..12).rev().map(|version| version.to_string()).collect();
    assert_eq!(versions, expected);
    assert_eq!(chunks(&agent), 10);
}
