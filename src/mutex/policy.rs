//! Pure: who may hold a mutex. The line on disk and the agent's queue both ask here.
//!
//! There is one rule (rule 3 of [`crate::mutex`]): *a claim may hold when fewer claims are before it
//! than the smallest limit among them and itself.* With the limits 1 (exclusive), N (at most N) and
//! none (shared) it follows that
//!
//! - an exclusive claim holds alone, and who comes after it waits;
//! - while a claim with at most N holds, at most N do;
//! - the first in line may always hold, so there is always progress;
//! - who may hold has nobody before it who may not: nobody overtakes, nobody starves;
//! - others leaving or arriving never takes a permission back.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// How a mutex is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Alone.
    Exclusive,
    /// Beside any number of others that are not exclusive.
    Shared,
    /// Shared, and at most so many hold while this claim does, itself included.
    AtMost(NonZeroU32),
}

impl Mode {
    /// The largest N of "at most N": a waiter sleeps on up to N tickets at once.
    pub const MAX_AT_MOST: u32 = 256;

    /// How many claims may hold while this one does.
    fn limit(self) -> usize {
        match self {
            Self::Exclusive => 1,
            Self::Shared => usize::MAX,
            Self::AtMost(n) => usize::try_from(n.get()).unwrap_or(usize::MAX),
        }
    }

    /// Whether it claims to be alone.
    pub fn is_exclusive(self) -> bool {
        self == Self::Exclusive
    }
}

/// The places in `ahead` (live claims in order) of which one must end before a claim of `own` mode
/// behind them may hold. Empty: it may hold now.
///
/// As long as all of the returned places live the claim can't hold, whatever else ends; so a waiter
/// may sleep on just these, and no set with this property is smaller.
pub fn blockers(ahead: &[Mode], own: Mode) -> Vec<usize> {
    let strictest = ahead.iter().copied().chain([own]).enumerate().min_by_key(|(place, mode)| {
        // Of equal limits the last one: it ends last, so its sleeper is woken least.
        (mode.limit(), usize::MAX - place)
    });
    let Some((place, mode)) = strictest.filter(|(_, mode)| ahead.len() >= mode.limit()) else {
        return Vec::new();
    };
    // The strictest claim allows limit - 1 others beside it. Unless it ends itself, one of any
    // `limit` places must end; the highest end last.
    let mut blockers: Vec<usize> =
        (0..ahead.len()).rev().filter(|at| *at != place).take(mode.limit()).collect();
    if place < ahead.len() {
        blockers.truncate(mode.limit() - 1);
        blockers.push(place);
    }
    blockers.sort_unstable();
    blockers
}

/// Whether a claim can't hold as long as another one before it lives, whatever else there is.
pub fn excludes(before: Mode, own: Mode) -> bool {
    !blockers(&[before], own).is_empty()
}

/// [`blockers`] among those of `ahead` that live. Whether a claim lives costs a look at it, so `lives` is
/// asked about as few as possible: behind a thousand waiters an exclusive claim asks about the last one.
///
/// # Errors
/// What `lives` says.
pub fn living_blockers<E>(
    ahead: &[Mode],
    own: Mode,
    mut lives: impl FnMut(usize) -> Result<bool, E>,
) -> Result<Vec<usize>, E> {
    let mut order: Vec<usize> = (0..ahead.len()).rev().collect();
    if !own.is_exclusive() {
        // The strictest first, of equal ones the last: what blocks is met early.
        order.sort_by_key(|place| ahead[*place].limit());
    }
    let (mut living, mut smallest) = (Vec::new(), own.limit());
    for (asked, place) in order.iter().enumerate() {
        let limit = smallest.min(ahead[*place].limit());
        if living.len() >= smallest || living.len() + (order.len() - asked) < limit {
            break;
        }
        if lives(*place)? {
            living.push(*place);
            smallest = limit;
        }
    }
    living.sort_unstable();
    let modes: Vec<Mode> = living.iter().map(|place| ahead[*place]).collect();
    Ok(blockers(&modes, own).into_iter().map(|place| living[place]).collect())
}

/// The claims before a place in the line, as far as the rule needs them: for walking a long line
/// once.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    count: usize,
    strictest: usize,
}

impl Default for Ahead {
    /// The front of the line.
    fn default() -> Self {
        Self { count: 0, strictest: usize::MAX }
    }
}

impl Ahead {
    /// Whether a claim behind these may hold.
    pub fn admits(self, own: Mode) -> bool {
        self.count < self.strictest.min(own.limit())
    }

    /// These and one more.
    #[must_use]
    pub fn and(self, next: Mode) -> Self {
        Self { count: self.count + 1, strictest: self.strictest.min(next.limit()) }
    }
}

/// How many claims, from the front of the line on, may hold.
pub fn holding(line: &[Mode]) -> usize {
    let mut ahead = Ahead::default();
    let admitted = line.iter().take_while(|own| {
        let admits = ahead.admits(**own);
        ahead = ahead.and(**own);
        admits
    });
    admitted.count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mode(text: char) -> Mode {
        match text {
            'x' => Mode::Exclusive,
            's' => Mode::Shared,
            n => Mode::AtMost(NonZeroU32::new(n.to_digit(10).unwrap()).unwrap()),
        }
    }

    fn line(text: &str) -> Vec<Mode> {
        text.chars().map(mode).collect()
    }

    fn may_hold(line: &[Mode], place: usize) -> bool {
        blockers(&line[..place], line[place]).is_empty()
    }

    /// Who may hold, as a string of the same length: `H` may, `.` may not.
    fn holders(text: &str) -> String {
        let line = line(text);
        (0..line.len()).map(|i| if may_hold(&line, i) { 'H' } else { '.' }).collect()
    }

    #[test]
    fn the_rule_by_table() {
        for (claims, expected) in [
            ("x", "H"),
            ("s", "H"),
            ("1", "H"),
            ("xx", "H."),
            ("xs", "H."),
            ("sx", "H."),
            ("ss", "HH"),
            ("ssxss", "HH..."), // the five projects
            ("xss", "H.."),
            ("sxs", "H.."),
            ("222", "HH."),
            ("2s2", "HH."),
            ("s2s", "HH."), // nobody joins beyond the second's limit
            ("1s", "H."),
            ("s1", "H."),
            ("sss2", "HHH."),
            ("sss2s", "HHH.."), // the last would overtake the counted one
            ("s3ss", "HHH."),
        ] {
            assert_eq!(holders(claims), expected, "{claims}");
        }
    }

    #[test]
    fn a_waiter_sleeps_on_what_must_end() {
        for (ahead, own, expected) in [
            ("s", 'x', vec![0]),
            ("sss", 'x', vec![2]),
            ("sxs", 's', vec![1]),
            ("xsx", 's', vec![2]),
            ("sss", '2', vec![1, 2]),
            ("s2s", 's', vec![1, 2]),
            ("2ss", 's', vec![0, 2]),
            ("ss", 's', vec![]),
        ] {
            assert_eq!(blockers(&line(ahead), mode(own)), expected, "{own} behind {ahead}");
        }
    }

    #[test]
    fn few_are_asked_whether_they_live() {
        let asked = |ahead: &str, own| {
            let mut asked = Vec::new();
            let lives = |place| {
                asked.push(place);
                Ok::<_, ()>(true)
            };
            living_blockers(&line(ahead), mode(own), lives).unwrap();
            asked
        };
        assert_eq!(asked("xxxxxxxx", 'x'), [7]);
        assert_eq!(asked("xsssssss", 'x'), [7]);
        assert_eq!(asked("xsssssss", 's'), [0]);
        assert_eq!(asked("ssssssss", '2'), [7, 6]);
        assert!(asked("ssssssss", 's').is_empty());
        assert!(asked("ss", '3').is_empty());
    }

    fn any_line() -> impl Strategy<Value = Vec<Mode>> {
        let one = prop_oneof![
            2 => Just(Mode::Exclusive),
            4 => Just(Mode::Shared),
            3 => (1..5_u32).prop_map(|n| Mode::AtMost(NonZeroU32::new(n).unwrap())),
        ];
        prop::collection::vec(one, 1..12)
    }

    proptest! {
        #[test]
        fn rule_3_holders_are_a_prefix_and_within_every_limit(line in any_line()) {
            let holders: Vec<usize> = (0..line.len()).filter(|i| may_hold(&line, *i)).collect();
            // Progress, and nobody overtakes.
            prop_assert!(!holders.is_empty());
            prop_assert_eq!(&holders, &(0..holders.len()).collect::<Vec<_>>());
            prop_assert_eq!(holding(&line), holders.len());
            // Nobody has more company than it allows.
            for holder in &holders {
                prop_assert!(holders.len() <= line[*holder].limit());
            }
            // Nobody waits without need: one more holder would break a limit.
            let more = holders.len() + 1;
            if more <= line.len() {
                prop_assert!(line[..more].iter().any(|m| m.limit() < more));
            }
        }

        #[test]
        fn living_blockers_are_those_of_the_living(line in any_line(), dead in any::<u16>()) {
            let (own, ahead) = line.split_last().unwrap();
            let lives = |place: usize| dead >> place & 1 == 0;
            let living: Vec<usize> = (0..ahead.len()).filter(|place| lives(*place)).collect();
            let modes: Vec<Mode> = living.iter().map(|place| ahead[*place]).collect();
            let found = living_blockers(ahead, *own, |place| Ok::<_, ()>(lives(place))).unwrap();
            prop_assert_eq!(found.is_empty(), blockers(&modes, *own).is_empty());
            prop_assert!(found.iter().all(|place| lives(*place)));
            // Rule 4: nothing helps while these live.
            let held_up: Vec<Mode> = found.iter().map(|place| ahead[*place]).collect();
            prop_assert_eq!(found.is_empty(), blockers(&held_up, *own).is_empty());
        }

        #[test]
        fn rule_3_a_permission_is_never_taken_back(line in any_line(), gone in any::<u16>()) {
            let last = line.len() - 1;
            if may_hold(&line, last) {
                let left: Vec<Mode> = (0..last).filter(|i| gone >> i & 1 == 0)
                    .map(|i| line[i]).collect();
                prop_assert!(blockers(&left, line[last]).is_empty());
            }
        }

        #[test]
        fn rule_4_nothing_helps_while_the_blockers_live(line in any_line(), gone in any::<u16>()) {
            let (own, ahead) = line.split_last().unwrap();
            let blocked_by = blockers(ahead, *own);
            if !blocked_by.is_empty() {
                let left: Vec<Mode> = (0..ahead.len())
                    .filter(|i| blocked_by.contains(i) || gone >> i & 1 == 0)
                    .map(|i| ahead[i]).collect();
                prop_assert!(!blockers(&left, *own).is_empty());
            }
        }
    }
}
