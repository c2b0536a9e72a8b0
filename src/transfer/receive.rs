//! A file that comes in: what is there already, the rest piece by piece, and its move into place.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;

use super::digest::{Digest, Digesting};
use super::folder::Folder;
use super::partial::{Freed, Partial, add_file, sweep_only};
use super::path::RelativePath;
use super::step::step;
use super::walk::{Missing, descend, is_file};
use super::{FileInfo, Kind, TransferError, send};

/// What is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The length of the whole content.
    pub size: u64,
    /// The digest of the whole content.
    pub digest: Digest,
    /// The permission bits.
    pub mode: u32,
    /// When the content was changed last; `None`: when it is in place.
    pub modified: Option<Timestamp>,
}

/// What an offer leads to.
#[derive(Debug)]
pub enum Receive {
    /// The same content is in place already.
    Unchanged(FileInfo),
    /// The rest is to come.
    More(Box<Receiving>),
}

/// Where a file is to be, and where it grows.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) root: Folder,
    pub(super) staging: Folder,
    /// Names the content in the staging folder.
    pub(super) stem: String,
    pub(super) path: RelativePath,
    /// The path as people read it.
    pub(super) place: String,
    pub(super) min_free_bytes: u64,
}

/// A file that comes in. Dropped, what came of it stays for the next try.
#[derive(Debug)]
pub struct Receiving {
    root: Folder,
    path: RelativePath,
    place: String,
    offer: Offer,
    partial: Partial,
    digesting: Digesting,
    received: u64,
}

/// Looks what is there of the offered content.
pub(super) fn begin(
    ground: Ground,
    offer: Offer,
    freed: &Arc<Freed>,
) -> Result<Receive, TransferError> {
    let Ground { root, staging, stem, path, place, min_free_bytes } = ground;
    let failed = |source| TransferError::file(&place, source);
    let top = root.again().map_err(failed)?;
    let (folder, missing) = descend(top, &path, &place, Missing::Stay)?;
    if missing == 0
        && is_file(&folder, &path.name, &place)?
        && let Some(info) = unchanged(&folder, &path.name, &offer).map_err(failed)?
    {
        return Ok(Receive::Unchanged(info));
    }
    if folder.device().map_err(failed)? != staging.device().map_err(failed)? {
        return Err(TransferError::OtherFileSystem(place));
    }
    let partial = Partial::take(staging, &stem, freed).map_err(failed)?;
    let mut digesting = Digesting::default();
    let received = partial.read_into(&mut digesting, offer.size).map_err(failed)?;
    let receiving = Receiving { root, path, place, offer, partial, digesting, received };
    receiving.check_room(min_free_bytes)?;
    Ok(Receive::More(Box::new(receiving)))
}

/// The file in place, if it has the offered content. It then gets the offered mode and time.
fn unchanged(folder: &Folder, name: &str, offer: &Offer) -> io::Result<Option<FileInfo>> {
    let file = folder.open_file(name)?;
    if file.metadata()?.len() != offer.size {
        return Ok(None);
    }
    let mut digesting = Digesting::default();
    add_file(&file, offer.size, &mut digesting)?;
    if digesting.finish() != offer.digest {
        return Ok(None);
    }
    dress(&file, offer)?;
    // The one who brought it may have been killed before it was on disk.
    step()?;
    file.sync_all()?;
    folder.sync()?;
    info(&file, offer).map(Some)
}

/// Gives a file the offered mode and time, as far as it hasn't.
fn dress(file: &File, offer: &Offer) -> io::Result<()> {
    step()?;
    let found = file.metadata()?;
    if found.permissions().mode() & 0o7777 != offer.mode {
        file.set_permissions(Permissions::from_mode(offer.mode))?;
    }
    if let Some(time) = offer.modified.map(SystemTime::from)
        && found.modified()? != time
    {
        file.set_modified(time)?;
    }
    Ok(())
}

fn info(file: &File, offer: &Offer) -> io::Result<FileInfo> {
    let kind = Kind::File { size: offer.size, digest: Some(offer.digest) };
    send::info(&file.metadata()?, kind)
}

impl Receiving {
    /// How many bytes of the content are there.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How many bytes are still to come.
    pub fn left(&self) -> u64 {
        self.offer.size - self.received
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When more come than were offered, or they can't be written. What came before stays.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if count > self.left() {
            let (place, size) = (self.place.clone(), self.offer.size);
            return Err(TransferError::TooMuch { place, size });
        }
        self.partial.write(bytes, self.received).map_err(|source| self.failed(source))?;
        self.digesting.add(bytes);
        self.received += count;
        Ok(())
    }

    /// Checks the digest and moves the file into place.
    ///
    /// # Durability
    /// The content is synced before the move, and the folder after it.
    ///
    /// # Errors
    /// When something is missing, the digest is wrong, or the file can't be put there. Then nothing is
    /// changed there.
    pub fn finish(mut self: Box<Self>) -> Result<FileInfo, TransferError> {
        let (size, received) = (self.offer.size, self.received);
        if received < size {
            return Err(TransferError::Incomplete { place: self.place, received, size });
        }
        let found = self.digesting.clone().finish();
        if found != self.offer.digest {
            // Best effort: who offers it again is told the same, and it goes after its time.
            self.partial.remove().unwrap_or_default();
            let (place, expected) = (self.place, self.offer.digest);
            return Err(TransferError::WrongDigest { place, expected, found });
        }
        let top = self.root.again().map_err(|source| self.failed(source))?;
        dress(self.partial.file(), &self.offer).map_err(|source| self.failed(source))?;
        self.sync().map_err(|source| self.failed(source))?;
        let (folder, _) = descend(top, &self.path, &self.place, Missing::Make)?;
        is_file(&folder, &self.path.name, &self.place)?;
        let landed = self.land(&folder);
        landed.map_err(|source| self.failed(source))
    }

    fn sync(&self) -> io::Result<()> {
        step()?;
        self.partial.file().sync_all()
    }

    fn land(&mut self, folder: &Folder) -> io::Result<FileInfo> {
        self.partial.move_to(folder, &self.path.name)?;
        folder.sync()?;
        info(self.partial.file(), &self.offer)
    }

    /// Rule 4 of the module.
    fn check_room(&self, floor: u64) -> Result<(), TransferError> {
        let failed = |source| self.failed(source);
        let has = self.partial.allocated_bytes().map_err(failed)?.max(self.received);
        let needed = self.offer.size.saturating_sub(has);
        let free = self.partial.folder().free_bytes().map_err(failed)?;
        if needed > 0 && needed.saturating_add(floor) > free {
            let place = self.place.clone();
            return Err(TransferError::DiskFull { place, needed, free, floor });
        }
        self.partial.reserve(self.offer.size).map_err(failed)
    }

    fn failed(&self, source: io::Error) -> TransferError {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        if full.contains(&source.kind()) {
            let (place, needed) = (self.place.clone(), self.left());
            let free = self.partial.folder().free_bytes().unwrap_or_default();
            return TransferError::DiskFull { place, needed, free, floor: 0 };
        }
        TransferError::file(&self.place, source)
    }
}

/// Begins to receive a file outside of any root, at a path of the caller's own. It grows beside it.
///
/// # Errors
/// When it can't be put there.
pub fn receive_local(path: &Path, offer: Offer) -> Result<Receive, TransferError> {
    let place = path.display().to_string();
    let failed = |source| TransferError::file(&place, source);
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let root = Folder::open(folder).map_err(failed)?;
    let staging = root.again().map_err(failed)?;
    let stem = local_stem(name, offer.digest);
    let others = |other: &str| is_local_partial(other, name);
    sweep_only(&staging, SystemTime::now(), others).map_err(failed)?;
    let path = RelativePath { folders: Vec::new(), name: name.to_owned() };
    let ground = Ground { root, staging, stem, path, place: place.clone(), min_free_bytes: 0 };
    begin(ground, offer, &Arc::default())
}

/// How many digits of a digest a name has: enough to be one content's.
const STEM_DIGITS: usize = 16;
/// What a partial file beside its place is called behind its digest.
const STEM_END: &str = ".part";

/// The name of a file's partial content beside its place, without its number. It is hidden, and short
/// enough for a name.
fn local_stem(name: &str, digest: Digest) -> String {
    let digits = digest.to_string();
    format!("{}{}{STEM_END}", local_start(name), &digits[..STEM_DIGITS])
}

fn local_start(name: &str) -> String {
    format!(".{}.", name.chars().take(48).collect::<String>())
}

/// Whether it is a partial content of the file of that name, of whatever digest and number.
fn is_local_partial(other: &str, name: &str) -> bool {
    let rest =
        other.strip_prefix(&local_start(name)).and_then(|rest| rest.split_at_checked(STEM_DIGITS));
    rest.is_some_and(|(digits, rest)| {
        let number = rest.strip_prefix(STEM_END).and_then(|rest| rest.strip_prefix('.'));
        digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            && number.is_some_and(|number| number.parse::<u32>().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_partial_contents_of_the_same_file_are_swept_beside_it() {
        let stem = local_stem("app.tar", Digest::of(b"x"));
        assert!(is_local_partial(&format!("{stem}.0"), "app.tar"));
        assert!(is_local_partial(&format!("{stem}.17"), "app.tar"));
        for other in
            ["app.tar", ".app.tar", ".app.tar.conf", &stem, ".app.tar.0123456789abcdef.part.x"]
        {
            assert!(!is_local_partial(other, "app.tar"), "{other}");
        }
        assert!(!is_local_partial(&format!("{stem}.0"), "app"));
        assert!(!is_local_partial(&format!("{stem}.0"), "other.tar"));
    }

    #[test]
    fn what_an_old_pull_left_beside_the_file_goes_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join(format!("{}.0", local_stem("app", Digest::of(b"old"))));
        let own = root.path().join(".app.conf");
        for path in [&old, &own] {
            crate::durable::replace_file(path, b"x", 0o600).unwrap();
            let time = SystemTime::now() - super::super::partial::KEPT_FOR * 2;
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        }
        let offer = Offer { size: 0, digest: Digest::of(b""), mode: 0o644, modified: None };
        let Receive::More(receiving) = receive_local(&root.path().join("app"), offer).unwrap()
        else {
            panic!("it is not there");
        };
        receiving.finish().unwrap();
        assert!(!old.exists());
        assert!(own.exists() && root.path().join("app").exists());
    }
}
