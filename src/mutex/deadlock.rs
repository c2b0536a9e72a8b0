//! Pure: finding a cycle of waits among the lines of all mutexes.
//!
//! A claim that is made under mutexes which its own script or wrapper already holds may wait, in the
//! end, for itself. Only such a nested claim can close a cycle: a new ticket is the last of its line,
//! so nobody waits for it, but somebody may wait for what its maker holds.
//!
//! 1. A ticket waits for tickets before it, as the policy has it: one that is to be alone (exclusive, or at
//!    most one) for all, any other for those that are. What it waits for may wait itself. For a place
//!    among at most N one of several must end: it waits for itself when none of them can.
//! 2. A ticket ends only after all that is claimed under it: its holder runs that command.
//! 3. A process that claims several mutexes at once gives none back before it has all.
//! 4. A cycle is stable: seen in two looks, it is none of a moment's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::policy::{self, Ahead};
use super::status::{Standing, Status};
use super::{Mode, MutexName, Party};

/// The variable in which a protected command finds the tickets that it runs under.
pub const HELD_VARIABLE: &str = "BATON_MUTEX_HELD";

/// A ticket of a mutex: `log:1795624862042`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Held {
    /// The mutex.
    pub mutex: MutexName,
    /// The ticket's number.
    pub ticket: u64,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.mutex, self.ticket)
    }
}

impl FromStr for Held {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (mutex, ticket) = text.rsplit_once(':').ok_or(())?;
        Ok(Self { mutex: mutex.parse().map_err(drop)?, ticket: ticket.parse().map_err(drop)? })
    }
}

/// Tickets as the variable has them.
pub fn to_variable(held: &[Held]) -> String {
    held.iter().map(Held::to_string).collect::<Vec<_>>().join(",")
}

/// Tickets from the variable; what is not understood is left out.
pub fn from_variable(text: &str) -> Vec<Held> {
    text.split(',').filter_map(|held| held.parse().ok()).collect()
}

/// A step of a cycle: somebody waits for a mutex that somebody else holds or is next to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The mutex.
    pub mutex: MutexName,
    /// Who waits.
    pub waiter: Party,
    /// For whom.
    pub holder: Party,
}

/// The cycle that the tickets of `mine` close: they wait, in the end, for a ticket of `within`, under
/// which they were made.
pub fn cycle(lines: &[Status], mine: &[Held], within: &[Held]) -> Option<Vec<Step>> {
    let waits = Waits::among(lines);
    waits.way(&waits.stuck(), mine, within)
}

/// A ticket: the place of its line among the lines, and its own in that.
type At = (usize, usize);

struct Waits<'a> {
    lines: &'a [Status],
    /// What was made under a ticket (rule 2).
    nested: BTreeMap<(&'a MutexName, u64), Vec<At>>,
    /// The tickets of one claim (rule 3).
    siblings: BTreeMap<&'a str, Vec<At>>,
}

impl<'a> Waits<'a> {
    fn among(lines: &'a [Status]) -> Self {
        let (nested, siblings) = (BTreeMap::new(), BTreeMap::new());
        let mut waits = Self { lines, nested, siblings };
        for at in waits.all() {
            let who = &waits.standing(at).who;
            for under in &who.within {
                waits.nested.entry((&under.mutex, under.ticket)).or_default().push(at);
            }
            if !who.claim.is_empty() {
                waits.siblings.entry(who.claim.as_str()).or_default().push(at);
            }
        }
        waits
    }

    fn all(&self) -> Vec<At> {
        let places = |(line, status): (usize, &Status)| {
            (0..status.line.len()).map(move |place| (line, place))
        };
        self.lines.iter().enumerate().flat_map(places).collect()
    }

    fn standing(&self, (line, place): At) -> &'a Standing {
        &self.lines[line].line[place]
    }

    fn find(&self, held: &Held) -> Option<At> {
        let line = self.lines.iter().position(|line| line.name == held.mutex)?;
        let tickets = &self.lines[line].line;
        Some((line, tickets.iter().position(|standing| standing.ticket == held.ticket)?))
    }

    fn nested(&self, at: At) -> &[At] {
        let key = (&self.lines[at.0].name, self.standing(at).ticket);
        self.nested.get(&key).map_or(&[], Vec::as_slice)
    }

    fn siblings(&self, at: At) -> &[At] {
        self.siblings.get(self.standing(at).who.claim.as_str()).map_or(&[], Vec::as_slice)
    }

    /// The tickets that are left when all have ended that can.
    fn stuck(&self) -> BTreeSet<At> {
        let mut left: BTreeSet<At> = self.all().into_iter().collect();
        let mut admitted = BTreeSet::new();
        loop {
            let before = (left.len(), admitted.len());
            for (line, status) in self.lines.iter().enumerate() {
                let mut ahead = Ahead::default();
                for (place, standing) in status.line.iter().enumerate() {
                    if !ahead.admits(Mode::Shared) {
                        break;
                    }
                    let at = (line, place);
                    if !left.contains(&at) {
                        continue;
                    }
                    if ahead.admits(standing.mode) {
                        admitted.insert(at);
                        let have_it = self.siblings(at).iter().all(|at| admitted.contains(at));
                        if have_it && !self.nested(at).iter().any(|at| left.contains(at)) {
                            left.remove(&at);
                            continue;
                        }
                    }
                    ahead = ahead.and(standing.mode);
                }
            }
            if before == (left.len(), admitted.len()) {
                return left;
            }
        }
    }

    /// The shortest way from a ticket of `mine` to one of `within`, among those that are stuck.
    fn way(&self, stuck: &BTreeSet<At>, mine: &[Held], within: &[Held]) -> Option<Vec<Step>> {
        let stuck_of = |held: &[Held]| -> BTreeSet<At> {
            held.iter().filter_map(|held| self.find(held)).filter(|at| stuck.contains(at)).collect()
        };
        let (starts, ends) = (stuck_of(mine), stuck_of(within));
        let mut queue: VecDeque<At> = starts.iter().copied().collect();
        let mut from: BTreeMap<At, Option<At>> = starts.iter().map(|at| (*at, None)).collect();
        while let Some(at) = queue.pop_front() {
            for next in self.awaited_by(at, stuck) {
                if from.contains_key(&next) {
                    continue;
                }
                from.insert(next, Some(at));
                if ends.contains(&next) {
                    return Some(self.steps(&from, next));
                }
                queue.push_back(next);
            }
        }
        None
    }

    /// The stuck tickets for which a stuck one waits.
    fn awaited_by(&self, at: At, stuck: &BTreeSet<At>) -> Vec<At> {
        let (line, place) = at;
        let own = self.standing(at).mode;
        let mut before: Vec<At> = stuck.range((line, 0)..(line, place)).copied().collect();
        let ahead =
            before.iter().fold(Ahead::default(), |ahead, at| ahead.and(self.standing(*at).mode));
        let must_end = |at: &At| policy::excludes(self.standing(*at).mode, own);
        if ahead.admits(own) {
            before.clear();
        } else if before.iter().any(must_end) {
            before.retain(must_end);
        }
        let others = self.siblings(at).iter().chain(self.nested(at));
        before.extend(others.filter(|other| **other != at && stuck.contains(other)));
        before
    }

    /// The waits in a line on the way that ends at a ticket.
    fn steps(&self, from: &BTreeMap<At, Option<At>>, end: At) -> Vec<Step> {
        let (mut steps, mut holder) = (Vec::new(), end);
        while let Some(Some(waiter)) = from.get(&holder).copied() {
            if waiter.0 == holder.0 && waiter.1 > holder.1 {
                let mutex = self.lines[waiter.0].name.clone();
                let (waiter, holder) = (party(self.standing(waiter)), party(self.standing(holder)));
                steps.push(Step { mutex, waiter, holder });
            }
            holder = waiter;
        }
        steps.reverse();
        steps
    }
}

fn party(standing: &Standing) -> Party {
    Party { who: standing.who.clone(), exclusive: standing.mode.is_exclusive() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutex::Claimant;

    fn held(text: &str) -> Held {
        text.parse().unwrap()
    }

    /// A line: `a: 1x@10 2s@11<b:1 32@12`: ticket 1, exclusive, of claim 10; ticket 2, shared, of claim 11,
    /// made under ticket 1 of b; ticket 3, at most 2.
    fn line(text: &str) -> Status {
        let (name, line) = text.split_once(": ").unwrap();
        let standing = |text: &str| {
            let (text, within) = text.split_once('<').unwrap_or((text, ""));
            let (ticket, pid) = text.split_once('@').unwrap();
            let (number, mode) = ticket.split_at(ticket.len() - 1);
            let mode = match mode {
                "x" => Mode::Exclusive,
                "s" => Mode::Shared,
                n => Mode::AtMost(n.parse().unwrap()),
            };
            let within = from_variable(within);
            let who = Claimant { claim: pid.to_owned(), within, ..Claimant::default() };
            Standing { ticket: number.parse().unwrap(), mode, who }
        };
        let line = line.split(' ').map(standing).collect();
        Status { name: name.parse().unwrap(), line, holding: 1, foreign: Vec::new() }
    }

    /// The mutexes of the cycle, in order.
    fn find(lines: &[&str], mine: &str, within: &str) -> Vec<String> {
        let lines: Vec<Status> = lines.iter().map(|text| line(text)).collect();
        let found = cycle(&lines, &from_variable(mine), &from_variable(within));
        found.unwrap_or_default().iter().map(|step| step.mutex.to_string()).collect()
    }

    #[test]
    fn a_claim_under_its_own_mutex_waits_for_itself() {
        assert_eq!(find(&["a: 1x@10 2x@11<a:1"], "a:2", "a:1"), ["a"]);
        assert_eq!(find(&["a: 1s@10 2x@11<a:1"], "a:2", "a:1"), ["a"]);
        assert!(find(&["a: 1s@10 2s@11<a:1"], "a:2", "a:1").is_empty());
    }

    #[test]
    fn two_that_nest_in_opposite_order_are_a_cycle_and_one_order_is_none() {
        let lines = ["a: 1x@10 2x@21<b:1", "b: 1x@20 2x@11<a:1"];
        assert_eq!(find(&lines, "b:2", "a:1"), ["b", "a"]);
        let same_order = ["a: 1x@10 2x@20", "b: 1x@11<a:1"];
        assert!(find(&same_order, "b:1", "a:1").is_empty());
    }

    #[test]
    fn a_longer_cycle_is_found_too() {
        let lines = ["a: 1x@10 2x@31<c:1", "b: 1x@20 2x@11<a:1", "c: 1x@30 2x@21<b:1"];
        assert_eq!(find(&lines, "b:2", "a:1"), ["b", "c", "a"]);
    }

    #[test]
    fn rule_1_a_shared_claim_waits_only_for_exclusive_ones() {
        let lines = ["a: 1x@10 2x@21<b:1", "b: 1s@20 2s@11<a:1"];
        assert!(find(&lines, "b:2", "a:1").is_empty());
    }

    #[test]
    fn rule_1_what_is_waited_for_may_wait_itself() {
        // A shared claim under a shared one, with an exclusive one in between.
        assert_eq!(find(&["a: 1s@10 2x@20 3s@11<a:1"], "a:3", "a:1"), ["a", "a"]);
        // It waits for 20, that for 30, which wants b under a.
        let lines = ["a: 1s@30 2x@20 3s@11<b:1", "b: 1x@10 2x@31<a:1"];
        assert_eq!(find(&lines, "a:3", "b:1"), ["a", "a", "b"]);
    }

    #[test]
    fn rule_1_for_a_place_among_at_most_n_one_that_can_end_is_enough() {
        // Both places are its own tree's.
        assert_eq!(find(&["a: 12@10 22@11<a:1 32@12<a:1,a:2"], "a:3", "a:1,a:2"), ["a"]);
        assert!(find(&["a: 12@10 22@20 32@12<a:1"], "a:3", "a:1").is_empty());
        // The other one wants b: of this tree, or of one that ends.
        let other = "a: 12@10 22@20 32@12<a:1,b:1";
        assert_eq!(find(&[other, "b: 1x@13 2x@21<a:2"], "a:3", "a:1,b:1"), ["a"]);
        let elsewhere = ["a: 12@10 22@20 32@12<a:1", "b: 1x@30 2x@21<a:2"];
        assert!(find(&elsewhere, "a:3", "a:1").is_empty());
        // The last of two to close it is the one that did not wait for itself yet.
        assert_eq!(find(&[other, "b: 1x@13 2x@21<a:2"], "b:2", "a:2"), ["b", "a"]);
    }

    #[test]
    fn who_waits_behind_others_that_wait_for_themselves_does_not() {
        let lines = ["a: 1x@10 2x@11<a:1 3x@21<b:1", "b: 1x@20"];
        assert!(find(&lines, "a:3", "b:1").is_empty());
    }

    #[test]
    fn ten_thousand_in_a_line_are_looked_at_quickly() {
        let waiting = (2..10_000).map(|ticket| format!("{ticket}x@{ticket}"));
        let line = waiting.fold("a: 1s@1".to_owned(), |line, next| line + " " + &next);
        assert_eq!(find(&[&format!("{line} 10000s@x<a:1")], "a:10000", "a:1").len(), 2);
        assert!(find(&[&format!("{line} 10000s@x<b:1"), "b: 1x@1"], "a:10000", "b:1").is_empty());
    }

    #[test]
    fn rule_3_who_claims_several_at_once_keeps_the_first_while_it_waits_for_the_second() {
        // Process 20 wants a and x at once, has a, waits for x; process 10 holds x and wants a.
        let lines = ["a: 1x@20 2x@11<x:1", "x: 1x@10 2x@20"];
        assert_eq!(find(&lines, "a:2", "x:1"), ["a", "x"]);
    }

    #[test]
    fn what_the_variable_says_survives_and_nonsense_is_left_out() {
        let all = [held("log:3"), held("key.a_3A:17")];
        assert_eq!(from_variable(&to_variable(&all)), all);
        assert_eq!(from_variable("log:3,,x,../y:1,b:x"), [held("log:3")]);
    }
}
