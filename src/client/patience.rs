//! How often and how long a broken connection is tried again.

use std::time::{Duration, Instant};

/// How long a broken connection is tried again before that is an error.
const RECONNECT_LIMIT: Duration = Duration::from_mins(1);
/// The pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is left of a client's patience.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Since when the connection is broken, and the next pause.
    broken: Option<(Instant, Duration)>,
}

impl Patience {
    /// Something went well.
    pub(super) fn renew(&mut self) {
        self.broken = None;
    }

    /// Waits before the next try. The first break is given back at once, to be told.
    ///
    /// # Errors
    /// The error itself, when there is no patience left.
    pub(super) async fn wait<E>(&mut self, error: E) -> Result<Option<E>, E> {
        let Some((since, pause)) = self.broken else {
            self.broken = Some((Instant::now(), FIRST_PAUSE));
            return Ok(Some(error));
        };
        if since.elapsed() > RECONNECT_LIMIT {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        self.broken = Some((since, LONGEST_PAUSE.min(pause * 2)));
        Ok(None)
    }
}
