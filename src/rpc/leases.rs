//! The handlers of `baton.v1.Leases`.

use tonic::{Request, Response, Status};
use tracing::{Instrument as _, info_span};

use super::listen::caller;
use super::status;
use crate::agent::Agent;
use crate::script::ScriptId;
use crate::spec::{OnLeaseEnd, Spec};
use crate::wire::v1;

/// The longest reason of an end, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// The service.
pub(super) struct Service {
    agent: Agent,
}

impl Service {
    pub(super) fn new(agent: Agent) -> Self {
        Self { agent }
    }
}

fn parse_id(id: &str) -> Result<ScriptId, Status> {
    id.parse().map_err(|error| status::lease_id(&error))
}

fn parse_on_end(on_end: i32) -> Result<OnLeaseEnd, Status> {
    match v1::LeaseOnEnd::try_from(on_end) {
        Ok(v1::LeaseOnEnd::Unspecified | v1::LeaseOnEnd::Wait) => Ok(OnLeaseEnd::Wait),
        Ok(v1::LeaseOnEnd::Cancel) => Ok(OnLeaseEnd::Cancel),
        Err(_) => Err(status::field("on_end", "is not known")),
    }
}

#[tonic::async_trait]
impl v1::leases_server::Leases for Service {
    async fn open_lease(
        &self,
        request: Request<v1::OpenLeaseRequest>,
    ) -> Result<Response<v1::OpenLeaseResponse>, Status> {
        let caller = caller(&request);
        let spec = Spec::try_from(request.into_inner()).map_err(status::lease)?;
        let span = info_span!("OpenLease", script_id = %spec.script_id, caller);
        let lease = self.agent.open_lease(spec).instrument(span).await;
        let lease = lease.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::OpenLeaseResponse { lease: Some(lease.into()) }))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let id = parse_id(&request.into_inner().lease_id)?;
        let lease = self.agent.renew_lease(&id).await.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::RenewLeaseResponse { lease: Some(lease.into()) }))
    }

    async fn close_lease(
        &self,
        request: Request<v1::CloseLeaseRequest>,
    ) -> Result<Response<v1::CloseLeaseResponse>, Status> {
        let caller = caller(&request);
        let v1::CloseLeaseRequest { lease_id, on_end, reason } = request.into_inner();
        let (id, on_end) = (parse_id(&lease_id)?, parse_on_end(on_end)?);
        crate::script::check_text(&reason, MAX_REASON_BYTES)
            .map_err(|error| status::field("reason", &error.to_string()))?;
        let span = info_span!("CloseLease", script_id = lease_id, caller);
        let lease = self.agent.close_lease(&id, on_end, reason).instrument(span).await;
        let lease = lease.map_err(|e| status::agent(&e))?;
        Ok(Response::new(v1::CloseLeaseResponse { lease: Some(lease.into()) }))
    }

    async fn list_leases(
        &self,
        _: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        let leases = self.agent.leases().into_iter().map(v1::Script::from).collect();
        Ok(Response::new(v1::ListLeasesResponse { leases }))
    }
}
