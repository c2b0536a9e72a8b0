//! Archives that are sent as packages are expanded first, so that chunks are of the content: of a
//! compressed archive hardly one stays the same from version to version.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::manifest::MAX_ENTRIES;

/// The most that comes out of an archive: more would be no package.
const MAX_EXPANDED_BYTES: u64 = 32 << 30;
/// The longest target of a link in a zip archive, in bytes.
const MAX_TARGET_BYTES: u64 = 4096;

/// A kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Archive {
    Tar,
    TarGz,
    TarZst,
    Zip,
}

impl Archive {
    /// By the ending of its name.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let endings = [
            (".tar", Self::Tar),
            (".tar.gz", Self::TarGz),
            (".tgz", Self::TarGz),
            (".tar.zst", Self::TarZst),
            (".zip", Self::Zip),
        ];
        endings.into_iter().find(|(end, _)| name.ends_with(end)).map(|(_, archive)| archive)
    }

    /// Expands an archive into an empty folder. Nothing outside of it is written.
    pub(super) fn expand(self, path: &Path, into: &Path) -> io::Result<()> {
        let file = BufReader::new(File::open(path)?);
        match self {
            Self::Tar => expand_tar(file, into),
            Self::TarGz => expand_tar(flate2::bufread::MultiGzDecoder::new(file), into),
            Self::TarZst => expand_tar(zstd::stream::read::Decoder::with_buffer(file)?, into),
            Self::Zip => expand_zip(file, into),
        }
    }
}

/// What may still come out.
#[derive(Debug)]
struct Budget {
    entries: usize,
    bytes: u64,
}

impl Budget {
    const fn new() -> Self {
        Self { entries: MAX_ENTRIES, bytes: MAX_EXPANDED_BYTES }
    }

    fn spend(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.entries.checked_sub(1).zip(self.bytes.checked_sub(bytes));
        (self.entries, self.bytes) = left.ok_or_else(|| {
            io::Error::other("more comes out of the archive than a package may have")
        })?;
        Ok(())
    }
}

fn refused(name: &dyn std::fmt::Debug, why: &str) -> io::Error {
    io::Error::other(format!("its entry {name:?} {why}"))
}

fn expand_tar(content: impl Read, into: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(content);
    let mut budget = Budget::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        budget.spend(entry.size())?;
        let kind = entry.header().entry_type();
        let is_kept = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let path = entry.path()?.into_owned();
        if !is_kept && !kind.is_gnu_sparse() && !kind.is_contiguous() {
            return Err(refused(&path, "is neither a file, a folder nor a link"));
        }
        // It looks at each part of the way, also at links that came before.
        if !entry.unpack_in(into)? {
            return Err(refused(&path, "leads out of it"));
        }
    }
    Ok(())
}

fn expand_zip(content: impl Read + io::Seek, into: &Path) -> io::Result<()> {
    let mut archive = zip::ZipArchive::new(content).map_err(io::Error::other)?;
    let mut budget = Budget::new();
    // Made last: so nothing is written through a link.
    let mut links: BTreeMap<PathBuf, String> = BTreeMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(io::Error::other)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let path = entry.enclosed_name().ok_or_else(|| refused(&name, "leads out of it"))?;
        let path = into.join(path);
        if entry.is_dir() {
            budget.spend(0)?;
            std::fs::create_dir_all(&path)?;
            continue;
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        if entry.is_symlink() {
            let mut target = String::new();
            (&mut entry).take(MAX_TARGET_BYTES).read_to_string(&mut target)?;
            budget.spend(0)?;
            drop(links.insert(path, target));
            continue;
        }
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o100 != 0);
        let mode = if executable { 0o700 } else { 0o600 };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        // What it says of its size need not be true.
        let left = budget.bytes;
        let copied = io::copy(&mut (&mut entry).take(left.saturating_add(1)), &mut file)?;
        budget.spend(copied)?;
    }
    links.into_iter().try_for_each(|(path, target)| symlink(target, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_says_which_archive() {
        for (name, archive) in [
            ("a.tar", Some(Archive::Tar)),
            ("a.b.TAR.GZ", Some(Archive::TarGz)),
            ("a.tgz", Some(Archive::TarGz)),
            ("a.tar.zst", Some(Archive::TarZst)),
            ("a.zip", Some(Archive::Zip)),
            ("a.gz", None),
            ("tar", None),
            ("a.tar.xz", None),
        ] {
            assert_eq!(Archive::of(Path::new(name)), archive, "{name}");
        }
    }

    fn tar_of(name: &str, kind: tar::EntryType, link: Option<&str>) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(0);
        if let Some(link) = link {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_is_written_outside() {
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("into");
        std::fs::create_dir(&into).unwrap();
        let up = tar_of("../up", tar::EntryType::Regular, None);
        assert!(expand_tar(up.as_slice(), &into).unwrap_err().to_string().contains("leads out"));
        let pipe = tar_of("pipe", tar::EntryType::Fifo, None);
        assert!(expand_tar(pipe.as_slice(), &into).unwrap_err().to_string().contains("neither"));
        let (link, through) = (
            tar_of("out", tar::EntryType::Symlink, Some("..")),
            tar_of("out/x", tar::EntryType::Regular, None),
        );
        expand_tar(link.as_slice(), &into).unwrap();
        expand_tar(through.as_slice(), &into).unwrap_err();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_zip_keeps_programs_and_links_and_writes_through_none() {
        use std::io::Write as _;
        use std::os::unix::fs::PermissionsExt as _;

        let zip_of = |link: &str, behind: &str| {
            let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
            let options = zip::write::SimpleFileOptions::default();
            zip.add_symlink(link, "..", options).unwrap();
            zip.start_file(behind, options.unix_permissions(0o755)).unwrap();
            zip.write_all(&[b'x'; 1000]).unwrap();
            zip.finish().unwrap()
        };
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("into");
        std::fs::create_dir(&into).unwrap();
        expand_zip(zip_of("up", "bin/app"), &into).unwrap();
        let app = into.join("bin/app").metadata().unwrap();
        assert_eq!((app.len(), app.permissions().mode() & 0o100), (1000, 0o100));
        assert_eq!(into.join("up").read_link().unwrap(), Path::new(".."));
        let other = root.path().join("other");
        std::fs::create_dir(&other).unwrap();
        // The link comes last, where a folder is already.
        expand_zip(zip_of("out", "out/app"), &other).unwrap_err();
        expand_zip(zip_of("link", "../app"), &other).unwrap_err();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_comes_out_is_bounded() {
        let mut budget = Budget { entries: 2, bytes: 10 };
        budget.spend(10).unwrap();
        budget.spend(1).unwrap_err();
        budget.spend(0).unwrap();
        budget.spend(0).unwrap_err();
    }
}
