//! What a script may do to be read or written elsewhere, and what comes of it.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;

/// A folder of artifacts beside a secret.
struct Sandbox {
    root: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("artifacts")).unwrap();
        std::fs::create_dir(root.path().join("outside")).unwrap();
        write(&root.path().join("outside/secret"), b"secret");
        Self { root }
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("artifacts")
    }

    fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }

    fn open(&self, path: &str) -> Result<Vec<u8>, ArtifactError> {
        Opened::open(&self.folder(), &path.parse().unwrap(), 0)?.chunk()
    }
}

fn write(path: &Path, bytes: &[u8]) {
    crate::durable::replace_file(path, bytes, 0o600).unwrap();
}

#[test]
fn rule_1_no_link_is_followed_out_and_none_within() {
    let sandbox = Sandbox::new();
    let folder = sandbox.folder();
    write(&folder.join("good"), b"good");
    symlink(sandbox.outside().join("secret"), folder.join("file")).unwrap();
    symlink(sandbox.outside(), folder.join("folder")).unwrap();
    symlink("../outside", folder.join("relative")).unwrap();
    symlink("good", folder.join("within")).unwrap();
    assert_eq!(sandbox.open("good").unwrap(), b"good");
    for path in ["file", "folder/secret", "relative/secret", "within", "good/x"] {
        let error = sandbox.open(path).unwrap_err();
        assert!(matches!(error, ArtifactError::NotAFile(_)), "{path}: {error}");
    }
    assert!(matches!(sandbox.open("none").unwrap_err(), ArtifactError::NotFound(_)));
    // The folder of artifacts itself.
    std::fs::remove_dir_all(&folder).unwrap();
    symlink(sandbox.outside(), &folder).unwrap();
    sandbox.open("secret").unwrap_err();
    list(&folder).unwrap_err();
}

#[test]
fn rule_2_what_is_no_file_is_named_and_not_opened() {
    let sandbox = Sandbox::new();
    let folder = sandbox.folder();
    std::fs::create_dir_all(folder.join("a/b")).unwrap();
    write(&folder.join("a/b/c"), b"12345");
    write(&folder.join("a\nb"), b"");
    symlink("/etc/passwd", folder.join("link")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, folder.join("pipe"), fifo, mode, 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap());
    let listing = list(&folder).unwrap();
    let artifacts: Vec<_> =
        listing.artifacts.iter().map(|(path, size)| (path.as_str(), *size)).collect();
    assert_eq!(artifacts, [("a/b/c", 5)]);
    let skipped: Vec<_> =
        listing.skipped.iter().map(|skipped| (&*skipped.path, skipped.why)).collect();
    let expected =
        [("a b", Why::Name), ("link", Why::Link), ("pipe", Why::Special), ("socket", Why::Special)];
    assert_eq!(skipped, expected);
    assert!(!listing.is_cut && listing.left_out == 0);
    for path in ["pipe", "socket", "a"] {
        assert!(matches!(sandbox.open(path).unwrap_err(), ArtifactError::NotAFile(_)), "{path}");
    }
}

#[test]
fn a_list_has_limits_and_says_what_it_leaves_out() {
    let sandbox = Sandbox::new();
    let folder = sandbox.folder();
    for number in 0..MAX_LISTED + 5 {
        std::fs::File::create(folder.join(format!("f{number}"))).unwrap();
    }
    for number in 0..MAX_SKIPPED + 2 {
        symlink("x", folder.join(format!("l{number}"))).unwrap();
    }
    let listing = list(&folder).unwrap();
    assert_eq!((listing.artifacts.len(), listing.skipped.len()), (MAX_LISTED, MAX_SKIPPED));
    assert_eq!(listing.left_out, 7);
    let mut deep = folder.join("deep");
    for _ in 0..path::MAX_DEPTH {
        deep.push("d");
    }
    std::fs::create_dir_all(&deep).unwrap();
    list(&folder).unwrap();
    assert_eq!(list(&folder.join("none")).unwrap(), Listing::default());
}

#[test]
fn an_artifact_is_read_from_any_offset() {
    let sandbox = Sandbox::new();
    let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 7).map(|n| u8::try_from(n % 251).unwrap()).collect();
    write(&sandbox.folder().join("f"), &bytes);
    let path: ArtifactPath = "f".parse().unwrap();
    for offset in [0, 1, CHUNK_BYTES, bytes.len() - 1, bytes.len()] {
        let from = u64::try_from(offset).unwrap();
        let mut opened = Opened::open(&sandbox.folder(), &path, from).unwrap();
        assert_eq!(opened.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
        let mut all = Vec::new();
        loop {
            let chunk = opened.chunk().unwrap();
            if chunk.is_empty() {
                break;
            }
            all.extend(chunk);
        }
        assert_eq!(all, bytes[offset..], "from {offset}");
    }
    let beyond = u64::try_from(bytes.len()).unwrap() + 1;
    let error = Opened::open(&sandbox.folder(), &path, beyond).unwrap_err();
    assert!(matches!(error, ArtifactError::OffsetBeyondEnd { .. }), "{error}");
}

#[test]
fn rule_3_a_fetched_file_is_whole_or_not_there_and_never_elsewhere() {
    let sandbox = Sandbox::new();
    let folder = sandbox.folder();
    let root = Beneath::chosen(&folder).unwrap();
    let path: ArtifactPath = "a/b".parse().unwrap();
    let mut fetched = Fetched::begin(&root, &path).unwrap();
    fetched.append(b"half").unwrap();
    drop(fetched);
    assert_eq!(std::fs::read_dir(folder.join("a")).unwrap().count(), 0);
    let mut fetched = Fetched::begin(&root, &path).unwrap();
    fetched.append(b"old").unwrap();
    fetched.clear().unwrap();
    fetched.append(b"whole").unwrap();
    assert_eq!(fetched.sha256(), <[u8; 32]>::from(Sha256::digest(b"whole")));
    fetched.finish().unwrap();
    assert_eq!(std::fs::read(folder.join("a/b")).unwrap(), b"whole");
    // A folder on the way that leads out, and a link in the file's own place.
    symlink(sandbox.outside(), folder.join("out")).unwrap();
    Fetched::begin(&root, &"out/secret".parse().unwrap()).unwrap_err();
    symlink(sandbox.outside().join("secret"), folder.join("link")).unwrap();
    let mut fetched = Fetched::begin(&root, &"link".parse().unwrap()).unwrap();
    fetched.append(b"new").unwrap();
    fetched.finish().unwrap();
    assert_eq!(std::fs::read(sandbox.outside().join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read(folder.join("link")).unwrap(), b"new");
}
