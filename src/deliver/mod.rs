//! Destinations of messages: one trait, and the implementations that come with the library.
//!
//! - [`RabbitMq`] publishes to an exchange, as CloudEvents, and waits for the broker's confirm.
//! - [`Handlers`] calls functions of this process, by message type.
//! - [`Router`] sends some types to one and the rest to the other.
//!
//! For your own destination (an HTTP webhook, another broker) implement [`Deliver`] and run the
//! [`conformance`] suite on it.

#[cfg(feature = "rabbitmq")]
pub mod cloudevents;
pub mod conformance;
pub mod handlers;
pub mod json;
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
    handlers::{HandlerError, HandlerKey, Handlers, HandlersBuilder, HandlersError},
    json::PayloadFormat,
    router::Router,
};
use tokio::time::Instant;
use tracing::{Instrument, Span};

use crate::stored::{document_ref::DocumentRef, entry::Entry};

/// The `via` of a message that is delivered by the application's own handlers.
pub const HANDLERS: &str = "handlers";

/// One message in delivery, with its origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The document whose outbox it is in.
    pub document: DocumentRef,
    /// The message's id: stable over all tries, so that receivers can recognise a repeat, as
    /// an [`Inbox`](crate::Inbox) does.
    pub id: Uuid,
    /// The message's stable name.
    pub message_type: String,
    /// The message's content.
    pub payload: Bson,
    /// Headers that travel along.
    pub headers: BTreeMap<String, String>,
    /// The deliverer; absent means the broker.
    pub via: Option<String>,
    /// When it was sent (server time).
    pub created_at: Option<DateTime>,
    /// Failed attempts before this one.
    pub attempts: i64,
    /// Keys of the handlers that have had it already.
    pub delivered_to: Vec<String>,
}

impl Envelope {
    /// The message of an entry.
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

    /// Decodes the payload, in the human-readable form in which messages are stored, or otherwise in the
    /// compact one of other BSON serializers: a `uuid::Uuid` reads text, binary of subtype 4, and 16 bytes of
    /// subtype 0.
    ///
    /// # Errors
    /// When it doesn't fit the type. The text may quote a value: keep it out of an [`Outcome`]'s text, which is stored.
    pub fn decode<M: serde::de::DeserializeOwned>(&self) -> Result<M, crate::CodecError> {
        crate::encoding::payload::decode(&self.payload)
    }
}

tokio::task_local! {
    static DEADLINE: Instant;
}

/// The time by which the calling delivery must have an answer, shortly before its claim ends. `None` outside
/// a delivery. An implementation that waits for others stops waiting then, and reports the answers that it
/// has.
pub fn deadline() -> Option<Instant> {
    DEADLINE.try_get().ok()
}

/// Runs a part of a delivery that has this deadline.
pub(crate) async fn within<T>(deadline: Option<Instant>, delivery: impl Future<Output = T>) -> T {
    match deadline {
        Some(deadline) => DEADLINE.scope(deadline, delivery).await,
        None => delivery.await,
    }
}

/// The spans of the messages that are being delivered, by their ids.
pub(crate) type Spans = Arc<[(Uuid, Span)]>;

tokio::task_local! {
    static SPANS: Spans;
}

/// The span of a message's delivery. A window's messages have one each: work for one message alone belongs
/// inside. An implementation may [record](Span::record) `messaging.system`, `messaging.destination.name` and
/// `messaging.rabbitmq.destination.routing_key` on it.
pub fn span(envelope: &Envelope) -> Span {
    let known = |spans: &Spans| {
        spans.iter().find(|(id, _)| *id == envelope.id).map_or_else(Span::current, |(_, span)| span.clone())
    };
    SPANS.try_with(known).unwrap_or_else(|_| Span::current())
}

/// Runs a delivery whose messages have these spans; inside the span if there is only one.
pub(crate) async fn in_spans<T>(spans: Spans, delivery: impl Future<Output = T>) -> T {
    let span = match &*spans {
        [(_, span)] => span.clone(),
        _ => Span::current(),
    };
    SPANS.scope(spans, delivery).instrument(span).await
}

/// The outcome of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It arrived, and that is certain.
    Delivered,
    /// It failed, and may succeed later: an attempt is counted. The text gives the reason, without payload or
    /// secret.
    Transient(String),
    /// It reached the broker, which has no queue for it: treated as `Transient`, and counted separately. The
    /// text names the cause.
    Unroutable(String),
    /// It can never succeed: the message is dead at once. The text gives the reason, without payload or
    /// secret.
    Permanent(String),
    /// The destination is unavailable (no connection, blocked, not ready): no attempt is counted.
    Unavailable(String),
}

/// The answer for one message of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What became of it.
    pub outcome: Outcome,
    /// Keys of all handlers that have had it by now, if one type has several; stored in the entry.
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
/// - One answer per message of the window, in the window's order.
/// - [`Outcome::Delivered`] only when the receiver has confirmed it. In doubt, answer `Unavailable` (no
///   message can be tried) or `Transient`: a repeat is allowed, a loss is not.
/// - Errors of one message don't spread to the others of the window.
/// - It does not panic and does not wait forever. A call that outlives the claim is dropped and counts as a
///   failed attempt, unless [`is_available`](Deliver::is_available) is false by then.
///
/// [`conformance::check`] tests these.
///
/// # Assumptions it may make
/// A window holds at most one message of an ordered document, so its messages can be delivered at the same time.
#[async_trait]
pub trait Deliver: Send + Sync + 'static {
    /// Delivers a window of messages and answers for each.
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer>;

    /// The `via` that a message of this type gets when it is saved; `None` for the broker.
    fn via(&self, message_type: &str) -> Option<&str> {
        let _ = message_type;
        None
    }

    /// Whether messages with this `via` can be delivered from here. Others are left alone.
    fn serves(&self, via: Option<&str>) -> bool {
        via.is_none()
    }

    /// False while every try would end in [`Outcome::Unavailable`]: then no message is claimed.
    fn is_available(&self) -> bool {
        true
    }

    /// Resolves once [`is_available`](Deliver::is_available) is, or may be, true.
    async fn available(&self) {}
}
