//! What a request for a list asks for, and the tokens of its pages.

use tonic::Status;

use super::status;
use crate::agent::{ListCursor, ListFilter, ListOrder};
use crate::spec::MAX_LABELS;
use crate::store::{DoneCursor, OutcomeFilter};
use crate::wire::{from_timestamp, v1};

/// How many scripts a page has when the request doesn't say.
const DEFAULT_PAGE_SIZE: u32 = 100;
/// How many scripts a request may ask for.
const MAX_PAGE_SIZE: u32 = 1000;
/// How many scripts a page has at most: each may name many others, and a message has a limit.
const LARGEST_PAGE: u32 = 100;
/// How many phases or outcomes a request may name: more than there are.
const MAX_NAMED: usize = 32;

/// A request that was understood.
pub(super) struct Query {
    pub(super) filter: ListFilter,
    pub(super) order: ListOrder,
    pub(super) after: Option<ListCursor>,
    pub(super) limit: usize,
}

impl Query {
    pub(super) fn parse(request: v1::ListRequest) -> Result<Self, Status> {
        // Destructured whole: a new field can't be forgotten here.
        let v1::ListRequest {
            phases,
            labels,
            page_size,
            page_token,
            since,
            until,
            outcomes,
            order,
        } = request;
        if labels.len() > MAX_LABELS {
            return Err(status::field("labels", &format!("are more than {MAX_LABELS}")));
        }
        let (since, until) = (time("since", since)?, time("until", until)?);
        if since.zip(until).is_some_and(|(since, until)| since >= until) {
            return Err(status::field("until", "must be later than since"));
        }
        let labels = labels.into_iter().collect();
        let phases = phase_names(&phases)?;
        let outcomes = named("outcomes", &outcomes, outcome)?;
        let order = match v1::ListOrder::try_from(order) {
            Ok(v1::ListOrder::Unspecified) => ListOrder::LivingFirst,
            Ok(v1::ListOrder::NewestFirst) => ListOrder::NewestFirst,
            Err(_) => return Err(status::field("order", "is none that is known")),
        };
        Ok(Self {
            filter: ListFilter { phases, labels, since, until, outcomes },
            order,
            after: parse_token(&page_token)?,
            limit: page_limit(page_size)?,
        })
    }
}

fn time(
    field: &str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<jiff::Timestamp>, Status> {
    let parse = |time| from_timestamp(time).ok_or_else(|| status::field(field, "is out of range"));
    time.map(parse).transpose()
}

fn page_limit(asked: u32) -> Result<usize, Status> {
    let size = if asked == 0 { DEFAULT_PAGE_SIZE } else { asked };
    if size > MAX_PAGE_SIZE {
        return Err(status::field("page_size", "is out of range: 1 to 1000"));
    }
    let size = size.min(LARGEST_PAGE);
    usize::try_from(size).map_err(|_| status::field("page_size", "is out of range"))
}

/// The values of a field that may name several.
fn named<T>(field: &str, values: &[i32], name: fn(i32) -> Option<T>) -> Result<Vec<T>, Status> {
    if values.len() > MAX_NAMED {
        return Err(status::field(field, &format!("are more than {MAX_NAMED}")));
    }
    let unknown = || status::field(field, "has one that is not known");
    values.iter().map(|value| name(*value).ok_or_else(unknown)).collect()
}

fn phase_names(phases: &[i32]) -> Result<Option<Vec<&'static str>>, Status> {
    let names = named("phases", phases, |phase| match v1::Phase::try_from(phase) {
        Ok(v1::Phase::Queued) => Some("queued"),
        Ok(v1::Phase::Waiting) => Some("waiting"),
        Ok(v1::Phase::Running) => Some("running"),
        Ok(v1::Phase::Stopping) => Some("stopping"),
        Ok(v1::Phase::Done) => Some("done"),
        Ok(v1::Phase::Unspecified) | Err(_) => None,
    })?;
    Ok((!names.is_empty()).then_some(names))
}

fn outcome(outcome: i32) -> Option<OutcomeFilter> {
    use v1::OutcomeFilter as Asked;
    Some(match Asked::try_from(outcome).ok()? {
        Asked::Unspecified => return None,
        Asked::Succeeded => OutcomeFilter::Succeeded,
        Asked::Failed => OutcomeFilter::Failed,
        Asked::Exited => OutcomeFilter::Kind("exited"),
        Asked::Signalled => OutcomeFilter::Kind("signalled"),
        Asked::Cancelled => OutcomeFilter::Kind("cancelled"),
        Asked::TimedOut => OutcomeFilter::Kind("timed_out"),
        Asked::QueueTimedOut => OutcomeFilter::Kind("queue_timed_out"),
        Asked::NotStarted => OutcomeFilter::Kind("not_started"),
        Asked::Lost => OutcomeFilter::Kind("lost"),
        Asked::LeaseClosed => OutcomeFilter::Kind("lease_closed"),
        Asked::LeaseExpired => OutcomeFilter::Kind("lease_expired"),
    })
}

/// Opaque to clients: `l7` is behind the living script with arrival 7, `d7` behind the done one, `n7`
/// behind the one of either kind in the list that has the newest first.
pub(super) fn token(cursor: ListCursor) -> String {
    match cursor {
        ListCursor::Living(arrival) => format!("l{arrival}"),
        ListCursor::Done(DoneCursor { seq }) => format!("d{seq}"),
        ListCursor::Newest(arrival) => format!("n{arrival}"),
    }
}

fn parse_token(token: &str) -> Result<Option<ListCursor>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let parse = || {
        let (kind, number) = token.split_at_checked(1)?;
        let number = number.parse().ok()?;
        match kind {
            "l" => Some(ListCursor::Living(number)),
            "d" => Some(ListCursor::Done(DoneCursor { seq: number })),
            "n" => Some(ListCursor::Newest(number)),
            _ => None,
        }
    };
    let unknown = || status::field("page_token", "is none that this agent gave out");
    parse().map(Some).ok_or_else(unknown)
}
