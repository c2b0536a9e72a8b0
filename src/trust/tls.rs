//! TLS 1.3 with both sides pinned by fingerprint.
//!
//! # Security
//! Session tickets are off: a resumed session would skip the verifier, and a peer that is no longer
//! trusted would get back in. The signatures in the handshake are verified for real: they prove that
//! the other side has the key that belongs to the certificate.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, ServerConfig, SignatureScheme,
};

use super::{Fingerprint, Identity, PeerBook, TrustError};

/// The other side has another certificate than the pinned one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("certificate has fingerprint {seen}, expected {expected}")]
pub struct WrongFingerprint {
    /// The pinned one.
    pub expected: Fingerprint,
    /// The one that was shown.
    pub seen: Fingerprint,
}

/// The TLS side of an agent: only peers of the live book get through.
///
/// # Errors
/// When the identity can't be used.
pub fn server_config(identity: &Identity, peers: PeerBook) -> Result<ServerConfig, TrustError> {
    let provider = provider();
    let verifier = Pinned { pin: peers, algorithms: provider.signature_verification_algorithms };
    let (chain, key) = identity.parts();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// The TLS side of a client: only the agent with this fingerprint gets through.
///
/// # Errors
/// When the identity can't be used.
pub fn client_config(identity: &Identity, agent: Fingerprint) -> Result<ClientConfig, TrustError> {
    let provider = provider();
    let verifier = Pinned { pin: agent, algorithms: provider.signature_verification_algorithms };
    let (chain, key) = identity.parts();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// One provider, always named: with two in the program rustls's defaults panic.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Trusts by fingerprint alone.
struct Pinned<P> {
    pin: P,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<P> fmt::Debug for Pinned<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

impl<P> Pinned<P> {
    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

impl ClientCertVerifier for Pinned<PeerBook> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let fingerprint = Fingerprint::of(certificate);
        match self.pin.check(fingerprint) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(refusal) => {
                // For the operator, who may want to copy it into `baton agent trust`.
                tracing::warn!(%fingerprint, "peer refused: {refusal}");
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Pinned<Fingerprint> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (expected, seen) = (self.pin, Fingerprint::of(certificate));
        if expected == seen {
            return Ok(ServerCertVerified::assertion());
        }
        Err(refused(WrongFingerprint { expected, seen }))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
