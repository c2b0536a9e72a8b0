//! Transfers on a real file system: what fails at each step, who comes at the same time, what is refused.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use super::step::fault::with_fault;
use super::*;

/// A root `r` in a folder of its own.
struct Ground {
    root: tempfile::TempDir,
    transfers: Transfers,
}

impl Ground {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Files)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_owned();
        let open = Root { path, access: Access::ReadWrite };
        let roots = BTreeMap::from([("r".to_owned(), open)]);
        let mut files = Files { roots, min_free_bytes: 0, ..Files::default() };
        change(&mut files);
        let transfers = Transfers::new(Path::new("/none"), &files);
        Self { root, transfers }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path(name)).ok()
    }

    /// Brings a content as a client would: all of it, or what is missing.
    fn bring(&self, path: &str, content: &[u8]) -> Result<FileInfo, TransferError> {
        match self.transfers.receive(&place(path), offer(content))? {
            Receive::Unchanged(info) => Ok(info),
            Receive::More(mut receiving) => {
                let from = usize::try_from(receiving.received()).unwrap();
                for piece in content[from..].chunks(3) {
                    receiving.write(piece)?;
                }
                receiving.finish()
            }
        }
    }

    /// All files below the root, the partial ones too.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(self.root.path()).unwrap();
                    files.push(name.display().to_string());
                }
            }
        }
        files.sort();
        files
    }
}

fn place(path: &str) -> Place {
    Place { root: "r".to_owned(), path: path.parse().unwrap() }
}

fn offer(content: &[u8]) -> Offer {
    let size = u64::try_from(content.len()).unwrap();
    Offer { size, digest: Digest::of(content), mode: 0o640, modified: None }
}

#[test]
fn a_file_comes_whole_with_its_mode_and_time_and_leaves_nothing_else() {
    let ground = Ground::new();
    let time: Timestamp = "2020-01-02T03:04:05.000000006Z".parse().unwrap();
    let wanted = Offer { modified: Some(time), mode: 0o755, ..offer(b"") };
    let Receive::More(receiving) = ground.transfers.receive(&place("a/b/c"), wanted).unwrap()
    else {
        panic!("it is not there");
    };
    let info = receiving.finish().unwrap();
    assert_eq!((info.mode, info.modified), (0o755, time));
    assert_eq!(ground.transfers.stat(&place("a/b/c"), true).unwrap(), info);
    assert_eq!(ground.files(), ["a/b/c"]);
    assert_eq!(ground.transfers.stat(&place("a/b"), true).unwrap().kind, Kind::Folder);
}

#[test]
fn rule_2_whichever_operation_fails_there_is_the_old_content_or_the_new_one() {
    for old in [None, Some(b"old".as_slice())] {
        let mut n = 0;
        loop {
            let ground = Ground::new();
            if let Some(old) = old {
                ground.bring("folder/file", old).unwrap();
            }
            let (result, failed) = with_fault(n, || ground.bring("folder/file", b"the new one"));
            let there = ground.read("folder/file");
            if result.is_ok() {
                assert_eq!(there.as_deref(), Some(b"the new one".as_slice()), "operation {n}");
            } else {
                let whole = there.as_deref() == old || there.as_deref() == Some(b"the new one");
                assert!(whole, "operation {n} left {there:?}");
            }
            // Whatever was left, the next try ends well.
            let info = ground.bring("folder/file", b"the new one").unwrap();
            assert_eq!(ground.read("folder/file").unwrap(), b"the new one", "operation {n}");
            assert_eq!(info.mode, 0o640);
            assert_eq!(ground.files(), ["folder/file"], "operation {n}");
            if !failed {
                assert!(n > 15, "only {n} operations");
                break;
            }
            n += 1;
        }
    }
}

#[test]
fn rule_3_what_came_of_a_broken_upload_stays_and_the_next_one_goes_on_there() {
    let ground = Ground::new();
    let begin = || match ground.transfers.receive(&place("file"), offer(b"content")).unwrap() {
        Receive::More(receiving) => receiving,
        Receive::Unchanged(_) => panic!("it is not there"),
    };
    let mut first = begin();
    first.write(b"con").unwrap();
    drop(first);
    assert_eq!(ground.read("file"), None);
    let mut second = begin();
    assert_eq!((second.received(), second.left()), (3, 4));
    second.write(b"tent").unwrap();
    second.finish().unwrap();
    assert_eq!(ground.read("file").unwrap(), b"content");
}

#[test]
fn rule_3_the_same_content_in_place_is_taken_with_the_new_mode() {
    let ground = Ground::new();
    ground.bring("file", b"content").unwrap();
    let wanted = Offer { mode: 0o755, ..offer(b"content") };
    let receive = ground.transfers.receive(&place("file"), wanted).unwrap();
    assert!(matches!(receive, Receive::Unchanged(info) if info.mode == 0o755));
    let mode = ground.path("file").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn a_wrong_digest_changes_nothing_and_is_not_gone_on_with() {
    let ground = Ground::new();
    ground.bring("file", b"old").unwrap();
    let wrong = Offer { size: 3, ..offer(b"new") };
    let try_it = |content: &[u8]| {
        let Receive::More(mut receiving) =
            ground.transfers.receive(&place("file"), wrong.clone()).unwrap()
        else {
            panic!("it is another content");
        };
        assert_eq!(receiving.received(), 0);
        receiving.write(content).unwrap();
        receiving.finish()
    };
    let error = try_it(b"bad").unwrap_err();
    assert!(matches!(error, TransferError::WrongDigest { .. }), "{error}");
    assert_eq!(ground.read("file").unwrap(), b"old");
    assert_eq!(ground.files(), ["file"]);
    try_it(b"new").unwrap();
    assert_eq!(ground.read("file").unwrap(), b"new");
}

#[test]
fn too_little_and_too_much_are_refused() {
    let ground = Ground::new();
    let Receive::More(mut receiving) =
        ground.transfers.receive(&place("file"), offer(b"abc")).unwrap()
    else {
        panic!("it is not there");
    };
    let error = receiving.write(b"abcd").unwrap_err();
    assert!(matches!(error, TransferError::TooMuch { .. }), "{error}");
    receiving.write(b"a").unwrap();
    let error = receiving.finish().unwrap_err();
    assert!(matches!(error, TransferError::Incomplete { received: 1, size: 3, .. }), "{error}");
    assert_eq!(ground.read("file"), None);
}

#[test]
fn rule_1_no_link_is_followed_wherever_it_stands() {
    let ground = Ground::new();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    crate::durable::replace_file(&secret, b"secret", 0o600).unwrap();
    symlink(outside.path(), ground.path("folder")).unwrap();
    symlink(&secret, ground.path("file")).unwrap();
    symlink(outside.path().join("new"), ground.path("dangling")).unwrap();
    for path in ["folder/secret", "folder/new", "folder/a/b", "file", "dangling"] {
        for error in [
            ground.bring(path, b"x").map(|_| ()),
            ground.transfers.stat(&place(path), true).map(|_| ()),
            ground.transfers.send(&place(path), 0).map(|_| ()),
        ] {
            assert!(matches!(error, Err(TransferError::Link(_))), "{path}: {error:?}");
        }
    }
    assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_file_is_not_replaced() {
    let ground = Ground::new();
    ground.bring("folder/file", b"x").unwrap();
    for path in ["folder", "folder/file/below"] {
        let error = ground.bring(path, b"y").unwrap_err();
        assert!(matches!(error, TransferError::WrongKind { .. }), "{path}: {error}");
    }
    let pipe = ground.path("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for error in [
        ground.bring("pipe", b"y").map(|_| ()),
        ground.transfers.send(&place("pipe"), 0).map(|_| ()),
        ground.transfers.stat(&place("pipe"), true).map(|_| ()),
    ] {
        assert!(matches!(error, Err(TransferError::WrongKind { .. })), "{error:?}");
    }
    assert_eq!(ground.read("folder/file").unwrap(), b"x");
}

#[test]
fn rule_4_room_is_checked_first_and_limits_are_kept() {
    let full = Ground::with(|files| files.min_free_bytes = u64::MAX);
    let error = full.bring("file", b"x").unwrap_err();
    assert!(matches!(error, TransferError::DiskFull { needed: 1, .. }), "{error}");
    // Nothing is no question of room.
    full.bring("empty", b"").unwrap();
    let small = Ground::with(|files| files.max_file_bytes = 3);
    small.bring("file", b"abc").unwrap();
    let error = small.bring("file", b"abcd").unwrap_err();
    assert!(matches!(error, TransferError::TooLarge { limit: 3, .. }), "{error}");
    let few = Ground::with(|files| files.max_transfers = 1);
    let permit = few.transfers.permit().unwrap();
    assert!(matches!(few.transfers.permit(), Err(TransferError::Busy(1))));
    drop(permit);
    drop(few.transfers.permit().unwrap());
}

#[test]
fn another_configuration_counts_for_who_comes_and_who_is_on_the_way_keeps_what_it_began_with() {
    let ground = Ground::with(|files| files.max_transfers = 2);
    let content = b"0123456789";
    let begun = ground.transfers.receive(&place("app"), offer(content)).unwrap();
    let Receive::More(mut on_the_way) = begun else { panic!("it is there") };
    let [first, second] = [(); 2].map(|()| ground.transfers.permit().unwrap());
    let files = Files { roots: BTreeMap::new(), max_transfers: 1, ..Files::default() };
    ground.transfers.configure(&files);
    drop(first);
    // As many as there may be now are still on their way.
    assert!(matches!(ground.transfers.permit(), Err(TransferError::Busy(1))));
    drop(second);
    drop(ground.transfers.permit().unwrap());
    let closed = ground.transfers.receive(&place("other"), offer(content));
    assert!(matches!(closed, Err(TransferError::UnknownRoot { .. })));
    on_the_way.write(content).unwrap();
    on_the_way.finish().unwrap();
    assert_eq!(ground.read("app").unwrap(), content);
}

#[test]
fn uploads_to_one_path_at_the_same_time_all_end_and_none_is_torn() {
    let ground = Ground::new();
    let contents: Vec<Vec<u8>> = (0..8_u8).map(|n| vec![n / 2; 100_000]).collect();
    std::thread::scope(|scope| {
        for content in &contents {
            let ground = &ground;
            scope.spawn(move || {
                for _ in 0..5 {
                    ground.bring("file", content).unwrap();
                }
            });
        }
        let ground = &ground;
        scope.spawn(move || {
            for _ in 0..200 {
                if let Some(content) = ground.read("file") {
                    assert_eq!(content.len(), 100_000);
                    assert!(content.iter().all(|byte| *byte == content[0]));
                }
            }
        });
    });
    assert_eq!(ground.files(), ["file"]);
}

#[test]
fn roots_are_known_by_name_and_one_that_is_missing_is_not_made() {
    let ground = Ground::with(|files| {
        let gone = Root { path: "/no/such/folder".into(), access: Access::ReadWrite };
        let open = Root { path: std::env::temp_dir(), access: Access::Read };
        files.roots.extend([("gone".to_owned(), gone), ("open".to_owned(), open)]);
    });
    let bring = |root: &str| {
        let place = Place { root: root.to_owned(), ..place("file") };
        ground.transfers.receive(&place, offer(b"x")).map(|_| ())
    };
    let error = bring("other").unwrap_err();
    assert_eq!(error.to_string(), "root \"other\" is not known; there is gone, open, r");
    assert!(matches!(bring("gone"), Err(TransferError::Root { .. })));
    assert!(matches!(bring("open"), Err(TransferError::ReadOnly(_))));
}

#[test]
fn a_root_below_the_state_folder_is_made_when_it_is_needed() {
    let state = tempfile::tempdir().unwrap();
    let transfers = Transfers::new(state.path(), &Files::default());
    let place = Place { root: "files".to_owned(), ..place("file") };
    transfers.recover();
    assert!(matches!(transfers.stat(&place, false), Err(TransferError::NotFound(_))));
    assert!(!state.path().join("files").exists());
    transfers.receive(&place, offer(b"")).unwrap();
    let mode = state.path().join("files").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_file_goes_out_from_any_offset_up_to_its_end() {
    let ground = Ground::new();
    let content: Vec<u8> = (0..CHUNK_BYTES + 10).map(|n| u8::try_from(n % 251).unwrap()).collect();
    ground.bring("file", &content).unwrap();
    for offset in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, content.len()] {
        let from = u64::try_from(offset).unwrap();
        let mut sending = ground.transfers.send(&place("file"), from).unwrap();
        let mut read = Vec::new();
        while let Some((at, chunk)) = sending.next_chunk().unwrap() {
            assert_eq!(at, from + u64::try_from(read.len()).unwrap());
            assert!(chunk.len() <= CHUNK_BYTES);
            read.extend_from_slice(&chunk);
        }
        assert!(read == content[offset..], "from {offset}");
    }
    let beyond = u64::try_from(content.len()).unwrap() + 1;
    let error = ground.transfers.send(&place("file"), beyond).unwrap_err();
    assert!(matches!(error, TransferError::OffsetBeyondEnd { .. }), "{error}");
}
