//! The test bed of a measurement: connections to the servers, a database, an exchange, and a queue that receives every
//! message.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::{
    InlineDispatcher, Loaded, Mode, Store,
    amqp::AmqpSettings,
    deliver::{Deliver, RabbitMq, RabbitMqSettings},
    dispatch::InlineBuilder,
};
use futures::{StreamExt, TryStreamExt, stream};
use lapin::{
    ConnectionProperties, ExchangeKind,
    options::{
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use mongodb::{
    Client, Collection, Database,
    bson::{Document as BsonDocument, doc},
    options::ReadConcern,
};

use crate::{order::Order, result::Result};

/// The amount of work that is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Whether each measurement takes seconds instead of minutes.
    pub(crate) quick: bool,
    pub(crate) blocks: usize,
    /// The duration of a closed loop, in which each saver begins its next save when the last one has ended.
    pub(crate) loop_time: Duration,
}

impl Scale {
    pub(crate) fn new(quick: bool) -> Self {
        if quick {
            Self { quick, blocks: 3, loop_time: Duration::from_millis(700) }
        } else {
            Self { quick, blocks: 7, loop_time: Duration::from_secs(2) }
        }
    }

    /// Returns the numbers of the blocks to measure; a block is one run of the measurement. If `operations`
    /// is so large that a block takes minutes, there are fewer blocks, and none for warming up.
    pub(crate) fn blocks_of(&self, operations: usize) -> std::ops::Range<usize> {
        if operations >= 100_000 { 1..4 } else { 0..self.blocks + 1 }
    }

    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

pub(crate) struct Bed {
    pub(crate) scale: Scale,
    pub(crate) mongodb_uri: String,
    pub(crate) rabbitmq_uri: String,
    pub(crate) client: Client,
    pub(crate) database: Database,
    pub(crate) channel: lapin::Channel,
    _connection: lapin::Connection,
    pub(crate) rabbitmq: RabbitMq,
    began: Instant,
}

impl Bed {
    pub(crate) async fn make(scale: Scale) -> Result<Self> {
        let (mongodb_uri, rabbitmq_uri) = (variable("OUTBOX_MONGODB_URI")?, variable("OUTBOX_RABBITMQ_URI")?);

        let client = Client::with_uri_str(&mongodb_uri).await?;
        let name = format!("bench_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let database = client.database(&name);

        let connection = lapin::Connection::connect(&rabbitmq_uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;

        let rabbitmq = RabbitMq::start(RabbitMqSettings {
            amqp: AmqpSettings::new(&rabbitmq_uri)?.named("bench"),
            exchange: format!("{name}.messages"),
            ..RabbitMqSettings::new(&rabbitmq_uri)?
        });
        rabbitmq.available().await;

        let bed = Self {
            scale,
            mongodb_uri,
            rabbitmq_uri,
            client,
            database,
            channel,
            _connection: connection,
            rabbitmq,
            began: Instant::now(),
        };
        bed.declare().await?;
        Ok(bed)
    }

    async fn declare(&self) -> Result<()> {
        let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let name = self.exchange();
        self.channel
            .exchange_declare(name.into(), ExchangeKind::Topic, exchange, FieldTable::default())
            .await?;
        let queue = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(self.queue().into(), queue, FieldTable::default()).await?;
        let (queue, exchange) = (self.queue().into(), self.exchange().into());
        let bind = QueueBindOptions::default();
        self.channel.queue_bind(queue, exchange, "#".into(), bind, FieldTable::default()).await?;
        Ok(())
    }

    pub(crate) fn name(&self) -> &str {
        self.database.name()
    }

    pub(crate) fn exchange(&self) -> String {
        format!("{}.messages", self.name())
    }

    pub(crate) fn queue(&self) -> String {
        format!("{}.received", self.name())
    }

    pub(crate) fn commands(&self) -> String {
        format!("{}.commands", self.name())
    }

    /// Returns the time since the suite started, in µs.
    pub(crate) fn micros(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// Opens a separate connection, as an application would.
    pub(crate) async fn connect(&self) -> Result<lapin::Connection> {
        Ok(lapin::Connection::connect(&self.rabbitmq_uri, ConnectionProperties::default()).await?)
    }

    pub(crate) async fn purge(&self) -> Result<()> {
        self.channel.queue_purge(self.queue().into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }

    /// Returns the number of messages that wait in a queue.
    pub(crate) async fn waiting(&self, queue: &str) -> Result<u64> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count().into())
    }

    /// Creates an inline dispatcher that publishes to the exchange.
    pub(crate) fn inline(&self, mode: Mode) -> InlineDispatcher {
        self.inline_with(mode, |builder| builder)
    }

    pub(crate) fn inline_with(
        &self,
        mode: Mode,
        set: impl FnOnce(InlineBuilder) -> InlineBuilder,
    ) -> InlineDispatcher {
        let inline = InlineDispatcher::builder(&self.client).mode(mode);
        set(inline).deliver_to_shared(Arc::new(self.rabbitmq.clone()))
    }

    /// Creates a collection with its two indexes and this many orders.
    pub(crate) async fn orders(
        &self,
        inline: &InlineDispatcher,
        name: &str,
        count: usize,
        bytes: usize,
    ) -> Result<Store<Order>> {
        let collection = self.raw_orders(name, count, bytes).await?;
        let store = Store::new(collection, inline);
        store.ensure_indexes().await?;
        Ok(store)
    }

    /// Creates a collection of orders without indexes.
    pub(crate) async fn raw_orders(
        &self,
        name: &str,
        count: usize,
        bytes: usize,
    ) -> Result<Collection<Order>> {
        let collection = self.database.collection::<Order>(name);
        collection.drop().await?;
        let batch = (4_000_000 / bytes).clamp(1, 1000);
        let orders: Vec<_> = (0..count).map(|n| Order::new(id(n), bytes)).collect();
        for orders in orders.chunks(batch) {
            collection.insert_many(orders).await?;
        }
        Ok(collection)
    }

    pub(crate) async fn load(&self, store: &Store<Order>, count: usize) -> Result<Vec<Loaded<Order>>> {
        let load = |n: usize| async move {
            let found = store.load(&id(n)).await?;
            found.ok_or_else(|| crate::result::Failure::from(format!("order {} is not there", id(n))))
        };
        stream::iter(0..count).map(load).buffered(16).try_collect().await
    }

    /// Waits until every outbox of the collection is empty for the majority, which is what a load reads. The next save
    /// of a document whose clear the majority does not have yet would take its outbox for occupied.
    pub(crate) async fn settled(&self, collection: &Collection<BsonDocument>) -> Result<()> {
        let occupied = doc! { "outbox.id": { "$exists": true } };
        while collection.find_one(occupied.clone()).read_concern(ReadConcern::majority()).await?.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub(crate) async fn clean_up(&self) -> Result<()> {
        for queue in [self.queue(), self.commands()] {
            self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        for exchange in [self.exchange(), self.commands()] {
            self.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
        }
        self.state().drop().await?;
        self.database.drop().await?;
        Ok(())
    }

    pub(crate) fn state(&self) -> Database {
        self.client.database(&format!("{}_state", self.name()))
    }
}

fn variable(name: &str) -> Result<String> {
    Ok(std::env::var(name).map_err(|_| format!("{name} is not set: start this with scripts/bench"))?)
}

pub(crate) fn id(number: usize) -> String {
    format!("order-{number:08}")
}
