//! A transfer that waits on its way for what a test does to the agent meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use baton::client::{Tell, Told};

use super::{DEADLINE, soon};

/// A transfer that stands still at a quarter of its way.
pub struct Standstill {
    arrived: mpsc::Receiver<()>,
    go_on: mpsc::Sender<()>,
    /// Whether it was told that the connection broke.
    pub interrupted: Arc<AtomicBool>,
}

impl Standstill {
    pub fn new() -> (Self, Tell) {
        let (arrive, arrived) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let (may_go_on, stood) = (Mutex::new(may_go_on), AtomicBool::new(false));
        let interrupted = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&interrupted);
        let tell: Tell = Arc::new(move |news| match news {
            Told::Moved { bytes, size } => {
                if bytes >= size / 4 && !stood.swap(true, Ordering::Relaxed) {
                    arrive.send(()).unwrap();
                    may_go_on.lock().unwrap().recv_timeout(DEADLINE).unwrap();
                }
            }
            Told::Interrupted(_) => told.store(true, Ordering::Relaxed),
        });
        (Self { arrived, go_on, interrupted }, tell)
    }

    /// Waits until it stands still; a word to the sender lets it go on.
    pub async fn reach(self) -> (mpsc::Sender<()>, Arc<AtomicBool>) {
        let Self { arrived, go_on, interrupted } = self;
        let wait = tokio::task::spawn_blocking(move || arrived.recv_timeout(DEADLINE).unwrap());
        soon("a quarter", wait).await.unwrap();
        (go_on, interrupted)
    }
}
