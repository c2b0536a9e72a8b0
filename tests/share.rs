//! Promise: shell functions protect what is no command: functions and builtins of sh and bash, blocks
//! of PowerShell.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::Signal;
use support::{World, finish, lines, signal, spawn};

/// POSIX's, the most used one, the one of small systems, and one that is other than POSIX says.
const SHELLS: [&str; 4] = ["sh", "bash", "busybox sh", "zsh"];

/// Those of this machine; says which are not there.
fn shells() -> impl Iterator<Item = &'static str> {
    SHELLS.into_iter().filter(|shell| {
        let is_here = words(shell).args(["-c", ":"]).status().is_ok();
        if !is_here {
            // A macro's text is never shown when the test passes.
            let text = format!("skipped: there is no {shell} on this machine\n");
            std::io::stderr().write_all(text.as_bytes()).unwrap();
        }
        is_here
    })
}

/// The words of a command without quotes.
fn words(text: &str) -> Command {
    let mut words = text.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// A script that uses `share/baton.sh`, as strict as scripts are.
fn script(world: &World, shell: &str, text: &str) -> Command {
    let library = concat!(env!("CARGO_MANIFEST_DIR"), "/share/baton.sh");
    let mut command = words(shell);
    command.args(["-c", &format!("set -eu; . {library}\n{text}")]).stdin(Stdio::null());
    command.env("BATON", support::BATON).env("BATON_MUTEX_DIR", world.mutexes());
    command
}

/// Runs a script to its end, or to the deadline: exit status, stdout, stderr.
fn run(world: &World, shell: &str, text: &str) -> (i32, String, String) {
    let script = script(world, shell, text);
    let mut command = Command::new("timeout");
    command.arg(support::DEADLINE.as_secs().to_string());
    command.arg(script.get_program()).args(script.get_args()).stdin(Stdio::null());
    command.envs(script.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finish(&mut command)
}

/// A script whose output is read line by line.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = spawn(command.stdout(Stdio::piped()));
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// Whether nobody has `log`: at once.
fn is_free(world: &World) -> bool {
    finish(world.baton().args(["mutex", "run", "--no-wait", "log", "--", "true"])).0 == 0
}

/// Waits until `log` is free.
fn becomes_free(world: &World) {
    let limit = format!("{}s", support::DEADLINE.as_secs());
    let words = ["mutex", "run", "-q", "--timeout", &limit, "log", "--", "true"];
    assert_eq!(finish(world.baton().args(words)).0, 0);
}

#[test]
fn functions_of_many_shells_exclude_each_other() {
    const ROUNDS: usize = 10;
    for shell in shells() {
        let world = World::new();
        let counter = world.path("counter");
        support::write(&counter, "0\n");
        // What is read may be old by the time it is written: only with the mutex nothing is lost.
        let text = format!(
            "count() {{ read -r n < {path}; echo $((n + 1)) > {path}; }}
             i=0; while [ $i -lt {ROUNDS} ]; do with_mutex log count; i=$((i + 1)); done",
            path = counter.display()
        );
        let start = |_| spawn(script(&world, shell, &text).stderr(Stdio::null()));
        let mut shells: Vec<_> = (0..10).map(start).collect();
        for running in &mut shells {
            assert!(running.wait().unwrap().success(), "{shell}");
        }
        assert_eq!(lines(&counter), [(10 * ROUNDS).to_string()], "{shell}");
    }
}

/// Background jobs of one script are shells of their own.
#[test]
fn functions_of_one_script_s_jobs_exclude_each_other() {
    for shell in shells() {
        let world = World::new();
        let room = world.path("room").display().to_string();
        let text = format!(
            "enter() {{ mkdir {room}; sleep 0.02; rmdir {room}; echo in; }}
             for i in 1 2 3 4 5; do with_mutex log enter & done; wait"
        );
        let (_, out, told) = run(&world, shell, &text);
        assert_eq!(out, "in\n".repeat(5), "{shell}: {told}");
    }
}

#[test]
fn the_status_is_the_command_s_whatever_it_is() {
    let text = "seven() { echo \"$# $1 $2\"; return 7; }
        with_mutex log seven 'a b' c || echo $?
        with_mutex log eval 'echo builtin; false' || echo $?
        with_mutex log sh -c 'echo program; exit 5' || echo $?
        with_mutex log no-such-command 2>/dev/null || echo $?
        with_mutex log true; echo $?
        [ -z \"$BATON_MUTEX_HELD\" ]
        fails() { false; echo 'not reached'; }
        with_mutex log fails; echo 'not reached'";
    let expected = "2 a b c\n7\nbuiltin\n1\nprogram\n5\n127\n0\n";
    for shell in shells() {
        let world = World::new();
        let (code, out, told) = run(&world, shell, text);
        assert_eq!((code, out.as_str(), told.as_str()), (1, expected, ""), "{shell}");
        // `set -e` ended it inside of the function.
        assert!(is_free(&world), "{shell}");
    }
}

#[test]
fn a_mutex_is_released_once_and_the_last_one_first() {
    let text = "mutex_acquire a.b-c_d; mutex_acquire log --shared; first=$(mutex_token log)
        mutex_acquire log -s --reason 'two words'; [ $(mutex_token log) -gt $first ]
        case $BATON_MUTEX_HELD in a.b-c_d:*,log:$first,log:*) ;; *) exit 9 ;; esac
        mutex_release log; [ $(mutex_token log) -eq $first ]; mutex_release a.b-c_d
        [ $BATON_MUTEX_HELD = log:$first ]; mutex_release log; echo released
        mutex_release log || echo $?; mutex_release ../x || echo $?; mutex_acquire -s || echo $?";
    for shell in shells() {
        let world = World::new();
        let (code, out, told) = run(&world, shell, text);
        assert_eq!((code, out.as_str()), (0, "released\n1\n2\n2\n"), "{shell}: {told}");
        assert!(told.starts_with("baton: mutex 'log' was not acquired here\n"), "{told}");
        assert!(is_free(&world), "{shell}");
    }
}

#[test]
fn what_is_left_is_released_at_the_end_and_the_script_s_own_trap_kept() {
    for shell in shells() {
        let world = World::new();
        let gone = "trap 'echo \"own trap, $?\"; echo '\"'it'\" EXIT; trap '' HUP
            mutex_acquire log; mutex_acquire other; exit 3";
        let (code, out, told) = run(&world, shell, gone);
        assert_eq!((code, out.as_str(), told.as_str()), (3, "own trap, 3\nit\n", ""), "{shell}");
        assert!(is_free(&world), "{shell}: at once");
        // By the trap, not by the keeper, which would see the end of the shell a moment later.
        // Where `set -e` ends a script, zsh calls nothing of its list.
        let end = if shell == "zsh" { "exit 1" } else { "false" };
        let plain = format!(
            "said() {{ echo \"$2\" >&2; \"$baton\" \"$@\"; }}
             baton=$BATON; mutex_acquire log; BATON=said; {end}"
        );
        let (code, _, told) = run(&world, shell, &plain);
        assert_eq!((code, told.as_str()), (1, "release\n"), "{shell}");
        assert!(is_free(&world), "{shell}: at once");
        // A trap that is set later replaces the release: the end of the shell frees the mutex.
        let later = "mutex_acquire log; trap 'echo later' EXIT";
        assert_eq!(run(&world, shell, later).1, "later\n");
        becomes_free(&world);
    }
}

#[test]
fn a_signal_to_the_shell_frees_what_it_has() {
    for shell in shells() {
        for how in [Signal::TERM, Signal::INT, Signal::HUP, Signal::KILL] {
            let world = World::new();
            let gate = world.gate();
            // A builtin waits: no process is left behind.
            let text = format!("f() {{ echo on; {}; }}\nwith_mutex log f", gate.wait());
            let mut running = Running::start(script(&world, shell, &text));
            assert_eq!(running.line(), "on");
            assert!(!is_free(&world));
            signal(&running.child, how);
            becomes_free(&world);
            assert!(!running.child.wait().unwrap().success());
            let mut rest = String::new();
            running.out.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "");
        }
    }
}

#[test]
fn what_a_subshell_has_is_free_at_its_end_and_not_at_the_script_s() {
    for shell in shells() {
        let world = World::new();
        let gate = world.gate();
        let text = format!("(mutex_acquire log; trap - EXIT); echo on; {}", gate.wait());
        let mut running = Running::start(script(&world, shell, &text));
        assert_eq!(running.line(), "on");
        becomes_free(&world);
        gate.open();
        assert!(running.child.wait().unwrap().success(), "{shell}");
    }
}

#[test]
fn a_subshell_that_ends_takes_nothing_away_from_the_script() {
    for shell in shells() {
        let world = World::new();
        let gate = world.gate();
        let text = format!(
            "trap 'echo own' EXIT; mutex_acquire log; (mutex_acquire other; exit 5) || echo $?
             (exit 6) || echo $?; f() {{ :; }}; f; echo on; {}; exit 3",
            gate.wait()
        );
        let mut running = Running::start(script(&world, shell, &text));
        let lines: Vec<_> = (0..3).map(|_| running.line()).collect();
        assert_eq!(lines, ["5", "6", "on"], "{shell}");
        assert!(!is_free(&world), "{shell}");
        gate.open();
        assert_eq!(running.line(), "own", "{shell}");
        assert_eq!(running.child.wait().unwrap().code(), Some(3), "{shell}");
        assert!(is_free(&world), "{shell}: at once");
    }
}

/// A program that is protected goes on under its mutex when the shell is killed.
#[test]
fn a_program_is_protected_also_when_the_shell_is_killed() {
    for shell in shells() {
        let world = World::new();
        let gate = world.gate();
        let text = format!("with_mutex log sh -c 'echo on; {}'; :", gate.wait().replace('\'', ""));
        let mut running = Running::start(script(&world, shell, &text));
        assert_eq!(running.line(), "on");
        running.child.kill().unwrap();
        running.child.wait().unwrap();
        assert!(!is_free(&world), "{shell}");
        gate.open();
        becomes_free(&world);
    }
}

#[test]
fn who_has_it_already_is_refused_at_once_also_in_a_program_that_it_runs() {
    let text = "nested() { with_mutex log inner || echo $?; with_mutex log sh -c : || echo $?; }
        inner() { echo 'not reached'; }
        with_mutex log nested
        mutex_acquire log; sh -c '\"$BATON\" mutex acquire log' || echo $?";
    for shell in shells() {
        let world = World::new();
        let (code, out, told) = run(&world, shell, text);
        assert_eq!((code, out.as_str()), (0, "75\n75\n75\n"), "{shell}: {told}");
        assert_eq!(told.matches("it would wait for itself").count(), 3, "{told}");
    }
}

/// `set -a` exports everything: a child's tokens are its own all the same.
#[test]
fn a_child_script_neither_has_nor_releases_what_its_parent_has() {
    for shell in shells() {
        let world = World::new();
        let library = concat!(env!("CARGO_MANIFEST_DIR"), "/share/baton.sh");
        let text = format!(
            "set -a; mutex_acquire log
             {shell} -c '. {library}; mutex_release log || echo $?; mutex_acquire other'
             mutex_release log; echo released"
        );
        let (code, out, told) = run(&world, shell, &text);
        assert_eq!((code, out.as_str()), (0, "1\nreleased\n"), "{shell}: {told}");
    }
}

/// The words that start with two dashes.
fn options(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| word.starts_with("--")).map(str::to_owned).collect()
}

/// There is no PowerShell on every machine: what the module says to baton is checked.
#[test]
fn the_powershell_module_says_what_baton_understands_and_helps() {
    let module = include_str!("../share/Baton.psm1");
    let exported = module.lines().find(|line| line.starts_with("Export-ModuleMember")).unwrap();
    let exported: Vec<&str> = exported.split('\'').skip(1).step_by(2).collect();
    assert_eq!(exported, ["Use-BatonMutex", "Lock-BatonMutex", "Unlock-BatonMutex"]);
    for name in exported {
        let function = module.split(&format!("function {name} {{\n")).nth(1).unwrap();
        let (help, code) =
            function.trim_start().strip_prefix("<#").unwrap().split_once("#>").unwrap();
        assert!(help.contains(".SYNOPSIS") && help.contains(".DESCRIPTION"), "{name}");
        let examples = help.split(".EXAMPLE").skip(1);
        assert!(
            help.contains(".EXAMPLE") && examples.into_iter().all(|e| e.contains(name)),
            "{name}"
        );
        let code = code.split("\nfunction ").next().unwrap();
        assert!(
            code.contains("$ErrorActionPreference = 'Stop'\n"),
            "{name} goes on after an error"
        );
        let parameters = code.lines().filter(|line| line.starts_with("        ["));
        let named = parameters.filter_map(|line| line.split_once("] $")).map(|(_, name)| name);
        for parameter in named.map(|name| name.trim_end_matches(',')) {
            assert!(help.contains(&format!(".PARAMETER {parameter}\n")), "{name} -{parameter}");
        }
    }
    assert!(module.contains("@('mutex', 'acquire', $Name, '--for-pid', \"$PID\")"));
    assert!(module.contains("@('mutex', 'release', $Mutex.Name, \"$($Mutex.Token)\")"));

    let world = World::new();
    let pid = std::process::id().to_string();
    let (_, help, _) = finish(world.baton().args(["mutex", "acquire", "--help"]));
    let (used, known) = (options(module), options(&help));
    assert!(used.is_subset(&known), "{used:?} of {known:?}");
    let all = ["--for-pid", "--no-wait", "--reason", "--shared", "--timeout"].map(str::to_owned);
    assert_eq!(used, all.into(), "each is tried below");
    for more in [vec!["--no-wait"], vec!["--timeout", "300000ms", "--shared", "--reason=-a b"]] {
        let words = [vec!["mutex", "acquire", "log", "--for-pid", &pid], more].concat();
        let (code, token, told) = finish(world.baton().args(words));
        assert_eq!(code, 0, "{told}");
        // Not re-entrant, and no endless wait either.
        let words = ["mutex", "acquire", "log", "--for-pid", &pid];
        let (code, _, told) = finish(world.baton().args(words));
        assert!(code == 75 && told.contains("it would wait for itself"), "{told}");
        let words = ["mutex", "release", "log", token.trim_end()];
        assert_eq!(finish(world.baton().args(words)).0, 0);
    }
}
