//! The agent's gRPC front: listeners, who may call, handlers, errors.
//!
//! It stands above [`crate::agent`], which knows nothing of gRPC. Handlers only translate.

mod admission;
mod agent;
mod artifacts;
mod events;
mod files;
mod leases;
mod list;
pub mod listen;
mod packages;
mod scripts;
mod status;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::agent::Agent;
use crate::trust::PeerBook;
use crate::wire::{DESCRIPTORS, v1};
use admission::AdmissionLayer;
use listen::{Accepted, Io, MAX_WAITING_CONNECTIONS};

/// How much a stream may have on its way: one reader that stalls doesn't stall the others.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// How much a connection may have on its way: fifteen readers may stall.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * STREAM_WINDOW_BYTES;
/// How often a silent connection is asked whether it lives, and how long it may take to answer.
pub const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// How long connections may take to end at a shutdown: hyper may wait for a silent client for ever.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// Where an agent is reached.
#[derive(Default)]
pub struct Listeners {
    /// Peers, with mutual TLS.
    pub tcp: Option<(TcpListener, Arc<rustls::ServerConfig>, PeerBook)>,
    /// Callers on this machine.
    pub unix: Option<UnixListener>,
    /// The command that the agent is part of.
    pub embedded: Option<tokio::io::DuplexStream>,
}

/// Serves until `stop`; then streams are told, and connections end within a limit.
///
/// # Errors
/// When the server fails.
pub async fn serve(
    agent: Agent,
    listeners: Listeners,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let tasks = TaskTracker::new();
    let (accepted, incoming) = tokio::sync::mpsc::channel(MAX_WAITING_CONNECTIONS);
    let peers = listeners.accept(&accepted, &tasks, &stop).await;
    drop(tasks.spawn(stop_when_replaced(agent.replaced().clone(), stop.clone())));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<v1::scripts_server::ScriptsServer<scripts::Service>>().await;
    health.set_serving::<v1::agent_server::AgentServer<agent::Service>>().await;
    health.set_serving::<v1::leases_server::LeasesServer<leases::Service>>().await;
    health.set_serving::<v1::files_server::FilesServer<files::Service>>().await;
    health.set_serving::<v1::packages_server::PackagesServer<packages::Service>>().await;
    // Our own descriptors always are well-formed.
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .ok();
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .layer(AdmissionLayer { peers })
        .add_service(health_service)
        .add_optional_service(reflection)
        .add_service(v1::scripts_server::ScriptsServer::new(scripts::Service::new(
            agent.clone(),
            stop.clone(),
        )))
        .add_service(v1::leases_server::LeasesServer::new(leases::Service::new(agent.clone())))
        .add_service(v1::files_server::FilesServer::new(files::Service::new(
            agent.transfers(),
            stop.clone(),
        )))
        .add_service(v1::packages_server::PackagesServer::new(packages::Service::new(
            agent.packages(),
            agent.transfers(),
            stop.clone(),
        )))
        .add_service(v1::agent_server::AgentServer::new(agent::Service::new(agent, stop.clone())))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming),
            stop.clone().cancelled_owned(),
        );
    tokio::pin!(server);
    let result = tokio::select! {
        result = &mut server => result,
        () = stop.cancelled() => {
            // A connection that doesn't end by then is dropped with the process.
            tokio::time::timeout(SHUTDOWN_LIMIT, server).await.unwrap_or(Ok(()))
        }
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    result
}

/// Ends when the agent's program was replaced, or before with the agent.
async fn stop_when_replaced(replaced: CancellationToken, stop: CancellationToken) {
    if stop.run_until_cancelled(replaced.cancelled()).await.is_some() {
        stop.cancel();
    }
}

impl Listeners {
    /// Starts to accept; returns who may call over TLS.
    async fn accept(
        self,
        accepted: &Accepted,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Option<PeerBook> {
        if let Some(listener) = self.unix {
            let accept = listen::accept_unix(listener, accepted.clone());
            drop(tasks.spawn(stop.clone().run_until_cancelled_owned(accept)));
        }
        if let Some(stream) = self.embedded {
            // The channel is empty and has room.
            drop(accepted.send(Ok(Io::embedded(stream))).await);
        }
        let (listener, tls, peers) = self.tcp?;
        let accept = listen::accept_tcp(
            listener,
            tls,
            peers.clone(),
            accepted.clone(),
            tasks.clone(),
            stop.clone(),
        );
        drop(tasks.spawn(stop.clone().run_until_cancelled_owned(accept)));
        Some(peers)
    }
}
