//! Promise: bad input gets a clear error with a stable reason, and nothing is lost or run.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::time::Duration;

use baton::client::connect;
use baton::script::{OutcomeKind, StartProblem};
use baton::wire::v1;
use support::{TestAgent, World, exited, finish, reason, soon};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use v1::scripts_client::ScriptsClient;

/// A request as any client could send it.
fn request() -> v1::ScriptSpec {
    v1::ScriptSpec { what: Some(body("true")), ..v1::ScriptSpec::default() }
}

async fn raw(agent: &TestAgent) -> ScriptsClient<tonic::transport::Channel> {
    ScriptsClient::new(connect::unix(&agent.folder.join("run/agent.sock")).await.unwrap())
}

async fn refused(
    client: &mut ScriptsClient<tonic::transport::Channel>,
    spec: v1::ScriptSpec,
) -> Status {
    soon("a refusal", client.start(v1::StartRequest { spec: Some(spec) })).await.unwrap_err()
}

fn body(text: impl Into<Vec<u8>>) -> v1::script_spec::What {
    v1::script_spec::What::Body(text.into().into())
}

fn file(name: &str, size: usize) -> v1::ScriptFile {
    v1::ScriptFile { name: name.to_owned(), content: vec![b'x'; size].into(), executable: false }
}

/// A request's change, the reason of the refusal, and the field that it names.
type BadCase = (fn(&mut v1::ScriptSpec), &'static str, &'static str);

const INVALID: &str = "FIELD_INVALID";
const TOO_LARGE: &str = "FIELD_TOO_LARGE";

const CASES: &[BadCase] = &[
    (|s| s.what = None, INVALID, "body or program"),
    (|s| s.what = Some(body("")), "SCRIPT_EMPTY", "body"),
    (|s| s.what = Some(body(" \n\t\n")), "SCRIPT_EMPTY", "body"),
    (|s| s.what = Some(body(vec![b'x'; 1024 * 1024 + 1])), TOO_LARGE, "body"),
    (|s| s.script_id = "a/b".into(), INVALID, "script_id"),
    (|s| s.script_id = "..".into(), INVALID, "script_id"),
    (|s| s.script_id = "-a".into(), INVALID, "script_id"),
    (|s| s.script_id = "a\0b".into(), INVALID, "script_id"),
    (|s| s.script_id = "a\nb".into(), INVALID, "script_id"),
    (|s| s.script_id = "x".repeat(129), INVALID, "script_id"),
    (|s| s.mutex = "../machine".into(), INVALID, "mutex"),
    (|s| s.mutex = "..".into(), INVALID, "mutex"),
    (|s| s.mutex = "a\0".into(), INVALID, "mutex"),
    (|s| s.mutex = "a\n".into(), INVALID, "mutex"),
    (|s| s.mutex = "x".repeat(251), INVALID, "mutex"),
    (|s| s.exclusive_key = "web\nprod".into(), INVALID, "exclusive_key"),
    (|s| s.exclusive_key = "x".repeat(81), INVALID, "exclusive_key"),
    (|s| s.files = vec![file("a/b", 1)], INVALID, "files[\"a/b\"]"),
    (|s| s.files = vec![file("..", 1)], INVALID, "files[\"..\"]"),
    (|s| s.files = vec![file("a\0", 1)], INVALID, "files[\"a\\0\"]"),
    (|s| s.files = vec![file("a\n", 1)], INVALID, "files[\"a\\n\"]"),
    (|s| s.files = vec![file("big", 1024 * 1024 + 1)], TOO_LARGE, "files[\"big\"]"),
    (|s| s.labels = [("a/b".into(), "x".into())].into(), INVALID, "labels[\"a/b\"]"),
    (|s| s.labels = [("..".into(), "x".into())].into(), INVALID, "labels[\"..\"]"),
    (|s| s.labels = [("a".into(), "x\ny".into())].into(), INVALID, "labels[\"a\"]"),
    (|s| s.labels = [("a".into(), "x\0".into())].into(), INVALID, "labels[\"a\"]"),
    (|s| s.labels = [("a".into(), "x".repeat(257))].into(), INVALID, "labels[\"a\"]"),
    (
        |s| s.run_time_limit = Some(prost_types::Duration::default()),
        "TIME_LIMIT_ZERO",
        "run_time_limit",
    ),
    (
        |s| s.queue_time_limit = Some(prost_types::Duration::default()),
        "TIME_LIMIT_ZERO",
        "queue_time_limit",
    ),
    (|s| s.working_directory = "here".into(), INVALID, "working_directory"),
];

#[tokio::test]
async fn each_bad_field_is_refused_with_a_reason_and_named() {
    let world = World::new();
    let agent = world.agent().await;
    let mut client = raw(&agent).await;
    for (break_it, reason, field) in CASES {
        let mut spec = request();
        break_it(&mut spec);
        let status = refused(&mut client, spec).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (*reason, "baton"), "{status}");
        assert_eq!(info.metadata.get("field").map(String::as_str), Some(*field), "{status}");
        assert!(status.message().starts_with(field), "{status}");
    }
    // Nothing of it is left, and the agent works.
    assert!(agent.client.list(&[], &[].into(), 10).await.unwrap().is_empty());
    assert!(exited(&agent.script("true").outcome().await, 0));
}

#[tokio::test]
async fn a_message_beyond_the_limit_of_grpc_is_refused_and_the_agent_goes_on() {
    let world = World::new();
    let agent = world.agent().await;
    let mut client = raw(&agent).await;
    let mut spec = request();
    spec.files = (0..5).map(|n| file(&format!("f{n}"), 1024 * 1024)).collect();
    let status = refused(&mut client, spec).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(exited(&agent.script("true").outcome().await, 0));
}

#[tokio::test]
async fn the_greatest_body_and_files_that_are_allowed_are_accepted() {
    let world = World::new();
    let agent = world.agent().await;
    let mut client = raw(&agent).await;
    let mut spec = request();
    spec.script_id = "greatest".to_owned();
    spec.what = Some(body(format!("cat files/* | wc -c\n#{}", "x".repeat(1024 * 1024 - 21))));
    spec.files = (0..2).map(|n| file(&format!("f{n}"), 1024 * 1024)).collect();
    let start = client.start(v1::StartRequest { spec: Some(spec) });
    soon("Start", start).await.unwrap();
    let id = "greatest".parse().unwrap();
    let script = support::Started { client: agent.client.clone(), id };
    assert_eq!(script.output().await, b"2097152\n");
}

#[tokio::test]
async fn an_interpreter_that_is_not_there_is_an_outcome_and_no_exit_code() {
    let world = World::new();
    let agent = world.agent().await;
    let unknown = |spec: &mut baton::spec::Spec| {
        spec.what =
            baton::spec::What::Body { text: "true".into(), interpreter: "no-such".to_owned() };
    };
    let outcome = agent.script("").with(unknown).outcome().await;
    let expected = OutcomeKind::NotStarted {
        cause: StartProblem::NotFound,
        reason: "`no-such` not found".to_owned(),
    };
    assert_eq!(outcome.kind, expected);
    // The command says the same, with the shell's exit status for it.
    let run = ["run", "--interpreter", "no-such", "-c", "true"];
    let (code, _, error) = finish(world.baton().args(run));
    assert_eq!(code, 127);
    assert!(error.contains("not started: `no-such` not found"), "{error}");
}

#[tokio::test]
async fn a_full_queue_says_so_and_loses_nothing() {
    let world = World::new();
    let config = world.path("a/config");
    std::fs::create_dir_all(&config).unwrap();
    support::write(&config.join("agent.toml"), "queue_length = 2\n");
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let running = agent.script(gate.wait()).start().await;
    let queued = agent.script("true").start().await;
    let error = agent.script("true").try_start().await.err().unwrap();
    assert_eq!(reason(&error), "QUEUE_FULL");
    assert!(error.to_string().contains("2 scripts"), "{error}");
    // A health check takes no mutex, and no place of theirs.
    assert!(exited(&agent.script("exit 3").observer().outcome().await, 3));
    // The command tells it with "busy"; a cancel is never blocked and makes room.
    let (code, _, error) = finish(world.baton_at("a").args(["run", "-c", "true"]));
    assert_eq!(code, 75, "{error}");
    assert!(error.contains("hint:"), "{error}");
    support::cancel(&queued, "").await;
    queued.is_done().await;
    let next = agent.script("true").start().await;
    gate.open();
    assert!(exited(&running.outcome().await, 0));
    assert!(exited(&next.outcome().await, 0));
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let world = World::new();
    let agent = world.agent().await;
    let id: baton::script::ScriptId = "nobody".parse().unwrap();
    let error = agent.client.get(&id).await.unwrap_err();
    assert_eq!(reason(&error), "SCRIPT_NOT_FOUND");
    let error = agent.client.cancel(&id, String::new()).await.unwrap_err();
    assert_eq!(reason(&error), "SCRIPT_NOT_FOUND");
    let error = agent.client.watch(id.clone(), 0, true).next().await.unwrap_err();
    assert_eq!(reason(&error), "SCRIPT_NOT_FOUND");
    let error = agent.client.forget(&id).await.unwrap_err();
    assert_eq!(reason(&error), "SCRIPT_NOT_FOUND");
}

#[test]
fn an_unknown_key_of_the_configuration_is_an_error_with_its_line() {
    let world = World::new();
    let config = world.path("a/config");
    std::fs::create_dir_all(&config).unwrap();
    support::write(&config.join("agent.toml"), "# mine\n\nqueue_lenght = 5\n");
    for command in [&["agent", "run"][..], &["run", "-c", "true"]] {
        let (code, _, error) = finish(world.baton_at("a").args(command));
        assert_eq!(code, 2, "{error}");
        assert!(error.contains("agent.toml, line 3"), "{error}");
        assert!(error.contains("queue_lenght"), "{error}");
    }
}

#[test]
fn misuse_of_the_command_is_a_usage_error_that_names_the_mistake() {
    let world = World::new();
    for (arguments, told) in [
        (&["run"][..], "no script"),
        (&["run", "-c", ""], "body"),
        (&["run", "-c", " "], "nothing to run"),
        (&["run", "no-such-file"], "no-such-file"),
        (&["run", "--id", "a/b", "-c", "true"], "'/'"),
        (&["run", "--mutex", "..", "-c", "true"], ".."),
        (&["run", "--timeout", "0s", "-c", "true"], "zero"),
        (&["run", "--timeout", "5", "-c", "true"], "90s"),
        (&["run", "--label", "a/b=c", "-c", "true"], "labels"),
        (&["run", "--env", "nothing", "-c", "true"], "KEY=VALUE"),
        (&["run", "--at-most", "2", "-c", "true"], "--bypass-mutex"),
        (&["run", "--observe", "--bypass-mutex", "-c", "true"], "--bypass-mutex"),
        (&["run", "--target", "nowhere", "-c", "true"], "nowhere"),
        (&["run", "--target", "nowhere:1", "-c", "true"], "--fingerprint"),
        (&["logs", "../x"], "'/'"),
        (&["mutex", "run", "log"], "--"),
        (&["mutex", "run", "--", "true"], "name"),
        (&["mutex", "run", "log", "--"], "command"),
        (&["mutex", "run", "a/b", "--", "true"], "'/'"),
        (&["mutex", "run", "log", "--shared", "--", "true"], "options stand before"),
        (&["target", "add", "a", "nowhere", "--fingerprint", "00"], "fingerprint"),
        (&["agent", "untrust", "nobody"], "nobody"),
    ] {
        let (code, _, error) = finish(world.baton().args(arguments));
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(told), "{arguments:?}: {error}");
    }
}

#[test]
fn a_mutex_folder_that_can_t_be_used_is_a_clear_error() {
    let world = World::new();
    let file = world.path("file");
    support::write(&file, "");
    let mut command = world.baton();
    command.args(["mutex", "run", "log", "--", "true"]).env("BATON_MUTEX_DIR", &file);
    let (code, _, error) = finish(&mut command);
    assert_eq!(code, 70);
    assert!(error.contains(&file.display().to_string()), "{error}");
}

#[test]
fn a_mutex_folder_that_others_can_write_is_refused_with_a_hint() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    std::fs::create_dir(world.mutexes()).unwrap();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(world.mutexes(), open).unwrap();
    let (code, _, error) = finish(world.baton().args(["mutex", "run", "log", "--", "true"]));
    assert_eq!(code, 70);
    assert!(error.contains("is not safe") && error.contains("hint: chmod go-w"), "{error}");
}

#[tokio::test]
async fn time_in_the_queue_has_no_zero_and_no_eternity_by_mistake() {
    let world = World::new();
    let agent = world.agent().await;
    let too_long = |spec: &mut baton::spec::Spec| {
        spec.run_time_limit = Some(Duration::from_hours(366 * 24));
    };
    let error = agent.script("true").with(too_long).try_start().await.err().unwrap();
    assert_eq!(reason(&error), "FIELD_INVALID");
    assert!(
        error.to_string().contains("run_time_limit is out of range: at most 365 days"),
        "{error}"
    );
}
