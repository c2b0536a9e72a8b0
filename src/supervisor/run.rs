//! The second stage: the script runs. One loop sleeps, names what happened, asks the
//! [`Course`], and acts.

use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::course::{Course, Event, Step};
use super::grip::Grip;
use super::job::Report;
use super::mask::Mask;
use super::returns::Returns;
use super::tree::{self, Pipes, StartError, Tree};
use super::{Signals, Stop, SuperviseError, Supervision};
use crate::crash;
use crate::journal::Writer;
use crate::mutex::abandoned;
use crate::process::Process;
use crate::script::{Fate, Outcome, OutcomeKind, Straggler, StragglerPolicy, Stream};
use crate::text::chain;

/// How much is read at once: one record.
const READ_BYTES: usize = 256 * 1024;
/// How long a killed process may take to be gone before it is told.
const STUCK: Duration = Duration::from_secs(2);
/// How long to wait before looking again for children that were not found.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often an output is read at the end, when a straggler goes on writing into it.
const LAST_READS: usize = 8;

impl Supervision {
    /// Runs the script and ends its tree. Says how it ended, and when it started if it did.
    pub(super) fn run(&mut self, grip: &mut Grip) -> (Outcome, Option<Timestamp>) {
        // Before the start: the script may say at once how far it is.
        let mask = Mask::of(&self.job.sensitive, &self.job.environment);
        let returns = Returns::open(&self.workspace, self.job.service_messages, mask);
        match self.start(grip) {
            Ok((mut tree, pipes)) => {
                let started_at = Timestamp::now();
                (self.follow(&mut tree, Outputs::new(pipes, returns)), Some(started_at))
            }
            Err(error) => (OutcomeKind::from(error).into(), None),
        }
    }

    /// Says that the script is about to be started: from now on it may have run.
    pub(super) fn tell_start(&mut self) -> Result<(), SuperviseError> {
        crash::point("before start");
        let boot_id = self.job.boot_id.clone();
        self.report(&Report::Starting { boot_id })
    }

    fn start(&mut self, grip: &mut Grip) -> Result<(Tree, Pipes), StartError> {
        let failed = |error: &dyn std::error::Error| StartError::Agent(chain(error));
        grip.make_inheritable().map_err(|e| failed(&e))?;
        // On disk before the script is started: after a power failure nobody runs it again.
        self.journal.sync().map_err(|e| failed(&e))?;
        self.workspace.sync().map_err(|e| failed(&e))?;
        let mutexes = grip.variables(&self.job.claims);
        crash::point("starting");
        let (tree, pipes) = Tree::start(&self.job, mutexes)?;
        crash::point("after start");
        grip.protects(tree.leader());
        // Its output is not read yet: this comes first.
        self.tell_of_abandoned(grip);
        Ok((tree, pipes))
    }

    /// Marks the log when who held a mutex before was given up.
    fn tell_of_abandoned(&mut self, grip: &Grip) {
        for name in grip.names(&self.job.claims) {
            for mark in abandoned::take(&self.job.mutexes, &name) {
                let text = format!("baton: {}\n", mark.describe(&name));
                self.journal.append_output(Stream::Stderr, text.as_bytes(), Timestamp::now());
            }
        }
    }

    fn follow(&mut self, tree: &mut Tree, mut outputs: Outputs) -> Outcome {
        let course = Course::start(Instant::now(), self.job.run_time_limit, self.job.grace);
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
        let mut stragglers = outputs.returns.shown(Tree::stragglers(fate));
        let ended = match fate {
            Fate::Kept => Ok(Vec::new()),
            Fate::Ended | Fate::Abandoned => self.end_tree(&outputs.returns),
        };
        let kind = followed.and_then(|kind| match ended {
            Ok(abandoned) => {
                stragglers.retain(|ended| !abandoned.iter().any(|left| left.pid == ended.pid));
                stragglers.extend(abandoned);
                Ok(kind)
            }
            Err(error) => Err(error.into()),
        });
        let kind = kind.unwrap_or_else(|error: SuperviseError| OutcomeKind::Lost {
            reason: format!("its supervisor failed: {}", chain(&error)),
        });
        let values = outputs.returns.finish(&self.workspace, &mut self.journal);
        Outcome { stragglers, values, ..Outcome::from(kind) }
    }

    /// Ends whatever is left of the tree. A process that can't be killed (it waits for a disk, say) keeps
    /// the mutexes: it is told, and waited for without limit, unless an operator abandons it. Those are
    /// returned.
    fn end_tree(&mut self, returns: &Returns) -> io::Result<Vec<Straggler>> {
        let (start, mut is_told) = (Instant::now(), false);
        while let Some(dying) = Tree::kill()? {
            let descriptors: Vec<BorrowedFd<'_>> = dying.iter().map(OwnedFd::as_fd).collect();
            // None was found, though there are children: they change their place in the tree just now.
            let look_again = descriptors.is_empty().then(|| Instant::now() + LOOK_AGAIN);
            let stuck_at = (!is_told).then(|| start + STUCK);
            self.sleep(&descriptors, look_again.into_iter().chain(stuck_at).min())?;
            Signals::take(&self.signals.child);
            let is_stuck = start.elapsed() >= STUCK;
            if is_stuck && !is_told {
                let processes = returns.shown(Tree::stragglers(Fate::Abandoned));
                self.tell(&Report::Stuck { processes });
            }
            let is_asked = Signals::take(&self.signals.stop);
            if is_stuck
                && (is_asked || !is_told)
                && self.cancel().is_some_and(|c| c.abandon.is_some())
            {
                return Ok(returns.shown(Tree::stragglers(Fate::Abandoned)));
            }
            is_told |= is_stuck;
        }
        Ok(Vec::new())
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
            let deadlines = [course.deadline(), outputs.returns.deadline(Instant::now())];
            self.sleep(&outputs.descriptors(), deadlines.into_iter().flatten().min())?;
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
        if let Some(progress) = outputs.returns.progress(Instant::now()) {
            self.tell(&Report::Progress(progress));
        }
        let stop = self.stop();
        // The machine ends script and supervisor at once: the one is seen to end because of the other.
        let goes_down = matches!(stop, Some(Stop::Unsaid));
        events.extend(goes_down.then_some(Event::GoDown));
        if Signals::take(&self.signals.child) {
            events.extend(tree.leader_end()?.map(Event::LeaderEnded));
            tree::reap_orphans(tree.leader());
            if tree.has_ended()? {
                events.push(Event::TreeEnded);
            }
        }
        if let Some(Stop::Said(reason)) = stop {
            events.push(Event::Cancel { reason });
        }
        events.push(if outputs.are_closed() { Event::OutputsClosed } else { Event::Tick });
        Ok(events)
    }
}

/// The script's two outputs, on their way into the journal, and what it gives back beside.
struct Outputs {
    returns: Returns,
    open: Vec<(Stream, PipeReader)>,
    buffer: Vec<u8>,
}

impl Outputs {
    fn new(pipes: Pipes, returns: Returns) -> Self {
        let open = vec![(Stream::Stdout, pipes.stdout), (Stream::Stderr, pipes.stderr)];
        Self { returns, open, buffer: vec![0; READ_BYTES] }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let pipes = self.open.iter().map(|(_, pipe)| pipe.as_fd());
        pipes.chain(self.returns.descriptor()).collect()
    }

    fn are_closed(&self) -> bool {
        self.open.is_empty()
    }

    /// Reads once from each output that has something; forgets those that are closed.
    fn read(&mut self, journal: &mut Writer) {
        let Self { returns, open, buffer } = self;
        open.retain_mut(|(stream, pipe)| {
            copy(pipe, buffer, |bytes| returns.keep(*stream, bytes, journal)) != Copied::Closed
        });
    }

    /// Reads what is left, without waiting.
    fn read_last(&mut self, journal: &mut Writer) {
        let Self { returns, open, buffer } = self;
        for (stream, pipe) in open {
            for _ in 0..LAST_READS {
                let copied = copy(pipe, buffer, |bytes| returns.keep(*stream, bytes, journal));
                if copied != Copied::Some {
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

fn copy(pipe: &mut PipeReader, buffer: &mut [u8], keep: impl FnOnce(&[u8])) -> Copied {
    match pipe.read(buffer) {
        Ok(0) => Copied::Closed,
        Ok(length) => {
            keep(&buffer[..length]);
            Copied::Some
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Copied::Nothing,
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Copied::Some,
        // A pipe has no other errors; reading on would spin.
        Err(_) => Copied::Closed,
    }
}
