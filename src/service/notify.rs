//! What systemd is told of a running agent (sd_notify(3)): that it serves, how busy it is, that it makes
//! progress, that it stops. Without `NOTIFY_SOCKET` nobody is told anything.
//!
//! 1. A ping says that the agent makes progress: its table can be had and its store answers. An agent that
//!    only sleeps well sends none.
//! 2. A status is sent when it is another one, and not more often than a pause allows: scripts may come and
//!    go a thousand times a second.
//! 3. While a stop waits for what runs, systemd is asked for more time again and again: it ends an agent that
//!    does not ask. So it is while a start migrates the database, for as long as that makes progress.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::agent::{Agent, Counts, Status};
use crate::snapshot::clock;
use crate::store::Migration;

/// The least time between two status texts.
const PAUSE: Duration = Duration::from_millis(200);
/// How many pings there are in the time in which one must come.
const PINGS: u32 = 3;
/// How much time a stop that waits asks for at once, and how often.
const MORE_TIME: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// How much time a migration asks for whenever it has come further: to have a large copy on disk, after its
/// last page, may take minutes.
const MIGRATION_TIME: Duration = Duration::from_mins(5);
/// The longest status text, in characters: it stands in one line of `systemctl status`.
const MAX_TEXT_CHARS: usize = 200;

/// Says that the agent serves.
pub async fn ready() {
    tell(vec![Told::Ready]).await;
}

/// Says that the agent stops.
pub async fn stopping() {
    tell(vec![Told::Stopping]).await;
}

/// Says how far the migration of the database is, and asks for the time that it may take until its next
/// word. Waits for systemd, as who migrates can.
pub fn migrating(migration: Migration) {
    let text = match migration {
        Migration::Copying(percent) => {
            format!("the database is copied before its migration: {percent} %")
        }
        Migration::Changing(version) => format!("the database is migrated to version {version}"),
    };
    send(&[Told::Status(text), Told::MoreTime(MIGRATION_TIME)]);
}

/// Says how busy the agent is, at once and on each change, and that it makes progress, until it is dropped.
pub async fn follow(agent: &Agent) {
    tokio::join!(follow_status(agent), ping(agent));
}

/// Asks for more time again and again, until it is dropped.
pub async fn ask_for_time() {
    let (more, often) = MORE_TIME;
    let mut ticks = interval(often);
    loop {
        ticks.tick().await;
        tell(vec![Told::MoreTime(more)]).await;
    }
}

/// A word to systemd.
#[derive(Debug)]
enum Told {
    Ready,
    Stopping,
    Alive,
    Status(String),
    MoreTime(Duration),
}

/// On a thread that may block: systemd may be busy with itself.
async fn tell(told: Vec<Told>) {
    if let Err(error) = tokio::task::spawn_blocking(move || send(&told)).await {
        debug!(%error, "systemd is not told");
    }
}

fn send(told: &[Told]) {
    let states: Vec<_> = told.iter().map(Told::state).collect();
    if let Err(error) = sd_notify::notify(&states) {
        debug!(%error, "systemd is not told");
    }
}

impl Told {
    fn state(&self) -> NotifyState<'_> {
        match self {
            Self::Ready => NotifyState::Ready,
            Self::Stopping => NotifyState::Stopping,
            Self::Alive => NotifyState::Watchdog,
            Self::Status(text) => NotifyState::Status(text),
            Self::MoreTime(time) => {
                NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
            }
        }
    }
}

/// Rule 2.
async fn follow_status(agent: &Agent) {
    let mut changes = agent.changes();
    let mut told = String::new();
    loop {
        changes.mark_unchanged();
        let text = describe(&agent.status());
        if told != text {
            told.clone_from(&text);
            tell(vec![Told::Status(text)]).await;
        }
        tokio::time::sleep(PAUSE).await;
        // The agent, which rings, outlives this.
        changes.changed().await.unwrap_or_default();
    }
}

/// Rule 1.
async fn ping(agent: &Agent) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = interval((limit / PINGS).max(Duration::from_millis(1)));
    // After a pause of the whole machine one ping is as good as ten.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        agent.makes_progress().await;
        tell(vec![Told::Alive]).await;
    }
}

/// How an agent stands, in one line.
fn describe(status: &Status) -> String {
    let Status { counts, drain, store_problem, stops_by, upgrade: _ } = status;
    let Counts { queued, waiting, running } = counts;
    let queued = queued + waiting;
    let busy = match (running, queued) {
        (0, 0) => "idle".to_owned(),
        (0, _) => format!("{queued} queued"),
        (_, 0) => format!("{running} running"),
        (_, _) => format!("{running} running, {queued} queued"),
    };
    let mut text = match (stops_by, drain) {
        (Some(until), _) => format!("stopping, until {} at the latest: {busy}", clock(*until)),
        (None, Some(drain)) if drain.reason.is_empty() => format!("draining: {busy}"),
        (None, Some(drain)) => format!("draining ({}): {busy}", drain.reason),
        (None, None) => busy,
    };
    if let Some(problem) = store_problem {
        text = format!("{text}; the database takes no change: {}", problem.reason);
    }
    crate::text::shorten(&text, MAX_TEXT_CHARS)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::agent::StoreProblem;
    use crate::script::Drain;

    fn status(running: u32, waiting: u32, queued: u32) -> Status {
        Status { counts: Counts { queued, waiting, running }, ..Status::default() }
    }

    #[test]
    fn the_status_is_one_line() {
        assert_eq!(describe(&status(0, 0, 0)), "idle");
        assert_eq!(describe(&status(2, 0, 0)), "2 running");
        assert_eq!(describe(&status(0, 1, 0)), "1 queued");
        assert_eq!(describe(&status(2, 1, 4)), "2 running, 5 queued");
        let mut status = status(1, 0, 3);
        let since = Timestamp::UNIX_EPOCH;
        let drain = Drain { since, by: "ci".to_owned(), reason: "kernel".to_owned() };
        status.drain = Some(drain);
        assert_eq!(describe(&status), "draining (kernel): 1 running, 3 queued");
        status.stops_by = Some(since);
        assert!(describe(&status).starts_with("stopping, until "));
        assert!(describe(&status).ends_with(" at the latest: 1 running, 3 queued"));
        status.store_problem = Some(StoreProblem { since, reason: "disk full".to_owned() });
        assert!(describe(&status).ends_with("; the database takes no change: disk full"));
    }
}
