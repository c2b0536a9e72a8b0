//! Promise: deployments of one project to one environment take turns also when they are started on machines
//! that share nothing but an etcd. A real etcd, two network namespaces, an agent between them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::process::Command;

use baton::script::{OutcomeKind, Phase};
use baton::trust::Identity;
use support::cable::Cable;
use support::etcd::Etcd;
use support::run::Run;
use support::site::{Site, trusting};
use support::{World, soon, write};

/// A command of an orchestrating machine in one of the networks.
fn deploy(network: &str, home: &World, machine: &World, run: &str) -> Command {
    let [program, words @ ..] = Cable::inside(network);
    let like = home.baton_at("home");
    let mut command = Command::new(program);
    command.args(words).arg(support::BATON).arg("deploy").arg(machine.path("shop.toml"));
    command.arg("--targets").arg(machine.path("targets.toml"));
    command.args(["--environment", "test", "--run", run]);
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn orchestrators_on_two_machines_take_turns() {
    let Some(cable) = Cable::lay() else { return };
    let machine = World::new();
    let near = Cable::inside(&cable.near);
    let Some(etcd) = Etcd::start_at(&machine, &near, Cable::ADDRESS) else { return };
    let homes = [World::new(), World::new()];
    let mut fingerprint = String::new();
    for home in &homes {
        let identity = Identity::load_or_create(&home.path("home/config"), "client").unwrap();
        fingerprint = trusting(&machine, &identity.fingerprint().to_string());
    }
    let like = machine.baton_at("a");
    let mut command = Command::new(near[0]);
    command.args(&near[1..]).arg(support::BATON);
    command.args(["agent", "run", "--listen", &format!("{}:0", Cable::ADDRESS)]);
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let agent = machine.await_agent("a", command).await;
    let address = std::fs::read_to_string(agent.folder.join("run/agent.address")).unwrap();
    let address = address.trim();
    write(
        &machine.path("targets.toml"),
        &format!(
            "[targets.m]\naddress = {address:?}\nfingerprint = {fingerprint:?}\nenvironments = [\"test\"]\n"
        ),
    );
    let gate = machine.gate();
    write(
        &machine.path("shop.toml"),
        &format!(
            "project = \"shop\"\n[coordination]\netcd = [{:?}]\n[[steps]]\nname = \"only\"\n\
             run = '''\n{}\n'''\n",
            etcd.url(),
            gate.wait()
        ),
    );
    let all = std::collections::BTreeMap::new();
    let mut first = Run::of(&mut deploy(&cable.near, &homes[0], &machine, "one"));
    while !first.line().contains("only: running") {}
    let mut second = Run::of(&mut deploy(&cable.far, &homes[1], &machine, "two"));
    let told = loop {
        let told = second.line();
        if told.contains("waits for its turn") {
            break told;
        }
    };
    assert!(told.contains("deploys shop to test, run one"), "{told}");
    let known = agent.client.list(&[], &all, 10);
    assert_eq!(soon("the list", known).await.unwrap().len(), 1);
    gate.open();
    gate.open();
    assert_eq!((first.end(), second.end()), (0, 0));
    let known = agent.client.list(&[], &all, 10);
    let mut known = soon("the list", known).await.unwrap();
    known.sort_by_key(|script| script.started_at);
    assert!(known.iter().all(|script| matches!(script.phase, Phase::Done(_))), "{known:?}");
    let runs: Vec<_> = known.iter().map(|script| script.labels["run"].as_str()).collect();
    assert_eq!(runs, ["one", "two"]);
    assert!(known[0].ended_at <= Some(known[1].queued_at), "{known:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_its_turn_cancels_what_runs_and_starts_nothing_more() {
    let site = Site::new(1).await;
    let Some(mut etcd) = Etcd::start(&site.home) else { return };
    let gate = site.home.gate();
    let text = format!(
        "[coordination]\netcd = [{:?}]\n[[steps]]\nname = \"only\"\nrun = '''\n{}\n'''\n\
         [[steps]]\nname = \"tidy\"\ncondition = \"always\"\nrun = 'true'\n",
        etcd.url(),
        gate.wait()
    );
    let project = site.project("shop", &text);
    let mut deploy = Run::of(&mut site.deploy(&project));
    while !deploy.line().contains("only: running") {}
    etcd.kill();
    while !deploy.line().contains("ends: the turn is lost: etcd did not confirm it") {}
    assert_eq!(deploy.end(), 1);
    let history = site.machines[0].history().await;
    let Phase::Done(outcome) = &history[0].phase else { unreachable!("{history:?}") };
    assert!(matches!(outcome.kind, OutcomeKind::Cancelled { .. }), "{outcome:?}");
    assert_eq!(history.len(), 1, "nothing started behind it");
}
