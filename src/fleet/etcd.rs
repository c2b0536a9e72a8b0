//! The client of etcd: one call on one of several members, in turn, each with a limit.
//!
//! It knows keys, leases and revisions, nothing of mutexes. Each method may be tried again: none does
//! more when it is done twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Uri};
use tonic::{Code, Request, Status, Streaming};

use super::clock::Moment;
use super::tls::Tls;
use super::{FleetError, Options};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request as Op;
use pb::response_op::Response as Answer;
use pb::watch_client::WatchClient;

/// The messages of etcd's API.
#[expect(
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}

pub(super) use pb::KeyValue;

/// The longest that one member is waited for, however long the lease.
const LONGEST_CALL: Duration = Duration::from_secs(3);
/// The shortest: a member on another continent must be able to answer.
const SHORTEST_CALL: Duration = Duration::from_millis(300);
/// How often a connection is checked when nothing comes: etcd closes those that are checked more often
/// than each 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the answer may take.
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(5);
/// What etcd says of a lease that is not there.
const NO_LEASE: &str = "requested lease not found";

/// The members of one etcd cluster.
#[derive(Debug)]
pub(super) struct Etcd {
    members: Vec<Member>,
    /// Which one answered last: it is asked first.
    preferred: AtomicUsize,
    /// How long each is waited for.
    limit: Duration,
}

#[derive(Debug)]
struct Member {
    url: String,
    channel: Channel,
}

/// A lease as it was granted or renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) id: i64,
    pub(super) ttl: Duration,
    /// When the request was sent: the lease lives at least until so much later.
    pub(super) sent: Moment,
}

/// A place of a line, and what was before it, all at one revision.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) revision: i64,
    /// Whether the own key is there.
    pub(super) is_there: bool,
    /// How many are before it.
    pub(super) count: usize,
    /// The first of the line, unless it is the own one.
    pub(super) first: Option<KeyValue>,
    /// The one just before, unless the own one is the first.
    pub(super) before: Option<KeyValue>,
}

/// The key of a place, while it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) key: Vec<u8>,
    /// The revision at which it was made.
    pub(super) made: i64,
}

impl Etcd {
    /// Connects to nothing yet.
    pub(super) fn new(urls: &[String], options: &Options) -> Result<Self, FleetError> {
        let count = u32::try_from(urls.len()).unwrap_or(u32::MAX).max(1);
        // All members are asked once within a quarter of a lease.
        let limit = (options.ttl / 4 / count).clamp(SHORTEST_CALL, LONGEST_CALL);
        let tls = options.ca.as_deref().map(Tls::load).transpose()?;
        let members = urls.iter().map(|url| Member::new(url, tls.as_ref(), limit));
        let members = members.collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            let problem = "there is none".to_owned();
            return Err(FleetError::Endpoint { url: String::new(), problem });
        }
        Ok(Self { members, preferred: AtomicUsize::new(0), limit })
    }

    /// Asks one member after another until one answers.
    async fn call<T, F>(&self, request: impl Fn(Channel) -> F) -> Result<T, FleetError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut problems = Vec::new();
        for offset in 0..self.members.len() {
            let at = (first + offset) % self.members.len();
            let Member { url, channel } = &self.members[at];
            let problem = match tokio::time::timeout(self.limit, request(channel.clone())).await {
                Ok(Ok(answer)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(status)) if is_passing(&status) => text_of(&status),
                Ok(Err(status)) => {
                    return Err(FleetError::Refused { url: url.clone(), status: Box::new(status) });
                }
                Err(_) => format!("no answer within {:?}", self.limit),
            };
            problems.push(format!("{url}: {problem}"));
        }
        Err(FleetError::Unreachable(problems.join("; ")))
    }

    /// Whether anybody answers.
    pub(super) async fn check(&self) -> Result<(), FleetError> {
        let request = pb::RangeRequest {
            key: b"baton/".to_vec(),
            limit: 1,
            keys_only: true,
            ..pb::RangeRequest::default()
        };
        let answer = self.call(|channel| {
            let request = request.clone();
            async move { KvClient::new(channel).range(request).await }
        });
        answer.await.map(drop)
    }

    /// Begins a lease. One whose answer was lost ends by itself.
    pub(super) async fn grant(&self, ttl: Duration) -> Result<Granted, FleetError> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        self.call(|channel| async move {
            let sent = Moment::now();
            let request = pb::LeaseGrantRequest { ttl, id: 0 };
            let answer = LeaseClient::new(channel).lease_grant(request).await?.into_inner();
            Ok(Granted { id: answer.id, ttl: seconds(answer.ttl), sent })
        })
        .await
    }

    /// Renews a lease; `None` when it is there no more.
    pub(super) async fn renew(&self, id: i64) -> Result<Option<Granted>, FleetError> {
        self.call(|channel| async move {
            let sent = Moment::now();
            let request = stream::iter([pb::LeaseKeepAliveRequest { id }]);
            let mut answers = LeaseClient::new(channel).lease_keep_alive(request).await?;
            let answer = answers.get_mut().message().await?;
            let answer = answer.ok_or_else(|| Status::unavailable("no answer"))?;
            Ok((answer.ttl > 0).then(|| Granted { id, ttl: seconds(answer.ttl), sent }))
        })
        .await
    }

    /// Ends a lease; its keys are removed in the same step. One that is there no more is no error.
    pub(super) async fn revoke(&self, id: i64) -> Result<(), FleetError> {
        let revoked = self.call(|channel| async move {
            LeaseClient::new(channel).lease_revoke(pb::LeaseRevokeRequest { id }).await
        });
        match revoked.await {
            Err(error) if is_no_lease(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes a key that lives by a lease, unless it is there; `None` when the lease is not.
    pub(super) async fn join(
        &self,
        key: Vec<u8>,
        value: Vec<u8>,
        lease: i64,
    ) -> Result<Option<Place>, FleetError> {
        let read = pb::RangeRequest { key: key.clone(), ..pb::RangeRequest::default() };
        let request = pb::TxnRequest {
            compare: vec![made_at(&key, 0)],
            success: vec![put(key.clone(), value, lease)],
            failure: vec![op(Op::RequestRange(read))],
        };
        let answer = match self.transact(request).await {
            Err(error) if is_no_lease(&error) => return Ok(None),
            other => other?,
        };
        let made = if answer.succeeded {
            revision(answer.header.as_ref())
        } else {
            // Made by an earlier try of which the answer was lost.
            let [read] = ranges(answer)?;
            read.kvs.first().map_or(0, |kv| kv.create_revision)
        };
        Ok(Some(Place { key, made }))
    }

    /// Puts another value; says whether the key was still there.
    pub(super) async fn describe(
        &self,
        place: &Place,
        value: Vec<u8>,
        lease: i64,
    ) -> Result<bool, FleetError> {
        let request = pb::TxnRequest {
            compare: vec![made_at(&place.key, place.made)],
            success: vec![put(place.key.clone(), value, lease)],
            failure: Vec::new(),
        };
        Ok(self.transact(request).await?.succeeded)
    }

    /// Whether a key is there, the same one that was made.
    pub(super) async fn is_there(&self, place: &Place) -> Result<bool, FleetError> {
        let compare = vec![made_at(&place.key, place.made)];
        let request = pb::TxnRequest { compare, ..pb::TxnRequest::default() };
        Ok(self.transact(request).await?.succeeded)
    }

    /// Looks at a line from `prefix` to `range_end` up to a place in it.
    pub(super) async fn look(
        &self,
        prefix: &str,
        range_end: &[u8],
        place: &Place,
    ) -> Result<Look, FleetError> {
        let range = |order: SortOrder, limit: i64, keys_only: bool| {
            op(Op::RequestRange(pb::RangeRequest {
                key: prefix.as_bytes().to_vec(),
                range_end: range_end.to_vec(),
                limit,
                sort_order: order.into(),
                sort_target: SortTarget::Create.into(),
                keys_only,
                max_create_revision: place.made,
            }))
        };
        let success = vec![
            range(SortOrder::Ascend, 1, false),
            range(SortOrder::Descend, 2, false),
            range(SortOrder::None, 0, true),
        ];
        let request = pb::TxnRequest { success, ..pb::TxnRequest::default() };
        let answer = self.transact(request).await?;
        let revision = revision(answer.header.as_ref());
        let [first, last, all] = ranges(answer)?;
        let is_own = |kv: &KeyValue| kv.key == place.key && kv.create_revision == place.made;
        let mut last = last.kvs.into_iter();
        let is_there = last.next().as_ref().is_some_and(is_own);
        let before = last.next().filter(|_| is_there);
        let first = first.kvs.into_iter().next().filter(|kv| !is_own(kv));
        let count = all.kvs.len().saturating_sub(usize::from(is_there));
        Ok(Look { revision, is_there, count, first, before })
    }

    /// Waits until one of the keys is changed after a revision; or the member can't tell any more.
    pub(super) async fn change(&self, keys: &[Vec<u8>], after: i64) -> Result<(), FleetError> {
        let requests: Vec<_> = keys.iter().map(|key| watch_request(key, after)).collect();
        let mut told = self
            .call(|channel| {
                // Open to its end: etcd ends the watch with the stream of requests.
                let requests = stream::iter(requests.clone()).chain(stream::pending());
                let mut request = Request::new(requests);
                // A member that is cut off from the others says so, and is not silent for ever.
                request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
                async move { first_word(WatchClient::new(channel).watch(request).await?).await }
            })
            .await?;
        while let Told::Nothing(stream) = &mut told {
            let word = stream.message().await;
            match word {
                Ok(Some(word)) if word.events.is_empty() && !word.canceled => {}
                Ok(Some(_)) => told = Told::Change,
                Ok(None) => return Err(FleetError::Unreachable("the watch ended".to_owned())),
                Err(status) => return Err(FleetError::Unreachable(text_of(&status))),
            }
        }
        Ok(())
    }

    async fn transact(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, FleetError> {
        let answer = self.call(|channel| {
            let request = request.clone();
            async move { KvClient::new(channel).txn(request).await }
        });
        Ok(answer.await?.into_inner())
    }
}

impl Member {
    fn new(url: &str, tls: Option<&Tls>, limit: Duration) -> Result<Self, FleetError> {
        let wrong = |problem: &str| FleetError::Endpoint {
            url: url.to_owned(),
            problem: problem.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| wrong("is no URL"))?;
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("has a user; users and passwords are not supported"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("has a path; only a host and a port are expected"));
        }
        let endpoint = Channel::builder(uri.clone())
            .connect_timeout(limit)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_LIMIT);
        let channel = match (uri.scheme_str(), tls) {
            (Some("http"), _) => endpoint.connect_lazy(),
            (Some("https"), Some(tls)) => {
                tls.channel(authority).ok_or_else(|| wrong("has no host name"))?
            }
            (Some("https"), None) => {
                return Err(wrong("needs the certificate of its authority"));
            }
            _ => return Err(wrong("does not begin with http:// or https://")),
        };
        Ok(Self { url: url.to_owned(), channel })
    }
}

/// What a watch said first.
enum Told {
    Change,
    Nothing(Box<Streaming<pb::WatchResponse>>),
}

async fn first_word(
    answers: tonic::Response<Streaming<pb::WatchResponse>>,
) -> Result<Told, Status> {
    let mut stream = answers.into_inner();
    let word = stream.message().await?.ok_or_else(|| Status::unavailable("the watch ended"))?;
    // Changes that are not kept any more were changes.
    let is_change = word.canceled || !word.events.is_empty();
    Ok(if is_change { Told::Change } else { Told::Nothing(Box::new(stream)) })
}

fn watch_request(key: &[u8], after: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest {
        key: key.to_vec(),
        start_revision: after + 1,
        ..pb::WatchCreateRequest::default()
    };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

fn made_at(key: &[u8], revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.to_vec(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> pb::RequestOp {
    op(Op::RequestPut(pb::PutRequest { key, value, lease }))
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// The answers to N reads.
fn ranges<const N: usize>(answer: pb::TxnResponse) -> Result<[pb::RangeResponse; N], FleetError> {
    let ranges = answer.responses.into_iter().filter_map(|answer| {
        let Answer::ResponseRange(range) = answer.response?;
        Some(range)
    });
    let ranges: Vec<_> = ranges.collect();
    ranges.try_into().map_err(|_| FleetError::Unreachable("an answer is incomplete".to_owned()))
}

fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Whether another member, or the same one later, may answer otherwise.
fn is_passing(status: &Status) -> bool {
    let code = status.code();
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Internal)
        || matches!(code, Code::Cancelled | Code::Aborted | Code::ResourceExhausted)
}

fn is_no_lease(error: &FleetError) -> bool {
    matches!(error, FleetError::Refused { status, .. } if status.message().contains(NO_LEASE))
}

/// What a status says, with what is behind it: that a connection was refused, say.
fn text_of(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut last = None;
    while let Some(error) = cause {
        last = Some(error.to_string());
        cause = error.source();
    }
    last.unwrap_or_else(|| status.message().to_owned())
}
