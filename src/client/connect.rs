//! Connecting to an agent, and saying clearly why that failed.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::rpc::{CONNECTION_WINDOW_BYTES, KEEP_ALIVE, STREAM_WINDOW_BYTES};
use crate::trust::tls::{WrongFingerprint, client_config};
use crate::trust::{Fingerprint, Identity, TrustError};

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens on the socket.
    #[error("no agent runs on this machine (socket {0})")]
    NoAgent(PathBuf),
    /// The socket belongs to somebody else.
    #[error("the socket {0} may not be used by this user")]
    NotAllowed(PathBuf),
    /// The machine or its port can't be reached.
    #[error("agent at {address} can't be reached")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("agent at {0} did not answer within {CONNECT_LIMIT:?}")]
    TimedOut(String),
    /// The agent doesn't trust this client.
    #[error("agent at {address} does not trust this client (fingerprint {own})")]
    NotTrusted {
        /// Where the agent is.
        address: String,
        /// This client's fingerprint.
        own: Fingerprint,
    },
    /// Somebody else answers there.
    #[error("agent at {address} is another one than expected")]
    WrongAgent {
        /// Where it is.
        address: String,
        /// Both fingerprints.
        #[source]
        source: WrongFingerprint,
    },
    /// This client's own identity can't be used.
    #[error(transparent)]
    Identity(#[from] TrustError),
    /// HTTP/2 could not be agreed on.
    #[error("no gRPC connection")]
    Transport(#[from] tonic::transport::Error),
}

impl ConnectError {
    /// Whether another try may succeed without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NoAgent(_)
            | Self::Unreachable { .. }
            | Self::TimedOut(_)
            | Self::Transport(_) => true,
            Self::NotAllowed(_)
            | Self::NotTrusted { .. }
            | Self::WrongAgent { .. }
            | Self::Identity(_) => false,
        }
    }

    /// The same refusal once more, out of an error that gRPC has wrapped; `None` when it is passing.
    pub(super) fn lasting(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            match error.downcast_ref::<Self>() {
                Some(Self::NotAllowed(path)) => return Some(Self::NotAllowed(path.clone())),
                Some(Self::NotTrusted { address, own }) => {
                    return Some(Self::NotTrusted { address: address.clone(), own: *own });
                }
                Some(Self::WrongAgent { address, source }) => {
                    return Some(Self::WrongAgent { address: address.clone(), source: *source });
                }
                _ => cause = error.source(),
            }
        }
        None
    }
}

/// Connects to this machine's agent. A connection that breaks is made anew by the next call.
///
/// # Errors
/// When there is no agent, or its socket may not be used.
pub async fn unix(path: &Path) -> Result<Channel, ConnectError> {
    let first = dial_unix(path).await?;
    let path = path.to_owned();
    let dial = move || {
        let path = path.clone();
        async move { dial_unix(&path).await }
    };
    channel(first, dial).await
}

/// Connects to the agent with this fingerprint at `HOST:PORT`.
///
/// # Errors
/// When it can't be reached, is another one, or doesn't trust this client.
pub async fn tcp(
    address: &str,
    agent: Fingerprint,
    identity: &Identity,
) -> Result<Channel, ConnectError> {
    let tls = TlsConnector::from(Arc::new(client_config(identity, agent)?));
    let own = identity.fingerprint();
    let first = dial_tcp(address, &tls, own).await?;
    let address = address.to_owned();
    let dial = move || {
        let (address, tls) = (address.clone(), tls.clone());
        async move { dial_tcp(&address, &tls, own).await }
    };
    channel(first, dial).await
}

/// Connects to an agent in this process.
///
/// # Errors
/// When the agent ended.
pub async fn embedded(stream: DuplexStream) -> Result<Channel, ConnectError> {
    let gone = || async { Err(ConnectError::NoAgent(PathBuf::from("embedded"))) };
    channel(stream, gone).await
}

/// A channel that uses `first` for its first connection and `dial` for later ones.
async fn channel<S, F>(
    first: S,
    dial: impl Fn() -> F + Send + 'static,
) -> Result<Channel, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<S, ConnectError>> + Send + 'static,
{
    let first = Arc::new(Mutex::new(Some(first)));
    let connector = tower::service_fn(move |_: Uri| {
        let ready = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let later = ready.is_none().then(&dial);
        async move {
            match (ready, later) {
                (Some(stream), _) => Ok(TokioIo::new(stream)),
                (None, Some(dial)) => dial.await.map(TokioIo::new),
                // `later` is there whenever `ready` isn't.
                (None, None) => Err(ConnectError::TimedOut(String::new())),
            }
        }
    });
    let endpoint = Endpoint::from_static("http://baton-agent")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true);
    // Boxed: its state holds the whole of HTTP/2.
    Ok(Box::pin(endpoint.connect_with_connector(connector)).await?)
}

async fn dial_unix(path: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path).await.map_err(|error| {
        let kind = error.kind();
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            ConnectError::NoAgent(path.to_owned())
        } else if kind == io::ErrorKind::PermissionDenied {
            ConnectError::NotAllowed(path.to_owned())
        } else {
            ConnectError::Unreachable { address: path.display().to_string(), source: error }
        }
    })
}

async fn dial_tcp(
    address: &str,
    tls: &TlsConnector,
    own: Fingerprint,
) -> Result<Dialled, ConnectError> {
    // Boxed: a handshake's state is large.
    let dialling = Box::pin(dial_now(address, tls, own));
    let dialled = tokio::time::timeout(CONNECT_LIMIT, dialling).await;
    dialled.unwrap_or_else(|_| Err(ConnectError::TimedOut(address.to_owned())))
}

async fn dial_now(
    address: &str,
    tls: &TlsConnector,
    own: Fingerprint,
) -> Result<Dialled, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable { address: address.to_owned(), source };
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    // Small messages are not to wait for each other.
    stream.set_nodelay(true).map_err(unreachable)?;
    // Not checked: the fingerprint is.
    let name = ServerName::try_from("baton-agent").map_err(|e| unreachable(io::Error::other(e)))?;
    let mut stream =
        tls.connect(name, stream).await.map_err(|error| explain(address, own, error))?;
    // In TLS 1.3 a client learns only by its first read that its certificate was refused. An agent
    // that trusts it speaks first: HTTP/2 settings.
    let mut first = [0_u8; 1];
    match stream.read(&mut first).await {
        Ok(1) => Ok(Dialled { first: Some(first[0]), stream }),
        // Some agents' refusals arrive only as an end.
        Ok(_) => Err(ConnectError::NotTrusted { address: address.to_owned(), own }),
        Err(error) => Err(explain(address, own, error)),
    }
}

fn explain(address: &str, own: Fingerprint, error: io::Error) -> ConnectError {
    let address = address.to_owned();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(_)) => ConnectError::NotTrusted { address, own },
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            match other.0.downcast_ref::<WrongFingerprint>() {
                Some(source) => ConnectError::WrongAgent { address, source: *source },
                None => ConnectError::Unreachable { address, source: error },
            }
        }
        _ => ConnectError::Unreachable { address, source: error },
    }
}

/// A TLS connection of which the first byte was read already.
struct Dialled {
    first: Option<u8>,
    stream: TlsStream<TcpStream>,
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
