//! The two databases that the contract of a store is tested on: the in-memory database of the test kit, and a real
//! MongoDB server.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(unreachable_pub, reason = "a module of a test")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{sync::Arc, time::Duration};

use document_outbox::{
    Aggregate, DeliveryOrder, DocumentRef, InlineDispatcher, Mode, RetryPolicy, Store,
    dispatch::{Processor, ProcessorSettings},
    testing::{Kit, Recorder},
};
use futures::TryStreamExt;
use mongodb::{
    bson::{Bson, DateTime, Document, doc},
    options::UpdateModifications,
};
use tokio_util::sync::CancellationToken;

use crate::support::TestDatabase;

/// The collection of every contract.
const COLLECTION: &str = "orders";

/// A kind of database.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    InMemory,
    MongoDb,
}

/// A database with an inline dispatcher, a worker, and a recorder of their deliveries.
pub struct Backend {
    pub recorder: Recorder,
    pub inline: InlineDispatcher,
    database: Database,
}

enum Database {
    InMemory(Kit),
    MongoDb(Box<Real>),
}

struct Real {
    test: TestDatabase,
    worker: Processor,
}

/// A lease so long that a slow machine doesn't reach its end.
const LEASE: Duration = Duration::from_mins(10);

/// A policy that retries so late that a test must make the message due.
fn retry() -> RetryPolicy {
    RetryPolicy::default().with(|retry| {
        retry.quick_tries = 0;
        retry.max_attempts = 2;
        retry.backoff_min = Duration::from_hours(10);
        retry.backoff_max = Duration::from_hours(10);
    })
}

impl Which {
    pub async fn start(self, mode: Mode) -> Backend {
        self.start_deferring(mode, Duration::ZERO).await
    }

    /// Starts with clears that are deferred for this time.
    pub async fn start_deferring(self, mode: Mode, clears: Duration) -> Backend {
        match self {
            Self::InMemory => {
                let kit =
                    Kit::builder().mode(mode).retry(retry()).inline_lease(LEASE).defer_clears(clears).build();
                let (recorder, inline) = (kit.recorder().clone(), kit.inline().clone());
                Backend { recorder, inline, database: Database::InMemory(kit) }
            }
            Self::MongoDb => {
                let (test, recorder) = (TestDatabase::create().await, Recorder::new());
                let state = test.database.name().to_owned();
                let inline = InlineDispatcher::builder(&test.client)
                    .mode(mode)
                    .retry(retry())
                    .inline_lease(LEASE)
                    .defer_clears(clears)
                    .state_database(state.clone())
                    .deliver_to(recorder.clone());
                let settings = ProcessorSettings::default().with(|settings| {
                    settings.retry = retry();
                    settings.claim_lease = LEASE;
                    settings.state_database = state;
                });
                let worker = Processor::new(test.client.clone(), Arc::new(recorder.clone()), settings);
                Backend { recorder, inline, database: Database::MongoDb(Box::new(Real { test, worker })) }
            }
        }
    }
}

impl Backend {
    pub fn store<T: Aggregate>(&self) -> Store<T> {
        match &self.database {
            Database::InMemory(kit) => kit.store(COLLECTION),
            Database::MongoDb(real) => Store::new(real.test.orders(), &self.inline),
        }
    }

    /// Inserts a document as another program would.
    pub async fn insert(&self, document: Document) {
        match &self.database {
            Database::InMemory(kit) => kit.insert_one(COLLECTION, document).unwrap(),
            Database::MongoDb(real) => _ = real.test.orders().insert_one(document).await.unwrap(),
        }
    }

    /// Updates a document as another program would. Returns the number of documents that matched.
    pub async fn update(
        &self,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> Result<u64, mongodb::error::Error> {
        match &self.database {
            Database::InMemory(kit) => kit.update_one(COLLECTION, filter, update),
            Database::MongoDb(real) => Ok(real.test.orders().update_one(filter, update).await?.matched_count),
        }
    }

    /// Makes every message of a document due.
    pub async fn make_due(&self, id: &str) {
        let due = doc! { "$set": { "outbox.$[].available_at": DateTime::from_millis(1) } };
        assert_eq!(self.update(doc! { "_id": id }, due).await.unwrap(), 1);
    }

    /// Delivers what is due, as workers do.
    pub async fn dispatch(&self) {
        match &self.database {
            Database::InMemory(kit) => kit.until_quiet().await.unwrap(),
            Database::MongoDb(real) => {
                self.inline.flush().await;
                let Real { test, worker } = &**real;
                let filled = test.orders().find(doc! { "outbox.0": { "$exists": true } }).await.unwrap();
                let filled: Vec<Document> = filled.try_collect().await.unwrap();
                for document in filled {
                    let id = document.get("_id").unwrap().clone();
                    let document = DocumentRef::by_id(test.orders().namespace(), id);
                    let stop = CancellationToken::new();
                    worker.process(&document, DeliveryOrder::Ordered, &stop).await.unwrap();
                }
            }
        }
    }

    /// The stored document.
    pub async fn document(&self, id: impl Into<Bson>) -> Option<Document> {
        let id = id.into();
        match &self.database {
            Database::InMemory(kit) => kit.document(COLLECTION, id),
            Database::MongoDb(real) => real.test.orders().find_one(doc! { "_id": id }).await.unwrap(),
        }
    }

    /// The elements of a stored outbox.
    pub async fn outbox(&self, id: impl Into<Bson>) -> Vec<Bson> {
        let document = self.document(id).await.expect("the document is there");
        document.get_array("outbox").cloned().unwrap_or_default()
    }

    /// The entries of a stored outbox.
    pub async fn entries(&self, id: impl Into<Bson>) -> Vec<Document> {
        let outbox = self.outbox(id).await;
        outbox.into_iter().map(|element| element.as_document().unwrap().clone()).collect()
    }

    pub async fn end(self) {
        if let Database::MongoDb(real) = self.database {
            real.test.drop().await;
        }
    }
}
