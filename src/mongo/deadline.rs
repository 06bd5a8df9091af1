//! The time limit of a single write. The same limit applies to a whole save with all its reads and writes.

use std::time::Duration;

use mongodb::error::Error as DriverError;
use tokio::time::{Instant, timeout_at};

use crate::mongo::error_codes;

/// The time limit of a write, which includes the waits for other requests, for a server, for a lock on the document,
/// and for the majority. A write that has no clear answer by the deadline counts as unknown, or as not sent if it was
/// never sent.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

tokio::task_local! {
    static DEADLINE: Instant;
}

/// Runs a save within one [`WRITE_TIMEOUT`], which applies to its reads through [`read`] and to its writes.
pub(crate) async fn within_one_timeout<T>(save: impl Future<Output = T>) -> T {
    DEADLINE.scope(Instant::now() + WRITE_TIMEOUT, save).await
}

/// Returns the time by which a write that begins now must have its answer.
pub(crate) fn deadline() -> Instant {
    match DEADLINE.try_with(|deadline| *deadline) {
        Ok(deadline) => deadline,
        Err(_alone) => Instant::now() + WRITE_TIMEOUT,
    }
}

/// Waits for `work` until the deadline of a write. Returns `None` if `work` takes longer.
pub(crate) async fn until_deadline<T>(work: impl IntoFuture<Output = T>) -> Option<T> {
    timeout_at(deadline(), work).await.ok()
}

/// Runs a read until the deadline of a write.
pub(crate) async fn read<T>(
    read: impl IntoFuture<Output = Result<T, DriverError>>,
) -> Result<T, DriverError> {
    match until_deadline(read).await {
        Some(read) => read,
        None => Err(error_codes::lost(no_answer())),
    }
}

/// Returns the error text for an exceeded deadline.
pub(crate) fn no_answer() -> String {
    format!("no clear answer within {} s", WRITE_TIMEOUT.as_secs_f32())
}
