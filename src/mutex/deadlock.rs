//! Pure: finding a cycle of waits among the lines of all mutexes.
//!
//! A claim that is made under mutexes which its own script or wrapper already holds may wait, in the
//! end, for itself. Only such a nested claim can close a cycle: a new ticket is the last of its line,
//! so nobody waits for it, but somebody may wait for what its maker holds.
//!
//! 1. A ticket waits for every ticket before it that must end first: one that is to be alone (exclusive,
//!    or at most one) for all, any other for those that are. Which of several must end for a place
//!    among at most N is open, so that is no cycle yet.
//! 2. A ticket ends only after all that is claimed under it: its holder runs that command.
//! 3. A process that claims several mutexes at once gives none back before it has all.
//! 4. A cycle is stable: seen in two looks, it is none of a moment's.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::status::{Standing, Status};
use super::{MutexName, Party, policy};

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
    let search = Search { lines, within };
    let mut seen = BTreeSet::new();
    mine.iter().find_map(|held| search.from(held, &mut seen))
}

struct Search<'a> {
    lines: &'a [Status],
    within: &'a [Held],
}

impl Search<'_> {
    /// A way from a waiting ticket to one of `within`.
    fn from(&self, waiter: &Held, seen: &mut BTreeSet<Held>) -> Option<Vec<Step>> {
        if !seen.insert(waiter.clone()) {
            return None;
        }
        let line = self.lines.iter().find(|line| line.name == waiter.mutex)?;
        let place = line.line.iter().position(|standing| standing.ticket == waiter.ticket)?;
        let own = &line.line[place];
        let must_end = |other: &&Standing| policy::excludes(other.mode, own.mode);
        for other in line.line[..place].iter().filter(must_end) {
            let blocker = Held { mutex: line.name.clone(), ticket: other.ticket };
            let step =
                || Step { mutex: line.name.clone(), waiter: party(own), holder: party(other) };
            if self.within.contains(&blocker) {
                return Some(vec![step()]);
            }
            for next in self.awaited_by(&blocker, other) {
                if let Some(rest) = self.from(&next, seen) {
                    return Some([step()].into_iter().chain(rest).collect());
                }
            }
        }
        None
    }

    /// The tickets that must hold and end before this one can (rules 2 and 3).
    fn awaited_by(&self, ticket: &Held, standing: &Standing) -> Vec<Held> {
        let all = self.lines.iter().flat_map(|line| {
            line.line.iter().map(|s| (Held { mutex: line.name.clone(), ticket: s.ticket }, s))
        });
        let awaited = all.filter(|(other, s)| {
            let sibling = s.who.claim == standing.who.claim && !s.who.claim.is_empty();
            let sibling = sibling && other != ticket;
            sibling || s.who.within.contains(ticket)
        });
        awaited.map(|(other, _)| other).collect()
    }
}

fn party(standing: &Standing) -> Party {
    Party { who: standing.who.clone(), exclusive: standing.mode.is_exclusive() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutex::{Claimant, Mode};

    fn held(text: &str) -> Held {
        text.parse().unwrap()
    }

    /// A line: `a: 1x@10 2s@11<b:1`: ticket 1, exclusive, of claim 10; ticket 2, shared, of claim 11,
    /// made under ticket 1 of b.
    fn line(text: &str) -> Status {
        let (name, line) = text.split_once(": ").unwrap();
        let standing = |text: &str| {
            let (text, within) = text.split_once('<').unwrap_or((text, ""));
            let (ticket, pid) = text.split_once('@').unwrap();
            let (number, mode) = ticket.split_at(ticket.len() - 1);
            let mode = if mode == "x" { Mode::Exclusive } else { Mode::Shared };
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
