//! TLS to etcd: its certificate must come from the authority that the configuration names.

use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::uri::Authority;
use tonic::transport::{Channel, Uri};

use super::FleetError;

/// The port of etcd's clients.
const DEFAULT_PORT: u16 = 2379;

/// How to trust a member.
#[derive(Clone)]
pub(super) struct Tls(TlsConnector);

impl Tls {
    /// Reads the authority's certificates, in PEM.
    pub(super) fn load(path: &Path) -> Result<Self, FleetError> {
        let failed = |problem: String| FleetError::Authority { path: path.to_owned(), problem };
        let mut roots = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(failed("has no certificate".to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// A channel to a member; `None` when its name can't be in a certificate.
    pub(super) fn channel(&self, authority: &Authority) -> Option<Channel> {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).ok()?;
        let port = authority.port_u16().unwrap_or(DEFAULT_PORT);
        let tls = self.0.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, name, host) = (tls.clone(), name.clone(), host.clone());
            async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                tls.connect(name, stream).await.map(TokioIo::new)
            }
        });
        // Said as plain: the connector adds the TLS.
        let uri: Uri = format!("http://{authority}").parse().ok()?;
        Some(Channel::builder(uri).connect_with_connector_lazy(connector))
    }
}
