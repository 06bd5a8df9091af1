//! Represents a stop as an error value, so that `?` ends all work.

use std::time::Duration;

use mongodb::error::Error;
use tokio_util::sync::CancellationToken;

use crate::error::RescuerError;

/// A stop was requested, or the lease is over. In both cases no new work begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Halt;

/// The result of work that only a stop can end.
pub(crate) type Run<T> = Result<T, Halt>;

/// Why work was interrupted: by a stop or by a failure.
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

/// Runs the work until it ends or a stop is requested.
pub(crate) async fn unless_stopped<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Run<T> {
    stop.run_until_cancelled(work).await.ok_or(Halt)
}

/// Sleeps for `time`, or until a stop is requested.
pub(crate) async fn sleep(stop: &CancellationToken, time: Duration) -> Run<()> {
    unless_stopped(stop, tokio::time::sleep(time)).await
}

/// Lets unfinished work finish. Before a stop there is no time limit; after a stop, the work must end within
/// `last`.
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
