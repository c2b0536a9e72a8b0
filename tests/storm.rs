//! Promise: named mutexes keep exclusion, order and progress, whatever is killed: 64 processes at a
//! time with random claims, time limits, cancels and kills, checked from what they wrote.
//!
//! `BATON_TEST_STORM_SECONDS` says for how long (default 5), `BATON_TEST_STORM_SEED` repeats the
//! choices of an earlier storm; what the scheduler makes of them is never the same.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

#[path = "support/history.rs"]
mod history;
#[path = "support/random.rs"]
mod random;
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open, pidfd_send_signal,
};

use history::{Report, Token};
use random::Random;
use support::{DEADLINE, World, finish, spawn};

/// Processes at a time.
const SLOTS: u64 = 64;
/// So many claims each slot makes at least, however slow the machine is: so that everything happens.
const MIN_CLAIMS: usize = 8;
/// How a mutex is claimed, as the history has it.
const MODES: [&str; 7] = ["x", "x", "s", "s", "2", "3", "4"];
/// The mutexes, in the order of their names.
const NAMES: [&str; 3] = ["db", "log", "site"];

#[test]
fn a_storm_of_claims_and_kills_breaks_neither_exclusion_nor_order_nor_progress() {
    let seconds = std::env::var("BATON_TEST_STORM_SECONDS").map_or(5, |text| text.parse().unwrap());
    let seed = Random::seed("BATON_TEST_STORM_SEED");
    println!("storm of {seconds} s, BATON_TEST_STORM_SEED={seed}");
    let storm = Storm::new(Duration::from_secs(seconds));
    let done: Vec<Done> = std::thread::scope(|scope| {
        let slot = |slot: u64| {
            let storm = &storm;
            scope.spawn(move || storm.slot(Random::new(seed.wrapping_add(slot << 32))))
        };
        let slots: Vec<_> = (0..SLOTS).map(slot).collect();
        slots.into_iter().flat_map(|slot| slot.join().unwrap()).collect()
    });
    let report = history::check(&std::fs::read_to_string(storm.world.path("history")).unwrap());
    let tally = Tally::of(&done, &report);
    println!("{}, longest line {}", tally.line, storm.longest.load(Ordering::Relaxed));
    let mut problems: Vec<String> =
        report.problems.iter().take(20).map(|problem| format!("{problem:?}")).collect();
    problems.extend(done.iter().filter_map(|done| done.problem(&report)).take(20));
    problems.extend(storm.left_behind());
    assert!(problems.is_empty(), "seed {seed}:\n{}\n{}", problems.join("\n"), storm.told());
    tally.assert_that_it_was_a_storm();
}

/// What happens to a claim from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strike {
    /// kill -9 of `baton mutex run` alone: of a waiter, or while the command goes on.
    Wrapper,
    /// A cancel: SIGTERM or SIGINT to `baton mutex run`.
    Ask(i32),
    /// kill -9 of the command alone.
    Command,
    /// kill -9 of all at once.
    Tree,
    /// kill -9 of the wrapper, then of the rest.
    WrapperFirst,
}

/// When it happens.
#[derive(Debug, Clone, Copy)]
enum Moment {
    AfterStart(Duration),
    AfterEntry(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Unlimited,
    Limited(u64),
    None,
}

#[derive(Debug, Clone)]
struct Job {
    token: Token,
    names: Vec<&'static str>,
    /// One of [`MODES`].
    mode: &'static str,
    patience: Patience,
    is_quiet: bool,
    /// Takes the plain lock with flock(1) instead.
    is_foreign: bool,
    work_ms: u64,
    strike: Option<(Strike, Moment)>,
}

impl Job {
    fn draw(token: Token, random: &mut Random) -> Self {
        let first = random.pick(&NAMES);
        let mut names = vec![first];
        if random.percent(25) {
            names.extend(
                NAMES
                    .iter()
                    .copied()
                    .filter(|name| *name != first)
                    .nth(usize::from(random.percent(50))),
            );
        }
        let patience = match random.between(0, 99) {
            0..70 => Patience::Unlimited,
            70..93 => Patience::Limited(random.between(5, 500)),
            _ => Patience::None,
        };
        let is_foreign = random.percent(8);
        let strike = random.percent(45).then(|| draw_strike(random));
        let work_ms = match strike {
            // Long enough that the strike usually meets it.
            Some((_, Moment::AfterEntry(_))) => random.between(10, 30),
            Some((_, Moment::AfterStart(_))) | None => random.pick(&[0, 0, 0, 1, 2, 5, 10, 20]),
        };
        Self {
            token,
            names: if is_foreign { vec![first] } else { names },
            mode: random.pick(if is_foreign { &["x", "s"] } else { &MODES }),
            patience: if is_foreign { Patience::Unlimited } else { patience },
            is_quiet: random.percent(70),
            is_foreign,
            work_ms,
            strike,
        }
    }

    /// What the protected command does.
    fn text(&self, history: &str) -> String {
        let Self { token, mode, work_ms, .. } = self;
        let mut lines = String::new();
        let mut numbers = String::new();
        for name in &self.names {
            write!(lines, "enter {name} %s {mode} {token}\\n").unwrap();
            let variable = format!(" \"$BATON_MUTEX_FENCE_{}\"", name.to_uppercase());
            numbers.push_str(if self.is_foreign { " -" } else { &variable });
        }
        let work = if *work_ms > 0 { format!("sleep 0.{work_ms:03};") } else { String::new() };
        format!(
            "printf '{lines}'{numbers} >> {history}; echo; {work} printf 'leave {token}\\n' >> {history}"
        )
    }

    fn command(&self, world: &World) -> Command {
        let text = self.text(&world.path("history").display().to_string());
        if self.is_foreign {
            let mut command = Command::new("flock");
            let lock = world.mutexes().join(self.names[0]).join("os.lock");
            command.args([&format!("-{}", self.mode)]).arg(lock).args(["sh", "-c", &text]);
            return command;
        }
        let mut command = Command::new(support::BATON);
        command.env("BATON_MUTEX_DIR", world.mutexes()).args(["mutex", "run"]);
        match self.mode {
            "x" => &mut command,
            "s" => command.arg("--shared"),
            counted => command.args(["--at-most", counted]),
        };
        match self.patience {
            Patience::Unlimited => &mut command,
            Patience::Limited(ms) => command.args(["--timeout", &format!("{ms}ms")]),
            Patience::None => command.arg("--no-wait"),
        };
        if self.is_quiet {
            command.arg("--quiet");
        }
        command.args(&self.names).args(["--", "sh", "-c", &text]);
        command
    }
}

fn draw_strike(random: &mut Random) -> (Strike, Moment) {
    let ask = Strike::Ask(random.pick(&[Signal::TERM, Signal::INT]).as_raw());
    let wrapper = Strike::Wrapper;
    let all = [wrapper, wrapper, ask, Strike::Command, Strike::Tree, Strike::WrapperFirst];
    let strike = random.pick(&all);
    let place = random.between(0, 9);
    let mut us = |high: u64| Duration::from_micros(random.between(0, high));
    let moment = match (strike, place) {
        // While it holds.
        (Strike::Command, _) | (_, 5..) => Moment::AfterEntry(us(6_000)),
        // In line.
        (_, 3..) => Moment::AfterStart(us(500_000)),
        // While it starts.
        _ => Moment::AfterStart(us(20_000)),
    };
    (strike, moment)
}

/// A claim that is over.
struct Done {
    job: Job,
    /// What it was struck with, if it still lived.
    struck: Option<Strike>,
    /// How it ended; or how the mutexes stood when it did not.
    end: Result<ExitStatus, String>,
}

impl Done {
    fn is_busy(&self) -> bool {
        self.end.as_ref().is_ok_and(|status| status.code() == Some(75))
    }

    /// What is wrong with how it ended.
    fn problem(&self, report: &Report) -> Option<String> {
        let status = match &self.end {
            Ok(status) => status,
            Err(standing) => return Some(format!("stuck: {:?}\n{standing}", self.job)),
        };
        let entered = report.entered.contains(&self.job.token);
        let is_right = match self.job.patience {
            _ if self.struck.is_some() => true,
            Patience::Unlimited => status.success() && entered,
            Patience::Limited(_) | Patience::None => {
                if entered {
                    status.success()
                } else {
                    self.is_busy()
                }
            }
        };
        let wrong = || format!("{status}, entered {entered}: {:?}", self.job);
        (!is_right).then(wrong)
    }
}

struct Storm {
    world: World,
    until: Instant,
    /// When a process that goes on is stuck.
    give_up: Instant,
    history: File,
    tokens: AtomicU64,
    longest: AtomicU64,
}

impl Storm {
    fn new(length: Duration) -> Self {
        let world = World::new();
        for name in NAMES {
            assert_eq!(finish(world.baton().args(["mutex", "path", name])).0, 0);
        }
        let until = Instant::now() + length;
        let history = append_to(&world, "history");
        let (tokens, longest) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { world, until, give_up: until + DEADLINE, history, tokens, longest }
    }

    /// One claim after the other until the storm is over.
    fn slot(&self, mut random: Random) -> Vec<Done> {
        let mut done = Vec::new();
        while Instant::now() < self.until || done.len() < MIN_CLAIMS {
            let job = Job::draw(self.tokens.fetch_add(1, Ordering::Relaxed), &mut random);
            let line = self.world.mutexes().join(job.names[0]).join("line");
            done.push(self.run(job));
            let length = std::fs::read_dir(line).unwrap().count();
            self.longest.fetch_max(u64::try_from(length).unwrap(), Ordering::Relaxed);
        }
        done
    }

    fn note(&self, event: &str, job: &Job) {
        (&self.history).write_all(format!("{event} {}\n", job.token).as_bytes()).unwrap();
    }

    fn run(&self, job: Job) -> Done {
        self.note("start", &job);
        let mut command = job.command(&self.world);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(append_to(&self.world, "told"));
        let mut running = Running::new(spawn(command.process_group(0)));
        let struck = job.strike.filter(|(strike, moment)| {
            running.lives_at(*moment, self.give_up) && self.strike(&job, *strike, &running)
        });
        let end = if running.ends_before(self.give_up) {
            Ok(running.child.wait().unwrap())
        } else {
            let standing = finish(self.world.baton().args(["mutex", "status"])).1;
            running.kill_all();
            running.child.wait().unwrap();
            Err(standing)
        };
        Done { job, struck: struck.map(|(strike, _)| strike), end }
    }

    /// What may end the command is written down before; false when there is nothing to strike.
    fn strike(&self, job: &Job, strike: Strike, running: &Running) -> bool {
        match strike {
            Strike::Wrapper => {
                self.note("orphaned", job);
                running.signal(Signal::KILL);
            }
            Strike::Ask(signal) => {
                self.note("dying", job);
                running.signal(Signal::from_named_raw(signal).unwrap());
            }
            Strike::Command => {
                let Some(command) = running.command() else {
                    return false;
                };
                self.note("dying", job);
                // It may have ended just now.
                pidfd_send_signal(&command, Signal::KILL).unwrap_or_default();
            }
            Strike::Tree => {
                self.note("dying", job);
                running.kill_all();
            }
            Strike::WrapperFirst => {
                self.note("orphaned", job);
                running.signal(Signal::KILL);
                wait(&running.out, Duration::from_millis(job.work_ms / 2));
                self.note("dying", job);
                running.kill_all();
            }
        }
        true
    }

    /// What is wrong when all is over: every mutex is to be had at once, and no line has a ticket.
    fn left_behind(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for name in NAMES {
            let run = ["mutex", "run", "--no-wait", name, "--", "true"];
            let (code, _, told) = finish(self.world.baton().args(run));
            if code != 0 {
                problems.push(format!("{name} is not free, {code}: {told}"));
            }
            let line = std::fs::read_dir(self.world.mutexes().join(name).join("line")).unwrap();
            let tickets: Vec<_> = line.map(|entry| entry.unwrap().file_name()).collect();
            if !tickets.is_empty() {
                problems.push(format!("tickets of {name}: {tickets:?}"));
            }
        }
        let (_, status, _) = finish(self.world.baton().args(["mutex", "status"]));
        if !status.starts_with("nobody") {
            problems.push(status);
        }
        problems
    }

    /// The first errors that were told, but for those of claims that gave up.
    fn told(&self) -> String {
        let told = support::lines(&self.world.path("told"));
        let errors = told
            .iter()
            .filter(|line| line.starts_with("error:") && !line.starts_with("error: not obtained"));
        errors.take(10).map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

fn append_to(world: &World, name: &str) -> File {
    OpenOptions::new().create(true).append(true).open(world.path(name)).unwrap()
}

/// A wrapper and what it started: a process group, so that it can be ended at once.
struct Running {
    child: Child,
    pid: Pid,
    end: OwnedFd,
    /// Every process of it has the other side.
    out: ChildStdout,
}

impl Running {
    fn new(mut child: Child) -> Self {
        let pid = Pid::from_child(&child);
        let end = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let out = child.stdout.take().unwrap();
        Self { child, pid, end, out }
    }

    /// Waits for the moment; whether the wrapper has not ended before.
    fn lives_at(&mut self, moment: Moment, give_up: Instant) -> bool {
        let after = match moment {
            Moment::AfterStart(after) => after,
            Moment::AfterEntry(after) => {
                // The command says one byte; the end is said by none.
                wait(&self.out, left(give_up));
                after
            }
        };
        !wait(&self.end, after)
    }

    /// Waits for the last of its processes.
    fn ends_before(&mut self, give_up: Instant) -> bool {
        let mut byte = [0];
        while wait(&self.out, left(give_up)) {
            if self.out.read(&mut byte).unwrap() == 0 {
                return wait(&self.end, left(give_up));
            }
        }
        false
    }

    /// The child is not reaped before its end was awaited: the pid is its own.
    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    fn kill_all(&self) {
        kill_process_group(self.pid, Signal::KILL).unwrap();
    }

    /// The protected command.
    fn command(&self) -> Option<OwnedFd> {
        let children = || {
            let path = format!("/proc/{0}/task/{0}/children", self.pid.as_raw_pid());
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let pid = children().split_whitespace().next()?.parse().ok()?;
        let command = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Looked up again, so the descriptor is of no other that got its pid.
        children().split_whitespace().any(|child| child.parse() == Ok(pid)).then_some(command)
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// Waits until the descriptor is readable; whether it is.
fn wait(descriptor: &impl AsFd, limit: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let limit = Timespec::try_from(limit).unwrap();
    rustix::event::poll(&mut polled, Some(&limit)).unwrap() == 1
}

/// What happened, in figures.
struct Tally {
    line: String,
    counts: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn of(done: &[Done], report: &Report) -> Self {
        let mut counts: BTreeMap<&'static str, usize> = [
            ("claims", done.len()),
            ("entries", report.entries),
            ("together", report.together),
            ("outlived their wrapper", report.outlived),
        ]
        .into();
        for done in done {
            let entered = report.entered.contains(&done.job.token);
            let kind = match done.struck {
                Some(Strike::Wrapper | Strike::WrapperFirst) if entered => "wrappers killed",
                Some(Strike::Ask(_)) if entered => "holders cancelled",
                Some(Strike::Ask(_)) => "waiters cancelled",
                Some(Strike::Tree) if entered => "trees killed",
                Some(Strike::Command) => "commands killed",
                Some(Strike::Wrapper | Strike::WrapperFirst | Strike::Tree) => "waiters killed",
                None if done.is_busy() => "gave up",
                None => "undisturbed",
            };
            *counts.entry(kind).or_default() += 1;
            *counts.entry("by flock").or_default() += usize::from(done.job.is_foreign && entered);
        }
        let words: Vec<_> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        Self { line: words.join(", "), counts }
    }

    fn assert_that_it_was_a_storm(&self) {
        assert!(self.counts["entries"] >= 100, "{}", self.line);
        for kind in [
            "together",
            "outlived their wrapper",
            "wrappers killed",
            "waiters killed",
            "commands killed",
            "trees killed",
            "holders cancelled",
            "waiters cancelled",
            "gave up",
            "by flock",
        ] {
            assert!(self.counts.get(kind).is_some_and(|count| *count > 0), "{kind}: {}", self.line);
        }
    }
}
