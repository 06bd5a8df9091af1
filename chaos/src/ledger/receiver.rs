//! The harness's consumer, which receives all messages of a run.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures::StreamExt;
use lapin::{
    Channel, Connection, ExchangeKind,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::log::Ledger;
use crate::servers::Cluster;

/// How long a single request to RabbitMQ may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the consumer may receive no message before it is replaced.
const SILENCE: Duration = Duration::from_secs(2);

/// Consumes messages until this value is dropped, and connects again whenever a connection fails.
pub(crate) struct Receiver {
    cluster: Arc<Cluster>,
    exchange: String,
    pub(crate) queue: String,
    end: CancellationToken,
    consumer: JoinHandle<()>,
}

impl Receiver {
    /// Makes the exchange and the queue, and begins to consume messages.
    pub(crate) async fn start(
        cluster: Arc<Cluster>,
        exchange: String,
        queue: String,
        ledger: Ledger,
    ) -> Result<Self> {
        let end = CancellationToken::new();
        let consumption = Consumption {
            cluster: cluster.clone(),
            exchange: exchange.clone(),
            queue: queue.clone(),
            ledger,
        };
        consumption.declare().await.context("the harness's queue can't be made")?;
        let ended = end.clone();
        let consumer = tokio::spawn(async move {
            tokio::select! {
                () = consumption.consume() => {}
                () = ended.cancelled() => {}
            }
        });
        Ok(Self { cluster, exchange, queue, end, consumer })
    }

    async fn channel(&self) -> Result<(Connection, Channel)> {
        let connection = self.cluster.connect().await?;
        let channel = timeout(PATIENCE, connection.create_channel()).await??;
        Ok((connection, channel))
    }

    /// Removes the binding of the queue, so that RabbitMQ can route new messages to no queue.
    pub(crate) async fn unbind(&self) -> Result<()> {
        let (connection, channel) = self.channel().await?;
        let (queue, exchange) = (self.queue.as_str().into(), self.exchange.as_str().into());
        timeout(PATIENCE, channel.queue_unbind(queue, exchange, "#".into(), FieldTable::default())).await??;
        goodbye(connection).await;
        Ok(())
    }

    /// Makes the exchange, the queue and the binding if they are missing.
    pub(crate) async fn bind(&self) -> Result<()> {
        let (connection, channel) = self.channel().await?;
        make(&channel, &self.exchange, &self.queue).await?;
        goodbye(connection).await;
        Ok(())
    }

    /// Returns how many messages in the queue wait for a consumer; `None` if RabbitMQ does not answer.
    pub(crate) async fn backlog(&self) -> Option<u32> {
        let (connection, channel) = self.channel().await.ok()?;
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(self.queue.as_str().into(), options, FieldTable::default());
        let count = timeout(PATIENCE, declared).await.ok()?.ok()?.message_count();
        goodbye(connection).await;
        Some(count)
    }

    /// Deletes the queue with this name, and the messages in it.
    pub(crate) async fn delete(&self, queue: &str) -> Result<()> {
        let (connection, channel) = self.channel().await?;
        timeout(PATIENCE, channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await??;
        goodbye(connection).await;
        Ok(())
    }

    /// Stops the consumer.
    pub(crate) async fn stop(self) {
        self.end.cancel();
        let _ = timeout(PATIENCE, self.consumer).await;
    }
}

struct Consumption {
    cluster: Arc<Cluster>,
    exchange: String,
    queue: String,
    ledger: Ledger,
}

impl Consumption {
    async fn declare(&self) -> Result<()> {
        let connection = self.cluster.connect().await?;
        let channel = connection.create_channel().await?;
        make(&channel, &self.exchange, &self.queue).await?;
        goodbye(connection).await;
        Ok(())
    }

    /// Consumes messages over a connection until the connection fails, and then over a new connection.
    async fn consume(&self) {
        loop {
            let _ = self.consume_once().await;
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn consume_once(&self) -> Result<()> {
        let connection = self.cluster.connect().await?;
        let channel = timeout(PATIENCE, connection.create_channel()).await??;
        let queue = self.queue.as_str().into();
        let consumed = channel.basic_consume(
            queue,
            "ledger".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut deliveries = timeout(PATIENCE, consumed).await??;
        // A consumer may wait forever after its queue was deleted, so a consumer that receives no message for a while is replaced.
        while let Some(delivery) = timeout(SILENCE, deliveries.next()).await? {
            let delivery = delivery?;
            self.note(&delivery);
            delivery.ack(BasicAckOptions::default()).await?;
        }
        Ok(())
    }

    fn note(&self, delivery: &Delivery) {
        let id =
            delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
        let by = delivery.properties.app_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
        if let Ok(id) = Uuid::parse_str(&id) {
            self.ledger.receive(id, delivery.redelivered, &by);
        }
    }
}

/// Declares the exchange as the library does. Also declares a durable quorum queue, and binds the queue to the exchange for all
/// messages.
async fn make(channel: &Channel, exchange: &str, queue: &str) -> Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared =
        channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default());
    timeout(PATIENCE, declared).await??;

    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    timeout(PATIENCE, channel.queue_declare(queue.into(), durable, arguments)).await??;

    let bound = channel.queue_bind(
        queue.into(),
        exchange.into(),
        "#".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    timeout(PATIENCE, bound).await??;
    Ok(())
}

async fn goodbye(connection: Connection) {
    let _ = timeout(Duration::from_secs(1), connection.close(200, "OK".into())).await;
}
