//! A hand-written loop that does what a dispatcher does, for documents with one message each: it consumes a
//! command for each document, claims by retryable writes, publishes `CloudEvents` with the flag `mandatory`,
//! clears, and acknowledges.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, future::join_all};
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use mongodb::bson::{Bson, Document, doc};
use tokio::time::timeout;

use super::{
    by_hand::attributes,
    careful_loop::{BATCH, CarefulLoop, Clock, WORKERS, body, claim, first},
    repeatable::RepeatableUpdates,
};
use crate::{bed::Bed, result::Result};

/// Prefetch of each worker. Together the workers hold as many commands as a dispatcher takes.
const PREFETCH: u16 = 128;
/// How long a worker waits for a command before it checks whether all commands are handled.
const PULSE: Duration = Duration::from_millis(5);

#[derive(Clone)]
pub(crate) struct FedLoop {
    careful: CarefulLoop,
    claims: Arc<RepeatableUpdates>,
    handled: Arc<AtomicUsize>,
}

impl FedLoop {
    pub(crate) async fn new(bed: &Bed, careful: &CarefulLoop) -> Result<Self> {
        let claims = Arc::new(RepeatableUpdates::new(bed, careful.collection.name()).await?);
        Ok(Self { careful: careful.clone(), claims, handled: Arc::default() })
    }

    /// Runs until `count` commands are handled.
    pub(crate) async fn run(&self, bed: &Bed, count: usize) -> Result<()> {
        let clock = Clock::ask(&self.careful.database).await?;
        let connection = bed.connect().await?;
        self.handled.store(0, Ordering::Relaxed);

        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let channel = connection.create_channel().await?;
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            let (queue, tag) = (bed.commands().into(), format!("worker-{number}").into());
            let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
            let commands = channel.basic_consume(queue, tag, options, none).await?;
            let worker = self.clone();
            workers.push(tokio::spawn(async move { worker.work(commands, clock, count).await }));
        }
        // The workers' channels close when the workers are dropped, and the connection closes after its
        // channels.
        for ended in join_all(workers).await {
            ended??;
        }
        Ok(())
    }

    async fn work(&self, commands: lapin::Consumer, clock: Clock, count: usize) -> Result<()> {
        let mut commands = commands.ready_chunks(BATCH);
        while self.handled.load(Ordering::Relaxed) < count {
            let Ok(Some(taken)) = timeout(PULSE, commands.next()).await else { continue };
            let taken: Vec<_> = taken.into_iter().collect::<std::result::Result<_, _>>()?;

            let mut ids = Vec::with_capacity(taken.len());
            for command in &taken {
                let body: serde_json::Value = serde_json::from_slice(&command.data)?;
                ids.push(body["document_key"]["_id"].as_str().ok_or("a command without an id")?.to_owned());
            }
            let named = doc! { "_id": { "$in": ids } };
            let found = self.careful.collection.find(named).projection(doc! { "outbox": 1 }).await?;
            self.deliver(found.try_collect().await?, clock).await?;

            // The commands of a channel are handled in their order, so a single acknowledgement covers all
            // commands up to the last one.
            if let Some(last) = taken.last() {
                last.acker.ack(BasicAckOptions { multiple: true }).await?;
            }
            self.handled.fetch_add(taken.len(), Ordering::Relaxed);
        }
        Ok(())
    }

    async fn deliver(&self, documents: Vec<Document>, clock: Clock) -> Result<()> {
        if documents.is_empty() {
            return Ok(());
        }
        let me = uuid::Uuid::new_v4().to_string();
        let claims = documents.iter().map(|document| claim(document, &me, clock)).collect();
        let claimed = self.claims.send(claims).await?;
        let documents: Vec<_> = documents
            .into_iter()
            .zip(claimed)
            .filter_map(|(document, is_mine)| is_mine.then_some(document))
            .collect();

        let published = join_all(documents.iter().map(|document| self.publish(document))).await;
        self.careful.settle(&documents, published, &me, clock).await
    }

    async fn publish(&self, document: &Document) -> Result<()> {
        let Some(entry) = first(document) else { return Ok(()) };
        let id = match entry.get("id") {
            Some(Bson::Binary(id)) => uuid::Uuid::from_slice(&id.bytes)?,
            _ => return Err("a message without an id".into()),
        };
        let headers = attributes(&id, document.get_str("_id")?, *entry.get_datetime("created_at")?)?;
        self.careful.publisher.publish_event(&id.to_string(), &body(entry)?, headers).await
    }
}
