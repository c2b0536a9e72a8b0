//! Who is who: identities, peers, TLS. Both sides are pinned by the SHA-256 fingerprint of their
//! certificate; there is no certificate authority, and a certificate's own dates don't count, so a
//! wrong clock locks nobody out. Trust may have an end of its own.

mod fingerprint;
mod identity;
mod peers;
mod role;
pub mod tls;

use std::path::PathBuf;

use crate::format::Newer;

pub use fingerprint::{Fingerprint, FingerprintError};
pub use identity::Identity;
pub use peers::{Peer, PeerBook, Peers, Refusal};
pub use role::{Role, RoleError};

/// What could not be done with identities or peers.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file can't be read or written.
    #[error("file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key that others may read is no secret.
    #[error("key file {path} can be read by others (mode {mode:o}); make it 600")]
    KeyIsOpen {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A newer baton wrote a file.
    #[error("file {path}")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// How new.
        #[source]
        source: Newer,
    },
    /// A file holds something else.
    #[error("file {path}: {problem}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A key or certificate could not be made.
    #[error("identity can't be made")]
    Generate(#[from] rcgen::Error),
    /// TLS refuses the identity.
    #[error("identity can't be used for TLS")]
    Tls(#[from] rustls::Error),
    /// The name or fingerprint belongs to another peer.
    #[error("peer {name} has fingerprint {fingerprint} already; untrust it first")]
    PeerExists {
        /// The peer that is there.
        name: String,
        /// Its fingerprint.
        fingerprint: Fingerprint,
    },
    /// There is no such peer.
    #[error("peer {0:?} is not known")]
    UnknownPeer(String),
    /// A peer's name breaks its rules.
    #[error("peer name {name:?}")]
    PeerName {
        /// The name.
        name: String,
        /// Which rule.
        #[source]
        source: crate::script::NameError,
    },
}
