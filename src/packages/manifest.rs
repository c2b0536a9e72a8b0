//! Pure: what a package is made of: a sorted list of folders, files and links, each file as a list of
//! chunks. Its SHA-256 is the package's digest.
//!
//! ```text
//! baton-package 1
//! d bin
//! x bin/app
//! c 3b0c… 65536
//! c 9f41… 1200
//! f readme
//! l latest<tab>bin/app
//! ```
//!
//! 1. One content has one text: the lines are sorted by path, and a text that would be written
//!    otherwise is refused.
//! 2. Nothing leads out: paths are relative and without `..`; what is below something is below a
//!    folder of the same list; a link's target may go up only first, and not above the top.
//! 3. All is bounded: entries, chunks, the text itself.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use crate::format::Newer;
use crate::transfer::{Digest, PathError, RelativePath};

/// The longest text, in bytes: with chunks of the usual size, 28 GiB of content.
pub const MAX_MANIFEST_BYTES: usize = 32 << 20;
/// The most entries: each is a file or a folder to make.
pub const MAX_ENTRIES: usize = 200_000;
/// The largest chunk, in bytes.
pub const MAX_CHUNK_BYTES: u32 = 256 * 1024;
/// The longest target of a link, in bytes.
const MAX_TARGET_BYTES: usize = 1024;
/// The file at an installed package's top that says what it is. No package has one of its own.
pub const STAMP: &str = ".baton-package";
/// The first line, but for the version.
const HEAD: &str = "baton-package ";
/// The version.
const VERSION: u64 = 1;

/// What a package is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
}

/// A folder, a file or a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where, below the package's top; parts with `/` between.
    pub path: String,
    /// What.
    pub kind: EntryKind,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder.
    Folder,
    /// A regular file.
    File {
        /// Whether it is a program.
        executable: bool,
        /// Its content, in order; none of an empty file.
        chunks: Vec<Chunk>,
    },
    /// A symbolic link to something in the package.
    Link {
        /// Relative to its folder.
        target: String,
    },
}

/// A piece of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its length in bytes: 1 to [`MAX_CHUNK_BYTES`].
    pub size: u32,
}

/// Why something is no package.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A newer baton made it.
    #[error("a newer baton made it")]
    Newer(#[source] Newer),
    /// It is no text of this kind.
    #[error("line {0} of the manifest is not understood")]
    Line(usize),
    /// The same content has another text.
    #[error("manifest is not written as it must be: one content has one text")]
    NotCanonical,
    /// A path breaks a rule.
    #[error("path {path:?} {error}")]
    Path {
        /// Which.
        path: String,
        /// Why.
        error: PathError,
    },
    /// It is the stamp's place.
    #[error("{STAMP} at the top is baton's own")]
    Stamp,
    /// The order is wrong, or a path comes twice.
    #[error("path {0:?} is not after the one before it")]
    Order(String),
    /// It is below something that is no folder.
    #[error("path {0:?} is not in a folder of the package")]
    NoFolder(String),
    /// A link leads out.
    #[error("link {path:?} leads out of the package, to {target:?}")]
    LinkLeadsOut {
        /// Which.
        path: String,
        /// Where to.
        target: String,
    },
    /// A chunk has an impossible size, or two.
    #[error("chunk {digest} of {path:?} has the size {size}")]
    ChunkSize {
        /// The file.
        path: String,
        /// Which.
        digest: Digest,
        /// What it says.
        size: u32,
    },
    /// There is nothing in it.
    #[error("package is empty")]
    Empty,
    /// It has too many entries.
    #[error("package has more than {MAX_ENTRIES} files and folders")]
    TooManyEntries,
    /// Its text is too long.
    #[error("package is too large: its manifest has more than {MAX_MANIFEST_BYTES} bytes")]
    TooLong,
}

impl Manifest {
    /// The manifest of these entries, in whatever order.
    ///
    /// # Errors
    /// When one breaks a rule.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        let manifest = Self { entries };
        manifest.check()?;
        if manifest.encode().len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong);
        }
        Ok(manifest)
    }

    /// Reads a manifest that somebody sent.
    ///
    /// # Errors
    /// When it breaks a rule.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::Line(1))?;
        let mut lines = text.split_terminator('\n').enumerate();
        check_head(lines.next().map_or("", |(_, head)| head))?;
        let mut entries: Vec<Entry> = Vec::new();
        for (number, line) in lines {
            let wrong = ManifestError::Line(number + 1);
            let (kind, rest) = line.split_once(' ').ok_or(wrong.clone())?;
            let count = entries.len();
            match (kind, entries.last_mut().map(|entry| &mut entry.kind)) {
                ("c", Some(EntryKind::File { chunks, .. })) => {
                    chunks.push(Chunk::parse(rest).ok_or(wrong)?);
                }
                _ if count >= MAX_ENTRIES => return Err(ManifestError::TooManyEntries),
                _ => entries.push(Entry::parse(kind, rest).ok_or(wrong)?),
            }
        }
        let manifest = Self { entries };
        manifest.check()?;
        if manifest.encode() != bytes {
            return Err(ManifestError::NotCanonical);
        }
        Ok(manifest)
    }

    /// Its text: what is sent, kept, and hashed.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("{HEAD}{VERSION}\n");
        for Entry { path, kind } in &self.entries {
            // Writing into a text never fails.
            let written = match kind {
                EntryKind::Folder => writeln!(text, "d {path}"),
                EntryKind::Link { target } => writeln!(text, "l {path}\t{target}"),
                EntryKind::File { executable, chunks } => {
                    let kind = if *executable { 'x' } else { 'f' };
                    writeln!(text, "{kind} {path}").and_then(|()| {
                        let chunks = &mut chunks.iter();
                        chunks.try_for_each(|c| writeln!(text, "c {} {}", c.digest, c.size))
                    })
                }
            };
            written.unwrap_or_default();
        }
        text.into_bytes()
    }

    /// The entries, sorted: folders before what is in them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All chunks of all files, in order, as often as they come.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.entries.iter().flat_map(|entry| entry.kind.chunks())
    }

    /// Each chunk once, in the order of its first place.
    pub fn distinct_chunks(&self) -> Vec<Chunk> {
        let mut seen = HashSet::new();
        self.chunks().filter(|chunk| seen.insert(chunk.digest)).copied().collect()
    }

    /// The length of all files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.chunks().map(|chunk| u64::from(chunk.size)).sum()
    }

    /// The length of all different chunks together, in bytes: what has to be there of them.
    pub fn distinct_bytes(&self) -> u64 {
        self.distinct_chunks().iter().map(|chunk| u64::from(chunk.size)).sum()
    }

    /// How many files it has.
    pub fn files(&self) -> u64 {
        let is_file = |entry: &&Entry| matches!(entry.kind, EntryKind::File { .. });
        u64::try_from(self.entries.iter().filter(is_file).count()).unwrap_or(u64::MAX)
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.entries.is_empty() {
            return Err(ManifestError::Empty);
        }
        if self.entries.len() > MAX_ENTRIES {
            return Err(ManifestError::TooManyEntries);
        }
        let (mut folders, mut sizes) = (HashSet::new(), HashMap::new());
        let mut before: Option<&str> = None;
        for Entry { path, kind } in &self.entries {
            check_path(path)?;
            if before.is_some_and(|before| before >= path.as_str()) {
                return Err(ManifestError::Order(path.clone()));
            }
            before = Some(path);
            // Sorted: a folder comes before what is in it.
            if path.rsplit_once('/').is_some_and(|(folder, _)| !folders.contains(folder)) {
                return Err(ManifestError::NoFolder(path.clone()));
            }
            match kind {
                EntryKind::Folder => drop(folders.insert(path.as_str())),
                EntryKind::Link { target } => check_target(path, target)?,
                EntryKind::File { chunks, .. } => {
                    for Chunk { digest, size } in chunks {
                        let (digest, size) = (*digest, *size);
                        let same = *sizes.entry(digest).or_insert(size) == size;
                        if !same || size == 0 || size > MAX_CHUNK_BYTES {
                            let path = path.clone();
                            return Err(ManifestError::ChunkSize { path, digest, size });
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl EntryKind {
    /// A file's chunks.
    pub fn chunks(&self) -> &[Chunk] {
        match self {
            Self::File { chunks, .. } => chunks,
            Self::Folder | Self::Link { .. } => &[],
        }
    }
}

impl Entry {
    fn parse(kind: &str, rest: &str) -> Option<Self> {
        let file = |executable| EntryKind::File { executable, chunks: Vec::new() };
        let (path, kind) = match kind {
            "d" => (rest, EntryKind::Folder),
            "f" => (rest, file(false)),
            "x" => (rest, file(true)),
            "l" => {
                let (path, target) = rest.split_once('\t')?;
                (path, EntryKind::Link { target: target.to_owned() })
            }
            _ => return None,
        };
        Some(Self { path: path.to_owned(), kind })
    }
}

impl Chunk {
    fn parse(text: &str) -> Option<Self> {
        let (digest, size) = text.split_once(' ')?;
        Some(Self { digest: digest.parse().ok()?, size: size.parse().ok()? })
    }
}

fn check_path(path: &str) -> Result<(), ManifestError> {
    if path == STAMP {
        return Err(ManifestError::Stamp);
    }
    match path.parse::<RelativePath>() {
        Ok(_) => Ok(()),
        Err(error) => Err(ManifestError::Path { path: path.to_owned(), error }),
    }
}

/// A link's folder is a folder and no link, so the `..` at the beginning of its target lead where they
/// seem to. Behind a name they might not: the name may be a link.
fn check_target(path: &str, target: &str) -> Result<(), ManifestError> {
    let depth = path.matches('/').count();
    let mut parts = target.split('/').filter(|part| *part != ".").peekable();
    let mut ups = 0;
    while parts.next_if(|part| *part == "..").is_some() {
        ups += 1;
    }
    let is_plain = parts.all(|part| !part.is_empty() && part != "..");
    let is_text = !target.is_empty() && !target.contains(char::is_control);
    if ups > depth || !is_plain || !is_text || target.len() > MAX_TARGET_BYTES {
        let (path, target) = (path.to_owned(), target.to_owned());
        return Err(ManifestError::LinkLeadsOut { path, target });
    }
    Ok(())
}

/// The first line of a manifest of this version or an older one.
fn check_head(line: &str) -> Result<(), ManifestError> {
    let version = line.strip_prefix(HEAD).and_then(|version| version.parse().ok());
    let version = version.filter(|version| *version > 0).ok_or(ManifestError::Line(1))?;
    Newer::check(version, VERSION, None).map_err(ManifestError::Newer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(content: &[u8]) -> Chunk {
        Chunk { digest: Digest::of(content), size: u32::try_from(content.len()).unwrap() }
    }

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry { path: path.to_owned(), kind }
    }

    fn file(path: &str, chunks: &[Chunk]) -> Entry {
        entry(path, EntryKind::File { executable: false, chunks: chunks.to_vec() })
    }

    fn link(path: &str, target: &str) -> Entry {
        entry(path, EntryKind::Link { target: target.to_owned() })
    }

    fn folder(path: &str) -> Entry {
        entry(path, EntryKind::Folder)
    }

    #[test]
    fn what_is_written_is_read_again_and_the_order_does_not_matter() {
        let program = EntryKind::File { executable: true, chunks: vec![chunk(b"a"), chunk(b"bc")] };
        let entries = vec![
            link("a/latest", "../b c/ü"),
            file("empty", &[]),
            folder("a"),
            folder("b c"),
            entry("b c/ü", program),
            folder("a-b"),
        ];
        let manifest = Manifest::new(entries.clone()).unwrap();
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest.clone()));
        let reversed = Manifest::new(entries.into_iter().rev().collect()).unwrap();
        assert_eq!(reversed.encode(), manifest.encode());
        assert_eq!((manifest.bytes(), manifest.files()), (3, 2));
        assert_eq!(manifest.distinct_chunks(), [chunk(b"a"), chunk(b"bc")]);
    }

    #[test]
    fn nothing_leads_out_of_a_package() {
        for path in ["../x", "/etc/passwd", "a/../../x", "", "a//b", "a/", ".", "x\ny", "x\ty"] {
            assert!(Manifest::new(vec![folder("a"), file(path, &[])]).is_err(), "{path}");
        }
        for target in
            ["/etc", "..", "../..", "a/..", "x/../..", "", "a//b", "./..", "x\0", "a/../../../etc"]
        {
            let error = Manifest::new(vec![link("l", target)]).unwrap_err();
            assert!(matches!(error, ManifestError::LinkLeadsOut { .. }), "{target}: {error}");
        }
        for target in ["a", "./a/b", "..a", "..."] {
            Manifest::new(vec![link("l", target)]).unwrap();
        }
        Manifest::new(vec![folder("d"), link("d/l", "../a")]).unwrap();
        Manifest::new(vec![folder("d"), link("d/l", "../../a")]).unwrap_err();
        // Through a link nothing is written.
        let through = vec![link("a", "b"), folder("b"), file("a/x", &[])];
        assert_eq!(Manifest::new(through), Err(ManifestError::NoFolder("a/x".to_owned())));
        assert_eq!(Manifest::new(vec![file(STAMP, &[])]), Err(ManifestError::Stamp));
        let twice = vec![file("a", &[]), link("a", "b")];
        assert_eq!(Manifest::new(twice), Err(ManifestError::Order("a".to_owned())));
        assert_eq!(Manifest::new(Vec::new()), Err(ManifestError::Empty));
    }

    #[test]
    fn one_content_has_one_text() {
        let digest = Digest::of(b"a");
        let good = format!("{HEAD}{VERSION}\nf a\nc {digest} 1\n");
        Manifest::decode(good.as_bytes()).unwrap();
        for bad in [
            String::new(),
            "baton-package 2\nf a\n".to_owned(),
            format!("{HEAD}{VERSION}\nf a\nc {digest} 01\n"),
            format!("{HEAD}{VERSION}\nf a\nc {digest} +1\n"),
            format!("{HEAD}{VERSION}\nf a\nc {digest} 1"),
            format!("{HEAD}{VERSION}\nf a\nc {digest} 1\n\n"),
            format!("{HEAD}{VERSION}\nf a\nc {digest} 0\n"),
            format!("{HEAD}{VERSION}\nf a\nc {digest} 262145\n"),
            format!("{HEAD}{VERSION}\nf a\nc {digest} 1\nc {digest} 2\n"),
            format!("{HEAD}{VERSION}\nd a\nc {digest} 1\n"),
            format!("{HEAD}{VERSION}\nc {digest} 1\n"),
            format!("{HEAD}{VERSION}\nf b\nf a\n"),
            format!("{HEAD}{VERSION}\nf a\nf a\n"),
            format!("{HEAD}{VERSION}\nf a\r\n"),
            format!("{HEAD}{VERSION}\nz a\n"),
            format!("{HEAD}{VERSION}\nl a\n"),
        ] {
            assert!(Manifest::decode(bad.as_bytes()).is_err(), "{bad:?}");
        }
        Manifest::decode(b"\xff").unwrap_err();
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_written_the_same_way(text in "(f|d|x|l|c) [a/.\\t]{0,6}\n{0,2}") {
            let bytes = format!("{HEAD}{VERSION}\n{text}").into_bytes();
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(manifest.encode(), bytes);
            }
        }

        #[test]
        fn a_link_s_target_never_leads_above_the_top(target in "[./a]{0,12}") {
            if check_target("d/l", &target).is_ok() {
                let mut depth = 1_i32;
                for part in target.split('/') {
                    depth += match part { ".." => -1, "." | "" => 0, _ => 1 };
                    prop_assert!(depth >= 0);
                }
                prop_assert!(!target.starts_with('/'));
            }
        }
    }
}
