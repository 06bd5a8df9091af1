//! The final state of the documents, as a majority of the MongoDB set has it: the messages that each document ever sent, and the
//! messages that are still in its outbox.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use futures::TryStreamExt;
use mongodb::{
    Database,
    bson::{Bson, Document, doc},
    options::{ReadConcern, WriteConcern},
};
use uuid::Uuid;

use super::log::Ledger;

/// The messages in all documents of a run, at the time of the read.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// The messages that each document sent, by collection and document id.
    pub(crate) documents: HashMap<(String, String), Vec<Uuid>>,
    pub(crate) committed: HashSet<Uuid>,
    /// Messages that are still in an outbox, including dead messages.
    pub(crate) waiting: HashSet<Uuid>,
}

impl Truth {
    pub(crate) async fn read(database: &Database) -> Result<Self> {
        let mut truth = Self::default();
        for collection in collections(database).await? {
            let documents = database.collection::<Document>(&collection);
            let fields = doc! { "sent": 1, "outbox.id": 1 };
            let found =
                documents.find(doc! {}).projection(fields).read_concern(ReadConcern::majority()).await?;
            let found: Vec<Document> = found.try_collect().await?;
            for document in found {
                truth.note(&collection, &document);
            }
        }
        Ok(truth)
    }

    fn note(&mut self, collection: &str, document: &Document) {
        let Ok(id) = document.get_str("_id") else { return };
        let sent: Vec<_> = array(document, "sent").iter().filter_map(uuid_of).collect();
        self.committed.extend(&sent);
        self.documents.insert((collection.to_owned(), id.to_owned()), sent);

        for entry in array(document, "outbox") {
            let id = entry.as_document().and_then(|entry| entry.get("id")).and_then(uuid_of);
            self.waiting.extend(id);
        }
    }
}

fn array<'a>(document: &'a Document, field: &str) -> &'a [Bson] {
    document.get_array(field).map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn uuid_of(value: &Bson) -> Option<Uuid> {
    match value {
        Bson::String(text) => Uuid::parse_str(text).ok(),
        Bson::Binary(binary) => Uuid::from_slice(&binary.bytes).ok(),
        _ => None,
    }
}

/// Returns the names of the collections of a run.
async fn collections(database: &Database) -> Result<Vec<String>> {
    let names = database.list_collection_names().await?;
    Ok(names.into_iter().filter(|name| !name.starts_with("system.")).collect())
}

/// Returns how many documents have a message in their outbox.
pub(crate) async fn filled_outboxes(database: &Database) -> Result<u64> {
    let mut filled = 0;
    for collection in collections(database).await? {
        let documents = database.collection::<Document>(&collection);
        filled += documents
            .count_documents(doc! { "outbox.0": { "$exists": true } })
            .read_concern(ReadConcern::local())
            .await?;
    }
    Ok(filled)
}

/// Replays every dead message as docs/operations.md describes, and notes each replay in the ledger.
pub(crate) async fn replay_dead(database: &Database, ledger: &Ledger) -> Result<()> {
    for collection in collections(database).await? {
        let documents = database.collection::<Document>(&collection);
        let found = documents.find(doc! { "outbox.dead_at": { "$exists": true } }).await?;
        let found: Vec<Document> = found.try_collect().await?;
        for document in found {
            for entry in array(&document, "outbox").iter().filter_map(Bson::as_document) {
                if let (true, Some(id)) = (entry.contains_key("dead_at"), entry.get("id")) {
                    ledger.replay(uuid_of(id).unwrap_or_default());
                    replay(&documents, document.get("_id").unwrap_or(&Bson::Null), id).await?;
                }
            }
        }
    }
    Ok(())
}

async fn replay(documents: &mongodb::Collection<Document>, document: &Bson, id: &Bson) -> Result<()> {
    let which =
        doc! { "_id": document, "outbox": { "$elemMatch": { "id": id, "dead_at": { "$exists": true } } } };
    let change = doc! {
        "$currentDate": { "outbox.$[e].available_at": true },
        "$set": { "outbox.$[e].attempts": 0, "outbox.$[e].claims": 0 },
        "$unset": { "outbox.$[e].dead_at": "", "outbox.$[e].dead_reason": "", "outbox.$[e].last_error": "" },
    };
    documents
        .update_one(which, change)
        .array_filters([doc! { "e.id": id, "e.dead_at": { "$exists": true } }])
        .write_concern(WriteConcern::majority())
        .await?;
    Ok(())
}
