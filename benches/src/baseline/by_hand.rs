//! A hand-written outbox in the document. Saves, publishes and clears are batched separately: new requests of a kind
//! form a batch while earlier batches of that kind are in flight. The code is written for one type of document and
//! knows which field has changed.

use std::sync::Arc;

use futures::future::try_join_all;
use lapin::types::{AMQPValue, FieldTable};
use mongodb::{
    Collection, Database,
    bson::{Bson, DateTime, Document, Uuid, doc},
};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{dual_write::Confirmed, repeatable::RepeatableUpdates};
use crate::{bed::Bed, order::Order, result::Result};

/// Maximum number of batches of each kind in flight.
const ABREAST: usize = 2;

/// The guarantees of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Safety {
    /// The fastest form. A batch of saves counts as done if the total in the reply is right. Commands are never
    /// repeated. Messages have no headers, and an unroutable message counts as delivered.
    Unchecked,
    /// The guarantees of this library: commands can be repeated, each save has its own outcome, no save
    /// overtakes an undelivered message of its document, and messages are `CloudEvents` published with the
    /// flag `mandatory`.
    AsSafe,
}

#[derive(Clone)]
pub(crate) struct ByHand {
    saves: Stage<Document>,
    publishes: Stage<Event>,
    clears: Stage<Document>,
    safety: Safety,
}

/// A message to publish.
struct Event {
    id: String,
    body: Vec<u8>,
    /// The attributes of a `CloudEvent`, or `None` in an unchecked loop, in which messages have no headers.
    headers: Option<FieldTable>,
}

impl ByHand {
    /// Prepares the orders, which have no `etag` yet.
    pub(crate) async fn new(bed: &Bed, orders: Collection<Order>, safety: Safety) -> Result<Self> {
        let update = |concern: Bson| {
            let (database, name) = (bed.database.clone(), orders.name().to_owned());
            move |updates| write(database.clone(), name.clone(), updates, concern.clone())
        };
        let saves = match safety {
            Safety::Unchecked => Stage::start(update("majority".into())),
            Safety::AsSafe => {
                let updates = Arc::new(RepeatableUpdates::new(bed, orders.name()).await?);
                Stage::start(move |batch| {
                    let updates = updates.clone();
                    async move { updates.send(batch).await }
                })
            }
        };

        let publisher = Confirmed::connect(bed).await?;
        let publish = move |messages: Vec<Event>| {
            let publisher = publisher.clone();
            async move {
                try_join_all(messages.iter().map(|event| event.publish(&publisher))).await?;
                Ok(vec![true; messages.len()])
            }
        };
        let (publishes, clears) = (Stage::start(publish), Stage::start(update(1.into())));
        Ok(Self { saves, publishes, clears, safety })
    }

    pub(crate) async fn save(&self, order: &mut Order, etag: &mut Option<Uuid>, at: i64) -> Result<()> {
        let message = order.change(at);
        let (id, fresh) = (uuid::Uuid::now_v7(), Uuid::new());
        let (entry, claim, now) =
            (Uuid::from_bytes(id.into_bytes()), Uuid::new().to_string(), DateTime::now());
        let payload =
            doc! { "order": &message.order, "total": message.total, "at": at, "note": "n".repeat(120) };
        let entry_of = doc! {
            "id": entry, "type": "order.changed", "payload": payload,
            "created_at": now, "available_at": now, "claimed_by": &claim,
        };
        let mut unchanged = doc! { "_id": &order.id, "etag": *etag };
        if self.safety == Safety::AsSafe {
            unchanged.insert("outbox.0", doc! { "$exists": false });
        }
        let save = doc! {
            "q": unchanged,
            "u": {
                "$set": { "total": order.total, "etag": fresh },
                "$push": { "outbox": { "$each": [entry_of] } },
            },
        };
        self.saves.go(save).await?;
        *etag = Some(fresh);

        let headers = match self.safety {
            Safety::Unchecked => None,
            Safety::AsSafe => Some(attributes(&id, &order.id, now)?),
        };
        let event = Event { id: id.to_string(), body: serde_json::to_vec(&message)?, headers };
        self.publishes.go(event).await?;

        let pull = doc! { "$pull": { "outbox": { "id": entry, "claimed_by": claim } } };
        self.clears.go(doc! { "q": { "_id": &order.id }, "u": pull }).await
    }
}

impl Event {
    async fn publish(&self, publisher: &Confirmed) -> Result<()> {
        match &self.headers {
            None => publisher.publish_body(&self.id, &self.body).await,
            Some(headers) => publisher.publish_event(&self.id, &self.body, headers.clone()).await,
        }
    }
}

/// The attributes of a `CloudEvent`.
pub(super) fn attributes(id: &uuid::Uuid, subject: &str, time: DateTime) -> Result<FieldTable> {
    let attributes = [
        ("cloudEvents:specversion", "1.0".to_owned()),
        ("cloudEvents:id", id.to_string()),
        ("cloudEvents:type", "order.changed".to_owned()),
        ("cloudEvents:source", "/bench/orders".to_owned()),
        ("cloudEvents:subject", subject.to_owned()),
        ("cloudEvents:time", time.try_to_rfc3339_string()?),
    ];
    let mut headers = FieldTable::default();
    for (name, value) in attributes {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    Ok(headers)
}

async fn write(
    database: Database,
    collection: String,
    updates: Vec<Document>,
    concern: Bson,
) -> Result<Vec<bool>> {
    let all_found = vec![true; updates.len()];
    let count = i32::try_from(updates.len())?;
    let command = doc! {
        "update": collection, "updates": updates, "ordered": false, "writeConcern": { "w": concern },
    };
    let reply = database.run_command(command).await?;
    match reply.get_i32("nModified") {
        Ok(modified) if modified == count => Ok(all_found),
        _ => Err(format!("not every update was written: {reply}").into()),
    }
}

/// A stage, which collects requests into batches while earlier batches are in flight.
struct Stage<T>(mpsc::Sender<(T, oneshot::Sender<()>)>);

impl<T> Clone for Stage<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + 'static> Stage<T> {
    /// Starts a stage. `work` returns for each item of a batch whether the item succeeded.
    fn start<F>(work: impl Fn(Vec<T>) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = Result<Vec<bool>>> + Send,
    {
        let (sender, waiting) = mpsc::channel(1_000);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..ABREAST {
            let (waiting, work) = (waiting.clone(), work.clone());
            tokio::spawn(async move {
                loop {
                    let mut batch = Vec::new();
                    let mut waiting = waiting.lock().await;
                    // The stage yields here. Tasks that the answers to an earlier batch have woken can then add
                    // their requests to this batch.
                    while batch.is_empty() || !waiting.is_empty() {
                        if waiting.recv_many(&mut batch, 1_000).await == 0 {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                    drop(waiting);
                    let (items, done): (Vec<_>, Vec<oneshot::Sender<()>>) = batch.into_iter().unzip();
                    // If a batch fails, the callers that wait for it notice that their channels are closed.
                    if let Ok(succeeded) = work(items).await {
                        for (done, succeeded) in done.into_iter().zip(succeeded) {
                            if succeeded {
                                let _ = done.send(());
                            }
                        }
                    }
                }
            });
        }
        Self(sender)
    }

    async fn go(&self, item: T) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.0.send((item, done)).await.map_err(|_| "the loop has ended")?;
        Ok(answer.await.map_err(|_| "a batch has failed")?)
    }
}
