//! The one door through which a store writes.
//!
//! Every write of a store is one statement on one document, sent here and answered with one of four words. Grouping
//! the statements of concurrent savers belongs behind this door.

use std::time::Duration;

use mongodb::{
    Collection,
    bson::{Document, RawDocumentBuf},
    error::Error as DriverError,
};

use crate::{
    claim::majority,
    codes::{self, Verdict},
};

/// How a write was answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// Done, and the majority has it.
    Done,
    /// The filter found nothing.
    Missed,
    /// Nothing was written.
    Failed(DriverError),
    /// It may have been written.
    Unknown(DriverError),
}

pub(super) async fn update(
    collection: &Collection<RawDocumentBuf>,
    filter: Document,
    update: Document,
    timeout: Duration,
) -> Answer {
    let write = collection.update_one(filter, update).write_concern(majority());
    answer(timeout, async { Ok(write.await?.matched_count > 0) }).await
}

pub(super) async fn insert(
    collection: &Collection<Document>,
    document: Document,
    timeout: Duration,
) -> Answer {
    let write = collection.insert_one(document).write_concern(majority());
    answer(timeout, async { write.await.map(|_| true) }).await
}

pub(super) async fn delete(
    collection: &Collection<RawDocumentBuf>,
    filter: Document,
    timeout: Duration,
) -> Answer {
    let write = collection.delete_one(filter).write_concern(majority());
    answer(timeout, async { Ok(write.await?.deleted_count > 0) }).await
}

async fn answer(timeout: Duration, write: impl Future<Output = Result<bool, DriverError>>) -> Answer {
    match tokio::time::timeout(timeout, write).await {
        Ok(Ok(true)) => Answer::Done,
        Ok(Ok(false)) => Answer::Missed,
        Ok(Err(error)) if codes::verdict(&error) == Verdict::Unknown => Answer::Unknown(error),
        Ok(Err(error)) => Answer::Failed(error),
        Err(_elapsed) => {
            Answer::Unknown(DriverError::custom(format!("no answer within {} s", timeout.as_secs_f32())))
        }
    }
}
