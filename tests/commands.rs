//! Promise: `baton run` behaves like the script it runs: its output, its exit status, its end; and
//! says the rest on standard error.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::{World, finish, signal, spawn};

/// A command whose output is read line by line.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut std::process::Command) -> Self {
        let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// The next line of its output, without the newline.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Exit status and what it said on standard error.
    fn end(mut self) -> (i32, String) {
        let mut error = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), error)
    }
}

#[test]
fn output_and_exit_status_are_the_script_s() {
    let world = World::new();
    let script = "echo out; echo err >&2; exit 3";
    let (code, out, error) = finish(world.baton().args(["run", "-c", script]));
    assert_eq!((code, out.as_str(), error.as_str()), (3, "out\n", "err\n"));
    let (code, out, error) = finish(world.baton().args(["run", "-c", "printf 'a\\0b'"]));
    assert_eq!((code, out.as_str(), error.as_str()), (0, "a\0b", ""));
    let (code, _, error) = finish(world.baton().args(["run", "-c", "kill -9 $$"]));
    assert_eq!((code, error.as_str()), (137, "baton: ended by signal 9\n"));
}

#[test]
fn a_file_runs_with_its_arguments_one_by_one_and_with_the_interpreter_that_it_names() {
    let world = World::new();
    let script = world.path("deploy");
    support::write(&script, "#!/usr/bin/env sh\nprintf '<%s>' \"$@\"\n");
    let path = script.display().to_string();
    let words = ["run", &path, "a b", "$(c)", "", "--json", "'"];
    let (code, out, error) = finish(world.baton().args(words));
    assert_eq!((code, out.as_str()), (0, "<a b><$(c)><><--json><'>"), "{error}");
    let text = "#!/bin/cat\nshown as it is\n";
    support::write(&script, text);
    assert_eq!(finish(world.baton().args(["run", &path])).1, text);
    let (code, out, _) = finish(world.baton().args(["run", "-c", "echo $0; echo $#", "x", "y"]));
    assert_eq!((code, out.lines().last()), (0, Some("2")));
    let file = ["run", "--file", &path, "-c", "test -f files/deploy && pwd"];
    let (code, out, _) = finish(world.baton().args(file));
    assert_eq!((code, out.trim().ends_with("/work")), (0, true));
}

#[test]
fn each_end_that_is_not_the_script_s_has_its_own_exit_status() {
    let world = World::new();
    let slow = ["run", "--timeout", "100ms", "-c", "sleep 600"];
    let (code, _, error) = finish(world.baton().args(slow));
    assert_eq!((code, error.as_str()), (124, "baton: stopped at its time limit of 100ms\n"));

    let gate = world.gate();
    let holder = format!("echo on; {}", gate.wait());
    let mut holder =
        Running::start(world.baton().args(["mutex", "run", "machine", "--", "sh", "-c", &holder]));
    assert_eq!(holder.line(), "on");
    let late = ["run", "--queue-timeout", "2s", "-c", "true"];
    let (code, _, error) = finish(world.baton().args(late));
    assert_eq!(code, 75, "{error}");
    let told = "baton: waiting, position 1: `machine` is held by pid ";
    assert!(error.starts_with(told), "{error}");
    assert!(error.contains("not run: it waited longer than its limit of 2s"), "{error}");
    gate.open();
    assert_eq!(holder.end().0, 0);

    let (code, _, error) = finish(world.baton().args(["queue"]));
    assert_eq!(code, 69, "{error}");
    assert!(error.contains("hint: start one with `baton agent run`"), "{error}");
    let (code, _, _) = finish(world.baton().args(["run", "--directory", "/none", "-c", "true"]));
    assert_eq!(code, 127);
}

#[test]
fn ctrl_c_asks_the_script_to_stop_and_waits_for_its_cleanup() {
    let world = World::new();
    let script = "trap 'echo cleaned up; exit 0' TERM; echo on; while :; do sleep 0.1; done";
    let mut run = Running::start(world.baton().args(["run", "-c", script]));
    assert_eq!(run.line(), "on");
    signal(&run.child, Signal::INT);
    assert_eq!(run.line(), "cleaned up");
    let (code, error) = run.end();
    assert_eq!(code, 130, "{error}");
    assert!(error.contains("asking the agent to stop the script"), "{error}");
    assert!(error.contains("cancelled: interrupted"), "{error}");
}

#[tokio::test]
async fn a_second_ctrl_c_leaves_at_once_and_the_agent_still_ends_the_script() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let script = "trap '' TERM; echo on; while :; do sleep 0.1; done";
    let mut run = Running::start(
        world.baton_at("a").args(["run", "--id", "s", "--grace", "1s", "-c", script]),
    );
    assert_eq!(run.line(), "on");
    signal(&run.child, Signal::INT);
    let script = support::Started { client: agent.client.clone(), id: "s".parse().unwrap() };
    script.until("stopping", |s| s.phase == baton::script::Phase::Stopping).await;
    signal(&run.child, Signal::INT);
    assert_eq!(run.end().0, 130);
    script.is_done().await;
}

/// A command that is killed can't tell anybody; its script must not be left alone with the machine.
#[test]
fn the_script_of_a_killed_command_without_an_agent_is_ended_and_the_machine_is_free() {
    let world = World::new();
    let script = "trap '' TERM; echo $$; sleep 600";
    let mut run = Running::start(world.baton().args(["run", "--grace", "100ms", "-c", script]));
    let pid: u32 = run.line().parse().unwrap();
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    // Waits in the line until the tree is gone.
    let (code, _, error) =
        finish(world.baton().args(["mutex", "run", "--timeout", "60s", "machine", "--", "true"]));
    assert_eq!(code, 0, "{error}");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn commands_without_an_agent_that_bypass_run_side_by_side() {
    let world = World::new();
    let gate = world.gate();
    let script = format!("echo on; {}", gate.wait());
    let start = || {
        let mut run = Running::start(world.baton().args(["run", "--bypass-mutex", "-c", &script]));
        assert_eq!(run.line(), "on");
        run
    };
    let runs = [start(), start(), start()];
    // One that takes no mutex runs beside them, one that is exclusive does not.
    assert_eq!(finish(world.baton().args(["run", "--observe", "-c", "exit 4"])).0, 4);
    let alone = ["run", "--queue-timeout", "50ms", "-c", "true"];
    assert_eq!(finish(world.baton().args(alone)).0, 75);
    for run in runs {
        gate.open();
        assert_eq!(run.end().0, 0);
    }
}

#[test]
fn nothing_is_left_behind_by_a_command_without_an_agent() {
    let world = World::new();
    let (code, out, _) = finish(world.baton_at("a").args(["run", "-c", "echo $BATON_WORKSPACE"]));
    assert_eq!(code, 0);
    assert!(!std::path::Path::new(out.trim()).exists(), "{out}");
    assert_eq!(std::fs::read_dir(world.path("a/state/embedded")).unwrap().count(), 0);
}

#[tokio::test]
async fn detach_then_logs_list_queue_and_cancel() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let baton = |arguments: &[&str]| finish(world.baton_at("a").args(arguments));
    let gate = world.gate();
    let text = format!("echo one; {}; echo two; exit 6", gate.wait());
    let (code, id, _) = baton(&["run", "--detach", "--label", "project=web", "-c", &text]);
    assert_eq!(code, 0);
    let id = id.trim();
    let script = support::Started { client: agent.client.clone(), id: id.parse().unwrap() };
    script.has_written(4).await;
    assert_eq!(baton(&["logs", id]).1, "one\n");
    let queued = ["run", "--detach", "--id", "next", "--env", "A=1", "-c", "echo $A"];
    assert_eq!(baton(&queued).1, "next\n");

    let (_, table, _) = baton(&["queue"]);
    assert!(table.contains("running") && table.contains("[project=web]"), "{table}");
    assert!(table.contains("waiting #1") && table.contains("is held by script"), "{table}");
    let (_, json, _) = baton(&["queue", "--json"]);
    let rows: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows[0]["phase"], "running");
    assert_eq!(rows[0]["labels"]["project"], "web");
    assert_eq!(rows[1]["waits"][0]["position"], 1);
    assert_eq!(rows[1]["waits"][0]["holders"][0]["script_id"], id);

    let (code, told, _) = baton(&["cancel", "next", "--wait", "--reason", "not now"]);
    assert_eq!((code, told.as_str()), (0, "next: cancelled before it ran: not now\n"));
    gate.open();
    let (code, out, _) = baton(&["logs", "--follow", "--offset", "4", id]);
    assert_eq!((code, out.as_str()), (6, "two\n"));
    let (_, list, _) = baton(&["list", "--label", "project=web"]);
    assert!(list.contains("exit 6") && !list.contains("next"), "{list}");
    let (_, list, _) = baton(&["list", "--json", "--phase", "done"]);
    let newest: Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    assert_eq!(newest["outcome"]["kind"], "cancelled");
    assert_eq!(baton(&["queue"]).1, "nothing runs and nothing waits\n");
}

#[test]
fn json_has_every_event_one_a_line() {
    let world = World::new();
    let script = "echo hi; printf '\\377' >&2; exit 2";
    let (code, out, error) = finish(world.baton().args(["run", "--json", "-c", script]));
    assert_eq!((code, error.as_str()), (2, ""));
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let output: Vec<&Value> = events.iter().filter(|e| e["event"] == "output").collect();
    assert!(output.iter().any(|e| e["stream"] == "stdout" && e["text"] == "hi\n"), "{out}");
    assert!(output.iter().any(|e| e["stream"] == "stderr" && e["base64"] == "/w=="), "{out}");
    let last = events.last().unwrap();
    assert_eq!(last["event"], "done");
    assert_eq!(last["script"]["outcome"]["code"], 2);
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let world = World::new();
    let mut run = Running::start(world.baton().args(["run", "-c", "yes"]));
    assert_eq!(run.line(), "y");
    let Running { mut child, out } = run;
    drop(out);
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    // 128 + SIGPIPE, as if the script had written there itself.
    assert_eq!((child.wait().unwrap().code(), error.as_str()), (Some(141), ""));
}

#[test]
fn a_script_finds_its_variables_and_nothing_of_the_caller_s() {
    let world = World::new();
    let mut command = world.baton_at("a");
    command.env("SECRET_OF_THE_CALLER", "x").env("LANG", "C").env("TZ", "UTC");
    command.args(["run", "--id", "s1", "--label", "project=web", "--label", "my.key=a b"]);
    command.args(["--env", "OWN=1", "-c", "env -0 | sort -z | tr '\\0' '\\n'; command -v baton"]);
    let (code, out, error) = finish(&mut command);
    assert_eq!(code, 0, "{error}");
    let value = |name: &str| {
        let prefix = format!("{name}=");
        out.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
    };
    assert_eq!(value("BATON_SCRIPT_ID").as_deref(), Some("s1"));
    assert_eq!(value("BATON_MUTEX_DIR"), Some(world.mutexes().display().to_string()));
    assert_eq!(value("BATON_LABEL_PROJECT").as_deref(), Some("web"));
    assert_eq!(value("BATON_LABEL_MY_KEY").as_deref(), Some("a b"));
    assert_eq!(value("OWN").as_deref(), Some("1"));
    assert_eq!(value("BATON_WORKSPACE"), value("PWD"));
    let allowed = ["PATH", "HOME", "LANG", "TZ", "USER", "OWN", "PWD", "SHLVL", "_"];
    for name in out.lines().filter_map(|line| Some(line.split_once('=')?.0)) {
        assert!(allowed.contains(&name) || name.starts_with("BATON_"), "{name} is there: {out}");
    }
    assert!(out.lines().last().unwrap().ends_with("/bin/baton"), "{out}");
}

/// A lock there would be held as long as the script runs.
#[test]
fn a_script_has_none_of_the_caller_s_open_files() {
    let world = World::new();
    let run = "exec 7> \"$0\"; exec \"$BATON\" run -c 'ls /proc/$$/fd'";
    let mut command = world.baton_at("a");
    let variables: Vec<_> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.unwrap().to_owned())).collect();
    command = std::process::Command::new("sh");
    command.args(["-c", run]).arg(world.path("f")).envs(variables).env("BATON", support::BATON);
    let (code, out, error) = finish(&mut command);
    assert_eq!(code, 0, "{error}");
    assert!(!out.lines().any(|descriptor| descriptor == "7"), "{out}");
}

#[test]
fn scripts_side_by_side_protect_what_they_share_with_a_named_mutex() {
    let world = World::new();
    let log = world.path("log");
    // Without the mutex the two lines of different scripts would mix.
    let text = format!(
        "baton mutex run log -- sh -c 'echo + >> {log}; sleep 0.01; echo - >> {log}'",
        log = log.display()
    );
    let runs: Vec<_> = (0..6)
        .map(|_| Running::start(world.baton().args(["run", "--bypass-mutex", "-c", &text])))
        .collect();
    for run in runs {
        let (code, error) = run.end();
        assert_eq!(code, 0, "{error}");
    }
    assert_eq!(support::lines(&log), ["+", "-"].repeat(6));
}

#[test]
fn mutex_run_passes_on_exit_status_signals_and_streams() {
    let world = World::new();
    let mutex = |words: &[&str]| {
        let mut command = world.baton();
        command.args(["mutex", "run"]).args(words);
        command
    };
    assert_eq!(finish(&mut mutex(&["log", "--", "sh", "-c", "exit 9"])).0, 9);
    assert_eq!(finish(&mut mutex(&["log", "--", "sh", "-c", "kill -15 $$"])).0, 143);
    assert_eq!(finish(&mut mutex(&["log", "--", "no-such-command"])).0, 127);
    assert_eq!(finish(&mut mutex(&["log", "--", "/etc"])).0, 126);
    // Options behind the first name are the command's.
    let (_, out, _) = finish(&mut mutex(&["a", "b", "--", "echo", "--shared", "--", "x"]));
    assert_eq!(out, "--shared -- x\n");
    let text = "trap 'echo asked; exit 5' TERM; echo on; while :; do sleep 0.1; done";
    let mut run = Running::start(&mut mutex(&["log", "--", "bash", "-c", text]));
    assert_eq!(run.line(), "on");
    // Held: nobody else gets it, shared or not.
    let busy = finish(&mut mutex(&["--no-wait", "--shared", "log", "--", "true"]));
    assert_eq!(busy.0, 75, "{busy:?}");
    assert!(busy.2.contains("bash -c trap"), "{busy:?}");
    signal(&run.child, Signal::TERM);
    assert_eq!(run.line(), "asked");
    assert_eq!(run.end().0, 5);
}

#[test]
fn the_demo_ends_with_the_right_order() {
    let world = World::new();
    let (code, out, error) = finish(world.baton().args(["demo", "--pace", "300ms"]));
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("right order: P1 and P2 together"), "{out}");
    for name in ["P1", "P2", "P3", "P4", "P5"] {
        assert!(out.lines().any(|line| line.starts_with(name) && line.contains('█')), "{out}");
    }
}

#[test]
fn every_command_has_help_with_examples_and_there_are_completions() {
    let world = World::new();
    for command in [
        "run", "queue", "list", "logs", "cancel", "agent", "demo", "mutex", "flock", "target",
        "lease",
    ] {
        let (code, out, _) = finish(world.baton().args([command, "--help"]));
        assert_eq!(code, 0);
        assert!(out.contains("xample"), "{command}: {out}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = finish(world.baton().args(["completion", shell]));
        assert!(code == 0 && out.contains("queue-timeout"), "{shell}");
    }
}

#[test]
fn a_protected_command_and_a_script_are_told_their_fencing_numbers() {
    let world = World::new();
    let fence = |words: &[&str]| {
        let (code, out, error) = finish(world.baton().args(words));
        assert_eq!(code, 0, "{error}");
        out.split_whitespace().map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    let text = "echo $BATON_MUTEX_FENCE $BATON_MUTEX_FENCE_B_1 $BATON_MUTEX_FENCE_A";
    let first = fence(&["mutex", "run", "b-1", "a", "--", "sh", "-c", text]);
    let second = fence(&["mutex", "run", "b-1", "a", "--", "sh", "-c", text]);
    assert_eq!((first.len(), first[0]), (3, first[1]));
    assert!(second[0] > first[0] && second[2] > first[2], "{first:?} {second:?}");
    let script = fence(&["run", "-c", "echo $BATON_MUTEX_FENCE"]);
    let next = fence(&["run", "--bypass-mutex", "-c", "echo $BATON_MUTEX_FENCE_MACHINE"]);
    assert!(next > script, "{script:?} {next:?}");
}

#[test]
fn mutex_run_says_why_and_how_many_and_with_which_exit_status() {
    let world = World::new();
    let gate = world.gate();
    let text = format!("echo on; {}", gate.wait());
    let start = |options: &[&str]| {
        let mut command = world.baton();
        command.args(["mutex", "run"]).args(options).args(["log", "--", "sh", "-c", &text]);
        let mut run = Running::start(&mut command);
        assert_eq!(run.line(), "on");
        run
    };
    let two = [start(&["--at-most", "2", "--reason", "nightly backup"]), start(&["--shared"])];
    let third = ["mutex", "run", "-n", "-s", "-E", "9", "log", "--", "true"];
    let (code, _, error) = finish(world.baton().args(third));
    assert_eq!(code, 9, "{error}");
    let (_, since) = error.split_once(" since ").unwrap();
    assert!(since.contains(": nightly backup and 1 other"), "{error}");
    for run in two {
        gate.open();
        assert_eq!(run.end().0, 0);
    }
    let bad = ["mutex", "run", "--at-most", "0", "log", "--", "true"];
    assert_eq!(finish(world.baton().args(bad)).0, 2);
}

#[test]
fn what_is_ignored_stays_ignored_under_mutex_run() {
    let world = World::new();
    let text = format!(
        "trap '' HUP INT; exec {} mutex run a -- sh -c 'kill -HUP $$; kill -INT $$; echo lives'",
        support::BATON
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &text]).env("BATON_MUTEX_DIR", world.mutexes());
    let (code, out, error) = finish(command.env("HOME", world.path("home")));
    assert_eq!((code, out.as_str()), (0, "lives\n"), "{error}");
}

#[tokio::test]
async fn when_the_terminal_goes_away_the_script_of_an_agent_goes_on() {
    let world = World::new();
    let agent = world.agent_at("a", &["--listen", "none"]).await;
    let gate = world.gate();
    let text = format!("echo on; {}; exit 4", gate.wait());
    let mut run = Running::start(world.baton_at("a").args(["run", "--id", "s", "-c", &text]));
    assert_eq!(run.line(), "on");
    signal(&run.child, Signal::HUP);
    let (code, error) = run.end();
    assert_eq!(code, 129);
    assert!(error.contains("baton logs --follow s"), "{error}");
    gate.open();
    let script = support::Started { client: agent.client.clone(), id: "s".parse().unwrap() };
    assert!(support::exited(&script.outcome().await, 4));
}

#[tokio::test]
async fn an_agent_whose_program_was_removed_goes_on_running_scripts() {
    let world = World::new();
    let program = world.path("baton");
    std::fs::copy(support::BATON, &program).unwrap();
    let agent = world.agent_of(&program, "a").await;
    std::fs::remove_file(&program).unwrap();
    for _ in 0..3 {
        assert!(support::exited(&agent.script("true").outcome().await, 0));
    }
}
