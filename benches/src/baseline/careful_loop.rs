//! A hand-written loop that delivers the messages in outboxes as safely as this library does. Several workers, in one
//! or more processes, put each message under a claim that expires. A failure repeats messages but loses none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use mongodb::{
    Collection, Cursor, Database,
    bson::{Bson, DateTime, Document, doc},
};
use tokio::sync::Mutex;

use super::{dual_write::Confirmed, updates};
use crate::result::Result;

/// Number of workers. Together, the workers claim as many messages as a dispatcher publishes before it clears any of
/// them.
pub(super) const WORKERS: usize = 4;
pub(super) const BATCH: usize = 64;
const LEASE: Duration = Duration::from_mins(1);

#[derive(Clone)]
pub(crate) struct CarefulLoop {
    pub(crate) database: Database,
    pub(crate) collection: Collection<Document>,
    pub(crate) publisher: Confirmed,
}

/// The server's time, read once and then extrapolated.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    then: DateTime,
    asked: Instant,
}

/// The due documents, shared by the workers.
type Due = Arc<Mutex<Cursor<Document>>>;

impl CarefulLoop {
    /// Runs until all due messages are delivered.
    pub(crate) async fn run(&self) -> Result<()> {
        let clock = Clock::ask(&self.database).await?;
        let due = doc! { "outbox": { "$elemMatch": {
            "id": { "$exists": true }, "available_at": { "$lte": clock.now(Duration::ZERO) },
        } } };
        let found = self.collection.find(due).projection(doc! { "outbox": 1 }).batch_size(1_000).await?;
        let found = Arc::new(Mutex::new(found));

        let workers = (0..WORKERS).map(|_| {
            let (worker, found) = (self.clone(), found.clone());
            tokio::spawn(async move { worker.work(found, clock).await })
        });
        for ended in join_all(workers).await {
            ended??;
        }
        Ok(())
    }

    async fn work(&self, found: Due, clock: Clock) -> Result<()> {
        loop {
            let mut documents = Vec::with_capacity(BATCH);
            let mut cursor = found.lock().await;
            while documents.len() < BATCH && cursor.advance().await? {
                documents.push(cursor.deserialize_current()?);
            }
            drop(cursor);

            if documents.is_empty() {
                return Ok(());
            }
            self.deliver(documents, clock).await?;
        }
    }

    async fn deliver(&self, mut documents: Vec<Document>, clock: Clock) -> Result<()> {
        let me = uuid::Uuid::new_v4().to_string();
        let claims = documents.iter().map(|document| claim(document, &me, clock)).collect();
        let claimed = self.write(claims, "majority".into()).await?;
        if claimed < documents.len() {
            self.keep_claimed(&mut documents, &me).await?;
        }

        let published = join_all(documents.iter().map(|document| self.publish(document))).await;
        self.settle(&documents, published, &me, clock).await
    }

    /// Clears the first message of each document if the message was confirmed. Otherwise releases the document's
    /// claim.
    pub(super) async fn settle(
        &self,
        documents: &[Document],
        published: Vec<Result<()>>,
        me: &str,
        clock: Clock,
    ) -> Result<()> {
        let (mut clears, mut releases) = (Vec::with_capacity(documents.len()), Vec::new());
        for (document, published) in documents.iter().zip(published) {
            if published.is_ok() {
                clears.push(clear(document, me));
            } else {
                releases.push(release(document, me, clock));
            }
        }
        self.write(clears, 1.into()).await?;
        self.write(releases, 1.into()).await?;
        Ok(())
    }

    /// Keeps only the documents that this worker has claimed. Other workers have claimed the rest.
    async fn keep_claimed(&self, documents: &mut Vec<Document>, me: &str) -> Result<()> {
        let ids: Vec<_> = documents.iter().filter_map(|document| document.get("_id").cloned()).collect();
        let mine = doc! { "_id": { "$in": ids }, "outbox.0.claimed_by": me };
        let mut found = self.collection.find(mine).projection(doc! { "outbox": 1 }).await?;
        documents.clear();
        while found.advance().await? {
            documents.push(found.deserialize_current()?);
        }
        Ok(())
    }

    async fn publish(&self, document: &Document) -> Result<()> {
        let Some(entry) = first(document) else { return Ok(()) };
        let id = entry.get("id").map(ToString::to_string).unwrap_or_default();
        self.publisher.publish_mandatory(&id, &body(entry)?).await
    }

    /// Executes the updates and returns how many of them matched a document.
    async fn write(&self, updates: Vec<Document>, concern: Bson) -> Result<usize> {
        updates::send(&self.database, self.collection.name(), updates, concern).await
    }
}

impl Clock {
    pub(super) async fn ask(database: &Database) -> Result<Self> {
        let hello = database.run_command(doc! { "hello": 1 }).await?;
        Ok(Self { then: *hello.get_datetime("localTime")?, asked: Instant::now() })
    }

    fn now(&self, ahead: Duration) -> DateTime {
        let since = i64::try_from((self.asked.elapsed() + ahead).as_millis()).unwrap_or(i64::MAX);
        DateTime::from_millis(self.then.timestamp_millis().saturating_add(since))
    }
}

/// The payload of a message as JSON.
pub(super) fn body(entry: &Document) -> Result<Vec<u8>> {
    let payload = entry.get("payload").cloned().map(Bson::into_relaxed_extjson).unwrap_or_default();
    Ok(serde_json::to_vec(&payload)?)
}

/// Claims the first message of a document, if it is due.
pub(super) fn claim(document: &Document, me: &str, clock: Clock) -> Document {
    doc! {
        "q": {
            "_id": document.get("_id"),
            "outbox.0.id": first(document).and_then(|entry| entry.get("id")),
            "outbox.0.available_at": { "$lte": clock.now(Duration::ZERO) },
        },
        "u": { "$set": { "outbox.0.claimed_by": me, "outbox.0.available_at": clock.now(LEASE) } },
    }
}

fn clear(document: &Document, me: &str) -> Document {
    let id = first(document).and_then(|entry| entry.get("id"));
    let cleared = doc! { "id": id, "claimed_by": me };
    doc! { "q": { "_id": document.get("_id") }, "u": { "$pull": { "outbox": cleared } } }
}

fn release(document: &Document, me: &str, clock: Clock) -> Document {
    doc! {
        "q": { "_id": document.get("_id"), "outbox.0.claimed_by": me },
        "u": { "$set": { "outbox.0.available_at": clock.now(LEASE) }, "$unset": { "outbox.0.claimed_by": 1 } },
    }
}

pub(super) fn first(document: &Document) -> Option<&Document> {
    document.get_array("outbox").ok()?.first()?.as_document()
}
