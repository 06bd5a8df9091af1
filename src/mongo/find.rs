//! Finds one document by a filter, which may contain bytes that the driver can't represent.

use mongodb::{
    Client, Collection,
    bson::{Document, RawDocumentBuf},
    error::Error,
    options::ReadConcern,
};
use serde::Serialize;

use crate::{
    encoding::codec,
    mongo::{concern::primary, error_codes, statement::Find},
    stored::filter::Filter,
};

/// The command for a filter that the driver's own call doesn't accept.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FindCommand<'a> {
    find: &'a str,
    filter: RawDocumentBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    projection: Option<Document>,
    limit: i32,
    single_batch: bool,
    read_concern: ReadConcern,
}

/// Finds the document on the primary. Returns `None` if there is no such document.
pub(super) async fn find(client: &Client, find: Find<'_>) -> Result<Option<RawDocumentBuf>, Error> {
    let Find { namespace, filter, projection, concern } = find;
    let database = client.database(&namespace.db);
    let filter = match filter {
        Filter::Plain(filter) => {
            let collection: Collection<RawDocumentBuf> = database.collection(&namespace.coll);
            let mut find = collection.find_one(filter).read_concern(concern).selection_criteria(primary());
            if let Some(projection) = projection {
                find = find.projection(projection);
            }
            return find.await;
        }
        Filter::Bytes(filter) => filter,
    };

    let command = FindCommand {
        find: &namespace.coll,
        filter,
        projection,
        limit: 1,
        single_batch: true,
        read_concern: concern,
    };
    let command = codec::encode(&command).map_err(|error| error_codes::unencodable(error.to_string()))?;
    let mut found = database.run_raw_cursor_command(command).selection_criteria(primary()).await?;

    if found.advance().await? { Ok(Some(found.current().to_owned())) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use mongodb::{
        Namespace,
        bson::{doc, rawdoc},
    };

    use super::*;
    use crate::mongo::error_codes::{Verdict, verdict};

    #[tokio::test]
    async fn an_unencodable_find_is_refused_with_a_reason() {
        let nowhere = mongodb::options::ClientOptions::builder().hosts(Vec::new()).build();
        let client = Client::with_options(nowhere).unwrap();
        let namespace = Namespace::new("shop", "orders");
        let by_bytes = Find {
            namespace: &namespace,
            filter: Filter::Bytes(rawdoc! { "_id": 1 }),
            projection: Some(doc! { "a\0b": 1 }),
            concern: ReadConcern::local(),
        };
        let error = find(&client, by_bytes).await.unwrap_err();
        assert_eq!(verdict(&error), Verdict::Refused);
        assert!(error.to_string().contains("null"), "{error}");
    }
}
