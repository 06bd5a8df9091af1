//! The only access to MongoDB. All requests of stores and dispatchers go through this module, as
//! [statements](crate::mongo::statement).
//!
//! Each processor creates one [`Mongo`], and its clones share the batches, so saves, claims and clears of all stores
//! and their inline dispatcher are sent together. A caller passes a request and gets an outcome. This module decides
//! how the request is sent, in which batch, how many times it is repeated, and what the server's errors mean.
//!
//! With the feature `testing`, an in-memory database can execute the statements in place of a server. Callers don't
//! know which of the two executes their statements.

use std::time::Duration;

use metrics::Counter;
use mongodb::{
    Client, Database, IndexModel, Namespace,
    bson::{DateTime, Document, RawDocumentBuf},
    error::Error,
    options::ReturnDocument,
};

#[cfg(feature = "testing")]
use crate::mongo::in_memory::InMemory;
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

/// Executes requests. Clones share the batches.
#[derive(Debug, Clone)]
pub(crate) struct Mongo {
    client: Client,
    clock: ServerClock,
    executor: Executor,
}

/// The database that a [`Mongo`] works with.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    /// The servers that this client is connected to.
    Server(Client),
    #[cfg(feature = "testing")]
    InMemory(InMemory),
}

/// Executes the statements.
#[derive(Debug, Clone)]
enum Executor {
    /// Sends the statements to a server in batches.
    Server { writes: Writes, reads: Reads, clears: Clears },
    #[cfg(feature = "testing")]
    InMemory { database: InMemory, memory: Memory },
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
    pub(crate) fn start(backend: Backend, settings: &MongoSettings, lost: Counter) -> Self {
        let memory = Memory::of(settings.memory_bytes);
        match backend {
            Backend::Server(client) => {
                let writes = if settings.group_commit {
                    Writes::grouped(client.clone())
                } else {
                    Writes::single(client.clone())
                };
                let reads = Reads::start(client.clone(), memory);
                let clears = Clears::start(client.clone(), lost, settings.lease);
                let executor = Executor::Server { writes, reads, clears };
                Self { clock: ServerClock::new(client.clone()), client, executor }
            }
            #[cfg(feature = "testing")]
            Backend::InMemory(database) => {
                let client = database.client().clone();
                let clock = ServerClock::by_hand(client.clone(), database.time().clone());
                Self { client, clock, executor: Executor::InMemory { database, memory } }
            }
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

    /// Waits before another try. With an in-memory database, other tasks run, but no time passes.
    pub(crate) async fn pause(&self, time: Duration) {
        match &self.executor {
            Executor::Server { .. } => tokio::time::sleep(time).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { .. } => tokio::task::yield_now().await,
        }
    }

    /// Inserts a document with write concern majority.
    pub(crate) async fn insert(&self, insert: Insert) -> WriteOutcome {
        match &self.executor {
            Executor::Server { writes, .. } => writes.insert(insert).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, .. } => database.insert(insert).await,
        }
    }

    /// Updates a document with write concern majority. If the caller is dropped before the answer, the update may or
    /// may not be sent.
    pub(crate) async fn update(&self, update: Update) -> WriteOutcome {
        match &self.executor {
            Executor::Server { writes, .. } => writes.update(update).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, .. } => database.update(update).await,
        }
    }

    /// Updates a document without waiting for the majority, and without a retry if there is no answer. For updates that
    /// may be rolled back without harm.
    pub(crate) async fn update_without_majority(&self, update: Update) -> Result<(), Error> {
        match &self.executor {
            Executor::Server { .. } => update_locally(&self.client, &update).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, .. } => match database.update(update).await {
                WriteOutcome::Done | WriteOutcome::Missed => Ok(()),
                WriteOutcome::Failed(error) | WriteOutcome::Unknown(error) => Err(error),
            },
        }
    }

    /// Deletes a document with write concern majority.
    pub(crate) async fn delete(&self, delete: Delete) -> WriteOutcome {
        match &self.executor {
            Executor::Server { writes, .. } => writes.delete(delete).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, .. } => database.delete(delete).await,
        }
    }

    /// Updates or inserts a document with write concern majority, and returns the resulting document.
    ///
    /// # Errors
    /// The driver's error, which is a duplicate key error if a document with this `_id` exists and the filter doesn't
    /// match that document.
    pub(crate) async fn upsert(&self, upsert: Upsert) -> Result<Option<Document>, Error> {
        match &self.executor {
            Executor::Server { .. } => upsert_with_majority(&self.client, upsert).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, .. } => database.upsert(upsert).await,
        }
    }

    /// Finds a document on the primary, within the deadline of the calling save. Returns `None` if there is no such
    /// document.
    pub(crate) async fn find(&self, find: Find<'_>) -> Result<Option<RawDocumentBuf>, Error> {
        match &self.executor {
            Executor::Server { .. } => deadline::read(find::find(&self.client, find)).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, .. } => database.find(find).await,
        }
    }

    /// Reads a document's outbox. Waits for memory, so the caller must not have reserved any.
    pub(crate) async fn read_outbox(&self, document: &DocumentRef) -> Result<StoredOutbox, Error> {
        match &self.executor {
            Executor::Server { reads, .. } => reads.read(document).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, memory } => database.read_outbox(document, memory).await,
        }
    }

    /// Removes the delivered entries if they are still under their claim. Completes once the server has executed the
    /// update.
    pub(crate) async fn clear(&self, delivered: &Delivered) -> ClearOutcome {
        match &self.executor {
            Executor::Server { clears, .. } => clears.clear(delivered).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, .. } => database.clear(delivered).await,
        }
    }

    /// Does the same as [`clear`](Self::clear) for many documents at once. Returns the outcomes in the same order.
    pub(crate) async fn clear_all(&self, delivered: &[Delivered]) -> Vec<ClearOutcome> {
        match &self.executor {
            Executor::Server { clears, .. } => clears.clear_all(delivered).await,
            #[cfg(feature = "testing")]
            Executor::InMemory { database, .. } => {
                let mut outcomes = Vec::with_capacity(delivered.len());
                for delivered in delivered {
                    outcomes.push(database.clear(delivered).await);
                }
                outcomes
            }
        }
    }

    /// Creates these indexes if they don't exist. An in-memory database needs no indexes.
    pub(crate) async fn create_indexes(
        &self,
        namespace: &Namespace,
        indexes: impl IntoIterator<Item = IndexModel>,
    ) -> Result<(), Error> {
        match &self.executor {
            Executor::Server { .. } => {
                let database = self.client.database(&namespace.db);
                database.collection::<Document>(&namespace.coll).create_indexes(indexes).await?;
                Ok(())
            }
            #[cfg(feature = "testing")]
            Executor::InMemory { .. } => Ok(()),
        }
    }
}

async fn update_locally(client: &Client, update: &Update) -> Result<(), Error> {
    let statement = UpdateStatement::of(update);
    let reply = local_update::send(client, &update.namespace, &[statement]).await?;
    match local_update::read(&reply, 1).pop() {
        Some(LocalReply::Refused(why) | LocalReply::Open(why)) => Err(error_codes::lost(why)),
        Some(LocalReply::Executed) | None => Ok(()),
    }
}

async fn upsert_with_majority(client: &Client, upsert: Upsert) -> Result<Option<Document>, Error> {
    let Upsert { namespace, filter, update } = upsert;
    for statement in [&filter, &update] {
        codec::encode(statement).map_err(|error| error_codes::unencodable(error.to_string()))?;
    }

    let collection = client.database(&namespace.db).collection::<Document>(&namespace.coll);
    collection
        .find_one_and_update(filter, update)
        .upsert(true)
        .return_document(ReturnDocument::After)
        .write_concern(majority())
        .await
}
