//! The door through which a store writes.
//!
//! Every write of a store is one statement on one document, answered with one of four words. Here they are sent alone;
//! [`group`](crate::group) sends updates in company.

use std::time::Duration;

use mongodb::{Collection, bson::Document, error::Error as DriverError};

use crate::{
    claim::majority,
    codes::{self, Verdict},
};

/// A write that has no answer after this long is unknown.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How a write was answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Done, and the majority has it.
    Done,
    /// The filter found nothing.
    Missed,
    /// Nothing was written.
    Failed(DriverError),
    /// It may have been written.
    Unknown(DriverError),
}

pub(crate) async fn update(
    collection: &Collection<Document>,
    filter: Document,
    update: Document,
    array_filters: Vec<Document>,
) -> Answer {
    let mut write = collection.update_one(filter, update).write_concern(majority());
    if !array_filters.is_empty() {
        write = write.array_filters(array_filters);
    }
    answer(async { Ok(write.await?.matched_count > 0) }).await
}

pub(crate) async fn insert(collection: &Collection<Document>, document: Document) -> Answer {
    let write = collection.insert_one(document).write_concern(majority());
    answer(async { write.await.map(|_| true) }).await
}

pub(crate) async fn delete<T: Send + Sync>(collection: &Collection<T>, filter: Document) -> Answer {
    let write = collection.delete_one(filter).write_concern(majority());
    answer(async { Ok(write.await?.deleted_count > 0) }).await
}

async fn answer(write: impl Future<Output = Result<bool, DriverError>>) -> Answer {
    match tokio::time::timeout(WRITE_TIMEOUT, write).await {
        Ok(Ok(true)) => Answer::Done,
        Ok(Ok(false)) => Answer::Missed,
        Ok(Err(error)) if codes::verdict(&error) == Verdict::Unknown => Answer::Unknown(error),
        Ok(Err(error)) => Answer::Failed(error),
        Err(_elapsed) => Answer::Unknown(DriverError::custom(format!(
            "no answer within {} s",
            WRITE_TIMEOUT.as_secs_f32()
        ))),
    }
}
