//! The door through which a store writes.
//!
//! Every write of a store is one statement on one document, answered with one of four words. Here they are sent alone;
//! [`group`](crate::group) sends updates in company.

use std::time::Duration;

use mongodb::{Client, Collection, Namespace, bson::Document, error::Error as DriverError};

use crate::{
    claim::majority,
    codes::{self, Verdict},
    filter::{self, Filter},
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
    client: &Client,
    namespace: &Namespace,
    filter: Filter,
    update: Document,
    array_filters: Vec<Document>,
) -> Answer {
    answer(filter::update(client, namespace, filter, update, array_filters, majority())).await
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
