//! Promise: a fleet-wide mutex is held by one at a time, in order of arrival, with fencing numbers that
//! only grow; who loses it has ended its command before the next one holds. With a real etcd.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]
#![allow(clippy::print_stderr, reason = "what is left out is said")]

mod support;

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use baton::fleet::{Fleet, FleetError, LockName, Loss, Options, Told, Who};
use rustix::process::{Pid, Signal, kill_process};

use support::cable::Cable;
use support::etcd::Etcd;
use support::run::{Run, await_end, lives, named_process};
use support::{Gate, Stopped, World, finish, lines, signal, soon};

/// The lease of who is to lose it.
const TTL: Duration = Duration::from_secs(3);
/// How much later than planned things may happen on a busy machine.
const SLACK: Duration = Duration::from_secs(2);
/// The status of a command that was ended since the mutex was lost.
const LOST: i32 = 76;

/// A world with an etcd in it.
struct Machines {
    etcd: Etcd,
    world: World,
}

impl Machines {
    fn new() -> Option<Self> {
        let world = World::new();
        Etcd::start(&world).map(|etcd| Self { etcd, world })
    }

    fn words(&self, options: &str) -> String {
        format!("--fleet m --etcd {} {options}", self.etcd.url()).trim_end().to_owned()
    }

    /// `baton mutex run --fleet m OPTIONS -- sh -c TEXT`.
    fn run(&self, options: &str, text: &str) -> Run {
        Run::start(&self.world, &self.words(options), text)
    }

    /// One that holds when this returns.
    fn holder(&self, options: &str, gate: &Gate) -> Run {
        Run::holder(&self.world, &self.words(options), gate)
    }

    /// One that stands in line when this returns; when it holds, it says who of `others` still lives.
    fn waiter(&self, options: &str, name: &str, others: &str) -> Run {
        let log = self.world.path("log");
        let text = format!(
            "for p in {others}; do kill -0 $p && echo overlap; done >> {log}; echo {name} $BATON_MUTEX_FENCE >> {log}",
            log = log.display()
        );
        let mut run = self.run(options, &text);
        let told = run.told();
        assert!(told.starts_with("baton: waiting, position "), "{told}");
        run
    }

    fn log(&self) -> Vec<String> {
        lines(&self.world.path("log"))
    }

    fn fleet(&self, ttl: Duration) -> impl Future<Output = Result<Fleet, FleetError>> {
        let endpoints = [self.etcd.url().to_owned()];
        async move { Fleet::connect(&endpoints, Options { ttl, ..Options::default() }).await }
    }
}

/// A tree that heeds nothing but SIGKILL, with a process in a session of its own; and its two processes.
fn stubborn(run: &mut Run) -> ([OwnedFd; 2], String) {
    let (one, other) = (run.line(), run.line());
    let ids = [&one, &other].map(|line| line.split(' ').nth(1).unwrap().to_owned());
    ([named_process(&one), named_process(&other)], ids.join(" "))
}

const STUBBORN: &str = "trap '' TERM; echo leader $$; \
    setsid sh -c 'echo other $$; while :; do sleep 0.2; done' & \
    while :; do sleep 0.2; done";

#[test]
fn five_hold_one_at_a_time_in_order_of_arrival_and_their_fencing_numbers_grow() {
    let Some(machines) = Machines::new() else { return };
    let gate = machines.world.gate();
    let holder = machines.holder("", &gate);
    let inside = machines.world.path("inside");
    let log = machines.world.path("log");
    let text = |number: u32| {
        format!(
            "mkdir {inside} || echo overlap >> {log}; echo {number} $BATON_MUTEX_FENCE $BATON_MUTEX_FENCE_M >> {log}; rmdir {inside}",
            inside = inside.display(),
            log = log.display()
        )
    };
    let waiters: Vec<Run> = (1..=5)
        .map(|number| {
            let mut run = machines.run("--reason because", &text(number));
            let told = run.told();
            let place = format!("baton: waiting, position {number}: `m` is held by ");
            assert!(
                told.starts_with(&place) && told.contains(&holder.child.id().to_string()),
                "{told}"
            );
            assert_eq!(told.contains("; just before: "), number > 1, "{told}");
            assert_eq!(told.ends_with(": because"), number > 1, "{told}");
            run
        })
        .collect();
    gate.open();
    assert_eq!(holder.end(), 0);
    for waiter in waiters {
        assert_eq!(waiter.end(), 0);
    }
    let mut last = 0;
    for (number, line) in (1..).zip(machines.log()) {
        let words: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        assert!(words[0] == number && words[1] == words[2] && words[1] > last, "{line}");
        last = words[1];
    }
    assert_eq!(machines.log().len(), 5);
}

#[test]
fn a_waiter_hears_of_each_change_that_concerns_it() {
    let Some(machines) = Machines::new() else { return };
    let (first, second) = (machines.world.gate(), machines.world.gate());
    let holder = machines.holder("", &first);
    let text = format!("echo on; {}", second.wait());
    let mut next = machines.run("", &text);
    let told = next.told();
    assert!(told.contains("position 1"), "{told}");
    let mut waiter = machines.waiter("", "last", "");
    first.open();
    assert_eq!(holder.end(), 0);
    assert_eq!(next.line(), "on");
    let told = waiter.told();
    let holds = format!("pid {}", next.child.id());
    assert!(told.contains("position 1") && told.contains(&holds), "{told}");
    second.open();
    assert_eq!((next.end(), waiter.end()), (0, 0));
}

#[test]
fn who_does_not_want_to_wait_gets_the_status_that_it_asked_for() {
    let Some(machines) = Machines::new() else { return };
    let gate = machines.world.gate();
    let holder = machines.holder("", &gate);
    for (options, status) in [
        ("--no-wait", 75),
        ("--timeout 100ms", 75),
        ("--no-wait -E 9", 9),
        ("--timeout 100ms -E 0", 0),
    ] {
        assert_eq!(machines.run(options, "true").end(), status, "{options}");
    }
    gate.open();
    assert_eq!(holder.end(), 0);
    // Whoever gave up left no place behind.
    assert_eq!(machines.run("--no-wait", "exit 7").end(), 7);
    assert_eq!(machines.run("", "kill -SEGV $$").end(), 139);
    let missing = ["mutex", "run", "--fleet", "m", "--etcd", machines.etcd.url(), "--", "/no/such"];
    assert_eq!(finish(machines.world.baton().args(missing)).0, 127);
}

#[test]
fn members_are_tried_in_turn_and_none_is_an_error_at_once() {
    let Some(machines) = Machines::new() else { return };
    let dead = "--etcd http://127.0.0.1:1";
    assert_eq!(machines.run(dead, "true").end(), 0);
    let words = format!("{dead} {}", machines.words(""));
    assert_eq!(Run::start(&machines.world, &words, "true").end(), 0);
    for (words, status) in [
        (format!("--fleet m {dead}"), 69),
        ("--fleet m --etcd ftp://a:1".to_owned(), 2),
        ("--fleet m --etcd https://127.0.0.1:1".to_owned(), 2),
        ("--fleet m".to_owned(), 2),
    ] {
        assert_eq!(Run::start(&machines.world, &words, "true").end(), status, "{words}");
    }
    let mut command = machines.world.baton();
    command.args(["mutex", "run", "--fleet", "m", "--", "true"]);
    let listed = format!("http://127.0.0.1:1,{}", machines.etcd.url());
    assert_eq!(finish(command.env("BATON_ETCD", listed)).0, 0);
}

#[test]
fn signals_reach_the_command_once_and_end_a_wait() {
    let Some(machines) = Machines::new() else { return };
    let gate = machines.world.gate();
    let count =
        format!("trap 'echo got' TERM; echo on; {} & wait $!; wait $!; exit 40", gate.wait());
    let mut holder = machines.run("", &count);
    assert_eq!(holder.line(), "on");
    let first = machines.waiter("", "first", "");
    let mut second = machines.waiter("", "second", "");
    signal(&first.child, Signal::INT);
    assert_eq!(first.end(), 128 + Signal::INT.as_raw());
    let told = second.told();
    assert!(told.contains("position 1"), "{told}");
    signal(&holder.child, Signal::TERM);
    assert_eq!(holder.line(), "got");
    gate.open();
    assert_eq!(holder.line(), "");
    assert_eq!((holder.end(), second.end()), (40, 0));
}

#[test]
fn a_killed_holder_s_command_is_ended_before_the_next_one_holds_within_the_time_to_live() {
    let Some(machines) = Machines::new() else { return };
    let mut holder = machines.run("--ttl 3s", STUBBORN);
    let (tree, ids) = stubborn(&mut holder);
    let next = machines.waiter("", "next", &ids);
    let killed = Instant::now();
    holder.kill();
    assert_eq!(next.end(), 0);
    assert!(killed.elapsed() < TTL + SLACK, "{:?}", killed.elapsed());
    assert!(!tree.iter().any(lives));
    assert!(machines.log()[0].starts_with("next "), "{:?}", machines.log());
}

#[test]
fn a_stopped_holder_s_command_is_ended_before_the_next_one_holds() {
    let Some(machines) = Machines::new() else { return };
    let mut holder = machines.run("--ttl 3s", STUBBORN);
    let (tree, ids) = stubborn(&mut holder);
    let next = machines.waiter("", "next", &ids);
    let stopped = Stopped::new(holder.child.id());
    assert_eq!(next.end(), 0);
    assert!(!tree.iter().any(lives));
    assert!(machines.log()[0].starts_with("next "), "{:?}", machines.log());
    stopped.go_on_to_the_end();
    assert_eq!(holder.end(), LOST);
}

#[test]
fn a_command_whose_tether_is_killed_is_ended_at_once_and_the_mutex_given_back() {
    let Some(machines) = Machines::new() else { return };
    let mut holder = machines.run("", STUBBORN);
    let (tree, _) = stubborn(&mut holder);
    let children = format!("/proc/{0}/task/{0}/children", holder.child.id());
    let tether: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(tether).unwrap(), Signal::KILL).unwrap();
    assert_eq!(holder.end(), LOST);
    assert!(!tree.iter().any(lives));
    assert_eq!(machines.run("--no-wait", "true").end(), 0);
}

#[test]
fn a_command_is_ended_in_time_when_etcd_does_not_answer() {
    for is_killed in [false, true] {
        let Some(mut machines) = Machines::new() else { return };
        let mut holder = machines.run("--ttl 3s", STUBBORN);
        let (tree, _) = stubborn(&mut holder);
        let since = Instant::now();
        if is_killed {
            machines.etcd.kill();
        } else {
            machines.etcd.pause();
        }
        tree.iter().for_each(await_end);
        assert!(since.elapsed() < TTL, "{:?}", since.elapsed());
        let told = holder.told();
        assert!(told.starts_with("baton: `m` is lost: etcd has not confirmed it"), "{told}");
        assert_eq!(holder.end(), LOST);
    }
}

#[test]
fn a_command_that_stops_when_it_is_asked_is_not_killed() {
    let Some(machines) = Machines::new() else { return };
    let gate = machines.world.gate();
    let text = format!("trap 'echo bye; exit 0' TERM; echo on; {} & wait $!", gate.wait());
    let mut holder = machines.run("--ttl 6s", &text);
    assert_eq!(holder.line(), "on");
    machines.etcd.pause();
    assert_eq!(holder.line(), "bye");
    assert_eq!(holder.end(), LOST);
}

#[test]
fn a_command_whose_key_was_removed_is_ended() {
    let Some(machines) = Machines::new() else { return };
    let gate = machines.world.gate();
    let mut holder = machines.holder("--ttl 3s", &gate);
    machines.etcd.remove_all_keys();
    let told = holder.told();
    assert!(told.starts_with("baton: `m` is lost: etcd has its key or lease no more"), "{told}");
    assert_eq!(holder.end(), LOST);
}

#[test]
fn an_etcd_with_tls_is_trusted_by_its_authority_only() {
    let world = World::new();
    let Some((etcd, authority)) = Etcd::start_tls(&world) else { return };
    let run = |options: &str| {
        let words = format!("--fleet m --etcd {} {options}", etcd.url());
        Run::start(&world, words.trim_end(), "true").end()
    };
    assert_eq!(run(&format!("--etcd-ca {}", authority.display())), 0);
    assert_eq!(run(""), 2);
    let other = world.path("other.pem");
    let names = vec!["127.0.0.1".to_owned()];
    support::write(&other, &rcgen::generate_simple_self_signed(names).unwrap().cert.pem());
    assert_eq!(run(&format!("--etcd-ca {}", other.display())), 69);
}

#[test]
fn a_wait_goes_on_in_its_place_when_etcd_was_restarted() {
    let Some(mut machines) = Machines::new() else { return };
    let gate = machines.world.gate();
    let holder = machines.holder("--ttl 1m", &gate);
    let mut first = machines.waiter("--ttl 1m", "first", "");
    let mut second = machines.waiter("--ttl 1m", "second", "");
    machines.etcd.kill();
    for waiter in [&mut first, &mut second] {
        let told = waiter.told();
        assert!(told.contains("can't be reached") && told.ends_with("trying again"), "{told}");
    }
    machines.etcd.restart();
    for (place, waiter) in (1..).zip([&mut first, &mut second]) {
        let told = waiter.told();
        assert!(told.contains(&format!("waiting, position {place}: ")), "{told}");
    }
    gate.open();
    assert_eq!((holder.end(), first.end(), second.end()), (0, 0, 0));
    let log = machines.log();
    assert!(log[0].starts_with("first ") && log[1].starts_with("second "), "{log:?}");
}

#[test]
fn a_waiter_whose_lease_ended_is_told_and_stands_anew_at_the_end() {
    let Some(machines) = Machines::new() else { return };
    let gate = machines.world.gate();
    let holder = machines.holder("", &gate);
    let mut first = machines.waiter("--ttl 3s", "first", "");
    let mut second = machines.waiter("", "second", "");
    signal(&first.child, Signal::STOP);
    let told = second.told();
    assert!(told.contains("position 1"), "{told}");
    signal(&first.child, Signal::CONT);
    let told = first.told();
    assert!(told.contains("place for `m` was lost"), "{told}");
    let told = first.told();
    assert!(told.contains("position 2"), "{told}");
    gate.open();
    assert_eq!((holder.end(), second.end(), first.end()), (0, 0, 0));
    let log = machines.log();
    assert!(log[0].starts_with("second ") && log[1].starts_with("first "), "{log:?}");
}

#[test]
fn a_machine_that_is_cut_off_has_ended_its_command_before_another_one_holds() {
    let Some(cable) = Cable::lay() else { return };
    let world = World::new();
    let near = Cable::inside(&cable.near);
    let Some(etcd) = Etcd::start_at(&world, &near, Cable::ADDRESS) else { return };
    let log = world.path("log");
    let run = |network: &str, options: &str, text: &str| {
        let like = world.baton();
        let [program, words @ ..] = Cable::inside(network);
        let mut command = Command::new(program);
        command.args(words).arg(support::BATON).args(["mutex", "run", "--fleet", "m"]);
        command.args(["--etcd", etcd.url()]).args(options.split_whitespace());
        command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Run::of(command.args(["--", "sh", "-c", text]))
    };
    let mut holder = run(&cable.far, "--ttl 3s", STUBBORN);
    let (tree, ids) = stubborn(&mut holder);
    let text = format!(
        "for p in {ids}; do kill -0 $p && echo overlap; done >> {0}; echo next >> {0}",
        log.display()
    );
    let mut next = run(&cable.near, "--ttl 3s", &text);
    let told = next.told();
    assert!(told.contains("position 1"), "{told}");
    let since = Instant::now();
    cable.cut();
    tree.iter().for_each(await_end);
    assert!(since.elapsed() < TTL, "{:?}", since.elapsed());
    assert_eq!(next.end(), 0);
    assert!(since.elapsed() < TTL + SLACK, "{:?}", since.elapsed());
    assert_eq!(lines(&log), ["next"]);
    assert_eq!(holder.end(), LOST);
}

fn who(reason: &str) -> Who {
    Who::this_process("test".to_owned(), reason.to_owned())
}

fn go_on(_: Told<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_library_s_lock_says_when_it_is_lost_and_a_dropped_one_is_given_back() {
    let Some(machines) = Machines::new() else { return };
    let fleet = machines.fleet(TTL).await.unwrap();
    let name: LockName = "Acme/Web shop/Production".parse().unwrap();
    let first = soon("the lock", fleet.lock(&name, who("a"), go_on)).await.unwrap();
    let fence = first.fence();
    // A wait that is dropped leaves no place.
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let waiting = fleet.lock(&name, who("b"), |wait| {
        let Told::Waits(ahead) = wait else { return ControlFlow::Continue(()) };
        told.send(ahead.holder.who.clone().unwrap().reason).unwrap();
        ControlFlow::Continue(())
    });
    tokio::select! {
        _ = waiting => unreachable!("it is held"),
        reason = hears.recv() => assert_eq!(reason.unwrap(), "a"),
    }
    let busy = fleet.lock(&name, who("c"), |_| ControlFlow::Break(())).await;
    assert!(matches!(busy, Err(FleetError::Busy(_))), "{busy:?}");
    drop(first);
    let second = soon("the lock", fleet.lock(&name, who("d"), go_on)).await.unwrap();
    assert!(second.fence() > fence);
    soon("its release", second.release()).await.unwrap();
    let third = soon("the lock", fleet.lock(&name, who("e"), go_on)).await.unwrap();
    let since = Instant::now();
    machines.etcd.pause();
    let loss = soon("the loss", third.lost()).await;
    assert!(matches!(loss, Loss::Unconfirmed(_)), "{loss:?}");
    assert!(since.elapsed() < TTL, "{:?}", since.elapsed());
    machines.etcd.go_on();
    drop(third);
    soon("all leases' ends", fleet.close()).await;
}
