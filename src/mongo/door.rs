//! The only access to MongoDB: all requests of stores and dispatchers go through here, as
//! [statements](crate::mongo::statement).
//!
//! A process has one, made with its processor, and clones share its batches: so saves, claims and clears of
//! all stores and of their inline dispatcher are sent together. A caller passes a request and gets an
//! outcome; this module decides how it is sent, in which batch, how often it is repeated and what the
//! server's errors mean.

use std::time::Duration;

use metrics::Counter;
use mongodb::{
    Client, Database, IndexModel, Namespace,
    bson::{DateTime, Document, RawDocumentBuf},
    error::Error,
    options::ReturnDocument,
};

use crate::{
    encoding::codec,
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

/// Sends requests to MongoDB, in batches; clones share them.
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
    /// The memory that outboxes may take.
    pub(crate) memory_bytes: usize,
    /// How long claims last, and so how long a clear is worth repeating.
    pub(crate) lease: Duration,
}

impl Mongo {
    /// Must be called inside a tokio runtime; sends nothing by itself. Lost claims are counted if they can't
    /// be reported to a caller.
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

    /// The server's time, which dates everything in an outbox.
    pub(crate) fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// The server's time now, within the deadline of the calling save.
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

    /// Updates a document without waiting for the majority, and without repeating it if there is no answer:
    /// for updates that may be rolled back without harm.
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

    /// Updates or inserts a document, with majority, and returns the result.
    ///
    /// # Errors
    /// The driver's; a duplicate key where the filter misses a document that has the `_id` already.
    pub(crate) async fn upsert(&self, upsert: Upsert) -> Result<Option<Document>, Error> {
        let Upsert { namespace, filter, update } = upsert;
        for statement in [&filter, &update] {
            codec::encode(statement).map_err(|error| error_codes::unencodable(error.to_string()))?;
        }

        let collection = self.client.database(&namespace.db).collection::<Document>(&namespace.coll);
        collection
            .find_one_and_update(filter, update)
            .upsert(true)
            .return_document(ReturnDocument::After)
            .write_concern(majority())
            .await
    }

    /// Finds a document on the primary, within the deadline of the calling save; `None` if there is none.
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

    /// Creates these indexes if they don't exist.
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
