//! Reading the configuration again, in a running agent.
//!
//! 1. All of it or nothing: when anything in it is wrong, nothing is changed.
//! 2. What can be applied is, together: whoever looks sees the old one or the new one. What can't is named, and
//!    keeps the value that it has.
//! 3. Who has begun keeps what it began with: a script its grace and limits, a transfer its root. A queue that is
//!    longer than it may be now refuses only who comes.

use std::sync::Arc;

use tracing::{Instrument as _, info, warn};

use super::{Agent, AgentError, blocking};
use crate::config::{Changes, ConfigError, Layers};

impl Agent {
    /// Reads the configuration again, and takes what can be taken. It is taken whole, also when nobody waits for
    /// it any more.
    ///
    /// # Errors
    /// When it can't be read, or something in it is wrong; then nothing is changed.
    pub async fn reload(&self) -> Result<Changes, AgentError> {
        let agent = self.clone();
        let reload = async move { agent.reload_now().await };
        let reloading = self.inner.tasks.spawn(reload.in_current_span());
        reloading.await.unwrap_or(Err(AgentError::Stopping))
    }

    async fn reload_now(&self) -> Result<Changes, AgentError> {
        let _one = self.inner.reloading.lock().await;
        let new = self.read_layers().await?.map_err(AgentError::Config)?;
        let (next, changes) = self.layers().reloaded(&new);
        self.take(next);
        for change in &changes.applied {
            info!(key = change.key, new = change.new, old = change.old, "configuration: applied");
        }
        for change in &changes.needs_restart {
            let (key, new, old) = (change.key, &change.new, &change.old);
            warn!(key, new, old, "configuration: needs a restart");
        }
        let (applied, unchanged) = (changes.applied.len(), changes.unchanged);
        info!(applied, unchanged, "the configuration was read again");
        Ok(changes)
    }

    /// The configuration, and where each value comes from.
    pub fn layers(&self) -> Layers {
        self.inner.layers.borrow().clone()
    }

    /// What there is to read now; nothing of it is taken.
    ///
    /// # Errors
    /// When the agent ends.
    pub async fn read_layers(&self) -> Result<Result<Layers, ConfigError>, AgentError> {
        let layers = self.layers();
        blocking(move || layers.read_again()).await
    }

    /// Rules 2 and 3.
    fn take(&self, next: Layers) {
        let config = Arc::clone(&next.config);
        let starts_nothing_now = {
            let mut table = self.table();
            let before = table.starts_nothing();
            table.queue.set_capacity(config.queue_length);
            table.reboot.set_command(self.inner.settings.restarts_machine(&config));
            self.inner.transfers.configure(&config.files);
            self.inner.packages.configure(&config.files);
            self.inner.layers.send_replace(next);
            !before && table.starts_nothing()
        };
        if starts_nothing_now {
            self.step_back_all();
        }
        self.queue_changed();
        // The housekeeper has other limits.
        self.inner.ended.notify_one();
    }
}
