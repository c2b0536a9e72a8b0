//! How long an agent that is away is waited for, and what is told of that meanwhile.
//!
//! 1. It is told at once that the agent is away, then once a minute, until when it is waited for.
//! 2. Tries come after longer and longer pauses, none later than the limit.
//! 3. Whatever goes well ends it: the next time the agent is away, the limit counts anew.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How long an agent that is away is waited for, unless a client is told otherwise: longer than a machine
/// takes to start again.
pub const AWAY_LIMIT: Duration = Duration::from_mins(10);
/// The pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often it is told that an agent is still away.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// An agent that can't be reached now, and is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    /// Since when, by this machine's clock.
    pub since: Timestamp,
    /// Until when it is waited for.
    pub until: Timestamp,
    /// What the last try said.
    pub why: String,
}

impl Away {
    /// In words, as it is at a moment: `away since 10:31:07, 2m 10s; waiting until 10:41:07: …`.
    pub fn at(&self, now: Timestamp) -> String {
        let time = Duration::try_from(now.duration_since(self.since)).unwrap_or_default();
        let long = match time.as_secs() {
            0 => String::new(),
            seconds => format!(", {}", humantime::format_duration(Duration::from_secs(seconds))),
        };
        let (since, until) = (moment(self.since, now), moment(self.until, now));
        format!("away since {since}{long}; waiting until {until}: {}", self.why)
    }

    /// In words, when it was waited for in vain.
    pub fn given_up(&self) -> String {
        let (since, until) = (moment(self.since, self.until), moment(self.until, self.until));
        format!("away since {since}, and was waited for in vain until {until}: {}", self.why)
    }
}

/// A time of day, with its date when that is another one than now.
pub fn moment(time: Timestamp, now: Timestamp) -> String {
    let [time, now] = [time, now].map(|time| time.to_zoned(TimeZone::system()));
    let form = if time.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    time.strftime(form).to_string()
}

/// What is to be done about an agent that is away.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is told, then tried again.
    Tell(Away),
    /// It is tried again after so long.
    Pause(Duration),
    /// It was waited for long enough.
    GiveUp(Away),
}

/// What is left of a client's patience.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    broken: Option<Broken>,
}

#[derive(Debug)]
struct Broken {
    since: Instant,
    at: Timestamp,
    why: String,
    pause: Duration,
    /// When it is told again.
    tell: Instant,
}

/// A moment, by the clock that measures and by the one that people read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now(pub(super) Instant, pub(super) Timestamp);

impl Now {
    pub(super) fn read() -> Self {
        Self(Instant::now(), Timestamp::now())
    }
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, broken: None }
    }

    /// Something went well. Since when the agent was away, if it was.
    pub(super) fn renew(&mut self) -> Option<Timestamp> {
        self.broken.take().map(|broken| broken.at)
    }

    /// From now on the agent is waited for no longer than so long.
    pub(super) fn hurry(&mut self, limit: Duration, now: Instant) {
        let waited = self.broken.as_ref().map(|broken| now.saturating_duration_since(broken.since));
        self.limit = self.limit.min(waited.unwrap_or_default().saturating_add(limit));
    }

    /// A try failed.
    pub(super) fn failed(&mut self, why: String, now: Now) -> Next {
        let Now(instant, at) = now;
        let (since, pause, tell) = (instant, FIRST_PAUSE, instant);
        let fresh = || Broken { since, at, why: String::new(), pause, tell };
        self.broken.get_or_insert_with(fresh).why = why;
        self.next(instant)
    }

    /// When a try is looked at that has not come to its end.
    pub(super) fn due(&self) -> Option<Instant> {
        let broken = self.broken.as_ref()?;
        Some(broken.end(self.limit).map_or(broken.tell, |end| end.min(broken.tell)))
    }

    /// What is done now.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let Some(broken) = &mut self.broken else {
            return Next::Pause(Duration::ZERO);
        };
        let end = broken.end(self.limit);
        let is_over = end.is_some_and(|end| end <= now);
        // It is told once in any case, also when there is no time to wait.
        let is_first = broken.tell == broken.since;
        if is_first || (broken.tell <= now && !is_over) {
            broken.tell = now + TELL_EVERY;
            return Next::Tell(broken.away(self.limit));
        }
        if is_over {
            return Next::GiveUp(broken.away(self.limit));
        }
        let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(now));
        let pause = broken.pause.min(left);
        broken.pause = LONGEST_PAUSE.min(broken.pause * 2);
        Next::Pause(pause)
    }

    /// Waits before the next try; or says what is to be told first.
    ///
    /// # Errors
    /// The error itself, when it was waited for long enough.
    pub(super) async fn wait<E: std::error::Error>(&mut self, error: E) -> Result<Option<Away>, E> {
        match self.failed(crate::text::chain(&error), Now::read()) {
            Next::Tell(away) => Ok(Some(away)),
            Next::Pause(pause) => {
                tokio::time::sleep(pause).await;
                Ok(None)
            }
            Next::GiveUp(_) => Err(error),
        }
    }
}

impl Broken {
    /// `None`: never.
    fn end(&self, limit: Duration) -> Option<Instant> {
        self.since.checked_add(limit)
    }

    fn away(&self, limit: Duration) -> Away {
        let until = self.at.checked_add(limit).unwrap_or(Timestamp::MAX);
        Away { since: self.at, until, why: self.why.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Now {
        let time = Timestamp::UNIX_EPOCH + Duration::from_secs(seconds);
        Now(start + Duration::from_secs(seconds), time)
    }

    fn fails(patience: &mut Patience, now: Now) -> Next {
        patience.failed("it is cut".to_owned(), now)
    }

    #[test]
    fn rule_1_it_is_told_at_once_and_once_a_minute_and_no_more_at_the_limit() {
        let (start, mut patience) = (Instant::now(), Patience::new(Duration::from_secs(150)));
        let mut told = Vec::new();
        for second in 0..=150 {
            loop {
                match fails(&mut patience, at(start, second)) {
                    Next::Tell(away) => told.push((second, away)),
                    Next::Pause(_) => break,
                    Next::GiveUp(away) => {
                        assert_eq!((second, &away), (150, &told[0].1));
                        assert_eq!(away.until, Timestamp::from_second(150).unwrap());
                        break;
                    }
                }
            }
        }
        assert_eq!(told.iter().map(|(second, _)| *second).collect::<Vec<_>>(), [0, 60, 120]);
    }

    #[test]
    fn rule_2_pauses_grow_and_end_at_the_limit() {
        let (start, mut patience) = (Instant::now(), Patience::new(Duration::from_secs(5)));
        let Next::Tell(_) = fails(&mut patience, at(start, 0)) else { panic!("it is not told") };
        let pauses: Vec<_> = (0..7).map(|_| fails(&mut patience, at(start, 1))).collect();
        let expected = [50, 100, 200, 400, 800, 1600, 2000];
        assert_eq!(pauses, expected.map(|ms| Next::Pause(Duration::from_millis(ms))));
        assert_eq!(fails(&mut patience, at(start, 4)), Next::Pause(Duration::from_secs(1)));
        assert_eq!(patience.due(), Some(start + Duration::from_secs(5)));
        assert!(matches!(patience.next(start + Duration::from_secs(5)), Next::GiveUp(_)));
    }

    #[test]
    fn rule_3_whatever_goes_well_ends_it() {
        let (start, mut patience) = (Instant::now(), Patience::new(Duration::from_secs(5)));
        assert_eq!((patience.renew(), patience.due()), (None, None));
        fails(&mut patience, at(start, 0));
        assert_eq!(patience.renew(), Some(Timestamp::UNIX_EPOCH));
        let Next::Tell(away) = fails(&mut patience, at(start, 9)) else { panic!("not told") };
        assert_eq!(away.until, Timestamp::from_second(14).unwrap());
    }

    #[test]
    fn who_hurries_waits_so_long_from_then_on_and_never_longer_than_before() {
        let (start, mut patience) = (Instant::now(), Patience::new(Duration::from_mins(10)));
        fails(&mut patience, at(start, 0));
        patience.hurry(Duration::from_secs(15), at(start, 100).0);
        assert!(matches!(fails(&mut patience, at(start, 114)), Next::Tell(_)));
        assert!(matches!(fails(&mut patience, at(start, 114)), Next::Pause(_)));
        assert!(matches!(fails(&mut patience, at(start, 115)), Next::GiveUp(_)));
        let mut patience = Patience::new(Duration::from_secs(5));
        patience.hurry(Duration::from_secs(15), start);
        assert_eq!(patience.limit, Duration::from_secs(5));
    }

    #[test]
    fn without_a_limit_s_time_it_is_told_and_given_up() {
        let (start, mut patience) = (Instant::now(), Patience::new(Duration::ZERO));
        assert!(matches!(fails(&mut patience, at(start, 0)), Next::Tell(_)));
        assert!(matches!(fails(&mut patience, at(start, 0)), Next::GiveUp(_)));
        let mut patience = Patience::new(Duration::MAX);
        fails(&mut patience, at(start, 0));
        assert!(matches!(fails(&mut patience, at(start, 1_000_000)), Next::Tell(_)));
    }

    #[test]
    fn in_words_it_says_since_when_and_until_when_and_why() {
        let since: Timestamp = "2026-11-26T10:31:07Z".parse().unwrap();
        let away = Away { since, until: since + AWAY_LIMIT, why: "it is cut".to_owned() };
        let (since, until) = (moment(since, since), moment(away.until, since));
        let text = format!("away since {since}; waiting until {until}: it is cut");
        assert_eq!(away.at(away.since), text);
        let later = away.since + Duration::from_secs(130);
        let text = format!("away since {since}, 2m 10s; waiting until {until}: it is cut");
        assert_eq!(away.at(later), text);
        let days = moment(away.since, away.since + Duration::from_hours(48));
        assert!(days.starts_with("2026-11-2"), "{days}");
    }
}
