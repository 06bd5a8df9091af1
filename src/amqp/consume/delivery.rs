//! One message from a queue, and the right to settle it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lapin::{
    Acker, BasicProperties,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// One message from the queue, to be settled by [`ack`](Self::ack), [`reject`](Self::reject) or
/// [`requeue`](Self::requeue). If a delivery is dropped, its message is requeued.
///
/// Settling a delivery returns whether the answer was sent. If the delivery's connection is gone, the result is false,
/// and the message is delivered again.
pub struct Delivery {
    /// The body.
    pub body: Vec<u8>,
    /// The AMQP property `type`.
    pub message_type: Option<String>,
    /// The AMQP property `message_id`.
    pub message_id: Option<String>,
    /// Number of earlier deliveries of this message, as counted by a quorum queue; 0 for other queues.
    pub delivery_count: u32,
    /// The MIME type of the body.
    pub content_type: Option<String>,
    /// The message headers with string, number or boolean values, as text.
    pub headers: Vec<(String, String)>,
    /// The publisher's timestamp in seconds since the Unix epoch, if there is one.
    pub timestamp: Option<u64>,
    /// The exchange that the message was published to.
    pub exchange: String,
    /// The routing key that the message was published with.
    pub routing_key: String,
    /// Whether the message may have been delivered before.
    pub redelivered: bool,
    held: Held,
}

/// The right to settle a delivery once, on the connection that the delivery came from.
pub(super) struct Held {
    pub(super) acker: Option<Acker>,
    pub(super) gone: CancellationToken,
    pub(super) count: Arc<AtomicUsize>,
    pub(super) put_back: mpsc::UnboundedSender<Acker>,
}

impl Delivery {
    pub(super) fn new(delivery: lapin::message::Delivery, held: Held) -> Self {
        let properties = delivery.properties;
        let text = |property: &Option<lapin::types::ShortString>| property.as_ref().map(ToString::to_string);
        let headers = properties.headers().iter().flat_map(FieldTable::inner);
        Self {
            message_type: text(properties.kind()),
            message_id: text(properties.message_id()),
            delivery_count: delivery_count(&properties),
            content_type: text(properties.content_type()),
            timestamp: *properties.timestamp(),
            headers: headers.filter_map(|(name, value)| Some((name.to_string(), scalar(value)?))).collect(),
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            redelivered: delivery.redelivered,
            body: delivery.data,
            held,
        }
    }

    /// Whether the delivery's connection is gone, so that settling would have no effect.
    pub(crate) fn is_stale(&self) -> bool {
        self.held.is_stale()
    }

    /// Acknowledges the message, so that the broker removes it. Returns false if the answer could not be sent.
    pub async fn ack(self) -> bool {
        let ack = |acker: Acker| async move { acker.ack(BasicAckOptions::default()).await };
        self.held.settle(ack).await
    }

    /// Rejects the message for good, so that the broker drops or dead-letters it. Returns false if the answer could not
    /// be sent.
    pub async fn reject(self) -> bool {
        let reject = |acker: Acker| async move { acker.reject(BasicRejectOptions { requeue: false }).await };
        self.held.settle(reject).await
    }

    /// Requeues the message, so that the broker delivers it again at once. Returns false if the answer could not be
    /// sent.
    ///
    /// Don't use this method for retries: the message is redelivered without a pause, and newer brokers don't count a
    /// requeue towards the delivery limit.
    pub async fn requeue(self) -> bool {
        self.held.settle(requeue).await
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message_id", &self.message_id)
            .field("message_type", &self.message_type)
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("redelivered", &self.redelivered)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl Held {
    fn is_stale(&self) -> bool {
        self.gone.is_cancelled() || self.acker.as_ref().is_none_or(|acker| !acker.usable())
    }

    async fn settle<F>(mut self, settle: impl FnOnce(Acker) -> F) -> bool
    where
        F: Future<Output = lapin::Result<bool>>,
    {
        let Some(acker) = self.acker.take() else {
            return false;
        };
        tokio::select! {
            biased;
            () = self.gone.cancelled() => false,
            told = settle(acker) => told.unwrap_or(false),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(acker) = self.acker.take().filter(|_| !self.gone.is_cancelled()) {
            let _ = self.put_back.send(acker);
        }
    }
}

fn delivery_count(properties: &BasicProperties) -> u32 {
    let count = properties.headers().as_ref().and_then(|table| table.inner().get("x-delivery-count"));
    let count = match count {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).ok(),
        Some(AMQPValue::LongInt(count)) => u32::try_from(*count).ok(),
        Some(AMQPValue::LongUInt(count)) => Some(*count),
        Some(AMQPValue::ShortShortUInt(count)) => Some(u32::from(*count)),
        Some(AMQPValue::ShortUInt(count)) => Some(u32::from(*count)),
        _ => None,
    };
    count.unwrap_or(0)
}

/// Requeues a delivery.
pub(super) async fn requeue(acker: Acker) -> lapin::Result<bool> {
    acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await
}

/// The text of a string, a number or a boolean.
fn scalar(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::Boolean(value) => Some(value.to_string()),
        AMQPValue::ShortShortInt(number) => Some(number.to_string()),
        AMQPValue::ShortShortUInt(number) => Some(number.to_string()),
        AMQPValue::ShortInt(number) => Some(number.to_string()),
        AMQPValue::ShortUInt(number) => Some(number.to_string()),
        AMQPValue::LongInt(number) => Some(number.to_string()),
        AMQPValue::LongUInt(number) => Some(number.to_string()),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        AMQPValue::Float(number) => Some(number.to_string()),
        AMQPValue::Double(number) => Some(number.to_string()),
        _ => None,
    }
}
