//! Pure: how far a script is, and how often that is told.
//!
//! A line of the progress channel is `PERCENT` or `PERCENT MESSAGE`. A script may write as many as it
//! likes: the first is told at once, later ones at most every [`INTERVAL`], and the last one always is.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::text::shorten;

/// The longest message, in characters: it stands in one line, beside a bar.
pub const MAX_MESSAGE_CHARS: usize = 160;
/// The longest line of the channel, in bytes: what a writer may write at once, whole (`PIPE_BUF` is 4096
/// or more).
pub const MAX_LINE_BYTES: usize = 1024;
/// The time between two reports: people see no more, and each one goes to all who watch.
pub const INTERVAL: Duration = Duration::from_millis(250);

/// How far a script is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100.
    pub percent: u8,
    /// What it does; may be empty.
    pub message: String,
}

impl Progress {
    /// A progress; `None` when there are more than 100 percent. The message is cut to its limit.
    pub fn new(percent: u8, message: &str) -> Option<Self> {
        let message = shorten(message.trim(), MAX_MESSAGE_CHARS);
        (percent <= 100).then_some(Self { percent, message })
    }

    /// A line of the channel, without its newline.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?.trim();
        let (percent, message) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let percent = percent.strip_suffix('%').unwrap_or(percent);
        Self::new(percent.parse().ok()?, message)
    }

    /// As a line of the channel.
    pub fn line(&self) -> String {
        format!("{} {}\n", self.percent, self.message)
    }
}

/// Decides when progress is told.
#[derive(Debug, Default)]
pub struct Pace {
    latest: Option<Progress>,
    is_untold: bool,
    told_at: Option<Instant>,
}

impl Pace {
    /// The script is here now.
    pub fn reached(&mut self, progress: Progress) {
        if self.latest.as_ref() != Some(&progress) {
            self.latest = Some(progress);
            self.is_untold = true;
        }
    }

    /// When [`Pace::due`] has something; `None`: not before the next one is reached.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.is_untold.then(|| self.told_at.map_or(now, |told| told + INTERVAL))
    }

    /// What is to be told now.
    pub fn due(&mut self, now: Instant) -> Option<Progress> {
        if self.deadline(now)? > now {
            return None;
        }
        self.is_untold = false;
        self.told_at = Some(now);
        self.latest.clone()
    }

    /// Where it was at the end.
    pub fn last(self) -> Option<Progress> {
        self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_percentage_and_may_have_a_message() {
        let parse = |line: &str| Progress::parse(line.as_bytes()).map(|p| (p.percent, p.message));
        let some = |percent, message: &str| Some((percent, message.to_owned()));
        assert_eq!(parse("40 copying files"), some(40, "copying files"));
        assert_eq!(parse("100"), some(100, ""));
        assert_eq!(parse(" 0%\tx\u{1b}[31m"), some(0, "x [31m"));
        for bad in ["", "x", "101", "-1", "40.5", "256"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(Progress::parse(b"1 \xff"), None);
        let long = Progress::new(1, &"ä".repeat(500)).unwrap();
        assert!(long.line().len() <= MAX_LINE_BYTES);
        assert_eq!(Progress::parse(long.line().as_bytes()), Some(long));
    }

    #[test]
    fn the_first_is_told_at_once_then_so_often_and_the_last_always() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut told = Vec::new();
        for step in 0..=1000_u32 {
            // One each millisecond.
            let now = start + Duration::from_millis(step.into());
            pace.reached(Progress::new(u8::try_from(step / 10).unwrap(), "").unwrap());
            told.extend(pace.due(now).map(|progress| progress.percent));
        }
        assert_eq!(told, [0, 25, 50, 75, 100]);
        pace.reached(Progress::new(99, "").unwrap());
        let deadline = pace.deadline(start).unwrap();
        assert_eq!(deadline, start + Duration::from_secs(1) + INTERVAL);
        assert_eq!(pace.due(deadline).unwrap().percent, 99);
        assert_eq!((pace.deadline(deadline), pace.due(deadline)), (None, None));
    }
}
