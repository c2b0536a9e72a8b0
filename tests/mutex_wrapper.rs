//! Promise: a protected command has streams, signals, terminal and exit status as if nothing were
//! around it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]
#![allow(clippy::print_stdout, reason = "what is left out is said")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal};

use support::run::{Run, await_end, now, process};
use support::{DEADLINE, World, finish, signal, spawn};

const SIGNALS: [(Signal, &str); 7] = [
    (Signal::HUP, "HUP"),
    (Signal::INT, "INT"),
    (Signal::QUIT, "QUIT"),
    (Signal::TERM, "TERM"),
    (Signal::USR1, "USR1"),
    (Signal::USR2, "USR2"),
    (Signal::ALARM, "ALRM"),
];

#[test]
fn signals_are_passed_on_and_the_exit_status_is_the_command_s() {
    let world = World::new();
    let gate = world.gate();
    for (sent, name) in SIGNALS {
        // `wait` minds a signal that comes just before it; `read` would not.
        let text = format!("trap 'echo got; exit 40' {name}; {} & echo on; wait $!", gate.wait());
        let mut run = Run::start(&world, "m", &text);
        assert_eq!(run.line(), "on");
        signal(&run.child, sent);
        assert_eq!((run.line().as_str(), run.end()), ("got", 40), "{name}");
        // Untrapped, it ends the command, and the status says so.
        let run = Run::holder(&world, "m", &gate);
        signal(&run.child, sent);
        assert_eq!(run.end(), 128 + sent.as_raw(), "{name}");
        assert_eq!(now(&world, "m"), 0);
    }
    for (text, expected) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 75", 75),
        ("exit 255", 255),
        ("kill -KILL $$", 137),
        ("kill -SEGV $$", 139),
        ("kill -TERM $$", 143),
    ] {
        assert_eq!(Run::start(&world, "m", text).end(), expected, "{text}");
    }
}

/// As systemd starts services, unless it is told otherwise.
#[test]
fn a_command_ignores_a_broken_pipe_when_the_caller_does_and_only_then() {
    let world = World::new();
    for (caller, expected) in [("", (141, "")), ("trap '' PIPE;", (0, "alive\n"))] {
        for words in ["run log", "once key"] {
            let text = format!(
                "{caller} exec {} mutex {words} -- sh -c 'kill -PIPE $$; echo alive'",
                support::BATON
            );
            let mut shell = Command::new("sh");
            shell.args(["-c", &text]).env("BATON_MUTEX_DIR", world.mutexes()).stdin(Stdio::null());
            let (code, out, told) = finish(&mut shell);
            assert_eq!((code, out.as_str()), expected, "{words}: {told}");
        }
    }
}

#[test]
fn a_text_without_an_interpreter_is_the_shell_s_as_without_the_wrapper() {
    let world = World::new();
    let text = world.path("text");
    support::write(&text, "echo $0 $1 $BATON_MUTEX_FENCE; exit 4\n");
    std::fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut run = Run::of(world.baton().args(["mutex", "run", "m", "--"]).arg(&text).arg("one"));
    let line = run.line();
    assert!(line.starts_with(&format!("{} one 1", text.display())), "{line}");
    assert_eq!(run.end(), 4);
}

#[test]
fn the_command_s_end_is_seen_whatever_signals_the_caller_blocked_or_ignored() {
    let world = World::new();
    for signals in ["--block-signal", "--block-signal=CHLD", "--ignore-signal=CHLD"] {
        let mut command = Command::new("env");
        command.arg(signals).arg(support::BATON).args(["mutex", "run", "m", "--"]);
        command.args(["sh", "-c", "exit 3"]).env("BATON_MUTEX_DIR", world.mutexes());
        assert_eq!(Run::of(&mut command).end(), 3, "{signals}");
        assert_eq!(now(&world, "m"), 0);
    }
}

#[test]
fn the_standard_streams_pass_unchanged() {
    let world = World::new();
    let data: Vec<u8> = (0..=255_u8).cycle().take(1 << 20).collect();
    for (text, to_stdout) in [("cat", true), ("cat >&2", false)] {
        let mut command = world.baton();
        command.args(["mutex", "run", "m", "--", "sh", "-c", text]).stdin(Stdio::piped());
        let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                stdin.write_all(&data).unwrap();
                drop(stdin);
            });
            child.wait_with_output().unwrap()
        });
        let (full, empty) =
            if to_stdout { (output.stdout, output.stderr) } else { (output.stderr, output.stdout) };
        assert!(output.status.success() && full == data && empty.is_empty(), "{text}");
    }
}

/// A shell at a terminal of its own, as a person has it.
struct Terminal {
    script: Run,
}

impl Terminal {
    /// None where there is no script(1).
    fn open(world: &World) -> Option<Self> {
        if Command::new("script").arg("--version").output().is_err() {
            println!("no script(1): there is no terminal to test at");
            return None;
        }
        let mut command = Command::new("script");
        command
            .args(["-qec", "env PS1= sh -i", "/dev/null"])
            .env("BATON_MUTEX_DIR", world.mutexes());
        // No prompt: it would stand before what is shown.
        Some(Self { script: Run::of(command.stdin(Stdio::piped())) })
    }

    fn types(&mut self, text: &str) {
        self.script.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a line that starts so; what it says behind. What was typed is on the terminal too,
    /// keys as `^Z`.
    fn shows(&mut self, start: &str) -> String {
        loop {
            let line = self.script.line();
            if let Some(rest) = line.trim_start_matches("^Z").strip_prefix(start) {
                return rest.trim().to_owned();
            }
        }
    }
}

#[test]
fn at_a_terminal_it_stops_goes_on_and_is_interrupted_like_the_command_alone() {
    let world = World::new();
    let Some(mut terminal) = Terminal::open(&world) else {
        return;
    };
    let baton = support::BATON;
    let text = "test -t 0 && test -t 1 && test -t 2 && echo on $$; read -r line; echo got $line";
    let typed = format!("{baton} mutex run -q m -- sh -c '{text}'\n");
    for turn in 0..2 {
        terminal.types(&typed);
        let command = terminal.shows("on ");
        let wrapper = stat(&command, 1);
        terminal.types("\x1a");
        // The shell says it when the wrapper has stopped; the command does at the same time.
        terminal.shows("[1]");
        let give_up = Instant::now() + DEADLINE;
        while [&command, &wrapper].map(|pid| stat(pid, 0)) != ["T", "T"] {
            assert!(Instant::now() < give_up, "turn {turn}: it has not stopped");
            std::thread::yield_now();
        }
        assert_eq!(now(&world, "m"), 75);
        terminal.types("fg\nhello\n");
        terminal.shows("got hello");
        terminal.types("echo status $?\n");
        assert_eq!(terminal.shows("status "), "0");
    }
    for (key, status) in [("\x03", "130"), ("\x1c", "131")] {
        terminal.types(&typed);
        let command = process(Pid::from_raw(terminal.shows("on ").parse().unwrap()).unwrap());
        terminal.types(key);
        // Until then it may take what is typed.
        await_end(&command);
        terminal.types("echo status $?\n");
        assert_eq!(terminal.shows("status "), status);
        assert_eq!(now(&world, "m"), 0);
    }
    // A script stops there, as it does without the wrapper.
    let text = "echo on \\$\\$; exec sleep 600";
    terminal
        .types(&format!("bash -c '{baton} mutex run -q m -- sh -c \"{text}\"; echo went on'\n"));
    let command = process(Pid::from_raw(terminal.shows("on ").parse().unwrap()).unwrap());
    terminal.types("\x03");
    await_end(&command);
    terminal.types("echo status $?\n");
    assert_eq!(terminal.shows("status "), "130");
    terminal.types("exit\n");
    assert_eq!(terminal.script.end(), 0);
}

#[test]
fn a_command_that_stops_itself_gives_the_prompt_back_as_without_the_wrapper() {
    let world = World::new();
    let Some(mut terminal) = Terminal::open(&world) else {
        return;
    };
    let run = format!("{} mutex run -q m -- sh -c", support::BATON);
    for _ in 0..5 {
        terminal.types(&format!("{run} 'kill -STOP $$; echo went on'\n"));
        terminal.shows("[1]");
        assert_eq!(now(&world, "m"), 75);
        terminal.types("fg\n");
        terminal.shows("went on");
        terminal.types("echo status $?\n");
        assert_eq!(terminal.shows("status "), "0");
    }
    // Under a script nobody would continue the wrapper: who stopped the command continues that alone.
    let text = "echo on \\$\\$; kill -STOP \\$\\$; exit 5";
    for _ in 0..5 {
        terminal.types(&format!("bash -c '{run} \"{text}\"; echo ended $?'\n"));
        let command = terminal.shows("on ");
        let give_up = Instant::now() + DEADLINE;
        while stat(&command, 0) != "T" {
            assert!(Instant::now() < give_up, "it has not stopped");
            std::thread::yield_now();
        }
        let command = Pid::from_raw(command.parse().unwrap()).unwrap();
        rustix::process::kill_process(command, Signal::CONT).unwrap();
        assert_eq!(terminal.shows("ended "), "5");
    }
    terminal.types("exit\n");
    assert_eq!(terminal.script.end(), 0);
}

/// The system tells only the leader of the session that its terminal is gone.
#[test]
fn a_lost_terminal_ends_the_command_too() {
    let world = World::new();
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: there is no script(1)");
        return;
    }
    let text = format!("exec {} mutex run -q m -- sh -c 'echo on; exec sleep 600'", support::BATON);
    let mut command = Command::new("script");
    command.args(["-qec", &text, "/dev/null"]).env("BATON_MUTEX_DIR", world.mutexes());
    let mut script = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut out = BufReader::new(script.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("on") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0);
    }
    script.kill().unwrap();
    script.wait().unwrap();
    let limit = format!("--timeout={}s", DEADLINE.as_secs());
    assert_eq!(finish(world.baton().args(["mutex", "run", &limit, "m", "--", "true"])).0, 0);
}

/// A word of what the kernel says of a process: its state is 0, its parent 1.
fn stat(pid: &str, word: usize) -> String {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap();
    let (_, words) = text.rsplit_once(") ").unwrap();
    words.split(' ').nth(word).unwrap().to_owned()
}
