//! Pure: the agent's queue. Which script may be launched next, and who is before whom.
//!
//! 1. Scripts have one order, that of their arrival. Each stands in the line of each mutex that it
//!    claims; a script without claims stands in none and is launched at once.
//! 2. Tickets are taken in the order of arrival: a script is launched only when all before it in its
//!    lines have theirs. Among shared claims without a limit nobody waits for somebody who still is
//!    here because of another mutex, but for those whose supervisors are about to take theirs. A
//!    supervisor that is to step back has none, whatever it said: it is not to be overtaken.
//! 3. Of the scripts that must wait, one a line is launched, the first: it sleeps on the right
//!    ticket when the holder ends. The others wait here, so a caller from outside stands behind at
//!    most that one.
//! 4. Who may hold is asked of [`policy`], the same rule as on disk.
//! 5. The scripts of a lease have a line of their own, which is not on disk: those that must wait in it
//!    all wait here.
//! 6. The queue has a capacity, and says when it is full. Those without claims have one of their own:
//!    a health check is not refused because deployments queue.

use std::collections::{BTreeMap, HashMap};

use crate::mutex::{Claim, Mode, MutexName, policy};
use crate::script::ScriptId;

/// The scripts that are not done, in order of arrival.
#[derive(Debug)]
pub struct Queue {
    capacity: usize,
    entries: BTreeMap<u64, Entry>,
    arrivals: HashMap<ScriptId, u64>,
    last_arrival: u64,
}

#[derive(Debug)]
struct Entry {
    id: ScriptId,
    claims: Vec<Claim>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has its place, but is not on disk yet.
    Reserved,
    /// It waits here.
    Queued,
    /// Its supervisor was started.
    Launched,
    /// Its supervisor has its tickets.
    Joined,
    /// Its supervisor was asked to give its tickets back. Until it has ended, or is heard of as
    /// running, nobody knows whether it did.
    SteppingBack,
}

/// The queue has as many scripts as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full: {capacity} scripts are queued or running")]
pub struct QueueFull {
    /// How many it may have.
    pub capacity: usize,
}

/// The line of one mutex up to a script.
#[derive(Debug)]
pub struct LineBefore<'a> {
    /// The mutex.
    pub mutex: &'a MutexName,
    /// Who is before the script, in order, and how they claim the mutex.
    pub before: Vec<(&'a ScriptId, Mode)>,
    /// Whether they let the script hold it.
    pub admitted: bool,
}

/// A line as the launching walk sees it.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    ahead: policy::Ahead,
    /// Someone before has no ticket yet (rule 2).
    unsettled: bool,
    /// One of those is not simply shared, or its supervisor is about to take its ticket.
    strictly_unsettled: bool,
    /// Someone before must wait in this line (rule 3).
    has_waiter: bool,
}

impl Seen {
    fn is_settled_for(self, mode: Mode) -> bool {
        if mode == Mode::Shared { !self.strictly_unsettled } else { !self.unsettled }
    }
}

impl Queue {
    /// An empty queue. Arrivals are numbered from `last_arrival + 1` on.
    pub fn new(capacity: usize, last_arrival: u64) -> Self {
        Self { capacity, entries: BTreeMap::new(), arrivals: HashMap::new(), last_arrival }
    }

    /// Takes another capacity. Who is in it stays.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// How many scripts are in it, running ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Gives a script its place; it is not launched before [`Queue::accept`]. Returns the number of
    /// its arrival.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn reserve(&mut self, id: ScriptId, claims: Vec<Claim>) -> Result<u64, QueueFull> {
        let alike = |entry: &&Entry| entry.claims.is_empty() == claims.is_empty();
        if self.entries.values().filter(alike).count() >= self.capacity {
            return Err(QueueFull { capacity: self.capacity });
        }
        self.last_arrival += 1;
        self.insert(self.last_arrival, id, claims, Stage::Reserved);
        Ok(self.last_arrival)
    }

    /// Puts a script of an earlier run of the agent back in its place. The capacity doesn't count:
    /// it was accepted.
    pub fn restore(&mut self, arrival: u64, id: ScriptId, claims: Vec<Claim>) {
        self.last_arrival = self.last_arrival.max(arrival);
        self.insert(arrival, id, claims, Stage::Queued);
    }

    fn insert(&mut self, arrival: u64, id: ScriptId, claims: Vec<Claim>, stage: Stage) {
        self.arrivals.insert(id.clone(), arrival);
        self.entries.insert(arrival, Entry { id, claims, stage });
    }

    /// The script is on disk: it may be launched.
    pub fn accept(&mut self, id: &ScriptId) {
        self.advance(id, Stage::Queued);
    }

    /// Its supervisor runs already (after a restart of the agent).
    pub fn launched(&mut self, id: &ScriptId) {
        self.advance(id, Stage::Launched);
    }

    /// Its supervisor has its tickets, as far as it is not to step back.
    pub fn joined(&mut self, id: &ScriptId) {
        if !self.is_stepping_back(id) {
            self.advance(id, Stage::Joined);
        }
    }

    /// It runs: its supervisor has kept its tickets.
    pub fn started(&mut self, id: &ScriptId) {
        self.advance(id, Stage::Joined);
    }

    /// Its supervisor is asked to step back.
    pub fn step_back(&mut self, id: &ScriptId) {
        self.advance(id, Stage::SteppingBack);
    }

    fn is_stepping_back(&self, id: &ScriptId) -> bool {
        let entry = self.arrivals.get(id).and_then(|at| self.entries.get(at));
        entry.is_some_and(|entry| entry.stage == Stage::SteppingBack)
    }

    /// Its supervisor ended before it started anything.
    pub fn requeue(&mut self, id: &ScriptId) {
        self.advance(id, Stage::Queued);
    }

    /// The script is done, or was not accepted after all. Says whether it was here.
    pub fn remove(&mut self, id: &ScriptId) -> bool {
        let arrival = self.arrivals.remove(id);
        arrival.is_some_and(|arrival| self.entries.remove(&arrival).is_some())
    }

    fn advance(&mut self, id: &ScriptId, stage: Stage) {
        if let Some(entry) = self.arrivals.get(id).and_then(|at| self.entries.get_mut(at)) {
            entry.stage = stage;
        }
    }

    /// The next script to launch, of those that may be launched now, if there is one; it counts as launched
    /// from here on.
    pub fn launch_next_of(&mut self, may: impl Fn(&ScriptId) -> bool) -> Option<ScriptId> {
        let mut lines: HashMap<&MutexName, Seen> = HashMap::new();
        let mut next = None;
        for (arrival, entry) in &self.entries {
            let seen = |claim: &Claim| lines.get(&claim.name).copied().unwrap_or_default();
            let settled = entry.claims.iter().all(|claim| seen(claim).is_settled_for(claim.mode));
            let launchable = entry.claims.iter().all(|claim| {
                let line = seen(claim);
                let sleeps_on_disk = !line.has_waiter && !claim.name.is_lease_line();
                line.ahead.admits(claim.mode) || sleeps_on_disk
            });
            if entry.stage == Stage::Queued && settled && launchable && may(&entry.id) {
                next = Some(*arrival);
                break;
            }
            for claim in &entry.claims {
                let line = lines.entry(&claim.name).or_default();
                line.has_waiter |= !line.ahead.admits(claim.mode);
                line.ahead = line.ahead.and(claim.mode);
                if entry.stage != Stage::Joined {
                    line.unsettled = true;
                    line.strictly_unsettled |= claim.mode != Mode::Shared
                        || matches!(entry.stage, Stage::Launched | Stage::SteppingBack);
                }
            }
        }
        let entry = self.entries.get_mut(&next?)?;
        entry.stage = Stage::Launched;
        Some(entry.id.clone())
    }

    /// For each mutex that a script claims: its line up to this script, in order.
    pub fn lines(&self, id: &ScriptId) -> Vec<LineBefore<'_>> {
        let found = self.arrivals.get(id).and_then(|at| Some((at, self.entries.get(at)?)));
        let Some((arrival, entry)) = found else {
            return Vec::new();
        };
        let line = |claim: &'_ Claim| {
            let earlier = self.entries.range(..arrival).map(|(_, earlier)| earlier);
            let in_line = earlier.filter_map(|earlier| {
                let theirs = earlier.claims.iter().find(|theirs| theirs.name == claim.name)?;
                Some((&earlier.id, theirs.mode))
            });
            let before: Vec<(&ScriptId, Mode)> = in_line.collect();
            let ahead = before.iter().fold(policy::Ahead::default(), |a, (_, mode)| a.and(*mode));
            (before, ahead.admits(claim.mode))
        };
        let lines = entry.claims.iter().map(|claim| {
            let (before, admitted) = line(claim);
            LineBefore { mutex: &claim.name, before, admitted }
        });
        lines.collect()
    }

    /// Whether a script is in it.
    pub fn contains(&self, id: &ScriptId) -> bool {
        self.arrivals.contains_key(id)
    }

    /// The scripts that arrived after a number, in order, each with its own.
    pub fn after(&self, arrival: u64) -> impl Iterator<Item = (u64, &ScriptId)> {
        let later = self.entries.range(arrival.saturating_add(1)..);
        later.map(|(arrival, entry)| (*arrival, &entry.id))
    }

    /// The scripts that arrived before a number, the last one first, each with its own.
    pub fn before(&self, arrival: u64) -> impl Iterator<Item = (u64, &ScriptId)> {
        let earlier = self.entries.range(..arrival).rev();
        earlier.map(|(arrival, entry)| (*arrival, &entry.id))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Queue {
        fn launch_next(&mut self) -> Option<ScriptId> {
            self.launch_next_of(|_| true)
        }
    }

    fn id(name: &str) -> ScriptId {
        name.parse().unwrap()
    }

    fn claim(name: &str, mode: Mode) -> Claim {
        Claim { name: name.parse().unwrap(), mode }
    }

    fn exclusive() -> Vec<Claim> {
        vec![claim("machine", Mode::Exclusive)]
    }

    fn shared() -> Vec<Claim> {
        vec![claim("machine", Mode::Shared)]
    }

    fn keyed() -> Vec<Claim> {
        vec![claim("machine", Mode::Shared), claim("key.k", Mode::Exclusive)]
    }

    fn add(queue: &mut Queue, name: &str, claims: Vec<Claim>) {
        queue.reserve(id(name), claims).unwrap();
        queue.accept(&id(name));
    }

    /// Launches all that may be launched; their supervisors join at once.
    fn launch(queue: &mut Queue) -> String {
        let mut launched = Vec::new();
        while let Some(next) = queue.launch_next() {
            queue.joined(&next);
            launched.push(next.to_string());
        }
        launched.join(" ")
    }

    #[test]
    fn the_five_projects_are_launched_in_their_order() {
        let mut queue = Queue::new(10, 0);
        for (name, claims) in [
            ("p1", shared()),
            ("p2", shared()),
            ("p3", exclusive()),
            ("p4", shared()),
            ("p5", shared()),
        ] {
            add(&mut queue, name, claims);
        }
        // p3 already waits in the machine's line, the others don't.
        assert_eq!(launch(&mut queue), "p1 p2 p3");
        queue.remove(&id("p1"));
        assert_eq!(launch(&mut queue), "");
        queue.remove(&id("p2"));
        assert_eq!(launch(&mut queue), "p4");
        queue.remove(&id("p3"));
        assert_eq!(launch(&mut queue), "p5");
    }

    #[test]
    fn rule_1_a_script_without_claims_never_waits() {
        let mut queue = Queue::new(10, 0);
        add(&mut queue, "deployment", exclusive());
        add(&mut queue, "next", exclusive());
        add(&mut queue, "third", exclusive());
        add(&mut queue, "health", Vec::new());
        assert_eq!(launch(&mut queue), "deployment next health");
    }

    #[test]
    fn rule_2_nobody_is_launched_before_the_one_before_has_its_ticket() {
        let mut queue = Queue::new(10, 0);
        add(&mut queue, "a", shared());
        add(&mut queue, "b", shared());
        add(&mut queue, "c", exclusive());
        for (script, next) in [("a", "b"), ("b", "c")] {
            assert_eq!(queue.launch_next(), Some(id(script)));
            assert_eq!(queue.launch_next(), None, "before {next}");
            queue.joined(&id(script));
        }
        assert_eq!(queue.launch_next(), Some(id("c")));
    }

    #[test]
    fn rule_2_who_is_to_step_back_is_not_overtaken() {
        for claims in [exclusive(), shared()] {
            let mut queue = Queue::new(10, 0);
            add(&mut queue, "a", claims.clone());
            assert_eq!(launch(&mut queue), "a");
            add(&mut queue, "b", claims.clone());
            queue.step_back(&id("a"));
            // What it said before it heard of it.
            queue.joined(&id("a"));
            assert_eq!(launch(&mut queue), "");
            queue.requeue(&id("a"));
            assert_eq!(launch(&mut queue), "a b");
            // One that runs already was asked in vain.
            queue.step_back(&id("b"));
            queue.started(&id("b"));
            queue.remove(&id("a"));
            add(&mut queue, "c", claims);
            assert_eq!(launch(&mut queue), "c");
        }
    }

    #[test]
    fn rule_5_of_a_lease_s_scripts_only_those_are_launched_that_may_run() {
        let mut queue = Queue::new(10, 0);
        add(&mut queue, "lease", exclusive());
        for (name, mode) in [
            ("a", Mode::Exclusive),
            ("b", Mode::Shared),
            ("c", Mode::Shared),
            ("d", Mode::Exclusive),
        ] {
            add(&mut queue, name, vec![claim("lease.lease", mode)]);
        }
        add(&mut queue, "other", exclusive());
        let not_yet = |id: &ScriptId| id.as_str() == "lease" || id.as_str() == "other";
        assert_eq!(queue.launch_next_of(not_yet), Some(id("lease")));
        queue.joined(&id("lease"));
        assert_eq!(queue.launch_next_of(not_yet), Some(id("other")));
        queue.joined(&id("other"));
        assert_eq!(queue.launch_next_of(not_yet), None);
        assert_eq!(launch(&mut queue), "a");
        queue.remove(&id("a"));
        assert_eq!(launch(&mut queue), "b c");
        queue.remove(&id("b"));
        assert_eq!(launch(&mut queue), "");
        queue.remove(&id("c"));
        assert_eq!(launch(&mut queue), "d");
    }

    #[test]
    fn a_reserved_place_is_kept_and_not_launched() {
        let mut queue = Queue::new(10, 0);
        queue.reserve(id("slow"), exclusive()).unwrap();
        add(&mut queue, "quick", exclusive());
        assert_eq!(launch(&mut queue), "");
        queue.accept(&id("slow"));
        assert_eq!(launch(&mut queue), "slow quick");
    }

    #[test]
    fn the_same_key_waits_though_both_are_shared_and_another_key_does_not() {
        let mut queue = Queue::new(10, 0);
        add(&mut queue, "web1", keyed());
        add(&mut queue, "web2", keyed());
        add(&mut queue, "web3", keyed());
        add(
            &mut queue,
            "db",
            vec![claim("machine", Mode::Shared), claim("key.d", Mode::Exclusive)],
        );
        add(&mut queue, "alone", exclusive());
        // web3 is the second to wait for the key: it stays here, and who must come after it as well.
        assert_eq!(launch(&mut queue), "web1 web2 db");
        queue.remove(&id("web1"));
        assert_eq!(launch(&mut queue), "web3 alone");
    }

    #[test]
    fn rule_6_a_full_queue_says_so_and_cancelling_makes_room() {
        let mut queue = Queue::new(1, 7);
        assert_eq!(queue.reserve(id("a"), exclusive()), Ok(8));
        assert_eq!(queue.reserve(id("b"), exclusive()), Err(QueueFull { capacity: 1 }));
        // A health check has its place all the same.
        assert_eq!(queue.reserve(id("health"), Vec::new()), Ok(9));
        queue.remove(&id("a"));
        assert_eq!(queue.reserve(id("b"), exclusive()), Ok(10));
        queue.set_capacity(2);
        assert_eq!(queue.reserve(id("c"), exclusive()), Ok(11));
        // A smaller one refuses only who comes.
        queue.set_capacity(1);
        assert_eq!(queue.reserve(id("d"), exclusive()), Err(QueueFull { capacity: 1 }));
        assert_eq!(queue.len(), 3);
    }

    #[test]
    fn who_is_before_whom_is_said_for_each_mutex() {
        let mut queue = Queue::new(10, 0);
        add(&mut queue, "a", shared());
        add(&mut queue, "b", keyed());
        add(&mut queue, "c", keyed());
        let c = id("c");
        let lines = queue.lines(&c);
        let (a, b) = (id("a"), id("b"));
        assert_eq!(lines[0].mutex.as_str(), "machine");
        assert_eq!(lines[0].before, [(&a, Mode::Shared), (&b, Mode::Shared)]);
        assert!(lines[0].admitted);
        assert_eq!(lines[1].mutex.as_str(), "key.k");
        assert_eq!(lines[1].before, [(&b, Mode::Exclusive)]);
        assert!(!lines[1].admitted);
    }

    proptest! {
        /// Scripts end in any order. Of two in one line, unless both are shared, the one that came
        /// first is launched first; in the end everything was launched, once.
        #[test]
        fn rule_2_every_script_is_launched_once_and_in_order_in_each_line(
            kinds in prop::collection::vec(0..4_u8, 1..25),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 60),
        ) {
            let mut queue = Queue::new(100, 0);
            for (number, kind) in kinds.iter().enumerate() {
                let claims = match kind {
                    0 => exclusive(),
                    1 => shared(),
                    2 => keyed(),
                    _ => vec![claim("machine", Mode::Exclusive), claim("key.k", Mode::Exclusive)],
                };
                add(&mut queue, &format!("s{number:02}"), claims);
            }
            let all: Vec<(ScriptId, Vec<Claim>)> =
                queue.entries.values().map(|e| (e.id.clone(), e.claims.clone())).collect();
            let mut launched = Vec::new();
            let mut living: Vec<ScriptId> = Vec::new();
            for end in ends {
                while let Some(next) = queue.launch_next() {
                    queue.joined(&next);
                    launched.push(next.clone());
                    living.push(next);
                }
                if living.is_empty() {
                    break;
                }
                queue.remove(&living.remove(end.index(living.len())));
            }
            prop_assert_eq!(launched.len(), all.len());
            let place = |id: &ScriptId| launched.iter().position(|launched| launched == id);
            for (later, (id, claims)) in all.iter().enumerate() {
                for (earlier_id, earlier_claims) in &all[..later] {
                    let conflict = claims.iter().any(|c| earlier_claims.iter().any(|e| {
                        c.name == e.name && (c.mode != Mode::Shared || e.mode != Mode::Shared)
                    }));
                    prop_assert!(!conflict || place(earlier_id) < place(id));
                }
            }
        }
    }
}
