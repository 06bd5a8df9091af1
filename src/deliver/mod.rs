//! Destinations of messages: the trait [`Deliver`], and the implementations that come with the library.
//!
//! - [`RabbitMq`] publishes to an exchange, as CloudEvents, and waits for the broker's confirm.
//! - [`Handlers`] calls functions of this process, by message type, and gives messages to aggregates.
//! - [`Router`] sends some message types to one destination and the rest to another.
//!
//! For your own destination (an HTTP webhook, another broker) implement [`Deliver`], and run the [`conformance`] suite
//! on your implementation.

#[cfg(feature = "rabbitmq")]
pub mod cloudevents;
pub mod conformance;
pub(crate) mod handler_error;
pub mod handlers;
pub mod json;
pub(crate) mod late;
#[cfg(feature = "rabbitmq")]
pub(crate) mod published;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod router;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use mongodb::bson::{Bson, DateTime};
use uuid::Uuid;

#[cfg(feature = "rabbitmq")]
pub use self::{
    cloudevents::AttributePrefix,
    rabbitmq::{MESSAGES_EXCHANGE, RabbitMq, RabbitMqSettings},
};
pub use self::{
    handler_error::HandlerError,
    handlers::{HandlerKey, Handlers, HandlersBuilder, HandlersError, Unhandled},
    json::PayloadFormat,
    router::Router,
};
use tokio::time::Instant;
use tracing::{Instrument, Span};

use crate::stored::{document_ref::DocumentRef, entry::Entry};

/// The `via` of a message that is delivered by the application's own handlers.
pub const HANDLERS: &str = "handlers";

/// A message in delivery, with its origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The document whose outbox contains the message.
    pub document: DocumentRef,
    /// The message's id, which stays the same over all attempts, so that receivers can recognise repeats, as an
    /// [`Inbox`](crate::Inbox) does.
    pub id: Uuid,
    /// The message's stable name.
    pub message_type: String,
    /// The message's content.
    pub payload: Bson,
    /// The headers that are sent with the message.
    pub headers: BTreeMap<String, String>,
    /// The name of the deliverer. `None` means the broker.
    pub via: Option<String>,
    /// The server time at which the message was sent.
    pub created_at: Option<DateTime>,
    /// Number of failed attempts before this one.
    pub attempts: i64,
    /// The keys of the handlers that have already received the message.
    pub delivered_to: Vec<String>,
}

impl Envelope {
    /// Creates the envelope of an entry's message.
    pub fn of(document: &DocumentRef, entry: &Entry) -> Self {
        Self {
            document: document.clone(),
            id: Uuid::from_bytes(entry.id.bytes()),
            message_type: entry.message_type.clone(),
            payload: entry.payload.clone(),
            headers: entry.headers.clone(),
            via: entry.via.clone(),
            created_at: entry.created_at,
            attempts: entry.attempts,
            delivered_to: entry.delivered_to.clone(),
        }
    }

    /// Decodes the payload. Accepts the human-readable form in which messages are stored, and also the compact form
    /// that other BSON serializers write. For example, a `uuid::Uuid` is read from text, from binary of subtype 4, and
    /// from 16 bytes of subtype 0.
    ///
    /// # Errors
    /// An error if the payload doesn't fit the type. The error text may quote a value, so don't copy it into the text
    /// of an [`Outcome`], which is stored.
    pub fn decode<M: serde::de::DeserializeOwned>(&self) -> Result<M, crate::CodecError> {
        crate::encoding::payload::decode(&self.payload)
    }
}

tokio::task_local! {
    static DEADLINE: Instant;
}

/// Returns the time by which the current delivery must answer, shortly before its claim ends. `None` outside a
/// delivery. An implementation that waits for answers should stop waiting at this time and return the answers that it
/// has.
pub fn deadline() -> Option<Instant> {
    DEADLINE.try_get().ok()
}

/// Runs a part of a delivery with this deadline.
pub(crate) async fn within<T>(deadline: Option<Instant>, delivery: impl Future<Output = T>) -> T {
    match deadline {
        Some(deadline) => DEADLINE.scope(deadline, delivery).await,
        None => delivery.await,
    }
}

/// The tracing spans of the messages that are being delivered, with the message ids.
pub(crate) type Spans = Arc<[(Uuid, Span)]>;

tokio::task_local! {
    static SPANS: Spans;
}

/// Returns the tracing span of a message's delivery. Each message of a window has its own span; do the work for a
/// single message inside its span. An implementation may [record](Span::record) `messaging.system`,
/// `messaging.destination.name` and `messaging.rabbitmq.destination.routing_key` on that span.
pub fn span(envelope: &Envelope) -> Span {
    let known = |spans: &Spans| {
        spans.iter().find(|(id, _)| *id == envelope.id).map_or_else(Span::current, |(_, span)| span.clone())
    };
    SPANS.try_with(known).unwrap_or_else(|_| Span::current())
}

/// Runs a delivery whose messages have these spans. If there is only one span, the delivery runs inside it.
pub(crate) async fn in_spans<T>(spans: Spans, delivery: impl Future<Output = T>) -> T {
    let span = match &*spans {
        [(_, span)] => span.clone(),
        _ => Span::current(),
    };
    SPANS.scope(spans, delivery).instrument(span).await
}

/// The outcome of the delivery of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The message has certainly arrived.
    Delivered,
    /// The delivery failed and may succeed later. An attempt is counted. The text gives the reason and must not contain
    /// payload or secrets.
    Transient(String),
    /// The message reached the broker, but the broker has no queue for it. Treated like `Transient`, and counted
    /// separately. The text gives the cause.
    Unroutable(String),
    /// The delivery can never succeed, so the message is dead at once. The text gives the reason and must not contain
    /// payload or secrets.
    Permanent(String),
    /// The destination is unavailable (no connection, blocked, not ready). No attempt is counted.
    Unavailable(String),
}

/// The answer for one message of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The outcome.
    pub outcome: Outcome,
    /// The keys of all handlers that have received the message so far, if a type can have several handlers. Stored in
    /// the entry.
    pub delivered_to: Vec<String>,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, delivered_to: Vec::new() }
    }
}

/// Delivers messages.
///
/// # Guarantees asked of an implementation
/// - A deliverer returns one answer per message of the window, in the window's order.
/// - A deliverer answers [`Outcome::Delivered`] only if the receiver has confirmed the message. In doubt the deliverer
///   answers `Unavailable` (if no message can be tried) or `Transient`, because a repeat is allowed but a loss is not.
/// - An error in one message doesn't affect the other messages of the window.
/// - A deliverer does not panic and does not wait forever. A call that outlives the claim is dropped and counts as a
///   failed attempt, unless [`is_available`](Deliver::is_available) is false by then.
///
/// [`conformance::check`] tests these guarantees.
///
/// # Assumptions that an implementation may make
/// A window contains at most one message of an ordered document, so the messages of a window can be delivered
/// concurrently.
#[async_trait]
pub trait Deliver: Send + Sync + 'static {
    /// Delivers a window of messages and returns an answer for each.
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer>;

    /// Returns the `via` that is stored with messages of this type when they are saved. `None` means the broker.
    fn via(&self, message_type: &str) -> Option<&str> {
        let _ = message_type;
        None
    }

    /// Whether this deliverer can deliver messages with this `via`. Messages with another `via` are skipped.
    fn serves(&self, via: Option<&str>) -> bool {
        via.is_none()
    }

    /// Whether the destination is available. While this is false, no messages are claimed, because every try would end
    /// in [`Outcome::Unavailable`].
    fn is_available(&self) -> bool {
        true
    }

    /// Completes once [`is_available`](Deliver::is_available) is true or may be true.
    async fn available(&self) {}
}
