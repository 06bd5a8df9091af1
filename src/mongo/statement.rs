//! The commands that take a filter of any form.

use mongodb::{
    Client, Collection, Namespace,
    bson::{Document, RawDocumentBuf, doc},
    error::Error,
    options::{ReadConcern, WriteConcern},
};
use serde::Serialize;

use crate::{encoding::codec, mongo::concern::primary, stored::filter::Filter};

/// Reads these fields of the document on the primary; none when it is gone.
pub(crate) async fn find(
    client: &Client,
    namespace: &Namespace,
    filter: Filter,
    projection: Document,
    concern: ReadConcern,
) -> Result<Option<RawDocumentBuf>, Error> {
    let database = client.database(&namespace.db);
    let filter = match filter {
        Filter::Plain(filter) => {
            let collection: Collection<RawDocumentBuf> = database.collection(&namespace.coll);
            let find = collection.find_one(filter).projection(projection);
            return find.read_concern(concern).selection_criteria(primary()).await;
        }
        Filter::Bytes(filter) => filter,
    };

    let command = Find {
        find: &namespace.coll,
        filter,
        projection,
        limit: 1,
        single_batch: true,
        read_concern: concern,
    };
    let command = codec::encode(&command).map_err(Error::custom)?;
    let mut found = database.run_raw_cursor_command(command).selection_criteria(primary()).await?;
    let one = found.advance().await?;
    Ok(one.then(|| found.current().to_owned()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Find<'a> {
    find: &'a str,
    filter: RawDocumentBuf,
    projection: Document,
    limit: i32,
    single_batch: bool,
    read_concern: ReadConcern,
}

/// Updates the document; false when the filter finds none.
pub(crate) async fn update(
    client: &Client,
    namespace: &Namespace,
    filter: Filter,
    update: Document,
    array_filters: Vec<Document>,
    concern: WriteConcern,
) -> Result<bool, Error> {
    let database = client.database(&namespace.db);
    let filter = match filter {
        Filter::Plain(filter) => {
            let collection: Collection<Document> = database.collection(&namespace.coll);
            let mut write = collection.update_one(filter, update).write_concern(concern);
            if !array_filters.is_empty() {
                write = write.array_filters(array_filters);
            }
            return Ok(write.await?.matched_count > 0);
        }
        Filter::Bytes(filter) => filter,
    };

    // Of the commands that update, this one answers a refusal with an error. Its reply must not hold the document, which
    // could not be decoded.
    let command = FindAndModify {
        collection: &namespace.coll,
        query: filter,
        fields: doc! { "_id": 0, "none": { "$literal": 1 } },
        update,
        array_filters,
        write_concern: concern,
    };
    let command = codec::encode(&command).map_err(Error::custom)?;
    let reply = database.run_raw_command(command).selection_criteria(primary()).await?;
    if let Some(error) = reply.get("writeConcernError") {
        return Err(Error::custom(format!("the write was not acknowledged by the majority: {error}")));
    }
    let last = reply.get_document("lastErrorObject").map_err(Error::custom)?;
    Ok(last.get_bool("updatedExisting").unwrap_or(false))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FindAndModify<'a> {
    #[serde(rename = "findAndModify")]
    collection: &'a str,
    query: RawDocumentBuf,
    fields: Document,
    update: Document,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    array_filters: Vec<Document>,
    write_concern: WriteConcern,
}
