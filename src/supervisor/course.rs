//! Pure: the course of one running script: ask, grace, force, drain. Time is an argument.
//!
//! ```text
//!            limit, cancel           grace over
//! Running ──────────────────► Asked ────────────► Forced
//!    │ leader ended              │ tree ended        │ leader ended
//!    └───────────────────────────┴───────────────────┴──► Draining ── outputs closed, 1 s ──► Over
//! ```
//!
//! 1. A script that is to stop is asked (SIGTERM to its tree), and forced (SIGKILL) after its grace.
//!    The grace is the whole tree's: a child may clean up longer than the leader.
//! 2. The first reason to stop is the one on record.
//! 3. When the leader has ended, what is left in the pipes is read for at most [`DRAIN`]; whoever
//!    keeps them open longer is a straggler. A leader that was forced and does not end is waited for
//!    no longer than [`FORCE`]: ending the tree goes on, and tells what it waits for.
//! 4. An exit that came before any reason to stop is an exit.
//! 5. Who is told to stop and not why goes down with its machine: what runs is lost, whether it ends well or not.

use std::time::{Duration, Instant};

use crate::script::OutcomeKind;

/// How long output is still read after the script's own process has ended.
pub(super) const DRAIN: Duration = Duration::from_secs(1);
/// How long a leader that was forced may take to be gone.
pub(super) const FORCE: Duration = Duration::from_secs(5);

/// Something that happened to a running script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// It is to stop.
    Cancel {
        /// Why, for people.
        reason: String,
    },
    /// It is to stop, and nobody said why.
    GoDown,
    /// Its own process has ended.
    LeaderEnded(LeaderEnd),
    /// Its own process and all that it started have ended.
    TreeEnded,
    /// Nobody has its pipes open any more.
    OutputsClosed,
    /// Time has passed.
    Tick,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaderEnd {
    /// With an exit code.
    Exited(i32),
    /// By a signal.
    Signalled(i32),
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send SIGTERM to the tree.
    Ask,
    /// Send SIGKILL to the tree.
    Force,
    /// Stop reading, end stragglers, record the outcome.
    Finish,
}

/// The course of one running script.
#[derive(Debug)]
pub(super) struct Course {
    grace: Duration,
    run_limit: Option<Duration>,
    stage: Stage,
    /// The first reason to stop.
    stop: Option<OutcomeKind>,
    leader: Option<LeaderEnd>,
    outputs_closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running { until: Option<Instant> },
    Asked { until: Instant },
    Forced { until: Instant },
    Draining { until: Instant },
    Over,
}

impl Course {
    /// The course of a script that started `now`.
    pub(super) fn start(now: Instant, run_limit: Option<Duration>, grace: Duration) -> Self {
        let until = run_limit.and_then(|limit| now.checked_add(limit));
        let stage = Stage::Running { until };
        Self { grace, run_limit, stage, stop: None, leader: None, outputs_closed: false }
    }

    /// What is to be done after `event`.
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Option<Step> {
        match event {
            Event::Cancel { reason } => {
                self.stop_for(OutcomeKind::Cancelled { while_queued: false, reason }, now)
            }
            Event::GoDown => {
                let reason = "it was ended with the machine, or by who told its supervisor to stop";
                self.stop_for(OutcomeKind::Lost { reason: reason.to_owned() }, now)
            }
            Event::LeaderEnded(end) => {
                self.leader.get_or_insert(end);
                // Rule 1: who was asked to stop has its grace, also without the leader.
                if !matches!(self.stage, Stage::Asked { .. }) {
                    self.drain(now);
                }
                self.tick(now)
            }
            Event::TreeEnded => {
                self.drain(now);
                self.tick(now)
            }
            Event::OutputsClosed => {
                self.outputs_closed = true;
                self.tick(now)
            }
            Event::Tick => self.tick(now),
        }
    }

    /// When [`Event::Tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Running { until } => until,
            Stage::Asked { until } | Stage::Forced { until } | Stage::Draining { until } => {
                Some(until)
            }
            Stage::Over => None,
        }
    }

    /// How the script ended, once it has.
    pub(super) fn outcome(self) -> Option<OutcomeKind> {
        let ended = self.leader.map(|leader| match leader {
            LeaderEnd::Exited(code) => OutcomeKind::Exited { code },
            LeaderEnd::Signalled(signal) => OutcomeKind::Signalled { signal },
        });
        self.stop.or(ended)
    }

    /// Rules 1, 2 and 4.
    fn stop_for(&mut self, reason: OutcomeKind, now: Instant) -> Option<Step> {
        let Stage::Running { .. } = self.stage else {
            return None;
        };
        self.stop = Some(reason);
        self.stage = Stage::Asked { until: now + self.grace };
        Some(Step::Ask)
    }

    /// Rule 3.
    fn drain(&mut self, now: Instant) {
        if !matches!(self.stage, Stage::Draining { .. } | Stage::Over) {
            self.stage = Stage::Draining { until: now + DRAIN };
        }
    }

    fn tick(&mut self, now: Instant) -> Option<Step> {
        match self.stage {
            Stage::Running { until: Some(until) } if now >= until => {
                let limit = self.run_limit.unwrap_or_default();
                self.stop_for(OutcomeKind::TimedOut { limit }, now)
            }
            Stage::Asked { until } if now >= until => {
                self.stage = Stage::Forced { until: now + FORCE };
                if self.leader.is_some() {
                    self.drain(now);
                }
                Some(Step::Force)
            }
            Stage::Forced { until } if now >= until => {
                self.stage = Stage::Over;
                Some(Step::Finish)
            }
            Stage::Draining { until } if self.outputs_closed || now >= until => {
                self.stage = Stage::Over;
                Some(Step::Finish)
            }
            Stage::Running { .. }
            | Stage::Asked { .. }
            | Stage::Forced { .. }
            | Stage::Draining { .. }
            | Stage::Over => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn cancel(reason: &str) -> Event {
        Event::Cancel { reason: reason.to_owned() }
    }

    #[test]
    fn rule_1_ask_then_grace_then_force() {
        let start = Instant::now();
        let mut course = Course::start(start, Some(5 * SECOND), 10 * SECOND);
        assert_eq!(course.deadline(), Some(start + 5 * SECOND));
        assert_eq!(course.on(Event::Tick, start + 4 * SECOND), None);
        assert_eq!(course.on(Event::Tick, start + 5 * SECOND), Some(Step::Ask));
        assert_eq!(course.on(Event::Tick, start + 14 * SECOND), None);
        assert_eq!(course.on(Event::Tick, start + 15 * SECOND), Some(Step::Force));
        assert_eq!(course.on(Event::Tick, start + 19 * SECOND), None);
        let ended = Event::LeaderEnded(LeaderEnd::Signalled(9));
        assert_eq!(course.on(ended, start + 19 * SECOND), None);
        assert_eq!(course.on(Event::OutputsClosed, start + 19 * SECOND), Some(Step::Finish));
        assert_eq!(course.outcome(), Some(OutcomeKind::TimedOut { limit: 5 * SECOND }));
    }

    #[test]
    fn rule_3_a_leader_that_can_t_be_killed_is_waited_for_elsewhere() {
        let start = Instant::now();
        let mut course = Course::start(start, None, SECOND);
        assert_eq!(course.on(cancel("stuck"), start), Some(Step::Ask));
        assert_eq!(course.on(Event::Tick, start + SECOND), Some(Step::Force));
        assert_eq!(course.deadline(), Some(start + SECOND + FORCE));
        assert_eq!(course.on(Event::Tick, start + SECOND + FORCE), Some(Step::Finish));
        let expected = OutcomeKind::Cancelled { while_queued: false, reason: "stuck".to_owned() };
        assert_eq!(course.outcome(), Some(expected));
    }

    #[test]
    fn rule_1_a_child_has_its_grace_also_when_the_leader_is_gone() {
        let start = Instant::now();
        let stop = |course: &mut Course| {
            assert_eq!(course.on(cancel(""), start), Some(Step::Ask));
            let ended = Event::LeaderEnded(LeaderEnd::Signalled(15));
            assert_eq!(course.on(ended, start), None);
            assert_eq!(course.on(Event::OutputsClosed, start + SECOND), None);
        };
        // It ends by itself.
        let mut course = Course::start(start, None, 10 * SECOND);
        stop(&mut course);
        assert_eq!(course.on(Event::TreeEnded, start + 3 * SECOND), Some(Step::Finish));
        // It does not.
        let mut course = Course::start(start, None, 10 * SECOND);
        stop(&mut course);
        assert_eq!(course.on(Event::Tick, start + 9 * SECOND), None);
        assert_eq!(course.on(Event::Tick, start + 10 * SECOND), Some(Step::Force));
        assert_eq!(course.on(Event::Tick, start + 10 * SECOND), Some(Step::Finish));
    }

    #[test]
    fn rule_2_the_first_reason_is_on_record() {
        let now = Instant::now();
        let mut course = Course::start(now, Some(SECOND), SECOND);
        assert_eq!(course.on(cancel("enough"), now), Some(Step::Ask));
        assert_eq!(course.on(cancel("again"), now), None);
        course.on(Event::LeaderEnded(LeaderEnd::Exited(0)), now);
        course.on(Event::TreeEnded, now);
        let expected = OutcomeKind::Cancelled { while_queued: false, reason: "enough".to_owned() };
        assert_eq!(course.outcome(), Some(expected));
    }

    #[test]
    fn rule_3_an_open_pipe_delays_the_end_by_a_second_at_most() {
        let now = Instant::now();
        let mut course = Course::start(now, None, SECOND);
        assert_eq!(course.deadline(), None);
        assert_eq!(course.on(Event::LeaderEnded(LeaderEnd::Exited(3)), now), None);
        assert_eq!(course.deadline(), Some(now + DRAIN));
        assert_eq!(course.on(Event::Tick, now + DRAIN), Some(Step::Finish));
        assert_eq!(course.on(Event::OutputsClosed, now + DRAIN), None);
        assert_eq!(course.outcome(), Some(OutcomeKind::Exited { code: 3 }));
    }

    #[test]
    fn rule_5_what_goes_down_with_the_machine_is_lost_however_it_ends() {
        let now = Instant::now();
        let mut course = Course::start(now, None, SECOND);
        assert_eq!(course.on(Event::GoDown, now), Some(Step::Ask));
        assert_eq!(course.on(cancel("late"), now), None);
        course.on(Event::LeaderEnded(LeaderEnd::Signalled(15)), now);
        course.on(Event::TreeEnded, now);
        assert!(matches!(course.outcome(), Some(OutcomeKind::Lost { .. })));
    }

    #[test]
    fn rule_4_an_exit_before_a_cancel_is_an_exit() {
        let now = Instant::now();
        let mut course = Course::start(now, None, SECOND);
        course.on(Event::LeaderEnded(LeaderEnd::Exited(0)), now);
        assert_eq!(course.on(cancel("late"), now), None);
        assert_eq!(course.outcome(), Some(OutcomeKind::Exited { code: 0 }));
    }

    #[test]
    fn outputs_that_close_early_do_not_end_the_script() {
        let now = Instant::now();
        let mut course = Course::start(now, None, SECOND);
        assert_eq!(course.on(Event::OutputsClosed, now), None);
        assert_eq!(
            course.on(Event::LeaderEnded(LeaderEnd::Exited(0)), now + SECOND),
            Some(Step::Finish)
        );
    }
}
