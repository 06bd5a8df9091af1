//! Reads a message from a delivery of RabbitMQ.
//!
//! | attribute of the message | read from the first of these that is present |
//! |---|---|
//! | type | the CloudEvents attribute `type`, the property `type`, the header `type`, or the routing key |
//! | id | the CloudEvents attribute `id`, or the property `message_id` |
//! | source, subject, partition key | the CloudEvents attributes `source`, `subject`, `partitionkey` |
//! | time | the CloudEvents attribute `time`, or the property `timestamp` |
//!
//! CloudEvents attributes are headers with the prefix `cloudEvents:` or `cloudEvents_`. An id that is a UUID is kept. Any
//! other id is combined with its source into a UUID of version 5, which is the same each time.

use std::collections::BTreeMap;

use mongodb::bson::DateTime;
use sha1::{Digest, Sha1};
use uuid::Uuid;

use crate::{
    amqp::Delivery,
    deliver::cloudevents::{ATTRIBUTES, after},
    receive::message::ReceivedMessage,
};

/// The headers that copies have in the delay queue and in the dead-letter queue. Functions don't see these headers.
pub(super) const DELAYS: &str = "outbox-delays";
pub(super) const ROUTED_BY: &str = "outbox-routing-key";
pub(super) const SENT_TO: &str = "outbox-exchange";
pub(super) const DEAD_REASON: &str = "outbox-dead-reason";
pub(super) const DEAD_ERROR: &str = "outbox-dead-error";
pub(super) const DEAD_AT: &str = "outbox-dead-at";
pub(super) const DEAD_QUEUE: &str = "outbox-dead-queue";
pub(super) const OWN: [&str; 7] = [DELAYS, ROUTED_BY, SENT_TO, DEAD_REASON, DEAD_ERROR, DEAD_AT, DEAD_QUEUE];

impl ReceivedMessage {
    /// Reads a delivery, and moves the body out of it.
    pub(super) fn read(delivery: &mut Delivery) -> Self {
        let mut attributes = BTreeMap::new();
        let mut own = BTreeMap::new();
        let mut headers = BTreeMap::new();
        for (name, value) in &delivery.headers {
            if let Some(attribute) = attribute(name) {
                attributes.insert(attribute, value.clone());
            } else if let Some(name) = OWN.iter().find(|own| *own == name) {
                own.insert(*name, value.clone());
            } else {
                headers.insert(name.clone(), value.clone());
            }
        }

        let routing_key = own.remove(ROUTED_BY).unwrap_or_else(|| delivery.routing_key.clone());
        let source = non_empty(attributes.remove("source"));
        let given_type =
            non_empty(attributes.remove("type")).or_else(|| non_empty(delivery.message_type.clone()));
        let given_type = given_type.or_else(|| non_empty(headers.get("type").cloned()));
        let given_id = non_empty(attributes.remove("id")).or_else(|| non_empty(delivery.message_id.clone()));
        // A dead message that an operator has put into the queue again starts with no delays.
        let was_dead = own.contains_key(DEAD_REASON);
        let delays = own.remove(DELAYS).filter(|_| !was_dead).and_then(|count| count.parse().ok());
        let time = attributes.remove("time").and_then(|time| DateTime::parse_rfc3339_str(time).ok());

        Self {
            id: given_id.map(|id| message_id(&id, source.as_deref())),
            message_type: given_type.unwrap_or_else(|| routing_key.clone()),
            source,
            subject: non_empty(attributes.remove("subject")),
            partition_key: non_empty(attributes.remove("partitionkey")),
            time: time.or_else(|| delivery.timestamp.and_then(from_seconds)),
            headers,
            exchange: own.remove(SENT_TO).unwrap_or_else(|| delivery.exchange.clone()),
            routing_key,
            redelivered: delivery.redelivered,
            delays: delays.unwrap_or(0),
            content_type: delivery.content_type.clone(),
            body: std::mem::take(&mut delivery.body),
            payload: None,
        }
    }
}

/// The name of the CloudEvents attribute that a header has, if it has one.
fn attribute(header: &str) -> Option<String> {
    ATTRIBUTES.iter().find_map(|prefix| after(prefix, header)).map(str::to_ascii_lowercase)
}

/// Keeps an id that is a UUID. Any other id becomes the UUID of version 5 (RFC 9562) of the source and the id, because two
/// senders may use the same id.
fn message_id(id: &str, source: Option<&str>) -> Uuid {
    if let Ok(id) = Uuid::try_parse(id) {
        return id;
    }

    let mut hash = Sha1::new();
    hash.update(Uuid::NAMESPACE_URL);
    hash.update(source.unwrap_or_default());
    hash.update("\n");
    hash.update(id);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_sha1_bytes(bytes).into_uuid()
}

fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn from_seconds(seconds: u64) -> Option<DateTime> {
    let millis = i64::try_from(seconds).ok()?.checked_mul(1000)?;
    Some(DateTime::from_millis(millis))
}
