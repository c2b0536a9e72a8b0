//! Promise: the shape of what is stored and sent changes only on purpose: what every release wrote is read, and
//! what this one writes is what the newest folder of tests/compat says.
//!
//! `BATON_TEST_KEEP=1 cargo test --test shapes` writes tests/compat/next: what this program writes now. A release
//! renames that folder to its version. What a test finds broken against an older folder is not to be kept, but to be
//! put right: older files exist, and older programs and clients too.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails here")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton::deploy::event::{
    Event as DeployEvent, JobResult, State, TargetResult, TargetVerdict, Transfer, Verdict, What,
};
use baton::deploy::record::Answer;
use baton::journal::Limits;
use baton::mutex::abandoned::Abandoned;
use baton::mutex::breaking::Break;
use baton::mutex::deadlock::Held;
use baton::mutex::{Blocked, Claim, Claimant, Mode, Party};
use baton::process::ProcessId;
use baton::script::{
    Blocker, DropCause, Fate, Outcome, OutcomeKind, Phase, Restart, StartProblem, Straggler,
    StragglerPolicy, Stream, Waited,
};
use baton::spec::OnLeaseEnd;
use baton::supervisor::job::{Assignment, Cancel, Ending, Job, Lease, LeaseEnd, Reboot, Report};
use baton::values::{Place, Problem, Progress, Remark, Values};
use jiff::Timestamp;
use prost::Message as _;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, FileDescriptorSet};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const COMPAT: &str = "tests/compat";
/// What the next release writes.
const NEXT: &str = "next";

fn text(what: &str) -> String {
    what.to_owned()
}

fn time() -> Timestamp {
    Timestamp::from_second(1_795_651_200).unwrap()
}

/// One value of each shape of a type, by the type's name.
#[derive(Default)]
struct Shapes {
    all: BTreeMap<&'static str, Vec<Value>>,
    /// What is kept that can't be read.
    unread: Vec<String>,
    kept: BTreeMap<String, Vec<Value>>,
}

impl Shapes {
    /// Adds them; reads what is kept of this type.
    fn add<T: Serialize + DeserializeOwned + PartialEq>(
        &mut self,
        name: &'static str,
        values: &[T],
    ) {
        let values: Vec<Value> = values.iter().map(|v| serde_json::to_value(v).unwrap()).collect();
        for value in &values {
            let read: T = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), *value, "{name}");
        }
        for value in self.kept.get(name).into_iter().flatten() {
            if let Err(error) = serde_json::from_value::<T>(value.clone()) {
                self.unread.push(format!("{name}: {error}: {value}"));
            }
        }
        self.all.insert(name, values);
    }
}

fn outcomes() -> Vec<OutcomeKind> {
    let (reason, limit) = (text("why"), Duration::from_millis(1500));
    let causes = [
        StartProblem::NotFound,
        StartProblem::NotExecutable,
        StartProblem::Agent,
        StartProblem::Lease,
    ];
    let mut all = vec![
        OutcomeKind::Exited { code: 3 },
        OutcomeKind::Signalled { signal: 9 },
        OutcomeKind::Cancelled { while_queued: true, reason: reason.clone() },
        OutcomeKind::TimedOut { limit },
        OutcomeKind::QueueTimedOut { limit },
        OutcomeKind::Lost { reason: reason.clone() },
        OutcomeKind::LeaseClosed { reason: reason.clone() },
        OutcomeKind::LeaseExpired { reason: reason.clone() },
    ];
    for cause in causes {
        all.push(OutcomeKind::NotStarted { cause, reason: reason.clone() });
    }
    // A new kind does not compile here: it belongs into the list above, and is a new format of the workspace.
    for kind in &all {
        match kind {
            OutcomeKind::Exited { .. }
            | OutcomeKind::Signalled { .. }
            | OutcomeKind::Cancelled { .. }
            | OutcomeKind::TimedOut { .. }
            | OutcomeKind::QueueTimedOut { .. }
            | OutcomeKind::NotStarted { .. }
            | OutcomeKind::Lost { .. }
            | OutcomeKind::LeaseClosed { .. }
            | OutcomeKind::LeaseExpired { .. } => {}
        }
    }
    all
}

fn outcome(kind: OutcomeKind) -> Outcome {
    let straggler = |fate| Straggler { pid: 7, command: text("sleep"), fate };
    let remark = |place, problem| Remark { place, problem, name: text("n") };
    Outcome {
        kind,
        stragglers: [Fate::Ended, Fate::Kept, Fate::Abandoned].map(straggler).to_vec(),
        output_dropped_bytes: 1,
        output_drop_cause: Some(DropCause::FreeSpace),
        values: Values {
            outputs: [(text("a"), text("1"))].into(),
            remarks: vec![
                remark(Place::File(1), Problem::NotUnderstood),
                remark(Place::Message(2), Problem::UnknownMessage),
                remark(Place::Progress, Problem::NoRoom),
            ],
            remarks_dropped: 1,
            progress: Some(Progress { percent: 40, message: text("m") }),
        },
        waited: Some(Waited {
            time: Duration::from_secs(2),
            blockers: vec![Blocker {
                mutex: text("machine"),
                script_id: text("s"),
                pid: 1,
                user: text("root"),
                command: text("c"),
            }],
        }),
        attempts: 2,
    }
}

fn claimant() -> Claimant {
    Claimant {
        pid: 1,
        user: text("root"),
        script_id: Some(text("s")),
        command: text("c"),
        labels: [(text("project"), text("web"))].into(),
        reason: text("r"),
        claim: text("claim"),
        within: vec![Held { mutex: "log".parse().unwrap(), ticket: 5 }],
        kept_for: Some(2),
        leader: Some(process()),
        warn_after_ms: Some(3),
        lease_expires_at: Some(time()),
        waits_since: time(),
        holds_since: Some(time()),
    }
}

fn process() -> ProcessId {
    serde_json::from_str(r#"{"pid":3,"started":4}"#).unwrap()
}

fn restart() -> Restart {
    let dropped = Some((DropCause::Disk, 9));
    Restart { attempt: 1, boot_id: text("boot"), since: time(), reason: text("r"), dropped }
}

fn job(lease: Lease) -> Job {
    let claim = |name: &str, mode| Claim { name: name.parse().unwrap(), mode };
    Job {
        script_id: "s".parse().unwrap(),
        token: text("t"),
        supervisor: 1,
        command: vec![text("bash"), text("script")],
        environment: [(text("A"), text("b"))].into(),
        directory: PathBuf::from("/d"),
        mutexes: PathBuf::from("/m"),
        claims: vec![
            claim("machine", Mode::Exclusive),
            claim("log", Mode::Shared),
            claim("two", Mode::AtMost(std::num::NonZeroU32::MIN)),
        ],
        claimant: claimant(),
        queue_time: Some((Duration::from_secs(1), Duration::from_secs(2))),
        run_time_limit: Some(Duration::from_secs(3)),
        grace: Duration::from_secs(4),
        output: Limits { max_bytes: 5, min_free_bytes: 6 },
        open_files: Some(7),
        sensitive: vec![text("PASSWORD")],
        stragglers: StragglerPolicy::Keep,
        boot_id: text("boot"),
        service_messages: true,
        may_resume: true,
        reboot_exit_code: std::num::NonZeroU8::new(41),
        restart: Some(restart()),
        lease,
    }
}

fn reports() -> Vec<Report> {
    let blocked = Blocked {
        mutex: "machine".parse().unwrap(),
        position: 1,
        holders: vec![Party { who: claimant(), exclusive: true }],
        ahead: vec![Party { who: claimant(), exclusive: false }],
        foreign: true,
    };
    let left = Straggler { pid: 7, command: text("c"), fate: Fate::Ended };
    let all = vec![
        Report::Launched { token: text("t") },
        Report::Joined,
        Report::Waiting { blocked: vec![blocked] },
        Report::Starting { boot_id: text("boot") },
        Report::Started { leader: Some(process()) },
        Report::Stopping,
        Report::AwaitsRestart { restart: restart() },
        Report::Stuck { processes: vec![left] },
        Report::OutputDropped { cause: DropCause::Limit, bytes: 2, here: 1 },
        Report::Progress(Progress { percent: 1, message: text("m") }),
    ];
    for report in &all {
        match report {
            Report::Launched { .. }
            | Report::Joined
            | Report::Waiting { .. }
            | Report::Starting { .. }
            | Report::Started { .. }
            | Report::Stopping
            | Report::AwaitsRestart { .. }
            | Report::Stuck { .. }
            | Report::OutputDropped { .. }
            | Report::Progress(_) => {}
        }
    }
    all
}

/// All types that are stored or pass between processes.
fn shapes(kept: BTreeMap<String, Vec<Value>>) -> Shapes {
    let mut shapes = Shapes { kept, ..Shapes::default() };
    let mut phases = vec![Phase::Queued, Phase::Waiting, Phase::Running, Phase::Stopping];
    phases.extend(outcomes().into_iter().map(|kind| Phase::Done(outcome(kind))));
    phases.push(Phase::Done(OutcomeKind::Exited { code: 0 }.into()));
    shapes.add("Phase", &phases);
    let assignment = Assignment { workspace: PathBuf::from("/w"), token: text("t"), tied: true };
    shapes.add("Assignment", &[assignment]);
    let leases = [Lease::None, Lease::Itself, Lease::Under(PathBuf::from("/l"))];
    shapes.add("Job", &leases.map(job));
    let ends = [LeaseEnd::Closed, LeaseEnd::Expired, LeaseEnd::Cancelled, LeaseEnd::Lost];
    let cancels = ends.map(|end| Cancel {
        reason: text("r"),
        abandon: Some(text("a")),
        lease: Some((end, OnLeaseEnd::Cancel)),
    });
    shapes.add("Cancel", &cancels);
    shapes.add("Reboot", &[Reboot { attempt: 1, reason: text("r") }]);
    shapes.add("Restart", &[restart()]);
    shapes.add("Report", &reports());
    let ending = |started_at| Ending {
        outcome: outcome(OutcomeKind::Exited { code: 0 }),
        started_at,
        ended_at: time(),
    };
    shapes.add("Ending", &[ending(Some(time())), ending(None)]);
    shapes.add("Claimant", &[claimant(), Claimant::default()]);
    let abandoned =
        Abandoned { at: time(), holder: text("h"), reason: text("r"), processes: vec![text("p")] };
    shapes.add("Abandoned", &[abandoned]);
    let broken = Break {
        at: time(),
        ticket: 1,
        holder: claimant(),
        by_user: text("u"),
        by_pid: 2,
        reason: text("r"),
    };
    shapes.add("Break", &[broken]);
    shapes.add("Answer", &[Answer { by: text("ann"), goes_on: true }]);
    shapes.add("Event", &deployment());
    shapes
}

/// How a step can stand.
fn states() -> Vec<State> {
    let results =
        [JobResult::Succeeded, JobResult::Failed, JobResult::Skipped, JobResult::Cancelled];
    let mut states = vec![
        State::Waits { position: 1, reason: text("r"), behind: text("b") },
        State::Runs,
        State::Progress { percent: 1, text: text("t") },
        State::Interrupted { why: text("w") },
        State::Away { since: time(), until: time(), why: text("w") },
        State::Back { since: time() },
        State::TriedAgain { how: text("h"), after_seconds: 1 },
    ];
    states.extend(results.map(|result| State::Ended {
        result,
        how: text("h"),
        queued_at: Some(time()),
        started_at: Some(time()),
        ended_at: None,
    }));
    states
}

fn deployment() -> Vec<DeployEvent> {
    let target = |result| TargetResult { target: text("web-1"), result, how: text("h") };
    let results = [
        TargetVerdict::Succeeded,
        TargetVerdict::DoneBefore,
        TargetVerdict::Failed,
        TargetVerdict::LeftOut,
        TargetVerdict::Unfinished,
    ];
    let whats = vec![
        What::Began {
            project: text("web"),
            environment: text("Live"),
            tenant: Some(text("t")),
            release: Some(text("1.4")),
            targets: vec![text("web-1")],
            steps: vec![text("Install")],
        },
        What::WaitsForTurn { reason: text("r") },
        What::HasTurn,
        What::LeftOut { target: text("web-1"), why: text("w") },
        What::Package {
            target: text("web-1"),
            package: text("app"),
            version: text("1.0"),
            transfer: Transfer::Done { total: 2, sent: 1 },
        },
        What::Output {
            target: text("web-1"),
            step: text("Install"),
            stream: Stream::Stderr,
            line: text("l"),
        },
        What::Paused { step: text("Ask"), message: text("m") },
        What::Answered { step: text("Ask"), by: text("ann"), goes_on: true },
        What::Ends { why: text("w") },
        What::Over { result: Verdict::Failed, targets: results.map(target).to_vec() },
    ];
    let transfers = [
        Transfer::Sends { done: 1, total: 2 },
        Transfer::Away { since: time(), until: time(), why: text("w") },
        Transfer::Failed { why: text("w") },
    ];
    let (target, package, version) = (text("web-1"), text("app"), text("1.0"));
    let transfers = transfers.map(|transfer| {
        let (target, package, version) = (target.clone(), package.clone(), version.clone());
        What::Package { target, package, version, transfer }
    });
    let states = states().into_iter().map(|state| {
        let (target, step) = (text("web-1"), text("Install"));
        What::Job { target, step, number: 1, attempt: 1, state }
    });
    whats
        .into_iter()
        .chain(transfers)
        .chain(states)
        .map(|what| DeployEvent { at: time(), run: text("r"), what })
        .collect()
}

/// Folders with this file, the newest last.
fn kept(name: &str) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(COMPAT).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        folders.map(|folder| folder.join(name)).filter(|file| file.exists()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name}");
    files
}

/// Checks what this program writes against what is kept of it, or keeps it.
fn is_as_kept(name: &str, now: impl IntoIterator<Item = String>) {
    let path = Path::new(COMPAT).join(NEXT).join(name);
    let now: Vec<String> = now.into_iter().collect();
    if std::env::var_os("BATON_TEST_KEEP").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        support::write(&path, &(now.join("\n") + "\n"));
    }
    let newest = kept(name).pop().unwrap();
    let before = std::fs::read_to_string(&newest).unwrap();
    let before: BTreeSet<_> = before.lines().map(str::to_owned).collect();
    let now_lines: BTreeSet<_> = now.into_iter().collect();
    let gone: Vec<_> = before.difference(&now_lines).collect();
    let new: Vec<_> = now_lines.difference(&before).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "{} is not what this program writes. Meant? Then BATON_TEST_KEEP=1 cargo test --test shapes, after \
         docs/formats.md.\ngone: {gone:#?}\nnew: {new:#?}",
        newest.display()
    );
}

#[test]
fn what_every_release_stored_is_read_and_its_shape_is_the_kept_one() {
    for path in kept("shapes.jsonl") {
        let mut samples: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let (name, value) = line.split_once(' ').unwrap();
            samples.entry(text(name)).or_default().push(serde_json::from_str(value).unwrap());
        }
        let names: BTreeSet<_> = samples.keys().cloned().collect();
        let found = shapes(samples);
        let known: BTreeSet<_> = found.all.keys().map(|name| text(name)).collect();
        assert!(names.is_subset(&known), "{path:?}: {:?}", names.difference(&known));
        assert!(found.unread.is_empty(), "{path:?}: {:#?}", found.unread);
    }
    let all = shapes(BTreeMap::new()).all;
    let lines = all
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{name} {value}")));
    is_as_kept("shapes.jsonl", lines);
}

#[test]
fn a_step_of_the_database_that_was_released_never_changes() {
    let mut files: Vec<_> =
        std::fs::read_dir("src/store/steps").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let now: BTreeMap<_, _> = files
        .iter()
        .map(|file| {
            let bytes = std::fs::read(file).unwrap();
            (text(file.file_name().unwrap().to_str().unwrap()), baton::transfer::Digest::of(&bytes))
        })
        .collect();
    assert_eq!(u64::try_from(now.len()).unwrap(), baton::store::known_version());
    let lines: Vec<_> = now.iter().map(|(name, digest)| format!("{digest}  {name}")).collect();
    for path in kept("steps.sha256") {
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            assert!(lines.iter().any(|now| now == line), "{path:?}: {line}");
        }
    }
    is_as_kept("steps.sha256", lines);
}

/// The API as lines, one for each thing that a client may rely on.
fn api(descriptors: &[u8]) -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(descriptors).unwrap();
    let mut lines = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package() == "baton.v1") {
        for message in &file.message_type {
            add_message(message, "baton.v1", &mut lines);
        }
        for one in &file.enum_type {
            add_enum(one, "baton.v1", &mut lines);
        }
        for service in &file.service {
            for call in &service.method {
                let stream = |is: bool| if is { "stream " } else { "" };
                lines.insert(format!(
                    "rpc baton.v1.{}.{} ({}{}) returns ({}{})",
                    service.name(),
                    call.name(),
                    stream(call.client_streaming()),
                    call.input_type(),
                    stream(call.server_streaming()),
                    call.output_type()
                ));
            }
        }
    }
    lines
}

fn add_message(message: &DescriptorProto, within: &str, lines: &mut BTreeSet<String>) {
    let name = format!("{within}.{}", message.name());
    lines.insert(format!("message {name}"));
    for field in &message.field {
        let label = if field.label() == Label::Repeated { "repeated" } else { "single" };
        let kind = match field.type_name() {
            "" => format!("{:?}", field.r#type()),
            named => text(named),
        };
        let one_of = field
            .oneof_index
            .map(|index| message.oneof_decl[usize::try_from(index).unwrap()].name());
        let one_of = one_of.map(|one_of| format!(" of {one_of}")).unwrap_or_default();
        lines.insert(format!(
            "field {name} {} {} {label} {kind}{one_of}",
            field.number(),
            field.name()
        ));
    }
    for range in &message.reserved_range {
        for number in range.start()..range.end() {
            lines.insert(format!("reserved {name} {number}"));
        }
    }
    lines.extend(message.reserved_name.iter().map(|gone| format!("reserved {name} {gone}")));
    for nested in &message.nested_type {
        add_message(nested, &name, lines);
    }
    for nested in &message.enum_type {
        add_enum(nested, &name, lines);
    }
}

fn add_enum(one: &prost_types::EnumDescriptorProto, within: &str, lines: &mut BTreeSet<String>) {
    let name = format!("{within}.{}", one.name());
    lines.insert(format!("enum {name}"));
    for value in &one.value {
        lines.insert(format!("field {name} {} {}", value.number(), value.name()));
    }
    for range in &one.reserved_range {
        for number in range.start()..=range.end() {
            lines.insert(format!("reserved {name} {number}"));
        }
    }
    lines.extend(one.reserved_name.iter().map(|gone| format!("reserved {name} {gone}")));
}

/// What an older client or agent relies on and does not find any more. A field may go when its number and its
/// name are reserved.
fn broken(before: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    let is_kept = |line: &&String| {
        let words: Vec<_> = line.split(' ').collect();
        let is_reserved = |word: &str| now.contains(&format!("reserved {} {word}", words[1]));
        now.contains(*line)
            || (words[0] == "field" && is_reserved(words[2]) && is_reserved(words[3]))
    };
    before.iter().filter(|line| !is_kept(line)).cloned().collect()
}

#[test]
fn the_api_only_grows_and_its_revision_with_it() {
    let now = api(baton::wire::DESCRIPTORS);
    for path in kept("api.txt") {
        // What was not released yet may change.
        if path.starts_with(Path::new(COMPAT).join(NEXT)) {
            continue;
        }
        let text_of = |path: &Path| std::fs::read_to_string(path).unwrap();
        let before: BTreeSet<_> = text_of(&path).lines().map(text).collect();
        assert_eq!(broken(&before, &now), Vec::<String>::new(), "{}", path.display());
        let revision: u32 = text_of(&path.with_file_name("api-revision")).trim().parse().unwrap();
        let has_grown = before != now;
        assert_eq!(baton::format::API_REVISION > revision, has_grown, "{}", path.display());
    }
    is_as_kept("api.txt", now);
}

#[test]
fn what_would_break_a_client_is_found() {
    let set = |lines: &[&str]| lines.iter().map(|line| text(line)).collect::<BTreeSet<_>>();
    let before = set(&[
        "message m",
        "field m 1 a single String",
        "field m 2 b repeated Bytes",
        "rpc s.Call (.m) returns (stream .m)",
    ]);
    assert!(broken(&before, &before).is_empty());
    let grown =
        [&before.iter().map(String::as_str).collect::<Vec<_>>()[..], &["field m 3 c single Bool"]];
    assert!(broken(&before, &set(&grown.concat())).is_empty());
    for (gone, instead) in [
        ("field m 1 a single String", &[][..]),
        ("field m 1 a single String", &["field m 1 a single Bytes"]),
        ("field m 1 a single String", &["field m 1 other single String"]),
        ("field m 2 b repeated Bytes", &["field m 2 b single Bytes"]),
        ("field m 1 a single String", &["field m 1 a single String of kind"]),
        ("field m 1 a single String", &["reserved m 1"]),
        ("field m 1 a single String", &["reserved m a"]),
        ("rpc s.Call (.m) returns (stream .m)", &["rpc s.Call (.m) returns (.m)"]),
        ("rpc s.Call (.m) returns (stream .m)", &["rpc s.Other (.m) returns (stream .m)"]),
    ] {
        let mut now = before.clone();
        assert!(now.remove(gone));
        now.extend(set(instead));
        assert_eq!(broken(&before, &now), [gone], "{instead:?}");
    }
    let mut reserved = before.clone();
    reserved.remove("field m 1 a single String");
    reserved.extend(set(&["reserved m 1", "reserved m a"]));
    assert!(broken(&before, &reserved).is_empty());
}
