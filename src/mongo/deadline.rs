//! One time limit, for a single write and also for a whole save with all its reads and writes.

use std::time::Duration;

use mongodb::error::Error as DriverError;
use tokio::time::{Instant, timeout_at};

use crate::mongo::error_codes;

/// It covers the wait for others, for a server, for a lock on the document, and for the majority. A write
/// without a clear answer by then is unknown, or not sent if it was never sent.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

tokio::task_local! {
    static DEADLINE: Instant;
}

/// Does all of this within one [`WRITE_TIMEOUT`]: its reads, by [`read`], and its writes.
pub(crate) async fn within_one_timeout<T>(save: impl Future<Output = T>) -> T {
    DEADLINE.scope(Instant::now() + WRITE_TIMEOUT, save).await
}

/// When a write that begins now must have its answer.
pub(crate) fn deadline() -> Instant {
    match DEADLINE.try_with(|deadline| *deadline) {
        Ok(deadline) => deadline,
        Err(_alone) => Instant::now() + WRITE_TIMEOUT,
    }
}

/// Waits no longer than a write may take; `None` if that was not enough.
pub(crate) async fn until_deadline<T>(work: impl IntoFuture<Output = T>) -> Option<T> {
    timeout_at(deadline(), work).await.ok()
}

/// Reads no longer than a write may take.
pub(crate) async fn read<T>(
    read: impl IntoFuture<Output = Result<T, DriverError>>,
) -> Result<T, DriverError> {
    match until_deadline(read).await {
        Some(read) => read,
        None => Err(error_codes::lost(no_answer())),
    }
}

/// The error text of an exceeded deadline.
pub(crate) fn no_answer() -> String {
    format!("no clear answer within {} s", WRITE_TIMEOUT.as_secs_f32())
}
