//! A message as its function gets it.

use std::{collections::BTreeMap, fmt};

use mongodb::bson::{Bson, DateTime};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::{
    deliver::{handlers::without_values, json},
    encoding::{
        one_line::{Keep, one_line},
        payload,
    },
};

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
    /// The stored payload of a message that is delivered inside this process, which has no body.
    pub(super) payload: Option<Bson>,
}

/// The reason why a message cannot be decoded. The text shows no part of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(String);

impl ReceivedMessage {
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
        if let Some(payload) = &self.payload {
            return decode_payload(payload);
        }

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

/// Decodes a stored payload.
fn decode_payload<M: DeserializeOwned>(payload: &Bson) -> Result<M, Undecodable> {
    json::check_depth(payload).map_err(|error| Undecodable(error.to_string()))?;
    payload::decode(payload).map_err(|error| Undecodable(without_values(&error.to_string())))
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
