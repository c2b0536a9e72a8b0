//! Promise: an agent that is away is waited for as long as was said, and who waits is told so; when it is back
//! its script is followed on, and after the limit it is said what is known and how to look. Real agents that
//! are stopped and started, a network that is cut, the real command.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use rustix::process::Signal;
use support::relay::Relay;
use support::run::Run;
use support::site::Site;
use support::{finish, lines, signal};

/// The next line that has this in it.
fn line_with(mut next: impl FnMut() -> String, text: &str) -> String {
    loop {
        let line = next();
        if line.contains(text) {
            return line;
        }
        assert!(!line.is_empty(), "{text:?} was not told");
    }
}

fn step(name: &str, more: &str, text: &str) -> String {
    format!("[[steps]]\nname = \"{name}\"\n{more}\nrun = '''\n{text}\n'''\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_goes_on_when_the_agent_is_back_and_nothing_runs_twice() {
    let mut site = Site::new(1).await;
    let (gate, log) = (site.home.gate(), site.home.path("log"));
    let note = |name: &str| format!("echo {name} >> {}", log.display());
    let text = step("first", "", &format!("{}; {}; echo one", note("first"), gate.wait()))
        + "[[steps]]\nname = \"check\"\naction = \"health-check\"\n"
        + &step("second", "", &note("second"));
    let page = site.home.path("page.html");
    for isolation in ["exclusive", "deployment"] {
        let text = format!("isolation = \"{isolation}\"\n[rollout]\naway_limit = \"1h\"\n{text}");
        let project = site.project("shop", &text);
        let mut deploy = Run::of(site.deploy(&project).arg("--report").arg(&page));
        line_with(|| deploy.line(), "first: running");
        site.machines[0].agent.kill();
        let told = line_with(|| deploy.line(), "the agent is away since");
        assert!(told.contains("m1: first: ") && told.contains("; waiting until "), "{told}");
        // The script ends while there is no agent.
        gate.open();
        site.machines[0].comes_back().await;
        line_with(|| deploy.line(), "m1: first: the agent is back after");
        line_with(|| deploy.line(), "m1 | one");
        line_with(|| deploy.line(), "first: succeeded");
        line_with(|| deploy.line(), "check: succeeded");
        assert_eq!(deploy.end(), 0);
        let page = std::fs::read_to_string(&page).unwrap();
        assert!(page.contains("<rect class=\"away\" ") && page.contains("away since"), "{page}");
    }
    assert_eq!(lines(&log), ["first", "second", "first", "second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_a_deployment_says_what_is_known_and_how_to_look_and_goes_on_by_its_run() {
    let mut site = Site::new(1).await;
    site.introduce();
    let (gate, log) = (site.home.gate(), site.home.path("log"));
    // Tried again it would run beside the one that may still run.
    let more = "repeatable = true\nretry = { times = 3, delay = \"50ms\" }\naway_limit = \"1h\"";
    let text = format!("echo on >> {}; {}", log.display(), gate.wait());
    let project = site.project("shop", &step("only", more, &text));
    let limited = ["--run", "r", "--away-limit", "1s", "--json"];
    let mut deploy = Run::of(site.deploy(&project).args(limited));
    line_with(|| deploy.line(), "\"runs\"");
    site.machines[0].agent.kill();
    let told = line_with(|| deploy.line(), "\"away\"");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let time = |key: &str| told["state"][key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!((time("until") - time("since")).get_seconds(), 1, "{told}");
    assert!(told["state"]["why"].as_str().is_some_and(|why| !why.is_empty()), "{told}");
    let ended = line_with(|| deploy.line(), "\"ended\"");
    for part in [
        "m1 is away since ",
        ", and was waited for in vain until ",
        "script r.1.m1 ran there, and may go on: baton show r.1.m1 -t m1",
    ] {
        assert!(ended.contains(part), "{part:?} is not in {ended}");
    }
    assert_eq!(deploy.end(), 1);
    gate.open();
    site.machines[0].comes_back().await;
    let (code, shown, _) = finish(site.baton().args(["show", "r.1.m1", "-t", "m1"]));
    assert!(code == 0 && shown.contains("r.1.m1"), "{shown}");
    let (code, out, told) = finish(site.deploy(&project).args(["--run", "r"]));
    assert_eq!(code, 0, "{out}{told}");
    assert_eq!(lines(&log), ["on"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_and_mended_costs_no_step() {
    let mut site = Site::new(1).await;
    let relay = Relay::to(&site.machines[0].address).await;
    let address = std::mem::replace(&mut site.machines[0].address, relay.address.clone());
    site.know(|_| "limits = { away_limit = \"1h\" }".to_owned());
    site.machines[0].address = address;
    let gate = site.home.gate();
    let text = step("only", "", &format!("{}; echo one", gate.wait()));
    let project = site.project("shop", &text);
    let mut deploy = Run::of(&mut site.deploy(&project));
    line_with(|| deploy.line(), "only: running");
    relay.cut();
    line_with(|| deploy.line(), "the agent is away since");
    gate.open();
    relay.mend();
    line_with(|| deploy.line(), "the agent is back after");
    line_with(|| deploy.line(), "m1 | one");
    assert_eq!(deploy.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_a_deployment_does_not_wait_for_who_is_away_until_the_limit() {
    let mut site = Site::new(2).await;
    let gate = site.home.gate();
    let project = site.project("shop", &step("only", "", &gate.wait()));
    let mut deploy = Run::of(site.deploy(&project).args(["--run", "r", "--away-limit", "1h"]));
    for _ in &site.machines {
        line_with(|| deploy.line(), "only: running");
    }
    site.machines[0].agent.kill();
    line_with(|| deploy.line(), "m1: only: the agent is away since");
    signal(&deploy.child, Signal::INT);
    line_with(|| deploy.line(), "m2: only: cancelled");
    let told = line_with(|| deploy.line(), "m1: only: failed");
    assert!(told.contains("in vain") && told.contains("baton show r.1.m1 -t m1"), "{told}");
    assert_eq!(deploy.end(), 130);
    // Once more leaves at once.
    site.machines[0].comes_back().await;
    gate.open();
    let mut deploy = Run::of(site.deploy(&project).args(["--run", "s", "--away-limit", "1h"]));
    line_with(|| deploy.line(), "m1: only: running");
    site.machines[0].agent.kill();
    line_with(|| deploy.line(), "m1: only: the agent is away since");
    signal(&deploy.child, Signal::INT);
    line_with(|| deploy.told(), "once more to leave at once");
    signal(&deploy.child, Signal::INT);
    line_with(|| deploy.told(), "leaving");
    assert_eq!(deploy.end(), 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_reaches_an_agent_that_comes_back() {
    let mut site = Site::new(1).await;
    site.introduce();
    let gate = site.home.gate();
    let project = site.project("shop", &step("only", "", &gate.wait()));
    let mut run = site.baton();
    run.args(["run", "-t", "m1", "--away-limit", "1h", "-c", &gate.wait()]);
    let deploy = site.deploy(&project);
    for (mut command, running) in [(deploy, "only: running"), (run, "")] {
        let mut client = Run::of(&mut command);
        if running.is_empty() {
            site.machines[0].is_running().await;
        } else {
            line_with(|| client.line(), running);
        }
        site.machines[0].agent.kill();
        if running.is_empty() {
            let told = line_with(|| client.told(), "baton: m1 is away since ");
            assert!(told.contains("; waiting until "), "{told}");
        } else {
            line_with(|| client.line(), "the agent is away since");
        }
        signal(&client.child, Signal::INT);
        line_with(|| client.told(), "once more to leave at once");
        site.machines[0].comes_back().await;
        assert_eq!(client.end(), 130);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_when_the_agent_is_back_and_says_at_the_limit_how_to_look() {
    let mut site = Site::new(1).await;
    site.introduce();
    let gate = site.home.gate();
    let text = format!("echo one; {}; echo two; exit 5", gate.wait());
    let run = |limit: &str, more: &str| {
        let mut command = site.baton();
        command.args(["run", "-t", "m1", "--id", more, "--away-limit", limit, "-c", &text]);
        command
    };
    let (mut patient, mut hasty) = (run("1h", "patient"), run("1s", "hasty"));
    let mut patient = Run::of(patient.arg("--json"));
    line_with(|| patient.line(), "one");
    site.machines[0].agent.kill();
    let told = line_with(|| patient.line(), "\"away\"");
    assert!(told.contains("\"since\"") && told.contains("\"until\""), "{told}");
    gate.open();
    site.machines[0].comes_back().await;
    line_with(|| patient.line(), "\"back\"");
    line_with(|| patient.line(), "two");
    assert_eq!(patient.end(), 5);

    let mut hasty = Run::of(&mut hasty);
    line_with(|| hasty.line(), "one");
    site.machines[0].agent.kill();
    line_with(|| hasty.told(), "baton: m1 is away since ");
    let error = line_with(|| hasty.told(), "error: ");
    assert!(error.contains("away since") && error.contains("in vain until"), "{error}");
    let hint = line_with(|| hasty.told(), "hint: ");
    assert!(hint.contains("baton show hasty -t m1"), "{hint}");
    assert_eq!(hasty.end(), 69);
    gate.open();
    site.machines[0].comes_back().await;
    let follow = ["logs", "--follow", "hasty", "-t", "m1", "--away-limit", "1h"];
    let (code, out, _) = finish(site.baton().args(follow));
    assert_eq!((code, out.as_str()), (5, "one\ntwo\n"));
}

#[test]
fn a_limit_of_no_time_is_refused() {
    let world = support::World::new();
    let (code, _, told) = finish(world.baton().args(["run", "--away-limit", "0s", "-c", "true"]));
    assert!(code == 2 && told.contains("each restart of an agent would be a failure"), "{told}");
}
