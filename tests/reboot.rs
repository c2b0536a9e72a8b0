//! Promise: after a restart of the machine what ran is lost, what was queued runs, in order; and a script
//! may ask for a restart and goes on after it.
//!
//! A restart is a kill of all that runs, the loss of /run, and another boot id: the next agent finds it in
//! a mount namespace of its own.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that can't go on fails here")]

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use baton::script::{Outcome, OutcomeKind, Phase};
use baton::snapshot::Snapshot;
use baton::trust::Identity;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use support::run::{Run, await_end};
use support::secret::Secret;
use support::site::trusting;
use support::{BATON, Draft, Started, TestAgent, World, exited, finish, lines, soon, write};

/// How often the agent or the machine is killed in the middle of things, unless BATON_TEST_KILLS says otherwise.
const KILLS: u32 = 15;

/// What runs a command with another boot id.
fn in_boot(world: &World, number: u32) -> Command {
    let file = world.path(&format!("boot{number}"));
    write(&file, &format!("00000000-0000-4000-8000-{number:012}\n"));
    let like = world.baton_at("a");
    let mut command = Command::new("unshare");
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let bind = r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#;
    let namespaces = if rustix::process::getuid().is_root() { "-m" } else { "-rm" };
    command.args([namespaces, "sh", "-c", bind]).arg(file).stdin(Stdio::null());
    command
}

/// A world whose machine can be restarted; else says why the test is skipped.
fn restartable() -> Option<World> {
    let world = World::new();
    let (code, _, error) = finish(in_boot(&world, 0).arg("true"));
    if code != 0 {
        eprintln!("skipped: no mount namespace with another boot id here: {error}");
        return None;
    }
    Some(world)
}

async fn boot(world: &World, number: u32) -> TestAgent {
    boot_at(world, number, "none").await
}

/// The same, at an address.
async fn boot_at(world: &World, number: u32, address: &str) -> TestAgent {
    let mut command = in_boot(world, number);
    command.args([BATON, "agent", "run", "--listen", address]);
    world.await_agent("a", command).await
}

/// The next agent. The killed one is not dropped: that would end what it left, and the last one does so.
async fn next_agent(world: &World, agent: &mut TestAgent, number: u32) {
    let next = boot(world, number).await;
    std::mem::forget(std::mem::replace(agent, next));
}

fn configure(world: &World, text: &str) {
    let folder = world.path("a/config");
    std::fs::create_dir_all(&folder).unwrap();
    write(&folder.join("agent.toml"), text);
}

fn supervisors(world: &World) -> Vec<Pid> {
    let scripts = std::fs::read_dir(world.path("a/state/scripts")).into_iter().flatten();
    let pids = scripts.filter_map(|script| {
        let text = std::fs::read_to_string(script.unwrap().path().join("supervisor")).ok()?;
        let pid = Pid::from_raw(text.trim().parse().ok()?)?;
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        line.ends_with(b"supervise\0").then_some(pid)
    });
    pids.collect()
}

/// The scripts of this world, and what they started.
fn scripts(world: &World) -> Vec<Pid> {
    let mark = format!("BATON_WORKSPACE={}", world.path("a").display());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let pid = Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?)?;
        let environment = std::fs::read(path.join("environ")).ok()?;
        environment.windows(mark.len()).any(|text| text == mark.as_bytes()).then_some(pid)
    });
    processes.collect()
}

fn end(pids: Vec<Pid>, signal: Signal) {
    for pid in pids {
        // One that has ended meanwhile is gone.
        if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
            kill_process(pid, signal).unwrap_or_default();
            await_end(&process);
        }
    }
}

/// The machine goes down: at once, the supervisors before their scripts.
fn power_off(world: &World, agent: &mut TestAgent) {
    agent.kill();
    while !supervisors(world).is_empty() || !scripts(world).is_empty() {
        end(supervisors(world), Signal::KILL);
        end(scripts(world), Signal::KILL);
    }
    std::fs::remove_dir_all(world.mutexes()).unwrap_or_default();
}

fn again(agent: &TestAgent, script: &Started) -> Started {
    Started { client: agent.client.clone(), id: script.id.clone() }
}

fn awaits(script: &Snapshot) -> bool {
    script.phase == Phase::Waiting && script.waits.iter().any(|wait| wait.restart.is_some())
}

async fn awaits_restart(script: &Started) -> Snapshot {
    script.until("waiting for a restart", awaits).await
}

/// A script that asks for a restart in each attempt but the last one.
fn resuming(agent: &TestAgent, log: &Path, attempts: u32) -> Draft {
    agent.script(format!(
        "echo $BATON_SCRIPT_ID $BATON_ATTEMPT >> {log}; echo attempt $BATON_ATTEMPT
         echo $BATON_ATTEMPT >> \"$BATON_WORKSPACE/seen\"
         if [ $BATON_ATTEMPT -lt {attempts} ]; then baton reboot-and-resume --reason kernel; exit; fi
         cat seen; exit 7",
        log = log.display()
    ))
}

fn is_lost(outcome: &Outcome, why: &str) -> bool {
    matches!(&outcome.kind, OutcomeKind::Lost { reason } if reason == why)
}

#[tokio::test]
async fn what_ran_is_lost_and_what_was_queued_runs_in_its_order() {
    let Some(world) = restartable() else { return };
    let (gate, log) = (world.gate(), world.path("log"));
    let mut first = boot(&world, 1).await;
    let ran = first.script(format!("echo on; {}", gate.wait())).id("ran").start().await;
    ran.has_written(3).await;
    let observer = first.script(format!("echo on; {}", gate.wait())).observer().start().await;
    observer.has_written(3).await;
    let mut queued = Vec::new();
    for number in 0..4 {
        let draft = first.script(format!("echo {number} $BATON_ATTEMPT >> {}", log.display()));
        queued.push(draft.start().await);
    }
    // The first of them stands in the machine's line already.
    queued[0].until("in the line", |script| script.phase == Phase::Waiting).await;
    power_off(&world, &mut first);
    let second = boot(&world, 2).await;
    for script in [&ran, &observer] {
        let outcome = again(&second, script).outcome().await;
        assert!(is_lost(&outcome, "the machine was restarted"), "{outcome:?}");
    }
    for script in &queued {
        assert!(exited(&again(&second, script).outcome().await, 0));
    }
    assert_eq!(lines(&log), ["0 1", "1 1", "2 1", "3 1"]);
    assert_eq!(again(&second, &ran).output().await, b"on\n");
}

#[tokio::test]
async fn a_script_goes_on_after_the_restart_in_its_place_and_its_folder_and_its_log() {
    let Some(world) = restartable() else { return };
    let log = world.path("log");
    let mut agent = boot(&world, 1).await;
    let draft = resuming(&agent, &log, 3).id("asks");
    let script =
        draft.with(|spec| spec.queue_time_limit = Some(Duration::from_secs(1))).start().await;
    let behind = [
        agent.script(format!("echo b1 >> {}", log.display())).id("b1").start().await,
        agent.script(format!("echo b2 >> {}", log.display())).shared().id("b2").start().await,
        agent.script(format!("echo b3 >> {}", log.display())).id("b3").start().await,
    ];
    let mut output = String::new();
    for attempt in 1..=2 {
        let wish = "baton: when this script exits with 0, it waits for a restart of the machine";
        let next = attempt + 1;
        output = format!("{output}attempt {attempt}\n{wish}, then attempt {next} runs\n");
        for life in 0..3 {
            let waits = awaits_restart(&again(&agent, &script)).await.waits;
            let restart = waits[0].restart.clone().unwrap();
            assert_eq!((restart.attempt, restart.reason.as_str()), (attempt + 1, "kernel"));
            assert!(waits[0].reason().contains("waits for the machine to be restarted"));
            // Longer than its queue time limit; who takes no mutex goes on as always.
            assert!(exited(&agent.script("sleep 1.1").observer().outcome().await, 0));
            let first = again(&agent, &behind[0]);
            let told = first.until("told for whom it waits", |script| {
                script.waits.iter().any(|wait| !wait.holders.is_empty())
            });
            let told = told.await;
            assert!(
                told.waits[0].reason().ends_with(": waits for the machine to be restarted"),
                "{told:?}"
            );
            assert_eq!(
                again(&agent, &script).client.get(&script.id).await.unwrap().output_bytes,
                u64::try_from(output.len()).unwrap()
            );
            if life < 2 {
                agent.kill();
                next_agent(&world, &mut agent, attempt).await;
            }
        }
        power_off(&world, &mut agent);
        next_agent(&world, &mut agent, attempt + 1).await;
    }
    let outcome = again(&agent, &script).outcome().await;
    assert!(exited(&outcome, 7) && outcome.attempts == 3, "{outcome:?}");
    for script in &behind {
        assert!(exited(&again(&agent, script).outcome().await, 0));
    }
    output += "attempt 3\n1\n2\n3\n";
    assert_eq!(String::from_utf8(again(&agent, &script).output().await).unwrap(), output);
    for offset in [5, 20, output.len() - 3] {
        let from = u64::try_from(offset).unwrap();
        let rest = support::output(agent.client.watch(script.id.clone(), from, true)).await;
        assert_eq!(rest, output.as_bytes()[offset..], "from {offset}");
    }
    assert_eq!(lines(&log), ["asks 1", "asks 2", "asks 3", "b1", "b2", "b3"]);
}

#[tokio::test]
async fn who_waits_for_the_restart_can_be_cancelled_and_lets_the_others_go_on() {
    let Some(world) = restartable() else { return };
    let log = world.path("log");
    let mut agent = boot(&world, 1).await;
    for (round, restarts) in [(0, false), (1, true)] {
        let script = resuming(&agent, &log, 2).id(&format!("asks{round}")).start().await;
        let behind = agent.script("true").start().await;
        awaits_restart(&script).await;
        if restarts {
            agent.kill();
            next_agent(&world, &mut agent, 1).await;
        }
        let script = again(&agent, &script);
        support::cancel(&script, "no restart today").await;
        let OutcomeKind::Cancelled { while_queued, reason } = script.outcome().await.kind else {
            panic!("not cancelled");
        };
        assert_eq!((while_queued, reason.as_str()), (false, "no restart today"));
        assert!(exited(&again(&agent, &behind).outcome().await, 0));
    }
    // Also after the restart, before its turn.
    configure(&world, "queue_length = 10");
    let script = resuming(&agent, &log, 2).id("asks2").start().await;
    awaits_restart(&script).await;
    agent.client.drain(String::new()).await.unwrap();
    power_off(&world, &mut agent);
    let agent = boot(&world, 2).await;
    let script = again(&agent, &script);
    support::cancel(&script, "").await;
    let kind = script.outcome().await.kind;
    assert_eq!(kind, OutcomeKind::Cancelled { while_queued: false, reason: String::new() });
    assert_eq!(lines(&log), ["asks0 1", "asks1 1", "asks2 1"]);
}

#[tokio::test]
async fn only_the_way_in_which_it_ends_decides_whether_it_is_run_again() {
    let Some(world) = restartable() else { return };
    let mut agent = boot(&world, 1).await;
    let wish = "baton reboot-and-resume >/dev/null";
    let outcome = agent.script(format!("{wish}; exit 3")).outcome().await;
    assert!(exited(&outcome, 3), "{outcome:?}");
    let outcome = agent.script(format!("{wish}; kill -9 $$")).outcome().await;
    assert_eq!(outcome.kind, OutcomeKind::Signalled { signal: 9 });
    let code = NonZeroU8::new(64);
    let by_code = |text: &str| agent.script(text).with(|spec| spec.reboot_exit_code = code);
    assert!(exited(&by_code("exit 0").outcome().await, 0));
    assert!(exited(&by_code("exit 65").outcome().await, 65));
    let script = by_code("exit $((63 + BATON_ATTEMPT))");
    let script = script.id("by-code").start().await;
    let waits = awaits_restart(&script).await.waits;
    assert!(waits[0].reason().ends_with(": it exited with 64"), "{waits:?}");
    power_off(&world, &mut agent);
    let mut agent = boot(&world, 2).await;
    assert!(exited(&again(&agent, &script).outcome().await, 65));

    // As if it had been restarted so often.
    let last = resuming(&agent, &world.path("log"), 99)
        .with(|spec| spec.reboot_exit_code = NonZeroU8::new(1));
    let last = last.id("last").start().await;
    awaits_restart(&last).await;
    power_off(&world, &mut agent);
    let resume = world.path("a/state/scripts/last/resume.json");
    let text = std::fs::read_to_string(&resume).unwrap();
    write(&resume, &text.replace("\"attempt\":1,", "\"attempt\":15,"));
    let agent = boot(&world, 3).await;
    let last = again(&agent, &last);
    // The command refuses, and its exit status is the script's.
    let OutcomeKind::NotStarted { reason, .. } = last.outcome().await.kind else {
        panic!("{:?}", last.outcome().await);
    };
    assert!(reason.contains("in attempt 16, which is the last"), "{reason}");
    let output = String::from_utf8(last.output().await).unwrap();
    assert!(output.ends_with("error: this is attempt 16, the last of 16\n"), "{output}");
}

#[test]
fn outside_of_an_agent_s_script_the_wish_is_refused() {
    let world = World::new();
    let (code, _, error) = finish(world.baton().arg("reboot-and-resume"));
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("not inside a script of baton") && error.contains("hint: "), "{error}");
    let (code, _, error) = finish(world.baton().args(["run", "-c", "baton reboot-and-resume"]));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("no agent runs this script") && error.contains("hint: "), "{error}");
    let words = ["run", "--reboot-exit-code", "9", "-c", "true"];
    let (code, _, error) = finish(world.baton().args(words));
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("--reboot-exit-code needs an agent"), "{error}");
    for (words, said) in [
        (&["run", "--reboot-exit-code", "0", "-c", "true"][..], "--reboot-exit-code"),
        (&["run", "--reboot-exit-code", "256", "-c", "true"], "--reboot-exit-code"),
        (&["reboot-and-resume", "--reason", "a\nb"], "reason"),
    ] {
        let (code, _, error) = finish(world.baton().args(words));
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(said), "{error}");
    }
}

/// systemd asks everything to end before it restarts the machine.
#[tokio::test]
async fn a_machine_that_goes_down_in_order_is_no_cancel() {
    let Some(world) = restartable() else { return };
    let log = world.path("log");
    let mut agent = boot(&world, 1).await;
    let script = resuming(&agent, &log, 2).id("asks").start().await;
    let behind = agent.script(format!("echo behind >> {}", log.display())).start().await;
    awaits_restart(&script).await;
    let folder = world.path("a/state/scripts").join(behind.id.as_str());
    let journal = folder.join("output.journal");
    let joined = async {
        while !std::fs::read(&journal).unwrap_or_default().windows(6).any(|w| w == b"joined") {
            tokio::task::yield_now().await;
        }
    };
    soon("a ticket", joined).await;
    let mut asked = supervisors(&world);
    assert_eq!(asked.len(), 2);
    // The waiting one first: the other one's place must not become its own.
    let pid = std::fs::read_to_string(folder.join("supervisor")).unwrap();
    asked.sort_by_key(|supervisor| supervisor.as_raw_nonzero().to_string() != pid.trim());
    agent.kill();
    end(asked, Signal::TERM);
    power_off(&world, &mut agent);
    let agent = boot(&world, 2).await;
    assert!(exited(&again(&agent, &script).outcome().await, 7));
    assert!(exited(&again(&agent, &behind).outcome().await, 0));
    assert_eq!(lines(&log), ["asks 1", "asks 2", "behind"]);
}

#[tokio::test]
async fn a_killed_supervisor_costs_neither_the_wish_nor_a_second_run() {
    let Some(world) = restartable() else { return };
    let log = world.path("log");
    let mut agent = boot(&world, 1).await;
    let script = resuming(&agent, &log, 2).id("asks").start().await;
    for restarts in [false, true, false, false, false] {
        awaits_restart(&again(&agent, &script)).await;
        if restarts {
            agent.kill();
        }
        let killed = supervisors(&world);
        assert_eq!(killed.len(), 1);
        end(killed.clone(), Signal::KILL);
        if restarts {
            next_agent(&world, &mut agent, 1).await;
        }
        // Another one keeps the place.
        let held = async {
            while support::run::now(&world, "machine") != 75 || supervisors(&world) == killed {
                tokio::task::yield_now().await;
            }
        };
        soon("the machine to be held", held).await;
    }
    power_off(&world, &mut agent);
    let agent = boot(&world, 2).await;
    assert!(exited(&again(&agent, &script).outcome().await, 7));
    assert_eq!(lines(&log), ["asks 1", "asks 2"]);
}

/// Kills of the agent and of the machine at any moment of the cycle.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_no_attempt_runs_twice_and_no_script_that_waits_is_lost() {
    let Some(world) = restartable() else { return };
    let kills = std::env::var("BATON_TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let log = world.path("log");
    let mut random = 0x9E37_79B9_7F4A_7C15_u64 ^ u64::from(std::process::id());
    let mut machine = 1;
    let mut scripts: Vec<Started> = Vec::new();
    let mut dead = Vec::new();
    for life in 0..kills {
        let mut agent = boot(&world, machine).await;
        if life % 3 == 0 {
            for number in 0..2 {
                let draft = resuming(&agent, &log, 2).id(&format!("s{life}-{number}"));
                scripts.push(draft.start().await);
            }
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for _ in 0..(random >> 33) % 20_000 {
            tokio::task::yield_now().await;
        }
        if random >> 63 == 0 {
            agent.kill();
        } else {
            power_off(&world, &mut agent);
            machine += 1;
        }
        dead.push(agent);
    }
    let mut agent = boot(&world, machine).await;
    let mut outcomes = BTreeMap::new();
    for script in &scripts {
        let script = loop {
            let script = again(&agent, script);
            let stands = |script: &Snapshot| awaits(script) || script.phase.is_done();
            if script.until("waiting or done", stands).await.phase.is_done() {
                break script;
            }
            power_off(&world, &mut agent);
            machine += 1;
            next_agent(&world, &mut agent, machine).await;
        };
        outcomes.insert(script.id.to_string(), script.outcome().await);
    }
    let mut runs: BTreeMap<String, u32> = BTreeMap::new();
    for line in lines(&log) {
        *runs.entry(line).or_default() += 1;
    }
    assert!(runs.values().all(|count| *count == 1), "{runs:?}");
    for (id, outcome) in outcomes {
        let attempts = [1, 2].map(|attempt| runs.contains_key(&format!("{id} {attempt}")));
        // The machine went down while it ran; else it ran twice.
        assert!(
            (exited(&outcome, 7) && attempts == [true, true])
                || is_lost(&outcome, "the machine was restarted"),
            "{id}: {outcome:?}, {attempts:?}"
        );
    }
}

fn command_text(text: &str) -> String {
    format!("reboot_command = [\"sh\", \"-c\", '{text}']")
}

#[tokio::test]
async fn the_reboot_command_runs_once_when_all_that_ran_has_ended() {
    let Some(world) = restartable() else { return };
    let (log, commands, gate) = (world.path("log"), world.path("commands"), world.gate());
    configure(&world, &command_text(&format!("echo restarts >> {}", commands.display())));
    let mut agent = boot(&world, 1).await;
    let bypass = agent.script(format!("echo on; {}", gate.wait())).shared().start().await;
    bypass.has_written(3).await;
    let script = resuming(&agent, &log, 2).shared().id("asks").start().await;
    let mutex = resuming(&agent, &log, 1).mutex("other").id("other");
    awaits_restart(&script).await;
    // Nothing new starts, also what nothing excludes, and it is told why.
    let other = mutex.start().await;
    let observer = agent.script(format!("echo seen >> {}", log.display())).observer().start().await;
    for waiting in [&other, &observer] {
        let script = waiting.is_waiting().await;
        assert!(
            script.waits[0].reason().starts_with("the machine is to be restarted first"),
            "{script:?}"
        );
    }
    assert_eq!(lines(&commands), [""; 0]);
    let status = agent.client.drain(String::new()).await.unwrap();
    assert_eq!((status.running, status.waiting, status.queued), (1, 0, 3));
    gate.open();
    bypass.is_done().await;
    // Who drains has the machine in hand.
    agent.client.resume().await.unwrap();
    let ran = async {
        while lines(&commands).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    soon("the command", ran).await;
    for _ in 0..2 {
        agent.kill();
        next_agent(&world, &mut agent, 1).await;
        awaits_restart(&again(&agent, &script)).await;
    }
    power_off(&world, &mut agent);
    let agent = boot(&world, 2).await;
    assert!(exited(&again(&agent, &script).outcome().await, 7));
    for (script, code) in [(&other, 7), (&observer, 0)] {
        assert!(exited(&again(&agent, script).outcome().await, code));
    }
    assert_eq!(lines(&commands), ["restarts"]);
    let mut all = lines(&log);
    assert_eq!(all.remove(0), "asks 1");
    all.sort();
    assert_eq!(all, ["asks 2", "other 1", "seen"]);
}

#[tokio::test]
async fn a_reboot_command_that_fails_is_shown_and_holds_up_nobody() {
    let Some(world) = restartable() else { return };
    let (log, commands) = (world.path("log"), world.path("commands"));
    configure(&world, &command_text(&format!("echo fails >> {}; exit 9", commands.display())));
    let mut agent = boot(&world, 1).await;
    for round in 1..=2 {
        let script = resuming(&agent, &log, 9).shared().id(&format!("asks{round}")).start().await;
        let failed = script.until("told that it failed", |script| {
            script
                .waits
                .iter()
                .any(|wait| wait.reason().contains("could not restart it: sh: exit status: 9"))
        });
        failed.await;
        assert!(exited(&agent.script("true").shared().outcome().await, 0));
    }
    agent.kill();
    let agent = boot(&world, 1).await;
    assert!(exited(&agent.script("true").shared().outcome().await, 0));
    assert_eq!(lines(&commands), ["fails", "fails"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_a_deployment_that_restarts_the_machine_goes_on_within_the_away_limit() {
    let Some(world) = restartable() else { return };
    let (home, log) = (World::new(), world.path("log"));
    let identity = Identity::load_or_create(&home.path("home/config"), "client").unwrap();
    let fingerprint = trusting(&world, &identity.fingerprint().to_string());
    let mut agent = boot_at(&world, 1, "127.0.0.1:0").await;
    let address = std::fs::read_to_string(agent.folder.join("run/agent.address")).unwrap();
    let targets = home.path("targets.toml");
    write(
        &targets,
        &format!(
            "[targets.m]\naddress = {:?}\nfingerprint = {fingerprint:?}\nenvironments = [\"test\"]\n",
            address.trim()
        ),
    );
    let project = home.path("shop.toml");
    let text = "project = \"shop\"\n[[steps]]\nname = \"only\"\naway_limit = \"1h\"\nrun = '''\n"
        .to_owned();
    let script = format!(
        "echo $BATON_ATTEMPT >> {}; echo attempt $BATON_ATTEMPT\n\
         if [ $BATON_ATTEMPT = 1 ]; then baton reboot-and-resume --reason kernel; fi\n'''\n\
         [[steps]]\nname = \"next\"\nrun = 'echo next >> {0}'\n",
        log.display()
    );
    write(&project, &(text + &script));
    let mut command = home.baton_at("home");
    command.arg("deploy").arg(project).arg("--targets").arg(targets);
    let mut deploy = Run::of(command.args(["--environment", "test", "--run", "r"]));
    let mut told = |text: &str| {
        let mut line = deploy.line();
        while !line.contains(text) {
            assert!(!line.is_empty(), "{text:?} was not told");
            line = deploy.line();
        }
    };
    told("m | attempt 1");
    awaits_restart(&Started { client: agent.client.clone(), id: "r.1.m".parse().unwrap() }).await;
    power_off(&world, &mut agent);
    told("m: only: the agent is away since ");
    let next = boot_at(&world, 2, address.trim()).await;
    std::mem::forget(std::mem::replace(&mut agent, next));
    told("m: only: the agent is back after ");
    told("m | attempt 2");
    told("m: only: succeeded");
    assert_eq!(deploy.end(), 0);
    assert_eq!(lines(&log), ["1", "2", "next"]);
}

#[tokio::test]
async fn a_script_has_its_secrets_in_each_attempt_and_they_are_gone_after_the_last_one() {
    let Some(world) = restartable() else { return };
    let mut agent = boot(&world, 1).await;
    let (secret, waits) = (Secret::new(), Secret::new());
    let text = "test ${#SECRET} -gt 30 || exit 9
        if [ $BATON_ATTEMPT -lt 3 ]; then baton reboot-and-resume --reason kernel; exit; fi
        exit 7";
    let script = agent.script(text).id("r").with(|spec| secret.give(spec)).start().await;
    let behind = agent.script("test ${#SECRET} -gt 30").id("w").with(|spec| waits.give(spec));
    let behind = behind.start().await;
    for number in 2..4 {
        awaits_restart(&again(&agent, &script)).await;
        assert!(!secret.found(&world.path("a/state")).is_empty());
        power_off(&world, &mut agent);
        next_agent(&world, &mut agent, number).await;
    }
    let outcome = again(&agent, &script).outcome().await;
    assert!(exited(&outcome, 7), "{outcome:?}");
    secret.is_gone(&world, &agent).await;
    let outcome = again(&agent, &behind).outcome().await;
    assert!(exited(&outcome, 0), "{outcome:?}");
    waits.is_gone(&world, &agent).await;
}

#[tokio::test]
async fn what_is_lost_in_a_restart_of_the_machine_leaves_no_secret() {
    let Some(world) = restartable() else { return };
    let mut agent = boot(&world, 1).await;
    let (secret, gate) = (Secret::new(), world.gate());
    let script = agent.script(gate.wait()).with(|spec| secret.give(spec)).start().await;
    script.is_running().await;
    power_off(&world, &mut agent);
    assert!(!secret.found(&world.path("a/state")).is_empty());
    next_agent(&world, &mut agent, 2).await;
    let outcome = again(&agent, &script).outcome().await;
    assert!(is_lost(&outcome, "the machine was restarted"), "{outcome:?}");
    secret.is_gone(&world, &agent).await;
}
