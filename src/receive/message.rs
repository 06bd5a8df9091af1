//! A received message, and how it is read from a delivery.
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

use std::{collections::BTreeMap, fmt};

use mongodb::bson::{Bson, DateTime};
use serde::de::DeserializeOwned;
use sha1::{Digest, Sha1};
use uuid::Uuid;

use crate::{
    amqp::Delivery,
    deliver::{
        cloudevents::{ATTRIBUTES, after},
        handlers::without_values,
    },
    encoding::{
        one_line::{Keep, one_line},
        payload,
    },
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

/// Maximum length of a content type in an error.
const LONGEST_QUOTED: usize = 80;

/// A message as it was received. Its `Debug` output doesn't show the body.
#[derive(Clone)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// The message's id, the same in each repeat. `None` if the sender gave no id; then no repeat can be recognised.
    pub id: Option<Uuid>,
    /// The name of the message's type.
    pub message_type: String,
    /// The origin of the event. For this library's messages it is `/{database}/{collection}`.
    pub source: Option<String>,
    /// The subject of the event. For this library's messages it is the document's `_id` as text.
    pub subject: Option<String>,
    /// The partition key of CloudEvents, which replaces source and subject as the [key](Self::key).
    pub partition_key: Option<String>,
    /// When the event happened, by the sender's clock.
    pub time: Option<DateTime>,
    /// The headers that are not read into the other fields: `traceparent` and the sender's own headers.
    pub headers: BTreeMap<String, String>,
    /// The exchange that the message was published to.
    pub exchange: String,
    /// The routing key that the message was published with.
    pub routing_key: String,
    /// Whether the broker may have delivered the message before.
    pub redelivered: bool,
    /// How many times the message has waited in the delay queue.
    pub delays: u32,
    pub(super) content_type: Option<String>,
    pub(super) body: Vec<u8>,
}

/// The reason why a message cannot be decoded. The text shows no part of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(String);

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
        }
    }

    /// The key of the message: the partition key, otherwise source and subject together. Messages with the same key are
    /// handled in order. `None` if the message has neither a partition key nor a subject.
    pub fn key(&self) -> Option<String> {
        if let Some(key) = &self.partition_key {
            return Some(key.clone());
        }
        let subject = self.subject.as_ref()?;
        let source = self.source.as_deref().unwrap_or_default();
        // A source is a URI reference, which has no line feed.
        Some(format!("{source}\n{subject}"))
    }

    /// Decodes the body in serde's human-readable form. If that fails, decodes it as MongoDB's extended JSON, in the
    /// human-readable form and then in the compact form of BSON serializers.
    ///
    /// # Errors
    /// [`Undecodable`], when the body is not JSON or doesn't fit the type.
    pub fn decode<M: DeserializeOwned>(&self) -> Result<M, Undecodable> {
        self.check_content_type()?;
        let error = match serde_json::from_slice(&self.body) {
            Ok(message) => return Ok(message),
            Err(error) => error,
        };

        if error.is_data()
            && let Ok(value) = serde_json::from_slice::<Bson>(&self.body)
            && let Ok(message) = payload::decode(&value)
        {
            return Ok(message);
        }
        Err(Undecodable(match error.classify() {
            serde_json::error::Category::Data => without_values(&error.to_string()),
            // Errors of other categories quote only a position and what the syntax expects at this position.
            _ => format!("the body cannot be read as JSON: {error}"),
        }))
    }

    fn check_content_type(&self) -> Result<(), Undecodable> {
        let given = self.content_type.as_deref().unwrap_or_default();
        let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence.starts_with("application/cloudevents") {
            return Err(Undecodable(
                "the message is a CloudEvent in structured mode; only binary mode (attributes as headers) is read"
                    .into(),
            ));
        }
        if essence.is_empty() || essence == "application/json" || essence.ends_with("+json") {
            return Ok(());
        }
        let start: String = given.chars().take(LONGEST_QUOTED).collect();
        let shown = one_line(&start, Keep::Nothing);
        Err(Undecodable(format!("the content type is `{shown}`, and only JSON can be read")))
    }
}

impl fmt::Debug for ReceivedMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedMessage")
            .field("id", &self.id)
            .field("message_type", &self.message_type)
            .field("source", &self.source)
            .field("subject", &self.subject)
            .field("time", &self.time)
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("redelivered", &self.redelivered)
            .field("delays", &self.delays)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
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
