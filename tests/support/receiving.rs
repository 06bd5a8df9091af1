//! Receivers with separate queues on a real broker, aggregates with an inbox, and publishers of any kind of message.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{collections::BTreeMap, time::Duration};

use document_outbox::{
    Aggregate, Inbox, InlineDispatcher, Message, Outbox, Store,
    receive::{Receiver, ReceiverEvent, ReceiverSettings, RunningReceiver, Subscriptions},
};
use lapin::{
    BasicProperties,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use mongodb::bson::{Document, doc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    flow::{Flow, Heard, Outside, soon},
    restricted::rabbitmqctl,
    support::LONG,
};

/// An aggregate that counts the messages it has received.
#[derive(Debug, Serialize, Deserialize, Aggregate)]
pub struct Stock {
    #[serde(rename = "_id")]
    pub sku: String,
    pub available: i64,
    /// The quantities in the order of their arrival.
    pub taken: Vec<i64>,
    #[serde(default)]
    pub inbox: Inbox,
    #[serde(skip)]
    pub outbox: Outbox,
}

impl Stock {
    pub fn new(sku: String) -> Self {
        Self { sku, available: 0, taken: Vec::new(), inbox: Inbox::default(), outbox: Outbox::default() }
    }

    pub fn take(&mut self, request: &StockRequested) {
        self.available -= request.quantity;
        self.taken.push(request.quantity);
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, Message)]
#[message(type = "stock.requested", alias = "stock.asked")]
pub struct StockRequested {
    pub sku: String,
    pub quantity: i64,
}

/// The queue and the aggregates of one test, and a connection that is independent of the library.
pub struct Scene {
    pub flow: Flow,
    pub outside: Outside,
    pub stocks: Store<Stock>,
}

impl Scene {
    pub async fn begin() -> Self {
        Self::of(Flow::begin().await).await
    }

    pub async fn of(flow: Flow) -> Self {
        let outside = flow.outside().await;
        outside.channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let stocks = Store::new(
            flow.test.database.collection::<Document>("stocks"),
            &InlineDispatcher::off(&flow.test.client),
        );
        Self { flow, outside, stocks }
    }

    pub fn queue(&self) -> String {
        format!("{}.stock", self.flow.name())
    }

    /// Settings with short pauses and with the queue of this test.
    pub fn settings(&self) -> ReceiverSettings {
        ReceiverSettings::new(self.queue()).with(|settings| {
            settings.exchange = self.flow.messages();
            settings.retry_min = Duration::from_millis(10);
            settings.retry_max = Duration::from_millis(50);
            settings.delay = Duration::from_millis(300);
        })
    }

    /// The settings for the queue that a killed process has declared.
    pub fn killed_settings(&self) -> ReceiverSettings {
        self.settings().with(|settings| settings.delivery_limit = 1_000)
    }

    /// A subscription that applies requests to the aggregate named in them.
    pub fn stocks_receiving(&self) -> Subscriptions {
        let key = |request: &StockRequested| request.sku.clone();
        Subscriptions::new().into_aggregate(&self.stocks, key, Stock::new, Stock::take)
    }

    /// Starts a receiver, and collects its events.
    pub async fn start(&self, subscriptions: Subscriptions, settings: ReceiverSettings) -> Working {
        let receiver = Receiver::new(self.flow.amqp("receiver"), subscriptions, settings).unwrap();
        let events = Heard::from(receiver.subscribe());
        let running = receiver.start();
        assert!(soon("the receiver to be ready", running.ready()).await);
        Working { running, events }
    }

    /// Publishes a request as the library does, and returns its id.
    pub async fn request(&self, sku: &str, quantity: i64) -> Uuid {
        let id = Uuid::now_v7();
        self.request_as(id, sku, quantity).await;
        id
    }

    pub async fn request_as(&self, id: Uuid, sku: &str, quantity: i64) {
        let body = serde_json::to_vec(&StockRequested { sku: sku.into(), quantity }).unwrap();
        self.publish(cloud_event(id, "stock.requested", sku), "stock.requested", &body).await;
    }

    /// Publishes to the exchange for messages, and waits for the broker's confirm.
    pub async fn publish(&self, properties: BasicProperties, routing_key: &str, body: &[u8]) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let exchange = self.flow.messages();
        let channel = &self.outside.channel;
        let published = channel
            .basic_publish(exchange.into(), routing_key.into(), options, body, properties)
            .await
            .unwrap();
        assert!(matches!(published.await.unwrap(), lapin::Confirmation::Ack(None)));
    }

    /// The number of messages in a queue that are ready for delivery.
    pub async fn ready_in(&self, queue: &str) -> u32 {
        let outside = self.flow.outside().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue =
            outside.channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap();
        queue.message_count()
    }

    /// Waits until the receiver's consumer has this prefetch.
    pub async fn wait_for_prefetch(&self, prefetch: u16) {
        let wanted = format!("{} {prefetch}", self.queue());
        let listed = move |wanted: String| {
            let listed = rabbitmqctl(&["-q", "list_consumers", "queue_name", "prefetch_count"]);
            listed.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") == wanted)
        };
        let waiting = async {
            loop {
                let wanted = wanted.clone();
                if tokio::task::spawn_blocking(move || listed(wanted)).await.unwrap() {
                    return;
                }
            }
        };
        soon("the prefetch to change", waiting).await;
    }

    /// The number of messages that the broker has delivered to any consumer and that are not acknowledged yet.
    pub async fn unacknowledged(&self) -> u32 {
        let count = || {
            let listed = rabbitmqctl(&["-q", "list_channels", "messages_unacknowledged"]);
            listed.lines().filter_map(|line| line.trim().parse::<u32>().ok()).sum()
        };
        tokio::task::spawn_blocking(count).await.unwrap()
    }

    /// Takes the dead messages out of their queue.
    pub async fn dead(&self) -> Vec<Dead> {
        let mut dead = Vec::new();
        let queue = format!("{}.dead", self.queue());
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = self.outside.channel.basic_get(queue.clone().into(), options).await.unwrap() {
            let headers = got.properties.headers().clone().unwrap_or_default();
            let text = |value: &AMQPValue| match value {
                AMQPValue::LongString(text) => text.to_string(),
                other => format!("{other:?}"),
            };
            dead.push(Dead {
                headers: headers
                    .inner()
                    .iter()
                    .map(|(name, value)| (name.to_string(), text(value)))
                    .collect(),
                message_id: got.properties.message_id().as_ref().map(ToString::to_string),
                body: got.data.clone(),
            });
        }
        dead
    }

    pub async fn stock(&self, sku: &str) -> Option<Stock> {
        self.stocks.load(sku).await.unwrap().map(|loaded| loaded.into_inner())
    }

    /// Removes the queues, the exchanges and the database.
    pub async fn end(self) {
        for queue in ["", ".dead", ".delayed"] {
            let queue = format!("{}{queue}", self.queue());
            self.outside.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        }
        self.flow.end().await;
    }
}

/// A message from the dead-letter queue.
#[derive(Debug)]
pub struct Dead {
    pub headers: BTreeMap<String, String>,
    pub message_id: Option<String>,
    pub body: Vec<u8>,
}

/// A running receiver, with its events.
pub struct Working {
    pub running: RunningReceiver,
    pub events: Heard<ReceiverEvent>,
}

impl Working {
    /// Waits until `count` messages were applied.
    pub async fn applied(&mut self, count: usize) {
        let mut applied = 0;
        let wanted = |event: &ReceiverEvent| {
            applied += usize::from(matches!(event, ReceiverEvent::Applied(_)));
            (applied >= count).then_some(())
        };
        self.events.wait(&format!("{count} messages to be applied"), wanted).await;
    }

    /// Waits for an event that `wanted` accepts.
    pub async fn wait(&mut self, what: &str, wanted: impl Fn(&ReceiverEvent) -> bool) -> ReceiverEvent {
        self.events.wait(what, |event| wanted(event).then(|| event.clone())).await
    }

    pub async fn stop(self) {
        tokio::time::timeout(LONG, self.running.stop()).await.expect("the receiver stops");
    }
}

/// The properties of a CloudEvent as the library sends it.
pub fn cloud_event(id: Uuid, message_type: &str, subject: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", &id.to_string()),
        ("cloudEvents:type", message_type),
        ("cloudEvents:source", "/shop/orders"),
        ("cloudEvents:subject", subject),
        ("cloudEvents:time", &mongodb::bson::DateTime::now().try_to_rfc3339_string().unwrap()),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    BasicProperties::default()
        .with_message_id(id.to_string().into())
        .with_type(message_type.into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_headers(headers)
}

/// The id of an event's message.
pub fn id_of(event: &ReceiverEvent) -> Option<Uuid> {
    match event {
        ReceiverEvent::Applied(message)
        | ReceiverEvent::Repeated(message)
        | ReceiverEvent::Rejected(message)
        | ReceiverEvent::Ignored(message)
        | ReceiverEvent::Returned(message)
        | ReceiverEvent::Taken(message)
        | ReceiverEvent::Retried { message, .. }
        | ReceiverEvent::Delayed { message, .. }
        | ReceiverEvent::Died { message, .. }
        | ReceiverEvent::Unavailable { message, .. } => message.id,
        _ => None,
    }
}

/// A filter that matches all aggregates.
pub fn all() -> Document {
    doc! {}
}
