//! What processes under mutexes did, in the order of the lines of one file, and whether it was right.
//! No I/O, no clock: every line was appended by one write, so the file is the order.
//!
//! ```text
//! start 7              claim 7 is about to be made
//! enter log 41 x 7     7 holds `log` with fencing number 41; x alone, s shared, 3 at most 3;
//!                      number - for who holds the plain lock without baton
//! leave 7              7 is about to end, and holds nothing soon
//! dying 7              7 may be ended from now on: it counts no more as one that holds
//! orphaned 7           the wrapper of 7 is killed, and only that: 7 counts until it leaves
//! ```
//!
//! A claim is *there* from `enter` to `leave` or `dying`. What must hold of each entry:
//!
//! 1. Exclusion: no more are there than the strictest of them allows, the one that enters included.
//!    Who has no number is counted only by those who would be alone: baton can't see it.
//! 2. Order: those before it in line are those with smaller numbers that are there, and those that
//!    enter later, since they were in line already. They must be fewer than the strictest of them
//!    and of the entering one allows (rule 3 of the mutex).
//! 3. Numbers: none twice in a mutex, and none smaller than one that had entered before the claim's
//!    start.
//! 4. Ends: who entered leaves, unless it was dying.

#![allow(unreachable_pub, reason = "a module of tests")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Names a claim.
pub type Token = u64;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// A line that nobody writes.
    Torn(String),
    /// Rule 1: it entered while these were there.
    Overlap { mutex: String, entered: Token, there: Vec<Token> },
    /// Rule 2: it entered before these had, or had ended.
    Overtaken { mutex: String, entered: Token, before: Vec<u64> },
    /// Rule 3: the number was given before.
    Twice { mutex: String, number: u64 },
    /// Rule 3: the number is smaller than that of an earlier holder.
    Shrank { mutex: String, number: u64, earlier: u64 },
    /// Rule 4.
    NeverLeft(Token),
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Report {
    pub problems: Vec<Problem>,
    /// Entries into a mutex.
    pub entries: usize,
    /// Entries into a mutex in which somebody was.
    pub together: usize,
    /// Claims that went on to their end after their wrapper was killed.
    pub outlived: usize,
    /// The claims that entered.
    pub entered: HashSet<Token>,
}

/// Looks at a whole history.
pub fn check(text: &str) -> Report {
    let mut walk = Walk::default();
    let mut events = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some(event) = Event::parse(line) else {
            walk.report.problems.push(Problem::Torn(line.to_owned()));
            continue;
        };
        if let Event::Enter(Entry { mutex, number: Some(number), limit, .. }) = event {
            walk.lines.entry(mutex).or_default().to_come.insert(number, limit);
        }
        events.push((at, event));
    }
    for (at, event) in events {
        walk.step(at, &event);
    }
    walk.end()
}

#[derive(Debug)]
enum Event<'a> {
    Start(Token),
    Enter(Entry<'a>),
    Leave(Token),
    Dying(Token),
    Orphaned(Token),
}

#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    mutex: &'a str,
    number: Option<u64>,
    /// How many may be there with it, itself included.
    limit: usize,
    token: Token,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let token = words.last()?.parse().ok()?;
        match words[..] {
            ["start", _] => Some(Self::Start(token)),
            ["leave", _] => Some(Self::Leave(token)),
            ["dying", _] => Some(Self::Dying(token)),
            ["orphaned", _] => Some(Self::Orphaned(token)),
            ["enter", mutex, number, mode, _] => {
                let number = if number == "-" { None } else { Some(number.parse().ok()?) };
                let limit = match mode {
                    "x" => 1,
                    "s" => usize::MAX,
                    counted => counted.parse().ok()?,
                };
                Some(Self::Enter(Entry { mutex, number, limit, token }))
            }
            _ => None,
        }
    }
}

/// One mutex while the history is walked.
#[derive(Debug, Default)]
struct Line {
    /// Who is there: number and limit.
    there: BTreeMap<Token, (Option<u64>, usize)>,
    /// The numbers that enter later, with their limits.
    to_come: BTreeMap<u64, usize>,
    /// The numbers that entered.
    given: HashSet<u64>,
    /// The highest number that had entered at a place of the history.
    highest: Vec<(usize, u64)>,
}

impl Line {
    /// Rule 1.
    fn is_full_for(&self, number: Option<u64>, limit: usize) -> bool {
        let all = self.there.values().copied().chain([(number, limit)]);
        let is_alone = |(_, limit): (_, usize)| limit == 1;
        let numbered = all.clone().filter(|(number, _)| number.is_some());
        let strictest = numbered.clone().map(|(_, limit)| limit).min().unwrap_or(usize::MAX);
        (all.clone().any(is_alone) && all.count() > 1) || numbered.count() > strictest
    }

    fn enter(&mut self, entry: &Entry<'_>, start: Option<usize>, problems: &mut Vec<Problem>) {
        let Entry { mutex, number, limit, token } = *entry;
        let mutex = || mutex.to_owned();
        if self.is_full_for(number, limit) {
            let there = self.there.keys().copied().collect();
            problems.push(Problem::Overlap { mutex: mutex(), entered: token, there });
        }
        let Some(number) = number else {
            return;
        };
        self.to_come.remove(&number);
        if !self.given.insert(number) {
            problems.push(Problem::Twice { mutex: mutex(), number });
        }
        let there = self.there.values().filter_map(|(other, limit)| Some(((*other)?, *limit)));
        let to_come = self.to_come.range(..number).map(|(other, limit)| (*other, *limit));
        let before: BTreeMap<u64, usize> =
            there.filter(|(other, _)| *other < number).chain(to_come).collect();
        let strictest = before.values().copied().chain([limit]).min();
        if strictest.is_some_and(|strictest| before.len() >= strictest) {
            let before = before.into_keys().collect();
            problems.push(Problem::Overtaken { mutex: mutex(), entered: token, before });
        }
        // Those that had entered when its claim was not yet made.
        let earlier =
            self.highest.partition_point(|(at, _)| start.is_some_and(|start| *at < start));
        if let Some((_, earlier)) = earlier.checked_sub(1).map(|last| self.highest[last])
            && earlier > number
        {
            problems.push(Problem::Shrank { mutex: mutex(), number, earlier });
        }
    }
}

#[derive(Debug, Default)]
struct Walk<'a> {
    lines: BTreeMap<&'a str, Line>,
    starts: HashMap<Token, usize>,
    dying: HashSet<Token>,
    orphaned: HashSet<Token>,
    report: Report,
}

impl<'a> Walk<'a> {
    fn step(&mut self, at: usize, event: &Event<'a>) {
        match event {
            Event::Start(token) => {
                self.starts.insert(*token, at);
            }
            Event::Enter(entry) => self.enter(at, entry),
            Event::Leave(token) => {
                if self.remove(*token) && self.orphaned.contains(token) {
                    self.report.outlived += 1;
                }
            }
            Event::Dying(token) => {
                self.remove(*token);
                self.dying.insert(*token);
            }
            Event::Orphaned(token) => {
                // Before it enters, its wrapper was a waiter.
                if self.lines.values().any(|line| line.there.contains_key(token)) {
                    self.orphaned.insert(*token);
                }
            }
        }
    }

    fn enter(&mut self, at: usize, entry: &Entry<'a>) {
        let start = self.starts.get(&entry.token).copied();
        let line = self.lines.entry(entry.mutex).or_default();
        line.enter(entry, start, &mut self.report.problems);
        if let Some(number) = entry.number
            && line.highest.last().is_none_or(|(_, highest)| *highest < number)
        {
            line.highest.push((at, number));
        }
        self.report.entries += 1;
        self.report.together += usize::from(!line.there.is_empty());
        self.report.entered.insert(entry.token);
        if !self.dying.contains(&entry.token) {
            line.there.insert(entry.token, (entry.number, entry.limit));
        }
    }

    /// It is nowhere any more; whether it was somewhere.
    fn remove(&mut self, token: Token) -> bool {
        let removed = self.lines.values_mut().filter_map(|line| line.there.remove(&token));
        removed.count() > 0
    }

    fn end(mut self) -> Report {
        let left: BTreeSet<Token> =
            self.lines.values().flat_map(|line| line.there.keys().copied()).collect();
        self.report.problems.extend(left.into_iter().map(Problem::NeverLeft));
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<Problem> {
        check(&text.replace("; ", "\n")).problems
    }

    fn overlap(entered: Token, there: &[Token]) -> Problem {
        Problem::Overlap { mutex: "m".to_owned(), entered, there: there.to_vec() }
    }

    fn overtaken(entered: Token, before: &[u64]) -> Problem {
        Problem::Overtaken { mutex: "m".to_owned(), entered, before: before.to_vec() }
    }

    #[test]
    fn good_histories_pass() {
        for text in [
            "",
            "start 1; enter m 10 x 1; leave 1; enter m 11 x 2; leave 2",
            "enter m 10 s 1; enter m 11 s 2; enter m 12 4 3; leave 2; leave 1; leave 3",
            // Shared ones write in any order, also when one of them is counted.
            "enter m 12 2 3; enter m 10 s 1; leave 1; leave 3; enter m 13 x 4; leave 4",
            "enter m 10 2 1; enter m 11 2 2; leave 1; enter m 12 2 3; leave 2; leave 3",
            // Two mutexes know nothing of each other.
            "enter m 10 x 1; enter n 10 x 2; leave 2; leave 1",
            "enter m 10 x 1; enter n 4 x 1; leave 1; enter n 5 x 2; enter m 11 x 3; leave 2; leave 3",
            // One that is killed is not surely there, nor one that enters when its end is announced.
            "enter m 10 x 1; dying 1; enter m 11 x 2; leave 2",
            "dying 1; enter m 10 x 1; enter m 11 x 2; leave 2",
            // One without a number keeps no order, and is not counted.
            "enter m 10 2 1; enter m 11 s 2; enter m - s 9; leave 9; leave 1; leave 2",
            "enter m 10 x 1; leave 1; enter m - x 9; leave 9; enter m 11 s 2; leave 2",
            // The next to start waits in line while the first is there.
            "start 1; start 2; enter m 10 x 1; leave 1; enter m 11 x 2; leave 2; start 3; enter m 12 s 3; leave 3",
        ] {
            assert_eq!(problems(text), [], "{text}");
        }
    }

    #[test]
    fn rule_1_nobody_is_beside_one_that_is_alone() {
        assert_eq!(
            problems("enter m 10 x 1; enter m 11 x 2; leave 1; leave 2"),
            [overlap(2, &[1]), overtaken(2, &[10])]
        );
        assert_eq!(
            problems("enter m 10 s 1; enter m 11 s 2; enter m 12 x 3; leave 1; leave 2; leave 3"),
            [overlap(3, &[1, 2]), overtaken(3, &[10, 11])]
        );
        let outside = "enter m - x 9; enter m 10 s 1; leave 1; leave 9";
        assert_eq!(problems(outside), [overlap(1, &[9])]);
        let outside = "enter m 10 s 1; enter m - x 9; leave 9; leave 1";
        assert_eq!(problems(outside), [overlap(9, &[1])]);
        let outside = "enter m 10 x 1; enter m - s 9; leave 9; leave 1";
        assert_eq!(problems(outside), [overlap(9, &[1])]);
    }

    #[test]
    fn rule_1_at_most_so_many() {
        let text = "enter m 10 2 1; enter m 11 s 2; enter m 12 s 3; leave 1; leave 2; leave 3";
        assert_eq!(problems(text), [overlap(3, &[1, 2]), overtaken(3, &[10, 11])]);
        let text = "enter m 10 s 1; enter m 11 s 2; enter m 12 2 3; leave 1; leave 2; leave 3";
        assert_eq!(problems(text), [overlap(3, &[1, 2]), overtaken(3, &[10, 11])]);
    }

    #[test]
    fn rule_1_who_lost_only_its_wrapper_is_there_still() {
        let text = "enter m 10 x 1; orphaned 1; enter m 11 x 2; leave 1; leave 2";
        assert_eq!(problems(text), [overlap(2, &[1]), overtaken(2, &[10])]);
        let report = check("enter m 10 x 1\norphaned 1\nleave 1\norphaned 2");
        assert_eq!((report.problems, report.outlived), (Vec::new(), 1));
    }

    #[test]
    fn rule_2_nobody_overtakes() {
        for (text, expected) in [
            ("enter m 11 x 2; leave 2; enter m 10 x 1; leave 1", overtaken(2, &[10])),
            ("enter m 11 s 2; leave 2; enter m 10 x 1; leave 1", overtaken(2, &[10])),
            ("enter m 11 x 2; leave 2; enter m 10 s 1; leave 1", overtaken(2, &[10])),
            // Behind a waiting exclusive one, though the shared one that is there would allow it.
            (
                "enter m 10 s 1; enter m 12 s 3; leave 1; leave 3; enter m 11 x 2; leave 2",
                overtaken(3, &[10, 11]),
            ),
            // Two are before it and only two may be there.
            (
                "enter m 12 s 3; leave 3; enter m 10 2 1; enter m 11 2 2; leave 1; leave 2",
                overtaken(3, &[10, 11]),
            ),
        ] {
            assert_eq!(problems(text), [expected], "{text}");
        }
    }

    #[test]
    fn rule_3_numbers_come_once_and_grow() {
        let mutex = || "m".to_owned();
        assert_eq!(
            problems("enter m 10 x 1; leave 1; enter m 10 x 2; leave 2"),
            [Problem::Twice { mutex: mutex(), number: 10 }]
        );
        // Nobody was overtaken: the first one had ended. But its number was greater.
        let text = "start 1; enter m 10 s 1; leave 1; start 2; enter m 9 s 2; leave 2";
        let shrank = Problem::Shrank { mutex: mutex(), number: 9, earlier: 10 };
        assert!(problems(text).contains(&shrank), "{:?}", problems(text));
    }

    #[test]
    fn rule_4_who_entered_leaves() {
        assert_eq!(problems("enter m 10 x 1"), [Problem::NeverLeft(1)]);
        assert_eq!(problems("enter m 10 s 1; orphaned 1"), [Problem::NeverLeft(1)]);
    }

    #[test]
    fn a_line_that_nobody_writes_is_seen() {
        for line in
            ["enter m 10 x", "leave", "enter m ten x 1", "enter m 10 y 1", "leave 1 2", "x 1"]
        {
            assert_eq!(problems(line), [Problem::Torn(line.to_owned())], "{line}");
        }
    }

    #[test]
    fn what_was_seen_is_counted() {
        let report =
            check("enter m 10 s 1\nenter m 11 s 2\nleave 1\nleave 2\nenter n 3 x 4\nleave 4");
        assert_eq!((report.entries, report.together), (3, 1));
        assert_eq!(report.entered, HashSet::from([1, 2, 4]));
    }
}
