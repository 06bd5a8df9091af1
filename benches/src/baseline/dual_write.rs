//! Dual write: replaces the document with write concern majority, then publishes and waits for the confirm. This is
//! fast but unsafe, because a crash between the two steps loses the message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::FieldTable,
};
use mongodb::{Collection, bson::doc};

use super::concern::majority;
use crate::{
    bed::Bed,
    order::{Changed, Order},
    result::Result,
};

/// Number of channels.
const CHANNELS: usize = 4;

/// Publishes with confirms over a few channels of one connection. All callers share the channels.
#[derive(Clone)]
pub(crate) struct Confirmed {
    channels: Arc<[Channel]>,
    next: Arc<AtomicUsize>,
    exchange: String,
    _connection: Arc<lapin::Connection>,
}

impl Confirmed {
    pub(crate) async fn connect(bed: &Bed) -> Result<Self> {
        let connection = bed.connect().await?;
        let mut channels = Vec::new();
        for _ in 0..CHANNELS {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            channels.push(channel);
        }
        let (channels, next) = (channels.into(), Arc::default());
        Ok(Self { channels, next, exchange: bed.exchange(), _connection: Arc::new(connection) })
    }

    pub(crate) async fn publish(&self, message: &Changed) -> Result<()> {
        self.publish_body(&uuid::Uuid::now_v7().to_string(), &serde_json::to_vec(message)?).await
    }

    pub(crate) async fn publish_body(&self, id: &str, body: &[u8]) -> Result<()> {
        self.send(id, body, BasicPublishOptions::default()).await
    }

    /// Publishes a message, and fails if it is unroutable.
    pub(crate) async fn publish_mandatory(&self, id: &str, body: &[u8]) -> Result<()> {
        self.send(id, body, BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() }).await
    }

    /// Publishes a message with headers, and with the properties of this library's `CloudEvents`.
    pub(crate) async fn publish_event(&self, id: &str, body: &[u8], headers: FieldTable) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let properties = properties(id)
            .with_type("order.changed".into())
            .with_timestamp(now.as_secs())
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        self.send_with(properties, body, options).await
    }

    async fn send(&self, id: &str, body: &[u8], options: BasicPublishOptions) -> Result<()> {
        self.send_with(properties(id), body, options).await
    }

    async fn send_with(
        &self,
        properties: BasicProperties,
        body: &[u8],
        options: BasicPublishOptions,
    ) -> Result<()> {
        let channel = &self.channels[self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len()];
        let (exchange, key) = (self.exchange.as_str().into(), "order.changed".into());
        match channel.basic_publish(exchange, key, options, body, properties).await?.await? {
            Confirmation::Ack(None) => Ok(()),
            other => Err(format!("not confirmed: {other:?}").into()),
        }
    }
}

fn properties(id: &str) -> BasicProperties {
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_message_id(id.into())
}

#[derive(Clone)]
pub(crate) struct DualWrite {
    orders: Collection<Order>,
    publisher: Confirmed,
}

impl DualWrite {
    pub(crate) fn new(orders: Collection<Order>, publisher: Confirmed) -> Self {
        Self { orders, publisher }
    }

    /// Saves the order, and publishes its messages in order. Each message is published after the confirm of
    /// the previous one.
    pub(crate) async fn save(&self, order: &mut Order, at: i64, messages: usize) -> Result<()> {
        let message = order.change(at);
        self.orders.replace_one(doc! { "_id": &order.id }, &*order).write_concern(majority()).await?;
        for _ in 0..messages {
            self.publisher.publish(&message).await?;
        }
        Ok(())
    }
}
