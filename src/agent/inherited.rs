//! Processes that this agent did not start, and that are its children all the same: those of the program whose place
//! it took in the same process, when it was upgraded. Somebody must reap them when they end.

use tracing::debug;

use super::Agent;
use crate::filewatch::register;
use crate::process::{self, Process};

impl Agent {
    /// Reaps the children that are there now, each when it ends. Before any child of this agent's own is started.
    pub(super) fn reap_inherited(&self) {
        let own = std::process::id();
        for child in process::all().filter(|process| process.parent == own) {
            debug!(pid = child.pid, "a child of the program before");
            self.spawn(reap(child));
        }
    }
}

async fn reap(child: Process) {
    if let Some(process) = child.watch().and_then(|descriptor| register(descriptor).ok()) {
        drop(process.readable().await);
    }
    child.reap();
}
