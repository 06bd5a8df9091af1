//! The one door to MongoDB: what stores and dispatchers ask of it goes through here, as [statements](crate::mongo::statement).
//!
//! A process has one, made with its processor, and clones share what it batches: so saves, claims and clears of all stores and
//! of their inline dispatcher go together. A caller says what is to be done and gets an outcome; how it is sent, with whom,
//! how often it is repeated and what the server's errors mean is decided behind the door.

use std::time::Duration;

use metrics::Counter;
use mongodb::{
    Client, Database, IndexModel, Namespace,
    bson::{DateTime, Document, RawDocumentBuf},
    error::Error,
    options::ReturnDocument,
};

use crate::{
    mongo::{
        clears::Clears,
        clock::ServerClock,
        concern::majority,
        deadline, error_codes, find,
        group_commit::Writes,
        local_update::{self, LocalReply},
        reads::{Reads, StoredOutbox},
        statement::{ClearOutcome, Delete, Delivered, Find, Insert, Update, Upsert, WriteOutcome},
        write_command::UpdateStatement,
    },
    stored::{document_ref::DocumentRef, memory::Memory},
};

/// What is asked of MongoDB, and how it is batched; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Mongo {
    client: Client,
    clock: ServerClock,
    writes: Writes,
    reads: Reads,
    clears: Clears,
}

/// How [`Mongo`] works.
#[derive(Debug, Clone)]
pub(crate) struct MongoSettings {
    /// Whether concurrent updates go together.
    pub(crate) group_commit: bool,
    /// What the outboxes that are in memory may weigh.
    pub(crate) memory_bytes: usize,
    /// How long claims hold, and so for how long a clear is worth repeating.
    pub(crate) lease: Duration,
}

impl Mongo {
    /// Must be called inside a tokio runtime; sends nothing by itself. Claims that turn out to be lost are counted where no
    /// caller can be told.
    pub(crate) fn start(client: Client, clock: ServerClock, settings: &MongoSettings, lost: Counter) -> Self {
        let writes = if settings.group_commit {
            Writes::grouped(client.clone())
        } else {
            Writes::single(client.clone())
        };

        Self {
            writes,
            reads: Reads::start(client.clone(), Memory::of(settings.memory_bytes)),
            clears: Clears::start(client.clone(), lost, settings.lease),
            clock,
            client,
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn database(&self, name: &str) -> Database {
        self.client.database(name)
    }

    /// The server's time, by which everything in an outbox is dated.
    pub(crate) fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// The server's time now, within the deadline of the save that asks.
    pub(crate) async fn now(&self) -> Result<DateTime, Error> {
        deadline::read(self.clock.now()).await
    }

    /// Inserts a document, with majority.
    pub(crate) async fn insert(&self, insert: Insert) -> WriteOutcome {
        self.writes.insert(insert).await
    }

    /// Updates a document, with majority. If its caller goes away meanwhile, the update may be sent or not.
    pub(crate) async fn update(&self, update: Update) -> WriteOutcome {
        self.writes.update(update).await
    }

    /// Updates a document without waiting for the majority, and without repeating what gets no answer: for what may be rolled
    /// back without harm.
    pub(crate) async fn update_without_majority(&self, update: Update) -> Result<(), Error> {
        let statement = UpdateStatement::of(&update);
        let reply = local_update::send(&self.client, &update.namespace, &[statement]).await?;
        match local_update::read(&reply, 1).pop() {
            Some(LocalReply::Refused(why) | LocalReply::Open(why)) => Err(error_codes::lost(why)),
            Some(LocalReply::Executed) | None => Ok(()),
        }
    }

    /// Deletes a document, with majority.
    pub(crate) async fn delete(&self, delete: Delete) -> WriteOutcome {
        self.writes.delete(delete).await
    }

    /// Updates a document or makes it, with majority, and returns it as it is then.
    ///
    /// # Errors
    /// The driver's; a duplicate key where the filter misses a document that has the `_id` already.
    pub(crate) async fn upsert(&self, upsert: Upsert) -> Result<Option<Document>, Error> {
        let Upsert { namespace, filter, update } = upsert;
        let collection = self.client.database(&namespace.db).collection::<Document>(&namespace.coll);
        collection
            .find_one_and_update(filter, update)
            .upsert(true)
            .return_document(ReturnDocument::After)
            .write_concern(majority())
            .await
    }

    /// Finds a document on the primary, within the deadline of the save that asks; none when there is none.
    pub(crate) async fn find(&self, find: Find<'_>) -> Result<Option<RawDocumentBuf>, Error> {
        deadline::read(find::find(&self.client, find)).await
    }

    /// Reads a document's outbox. Waits for the room that it takes: its reader must hold none.
    pub(crate) async fn read_outbox(&self, document: &DocumentRef) -> Result<StoredOutbox, Error> {
        self.reads.read(document).await
    }

    /// Removes these entries where the claim still holds them; resolves once the server has done it.
    pub(crate) async fn clear(&self, delivered: &Delivered) -> ClearOutcome {
        self.clears.clear(delivered).await
    }

    /// Like [`clear`](Self::clear), for those of many documents at once; the outcomes are in their order.
    pub(crate) async fn clear_all(&self, delivered: &[Delivered]) -> Vec<ClearOutcome> {
        self.clears.clear_all(delivered).await
    }

    /// Makes these indexes where they don't exist.
    pub(crate) async fn create_indexes(
        &self,
        namespace: &Namespace,
        indexes: impl IntoIterator<Item = IndexModel>,
    ) -> Result<(), Error> {
        let collection = self.client.database(&namespace.db).collection::<Document>(&namespace.coll);
        collection.create_indexes(indexes).await?;
        Ok(())
    }
}
