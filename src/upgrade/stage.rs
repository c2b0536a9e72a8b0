//! A program comes in: piece by piece into the state folder, then verified, then beside the program that it is to
//! replace, where it is tried.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::record::Folder;
use super::{
    MAX_PROGRAM_BYTES, Terms, UpgradeError, Version, failed, own_version, program, swap, verify,
};
use crate::transfer::Digest;

/// What stays free on a disk.
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// What a client offers.
#[derive(Debug, Clone)]
pub struct Offer {
    /// How many bytes come.
    pub size: u64,
    /// Their SHA-256.
    pub digest: Digest,
    /// The signature of minisign, as text.
    pub signature: String,
    /// Whether an older version is taken too.
    pub allow_downgrade: bool,
}

/// A program that comes in.
#[derive(Debug)]
pub struct Incoming {
    offer: Offer,
    path: PathBuf,
    file: File,
    received: u64,
    digesting: Sha256,
    /// Where it is going to be.
    program: PathBuf,
    keys: Vec<String>,
}

/// A program that was verified and stands beside the one that it is to replace. It is removed when it is not put
/// in place.
#[derive(Debug)]
pub struct Prepared {
    /// Where it stands.
    pub(super) path: PathBuf,
    /// What it is to replace.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// Its SHA-256.
    pub digest: Digest,
}

/// Begins to take a program that is to stand at `program`.
///
/// # Errors
/// When no upgrade is taken, it is too large, or a disk has no room.
pub fn begin(
    folder: &Folder,
    terms: &Terms,
    program: &Path,
    offer: Offer,
) -> Result<Incoming, UpgradeError> {
    if terms.keys.is_empty() {
        return Err(UpgradeError::NoKeys);
    }
    if offer.size > MAX_PROGRAM_BYTES {
        return Err(UpgradeError::TooLarge { size: offer.size });
    }
    folder.create()?;
    let path = folder.incoming();
    remove(&path)?;
    check_room(folder.path(), offer.size)?;
    check_room(program.parent().unwrap_or(Path::new("/")), offer.size)?;
    let file = create(&path, 0o600).map_err(failed(&path))?;
    Ok(Incoming {
        offer,
        path,
        file,
        received: 0,
        digesting: Sha256::new(),
        program: program.to_owned(),
        keys: terms.keys.clone(),
    })
}

/// A disk that others fill meanwhile is one without room too.
fn full_or(path: &Path) -> impl FnOnce(std::io::Error) -> UpgradeError + use<> {
    let path = path.to_owned();
    move |error| {
        let full = [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded];
        if full.contains(&error.kind()) {
            let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
            return UpgradeError::DiskFull { folder, needed: RESERVE_BYTES, free: 0 };
        }
        failed(&path)(error)
    }
}

fn create(path: &Path, mode: u32) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

fn remove(path: &Path) -> Result<(), UpgradeError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(path)(e)),
        _ => Ok(()),
    }
}

fn check_room(folder: &Path, size: u64) -> Result<(), UpgradeError> {
    let disk = rustix::fs::statvfs(folder).map_err(|e| failed(folder)(e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = size.saturating_add(RESERVE_BYTES);
    if free < needed {
        return Err(UpgradeError::DiskFull { folder: folder.to_owned(), needed, free });
    }
    Ok(())
}

impl Incoming {
    /// How many bytes are still to come.
    pub fn left(&self) -> u64 {
        self.offer.size.saturating_sub(self.received)
    }

    /// Takes a piece.
    ///
    /// # Errors
    /// When more comes than was said, or the disk refuses.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), UpgradeError> {
        let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        if length > self.left() {
            return Err(UpgradeError::TooMuch(self.offer.size));
        }
        self.file.write_all(piece).map_err(full_or(&self.path))?;
        self.digesting.update(piece);
        self.received += length;
        Ok(())
    }

    /// Verifies what came; rule 1 of the module.
    ///
    /// # Errors
    /// When it is not what was offered, or what nobody signed.
    pub fn verify(mut self) -> Result<Verified, UpgradeError> {
        let Offer { size, digest: expected, ref signature, .. } = self.offer;
        if self.left() > 0 {
            return Err(UpgradeError::Incomplete { received: self.received, size });
        }
        let found = Digest::from_bytes(&self.digesting.finalize_reset()).unwrap_or(expected);
        if found != expected {
            return Err(UpgradeError::WrongDigest { expected, found });
        }
        let comment = verify::verify(&self.path, signature, &self.keys)?;
        program::check_header(&self.path)?;
        tracing::info!(comment, sha256 = %found, "signature verified");
        Ok(Verified(self))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Best effort: the next one removes it.
        std::fs::remove_file(&self.path).unwrap_or_default();
    }
}

/// A program that came whole and is signed.
#[derive(Debug)]
pub struct Verified(Incoming);

impl Verified {
    /// Puts it beside the program that it is to replace, and lets it say its version.
    ///
    /// # Errors
    /// When it can't be put there, does not run, or is older.
    pub async fn prepare(self) -> Result<Prepared, UpgradeError> {
        let Self(incoming) = self;
        let (allow_downgrade, digest) = (incoming.offer.allow_downgrade, incoming.offer.digest);
        let placed = tokio::task::spawn_blocking(move || place(&incoming)).await;
        let stopped = |_| UpgradeError::Trial("the agent is stopping".to_owned());
        let (path, program) = placed.map_err(stopped)??;
        let running = own_version();
        let mut prepared = Prepared { path, program, version: running.clone(), digest };
        prepared.version = program::try_out(&prepared.path).await?;
        if prepared.version.is_older_than(&running) && !allow_downgrade {
            return Err(UpgradeError::Older { offered: prepared.version.clone(), running });
        }
        Ok(prepared)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // It is not there any more when it was put in place.
        std::fs::remove_file(&self.path).unwrap_or_default();
    }
}

/// Copies what came beside the program.
fn place(incoming: &Incoming) -> Result<(PathBuf, PathBuf), UpgradeError> {
    let program = incoming.program.clone();
    let path = swap::staged(&program);
    let not_writable = |source| UpgradeError::NotWritable { path: program.clone(), source };
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(not_writable(e)),
        _ => {}
    }
    let mode = program.metadata().map_or(0o755, |found| found.permissions().mode() & 0o7777);
    let mut to = create(&path, 0o700).map_err(not_writable)?;
    let copied = File::open(&incoming.path)
        .and_then(|mut from| std::io::copy(&mut from, &mut to))
        .and_then(|_| to.set_permissions(std::fs::Permissions::from_mode(mode | 0o500)))
        .and_then(|()| to.sync_all());
    if let Err(error) = copied {
        std::fs::remove_file(&path).unwrap_or_default();
        return Err(full_or(&path)(error));
    }
    Ok((path, program))
}
