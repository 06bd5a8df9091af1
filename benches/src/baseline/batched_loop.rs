//! A hand-written loop that delivers the messages in outboxes. The loop finds a thousand documents and claims
//! them with one command. Then it publishes their messages, awaits all confirms, and clears the documents
//! with one command. It supports only one process and doesn't handle failures.

use futures::future::try_join_all;
use mongodb::{
    Collection, Database,
    bson::{Bson, DateTime, Document, doc},
};

use super::{dual_write::Confirmed, updates};
use crate::result::Result;

const BATCH: i64 = 1_000;

pub(crate) struct BatchedLoop {
    pub(crate) database: Database,
    pub(crate) collection: Collection<Document>,
    pub(crate) publisher: Confirmed,
}

impl BatchedLoop {
    /// Runs until all messages are delivered.
    pub(crate) async fn run(&self) -> Result<()> {
        // The cursor passes once through the index of due messages.
        let mut filled =
            doc! { "outbox.id": { "$exists": true }, "outbox.available_at": { "$lte": DateTime::now() } };
        filled.insert("outbox.claimed_by", doc! { "$exists": false });
        let mut found = self
            .collection
            .find(filled)
            .projection(doc! { "outbox": 1 })
            .batch_size(u32::try_from(BATCH)?)
            .await?;
        loop {
            let mut documents = Vec::new();
            while documents.len() < usize::try_from(BATCH)? && found.advance().await? {
                documents.push(found.deserialize_current()?);
            }
            if documents.is_empty() {
                return Ok(());
            }
            self.deliver(&documents).await?;
        }
    }

    async fn deliver(&self, documents: &[Document]) -> Result<()> {
        let me = uuid::Uuid::new_v4().to_string();
        let claim = |document: &Document| {
            doc! {
                "q": { "_id": document.get("_id"), "outbox.claimed_by": { "$exists": false } },
                "u": { "$set": { "outbox.0.claimed_by": &me, "outbox.0.available_at": DateTime::now() } },
            }
        };
        let claims = documents.iter().map(claim).collect();
        updates::send(&self.database, self.collection.name(), claims, "majority".into()).await?;

        let entries =
            documents.iter().filter_map(|document| document.get_array("outbox").ok()?.first()?.as_document());
        let publish = |entry: &Document| {
            let id = entry.get("id").map(ToString::to_string).unwrap_or_default();
            let body = entry.get("payload").cloned().map(Bson::into_relaxed_extjson).unwrap_or_default();
            async move { self.publisher.publish_body(&id, &serde_json::to_vec(&body)?).await }
        };
        try_join_all(entries.map(publish)).await?;
        let clear = |document: &Document| {
            doc! {
                "q": { "_id": document.get("_id") },
                "u": { "$pull": { "outbox": { "claimed_by": &me } } },
            }
        };
        let clears = documents.iter().map(clear).collect();
        updates::send(&self.database, self.collection.name(), clears, 1.into()).await?;
        Ok(())
    }
}
