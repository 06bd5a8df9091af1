//! Reads a change stream with the driver, using the rescuer's pipeline, and only counts the changes.

use mongodb::{
    Client,
    bson::{Document, RawDocumentBuf, Timestamp},
};

use crate::result::Result;

/// Reads the changes of a database from the given time until it has counted `changes` changes.
pub(crate) async fn count_changes(
    client: &Client,
    database: &str,
    pipeline: Vec<Document>,
    from: Timestamp,
    changes: usize,
) -> Result<()> {
    let stream = client.database(database).watch().pipeline(pipeline).start_at_operation_time(from).await?;
    let mut stream = stream.with_type::<RawDocumentBuf>();
    let mut counted = 0;
    while counted < changes {
        counted += usize::from(stream.next_if_any().await?.is_some());
    }
    Ok(())
}
