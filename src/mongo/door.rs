//! The only access to MongoDB. All requests of stores and dispatchers go through this module, as
//! [statements](crate::mongo::statement).
//!
//! Each processor creates one [`Mongo`], and its clones share the batches, so saves, claims and clears of all stores
//! and their inline dispatcher are sent together. A caller passes a request and gets an outcome. This module decides
//! how the request is sent, in which batch, how many times it is repeated, and what the server's errors mean.

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

/// Sends requests to MongoDB in batches. Clones share the batches.
#[derive(Debug, Clone)]
pub(crate) struct Mongo {
    client: Client,
    clock: ServerClock,
    writes: Writes,
    reads: Reads,
    clears: Clears,
}

/// The settings of [`Mongo`].
#[derive(Debug, Clone)]
pub(crate) struct MongoSettings {
    /// Whether concurrent updates are sent together.
    pub(crate) group_commit: bool,
    /// Maximum memory for outboxes, in bytes.
    pub(crate) memory_bytes: usize,
    /// The duration of claims, which is also the time for which a clear is repeated.
    pub(crate) lease: Duration,
}

impl Mongo {
    /// Creates the access and starts its batches. Must be called inside a tokio runtime. Sends no request by itself.
    /// Lost claims that can't be reported to a caller are counted in `lost`.
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

    /// The clock that follows the server's time, from which all dates in an outbox come.
    pub(crate) fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// Returns the server's time, within the deadline of the calling save.
    pub(crate) async fn now(&self) -> Result<DateTime, Error> {
        deadline::read(self.clock.now()).await
    }

    /// Inserts a document with write concern majority.
    pub(crate) async fn insert(&self, insert: Insert) -> WriteOutcome {
        self.writes.insert(insert).await
    }

    /// Updates a document with write concern majority. If the caller is dropped before the answer, the update may or
    /// may not be sent.
    pub(crate) async fn update(&self, update: Update) -> WriteOutcome {
        self.writes.update(update).await
    }

    /// Updates a document without waiting for the majority, and without a retry if there is no answer. For updates that
    /// may be rolled back without harm.
    pub(crate) async fn update_without_majority(&self, update: Update) -> Result<(), Error> {
        let statement = UpdateStatement::of(&update);
        let reply = local_update::send(&self.client, &update.namespace, &[statement]).await?;
        match local_update::read(&reply, 1).pop() {
            Some(LocalReply::Refused(why) | LocalReply::Open(why)) => Err(error_codes::lost(why)),
            Some(LocalReply::Executed) | None => Ok(()),
        }
    }

    /// Deletes a document with write concern majority.
    pub(crate) async fn delete(&self, delete: Delete) -> WriteOutcome {
        self.writes.delete(delete).await
    }

    /// Updates or inserts a document with write concern majority, and returns the resulting document.
    ///
    /// # Errors
    /// The driver's error, which is a duplicate key error if a document with this `_id` exists and the filter doesn't
    /// match that document.
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

    /// Finds a document on the primary, within the deadline of the calling save. Returns `None` if there is no such
    /// document.
    pub(crate) async fn find(&self, find: Find<'_>) -> Result<Option<RawDocumentBuf>, Error> {
        deadline::read(find::find(&self.client, find)).await
    }

    /// Reads a document's outbox. Waits for memory, so the caller must not have reserved any.
    pub(crate) async fn read_outbox(&self, document: &DocumentRef) -> Result<StoredOutbox, Error> {
        self.reads.read(document).await
    }

    /// Removes the delivered entries if they are still under their claim. Completes once the server has executed the
    /// update.
    pub(crate) async fn clear(&self, delivered: &Delivered) -> ClearOutcome {
        self.clears.clear(delivered).await
    }

    /// Does the same as [`clear`](Self::clear) for many documents at once. Returns the outcomes in the same order.
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
