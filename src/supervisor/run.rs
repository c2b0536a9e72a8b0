//! The second stage: the script runs. One loop sleeps, names what happened, asks the
//! [`Course`], and acts.

use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use jiff::Timestamp;

use super::course::{Course, Event, Step};
use super::job::Report;
use super::tree::{self, Pipes, StartError, Tree};
use super::{Signals, SuperviseError, Supervision};
use crate::journal::Writer;
use crate::mutex::{Hold, holder};
use crate::process::Process;
use crate::script::{Fate, Outcome, OutcomeKind, StragglerPolicy, Stream};
use crate::text::chain;

/// How much is read at once: one record.
const READ_BYTES: usize = 256 * 1024;
/// How often an output is read at the end, when a straggler goes on writing into it.
const LAST_READS: usize = 8;

impl Supervision {
    /// Runs the script and ends its tree. Says how it ended, and when it started if it did.
    pub(super) fn run(&mut self, hold: &mut Hold) -> (Outcome, Option<Timestamp>) {
        match self.start(hold) {
            Ok((mut tree, pipes)) => {
                let started_at = Timestamp::now();
                (self.follow(&mut tree, pipes), Some(started_at))
            }
            Err(error) => (OutcomeKind::from(error).into(), None),
        }
    }

    fn start(&mut self, hold: &mut Hold) -> Result<(Tree, Pipes), StartError> {
        let failed = |error: &dyn std::error::Error| StartError::Agent(chain(error));
        hold.make_inheritable().map_err(|e| failed(&e))?;
        self.report(&Report::Starting).map_err(|e| failed(&e))?;
        // On disk before the script is started: after a power failure nobody runs it again.
        self.journal.sync().map_err(|e| failed(&e))?;
        self.workspace.sync().map_err(|e| failed(&e))?;
        let mutexes = holder::variables(hold, &self.job.claims);
        let (tree, pipes) = Tree::start(&self.job, mutexes)?;
        hold.protects(tree.leader());
        Ok((tree, pipes))
    }

    fn follow(&mut self, tree: &mut Tree, pipes: Pipes) -> Outcome {
        let course = Course::start(Instant::now(), self.job.run_time_limit, self.job.grace);
        let mut outputs = Outputs::new(pipes);
        let followed = self.course(course, tree, &mut outputs);
        outputs.read_last(&mut self.journal);
        let fate = match &followed {
            // One that was to stop leaves nothing, whatever the request says.
            Ok(OutcomeKind::Exited { .. } | OutcomeKind::Signalled { .. })
                if self.job.stragglers == StragglerPolicy::Keep =>
            {
                Fate::Kept
            }
            _ => Fate::Ended,
        };
        let stragglers = Tree::stragglers(fate);
        let ended = match fate {
            Fate::Kept => Ok(()),
            Fate::Ended | Fate::Abandoned => Tree::end().map_err(SuperviseError::from),
        };
        let kind = followed.and_then(|kind| ended.map(|()| kind)).unwrap_or_else(|error| {
            OutcomeKind::Lost { reason: format!("its supervisor failed: {}", chain(&error)) }
        });
        Outcome { stragglers, ..Outcome::from(kind) }
    }

    fn course(
        &mut self,
        mut course: Course,
        tree: &mut Tree,
        outputs: &mut Outputs,
    ) -> Result<OutcomeKind, SuperviseError> {
        let leader = Process::read(tree.leader()).map(|leader| leader.id());
        self.tell(&Report::Started { leader });
        loop {
            self.sleep(&outputs.descriptors(), course.deadline())?;
            for event in self.events(tree, outputs)? {
                match course.on(event, Instant::now()) {
                    Some(Step::Finish) => {
                        let unknown =
                            || OutcomeKind::Lost { reason: "its end was not seen".to_owned() };
                        return Ok(course.outcome().unwrap_or_else(unknown));
                    }
                    Some(Step::Ask) => {
                        self.tell(&Report::Stopping);
                        tree.ask();
                    }
                    Some(Step::Force) => Tree::force(),
                    None => {}
                }
            }
        }
    }

    /// Names what happened since the last time.
    fn events(
        &mut self,
        tree: &mut Tree,
        outputs: &mut Outputs,
    ) -> Result<Vec<Event>, SuperviseError> {
        let mut events = Vec::new();
        outputs.read(&mut self.journal);
        if !self.is_drop_told
            && let Some((cause, bytes)) = self.journal.dropped()
        {
            self.is_drop_told = true;
            self.tell(&Report::OutputDropped { cause, bytes });
        }
        if Signals::take(&self.signals.child) {
            events.extend(tree.leader_end()?.map(Event::LeaderEnded));
            tree::reap_orphans(tree.leader());
            if tree.has_ended()? {
                events.push(Event::TreeEnded);
            }
        }
        events.extend(self.stop_reason().map(|reason| Event::Cancel { reason }));
        events.push(if outputs.are_closed() { Event::OutputsClosed } else { Event::Tick });
        Ok(events)
    }
}

/// The script's two outputs, on their way into the journal.
struct Outputs {
    open: Vec<(Stream, PipeReader)>,
    buffer: Vec<u8>,
}

impl Outputs {
    fn new(pipes: Pipes) -> Self {
        let open = vec![(Stream::Stdout, pipes.stdout), (Stream::Stderr, pipes.stderr)];
        Self { open, buffer: vec![0; READ_BYTES] }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.open.iter().map(|(_, pipe)| pipe.as_fd()).collect()
    }

    fn are_closed(&self) -> bool {
        self.open.is_empty()
    }

    /// Reads once from each output that has something; forgets those that are closed.
    fn read(&mut self, journal: &mut Writer) {
        let buffer = &mut self.buffer;
        self.open
            .retain_mut(|(stream, pipe)| copy(*stream, pipe, buffer, journal) != Copied::Closed);
    }

    /// Reads what is left, without waiting.
    fn read_last(&mut self, journal: &mut Writer) {
        for (stream, pipe) in &mut self.open {
            for _ in 0..LAST_READS {
                if copy(*stream, pipe, &mut self.buffer, journal) != Copied::Some {
                    break;
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copied {
    Some,
    Nothing,
    Closed,
}

fn copy(stream: Stream, pipe: &mut PipeReader, buffer: &mut [u8], journal: &mut Writer) -> Copied {
    match pipe.read(buffer) {
        Ok(0) => Copied::Closed,
        Ok(length) => {
            journal.append_output(stream, &buffer[..length], Timestamp::now());
            Copied::Some
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Copied::Nothing,
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Copied::Some,
        // A pipe has no other errors; reading on would spin.
        Err(_) => Copied::Closed,
    }
}
