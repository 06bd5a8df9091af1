//! An outbox in the document with group commit, by hand: saves, publishes and clears are each batched while
//! the last ones are in flight. It is the best case: it treats a batch as done if the sum is right, never
//! repeats, and knows one type of document.

use std::sync::Arc;

use futures::future::try_join_all;
use mongodb::{
    Collection, Database,
    bson::{Bson, DateTime, Document, Uuid, doc},
};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::dual_write::Confirmed;
use crate::{bed::Bed, order::Order, result::Result};

/// The batches of each kind in flight at a time.
const ABREAST: usize = 2;

#[derive(Clone)]
pub(crate) struct ByHand {
    saves: Stage<Document>,
    publishes: Stage<(String, Vec<u8>)>,
    clears: Stage<Document>,
}

impl ByHand {
    /// The orders have no `etag` yet.
    pub(crate) async fn new(bed: &Bed, orders: Collection<Order>) -> Result<Self> {
        let update = |concern: Bson| {
            let (database, name) = (bed.database.clone(), orders.name().to_owned());
            move |updates| write(database.clone(), name.clone(), updates, concern.clone())
        };
        let publisher = Confirmed::connect(bed).await?;
        let publish = move |messages: Vec<(String, Vec<u8>)>| {
            let publisher = publisher.clone();
            async move {
                let publish = messages.iter().map(|(id, body)| publisher.publish_body(id, body));
                try_join_all(publish).await.map(drop)
            }
        };
        Ok(Self {
            saves: Stage::start(update("majority".into())),
            publishes: Stage::start(publish),
            clears: Stage::start(update(1.into())),
        })
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
        let save = doc! {
            "q": { "_id": &order.id, "etag": *etag },
            "u": {
                "$set": { "total": order.total, "etag": fresh },
                "$push": { "outbox": { "$each": [entry_of] } },
            },
        };
        self.saves.go(save).await?;
        *etag = Some(fresh);
        self.publishes.go((id.to_string(), serde_json::to_vec(&message)?)).await?;
        let pull = doc! { "$pull": { "outbox": { "id": entry, "claimed_by": claim } } };
        self.clears.go(doc! { "q": { "_id": &order.id }, "u": pull }).await
    }
}

async fn write(database: Database, collection: String, updates: Vec<Document>, concern: Bson) -> Result<()> {
    let count = i32::try_from(updates.len())?;
    let command = doc! {
        "update": collection, "updates": updates, "ordered": false, "writeConcern": { "w": concern },
    };
    let reply = database.run_command(command).await?;
    match reply.get_i32("nModified") {
        Ok(modified) if modified == count => Ok(()),
        _ => Err(format!("not all was written: {reply}").into()),
    }
}

/// Takes the waiting requests while the last batches are in flight.
struct Stage<T>(mpsc::Sender<(T, oneshot::Sender<()>)>);

impl<T> Clone for Stage<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + 'static> Stage<T> {
    fn start<F>(work: impl Fn(Vec<T>) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send,
    {
        let (sender, waiting) = mpsc::channel(1_000);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..ABREAST {
            let (waiting, work) = (waiting.clone(), work.clone());
            tokio::spawn(async move {
                loop {
                    let mut batch = Vec::new();
                    let mut waiting = waiting.lock().await;
                    // Includes requests of tasks that were woken by the same answers.
                    while batch.is_empty() || !waiting.is_empty() {
                        if waiting.recv_many(&mut batch, 1_000).await == 0 {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                    drop(waiting);
                    let (items, done): (Vec<_>, Vec<oneshot::Sender<()>>) = batch.into_iter().unzip();
                    // A waiting caller learns of a failure by the end of its channel.
                    if work(items).await.is_ok() {
                        for done in done {
                            let _ = done.send(());
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
