//! Who may call what, in one place for all services: a layer around them that knows caller and method.
//!
//! 1. Each method has a least role. One that is in no row needs the greatest.
//! 2. It is looked up at each call, so a change of a role is a change for the next call, also of a connection
//!    that is open.
//! 3. Callers of this machine that may use the socket at all are admins: they could replace the program anyway.

use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use tonic::codegen::http;
use tonic::{Request, Status};
use tower::{Layer, Service};

use super::listen::Caller;
use super::status;
use crate::trust::{PeerBook, Role};
use crate::wire::v1;

/// The methods and who may call them at least.
const METHODS: &[(&str, Role)] = &[
    ("/baton.v1.Agent/Config", Role::Observer),
    ("/baton.v1.Agent/Drain", Role::Operator),
    ("/baton.v1.Agent/Info", Role::Observer),
    ("/baton.v1.Agent/Reload", Role::Admin),
    ("/baton.v1.Agent/Resume", Role::Operator),
    ("/baton.v1.Agent/Upgrade", Role::Admin),
    ("/baton.v1.Agent/Watch", Role::Observer),
    ("/baton.v1.Files/Download", Role::Observer),
    ("/baton.v1.Files/Stat", Role::Observer),
    ("/baton.v1.Files/Upload", Role::Operator),
    ("/baton.v1.Leases/CloseLease", Role::Operator),
    ("/baton.v1.Leases/ListLeases", Role::Observer),
    ("/baton.v1.Leases/OpenLease", Role::Operator),
    ("/baton.v1.Leases/RenewLease", Role::Operator),
    ("/baton.v1.Packages/GetPackage", Role::Observer),
    ("/baton.v1.Packages/ListPackages", Role::Observer),
    ("/baton.v1.Packages/RemovePackage", Role::Operator),
    ("/baton.v1.Packages/SendPackage", Role::Operator),
    ("/baton.v1.Scripts/Cancel", Role::Operator),
    ("/baton.v1.Scripts/DownloadArtifact", Role::Observer),
    ("/baton.v1.Scripts/Forget", Role::Operator),
    ("/baton.v1.Scripts/Get", Role::Observer),
    ("/baton.v1.Scripts/List", Role::Observer),
    ("/baton.v1.Scripts/ListArtifacts", Role::Observer),
    ("/baton.v1.Scripts/Run", Role::Operator),
    ("/baton.v1.Scripts/Start", Role::Operator),
    ("/baton.v1.Scripts/Watch", Role::Observer),
    ("/grpc.health.v1.Health/Check", Role::Observer),
    ("/grpc.health.v1.Health/Watch", Role::Observer),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Role::Observer),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Role::Observer),
];
/// Who may give up what nothing can end (a Cancel that abandons): the next holder of its mutexes runs beside it.
const ABANDON: Role = Role::Admin;

/// Who may call a method at least (rule 1).
fn least_role(path: &str) -> Role {
    let row = METHODS.iter().find(|(method, _)| *method == path);
    row.map_or(Role::Admin, |(_, role)| *role)
}

/// What a caller may do, and how it is named in a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Admitted {
    /// Its role.
    pub(super) role: Role,
    /// A peer's name and fingerprint, with which it would be given another role.
    pub(super) peer: Option<(String, String)>,
}

/// Makes [`Admission`].
#[derive(Debug, Clone)]
pub(super) struct AdmissionLayer {
    /// Who may call over TLS; `None`: nobody.
    pub(super) peers: Option<PeerBook>,
}

/// The services behind the check.
#[derive(Debug, Clone)]
pub(super) struct Admission<S> {
    inner: S,
    peers: Option<PeerBook>,
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, peers: self.peers.clone() }
    }
}

impl<S, B, R> Service<http::Request<B>> for Admission<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, Self::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let admitted = admit(request.extensions().get(), self.peers.as_ref())
            .and_then(|admitted| check(path, least_role(path), admitted));
        match admitted {
            Ok(admitted) => {
                request.extensions_mut().insert(admitted);
                Either::Right(self.inner.call(request))
            }
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

/// What a caller may do now.
fn admit(caller: Option<&Caller>, peers: Option<&PeerBook>) -> Result<Admitted, Status> {
    match caller {
        Some(Caller::Remote { fingerprint, .. }) => {
            let peers = peers.ok_or_else(|| status::refusal("no peers are known"))?;
            let peer =
                peers.check(*fingerprint).map_err(|why| status::refusal(&why.to_string()))?;
            Ok(Admitted { role: peer.role, peer: Some((peer.name, fingerprint.to_string())) })
        }
        Some(Caller::Local { uid }) => {
            if *uid != 0 && *uid != rustix::process::geteuid().as_raw() {
                let text = format!("user {uid} may not use this agent's socket");
                return Err(status::refusal(&text));
            }
            Ok(Admitted { role: Role::Admin, peer: None })
        }
        Some(Caller::Embedded) => Ok(Admitted { role: Role::Admin, peer: None }),
        None => Err(status::refusal("caller is not known")),
    }
}

fn check(what: &str, needed: Role, admitted: Admitted) -> Result<Admitted, Status> {
    if admitted.role >= needed {
        return Ok(admitted);
    }
    tracing::info!(what, %needed, role = %admitted.role, peer = ?admitted.peer, "call refused");
    Err(status::role(what, needed, &admitted))
}

/// Refuses an abandon by those who may only cancel.
pub(super) fn may_cancel(request: &Request<v1::CancelRequest>) -> Result<(), Status> {
    if !request.get_ref().abandon {
        return Ok(());
    }
    let Some(admitted) = request.extensions().get::<Admitted>() else {
        return Err(status::refusal("caller is not known"));
    };
    check("Cancel with abandon", ABANDON, admitted.clone()).map(drop)
}

/// What the caller may do.
pub(super) fn role<T>(request: &Request<T>) -> Role {
    request.extensions().get::<Admitted>().map_or(Role::Observer, |admitted| admitted.role)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    /// The methods of all services that an agent describes.
    fn described() -> BTreeSet<String> {
        let mut methods = BTreeSet::new();
        let sets = [
            crate::wire::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        for set in sets {
            let set = prost_types::FileDescriptorSet::decode(set).unwrap();
            for file in set.file {
                for service in &file.service {
                    let name = format!("/{}.{}", file.package(), service.name());
                    let method = |m: &prost_types::MethodDescriptorProto| m.name().to_owned();
                    methods.extend(service.method.iter().map(|m| format!("{name}/{}", method(m))));
                }
            }
        }
        methods
    }

    #[test]
    fn rule_1_each_method_has_one_row_and_no_row_is_of_none() {
        let rows: BTreeSet<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(rows.len(), METHODS.len());
        assert_eq!(rows, described());
    }

    #[test]
    fn rule_1_what_changes_something_is_not_for_observers_and_the_unknown_is_for_admins() {
        for reads in ["Info", "Watch", "Get", "List", "Stat", "Download", "DownloadArtifact"] {
            let rows: Vec<_> =
                METHODS.iter().filter(|(path, _)| path.ends_with(&format!("/{reads}"))).collect();
            assert!(!rows.is_empty(), "{reads}");
            assert!(rows.iter().all(|(_, role)| *role == Role::Observer), "{reads}");
        }
        for changes in ["Start", "Run", "Cancel", "Upload", "Drain", "OpenLease", "SendPackage"] {
            let (_, role) =
                METHODS.iter().find(|(path, _)| path.ends_with(&format!("/{changes}"))).unwrap();
            assert_eq!(*role, Role::Operator, "{changes}");
        }
        assert_eq!(least_role("/baton.v1.Scripts/Later"), Role::Admin);
    }
}
