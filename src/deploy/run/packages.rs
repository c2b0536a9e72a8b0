//! Packages to targets, before any step: each is read once, and sent to so many targets at once as may be.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use super::{Course, Run};
use crate::client::{Away, Client, Told};
use crate::deploy::event::{Transfer, What};
use crate::deploy::plan::{Acquisition, PackageSource};
use crate::deploy::rollout::Rollout;
use crate::packages::Package;
use crate::text::chain;

/// How many times a transfer is told while it goes on.
const TOLD_TIMES: u64 = 50;

/// A package that several transfers wait for, or why it can't be read.
type Source = OnceCell<Result<Arc<Package>, String>>;

/// One package to one target.
struct Sending {
    course: Arc<Course>,
    gate: Arc<Semaphore>,
    source: Arc<Source>,
    client: Client,
    wanted: Acquisition,
}

impl Run {
    /// Brings all packages; a target that does not get its own has failed.
    pub(super) async fn acquire(&self, rollout: &mut Rollout, clients: &[Option<Client>]) {
        let acquisitions = &self.plan.acquisitions;
        let at_once = usize::try_from(acquisitions.parallelism.get()).unwrap_or(usize::MAX);
        let gate = Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS)));
        let mut sources: HashMap<(String, String, PackageSource), Arc<Source>> = HashMap::new();
        let mut sendings = JoinSet::new();
        for wanted in &acquisitions.packages {
            let place = self.plan.targets.iter().position(|target| target.name == wanted.target);
            let Some(place) = place else { continue };
            let Some(client) = clients.get(place).cloned().flatten() else { continue };
            let key = (wanted.package.clone(), wanted.version.clone(), wanted.source.clone());
            let sending = Sending {
                course: Arc::clone(&self.course),
                gate: Arc::clone(&gate),
                source: Arc::clone(sources.entry(key).or_default()),
                client,
                wanted: wanted.clone(),
            };
            sendings.spawn(async move { (place, sending.send().await) });
        }
        loop {
            let sent = tokio::select! {
                sent = sendings.join_next() => sent,
                // What was sent is there the next time.
                () = self.course.stopped() => return,
            };
            match sent {
                Some(Ok((place, Err(why)))) => rollout.fail(place, "packages", why),
                // It was not cancelled, and does not panic.
                Some(Ok((_, Ok(()))) | Err(_)) => {}
                None => return,
            }
        }
    }
}

impl Sending {
    async fn send(self) -> Result<(), String> {
        let _permit = self.gate.acquire().await;
        let sent = match self.source.get_or_init(|| self.open()).await {
            Ok(package) => self.transfer(package).await,
            Err(why) => Err(why.clone()),
        };
        let told = match &sent {
            Ok((total, sent)) => Transfer::Done { total: *total, sent: *sent },
            Err(why) => Transfer::Failed { why: why.clone() },
        };
        self.course.tell(self.event(told)).await;
        sent.map(|_| ())
    }

    async fn open(&self) -> Result<Arc<Package>, String> {
        let Acquisition { package, version, source, .. } = self.wanted.clone();
        let open = move || {
            let id = package.parse().map_err(|error| format!("package {package:?}: {error}"))?;
            let version = version.parse().map_err(|e| format!("version {version:?}: {e}"))?;
            let (PackageSource::File(path) | PackageSource::Directory(path)) = source;
            let opened = Package::open(&path, id, version);
            opened.map(Arc::new).map_err(|error| chain(&error))
        };
        let opened = tokio::task::spawn_blocking(open).await;
        opened.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Bytes in all, and those that had to be sent.
    async fn transfer(&self, package: &Package) -> Result<(u64, u64), String> {
        let course = Arc::clone(&self.course);
        let (like, told_at) = (self.event_of(), AtomicU64::new(0));
        let tell = move |told: Told| {
            let (bytes, size) = match told {
                Told::Moved { bytes, size } => (bytes, size),
                Told::Interrupted(Away { since, until, why }) => {
                    let event = course.event(like(Transfer::Away { since, until, why }));
                    course.events.try_send(event).unwrap_or_default();
                    return;
                }
            };
            let before = told_at.load(Ordering::Relaxed);
            if bytes < before.saturating_add(size / TOLD_TIMES).max(1) {
                return;
            }
            told_at.store(bytes, Ordering::Relaxed);
            let what = like(Transfer::Sends { done: bytes, total: size });
            let event = course.event(what);
            // The bytes wait for nobody; a later one tells more.
            course.events.try_send(event).unwrap_or_default();
        };
        let sent = self.client.send_package(package, Arc::new(tell)).await;
        sent.map(|sent| (sent.bytes_total, sent.bytes_sent)).map_err(|error| chain(&error))
    }

    fn event(&self, transfer: Transfer) -> What {
        self.event_of()(transfer)
    }

    fn event_of(&self) -> impl Fn(Transfer) -> What + Send + Sync + use<> {
        let Acquisition { target, package, version, .. } = self.wanted.clone();
        move |transfer| What::Package {
            target: target.clone(),
            package: package.clone(),
            version: version.clone(),
            transfer,
        }
    }
}
