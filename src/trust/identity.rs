//! The identity of an agent or a client: a self-signed certificate and its key, in two files.

use std::fs::File;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Fingerprint, TrustError};
use crate::durable;

/// A certificate and its key.
#[derive(Debug)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// The name in every certificate of baton. Who is who is told by the fingerprint; TLS libraries that
/// insist on a name are given this one.
const CERTIFICATE_NAME: &str = "baton-agent";

impl Identity {
    /// Reads `<folder>/<stem>.key` and `<stem>.crt`; makes them when they aren't there. Two
    /// processes that do so at once end with the same identity.
    ///
    /// # Security
    /// The key file has mode 0600, and is refused when others can read it.
    ///
    /// # Errors
    /// When a file can't be read or written, or holds something else.
    pub fn load_or_create(folder: &Path, stem: &str) -> Result<Self, TrustError> {
        // A key without its certificate is damage: another identity in its place would go unnoticed.
        if !Self::key_path(folder, stem).exists() {
            Self::create(folder, stem)?;
        }
        Self::load(folder, stem)
    }

    /// Reads an identity.
    ///
    /// # Errors
    /// As [`Identity::load_or_create`], and when there is none.
    pub fn load(folder: &Path, stem: &str) -> Result<Self, TrustError> {
        let (certificate_path, key_path) =
            (certificate_path(folder, stem), Self::key_path(folder, stem));
        let text = |path: &PathBuf| std::fs::read(path).map_err(failed(path));
        let mode = key_path.metadata().map_err(failed(&key_path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TrustError::KeyIsOpen { path: key_path, mode });
        }
        let key = PrivateKeyDer::from_pem_slice(&text(&key_path)?);
        let certificate = CertificateDer::from_pem_slice(&text(&certificate_path)?);
        let damaged =
            |path, problem: &str| TrustError::Damaged { path, problem: problem.to_owned() };
        Ok(Self {
            certificate: certificate.map_err(|_| damaged(certificate_path, "no certificate"))?,
            key: key.map_err(|_| damaged(key_path, "no private key"))?,
        })
    }

    /// Makes both files, unless somebody else just did.
    fn create(folder: &Path, stem: &str) -> Result<(), TrustError> {
        durable::create_dir_all(folder, 0o755).map_err(failed(folder))?;
        let lock_path = folder.join(format!(".{stem}.lock"));
        let _lock = lock_file(&lock_path).map_err(failed(&lock_path))?;
        let (certificate_path, key_path) =
            (certificate_path(folder, stem), Self::key_path(folder, stem));
        if key_path.exists() {
            return Ok(());
        }
        let key_pair = rcgen::KeyPair::generate()?;
        let mut parameters = rcgen::CertificateParams::new([CERTIFICATE_NAME.to_owned()])?;
        parameters.distinguished_name.push(rcgen::DnType::CommonName, CERTIFICATE_NAME);
        let certificate = parameters.self_signed(&key_pair)?.pem();
        // The key last: while it is missing, the identity is.
        durable::replace_file(&certificate_path, certificate.as_bytes(), 0o644)
            .map_err(failed(&certificate_path))?;
        let key = key_pair.serialize_pem();
        durable::replace_file(&key_path, key.as_bytes(), 0o600).map_err(failed(&key_path))
    }

    /// Where the key is.
    pub fn key_path(folder: &Path, stem: &str) -> PathBuf {
        folder.join(format!("{stem}.key"))
    }

    /// The fingerprint by which others know it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Certificate chain and key, as TLS wants them.
    pub(super) fn parts(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], self.key.clone_key())
    }
}

/// Waits for the lock of a file that only guards others; it is given back when the file is closed.
///
/// # Security
/// The folder may be another user's than the caller's: a link in the file's place is not followed, and
/// what is there is not changed.
#[expect(clippy::disallowed_methods, reason = "no named mutex: it guards two files of one folder")]
pub(super) fn lock_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(false);
    let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)?;
    file.lock()?;
    Ok(file)
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> TrustError + use<> {
    let path = path.to_owned();
    move |source| TrustError::File { path, source }
}

fn certificate_path(folder: &Path, stem: &str) -> PathBuf {
    folder.join(format!("{stem}.crt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_its_key_is_private() {
        let root = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(root.path(), "agent").unwrap();
        let second = Identity::load_or_create(root.path(), "agent").unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        let key = root.path().join("agent.key");
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identity::load(root.path(), "agent").unwrap_err();
        assert!(matches!(error, TrustError::KeyIsOpen { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn many_at_once_end_with_one_identity() {
        let root = tempfile::tempdir().unwrap();
        let make = || Identity::load_or_create(root.path(), "client").unwrap().fingerprint();
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|fingerprint| *fingerprint == all[0]));
    }

    #[test]
    fn a_key_without_its_certificate_is_damage_and_no_new_identity() {
        let root = tempfile::tempdir().unwrap();
        Identity::load_or_create(root.path(), "agent").unwrap();
        std::fs::remove_file(root.path().join("agent.crt")).unwrap();
        let error = Identity::load_or_create(root.path(), "agent").unwrap_err();
        assert!(error.to_string().contains("agent.crt"), "{error}");
    }

    #[test]
    fn a_lock_follows_no_link_and_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let [kept, link] = ["kept", "link"].map(|name| root.path().join(name));
        durable::replace_file(&kept, b"kept", 0o600).unwrap();
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        lock_file(&link).unwrap_err();
        lock_file(&kept).unwrap();
        assert_eq!(std::fs::read(&kept).unwrap(), b"kept");
    }

    #[test]
    fn a_file_with_something_else_is_named() {
        let root = tempfile::tempdir().unwrap();
        Identity::load_or_create(root.path(), "agent").unwrap();
        durable::replace_file(&root.path().join("agent.key"), b"x", 0o600).unwrap();
        let error = Identity::load(root.path(), "agent").unwrap_err();
        assert!(error.to_string().contains("agent.key"), "{error}");
    }
}
