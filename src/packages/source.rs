//! A package of this machine that is sent: a directory, a file, or an archive that is expanded. It is
//! read once, whatever number of machines it is sent to.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastcdc::v2020::StreamCDC;

use super::archive::Archive;
use super::chunks::compress;
use super::manifest::{Chunk, Entry, EntryKind, MAX_CHUNK_BYTES, MAX_ENTRIES, Manifest};
use super::{ManifestError, PackageId, Version};
use crate::transfer::Digest;

/// The smallest chunk, but for the last one of a file.
const MIN_BYTES: usize = 16 * 1024;
/// The usual chunk: an inserted byte costs one or two of them. Smaller ones would cost more files and a
/// longer manifest.
const USUAL_BYTES: usize = 64 * 1024;
/// The deepest folder; paths in packages are no deeper.
const MAX_DEPTH: usize = 64;

/// A package that can be sent. Cheap to clone; all clones share what was read.
#[derive(Debug, Clone)]
pub struct Package {
    read: Arc<Read>,
    replace: bool,
}

#[derive(Debug)]
struct Read {
    id: PackageId,
    version: Version,
    manifest: Manifest,
    text: bytes::Bytes,
    digest: Digest,
    distinct: Vec<Chunk>,
    /// Where each distinct chunk stands.
    places: HashMap<Digest, Place>,
    /// What an archive was expanded into.
    _expanded: Option<tempfile::TempDir>,
}

#[derive(Debug)]
struct Place {
    file: Arc<Path>,
    offset: u64,
}

/// Why something can't be sent as a package.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file can't be read.
    #[error("file {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An archive can't be expanded.
    #[error("archive {path}")]
    Archive {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name is no text.
    #[error("the name of {0} is no UTF-8")]
    Name(PathBuf),
    /// A pipe, a socket, a device.
    #[error("{0} is neither a file, a folder nor a link")]
    Kind(PathBuf),
    /// It can't be a package.
    #[error("{path} can't be a package")]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A file is not what it was when it was read.
    #[error("{0} was changed while it was sent")]
    Changed(PathBuf),
}

impl Package {
    /// Reads a directory or a file; an archive (`.tar`, `.tar.gz`, `.tgz`, `.tar.zst`, `.zip`) is
    /// expanded. It may take long: `spawn_blocking` is for that.
    ///
    /// # Errors
    /// When it can't be read, or can't be a package.
    pub fn open(path: &Path, id: PackageId, version: Version) -> Result<Self, SourceError> {
        let archive = Archive::of(path).filter(|_| path.is_file());
        let Some(archive) = archive else {
            return Self::open_as_it_is(path, id, version);
        };
        let failed = |source| SourceError::Archive { path: path.to_owned(), source };
        let expanded = tempfile::Builder::new().prefix("baton-package-").tempdir();
        let expanded = expanded.map_err(failed)?;
        archive.expand(path, expanded.path()).map_err(failed)?;
        let mut scan = Scan::default();
        scan.folder(expanded.path(), "", 0)?;
        scan.package((id, version), path, Some(expanded))
    }

    /// The same, with an archive left as the file that it is.
    ///
    /// # Errors
    /// As [`Package::open`].
    pub fn open_as_it_is(
        path: &Path,
        id: PackageId,
        version: Version,
    ) -> Result<Self, SourceError> {
        let mut scan = Scan::default();
        // A link that was named is followed.
        let found = path.metadata().map_err(|source| failed(path, source))?;
        if found.is_dir() {
            scan.folder(path, "", 0)?;
        } else if found.is_file() {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| SourceError::Name(path.to_owned()))?;
            scan.file(path, name.to_owned())?;
        } else {
            return Err(SourceError::Kind(path.to_owned()));
        }
        scan.package((id, version), path, None)
    }

    /// The same package, which takes the place of another content of its version.
    #[must_use]
    pub fn replacing(self) -> Self {
        Self { replace: true, ..self }
    }

    /// Its id.
    pub fn id(&self) -> &PackageId {
        &self.read.id
    }

    /// Its version.
    pub fn version(&self) -> &Version {
        &self.read.version
    }

    /// The SHA-256 of its manifest.
    pub fn digest(&self) -> Digest {
        self.read.digest
    }

    /// Whether it replaces.
    pub fn replaces(&self) -> bool {
        self.replace
    }

    /// What it is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.read.manifest
    }

    /// The manifest as it is sent.
    pub fn manifest_text(&self) -> &bytes::Bytes {
        &self.read.text
    }

    /// Each of its chunks once, in order.
    pub fn distinct_chunks(&self) -> &[Chunk] {
        &self.read.distinct
    }

    /// Reads a chunk, and compresses it.
    ///
    /// # Errors
    /// When its file can't be read, or was changed.
    pub fn chunk(&self, chunk: &Chunk) -> Result<Vec<u8>, SourceError> {
        let Some(place) = self.read.places.get(&chunk.digest) else {
            return Err(SourceError::Changed(PathBuf::from(self.id().as_str())));
        };
        let mut content = vec![0; usize::try_from(chunk.size).unwrap_or_default()];
        let read =
            File::open(&place.file).and_then(|file| file.read_exact_at(&mut content, place.offset));
        match read {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(SourceError::Changed(place.file.to_path_buf()));
            }
            other => other.map_err(|source| failed(&place.file, source))?,
        }
        if Digest::of(&content) != chunk.digest {
            return Err(SourceError::Changed(place.file.to_path_buf()));
        }
        compress(&content).map_err(|source| failed(&place.file, source))
    }
}

fn failed(path: &Path, source: io::Error) -> SourceError {
    SourceError::File { path: path.to_owned(), source }
}

/// What was found so far.
#[derive(Default)]
struct Scan {
    entries: Vec<Entry>,
    places: HashMap<Digest, Place>,
}

impl Scan {
    /// Adds what is in a folder; `below` is its own path in the package, with a slash.
    fn folder(&mut self, path: &Path, below: &str, depth: usize) -> Result<(), SourceError> {
        let listed = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for entry in listed.map_err(|source| failed(path, source))? {
            let path = entry.path();
            if self.entries.len() >= MAX_ENTRIES || depth >= MAX_DEPTH {
                let source = ManifestError::TooManyEntries;
                return Err(SourceError::Manifest { path, source });
            }
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| SourceError::Name(path.clone()))?;
            let inside = format!("{below}{name}");
            let kind = entry.file_type().map_err(|source| failed(&path, source))?;
            if kind.is_dir() {
                self.entries.push(Entry { path: inside.clone(), kind: EntryKind::Folder });
                self.folder(&path, &format!("{inside}/"), depth + 1)?;
            } else if kind.is_symlink() {
                let target = path.read_link().map_err(|source| failed(&path, source))?;
                let target = target.to_str().ok_or_else(|| SourceError::Name(path.clone()))?;
                let kind = EntryKind::Link { target: target.to_owned() };
                self.entries.push(Entry { path: inside, kind });
            } else if kind.is_file() {
                self.file(&path, inside)?;
            } else {
                return Err(SourceError::Kind(path));
            }
        }
        Ok(())
    }

    /// Adds a file, cut into chunks.
    fn file(&mut self, path: &Path, inside: String) -> Result<(), SourceError> {
        let file = File::open(path).map_err(|source| failed(path, source))?;
        let found = file.metadata().map_err(|source| failed(path, source))?;
        let shared: Arc<Path> = path.into();
        let max = usize::try_from(MAX_CHUNK_BYTES).unwrap_or(usize::MAX);
        let mut chunks = Vec::new();
        for cut in StreamCDC::new(file, MIN_BYTES, USUAL_BYTES, max) {
            let cut = cut.map_err(|error| failed(path, io::Error::other(error)))?;
            let digest = Digest::of(&cut.data);
            let place = || Place { file: Arc::clone(&shared), offset: cut.offset };
            self.places.entry(digest).or_insert_with(place);
            chunks.push(Chunk { digest, size: u32::try_from(cut.length).unwrap_or(u32::MAX) });
        }
        let executable = found.permissions().mode() & 0o100 != 0;
        let kind = EntryKind::File { executable, chunks };
        self.entries.push(Entry { path: inside, kind });
        Ok(())
    }

    fn package(
        self,
        (id, version): (PackageId, Version),
        path: &Path,
        expanded: Option<tempfile::TempDir>,
    ) -> Result<Package, SourceError> {
        let manifest = Manifest::new(self.entries);
        let manifest =
            manifest.map_err(|source| SourceError::Manifest { path: path.to_owned(), source })?;
        let text = bytes::Bytes::from(manifest.encode());
        let read = Read {
            id,
            version,
            digest: Digest::of(&text),
            text,
            distinct: manifest.distinct_chunks(),
            manifest,
            places: self.places,
            _expanded: expanded,
        };
        Ok(Package { read: Arc::new(read), replace: false })
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunks::decompress;
    use super::*;

    /// Bytes that repeat only far apart.
    fn content(size: usize) -> Vec<u8> {
        let mut word = 7_u64;
        let next = || {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(size).collect()
    }

    fn write(path: &Path, bytes: &[u8]) {
        crate::durable::replace_file(path, bytes, 0o600).unwrap();
    }

    fn open(path: &Path) -> Result<Package, SourceError> {
        Package::open(path, "app".parse().unwrap(), "1".parse().unwrap())
    }

    #[test]
    fn a_package_is_its_content_whatever_the_place_and_the_way_it_is_packed() {
        let root = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let top = root.path().join(name);
            std::fs::create_dir_all(top.join("bin")).unwrap();
            write(&top.join("bin/app"), &content(300_000));
            std::os::unix::fs::symlink("bin/app", top.join("run")).unwrap();
        }
        let one = open(&root.path().join("one")).unwrap();
        assert_eq!(open(&root.path().join("two")).unwrap().digest(), one.digest());
        let paths: Vec<_> = one.manifest().entries().iter().map(|entry| &entry.path).collect();
        assert_eq!(paths, ["bin", "bin/app", "run"]);
        let mut all = Vec::new();
        for chunk in one.manifest().chunks() {
            all.extend(decompress(&one.chunk(chunk).unwrap()).unwrap());
        }
        assert!(all == content(300_000));
        // An archive of it is the same package, but for the file that it is.
        let tar = root.path().join("app.tar");
        let mut builder = tar::Builder::new(File::create(&tar).unwrap());
        builder.follow_symlinks(false);
        builder.append_dir_all(".", root.path().join("one")).unwrap();
        builder.into_inner().unwrap();
        assert_eq!(open(&tar).unwrap().digest(), one.digest());
        let whole = Package::open_as_it_is(&tar, one.id().clone(), one.version().clone()).unwrap();
        assert_eq!(whole.manifest().entries()[0].path, "app.tar");
    }

    #[test]
    fn bytes_in_the_middle_change_few_chunks() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("big");
        let mut bytes = content(4 << 20);
        write(&path, &bytes);
        let before = open(&path).unwrap();
        drop(bytes.splice((2 << 20)..(2 << 20), *b"some more"));
        write(&path, &bytes);
        let after = open(&path).unwrap();
        let is_new = |chunk: &&Chunk| !before.distinct_chunks().contains(chunk);
        let new = after.distinct_chunks().iter().filter(is_new).count();
        assert!((1..=4).contains(&new), "{new} of {}", after.distinct_chunks().len());
    }

    #[test]
    fn what_can_be_no_package_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = open(&root.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
        let empty = open(root.path()).unwrap_err();
        assert!(crate::text::chain(&empty).contains("empty"), "{empty}");
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        let error = open(root.path()).unwrap_err();
        assert!(crate::text::chain(&error).contains("leads out"), "{error}");
        std::fs::remove_file(root.path().join("out")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
        assert!(matches!(open(root.path()), Err(SourceError::Kind(_))));
    }

    #[test]
    fn a_file_that_changes_is_not_sent() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        write(&path, b"before");
        let package = open(&path).unwrap();
        let chunk = package.distinct_chunks()[0];
        package.chunk(&chunk).unwrap();
        for now in [b"after!".as_slice(), b"x"] {
            write(&path, now);
            assert!(matches!(package.chunk(&chunk), Err(SourceError::Changed(_))));
        }
    }
}
