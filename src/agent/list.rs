//! Lists of scripts, those that are done included, a page at a time.
//!
//! A page is asked for with the place behind which it starts, so it stays right while scripts come and
//! go. Of each script there is one place in each order, whatever becomes of it meanwhile; only in the
//! usual order a script that ends between two pages is met again among those that are done.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::scripts::stored_snapshot;
use super::{Agent, AgentError};
use crate::script::Phase;
use crate::snapshot::Snapshot;
use crate::store::{DoneCursor, DoneFilter, DonePage, OutcomeFilter};

/// Which scripts a list has.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// The names of the phases that they may be in; `None`: any.
    pub phases: Option<Vec<&'static str>>,
    /// Labels that they must have.
    pub labels: BTreeMap<String, String>,
    /// Not those that had ended before.
    pub since: Option<Timestamp>,
    /// Only those that were accepted before.
    pub until: Option<Timestamp>,
    /// How they may have ended; when it isn't empty, those that are not done are left out.
    pub outcomes: Vec<OutcomeFilter>,
}

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListOrder {
    /// Those that are not done in order of arrival, then the others, the newest arrival first.
    #[default]
    LivingFirst,
    /// The newest arrival first, whatever became of it.
    NewestFirst,
}

/// A place in a list: just behind a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListCursor {
    /// One that is not done; the number of its arrival.
    Living(u64),
    /// One that is done.
    Done(DoneCursor),
    /// Any one, of the list that has the newest first; the number of its arrival.
    Newest(u64),
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// The scripts.
    pub scripts: Vec<Snapshot>,
    /// Where the next page starts; `None`: this is the last.
    pub next: Option<ListCursor>,
}

impl ListFilter {
    fn wants(&self, phase: &'static str) -> bool {
        self.phases.as_ref().is_none_or(|phases| phases.contains(&phase))
    }

    /// Whether it wants a script that isn't in the store as done, or not yet.
    fn matches(&self, snapshot: &Snapshot) -> bool {
        let ended_so = match &snapshot.phase {
            Phase::Done(outcome) => {
                let mut ways = self.outcomes.iter();
                self.outcomes.is_empty() || ways.any(|way| way.matches(&outcome.kind))
            }
            Phase::Queued | Phase::Waiting | Phase::Running | Phase::Stopping => {
                self.outcomes.is_empty()
            }
        };
        let ended_before = |since| snapshot.ended_at.is_some_and(|ended_at| ended_at < since);
        self.wants(snapshot.phase.name())
            && ended_so
            && !self.since.is_some_and(ended_before)
            && self.until.is_none_or(|until| snapshot.queued_at < until)
            && self.labels.iter().all(|(key, value)| snapshot.labels.get(key) == Some(value))
    }

    fn done(&self) -> DoneFilter {
        DoneFilter {
            labels: self.labels.clone(),
            since: self.since,
            until: self.until,
            outcomes: self.outcomes.clone(),
        }
    }
}

impl Agent {
    /// A page of at most `limit` scripts. It starts behind `after`, which also says the order; without
    /// it the list begins, in `order`.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn list(
        &self,
        filter: &ListFilter,
        order: ListOrder,
        after: Option<ListCursor>,
        limit: usize,
    ) -> Result<Page, AgentError> {
        match (after, order) {
            (Some(ListCursor::Newest(arrival)), _) => self.newest(filter, arrival, limit).await,
            (None, ListOrder::NewestFirst) => self.newest(filter, u64::MAX, limit).await,
            (Some(ListCursor::Living(_) | ListCursor::Done(_)), _)
            | (None, ListOrder::LivingFirst) => self.living_first(filter, after, limit).await,
        }
    }

    async fn living_first(
        &self,
        filter: &ListFilter,
        after: Option<ListCursor>,
        limit: usize,
    ) -> Result<Page, AgentError> {
        let mut living = Vec::new();
        let (mut before, mut leaving) = (u64::MAX, Vec::new());
        {
            let table = self.table();
            match after {
                Some(ListCursor::Done(DoneCursor { seq })) => before = seq,
                Some(ListCursor::Living(_) | ListCursor::Newest(_)) | None => {
                    let from = if let Some(ListCursor::Living(seq)) = after { seq } else { 0 };
                    let found = table.snapshots(from).filter(|(_, script)| filter.matches(script));
                    living.extend(found.take(limit));
                }
            }
            if living.len() < limit {
                leaving.extend(table.leaving().filter(|(_, script)| filter.matches(script)));
            }
        }
        if let Some((arrival, _)) = living.last().filter(|_| living.len() == limit) {
            let next = Some(ListCursor::Living(*arrival));
            return Ok(Page {
                scripts: living.into_iter().map(|(_, script)| script).collect(),
                next,
            });
        }
        let (done, next) = self.merge(filter, leaving, before, limit - living.len()).await?;
        // One that ended meanwhile is shown once, as it stood.
        let shown: BTreeSet<u64> = living.iter().map(|(arrival, _)| *arrival).collect();
        let done = done.into_iter().filter(|(arrival, _)| !shown.contains(arrival));
        let scripts = living.iter().cloned().chain(done).map(|(_, script)| script).collect();
        let next = next.map(|seq| ListCursor::Done(DoneCursor { seq }));
        Ok(Page { scripts, next })
    }

    async fn newest(
        &self,
        filter: &ListFilter,
        before: u64,
        limit: usize,
    ) -> Result<Page, AgentError> {
        let living: Vec<(u64, Snapshot)> = {
            let table = self.table();
            let wanted = |(_, script): &(u64, Snapshot)| filter.matches(script);
            let living = table.snapshots_before(before).filter(wanted).take(limit + 1);
            living.chain(table.leaving().filter(wanted)).collect()
        };
        let (page, next) = self.merge(filter, living, before, limit).await?;
        let scripts = page.into_iter().map(|(_, script)| script).collect();
        Ok(Page { scripts, next: next.map(ListCursor::Newest) })
    }

    /// Up to `limit` scripts that arrived before a number, the newest first: those of the table, which
    /// was looked at first, and those of the store. One that is in both is shown as done. Also says
    /// behind which number it goes on.
    async fn merge(
        &self,
        filter: &ListFilter,
        from_table: Vec<(u64, Snapshot)>,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<(u64, Snapshot)>, Option<u64>), AgentError> {
        let after = (before != u64::MAX).then_some(DoneCursor { seq: before });
        let DonePage { records, next } = self.done_page(filter, after, limit).await?;
        // What is older than the last one that is done belongs to a later page.
        let horizon = next.map_or(0, |cursor| cursor.seq);
        let from_table = from_table.into_iter();
        let here = from_table.filter(|(arrival, _)| (horizon..before).contains(arrival));
        let mut merged: BTreeMap<u64, Snapshot> = here.collect();
        merged.extend(records.into_iter().map(|record| (record.seq, stored_snapshot(record))));
        let more = merged.len() > limit;
        let page: Vec<(u64, Snapshot)> = merged.into_iter().rev().take(limit).collect();
        let last = page.last().map(|(arrival, _)| *arrival).filter(|_| more);
        Ok((page, last.or(next.map(|cursor| cursor.seq))))
    }

    async fn done_page(
        &self,
        filter: &ListFilter,
        after: Option<DoneCursor>,
        limit: usize,
    ) -> Result<DonePage, AgentError> {
        if !filter.wants("done") {
            return Ok(DonePage { records: Vec::new(), next: None });
        }
        Ok(self.inner.store.done_page(filter.done(), after, limit).await?)
    }
}
