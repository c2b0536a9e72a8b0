//! Promise: an agent takes another version of its program only when it is signed by a known key, becomes it without
//! losing a script, and comes back by itself as it was when the new version doesn't serve, whoever is killed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails here")]

mod support;
#[path = "support/upgrading.rs"]
mod upgrading;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use baton::client::{FileError, UpgradeWish, connect};
use baton::upgrade::{Ended, Stage};
use baton::wire::v1;
use support::versions::{Signer, make, other, version};
use support::{DEADLINE, exited, finish, lines, reason, signal, soon, spawn, write};
use upgrading::{NEWER, OWN, Site};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_version_takes_over_and_what_runs_and_waits_does_not_notice() {
    let site = Site::new("30s").start_after("ulimit -Sn 500;").await;
    let (pid, log) = (site.pid(), site.world.path("order"));
    let (gate, log_path) = (site.world.gate(), log.display().to_string());
    let text = format!("echo 1 >> {log_path}; echo one; {}; echo two; exit 7", gate.wait());
    let running = site.script("running", &text).await;
    running.has_written(4).await;
    for number in 2..5 {
        site.script(&format!("s{number}"), &format!("echo {number} >> {log_path}")).await;
    }
    // Held all the time: whoever is let in during the upgrade writes here.
    let mut outsider = site.world.baton();
    outsider.args(["mutex", "run", "machine", "--", "sh", "-c", "echo outsider >> \"$0\""]);
    let mut outsider = spawn(outsider.arg(&log).stderr(Stdio::null()));

    let newer = site.newer();
    let (code, out, error) = finish(&mut site.upgrade(&newer, &[]));
    assert_eq!(
        (code, out.as_str()),
        (0, format!("upgraded from {OWN} to {NEWER}\n").as_str()),
        "{error}"
    );
    assert!(error.contains("the agent restarts"), "{error}");
    let info = site.serves(NEWER).await;
    // The same process, another program; the old one is kept.
    assert_eq!(site.pid(), pid);
    assert_eq!(site.installed(), ["baton", "baton.previous"]);
    let upgrade = info.status.unwrap().upgrade.unwrap();
    assert_eq!((upgrade.from_version.as_str(), upgrade.to_version.as_str()), (OWN, NEWER));
    assert_eq!(upgrade.phase(), v1::UpgradePhase::Upgraded);
    let (_, shown, _) = finish(site.world.baton_at("a").args(["agent", "info"]));
    assert!(shown.contains(&format!("upgraded: {OWN} to {NEWER} by uid")), "{shown}");

    // The script still runs alone, in its log nothing is missing, and the queue is in its order.
    assert_eq!(lines(&log), ["1"]);
    gate.open();
    let running = site.started("running").await;
    assert!(exited(&running.outcome().await, 7));
    assert_eq!(running.output().await, b"one\ntwo\n");
    for number in 2..5 {
        assert!(exited(&site.started(&format!("s{number}")).await.outcome().await, 0));
    }
    let limit = site.script("limit", "ulimit -Sn").await;
    assert!(exited(&limit.outcome().await, 0));
    assert_eq!(limit.output().await, b"500\n");
    outsider.wait().unwrap();
    let order: Vec<_> = lines(&log).into_iter().filter(|line| line != "outsider").collect();
    assert_eq!(order, ["1", "2", "3", "4"]);
    // Nobody is left: the guard and the supervisor that the old program had ready are reaped.
    let none_dead = async {
        while baton::process::all().any(|process| process.parent == pid && process.is_zombie()) {
            tokio::task::yield_now().await;
        }
    };
    soon("the dead to be reaped", none_dead).await;
    // The same again changes nothing, and is no error.
    let (code, out, _) = finish(&mut site.upgrade(&newer, &["--json"]));
    assert_eq!((code, json(&out)["event"].as_str()), (0, Some("unchanged")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_right_is_refused_and_nothing_is_changed() {
    let site = Site::new("30s").start().await;
    let (before, pid) = (std::fs::read(&site.program).unwrap(), site.pid());
    let refused = |program: &Path, more: &[&str], code: i32, text: &str| {
        let (found, _, error) = finish(&mut site.upgrade(program, more));
        assert_eq!(found, code, "{error}");
        assert!(error.contains(text), "{text}: {error}");
    };
    let newer = site.newer();

    // Not signed; by another key; by a key with the same id; changed after it was signed.
    std::fs::remove_file(newer.with_extension("minisig")).unwrap();
    refused(&newer, &[], 2, "minisign -S");
    write(&newer.with_extension("minisig"), "signed, honestly\n");
    refused(&newer, &[], 77, "is none of minisign");
    Signer::new(2).sign(&newer);
    refused(&newer, &[], 77, "by none of the keys");
    Signer::new(1).sign(&newer);
    refused(&newer, &[], 77, "is not of this program");
    site.signer.sign(&newer);
    let mut changed = std::fs::read(&newer).unwrap();
    changed.push(0);
    let changed = make(&site.world, "baton-changed", &changed);
    std::fs::copy(newer.with_extension("minisig"), changed.with_extension("minisig")).unwrap();
    refused(&changed, &[], 77, "is not of this program");

    // Signed, but no program for this machine, none of baton, or an older one.
    let script = make(&site.world, "script", b"#!/bin/sh\necho baton 9.9.9\n");
    site.signer.sign(&script);
    refused(&script, &[], 2, "no ELF file");
    let truth = make(&site.world, "truth", &std::fs::read("/bin/true").unwrap());
    site.signer.sign(&truth);
    refused(&truth, &[], 2, "trial run");
    let older = version(&site.world, &site.program, "0.0.9");
    site.signer.sign(&older);
    refused(&older, &[], 2, "--allow-downgrade");
    // A program that says no version ends with its trial.
    let silent = other(&site.world, "x", "");
    site.signer.sign(&silent);
    refused(&silent, &[], 2, "is no version");

    // What would be taken, and is only checked.
    let (code, out, error) = finish(&mut site.upgrade(&newer, &["--dry-run", "--json"]));
    assert_eq!(code, 0, "{error}");
    let told = json(&out);
    assert_eq!((told["event"].as_str(), told["to"].as_str()), (Some("checked"), Some(NEWER)));
    let (code, _, error) = finish(&mut site.upgrade(&older, &["--dry-run", "--allow-downgrade"]));
    assert_eq!(code, 0, "{error}");

    assert_eq!(std::fs::read(&site.program).unwrap(), before);
    assert_eq!((site.installed(), site.pid()), (vec!["baton".to_owned()], pid));
    assert_eq!(site.stage(), None);
    assert_eq!(site.serves(OWN).await.version, OWN);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_or_damaged_changes_nothing() {
    let site = Site::new("30s").start().await;
    let newer = site.newer();
    let content = std::fs::read(&newer).unwrap();
    let signature = std::fs::read_to_string(newer.with_extension("minisig")).unwrap();
    let (channel, length) = (connect::unix(&site.socket()).await.unwrap(), content.len());
    let send = |size: usize, content: Vec<u8>, digest: &[u8]| {
        let start = v1::UpgradeStart {
            size: u64::try_from(size).unwrap(),
            sha256: digest.to_vec(),
            signature: signature.clone(),
            ..v1::UpgradeStart::default()
        };
        let pieces = content.chunks(1024 * 1024).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let start = v1::upgrade_request::Part::Start(start);
        let parts = pieces.into_iter().map(|piece| v1::upgrade_request::Part::Data(piece.into()));
        let parts: Vec<_> = std::iter::once(start).chain(parts).collect();
        let messages = parts.into_iter().map(|part| v1::UpgradeRequest { part: Some(part) });
        let messages = tokio_stream::iter(messages.collect::<Vec<_>>());
        let mut agent = v1::agent_client::AgentClient::new(channel.clone());
        async move {
            let answer = soon("an answer", agent.upgrade(messages)).await;
            baton::client::ClientError::from(answer.err().unwrap())
        }
    };
    let digest = baton::transfer::Digest::of(&content).to_bytes();
    let short = content[..length / 2].to_vec();
    assert_eq!(reason(&send(length, short.clone(), &digest).await), "UPLOAD_INCOMPLETE");
    assert_eq!(reason(&send(length / 2, content.clone(), &digest).await), "FIELD_TOO_LARGE");
    let mut damaged = content.clone();
    damaged[length / 2] ^= 1;
    assert_eq!(reason(&send(length, damaged, &digest).await), "DIGEST_MISMATCH");
    assert_eq!(reason(&send(length, short, b"short").await), "FIELD_INVALID");
    let huge = send(usize::try_from(u64::MAX / 2).unwrap(), Vec::new(), &digest).await;
    assert_eq!(reason(&huge), "FILE_TOO_LARGE");
    assert_eq!((site.installed(), site.stage()), (vec!["baton".to_owned()], None));
    // What was refused is no upgrade in progress.
    assert_eq!(finish(&mut site.upgrade(&newer, &["--quiet"])).0, 0);
    site.serves(NEWER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_in_the_configuration_none_is_taken() {
    let site = Site::new("30s");
    write(&site.world.path("a/config/agent.toml"), "");
    let site = site.start().await;
    let (code, _, error) = finish(&mut site.upgrade(&site.newer(), &[]));
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("no key in upgrade.keys") && error.contains("hint:"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_are_one() {
    let site = Site::new("30s").start().await;
    let newer = site.newer();
    let content = std::fs::read(&newer).unwrap();
    let start = v1::UpgradeStart {
        size: u64::try_from(content.len()).unwrap(),
        sha256: baton::transfer::Digest::of(&content).to_bytes(),
        signature: std::fs::read_to_string(newer.with_extension("minisig")).unwrap(),
        ..v1::UpgradeStart::default()
    };
    // The first one stands still when the agent has begun to take it.
    let message = |part| v1::UpgradeRequest { part: Some(part) };
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let channel = connect::unix(&site.socket()).await.unwrap();
    let mut agent = v1::agent_client::AgentClient::new(channel);
    let messages = tokio_stream::wrappers::ReceiverStream::new(receive);
    let first = tokio::spawn(async move { agent.upgrade(messages).await });
    send.send(message(v1::upgrade_request::Part::Start(start))).await.unwrap();
    let begun = async {
        while !site.world.path("a/state/upgrade/program").exists() {
            tokio::task::yield_now().await;
        }
    };
    soon("the first one", begun).await;
    let (code, _, error) = finish(&mut site.upgrade(&newer, &[]));
    assert_eq!(code, 75, "{error}");
    assert!(error.contains("another upgrade is in progress"), "{error}");
    for piece in content.chunks(1024 * 1024) {
        let data = v1::upgrade_request::Part::Data(piece.to_vec().into());
        send.send(message(data)).await.unwrap();
    }
    drop(send);
    let response = soon("the answer", first).await.unwrap().unwrap().into_inner();
    let client = site.client().await;
    let ended = client.upgraded(&response.upgrade_id, DEADLINE);
    let ended = Box::pin(soon("its end", ended)).await.unwrap().unwrap();
    assert_eq!(ended.phase(), v1::UpgradePhase::Upgraded);
}

/// Upgrades to something that does not serve, while a script runs and others wait; the old version is back.
async fn is_rolled_back(site: &Site, main: &str, why: &str) {
    let (before, log) = (std::fs::read(&site.program).unwrap(), site.world.path("order"));
    let (gate, log_path) = (site.world.gate(), log.display().to_string());
    let text = format!("echo 1 >> {log_path}; echo one; {}; echo two; exit 7", gate.wait());
    let running = site.script("running", &text).await;
    running.has_written(4).await;
    site.script("next", &format!("echo 2 >> {log_path}")).await;
    let bad = site.bad(main);
    let (code, out, error) = finish(&mut site.upgrade(&bad, &["--json"]));
    assert_eq!(code, 1, "{error}\n{}", site.said());
    let told = json(&out);
    assert_eq!(told["event"], "rolled_back");
    assert!(told["reason"].as_str().unwrap().contains(why), "{told}");
    let info = site.serves(OWN).await;
    assert_eq!(std::fs::read(&site.program).unwrap(), before);
    assert_eq!(site.installed(), ["baton"]);
    let upgrade = info.status.unwrap().upgrade.unwrap();
    assert_eq!(upgrade.phase(), v1::UpgradePhase::RolledBack);
    let (_, shown, _) = finish(site.world.baton_at("a").args(["agent", "info"]));
    assert!(shown.contains("was rolled back") && shown.contains(why), "{shown}");
    assert!(site.said().contains("rolled back"), "{}", site.said());
    // Nothing of the new version is left, what ran still runs, and the queue is there.
    let others = baton::process::all().filter(|process| {
        baton::upgrade::runs_another(&site.program, process.pid)
            && process.variable("BATON_STATE_DIR").ok().flatten()
                == Some(site.world.path("a/state").display().to_string())
            && process.command_line().starts_with(&site.program.display().to_string())
            && process.command_line().contains("agent run")
    });
    assert_eq!(
        others.map(|process| process.command_line()).collect::<Vec<_>>(),
        Vec::<String>::new()
    );
    assert_eq!(lines(&log), ["1"]);
    gate.open();
    let running = site.started("running").await;
    assert!(exited(&running.outcome().await, 7));
    assert_eq!(running.output().await, b"one\ntwo\n");
    assert!(exited(&site.started("next").await.outcome().await, 0));
    assert_eq!(lines(&log), ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_ends_at_once_is_rolled_back_also_when_nobody_supervises() {
    let site = Site::new("30s").start().await;
    Box::pin(is_rolled_back(&site, "std::process::exit(3);", "the new version ended")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_loops_through_crashes_is_rolled_back_under_who_supervises() {
    let site = Site::new("30s").start_supervised().await;
    Box::pin(is_rolled_back(&site, "panic!();", "the new version ended")).await;
    // Who supervises did it, at the first crash or soon after.
    let restarts = lines(&site.world.path("restarts")).len();
    assert!((1..50).contains(&restarts), "{restarts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_hangs_is_ended_and_rolled_back() {
    let site = Site::new("2s").start_supervised().await;
    // Started in the same way, of another program; its folders are others.
    let other = site.world.agent_at("b", &["--listen", "none"]).await;
    let process = baton::process::Process::read(other.pid()).unwrap();
    Box::pin(is_rolled_back(&site, "loop { std::thread::park(); }", "did not serve within 2s"))
        .await;
    assert_eq!(lines(&site.world.path("restarts")).len(), 1);
    let still = baton::process::Process::read(process.pid).filter(|still| !still.is_zombie());
    assert_eq!(still.map(|still| still.id()), Some(process.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_listens_and_answers_nothing_is_rolled_back() {
    let site = Site::new("3s").start().await;
    let socket = site.socket();
    let main = format!(
        "let l = std::os::unix::net::UnixListener::bind({:?}).unwrap();\n\
         let mut kept = Vec::new(); loop {{ kept.push(l.accept()); }}",
        socket.display().to_string()
    );
    Box::pin(is_rolled_back(&site, &main, "did not serve within 3s")).await;
}

/// Upgrades an agent that, or whose guard, dies at a point; how it ends.
async fn dies_at(
    point: &str,
    health_limit: &str,
    program: impl Fn(&Site) -> PathBuf,
) -> (Site, v1::AgentUpgrade) {
    let mut site = Site::new(health_limit);
    let due = site.world.path("due");
    write(&due, "");
    let mut command = Command::new("sh");
    let run = site.run();
    command.args(["-c", "while :; do \"$@\"; echo again >> \"$0\"; done"]);
    command.arg(site.world.path("restarts")).arg(run.get_program()).args(run.get_args());
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env(baton::crash::VARIABLE, format!("{point}={}", due.display()));
    command.stdin(Stdio::null()).stderr(site.log());
    site.agent = Some(spawn(&mut command));
    site.serves(OWN).await;
    let gate = site.world.gate();
    let running = site.script("running", &format!("echo one; {}; exit 7", gate.wait())).await;
    running.has_written(4).await;
    let program = program(&site);
    let signature = std::fs::read_to_string(program.with_extension("minisig")).unwrap();
    let wish = UpgradeWish { program, signature, allow_downgrade: false, dry_run: false };
    let client = site.client().await;
    // Whether or not the answer came.
    let answer = Box::pin(soon("the upgrade", client.upgrade(wish, Arc::new(|_| ())))).await;
    if let Err(FileError::Agent(error)) = answer {
        assert!(error.is_passing(), "{error}");
    }
    let upgrade = Box::pin(site.ended()).await;
    assert!(!due.exists(), "{point}: nobody came there: {}", site.said());
    gate.open();
    assert!(exited(&site.started("running").await.outcome().await, 7), "{point}");
    (site, upgrade)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_at_a_named_point_the_upgrade_is_settled_one_way_or_the_other() {
    use v1::UpgradePhase::{RolledBack, Upgraded};
    for (point, phase) in [
        ("upgrade recorded", RolledBack),
        ("upgrade guarded", RolledBack),
        ("before swap", RolledBack),
        // The new program is at its path: who supervises starts that one.
        ("after swap", RolledBack),
        // Whether it was the new program that ended nobody can know.
        ("upgrade starting", RolledBack),
        ("guard watches", Upgraded),
    ] {
        let (site, upgrade) = Box::pin(dies_at(point, "20s", Site::newer)).await;
        assert_eq!(upgrade.phase(), phase, "{point}: {} {}", upgrade.reason, site.said());
        site.serves(if phase == Upgraded { NEWER } else { OWN }).await;
        let installed: Vec<_> =
            site.installed().into_iter().filter(|name| *name != "baton.previous").collect();
        assert_eq!(installed, ["baton"], "{point}");
        let stage = site.stage().unwrap();
        assert!(stage.is_done(), "{point}: {stage:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_dies_while_it_takes_back_is_followed_by_another_one_or_the_old_agent() {
    for point in ["guard takes back", "guard has put back"] {
        // A good one that has no time: it goes on with the record, against itself.
        let (site, upgrade) = Box::pin(dies_at(point, "1ms", Site::newer)).await;
        assert_eq!(upgrade.phase(), v1::UpgradePhase::RolledBack, "{point}");
        site.serves(OWN).await;
        assert_eq!(site.installed(), ["baton"], "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_told_to_stop_during_its_trial_stops() {
    let mut site = Site::new("30s").start().await;
    site.begin(site.newer()).await;
    // Its guard sees nothing for a while.
    let is_guard = |process: &baton::process::Process| {
        process.command_line().contains(&format!("guard {}", site.world.path("a/state").display()))
    };
    let guard = baton::process::all().find(is_guard).unwrap();
    let guard = support::Stopped::new(guard.pid);
    site.serves(NEWER).await;
    assert_eq!(site.stage(), Some(Stage::Starting));
    // Until that is settled there is no other one.
    let (code, _, error) = finish(&mut site.upgrade(&site.bad(""), &[]));
    assert_eq!(code, 75, "{error}");
    assert!(error.contains(&format!("in progress, to version {NEWER}")), "{error}");
    signal(site.agent.as_ref().unwrap(), rustix::process::Signal::TERM);
    site.has_ended().await;
    let upgraded = matches!(site.stage(), Some(Stage::Done { ended: Ended::Upgraded, .. }));
    assert!(upgraded, "{:?}", site.stage());
    // Nobody starts it again.
    guard.go_on_to_the_end();
    assert!(!site.socket().exists());
    assert_eq!(site.installed(), ["baton", "baton.previous"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_told_to_stop_before_it_becomes_the_new_program_leaves_the_old_one() {
    let site = Site::new("30s");
    let config = std::fs::read_to_string(site.world.path("a/config/agent.toml")).unwrap();
    let config = format!("stop_wait = \"1min\"\n{config}");
    write(&site.world.path("a/config/agent.toml"), &config);
    let mut site = site.start().await;
    let before = std::fs::read(&site.program).unwrap();
    let gate = site.world.gate();
    let running = site.script("running", &format!("echo one; {}", gate.wait())).await;
    running.has_written(4).await;
    signal(site.agent.as_ref().unwrap(), rustix::process::Signal::TERM);
    let mut standing = site.client().await.watch_agent();
    let told = async { while standing.next().await.unwrap().stops_by.is_none() {} };
    soon("the stop", told).await;
    site.begin(site.newer()).await;
    site.has_ended().await;
    let stage = site.stage();
    let Some(Stage::Done { ended: Ended::RolledBack { reason }, .. }) = &stage else {
        panic!("{stage:?}");
    };
    assert!(reason.contains("told to stop"), "{reason}");
    assert_eq!((site.installed(), site.socket().exists()), (vec!["baton".to_owned()], false));
    assert_eq!(std::fs::read(&site.program).unwrap(), before);
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_is_what_ran_also_when_its_file_was_replaced_meanwhile() {
    let site = Site::new("30s").start().await;
    let before = std::fs::read(&site.program).unwrap();
    baton::durable::replace_file(&site.program, b"by hand", 0o755).unwrap();
    let bad = site.bad("std::process::exit(3);");
    let (code, _, error) = finish(&mut site.upgrade(&bad, &[]));
    assert_eq!(code, 1, "{error}\n{}", site.said());
    site.serves(OWN).await;
    assert!(std::fs::read(&site.program).unwrap() == before, "another program is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_build_of_the_same_version_is_taken_and_rolled_back_as_any_other() {
    let site = Site::new("30s").start().await;
    let mut content = std::fs::read(&site.program).unwrap();
    content.push(0);
    let build = make(&site.world, "baton-build", &content);
    site.signer.sign(&build);
    let (code, out, error) = finish(&mut site.upgrade(&build, &[]));
    assert_eq!(code, 0, "{error}");
    assert_eq!(out, format!("upgraded from {OWN} to {OWN}\n"));
    let runs = |content: &[u8]| {
        std::fs::read(format!("/proc/{}/exe", site.pid())).unwrap() == content
            && std::fs::read(&site.program).unwrap() == content
    };
    assert!(runs(&content));
    let bad = other(&site.world, OWN, "std::process::exit(3);");
    site.signer.sign(&bad);
    let (code, _, error) = finish(&mut site.upgrade(&bad, &[]));
    assert_eq!(code, 1, "{error}\n{}", site.said());
    site.serves(OWN).await;
    assert!(runs(&content));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_only_the_new_version_can_read_is_replaced_by_the_copy_from_before() {
    let site = Site::new("30s").start().await;
    assert!(exited(&site.script("before", "exit 7").await.outcome().await, 7));
    let (newer, next) = (site.world.path("newer.db"), baton::store::known_version() + 1);
    let connection = rusqlite::Connection::open(&newer).unwrap();
    connection.execute_batch(&format!("PRAGMA user_version = {next}")).unwrap();
    drop(connection);
    // As a migration does it; then it ends.
    let database = site.world.path("a/state/agent.db").display().to_string();
    let main = format!(
        "std::fs::copy({database:?}, \"{database}.before-v{next}\").unwrap();\n\
         std::fs::copy({:?}, {database:?}).unwrap(); std::process::exit(3);",
        newer.display().to_string()
    );
    let (code, _, error) = finish(&mut site.upgrade(&site.bad(&main), &[]));
    assert_eq!(code, 1, "{error}\n{}", site.said());
    site.serves(OWN).await;
    assert!(exited(&site.started("before").await.outcome().await, 7));
    assert!(site.world.path("a/state/agent.db.replaced").exists());
    assert!(site.said().contains("what it was before the newer version"), "{}", site.said());
}

/// Is rolled back while the agent is what systemd would know by these words of a shell.
async fn is_left_to_systemd(known_by: &str) {
    let mut site = Site::new("30s").start_after(known_by).await;
    site.begin(site.bad("std::process::exit(0);")).await;
    site.has_ended().await;
    let settled = async {
        while !site.stage().is_some_and(|stage| stage.is_done()) {
            tokio::task::yield_now().await;
        }
    };
    soon("the roll-back", settled).await;
    let state = site.world.path("a/state").display().to_string();
    let ours = baton::process::all().filter(|process| {
        process.variable("BATON_STATE_DIR").ok().flatten().as_ref() == Some(&state)
            && process.command_line().contains("agent run --listen")
            && !process.command_line().contains("guard")
    });
    let ours: Vec<_> = ours.map(|process| process.command_line()).collect();
    assert_eq!(ours, Vec::<String>::new(), "{known_by}: {}", site.said());
    assert!(!site.said().contains("the guard has"), "{known_by}: {}", site.said());
    assert_eq!(site.installed(), ["baton"]);
    // As systemd does it, unless the unit was stopped.
    let site = site.start().await;
    assert_eq!(site.ended().await.phase(), v1::UpgradePhase::RolledBack);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_a_service_of_systemd_is_started_by_nobody_else() {
    for known_by in ["NOTIFY_SOCKET=/nowhere/notify", "SYSTEMD_EXEC_PID=$$"] {
        Box::pin(is_left_to_systemd(known_by)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_upgrades() {
    let site = Site::new("30s");
    let me = baton::trust::Identity::load_or_create(&site.world.path("me/config"), "client");
    let me = me.unwrap();
    let fingerprint = me.fingerprint().to_string();
    let (_, init, _) = finish(site.world.baton_at("a").args(["agent", "init", "--json"]));
    let agent = json(&init)["fingerprint"].as_str().unwrap().to_owned();
    let trust = |role: &str| {
        let words = ["agent", "trust", &fingerprint, "--name", "ci", "--role", role];
        assert_eq!(finish(site.world.baton_at("a").args(words)).0, 0);
    };
    trust("operator");
    let mut site = site;
    let mut run = site.command(&site.program);
    run.args(["agent", "run", "--listen", "127.0.0.1:0"]).stderr(site.log());
    site.agent = Some(spawn(&mut run));
    site.serves(OWN).await;
    let newer = site.newer();
    let address = std::fs::read_to_string(site.world.path("a/run/agent.address")).unwrap();
    let upgrade = || {
        let mut command = site.world.baton_at("me");
        command.args(["agent", "upgrade"]).arg(&newer).arg("--signature");
        command.arg(newer.with_extension("minisig")).args(["--dry-run", "--target"]);
        finish(command.arg(address.trim()).args(["--fingerprint", &agent]))
    };
    let (code, _, error) = upgrade();
    assert_eq!(code, 77, "{error}");
    assert!(error.contains("needs the role admin") && error.contains("--role admin"), "{error}");
    let words = ["agent", "trust", &fingerprint, "--name", "ci", "--role", "admin"];
    assert_eq!(finish(site.world.baton_at("a").args(words)).0, 0);
    let given = tokio::task::block_in_place(|| {
        let begun = std::time::Instant::now();
        loop {
            let (code, _, error) = upgrade();
            if code != 77 || begun.elapsed() > DEADLINE {
                break (code, error);
            }
        }
    });
    assert_eq!(given.0, 0, "{}", given.1);
}
