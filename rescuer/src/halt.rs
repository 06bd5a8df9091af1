//! Stopping, as an error value: whatever is under way ends with it by `?`.

use std::time::Duration;

use mongodb::error::Error;
use tokio_util::sync::CancellationToken;

use crate::error::RescuerError;

/// Told to stop, or the lease is over: nothing new may be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Halt;

/// The result of work that nothing but a stop can end.
pub(crate) type Run<T> = Result<T, Halt>;

/// Why work that a stop or a failure can end did not reach its end.
#[derive(Debug)]
pub(crate) enum Interrupted<E = Error> {
    Halted,
    Failed(E),
}

impl<E> From<Halt> for Interrupted<E> {
    fn from(Halt: Halt) -> Self {
        Self::Halted
    }
}

impl From<Error> for Interrupted<Error> {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<RescuerError> for Interrupted<RescuerError> {
    fn from(error: RescuerError) -> Self {
        Self::Failed(error)
    }
}

/// Does the work, unless a stop comes first.
pub(crate) async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Run<T> {
    stop.run_until_cancelled(work).await.ok_or(Halt)
}

/// Sleeps, unless a stop comes first.
pub(crate) async fn sleep(stop: &CancellationToken, time: Duration) -> Run<()> {
    unless_stopped(stop, tokio::time::sleep(time)).await
}

/// Gives work that was begun its time to end: all that it needs before the stop, and `last` from then on.
pub(crate) async fn with_grace<T>(
    stop: &CancellationToken,
    last: Duration,
    work: impl Future<Output = T>,
) -> Run<T> {
    let over = async {
        stop.cancelled().await;
        tokio::time::sleep(last).await;
    };

    tokio::select! {
        biased;
        done = work => Ok(done),
        () = over => Err(Halt),
    }
}
