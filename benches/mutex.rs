//! What a named mutex costs beside flock(1) and the bare flock(2), in one run:
//! `cargo bench --bench mutex`. Compare within a table; absolute times are the machine's.
//!
//! 1. A whole uncontended process: `baton mutex run` beside `flock`. The program that cargo makes for a
//!    benchmark is slower to start than the one that packages have (less is left out of it, and libraries of
//!    the tests ask for more of common ones): copy that of `cargo build --profile dist` away and name the
//!    copy in BATON.
//! 2. A hand-off between two processes of which one really sleeps.
//! 3. 2, 32 and 128 waiters behind a holder, all of which want it all the time: how many are served although
//!    somebody who came before still waits, and what a grant costs in CPU, once a process has had its
//!    first one.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that can't go on fails here")]
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use baton::mutex::{Advance, Claim, Claimant, Hold, Mode};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};

/// The program, unless the environment names another.
const BATON: &str = env!("CARGO_BIN_EXE_baton");
/// How long a worker holds: asleep, so that its CPU is the lock's.
const HOLD: Duration = Duration::from_micros(50);
/// How long a worker of the hand-off waits before it wants it again: less than the other holds.
const PAUSE: Duration = Duration::from_micros(20);
/// How often a whole process is started.
const STARTS: usize = 300;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, kind, folder, rounds, pause_us] = words.as_slice()
        && word == "worker"
    {
        let pause = Duration::from_micros(pause_us.parse().unwrap());
        return work(kind, Path::new(folder), rounds.parse().unwrap(), pause);
    }
    // Where the mutexes of root are too: in memory.
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    whole_process(folder.path());
    hand_off(folder.path());
    line(folder.path());
}

/// Nanoseconds of a clock that all processes share.
fn now_ns(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "for people")]
fn us(ns: i64) -> f64 {
    ns as f64 / 1000.0
}

fn whole_process(folder: &Path) {
    let file = folder.join("file").display().to_string();
    let baton = std::env::var("BATON").unwrap_or_else(|_| BATON.to_owned());
    let commands: [(&str, Vec<&str>); 3] = [
        ("true", vec!["/bin/true"]),
        ("flock f true", vec!["flock", &file, "/bin/true"]),
        ("baton mutex run n -- true", vec![&baton, "mutex", "run", "n", "--", "/bin/true"]),
    ];
    let mut times = commands.each_ref().map(|_| Vec::new());
    for _ in 0..STARTS {
        for ((_, words), times) in commands.iter().zip(&mut times) {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).env("BATON_MUTEX_DIR", folder).stdin(Stdio::null());
            let start = Instant::now();
            assert!(command.status().unwrap().success());
            times.push(i64::try_from(start.elapsed().as_nanos()).unwrap());
        }
    }
    for times in &mut times {
        times.sort_unstable();
    }
    println!("a whole process, uncontended, {STARTS} of each by turns (aim: 1.5 times flock(1))");
    println!(
        "{:<28}{:>10}{:>10}{:>12}{:>12}",
        "", "min us", "p50 us", "min : flock", "p50 : flock"
    );
    for ((name, _), own) in commands.iter().zip(&times) {
        let ratio = |at: usize| us(own[at]) / us(times[1][at]);
        let (min, p50) = (us(own[0]), us(own[STARTS / 2]));
        let (least, half) = (ratio(0), ratio(STARTS / 2));
        println!("{name:<28}{min:>10.0}{p50:>10.0}{least:>12.2}{half:>12.2}");
    }
}

fn hand_off(folder: &Path) {
    println!("\na hand-off between two processes (aim: 30 times the bare flock's)");
    println!("{:<28}{:>10}{:>10}{:>10}", "", "number", "p50 us", "p99 us");
    let mut medians = Vec::new();
    for kind in ["flock", "baton"] {
        let (grants, _) = contend(kind, folder, 2, 1000, PAUSE);
        let mut waits: Vec<i64> = grants
            .windows(2)
            // Long enough before to be asleep.
            .filter(|pair| pair[1].wanted + 20_000 < pair[0].given_back)
            .map(|pair| pair[1].got - pair[0].given_back)
            .collect();
        waits.sort_unstable();
        let (p50, p99) = (us(waits[waits.len() / 2]), us(waits[waits.len() * 99 / 100]));
        println!("{kind:<28}{:>10}{p50:>10.1}{p99:>10.1}", waits.len());
        medians.push(p50);
    }
    println!("baton : flock {:.1}", medians[1] / medians[0]);
}

fn line(folder: &Path) {
    println!("\nall want it all the time (aim: nobody overtakes; CPU flat within 1.5 times)");
    println!(
        "{:<8}{:>10}{:>10}{:>16}{:>18}{:>12}",
        "", "waiters", "grants", "overtaking %", "CPU us a grant", ": 2 of them"
    );
    for kind in ["flock", "baton"] {
        let mut first = None;
        for (waiters, rounds) in [(2, 1500), (32, 120), (128, 60)] {
            let (grants, cpu_ns) = contend(kind, folder, waiters + 1, rounds, Duration::ZERO);
            let count = i64::try_from(grants.len()).unwrap();
            let cpu = us(cpu_ns / count);
            let ratio = cpu / *first.get_or_insert(cpu);
            let percent = 100.0 * us(overtaking(&grants)) / us(count);
            println!("{kind:<8}{waiters:>10}{count:>10}{percent:>16.1}{cpu:>18.1}{ratio:>12.2}");
        }
    }
}

/// A time for which a worker held it; nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Grant {
    /// When it came: the ticket's number, or the time with the bare flock.
    place: i64,
    wanted: i64,
    got: i64,
    given_back: i64,
}

/// How many were served while somebody who came before still waited.
fn overtaking(grants: &[Grant]) -> i64 {
    let mut first_of_the_later = i64::MAX;
    let mut count = 0;
    for grant in grants.iter().rev() {
        count += i64::from(first_of_the_later < grant.place);
        first_of_the_later = first_of_the_later.min(grant.place);
    }
    count
}

/// Lets processes contend; returns the grants in their order, and the CPU time of all in nanoseconds.
fn contend(
    kind: &str,
    folder: &Path,
    processes: usize,
    rounds: usize,
    pause: Duration,
) -> (Vec<Grant>, i64) {
    let start = || -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["worker", kind]).arg(folder).arg(rounds.to_string());
        command.arg(pause.as_micros().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        #[expect(clippy::disallowed_methods, reason = "real processes are measured")]
        command.spawn().unwrap()
    };
    let mut workers: Vec<Child> = (0..processes).map(|_| start()).collect();
    let mut outputs: Vec<_> =
        workers.iter_mut().map(|worker| BufReader::new(worker.stdout.take().unwrap())).collect();
    // All are there before the first one goes.
    for output in &mut outputs {
        output.read_line(&mut String::new()).unwrap();
    }
    let inputs: Vec<_> = workers.iter_mut().map(|worker| worker.stdin.take().unwrap()).collect();
    drop(inputs);
    let (mut grants, mut cpu) = (Vec::new(), 0);
    for (mut worker, output) in workers.into_iter().zip(outputs) {
        for line in output.lines() {
            let line = line.unwrap();
            let numbers: Vec<i64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            match numbers[..] {
                [used] => cpu += used,
                [place, wanted, got, given_back] => {
                    grants.push(Grant { place, wanted, got, given_back });
                }
                _ => unreachable!("{line}"),
            }
        }
        assert!(worker.wait().unwrap().success());
    }
    grants.sort_unstable_by_key(|grant| grant.got);
    (grants, cpu)
}

/// What a worker does.
fn work(kind: &str, folder: &Path, rounds: usize, pause: Duration) {
    let file = File::create(folder.join("bare")).unwrap();
    // What a process does once, at its first lock, is no part of a grant.
    match kind {
        "baton" => drop(hold_named(folder, &format!("own-{}", std::process::id()))),
        _ => drop(hold_bare(&tempfile::tempfile().unwrap())),
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready").unwrap();
    out.flush().unwrap();
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    let before = now_ns(ClockId::ProcessCPUTime);
    let mut grants = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        grants.push(if kind == "baton" { hold_named(folder, "line") } else { hold_bare(&file) });
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    let cpu = now_ns(ClockId::ProcessCPUTime) - before;
    for Grant { place, wanted, got, given_back } in grants {
        writeln!(out, "{place} {wanted} {got} {given_back}").unwrap();
    }
    writeln!(out, "{cpu}").unwrap();
}

fn hold_bare(file: &File) -> Grant {
    let wanted = now_ns(ClockId::Monotonic);
    flock(file, FlockOperation::LockExclusive).unwrap();
    let got = now_ns(ClockId::Monotonic);
    std::thread::sleep(HOLD);
    let given_back = now_ns(ClockId::Monotonic);
    flock(file, FlockOperation::Unlock).unwrap();
    Grant { place: wanted, wanted, got, given_back }
}

fn hold_named(folder: &Path, name: &str) -> Grant {
    let claims = [Claim { name: name.parse().unwrap(), mode: Mode::Exclusive }];
    let who = Claimant::this_process("benchmark".to_owned());
    let wanted = now_ns(ClockId::Monotonic);
    let mut hold = Hold::join(folder, &claims, who, false).unwrap();
    while hold.advance().unwrap() != Advance::Held {
        let mut polled: Vec<_> = hold
            .descriptors()
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        rustix::event::poll(&mut polled, None).unwrap();
    }
    let got = now_ns(ClockId::Monotonic);
    std::thread::sleep(HOLD);
    let given_back = now_ns(ClockId::Monotonic);
    let place = hold.fence(&claims[0].name).unwrap().cast_signed();
    hold.release().unwrap();
    Grant { place, wanted, got, given_back }
}
