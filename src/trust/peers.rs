//! `<config>/peers.toml`: who may call this agent, and the live set that a running agent asks.
//!
//! 1. A change of the file is a change of the live set, without a restart.
//! 2. A file that can't be read leaves the last good set in force.
//! 3. Who loses a role loses the connections on which it had it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::identity::{failed, lock_file};
use super::{Fingerprint, Role, TrustError};
use crate::durable;
use crate::filewatch::{FileWatch, FileWatcher};
use crate::format::{self, Newer};
use crate::script::check_name;

/// How long to wait before a folder that is away is looked for again.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// Someone who may call this agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// For people.
    pub name: String,
    /// Its certificate's.
    pub fingerprint: Fingerprint,
    /// What it may do. The default is not written: an older agent, after a roll-back say, reads the file too.
    #[serde(default, skip_serializing_if = "Role::is_default")]
    pub role: Role,
    /// When the trust ends; `None`: it doesn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When it began.
    pub added: Timestamp,
}

/// Why a peer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody trusts it.
    #[error("not trusted")]
    Unknown,
    /// The trust has ended.
    #[error("trust has expired")]
    Expired,
    /// It may do less than when it connected.
    #[error("role was taken back")]
    Demoted,
}

/// All peers, in the order in which they were added.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    /// None, the first one: written only when it is raised, since older programs refuse what they don't know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<u64>,
    #[serde(default, rename = "peer")]
    peers: Vec<Peer>,
}

/// What is read of the file before anything else.
#[derive(Debug, Default, Deserialize)]
struct Head {
    #[serde(default)]
    format: u64,
}

impl Peers {
    /// Reads the file; none is no peers.
    ///
    /// # Errors
    /// When it can't be read, a newer baton wrote it, or it has another shape.
    pub fn load(folder: &Path) -> Result<Self, TrustError> {
        let path = path(folder);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(failed(&path)(e)),
        };
        // A newer list may restrict whom this baton would let in: it is not even looked at.
        let head: Head = toml::from_str(&text).unwrap_or_default();
        if let Err(source) = Newer::check(head.format, format::PEERS.into(), None) {
            return Err(TrustError::Newer { path, source });
        }
        toml::from_str(&text).map_err(|e| TrustError::Damaged { path, problem: e.to_string() })
    }

    /// Changes the file, durable, also when others change it at the same time.
    ///
    /// # Errors
    /// What `change` says, or when the file can't be read or written. Then nothing is changed.
    pub fn change<T>(
        folder: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, TrustError>,
    ) -> Result<T, TrustError> {
        durable::create_dir_all(folder, 0o755).map_err(failed(folder))?;
        let lock_path = folder.join(".peers.lock");
        let _lock = lock_file(&lock_path).map_err(failed(&lock_path))?;
        let mut peers = Self::load(folder)?;
        let result = change(&mut peers)?;
        let path = path(folder);
        let text = toml::to_string(&peers)
            .map_err(|e| TrustError::Damaged { path: path.clone(), problem: e.to_string() })?;
        durable::replace_file(&path, text.as_bytes(), 0o644).map_err(failed(&path))?;
        Ok(result)
    }

    /// Trusts a peer. The same one again, perhaps with another role or end, is no error.
    ///
    /// # Errors
    /// When the name is not allowed, or name or fingerprint belong to another peer.
    pub fn trust(&mut self, peer: Peer) -> Result<(), TrustError> {
        check_name(&peer.name, 128)
            .map_err(|source| TrustError::PeerName { name: peer.name.clone(), source })?;
        let touches =
            |known: &&mut Peer| known.name == peer.name || known.fingerprint == peer.fingerprint;
        match self.peers.iter_mut().find(touches) {
            Some(known) if known.name == peer.name && known.fingerprint == peer.fingerprint => {
                known.expires = peer.expires;
                known.role = peer.role;
            }
            Some(known) => {
                let (name, fingerprint) = (known.name.clone(), known.fingerprint);
                return Err(TrustError::PeerExists { name, fingerprint });
            }
            None => self.peers.push(peer),
        }
        Ok(())
    }

    /// Trusts a peer, known by its name or fingerprint, no longer.
    ///
    /// # Errors
    /// When there is no such peer.
    pub fn untrust(&mut self, name: &str) -> Result<Peer, TrustError> {
        let fingerprint: Option<Fingerprint> = name.parse().ok();
        let found = self
            .peers
            .iter()
            .position(|peer| peer.name == name || Some(peer.fingerprint) == fingerprint);
        let place = found.ok_or_else(|| TrustError::UnknownPeer(name.to_owned()))?;
        Ok(self.peers.remove(place))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    /// The peer with this certificate, if it may call now.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(&self, fingerprint: Fingerprint, now: Timestamp) -> Result<&Peer, Refusal> {
        let peer = self.peers.iter().find(|peer| peer.fingerprint == fingerprint);
        let peer = peer.ok_or(Refusal::Unknown)?;
        if peer.expires.is_some_and(|end| end <= now) { Err(Refusal::Expired) } else { Ok(peer) }
    }
}

/// The live set of a running agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PeerBook {
    current: watch::Receiver<Arc<Peers>>,
}

impl PeerBook {
    /// Reads the file and follows it until `stop`.
    ///
    /// # Errors
    /// When the file can't be read at first, or the folder can't be watched.
    pub fn follow(
        folder: PathBuf,
        watcher: &FileWatcher,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, TrustError> {
        durable::create_dir_all(&folder, 0o755).map_err(failed(&folder))?;
        // Watched before it is read: a change in between is told.
        let mut changes = watcher.watch(&folder).map_err(failed(&folder))?;
        let watcher = watcher.clone();
        let (live, current) = watch::channel(Arc::new(Peers::load(&folder)?));
        let follow = async move {
            loop {
                changes.changed().await;
                // The folder at the path may be another one now.
                changes = watch_again(&watcher, &folder).await;
                let folder = folder.clone();
                match tokio::task::spawn_blocking(move || Peers::load(&folder)).await {
                    Ok(Ok(peers)) => {
                        live.send_if_modified(|known| {
                            let different = **known != peers;
                            *known = Arc::new(peers);
                            different
                        });
                    }
                    Ok(Err(error)) => {
                        tracing::error!(%error, "peers can't be read; the last good set stays");
                    }
                    // The runtime ends.
                    Err(_) => return,
                }
            }
        };
        drop(tasks.spawn(async move { stop.run_until_cancelled(follow).await }));
        Ok(Self { current })
    }

    /// The peer with this certificate, if it may call now.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(&self, fingerprint: Fingerprint) -> Result<Peer, Refusal> {
        let peers = Arc::clone(&self.current.borrow());
        peers.check(fingerprint, Timestamp::now()).cloned()
    }

    /// Returns when this peer, which had a role, may not call any more, or has a lesser role than it had.
    pub async fn refused(&self, fingerprint: Fingerprint, mut had: Role) -> Refusal {
        let mut current = self.current.clone();
        loop {
            let peers = Arc::clone(&current.borrow_and_update());
            let expires = match peers.check(fingerprint, Timestamp::now()) {
                Err(refusal) => return refusal,
                // Rule 3: what it began with more rights ends with them.
                Ok(peer) if peer.role < had => return Refusal::Demoted,
                Ok(peer) => {
                    had = peer.role;
                    peer.expires
                }
            };
            let expiry = async {
                match expires.map(|end| Duration::try_from(end - Timestamp::now())) {
                    Some(Ok(left)) => tokio::time::sleep(left).await,
                    Some(Err(_)) => {}
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = current.changed() => if changed.is_err() {
                    // Nobody follows the file any more: the agent ends.
                    std::future::pending::<()>().await;
                },
                () = expiry => {}
            }
        }
    }
}

/// Watches a folder anew. One that is away, between two moves say, is waited for.
async fn watch_again(watcher: &FileWatcher, folder: &Path) -> FileWatch {
    loop {
        match watcher.watch(folder) {
            Ok(watch) => return watch,
            Err(error) => {
                tracing::error!(%error, "peers can't be watched; the last good set stays");
            }
        }
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("peers.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, certificate: &[u8]) -> Peer {
        Peer {
            name: name.to_owned(),
            fingerprint: Fingerprint::of(certificate),
            role: Role::Operator,
            expires: None,
            added: Timestamp::now(),
        }
    }

    #[test]
    fn peers_are_kept_and_checked() {
        let root = tempfile::tempdir().unwrap();
        Peers::change(root.path(), |peers| peers.trust(peer("ci", b"1"))).unwrap();
        Peers::change(root.path(), |peers| peers.trust(peer("ci", b"1"))).unwrap();
        Peers::change(root.path(), |peers| peers.trust(peer("ci", b"2"))).unwrap_err();
        Peers::change(root.path(), |peers| peers.trust(peer("other", b"1"))).unwrap_err();
        Peers::change(root.path(), |peers| peers.trust(peer("a/b", b"3"))).unwrap_err();
        let peers = Peers::load(root.path()).unwrap();
        let now = Timestamp::now();
        assert_eq!(peers.check(Fingerprint::of(b"1"), now).unwrap().name, "ci");
        assert_eq!(peers.check(Fingerprint::of(b"9"), now), Err(Refusal::Unknown));
        let fingerprint = Fingerprint::of(b"1").to_string();
        Peers::change(root.path(), |peers| peers.untrust(&fingerprint)).unwrap();
        Peers::change(root.path(), |peers| peers.untrust("ci")).unwrap_err();
    }

    #[test]
    fn trust_ends_when_it_expires() {
        let now = Timestamp::now();
        let peers = vec![Peer { expires: Some(now), ..peer("ci", b"1") }];
        let peers = Peers { peers, ..Peers::default() };
        assert_eq!(peers.check(Fingerprint::of(b"1"), now), Err(Refusal::Expired));
        assert!(peers.check(Fingerprint::of(b"1"), now - Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn many_writers_at_once_lose_nothing() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..8_u8 {
                let folder = root.path();
                scope.spawn(move || {
                    let peer = peer(&format!("p{number}"), &[number]);
                    Peers::change(folder, |peers| peers.trust(peer)).unwrap();
                });
            }
        });
        assert_eq!(Peers::load(root.path()).unwrap().iter().count(), 8);
    }

    #[tokio::test]
    async fn rule_1_a_change_is_seen_also_in_a_folder_that_took_the_place_of_the_first() {
        let root = tempfile::tempdir().unwrap();
        let (folder, old) = (root.path().join("config"), root.path().join("old"));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let watcher = FileWatcher::start(&tasks, stop.clone()).unwrap();
        Peers::change(&folder, |peers| peers.trust(peer("ci", b"1"))).unwrap();
        let book = PeerBook::follow(folder.clone(), &watcher, &tasks, stop).unwrap();
        let refused = book.refused(Fingerprint::of(b"1"), Role::Operator);
        std::fs::rename(&folder, &old).unwrap();
        std::fs::create_dir(&folder).unwrap();
        durable::replace_file(&path(&folder), b"", 0o644).unwrap();
        let refusal = tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
        assert_eq!(refusal, Refusal::Unknown);
    }

    #[test]
    fn a_role_is_kept_and_who_was_trusted_without_one_is_an_operator() {
        let root = tempfile::tempdir().unwrap();
        let file = path(root.path());
        let old = format!(
            "[[peer]]\nname = \"ci\"\nfingerprint = \"{}\"\nadded = \"{}\"\n",
            Fingerprint::of(b"1"),
            Timestamp::now()
        );
        durable::replace_file(&file, old.as_bytes(), 0o644).unwrap();
        let role = || Peers::load(root.path()).unwrap().peers[0].role;
        assert_eq!(role(), Role::Operator);
        for (again, is_written) in [(Role::Admin, true), (Role::Operator, false)] {
            let peer = Peer { role: again, ..peer("ci", b"1") };
            Peers::change(root.path(), |peers| peers.trust(peer)).unwrap();
            assert_eq!(role(), again);
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(text.contains("role"), is_written, "{text}");
        }
    }

    #[tokio::test]
    async fn rule_3_a_role_that_is_taken_back_is_told_and_one_that_is_given_is_not() {
        let root = tempfile::tempdir().unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let watcher = FileWatcher::start(&tasks, stop.clone()).unwrap();
        let give = |role| {
            let peer = Peer { role, ..peer("ci", b"1") };
            Peers::change(root.path(), |peers| peers.trust(peer)).unwrap();
        };
        give(Role::Operator);
        let book = PeerBook::follow(root.path().to_owned(), &watcher, &tasks, stop).unwrap();
        let fingerprint = Fingerprint::of(b"1");
        let refused = book.refused(fingerprint, Role::Operator);
        tokio::pin!(refused);
        give(Role::Admin);
        let given = async {
            while book.check(fingerprint).unwrap().role != Role::Admin {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), given).await.unwrap();
        assert!(futures_util::poll!(&mut refused).is_pending());
        give(Role::Operator);
        let refusal = tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
        assert_eq!(refusal, Refusal::Demoted);
    }

    #[tokio::test]
    async fn rule_1_a_change_of_the_file_takes_effect_at_once() {
        let root = tempfile::tempdir().unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let watcher = FileWatcher::start(&tasks, stop.clone()).unwrap();
        Peers::change(root.path(), |peers| peers.trust(peer("ci", b"1"))).unwrap();
        let book = PeerBook::follow(root.path().to_owned(), &watcher, &tasks, stop).unwrap();
        let name = || book.check(Fingerprint::of(b"1")).map(|peer| peer.name);
        assert_eq!(name(), Ok("ci".to_owned()));
        let refused = book.refused(Fingerprint::of(b"1"), Role::Operator);
        // Rule 2: a broken file changes nothing; a good one does.
        durable::replace_file(&path(root.path()), b"broken", 0o644).unwrap();
        assert_eq!(name(), Ok("ci".to_owned()));
        durable::replace_file(&path(root.path()), b"", 0o644).unwrap();
        let refusal = tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
        assert_eq!(refusal, Refusal::Unknown);
    }
}
