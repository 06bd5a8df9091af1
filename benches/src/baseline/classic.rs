//! The classic outbox. A transaction writes the document and a collection of messages, and one poller publishes those
//! messages in batches and deletes them.

use std::time::Duration;

use futures::future::try_join_all;
use mongodb::{
    Client, Collection,
    bson::{Document, doc, oid::ObjectId},
    options::{ReadConcern, TransactionOptions},
};
use tokio::{sync::watch, task::JoinHandle};

use super::{concern::majority, dual_write::Confirmed};
use crate::{bed::Bed, order::Order, result::Result};

const BATCH: i64 = 1_000;

#[derive(Clone)]
pub(crate) struct Classic {
    client: Client,
    orders: Collection<Order>,
    outbox: Collection<Document>,
}

impl Classic {
    pub(crate) async fn new(bed: &Bed, orders: Collection<Order>) -> Result<Self> {
        let outbox = bed.database.collection::<Document>(&format!("{}_outbox", orders.name()));
        // The collection is created first, because creating it inside a transaction would delay the first
        // saves.
        bed.database.create_collection(outbox.name()).await?;
        Ok(Self { client: bed.client.clone(), orders, outbox })
    }

    pub(crate) async fn save(&self, order: &mut Order, at: i64) -> Result<()> {
        let message = order.change(at);
        let row = doc! {
            "_id": ObjectId::new(),
            "key": uuid::Uuid::now_v7().to_string(),
            "body": serde_json::to_string(&message)?,
        };
        let mut session = self.client.start_session().await?;
        let options = TransactionOptions::builder()
            .read_concern(ReadConcern::snapshot())
            .write_concern(majority())
            .build();
        session.start_transaction().with_options(options).await?;
        self.orders.replace_one(doc! { "_id": &order.id }, &*order).session(&mut session).await?;
        self.outbox.insert_one(row).session(&mut session).await?;
        session.commit_transaction().await?;
        Ok(())
    }

    pub(crate) async fn is_empty(&self) -> Result<bool> {
        Ok(self.outbox.find_one(doc! {}).await?.is_none())
    }

    /// Starts a poller that runs until it is stopped. It polls again at once after a full batch, otherwise after the
    /// interval.
    pub(crate) fn start_poller(&self, publisher: Confirmed, interval: Duration) -> Poller {
        let (stop, stopped) = watch::channel(false);
        let classic = self.clone();
        let task = tokio::spawn(async move {
            while !*stopped.borrow() {
                if classic.poll(&publisher).await? < BATCH {
                    tokio::time::sleep(interval).await;
                }
            }
            Ok(())
        });
        Poller { stop, task }
    }

    /// Publishes one batch concurrently, and deletes its messages once all are confirmed.
    async fn poll(&self, publisher: &Confirmed) -> Result<i64> {
        let mut found =
            self.outbox.find(doc! {}).sort(doc! { "_id": 1 }).limit(BATCH).batch_size(1_000).await?;
        let mut rows = Vec::new();
        while found.advance().await? {
            rows.push(found.deserialize_current()?);
        }
        let publish = |row: &Document| {
            let (key, body) = (text(row, "key"), text(row, "body"));
            async move { publisher.publish_body(&key, body.as_bytes()).await }
        };
        try_join_all(rows.iter().map(publish)).await?;
        if !rows.is_empty() {
            let ids: Vec<_> = rows.iter().filter_map(|row| row.get("_id").cloned()).collect();
            self.outbox.delete_many(doc! { "_id": { "$in": ids } }).await?;
        }
        Ok(i64::try_from(rows.len())?)
    }
}

fn text(row: &Document, name: &str) -> String {
    row.get_str(name).unwrap_or_default().to_owned()
}

pub(crate) struct Poller {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

impl Poller {
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        self.task.await?
    }
}
