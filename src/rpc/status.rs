//! Errors as gRPC statuses. Each has a stable, machine-readable reason (`google.rpc.ErrorInfo`, domain
//! `baton`) beside its text; `docs/errors.md` lists them.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::admission::Admitted;
use crate::agent::AgentError;
use crate::artifacts::ArtifactError;
use crate::packages::PackageError;
use crate::script::NameError;
use crate::spec::{Problem, SpecError};
use crate::transfer::TransferError;
use crate::trust::Role;
use crate::upgrade::{MAX_PROGRAM_BYTES, UpgradeError};

/// The domain of all reasons.
const DOMAIN: &str = "baton";

fn status(code: Code, reason: &str, text: String, metadata: HashMap<String, String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, text, details)
}

fn about(key: &str, value: impl Into<String>) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.into())])
}

/// Who may not call.
pub(super) fn refusal(text: &str) -> Status {
    status(Code::PermissionDenied, "NOT_ALLOWED", text.to_owned(), HashMap::new())
}

/// Who may call, but not this.
pub(super) fn role(what: &str, needed: Role, admitted: &Admitted) -> Status {
    let name = what.rsplit('/').next().unwrap_or_default();
    let mut metadata = HashMap::from([
        ("role".to_owned(), admitted.role.to_string()),
        ("needed".to_owned(), needed.to_string()),
        ("method".to_owned(), what.to_owned()),
    ]);
    let mut who = "the caller".to_owned();
    if let Some((peer, fingerprint)) = &admitted.peer {
        who.clone_from(peer);
        metadata.insert("peer".to_owned(), peer.clone());
        metadata.insert("fingerprint".to_owned(), fingerprint.clone());
    }
    let text = format!("{name} needs the role {needed}, and {who} has the role {}", admitted.role);
    status(Code::PermissionDenied, "ROLE_TOO_LOW", text, metadata)
}

/// The agent ends.
pub(super) fn stopping() -> Status {
    let text = "the agent is stopping; scripts go on".to_owned();
    status(Code::Unavailable, "AGENT_STOPPING", text, HashMap::new())
}

/// A field of a request that is no part of a script's specification.
pub(super) fn field(field: &str, problem: &str) -> Status {
    let text = format!("{field} {problem}");
    status(Code::InvalidArgument, "FIELD_INVALID", text, about("field", field))
}

/// A script id that is none.
pub(super) fn script_id(error: &NameError) -> Status {
    field("script_id", &error.to_string())
}

/// A lease id that is none.
pub(super) fn lease_id(error: &NameError) -> Status {
    field("lease_id", &error.to_string())
}

/// A request for a lease that can't be accepted.
pub(super) fn lease(error: SpecError) -> Status {
    let field = if error.field == "script_id" { "lease_id".to_owned() } else { error.field };
    spec(&SpecError { field, ..error })
}

/// A request that can't be accepted.
pub(super) fn spec(error: &SpecError) -> Status {
    let reason = match error.problem {
        Problem::EmptyScript => "SCRIPT_EMPTY",
        Problem::TooLarge { .. } | Problem::TooMany { .. } => "FIELD_TOO_LARGE",
        Problem::ZeroTime => "TIME_LIMIT_ZERO",
        Problem::Missing
        | Problem::Name(_)
        | Problem::TimeRange(_)
        | Problem::NotAbsolute
        | Problem::Invalid(_) => "FIELD_INVALID",
    };
    let metadata = about("field", error.field.clone());
    status(Code::InvalidArgument, reason, error.to_string(), metadata)
}

/// What an agent could not do.
pub(super) fn agent(error: &AgentError) -> Status {
    let (code, reason, metadata) = match error {
        AgentError::QueueFull(full) => {
            let capacity = about("capacity", full.capacity.to_string());
            (Code::ResourceExhausted, "QUEUE_FULL", capacity)
        }
        AgentError::Draining(drain) => {
            let since = about("since", drain.since.to_string());
            (Code::Unavailable, "AGENT_DRAINING", since)
        }
        AgentError::IdConflict { fields, .. } => {
            (Code::AlreadyExists, "SCRIPT_ID_CONFLICT", about("fields", fields.join(", ")))
        }
        AgentError::NotFound(id) => {
            (Code::NotFound, "SCRIPT_NOT_FOUND", about("script_id", id.to_string()))
        }
        AgentError::LeaseNotFound(id) => {
            (Code::NotFound, "LEASE_NOT_FOUND", about("lease_id", id.to_string()))
        }
        AgentError::LeaseEnded { id, .. } => {
            (Code::FailedPrecondition, "LEASE_ENDED", about("lease_id", id.to_string()))
        }
        AgentError::LeaseMutex { .. } => {
            (Code::InvalidArgument, "FIELD_INVALID", about("field", "mutex"))
        }
        AgentError::NotDone(id) => {
            (Code::FailedPrecondition, "SCRIPT_NOT_DONE", about("script_id", id.to_string()))
        }
        AgentError::OffsetBeyondEnd { end, .. } => {
            (Code::OutOfRange, "OFFSET_BEYOND_END", about("end", end.to_string()))
        }
        AgentError::Config(_) => (Code::FailedPrecondition, "CONFIG_INVALID", HashMap::new()),
        AgentError::Artifact { source, .. } => return artifact(source),
        AgentError::Stopping => return stopping(),
        AgentError::Store(_)
        | AgentError::Supervisor(_)
        | AgentError::Workspace(_)
        | AgentError::State { .. }
        | AgentError::Newer { .. }
        | AgentError::StateInUse { .. }
        | AgentError::OthersState { .. }
        | AgentError::StoredRequest { .. }
        | AgentError::Output { .. }
        | AgentError::Illegal(_) => {
            tracing::error!(error = crate::text::chain(error), "a call failed");
            (Code::Internal, "INTERNAL", HashMap::new())
        }
    };
    status(code, reason, crate::text::chain(error), metadata)
}

/// An upload of which nothing comes any more.
pub(super) fn silent(limit: std::time::Duration) -> Status {
    let text = format!("nothing of the upload came for {limit:?}; what came before is kept");
    status(Code::DeadlineExceeded, "UPLOAD_SILENT", text, HashMap::new())
}

/// A file that could not be brought or fetched.
pub(super) fn transfer(error: &TransferError) -> Status {
    let (code, reason, metadata) = match error {
        TransferError::UnknownRoot { root, .. } => {
            (Code::NotFound, "ROOT_NOT_FOUND", about("root", root))
        }
        TransferError::ReadOnly(root) => {
            (Code::PermissionDenied, "ROOT_READ_ONLY", about("root", root))
        }
        TransferError::Root { root, .. } => {
            (Code::FailedPrecondition, "ROOT_UNUSABLE", about("root", root))
        }
        TransferError::NotFound(_) => (Code::NotFound, "FILE_NOT_FOUND", HashMap::new()),
        TransferError::Link(_) => (Code::FailedPrecondition, "PATH_IS_LINK", HashMap::new()),
        TransferError::WrongKind { .. } => {
            (Code::FailedPrecondition, "FILE_KIND_WRONG", HashMap::new())
        }
        TransferError::OtherFileSystem(_) => {
            (Code::FailedPrecondition, "OTHER_FILE_SYSTEM", HashMap::new())
        }
        TransferError::TooLarge { limit, .. } => {
            (Code::InvalidArgument, "FILE_TOO_LARGE", about("limit", limit.to_string()))
        }
        TransferError::DiskFull { free, .. } => {
            (Code::ResourceExhausted, "DISK_FULL", about("free", free.to_string()))
        }
        TransferError::Busy(capacity) => {
            (Code::ResourceExhausted, "TRANSFERS_FULL", about("capacity", capacity.to_string()))
        }
        TransferError::WrongDigest { found, .. } => {
            (Code::DataLoss, "DIGEST_MISMATCH", about("found", found.to_string()))
        }
        TransferError::Incomplete { received, .. } => {
            (Code::Aborted, "UPLOAD_INCOMPLETE", about("received", received.to_string()))
        }
        TransferError::TooMuch { .. } => {
            (Code::InvalidArgument, "FIELD_TOO_LARGE", about("field", "data"))
        }
        TransferError::OffsetBeyondEnd { end, .. } => {
            (Code::OutOfRange, "OFFSET_BEYOND_END", about("end", end.to_string()))
        }
        TransferError::File { .. } => {
            tracing::error!(error = crate::text::chain(error), "a transfer failed");
            (Code::Internal, "INTERNAL", HashMap::new())
        }
    };
    status(code, reason, crate::text::chain(error), metadata)
}

/// A package that could not be brought, listed or removed.
pub(super) fn package(error: &PackageError) -> Status {
    let (code, reason, metadata) = match error {
        PackageError::Conflict { kept, .. } => {
            (Code::AlreadyExists, "PACKAGE_CONFLICT", about("kept", kept.to_string()))
        }
        PackageError::NotFound { .. } => (Code::NotFound, "PACKAGE_NOT_FOUND", HashMap::new()),
        PackageError::Manifest { .. } => (Code::InvalidArgument, "PACKAGE_INVALID", HashMap::new()),
        PackageError::WrongDigest { found, .. } => {
            (Code::DataLoss, "DIGEST_MISMATCH", about("found", found.to_string()))
        }
        PackageError::WrongChunk(_) => (Code::DataLoss, "CHUNK_INVALID", HashMap::new()),
        PackageError::TooMuch(what) => {
            (Code::InvalidArgument, "FIELD_TOO_LARGE", about("field", *what))
        }
        PackageError::Incomplete { left, .. } => {
            (Code::Aborted, "UPLOAD_INCOMPLETE", about("missing", left.to_string()))
        }
        PackageError::TooLarge { limit, .. } => {
            (Code::InvalidArgument, "PACKAGE_TOO_LARGE", about("limit", limit.to_string()))
        }
        PackageError::TooMany => (Code::ResourceExhausted, "PACKAGES_FULL", HashMap::new()),
        PackageError::DiskFull { free, .. } => {
            (Code::ResourceExhausted, "DISK_FULL", about("free", free.to_string()))
        }
        PackageError::File { .. } => {
            tracing::error!(error = crate::text::chain(error), "a call failed");
            (Code::Internal, "INTERNAL", HashMap::new())
        }
    };
    status(code, reason, crate::text::chain(error), metadata)
}

/// A new version of the program that is not taken.
pub(super) fn upgrade(error: &UpgradeError) -> Status {
    let (code, reason, metadata) = match error {
        UpgradeError::NoKeys => {
            (Code::FailedPrecondition, "UPGRADE_NOT_CONFIGURED", HashMap::new())
        }
        UpgradeError::InProgress(_) => {
            (Code::FailedPrecondition, "UPGRADE_IN_PROGRESS", HashMap::new())
        }
        UpgradeError::TooLarge { .. } => {
            let limit = about("limit", MAX_PROGRAM_BYTES.to_string());
            (Code::InvalidArgument, "FILE_TOO_LARGE", limit)
        }
        UpgradeError::DiskFull { free, .. } => {
            (Code::ResourceExhausted, "DISK_FULL", about("free", free.to_string()))
        }
        UpgradeError::Incomplete { received, .. } => {
            (Code::Aborted, "UPLOAD_INCOMPLETE", about("received", received.to_string()))
        }
        UpgradeError::TooMuch(_) => {
            (Code::InvalidArgument, "FIELD_TOO_LARGE", about("field", "data"))
        }
        UpgradeError::WrongDigest { found, .. } => {
            (Code::DataLoss, "DIGEST_MISMATCH", about("found", found.to_string()))
        }
        UpgradeError::UnknownKey(_) => {
            (Code::PermissionDenied, "SIGNATURE_KEY_UNKNOWN", HashMap::new())
        }
        UpgradeError::Signature(_) => (Code::PermissionDenied, "SIGNATURE_INVALID", HashMap::new()),
        UpgradeError::Unfit(_) => (Code::InvalidArgument, "PROGRAM_UNFIT", HashMap::new()),
        UpgradeError::Trial(_) => (Code::FailedPrecondition, "PROGRAM_FAILED", HashMap::new()),
        UpgradeError::Older { running, .. } => {
            (Code::FailedPrecondition, "PROGRAM_OLDER", about("running", running.to_string()))
        }
        UpgradeError::NotWritable { .. } => {
            (Code::FailedPrecondition, "PROGRAM_NOT_WRITABLE", HashMap::new())
        }
        UpgradeError::Guard(_) | UpgradeError::File { .. } | UpgradeError::Record(_) => {
            tracing::error!(error = crate::text::chain(error), "an upgrade failed");
            (Code::Internal, "INTERNAL", HashMap::new())
        }
    };
    status(code, reason, crate::text::chain(error), metadata)
}

/// An artifact that can't be had.
fn artifact(error: &ArtifactError) -> Status {
    let (code, reason, metadata) = match error {
        ArtifactError::NotFound(path) => {
            (Code::NotFound, "ARTIFACT_NOT_FOUND", about("path", path.as_str()))
        }
        ArtifactError::NotAFile(path) => {
            (Code::FailedPrecondition, "ARTIFACT_NOT_A_FILE", about("path", path.as_str()))
        }
        ArtifactError::OffsetBeyondEnd { end, .. } => {
            (Code::OutOfRange, "OFFSET_BEYOND_END", about("end", end.to_string()))
        }
        ArtifactError::File { .. } => {
            tracing::error!(error = crate::text::chain(error), "a call failed");
            (Code::Internal, "INTERNAL", HashMap::new())
        }
    };
    status(code, reason, crate::text::chain(error), metadata)
}
