//! Promise: `mutex status --watch` shows each change of a mutex: at once, outsiders within a second.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;
use support::{DEADLINE, World, finish, signal, spawn};

/// A process of which the output is read line by line. It ends with the test.
struct Told {
    child: Child,
    lines: Receiver<String>,
}

impl Told {
    fn start(command: &mut Command) -> Self {
        let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                sender.send(line).unwrap_or_default();
            }
        });
        Self { child, lines }
    }

    fn watch(world: &World, words: &[&str]) -> Self {
        Self::start(world.baton().args(["mutex", "status", "--watch"]).args(words))
    }

    /// A claim for `words` that holds until it is let go.
    fn claim(world: &World, words: &[&str]) -> Self {
        let words = ["mutex", "run", "--quiet"].iter().chain(words);
        let command = ["--", "sh", "-c", "echo on; read -r _"];
        Self::start(world.baton().args(words.chain(&command)))
    }

    fn holder(world: &World, words: &[&str]) -> Self {
        let holder = Self::claim(world, words);
        assert_eq!(holder.line(), "on");
        holder
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).unwrap()
    }

    /// Reads until a line of JSON is `wanted`.
    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Vec::new();
        loop {
            let Ok(line) = self.lines.recv_timeout(DEADLINE) else {
                panic!("not told: {what}; but {seen:#?}");
            };
            let value: Value = serde_json::from_str(&line).unwrap();
            if wanted(&value) {
                return value;
            }
            seen.push(line);
        }
    }

    /// Reads until a line of text is `wanted`; all of it.
    fn until_text(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| wanted(line)) {
            seen.push(self.line());
        }
        seen
    }

    fn let_go(mut self) {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// Kills a holder with all that would keep its place.
    fn kill_tree(mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let command = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        self.child.kill().unwrap();
        support::kill(command);
    }

    /// Waits for its end: its output is closed then.
    fn end(mut self) -> ExitStatus {
        while self.lines.recv_timeout(DEADLINE).is_ok() {}
        self.child.wait().unwrap()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

fn count(value: &Value, key: &str) -> usize {
    value[key].as_array().unwrap().len()
}

fn counts(value: &Value) -> (usize, usize, usize) {
    (count(value, "holders"), count(value, "waiters"), count(value, "foreign"))
}

#[test]
fn a_program_is_told_the_present_state_and_each_change() {
    let world = World::new();
    let holder = Told::holder(&world, &["--reason", "rotate", "log"]);
    let watch = Told::watch(&world, &["--json"]);
    let first: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!((counts(&first), &first["mutex"]), ((1, 0, 0), &Value::from("log")));
    assert_eq!(first["holders"][0]["reason"], "rotate");
    let waiter = Told::claim(&world, &["log"]);
    watch.until("the waiter", |told| counts(told) == (1, 1, 0));
    let ticket = first["holders"][0]["ticket"].clone();
    holder.let_go();
    watch.until("the next holder", |told| {
        counts(told) == (1, 0, 0) && told["holders"][0]["ticket"] != ticket
    });
    waiter.let_go();
    watch.until("that it is free", |told| counts(told) == (0, 0, 0));
    // A mutex that nobody ever used; the one that is free is told no more.
    let other = Told::holder(&world, &["other"]);
    let told = watch.until("the new mutex", |told| told["mutex"] != "log");
    assert_eq!(told["mutex"], "other");
    drop(other);
}

/// Without events it would be told with the next look: a second after it was told of the change before.
#[test]
fn changes_are_told_at_once() {
    let world = World::new();
    let watch = Told::watch(&world, &["--json"]);
    let mut fastest = [DEADLINE; 4];
    for round in 0..4 {
        let name = format!("log{round}");
        let mut told = |kind: usize, since: Instant, wanted: (usize, usize, usize)| {
            watch.until("the change", |told| counts(told) == wanted && told["mutex"] == *name);
            fastest[kind] = fastest[kind].min(since.elapsed());
        };
        let holder = Told::holder(&world, &[&name]);
        told(0, Instant::now(), (1, 0, 0));
        let since = Instant::now();
        let waiter = Told::claim(&world, &[&name]);
        told(1, since, (1, 1, 0));
        let since = Instant::now();
        holder.let_go();
        told(2, since, (1, 0, 0));
        assert_eq!(waiter.line(), "on");
        let since = Instant::now();
        waiter.kill_tree();
        told(3, since, (0, 0, 0));
    }
    // The best of each: the machine may be busy.
    let limit = Duration::from_millis(500);
    assert!(fastest.iter().all(|fastest| *fastest < limit), "{fastest:?}");
}

#[test]
fn who_has_only_the_plain_lock_appears_and_goes() {
    let world = World::new();
    let watch = Told::watch(&world, &["--json", "log"]);
    watch.until("that it is free", |told| counts(told) == (0, 0, 0));
    let (_, path, _) = finish(world.baton().args(["mutex", "path", "log"]));
    let lock = std::fs::File::open(path.trim_end()).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let told = watch.until("the outsider", |told| counts(told) == (0, 0, 1));
    assert_eq!(told["foreign"][0]["pid"], std::process::id());
    drop(lock);
    watch.until("that it is free", |told| counts(told) == (0, 0, 0));
}

#[test]
fn changes_of_a_mutex_that_was_not_asked_for_are_not_told() {
    let world = World::new();
    let watch = Told::watch(&world, &["--json", "log"]);
    watch.until("that it is free", |told| told["mutex"] == "log");
    let other = Told::holder(&world, &["other"]);
    let holder = Told::holder(&world, &["log"]);
    watch.until("the holder", |told| {
        assert_eq!(told["mutex"], "log");
        counts(told) == (1, 0, 0)
    });
    drop((other, holder));
}

#[test]
fn text_in_a_pipe_is_a_table_for_each_change() {
    let world = World::new();
    let watch = Told::watch(&world, &[]);
    assert!(watch.line().starts_with("nobody holds or wants a mutex in "));
    let holder = Told::holder(&world, &["log"]);
    let seen = watch.until_text(|line| line.starts_with("log "));
    assert_eq!(seen[0], "", "{seen:?}");
    assert!(seen[1].starts_with("MUTEX "), "{seen:?}");
    assert!(seen.last().unwrap().contains(" holds "), "{seen:?}");
    holder.let_go();
    let seen = watch.until_text(|line| line.starts_with("nobody "));
    assert_eq!(seen[seen.len() - 2], "", "{seen:?}");
    // Time goes on: that is no change.
    let longer_than_a_look = Duration::from_millis(1500);
    assert_eq!(watch.lines.recv_timeout(longer_than_a_look), Err(RecvTimeoutError::Timeout));
}

#[test]
fn it_ends_quietly_when_nobody_reads_any_more() {
    let world = World::new();
    for words in [&["--json", "log"][..], &["log"]] {
        let mut command = world.baton();
        command.args(["mutex", "status", "--watch"]).args(words);
        let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        // Nothing is written any more that could fail.
        drop(out);
        let (sender, ended) = channel();
        std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
        let output = ended.recv_timeout(DEADLINE).unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(141), Vec::new()));
    }
}

#[test]
fn a_signal_ends_it() {
    use std::os::unix::process::ExitStatusExt as _;
    let world = World::new();
    let watch = Told::watch(&world, &["--json", "log"]);
    watch.line();
    signal(&watch.child, Signal::INT);
    assert_eq!(watch.end().signal(), Some(Signal::INT.as_raw()));
}

#[test]
fn a_hold_that_takes_too_long_is_seen() {
    let world = World::new();
    let watch = Told::watch(&world, &["--json", "log"]);
    let patient = Told::holder(&world, &["--warn-after", "1h", "log"]);
    let told = watch.until("the holder", |told| counts(told) == (1, 0, 0));
    assert_eq!(told["holders"][0].get("overdue"), None);
    let (_, table, _) = finish(world.baton().args(["mutex", "status"]));
    assert!(!table.contains("(over"), "{table}");
    patient.let_go();
    let late = Told::holder(&world, &["--warn-after", "20ms", "log"]);
    watch.until("that it is overdue", |told| {
        counts(told) == (1, 0, 0) && told["holders"][0]["overdue"] == true
    });
    let (_, table, _) = finish(world.baton().args(["mutex", "status", "log"]));
    assert!(table.contains("s (over 20ms)  exclusive  "), "{table}");
    let (_, json, _) = finish(world.baton().args(["mutex", "status", "log", "--json"]));
    assert!(json.contains(r#""overdue":true"#), "{json}");
    late.let_go();
}

/// What a terminal sees; in Python, which has pseudo terminals.
const TERMINAL: &str = r#"
import fcntl, os, pty, re, select, signal, struct, subprocess, sys, termios, time
baton, deadline = sys.argv[1], time.monotonic() + 60
status = [baton, "mutex", "status", "--watch"]
pid, screen = pty.fork()
if pid == 0:
    sys.stdin.readline()
    os.execv(baton, status)
def resize(rows, columns):
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
resize(24, 200)
os.write(screen, b"\n")
seen = ""
def frames():
    return [part for part in seen.split("\x1b[H")[1:] if part.endswith("\x1b[J")]
def until(what, wanted):
    global seen
    seen = ""
    while not any(wanted(frame) for frame in frames()):
        left = deadline - time.monotonic()
        assert left > 0 and select.select([screen], [], [], left)[0], (what, seen[-2000:])
        seen += os.read(screen, 65536).decode(errors="replace")
    assert "\x1b[?" not in seen, "something was hidden: " + repr(seen)
until("nobody", lambda frame: "nobody holds" in frame)
words = ["mutex", "run", "--reason", "x" * 100, "log", "--", "sh", "-c", "read -r _"]
claims = [subprocess.Popen([baton] + words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
until("holder and waiter", lambda frame: "holds" in frame and "waits #1" in frame)
times = set()
def ticks(frame):
    times.update(re.findall(r"holds +(\S+)", frame))
    return len(times) >= 3
until("that time goes on", ticks)
resize(3, 20)
def fits(frame):
    lines = frame.replace("\x1b[K", "").replace("\x1b[J", "").split("\r\n")
    return len(lines) == 3 and lines[-1] == "" and max(map(len, lines)) <= 20 and "2 more" in lines[1]
until("a smaller picture", fits)
# Both first: either may be the one that holds.
for claim in claims:
    claim.stdin.write(b"\n")
    claim.stdin.close()
for claim in claims:
    assert claim.wait(max(1, deadline - time.monotonic())) == 0
until("nobody again", lambda frame: "nobody holds" in frame)
os.write(screen, b"\x03")
_, ended = os.waitpid(pid, 0)
assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGINT, ended
print("ok")
"#;

#[test]
fn on_a_terminal_the_table_is_shown_in_place_until_ctrl_c() {
    let world = World::new();
    if finish(Command::new("sh").args(["-c", "command -v python3"])).0 != 0 {
        return;
    }
    let mut command = Command::new("python3");
    let like = world.baton();
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-c", TERMINAL, support::BATON]).stdin(Stdio::null());
    let (code, out, told) = finish(&mut command);
    assert_eq!((code, out.as_str()), (0, "ok\n"), "{told}");
}
