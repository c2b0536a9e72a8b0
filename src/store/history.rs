//! History: which scripts that are done match what was asked. What is asked by is in indexes; only the
//! rows of the page itself are read.

use rusqlite::types::Value;
use rusqlite::{Transaction, params_from_iter};

use super::worker::{nanoseconds, readable, record, signed, unsigned};
use super::{DoneCursor, DoneFilter, DonePage, OutcomeFilter, StoreError};

/// The statement that finds the numbers of a page's scripts, and what it is asked with.
struct Query {
    text: String,
    values: Vec<Value>,
}

impl Query {
    fn new(filter: &DoneFilter, after: Option<DoneCursor>, limit: usize) -> Self {
        let text = "SELECT seq FROM scripts WHERE done = 1".to_owned();
        let mut query = Self { text, values: Vec::new() };
        if let Some(DoneCursor { seq }) = after {
            query.and("seq < ?", [signed(seq).into()]);
        }
        if let Some(since) = filter.since {
            query.and("ended_at >= ?", [nanoseconds(since).into()]);
        }
        if let Some(until) = filter.until {
            query.and("queued_at < ?", [nanoseconds(until).into()]);
        }
        if !filter.outcomes.is_empty() {
            let ways: Vec<_> = filter.outcomes.iter().map(condition).collect();
            query.and(&format!("({})", ways.join(" OR ")), []);
        }
        for (key, value) in &filter.labels {
            let with_label = "seq IN (SELECT seq FROM script_labels WHERE key = ? AND value = ?)";
            query.and(with_label, [key.clone().into(), value.clone().into()]);
        }
        query.text += " ORDER BY seq DESC LIMIT ?";
        query.values.push(i64::try_from(limit).unwrap_or(i64::MAX).into());
        query
    }

    fn and<const N: usize>(&mut self, condition: &str, values: [Value; N]) {
        self.text += " AND ";
        self.text += condition;
        self.values.extend(values);
    }
}

/// One way to have ended. Only words of ours get into the statement.
fn condition(outcome: &OutcomeFilter) -> String {
    match outcome {
        OutcomeFilter::Succeeded => "outcome = 'exited' AND exit_code = 0".to_owned(),
        OutcomeFilter::Failed => {
            "outcome NOT IN ('cancelled', 'lease_closed') AND (outcome <> 'exited' OR exit_code <> 0)"
                .to_owned()
        }
        OutcomeFilter::Kind(kind) => format!("outcome = '{kind}'"),
    }
}

/// Scripts that are done, the newest arrival first.
pub(super) fn done_page(
    transaction: &Transaction<'_>,
    filter: &DoneFilter,
    after: Option<DoneCursor>,
    limit: usize,
) -> Result<DonePage, StoreError> {
    // One more says whether there are more.
    let query = Query::new(filter, after, limit.saturating_add(1));
    let mut found = transaction.prepare_cached(&query.text)?;
    let found = found.query_map(params_from_iter(query.values), |row| row.get(0))?;
    let found: Vec<i64> = found.collect::<Result<_, _>>()?;
    let page = found.get(..limit).unwrap_or(&found);
    let more = found.len() > page.len();
    let next = page.last().filter(|_| more).map(|seq| DoneCursor { seq: unsigned(*seq) });
    let mut row = transaction.prepare_cached("SELECT * FROM scripts WHERE seq = ?1")?;
    let rows = page.iter().map(|seq| row.query_row([seq], |row| Ok(record(row))));
    Ok(DonePage { records: readable(rows)?, next })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    /// The request, which is large, comes before the columns that are asked by.
    #[test]
    fn no_row_is_read_to_find_a_page() {
        let root = tempfile::tempdir().unwrap();
        let connection = schema::open(&root.path().join("agent.db"), |_| {}).unwrap();
        let time = Some(jiff::Timestamp::now());
        let label = || [("project".to_owned(), "web".to_owned())].into();
        let failed = || vec![OutcomeFilter::Failed, OutcomeFilter::Kind("cancelled")];
        for filter in [
            DoneFilter::default(),
            DoneFilter { since: time, until: time, ..DoneFilter::default() },
            DoneFilter { outcomes: failed(), ..DoneFilter::default() },
            DoneFilter { labels: label(), since: time, until: time, outcomes: failed() },
        ] {
            let query = Query::new(&filter, Some(DoneCursor { seq: 9 }), 10);
            let plan = format!("EXPLAIN QUERY PLAN {}", query.text);
            let mut plan = connection.prepare(&plan).unwrap();
            let steps = plan.query_map(params_from_iter(query.values), |row| row.get(3)).unwrap();
            let steps: Vec<String> = steps.map(Result::unwrap).collect();
            let indexed = |step: &String| !step.contains(" scripts ") || step.contains("INDEX");
            assert!(steps.iter().all(indexed), "{filter:?}: {steps:#?}");
        }
    }
}
