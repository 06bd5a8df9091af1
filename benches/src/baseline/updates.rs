//! Sends many updates of one collection in one command.

use mongodb::{
    Database,
    bson::{Bson, Document, doc},
};

use crate::result::Result;

/// Sends the updates and returns how many of them changed a document.
pub(super) async fn send(
    database: &Database,
    collection: &str,
    updates: Vec<Document>,
    concern: Bson,
) -> Result<usize> {
    if updates.is_empty() {
        return Ok(0);
    }
    let command = doc! {
        "update": collection,
        "updates": updates,
        "ordered": false,
        "writeConcern": { "w": concern },
    };
    let reply = database.run_command(command).await?;
    match reply.get("writeErrors").or(reply.get("writeConcernError")) {
        Some(error) => Err(format!("a write was refused: {error}").into()),
        None => Ok(usize::try_from(reply.get_i32("nModified")?)?),
    }
}
