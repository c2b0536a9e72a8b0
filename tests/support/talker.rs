//! A command that talks: both its outputs are read line by line, within the deadline.

use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{DEADLINE, spawn};

pub struct Talker {
    pub child: Child,
    out: BufReader<ChildStdout>,
    told: BufReader<ChildStderr>,
}

impl Talker {
    pub fn start(command: &mut Command) -> Self {
        let mut child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let out = BufReader::new(child.stdout.take().unwrap());
        let told = BufReader::new(child.stderr.take().unwrap());
        Self { child, out, told }
    }

    /// The next line that it writes, without the newline.
    pub fn line(&mut self) -> String {
        next_line(&mut self.out).trim_end().to_owned()
    }

    /// The next line that its caller is told.
    pub fn told(&mut self) -> String {
        next_line(&mut self.told)
    }

    /// Reads what it is told until that says `text`.
    pub fn is_told(&mut self, text: &str) {
        let mut last = String::new();
        while !last.contains(text) {
            last = self.told();
            assert!(!last.is_empty(), "it ended before it was told {text:?}");
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Exit status, and what it still said.
    pub fn end(mut self) -> (i32, String, String) {
        let (mut out, mut told) = (String::new(), String::new());
        self.out.read_to_string(&mut out).unwrap();
        self.told.read_to_string(&mut told).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), out, told)
    }
}

/// The next line of a pipe, or what there is of it at the end; within the deadline.
fn next_line<P: Read + AsFd>(pipe: &mut BufReader<P>) -> String {
    if pipe.buffer().is_empty() {
        let mut polled = [PollFd::new(pipe.get_ref(), PollFlags::IN)];
        let limit = Timespec::try_from(DEADLINE).unwrap();
        assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 1, "no line");
    }
    let mut line = String::new();
    pipe.read_line(&mut line).unwrap();
    line
}
