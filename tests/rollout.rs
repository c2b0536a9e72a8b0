//! Promise: deployments of one project to one environment take turns, whoever starts them; on each machine
//! their scripts keep the machine's rules; limits, budgets, stops and crashes do what the plan says. Real
//! agents, one for each machine, and the real command.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails here")]

mod support;

use std::collections::BTreeMap;

use baton::script::{OutcomeKind, Phase};
use baton::snapshot::Snapshot;
use jiff::Timestamp;
use rustix::process::Signal;
use support::run::Run;
use support::secret::Secret;
use support::site::{Machine, Site};
use support::{finish, signal, soon};

/// A project whose every step is a line of a script.
fn steps(steps: &[&str]) -> String {
    steps.iter().flat_map(|step| ["[[steps]]\n", step, "\n"]).collect()
}

/// The labels of what ran on a machine, in the order in which it started.
async fn order(machine: &Machine, label: &str) -> Vec<String> {
    let mut scripts = machine.history().await;
    scripts.sort_by_key(|script| script.started_at);
    scripts.into_iter().map(|script| script.labels[label].clone()).collect()
}

/// Waits until a machine has so many scripts of which the condition holds.
async fn until(machine: &Machine, count: usize, holds: impl Fn(&Snapshot) -> bool) {
    let mut standing = machine.agent.client.watch_agent();
    let reached = async {
        loop {
            if machine.history().await.iter().filter(|script| holds(script)).count() >= count {
                return;
            }
            standing.next().await.unwrap();
        }
    };
    soon("scripts", reached).await;
}

fn runs(script: &Snapshot) -> bool {
    script.phase == Phase::Running && script.started_at.is_some()
}

fn waits(script: &Snapshot) -> bool {
    matches!(script.phase, Phase::Queued | Phase::Waiting)
}

/// The next line that has this in it.
fn line_with(run: &mut Run, text: &str) -> String {
    loop {
        let line = run.line();
        if line.contains(text) {
            return line;
        }
        assert!(!line.is_empty(), "{text:?} was not told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_run_in_order_on_all_targets_and_their_output_is_told() {
    let site = Site::new(2).await;
    let text = "[[variables]]\nname = \"Greeting\"\nvalue = \"hello\"\n".to_owned()
        + &steps(&[
            "name = \"first\"\nrun = 'echo $VAR_GREETING from first'",
            "name = \"check\"\naction = \"health-check\"",
            "name = \"second\"\nrun = 'echo second >&2'",
        ]);
    let project = site.project("shop", &text);
    let page = site.home.path("report.html");
    let (code, out, told) =
        finish(site.deploy(&project).args(["--release", "1.2", "--report"]).arg(&page));
    assert_eq!(code, 0, "{out}{told}");
    for line in
        ["m1 | hello from first", "m2 | second", "m1: check: succeeded", "m2      succeeded"]
    {
        assert!(out.contains(line), "{line:?} is not in {out}");
    }
    for machine in &site.machines {
        assert_eq!(order(machine, "step").await, ["first", "check", "second"]);
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("shop 1.2 to test") && page.contains("hello from first"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_of_one_project_take_turns_and_the_second_says_for_whom_it_waits() {
    let site = Site::new(1).await;
    let gate = site.home.gate();
    let script = format!("name = \"only\"\nrun = '''\n{}\n'''", gate.wait());
    // Also with bypass.
    let text = "[[variables]]\nname = \"OctopusBypassDeploymentMutex\"\nvalue = \"True\"\n"
        .to_owned()
        + &steps(&[&script]);
    let project = site.project("shop", &text);
    let mut first = Run::of(site.deploy(&project).args(["--run", "one"]));
    until(&site.machines[0], 1, runs).await;
    let mut second = Run::of(site.deploy(&project).args(["--run", "two"]));
    let line = line_with(&mut second, "waits for its turn");
    assert!(line.contains("deploys shop to test, run one"), "{line}");
    assert_eq!(site.machines[0].history().await.len(), 1);
    gate.open();
    line_with(&mut first, "succeeded");
    until(&site.machines[0], 1, runs).await;
    gate.open();
    assert_eq!((first.end(), second.end()), (0, 0));
    assert_eq!(order(&site.machines[0], "run").await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_project_waits_on_the_machine_only_and_says_for_whom() {
    let site = Site::new(1).await;
    let gate = site.home.gate();
    let script = format!("name = \"only\"\nrun = '''\n{}\n'''", gate.wait());
    let (a, b) = (site.project("a", &steps(&[&script])), site.project("b", &steps(&[&script])));
    let first = Run::of(&mut site.deploy(&a));
    until(&site.machines[0], 1, runs).await;
    let mut second = Run::of(&mut site.deploy(&b));
    let line = line_with(&mut second, "waits, position 1");
    assert!(line.contains("project=a"), "{line}");
    gate.open();
    assert_eq!(first.end(), 0);
    gate.open();
    assert_eq!(second.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_runs_on_no_more_machines_at_once_than_it_may_and_on_so_many() {
    let site = Site::new(5).await;
    let gate = site.home.gate();
    let script = format!("name = \"only\"\nmax_parallelism = 2\nrun = '''\n{}\n'''", gate.wait());
    let project = site.project("shop", &steps(&[&script]));
    let mut deploy = Run::of(&mut site.deploy(&project));
    for _ in 0..2 {
        line_with(&mut deploy, "only: running");
    }
    for _ in 0..5 {
        gate.open();
    }
    assert_eq!(deploy.end(), 0);
    let mut spans = Vec::new();
    for machine in &site.machines {
        let script = machine.history().await.remove(0);
        spans.push((script.started_at.unwrap(), script.ended_at.unwrap()));
    }
    let at_once = |moment| spans.iter().filter(|(from, to)| (from..to).contains(&moment)).count();
    let most = spans.iter().map(|(from, _)| at_once(from)).max();
    assert_eq!(most, Some(2), "{spans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_steps_run_side_by_side_than_may_and_so_many() {
    let site = Site::new(1).await;
    let gate = site.home.gate();
    let script = |name: &str| format!("name = \"{name}\"\nrun = '''\n{}\n'''", gate.wait());
    let beside = |name: &str| format!("{}\nstart = \"with-previous\"", script(name));
    let text = "[[variables]]\nname = \"OctopusBypassDeploymentMutex\"\nvalue = true\n\
                [[variables]]\nname = \"Octopus.Action.MaxParallelism\"\nvalue = 2\n"
        .to_owned()
        + &steps(&[&script("a"), &beside("b"), &beside("c"), &beside("d")]);
    let project = site.project("shop", &text);
    let deploy = Run::of(&mut site.deploy(&project));
    until(&site.machines[0], 2, runs).await;
    for _ in 0..4 {
        gate.open();
    }
    assert_eq!(deploy.end(), 0);
    let history = site.machines[0].history().await;
    let spans: Vec<_> =
        history.iter().map(|s| (s.started_at.unwrap(), s.ended_at.unwrap())).collect();
    let at_once = |moment| spans.iter().filter(|(from, to)| (from..to).contains(&moment)).count();
    assert_eq!(spans.len(), 4);
    assert_eq!(spans.iter().map(|(from, _)| at_once(from)).max(), Some(2), "{spans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_and_a_package_take_no_turn() {
    let site = Site::new(1).await;
    let gate = site.home.gate();
    let holder = site.machines[0].agent.script(gate.wait()).start().await;
    until(&site.machines[0], 1, runs).await;
    let folder = site.home.path("dist");
    std::fs::create_dir(&folder).unwrap();
    support::write(&folder.join("page"), "one");
    let package = format!("[[packages]]\nid = \"site\"\nversion = \"1\"\ndirectory = {folder:?}\n");
    let text = package
        + &steps(&[
            "name = \"check\"\naction = \"health-check\"",
            "name = \"install\"\naction = \"package\"\npackage = \"site\"",
        ]);
    let project = site.project("shop", &text);
    let mut deploy = Run::of(&mut site.deploy(&project));
    line_with(&mut deploy, "package site 1: ");
    line_with(&mut deploy, "check: succeeded");
    // To install it is a script's work.
    line_with(&mut deploy, "install: waits, position 1");
    gate.open();
    assert_eq!(deploy.end(), 0);
    holder.is_done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_packages_are_on_their_way_at_once_than_may() {
    let site = Site::new(3).await;
    let folder = site.home.path("dist");
    std::fs::create_dir(&folder).unwrap();
    // It can't be compressed, and takes a moment.
    let noise: Vec<u8> =
        (0_u32..8 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::io::Write::write_all(&mut std::fs::File::create(folder.join("noise")).unwrap(), &noise)
        .unwrap();
    let text = format!(
        "[[variables]]\nname = \"Octopus.Acquire.MaxParallelism\"\nvalue = 1\n\
         [[packages]]\nid = \"site\"\nversion = \"1\"\ndirectory = {folder:?}\n"
    ) + &steps(&["name = \"only\"\npackages = [\"site\"]\nrun = 'true'"]);
    let project = site.project("shop", &text);
    let (code, out, told) = finish(site.deploy(&project).arg("--json"));
    assert_eq!(code, 0, "{out}{told}");
    let mut on_their_way = std::collections::BTreeSet::new();
    let mut most = 0;
    for line in out.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        if event["event"] == "package" {
            let target = event["target"].as_str().unwrap().to_owned();
            match event["transfer"]["transfer"].as_str().unwrap() {
                "sends" => drop(on_their_way.insert(target)),
                _ => drop(on_their_way.remove(&target)),
            }
            most = most.max(on_their_way.len());
        }
    }
    assert_eq!(most, 1, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_ends_the_roll_out_unless_the_budget_allows_it() {
    let site = Site::new(3).await;
    let script = "name = \"first\"\nrun = 'test \"$VAR_BAD\" != yes'\nmax_parallelism = 1";
    let text = |budget: u32| {
        format!("[rollout]\nmax_failures = {budget}\n")
            + "[[variables]]\nname = \"Bad\"\nvalue = \"yes\"\nscope = { target = \"m2\" }\n"
            + "[[variables]]\nname = \"Bad\"\nvalue = \"no\"\n"
            + &steps(&[
                script,
                "name = \"second\"\nrun = 'true'",
                "name = \"undo\"\ncondition = \"failure\"\nrun = 'true'",
            ])
    };
    let strict = site.project("strict", &text(0));
    let (code, out, _) = finish(&mut site.deploy(&strict));
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("ends: a target failed"), "{out}");
    assert!(out.contains("m2      failed") && out.contains("first: exited with 1"), "{out}");
    assert_eq!(order(&site.machines[0], "step").await, ["first", "undo"]);
    assert_eq!(order(&site.machines[1], "step").await, ["first", "undo"]);
    assert!(site.machines[2].history().await.is_empty(), "it was never come to");

    let lenient = site.project("lenient", &text(1));
    let (code, out, _) = finish(&mut site.deploy(&lenient));
    assert_eq!(code, 3, "{out}");
    assert_eq!(order(&site.machines[0], "step").await[2..], ["first", "second"]);
    assert_eq!(order(&site.machines[1], "step").await[2..], ["first", "undo"]);
    assert_eq!(order(&site.machines[2], "step").await, ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_with_the_targets_that_are_left() {
    let site = Site::new(2).await;
    let broken = site.home.path("broken");
    support::write(&broken, "");
    let script = format!(
        "name = \"only\"\nmax_parallelism = 1\nrun = '''\n[ $BATON_LABEL_TARGET = m1 ] || [ ! -e {} ]\n'''",
        broken.display()
    );
    let project = site.project("shop", &(steps(&[&script]) + "[rollout]\nmax_failures = 1\n"));
    let (code, out, _) = finish(site.deploy(&project).args(["--run", "one"]));
    assert_eq!(code, 3, "{out}");
    assert!(out.contains("--continue-from one"), "{out}");
    std::fs::remove_file(&broken).unwrap();
    let (code, out, _) = finish(site.deploy(&project).args(["--continue-from", "one"]));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("m1: left out: done in run one"), "{out}");
    let counts = (site.machines[0].history().await.len(), site.machines[1].history().await.len());
    assert_eq!(counts, (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_run_again_it_goes_on_and_nothing_runs_twice() {
    let site = Site::new(2).await;
    let gate = site.home.gate();
    let log = site.home.path("log");
    let note = |name: &str| format!("echo {name} >> {}", log.display());
    let project = site.project(
        "shop",
        &steps(&[
            &format!("name = \"first\"\nrun = '''\n{}\n'''", note("first")),
            &format!("name = \"second\"\nrun = '''\n{}\n{}\n'''", note("second"), gate.wait()),
            &format!("name = \"third\"\nrun = '''\n{}\n'''", note("third")),
        ]),
    );
    let mut deploy = Run::of(site.deploy(&project).args(["--run", "r"]));
    for machine in &site.machines {
        until(machine, 1, |script| runs(script) && script.labels["step"] == "second").await;
    }
    deploy.kill();
    let again = Run::of(site.deploy(&project).args(["--run", "r"]));
    gate.open();
    gate.open();
    assert_eq!(again.end(), 0);
    let text = std::fs::read_to_string(&log).unwrap();
    let mut count = BTreeMap::new();
    for line in text.lines() {
        *count.entry(line).or_insert(0) += 1;
    }
    assert_eq!(count, BTreeMap::from([("first", 2), ("second", 2), ("third", 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_cancels_what_runs_and_starts_nothing_more() {
    let site = Site::new(2).await;
    let gate = site.home.gate();
    let script = format!("name = \"first\"\nmax_parallelism = 1\nrun = '''\n{}\n'''", gate.wait());
    let project = site.project(
        "shop",
        &steps(&[&script, "name = \"tidy\"\ncondition = \"always\"\nrun = 'true'"]),
    );
    let mut deploy = Run::of(&mut site.deploy(&project));
    until(&site.machines[0], 1, runs).await;
    signal(&deploy.child, Signal::INT);
    line_with(&mut deploy, "first: cancelled");
    assert_eq!(deploy.end(), 130);
    let script = site.machines[0].history().await.remove(0);
    let Phase::Done(outcome) = &script.phase else { panic!("{script:?}") };
    assert!(
        matches!(outcome.kind, OutcomeKind::Cancelled { while_queued: false, .. }),
        "{script:?}"
    );
    assert!(site.machines[1].history().await.is_empty());
    assert_eq!(order(&site.machines[0], "step").await, ["first"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_target_is_waited_for_skipped_or_a_failure() {
    let site = Site::new(2).await;
    let gate = site.home.gate();
    let holder = site.machines[0].agent.script(gate.wait()).start().await;
    until(&site.machines[0], 1, |_| true).await;
    let project = site.project("shop", &steps(&["name = \"only\"\nrun = 'true'"]));
    let (code, out, _) = finish(site.deploy(&project).args(["--if-busy", "skip"]));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("m1      left out   ") && out.contains("the target was busy"), "{out}");
    let (code, out, _) = finish(site.deploy(&project).args(["--if-busy", "fail"]));
    assert_eq!(code, 1, "{out}");
    let mut waiting = Run::of(&mut site.deploy(&project));
    line_with(&mut waiting, "m1: only: waits, position 1");
    until(&site.machines[0], 1, waits).await;
    gate.open();
    assert_eq!(waiting.end(), 0);
    holder.is_done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_waits_for_somebody_to_let_it_go_on() {
    let site = Site::new(1).await;
    let text = steps(&[
        "name = \"first\"\nrun = 'true'",
        "name = \"ask\"\naction = \"pause\"\nmessage = \"looks good?\"",
        "name = \"second\"\nrun = 'true'",
    ]);
    let project = site.project("shop", &text);
    for (run, more, code, steps) in
        [("yes", &[][..], 0, vec!["first", "second"]), ("no", &["--refuse"][..], 1, vec!["first"])]
    {
        let mut deploy = Run::of(site.deploy(&project).args(["--run", run]));
        line_with(&mut deploy, "ask: looks good?");
        let answer = finish(site.baton().args(["deploy", "go-ahead", run]).args(more));
        assert_eq!(answer.0, 0, "{answer:?}");
        assert_eq!(deploy.end(), code);
        let scripts = site.machines[0].history().await;
        let own = scripts.iter().filter(|script| script.labels["run"] == run);
        assert_eq!(own.map(|script| &script.labels["step"]).collect::<Vec<_>>(), steps);
    }
    let unknown = finish(site.baton().args(["deploy", "go-ahead", "nobody"]));
    assert_eq!(unknown.0, 2, "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cant_be_reached_is_a_failure_or_left_out_by_choice() {
    let mut site = Site::new(2).await;
    site.machines[0].agent.kill();
    let step = steps(&["name = \"only\"\nrun = 'true'"]);
    let project = site.project("strict", &step);
    let (code, out, _) = finish(&mut site.deploy(&project));
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("ends: m1 can't be reached"), "{out}");
    assert!(site.machines[1].history().await.is_empty());
    let project = site.project("lenient", &format!("[rollout]\nunreachable = \"exclude\"\n{step}"));
    let (code, out, _) = finish(&mut site.deploy(&project));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("m1: left out: "), "{out}");
    assert_eq!(site.machines[1].history().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_may_be_repeated_is_tried_again() {
    let site = Site::new(1).await;
    let count = site.home.path("count");
    let script = format!(
        "name = \"only\"\nrepeatable = true\nretry = {{ times = 3, delay = \"50ms\" }}\nrun = '''\n\
         echo x >> {0}; [ $(wc -l < {0}) -ge 3 ]\n'''",
        count.display()
    );
    let project = site.project("shop", &steps(&[&script]));
    let (code, out, _) = finish(&mut site.deploy(&project));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("m1: only (attempt 3): succeeded"), "{out}");
    assert_eq!(site.machines[0].history().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_reaches_the_script_and_no_page_or_log() {
    let site = Site::new(1).await;
    let text = "[[variables]]\nname = \"Password\"\nvalue_env = \"SECRET\"\nsensitive = true\n"
        .to_owned()
        + &steps(&[
            "name = \"only\"\nrun = 'echo \"length ${#VAR_PASSWORD}, it is $VAR_PASSWORD\"; baton progress 40 \"with $VAR_PASSWORD\"'",
        ]);
    let project = site.project("shop", &text);
    let page = site.home.path("report.html");
    for more in [&[][..], &["--json"][..]] {
        let mut command = site.deploy(&project);
        command.env("SECRET", "hunter22");
        let (code, out, told) = finish(command.args(more).arg("--report").arg(&page));
        assert_eq!(code, 0, "{out}{told}");
        assert!(out.contains("length 8, it is ********"), "{out}");
        // Nor into the log on the machine.
        let script = site.machines[0].history().await.remove(0).script_id;
        let log = finish(site.machines[0].world.baton_at("a").args(["logs", script.as_str()]));
        assert!(log.1.contains("it is ********") && !log.1.contains("hunter22"), "{log:?}");
        let page = std::fs::read_to_string(&page).unwrap();
        for shown in [out, told, page] {
            assert!(!shown.contains("hunter22"), "{shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_part_of_a_secret_is_told_where_a_long_line_is_cut() {
    let site = Site::new(1).await;
    // A line is told in pieces of 16 KiB: the secret begins at each place before the cut, and behind it.
    let script = "for n in $(seq 16374 16386); do
                  head -c $n /dev/zero | tr '\\0' x; echo \"${VAR_PASSWORD}y\"; done";
    let text = "[[variables]]\nname = \"Password\"\nvalue_env = \"SECRET\"\nsensitive = true\n"
        .to_owned()
        + &steps(&[&format!("name = \"only\"\nrun = '''\n{script}\n'''")]);
    let project = site.project("shop", &text);
    for more in [&[][..], &["--json"][..]] {
        let mut command = site.deploy(&project);
        let (code, out, told) = finish(command.env("SECRET", "%&@?~^=!").args(more));
        assert_eq!(code, 0, "{out}{told}");
        assert_eq!(out.matches('*').count(), 13 * 8);
        assert!(!out.contains(|c: char| "%&@?~^=!".contains(c)), "a part of it is told");
    }
}

#[tokio::test]
async fn when_a_deployment_is_over_its_secrets_are_on_no_disk() {
    let site = Site::new(2).await;
    let text = "[[variables]]\nname = \"Password\"\nvalue_env = \"SECRET\"\nsensitive = true\n\
                [[variables]]\nname = \"Url\"\nvalue = \"https://x:#{Password}@db\"\n"
        .to_owned()
        + &steps(&[
            "name = \"first\"\nrun = 'echo \"$VAR_PASSWORD $VAR_URL\"'",
            "name = \"fails\"\nrun = 'echo \"$VAR_URL\" >&2; exit 3'",
        ]);
    let project = site.project("shop", &text);
    let secret = Secret::new();
    let mut command = site.deploy(&project);
    command.env("SECRET", &secret.value).args(["--json", "--report"]).arg(site.home.path("r.html"));
    let (code, out, told) = finish(&mut command);
    assert_eq!(code, 1, "{out}{told}");
    assert!(!secret.is_in((out + &told).as_bytes()));
    for machine in &site.machines {
        assert!(!machine.history().await.is_empty());
        secret.is_gone(&machine.world, &machine.agent).await;
    }
    // Nor on the orchestrator's.
    assert_eq!(secret.found(&site.home.path("")), Vec::<std::path::PathBuf>::new());
}

/// When a project's script ran on a machine.
fn span(history: &[Snapshot], project: &str) -> (Timestamp, Timestamp) {
    let script = history.iter().find(|script| script.labels["project"] == project).unwrap();
    (script.started_at.unwrap(), script.ended_at.unwrap())
}

fn overlap(a: (Timestamp, Timestamp), b: (Timestamp, Timestamp)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// Five projects are deployed to the same three machines, in this order; P3 does not bypass, and nobody
/// does outside of the environment `test`.
async fn five(environment: &str, bypasses: bool) {
    let site = Site::new(3).await;
    let names = ["p1", "p2", "p3", "p4", "p5"];
    let gates: Vec<_> = names.iter().map(|_| site.home.gate()).collect();
    let mut deploys = Vec::new();
    for (name, gate) in names.iter().zip(&gates) {
        let bypass = "[[variables]]\nname = \"OctopusBypassDeploymentMutex\"\nvalue = \"True\"\n\
                      scope = { environment = \"test\" }\n";
        let script = format!("name = \"only\"\nrun = '''\n{}\n'''", gate.wait());
        let text = steps(&[&script]);
        let text = if *name == "p3" { text } else { format!("{bypass}{text}") };
        let project = site.project(name, &text);
        let mut command = site.baton();
        command.arg("deploy").arg(&project).arg("--targets").arg(site.targets());
        deploys.push(Run::of(command.args(["--environment", environment])));
        for machine in &site.machines {
            until(machine, 1, |script| script.labels["project"] == *name).await;
        }
    }
    for machine in &site.machines {
        until(machine, if bypasses { 2 } else { 1 }, runs).await;
    }
    for gate in &gates {
        for _ in &site.machines {
            gate.open();
        }
    }
    for deploy in deploys {
        assert_eq!(deploy.end(), 0);
    }
    for machine in &site.machines {
        let history = machine.history().await;
        let spans: Vec<_> = names.iter().map(|name| span(&history, name)).collect();
        for (earlier, later) in [(0, 2), (1, 2), (2, 3), (2, 4)] {
            assert!(spans[earlier].1 <= spans[later].0, "{earlier} {later} {spans:?}");
        }
        assert_eq!(overlap(spans[0], spans[1]), bypasses, "{spans:?}");
        if !bypasses {
            assert!(spans.is_sorted_by(|a, b| a.1 <= b.0), "{spans:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_projects_share_three_machines_where_they_bypass() {
    five("test", true).await;
}

/// When a project's step ran on a target, by the events of `--json`.
fn told_span(events: &[serde_json::Value], project: &str, target: &str) -> (Timestamp, Timestamp) {
    let began = |e: &&serde_json::Value| e["event"] == "began" && e["project"] == project;
    let run = &events.iter().find(began).unwrap()["run"];
    let ended = |e: &&serde_json::Value| {
        e["run"] == *run && e["target"] == target && e["state"]["state"] == "ended"
    };
    let state = &events.iter().find(ended).unwrap()["state"];
    let time = |key: &str| state[key].as_str().unwrap().parse().unwrap();
    (time("started_at"), time("ended_at"))
}

#[test]
fn the_example_of_five_projects_runs_on_machines_of_its_own_and_draws_the_picture() {
    let home = support::World::new();
    let page = home.path("five.html");
    let mut command = home.baton_at("home");
    command.arg("deploy");
    command
        .args(["a", "b", "c", "d", "e"].map(|name| format!("examples/five-projects/{name}.toml")));
    command.args(["--environment", "Test", "--demo-targets", "3", "--json", "--report"]);
    let (code, out, told) = finish(command.arg(&page));
    assert_eq!(code, 0, "{told}");
    let events: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for target in ["web-1", "web-2", "db-1"] {
        let spans = ["A", "B", "C", "D", "E"].map(|project| told_span(&events, project, target));
        assert!(overlap(spans[0], spans[1]) && overlap(spans[3], spans[4]), "{spans:?}");
        assert!(spans[0].1.max(spans[1].1) <= spans[2].0, "{spans:?}");
        assert!(spans[2].1 <= spans[3].0.min(spans[4].0), "{spans:?}");
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("class=\"succeeded\" x=").count(), 15, "{page}");
    assert!(page.matches("class=\"wait\" x=").count() >= 9, "{page}");
}

#[test]
fn machines_to_try_it_on_end_with_a_command_that_is_killed() {
    let home = support::World::new();
    let gate = home.gate();
    support::write(
        &home.path("targets.toml"),
        &format!(
            "[targets.m]\naddress = \"m:1\"\nfingerprint = \"{:064}\"\nenvironments = [\"test\"]\n",
            1
        ),
    );
    support::write(
        &home.path("shop.toml"),
        &format!(
            "project = \"shop\"\n[[steps]]\nname = \"only\"\nrun = '''\n{}\n'''\n",
            gate.wait()
        ),
    );
    let mut command = home.baton_at("home");
    command.arg("deploy").arg(home.path("shop.toml")).env("TMPDIR", home.path(""));
    command.args(["--environment", "test", "--demo-targets", "1"]);
    let mut deploy = Run::of(&mut command);
    line_with(&mut deploy, "only: running");
    let folder = std::fs::read_dir(home.path("")).unwrap().map(|entry| entry.unwrap().path());
    let demo = |path: &std::path::PathBuf| path.to_string_lossy().contains("baton-demo-");
    let folder = folder.into_iter().find(demo).unwrap();
    // The agent has it locked as long as it lives.
    let lock = std::fs::File::open(folder.join("1/state/agent.lock")).unwrap();
    assert!(!baton::mutex::os::try_lock_exclusive(&lock).unwrap());
    deploy.kill();
    baton::mutex::os::lock_shared(&lock).unwrap();
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn five_projects_run_one_by_one_where_the_bypass_is_not_in_scope() {
    five("other", false).await;
}

/// Two projects of two steps meet on a machine. The order of their steps there.
async fn two_projects(isolation: &str) -> Vec<String> {
    let site = Site::new(1).await;
    let gate = site.home.gate();
    let first = format!("name = \"first\"\nrun = '''\n{}\n'''", gate.wait());
    let text = steps(&[&first, "name = \"second\"\nrun = 'true'"]);
    let text = format!("isolation = \"{isolation}\"\n{text}");
    let (a, b) = (site.project("a", &text), site.project("b", &text));
    let a = Run::of(&mut site.deploy(&a));
    until(&site.machines[0], 1, |s| runs(s) && s.labels.contains_key("step")).await;
    let mut b = Run::of(&mut site.deploy(&b));
    let line = line_with(&mut b, "waits, position 1");
    assert!(line.contains("project=a"), "{line}");
    gate.open();
    // It has arrived before the first step of the other one ends.
    let is_second = |s: &Snapshot| {
        let of = |label: &str| s.labels.get(label).map(String::as_str);
        of("project") == Some("a") && of("step") == Some("second")
    };
    until(&site.machines[0], 1, is_second).await;
    gate.open();
    assert_eq!((a.end(), b.end()), (0, 0));
    let mut scripts = site.machines[0].history().await;
    scripts.retain(|script| script.labels.contains_key("step"));
    scripts.sort_by_key(|script| script.started_at);
    scripts.iter().map(|s| format!("{} {}", s.labels["project"], s.labels["step"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_may_hold_a_machine_from_its_first_step_to_its_last() {
    let order = two_projects("deployment").await;
    assert_eq!(order, ["a first", "a second", "b first", "b second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn else_deployments_take_turns_step_by_step() {
    let order = two_projects("exclusive").await;
    assert_eq!(order, ["a first", "b first", "a second", "b second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_there_before_the_first_step_and_a_step_makes_it_current() {
    let site = Site::new(2).await;
    let folder = site.home.path("dist");
    std::fs::create_dir(&folder).unwrap();
    support::write(&folder.join("page"), "one");
    let text = format!(
        "[[packages]]\nid = \"site\"\nversion = \"#{{Octopus.Release.Number}}\"\ndirectory = {folder:?}\n"
    ) + &steps(&["name = \"install\"\naction = \"package\"\npackage = \"site\""]);
    let project = site.project("shop", &text);
    for (release, page) in [("1", "one"), ("2", "two"), ("2", "two")] {
        support::write(&folder.join("page"), page);
        let (code, out, told) = finish(site.deploy(&project).args(["--release", release]));
        assert_eq!(code, 0, "{out}{told}");
        assert!(out.contains(&format!("m2: package site {release}: ")), "{out}");
        for machine in &site.machines {
            let current = machine.agent.folder.join("state/packages/installed/site/current");
            assert_eq!(std::fs::read_to_string(current.join("page")).unwrap(), page);
            assert_eq!(std::fs::read_link(current).unwrap().to_str(), Some(release));
        }
    }
    support::write(&folder.join("page"), "other");
    let (code, out, _) = finish(site.deploy(&project).args(["--release", "2"]));
    assert_eq!(code, 1, "another content of the same version: {out}");
    assert!(out.contains("m1      failed"), "{out}");
}

/// A system lets one user have 128 watchers of files, and an agent has one: so each agent stands for four
/// targets. What is measured is the deployment alone.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts 50 agents; `.ci/run` runs it"]
async fn two_hundred_targets_are_rolled_out_within_a_minute() {
    let site = Site::new(50).await;
    let mut targets = String::new();
    for (number, machine) in (0..200).zip(site.machines.iter().cycle()) {
        let Machine { address, fingerprint, .. } = machine;
        let table =
            format!("[targets.t{number}]\naddress = {address:?}\nfingerprint = {fingerprint:?}\n");
        targets.extend([&table, "environments = [\"test\"]\n"]);
    }
    support::write(&site.targets(), &targets);
    let text = "[[variables]]\nname = \"Octopus.Action.MaxParallelism\"\nvalue = 20\n".to_owned()
        + &steps(&["name = \"first\"\nrun = 'true'", "name = \"second\"\nrun = 'true'"]);
    let project = site.project("shop", &text);
    let start = std::time::Instant::now();
    let (code, out, told) = finish(&mut site.deploy(&project));
    let took = start.elapsed();
    assert_eq!(code, 0, "{told}");
    assert_eq!(out.matches(": second: succeeded").count(), 200);
    for machine in &site.machines {
        let order = order(machine, "step").await;
        assert_eq!(order, [["first"; 4], ["second"; 4]].concat());
    }
    assert!(took < std::time::Duration::from_mins(1), "{took:?}");
    eprintln!("200 targets, 2 steps: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_had_left_out_as_done_stays_done() {
    let site = Site::new(3).await;
    let script = format!(
        "name = \"only\"\nrun = '''\n[ -e {}/fixed-$BATON_LABEL_TARGET ]\n'''",
        site.home.path("").display()
    );
    let project = site.project("shop", &(steps(&[&script]) + "[rollout]\nmax_failures = 2\n"));
    for (fixed, run, more) in [
        ("m1", "one", &[][..]),
        ("m2", "two", &["--continue-from", "one"][..]),
        ("m3", "three", &["--continue-from", "two"][..]),
    ] {
        support::write(&site.home.path(&format!("fixed-{fixed}")), "");
        let (_, out, told) = finish(site.deploy(&project).args(["--run", run]).args(more));
        assert!(out.contains(&format!("{fixed}: only: succeeded")), "{out}{told}");
    }
    let mut counts = Vec::new();
    for machine in &site.machines {
        counts.push(machine.history().await.len());
    }
    assert_eq!(counts, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_only_as_the_deployment_that_it_is() {
    let site = Site::new(1).await;
    let text = steps(&["name = \"only\"\nrun = 'true'"]);
    let (shop, other) = (site.project("shop", &text), site.project("other", &text));
    assert_eq!(finish(site.deploy(&shop).args(["--run", "r"])).0, 0);
    let changed = text.clone() + &steps(&["name = \"more\"\nrun = 'true'"]);
    for (what, words) in [
        (&other, &["--run", "r"][..]),
        (&other, &["--continue-from", "r"][..]),
        (&shop, &["--run", "r", "--release", "2"][..]),
        (&shop, &["--run", "../r"][..]),
        (&site.project("shop", &changed), &["--run", "r"][..]),
    ] {
        let (code, out, told) = finish(site.deploy(what).args(words));
        assert_eq!((code, out.as_str()), (2, ""), "{words:?} {told}");
    }
    assert_eq!(site.machines[0].history().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cant_begin_holds_up_no_other() {
    let site = Site::new(1).await;
    let step = steps(&["name = \"only\"\nrun = 'true'"]);
    let nowhere = format!("{step}[coordination]\netcd = [\"http://127.0.0.1:1\"]\n");
    let (bad, good) = (site.project("bad", &nowhere), site.project("good", &step));
    let deploy = Run::of(site.deploy(&bad).arg(&good));
    assert_eq!(deploy.end(), 70);
    assert_eq!(order(&site.machines[0], "project").await, ["good"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_not_busy_with_the_deployment_itself() {
    let site = Site::new(1).await;
    let gate = site.home.gate();
    let first = format!("name = \"first\"\nrun = '''\n{}\n'''", gate.wait());
    let beside = "name = \"side\"\nstart = \"with-previous\"\nrun = 'true'";
    let project = site.project("shop", &steps(&[&first, beside]));
    let mut deploy = Run::of(site.deploy(&project).args(["--if-busy", "skip"]));
    line_with(&mut deploy, "waits, position 1");
    gate.open();
    assert_eq!(deploy.end(), 0);
    assert_eq!(site.machines[0].history().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_a_success_when_nothing_was_done() {
    let mut site = Site::new(1).await;
    let page = site.home.path("no/folder/report.html");
    let project = site.project("shop", &steps(&["name = \"only\"\nrun = 'true'"]));
    let (code, _, told) = finish(site.deploy(&project).arg("--report").arg(&page));
    assert_eq!(code, 2, "{told}");
    assert!(site.machines[0].history().await.is_empty(), "the report could not be written");

    let all = "[rollout]\nmax_failures = \"100%\"\nunreachable = \"exclude\"\n".to_owned();
    let project = site.project("fails", &(all.clone() + &steps(&["name = \"x\"\nrun = 'false'"])));
    assert_eq!(finish(&mut site.deploy(&project)).0, 1, "all targets failed");
    site.machines[0].agent.kill();
    let (code, out, _) = finish(&mut site.deploy(&project));
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("ends: no target can be reached"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_go_ahead_is_for_the_pause_that_asks_and_for_no_later_one() {
    let site = Site::new(1).await;
    let gate = site.home.gate();
    let work = |name: &str| format!("name = \"{name}\"\nrun = '''\n{}\n'''", gate.wait());
    let pause = |name: &str| format!("name = \"{name}\"\naction = \"pause\"\nmessage = \"well?\"");
    let text = steps(&[&work("one"), &pause("ask"), &work("two"), &pause("again")]);
    let project = site.project("shop", &text);
    let mut deploy = Run::of(site.deploy(&project).args(["--run", "r"]));
    let go_ahead = || finish(site.baton().args(["deploy", "go-ahead", "r"])).0;
    line_with(&mut deploy, "one: running");
    assert_eq!(go_ahead(), 2, "it asks nothing yet");
    gate.open();
    line_with(&mut deploy, "ask: well?");
    assert_eq!(go_ahead(), 0);
    line_with(&mut deploy, "two: running");
    assert_eq!(go_ahead(), 2, "it asks nothing any more");
    gate.open();
    line_with(&mut deploy, "again: well?");
    assert_eq!(finish(site.baton().args(["deploy", "go-ahead", "r", "--refuse"])).0, 0);
    assert_eq!(deploy.end(), 1);
}
