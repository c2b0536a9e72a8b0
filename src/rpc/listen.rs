//! Accepting connections, and who is on the other end of each.
//!
//! 1. Every TLS handshake has a task of its own and a time limit: a silent caller holds up nobody.
//! 2. A connection whose peer is not trusted any more, or may do less than before, ends at once, also while it is
//!    idle.
//! 3. On the Unix socket the kernel says who calls: the agent's own user and root may.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Request;
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};

use crate::trust::{Fingerprint, Peer, PeerBook, Refusal};

/// How many accepted connections may wait for the server.
pub(super) const MAX_WAITING_CONNECTIONS: usize = 64;
/// How many handshakes may go on at once: each costs some milliseconds of CPU.
const MAX_HANDSHAKES: usize = 64;
/// How many connections may wait for their first byte or a handshake. More are closed at once.
const MAX_STRANGERS: usize = 256;
/// How long a connection may say nothing at first.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(5);
/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait after the system could not accept (too many open files, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A trusted peer.
    Remote {
        /// Its certificate's.
        fingerprint: Fingerprint,
        /// The name by which it is trusted.
        name: String,
        /// Where it calls from.
        address: SocketAddr,
    },
    /// A process of this machine.
    Local {
        /// Its user.
        uid: u32,
    },
    /// The command that the agent is part of.
    Embedded,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote { name, address, .. } => write!(f, "{name} ({address})"),
            Self::Local { uid } => write!(f, "uid {uid}"),
            Self::Embedded => f.write_str("this command"),
        }
    }
}

/// Who calls, for the record.
pub(super) fn caller<T>(request: &Request<T>) -> String {
    request.extensions().get::<Caller>().map(Caller::to_string).unwrap_or_default()
}

/// A connection.
pub struct Io {
    caller: Caller,
    stream: Pin<Box<dyn ReadWrite>>,
    /// Done when the caller may not call any more (rule 2).
    refused: Option<Pin<Box<dyn Future<Output = Refusal> + Send>>>,
}

/// TLS, a Unix socket, or a pipe within the process.
trait ReadWrite: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ReadWrite for T {}

pub(super) type Accepted = mpsc::Sender<io::Result<Io>>;

/// Accepts peers until it is dropped.
pub(super) async fn accept_tcp(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    peers: PeerBook,
    accepted: Accepted,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let shake = Arc::new(Handshakes {
        acceptor: TlsAcceptor::from(tls),
        peers,
        accepted,
        permits: Semaphore::new(MAX_HANDSHAKES),
    });
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                warn!(%error, "connection can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(stranger) = Arc::clone(&strangers).try_acquire_owned() else {
            debug!(%address, "too many strangers");
            continue;
        };
        let (shake, stop) = (Arc::clone(&shake), stop.clone());
        drop(tasks.spawn(async move {
            stop.run_until_cancelled(shake.hands(stream, address)).await.unwrap_or(());
            drop(stranger);
        }));
    }
}

/// What a new connection needs to become a caller.
struct Handshakes {
    acceptor: TlsAcceptor,
    peers: PeerBook,
    accepted: Accepted,
    permits: Semaphore,
}

impl Handshakes {
    /// Rule 1: who says nothing has no permit, and who is slow loses it.
    async fn hands(&self, stream: TcpStream, address: SocketAddr) {
        if tokio::time::timeout(FIRST_BYTE_LIMIT, stream.peek(&mut [0])).await.is_err() {
            debug!(%address, "a stranger says nothing");
            return;
        }
        let Ok(permit) = self.permits.acquire().await else {
            return;
        };
        let shaken = tokio::time::timeout(HANDSHAKE_LIMIT, self.acceptor.accept(stream)).await;
        drop(permit);
        match shaken {
            Ok(Ok(stream)) => {
                // None: trust was taken back during the handshake.
                if let Some(io) = Io::remote(stream, address, &self.peers) {
                    drop(self.accepted.send(Ok(io)).await);
                }
            }
            Ok(Err(error)) => info!(%address, %error, "handshake failed"),
            Err(_) => info!(%address, "handshake took too long"),
        }
    }
}

/// Accepts callers of this machine until it is dropped.
pub(super) async fn accept_unix(listener: UnixListener, accepted: Accepted) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "connection can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let uid = match stream.peer_cred() {
            Ok(credentials) => credentials.uid(),
            Err(error) => {
                debug!(%error, "caller is gone");
                continue;
            }
        };
        let io = Io { caller: Caller::Local { uid }, stream: Box::pin(stream), refused: None };
        if accepted.send(Ok(io)).await.is_err() {
            return;
        }
    }
}

/// Listens on a Unix socket that only its owner can reach. A socket that a dead agent left is
/// replaced.
///
/// # Errors
/// `AddrInUse` when an agent listens there; others when the folder can't be written.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    if let Some(folder) = path.parent() {
        crate::durable::create_dir_all(folder, 0o755)?;
    }
    let is_socket = || path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        // Something that is no socket also refuses; that is not ours to remove.
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && is_socket() => {
            std::fs::remove_file(path)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    // Bound under another name, closed to others, then moved: nobody finds it open.
    let hidden = path.with_extension("new");
    match std::fs::remove_file(&hidden) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

impl Io {
    /// A connection within this process.
    pub(super) fn embedded(stream: DuplexStream) -> Self {
        Self { caller: Caller::Embedded, stream: Box::pin(stream), refused: None }
    }

    fn remote(stream: TlsStream<TcpStream>, address: SocketAddr, peers: &PeerBook) -> Option<Self> {
        let certificates = stream.get_ref().1.peer_certificates()?;
        let fingerprint = Fingerprint::of(certificates.first()?);
        let Peer { name, role, .. } = peers.check(fingerprint).ok()?;
        let peers = peers.clone();
        let refused = Box::pin(async move { peers.refused(fingerprint, role).await });
        Some(Self {
            caller: Caller::Remote { fingerprint, name, address },
            stream: Box::pin(stream),
            refused: Some(refused),
        })
    }

    /// Rule 2.
    fn poll_refused(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(refused) = &mut self.refused else {
            return Ok(());
        };
        match refused.as_mut().poll(context) {
            Poll::Ready(why) => {
                self.refused = None;
                info!(caller = %self.caller, "connection ends: {why}");
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Io {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_refused(context)?;
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_of_a_dead_agent_is_replaced_and_that_of_a_living_one_is_not() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("agent.sock");
        let first = bind_unix(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        bind_unix(&path).unwrap();
    }
}
