//! Pure: which scripts that are done go now, and when to look again. Time is an argument.
//!
//! 1. What ended longer ago than `max_age` goes; and so many of the oldest that no more than
//!    `max_scripts` and `max_bytes` stay.
//! 2. The oldest goes first; oldest is what ended first.
//! 3. What ended less than `min_age` ago stays, whatever the limits say.

use std::time::Duration;

use jiff::Timestamp;

use crate::config::Retention;
use crate::store::Kept;

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// How many of the oldest go.
    pub(super) go: usize,
    /// In what time the next one may have to go, when nothing else ends; `None`: never.
    pub(super) again: Option<Duration>,
}

/// Looks at what is kept. Of the oldest only some are known: when all of those go, the next are to be
/// looked at at once.
pub(super) fn judge(limits: &Retention, kept: &Kept, now: Timestamp) -> Verdict {
    let (mut count, mut bytes) = (kept.count, kept.bytes);
    for (go, oldest) in kept.oldest.iter().enumerate() {
        // A clock that went back makes nobody old.
        let age = Duration::try_from(now - oldest.ended_at).unwrap_or_default();
        let too_many = count > limits.max_scripts || bytes > limits.max_bytes;
        let young = limits.min_age.saturating_sub(age);
        if too_many && !young.is_zero() {
            return Verdict { go, again: Some(young) };
        }
        let left = limits.max_age.map(|max_age| max_age.saturating_sub(age));
        if !too_many && left != Some(Duration::ZERO) {
            return Verdict { go, again: left };
        }
        count = count.saturating_sub(1);
        bytes = bytes.saturating_sub(oldest.bytes);
    }
    let again = (count > 0 && !kept.oldest.is_empty()).then_some(Duration::ZERO);
    Verdict { go: kept.oldest.len(), again }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Oldest;

    /// Scripts that ended at these seconds, each with its bytes.
    fn kept(ended: &[(i64, u64)]) -> Kept {
        let oldest = |(seq, (second, bytes)): (u64, &(i64, u64))| Oldest {
            id: None,
            seq,
            ended_at: Timestamp::from_second(*second).unwrap(),
            bytes: *bytes,
        };
        Kept {
            count: u64::try_from(ended.len()).unwrap(),
            bytes: ended.iter().map(|(_, bytes)| bytes).sum(),
            oldest: (1..).zip(ended).map(oldest).collect(),
        }
    }

    fn limits(max_age: u64, max_scripts: u64, max_bytes: u64, min_age: u64) -> Retention {
        let seconds = Duration::from_secs;
        Retention {
            max_age: Some(seconds(max_age)),
            max_scripts,
            max_bytes,
            min_age: seconds(min_age),
        }
    }

    #[test]
    fn rules_1_to_3_as_a_table() {
        let three = kept(&[(10, 5), (20, 5), (30, 5)]);
        let now = Timestamp::from_second(40).unwrap();
        for (limits, go, again) in [
            (limits(1000, 9, 99, 0), 0, Some(970)),
            (limits(30, 9, 99, 0), 1, Some(10)),
            (limits(1000, 2, 99, 0), 1, Some(980)),
            (limits(1000, 9, 10, 0), 1, Some(980)),
            (limits(1000, 9, 9, 0), 2, Some(990)),
            (limits(1000, 0, 99, 0), 3, None),
            (limits(5, 9, 99, 0), 3, None),
            // Ten seconds ago is too young.
            (limits(1000, 0, 99, 11), 2, Some(1)),
            (limits(1000, 0, 99, 10), 3, None),
            (limits(1000, 0, 99, 100), 0, Some(70)),
        ] {
            let again = again.map(Duration::from_secs);
            assert_eq!(judge(&limits, &three, now), Verdict { go, again }, "{limits:?}");
        }
    }

    #[test]
    fn only_some_of_the_oldest_are_known() {
        let some = Kept { count: 100, bytes: 500, ..kept(&[(10, 5), (20, 5)]) };
        let now = Timestamp::from_second(40).unwrap();
        let verdict = judge(&limits(1000, 50, 999, 0), &some, now);
        assert_eq!(verdict, Verdict { go: 2, again: Some(Duration::ZERO) });
    }

    #[test]
    fn without_an_age_and_with_nothing_nobody_looks_again() {
        let for_ever = Retention { max_age: None, ..limits(0, 9, 99, 0) };
        let now = Timestamp::from_second(40).unwrap();
        let nothing = Verdict { go: 0, again: None };
        assert_eq!(judge(&for_ever, &kept(&[(10, 5)]), now), nothing);
        assert_eq!(judge(&limits(1, 1, 1, 0), &kept(&[]), now), nothing);
        // The clock went back: it ended in the future.
        assert_eq!(judge(&limits(5, 9, 99, 0), &kept(&[(90, 5)]), now).go, 0);
    }
}
