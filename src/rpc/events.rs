//! A stream of messages that is made one by one, and ends with the agent.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use super::status;

/// The stream.
pub(super) type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a stream is made of.
pub(super) trait Source: Send + 'static {
    /// One of its messages.
    type Message: Send + 'static;

    /// The next message; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Self::Message>, Status>> + Send;
}

/// A source of messages as a stream.
pub(super) fn events<S: Source>(
    source: S,
    stop: &CancellationToken,
) -> Response<Events<S::Message>> {
    let stop = stop.clone();
    let next = move |source: Option<S>| {
        let stop = stop.clone();
        async move {
            let mut source = source?;
            match stop.run_until_cancelled(source.next()).await {
                Some(Ok(message)) => Some((Ok(message?), Some(source))),
                Some(Err(status)) => Some((Err(status), None)),
                None => Some((Err(status::stopping()), None)),
            }
        }
    };
    Response::new(Box::pin(unfold(Some(source), next)))
}
