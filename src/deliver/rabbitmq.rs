//! Publishes messages to a RabbitMQ exchange, with a confirm for each.
//!
//! # Flow
//!
//! The messages of a window are published as [CloudEvents](super::cloudevents), persistent and mandatory. The type of
//! each message is its routing key. Windows of concurrent callers are sent together. When all confirms have arrived,
//! the outcome of each message is derived from its own confirm.
//!
//! | answer of the broker | [`Outcome`] |
//! |---|---|
//! | the broker has the message in at least one queue | `Delivered` |
//! | the broker has no queue for the message | `Unroutable`, or `Delivered` for types in [`unroutable_ok`](RabbitMqSettings::unroutable_ok) |
//! | the broker refused the message, for example because a full queue rejects messages | `Transient` |
//! | the broker closed the channel because of the message, for example because the user has no permission to write to the routing key | `Transient`, with the broker's text |
//! | no broker can take the message: its type is over 255 bytes, its headers exceed a frame, or its body exceeds `max_message_bytes` | `Permanent`, and the message is not sent |
//! | the broker reports that the body exceeds the broker's own `max_message_size` | `Permanent` |
//! | the broker is unreachable or blocked, has no such exchange, forbids writing to the exchange, or did not answer | `Unavailable` |
//!
//! # Guarantees
//! - `Delivered` is answered only for messages that the broker confirmed and did not return. Such a message is on disk
//!   in every bound durable queue, and replicated in every bound quorum queue.
//! - Without a broker, the answer comes at once, and no attempt is counted.
//! - If the broker closes the channel because of a message, only that message fails. Other messages that were in flight
//!   may be published again.
//! - At the [`deadline`], answers that have arrived are returned.
//!
//! # Caveats
//! - If a confirm is lost, the message is published again, and the receiver sees the same `message_id` twice.
//! - If two queues are bound and one of them rejects a message, the broker refuses the message, although the other
//!   queue gets a copy with each attempt. Quick retries within one attempt don't publish such a message again.
//! - A message with a header named `CC` or `BCC` fails as `Permanent`, because RabbitMQ would treat the header as a
//!   list of routing keys.
//! - The AMQP client logs unroutable messages with their bodies; [`amqp`](crate::amqp) describes how to turn these log
//!   lines off.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use super::{
    Answer, AttributePrefix, Deliver, Envelope, Outcome, PayloadFormat, cloudevents, deadline,
    published::outcome, span,
};
use crate::{
    amqp::{
        AmqpSettings, AmqpSettingsError, ExchangeKind, ExchangeSpec, Publication, Published, Publisher,
        State, Topology, TopologyMode,
    },
    command::{COMMANDS_EXCHANGE, COMMANDS_QUEUE, sender::CommandSender},
};

/// The default exchange for messages.
pub const MESSAGES_EXCHANGE: &str = "outbox.messages";
/// The time for which a refusal is reused for the quick retries of the same attempt.
const SAME_ATTEMPT: Duration = Duration::from_secs(5);

/// The settings for publishing messages.
#[derive(Debug, Clone)]
pub struct RabbitMqSettings {
    /// The connection to the broker, with its timeouts and size limit.
    pub amqp: AmqpSettings,
    /// The exchange. Default: `outbox.messages`.
    pub exchange: String,
    /// Whether the exchange is declared (as a durable topic exchange), verified, or left alone. Receivers declare their
    /// own queues. Default: declared.
    pub topology: TopologyMode,
    /// The format of payloads. Default: plain JSON.
    pub payload: PayloadFormat,
    /// The prefix of CloudEvents attributes. Default: `cloudEvents:`.
    pub attribute_prefix: AttributePrefix,
    /// The exchange for commands. Used only by [`RabbitMq::start_with_hand_off`]. Default: `outbox.commands`.
    pub commands_exchange: String,
    /// The queue that dispatchers consume commands from. This queue is also declared and bound. Default:
    /// `outbox.process-document-messages`.
    pub commands_queue: String,
    /// Message types that don't need a queue. An unroutable message of such a type counts as delivered. Default: none.
    pub unroutable_ok: BTreeSet<String>,
}

impl RabbitMqSettings {
    /// Returns the default settings for a broker at `uri`, such as `amqp://user:password@host:5672/%2f`.
    ///
    /// # Errors
    /// An error if `uri` is not the URI of a broker. The error text quotes no part of it.
    pub fn new(uri: &str) -> Result<Self, AmqpSettingsError> {
        Ok(Self::over(AmqpSettings::new(uri)?))
    }

    /// Returns the default settings for a broker with this connection.
    #[must_use]
    pub fn over(amqp: AmqpSettings) -> Self {
        Self {
            amqp,
            exchange: MESSAGES_EXCHANGE.to_owned(),
            topology: TopologyMode::default(),
            payload: PayloadFormat::default(),
            attribute_prefix: AttributePrefix::default(),
            commands_exchange: COMMANDS_EXCHANGE.to_owned(),
            commands_queue: COMMANDS_QUEUE.to_owned(),
            unroutable_ok: BTreeSet::new(),
        }
    }

    fn topology(&self) -> Topology {
        let exchange = ExchangeSpec { name: self.exchange.clone(), kind: ExchangeKind::Topic };
        Topology { exchanges: vec![exchange], mode: self.topology, ..Topology::default() }
    }
}

/// Delivers to RabbitMQ. The [module's](self) table gives the meaning of each answer from the broker.
///
/// Clones share one connection, which is closed when the last clone is dropped or by [`close`](Self::close).
#[derive(Debug, Clone)]
pub struct RabbitMq {
    publisher: Publisher,
    exchange: String,
    payload: PayloadFormat,
    attribute_prefix: AttributePrefix,
    unroutable_ok: BTreeSet<String>,
    nacked: Nacked,
}

/// Recently refused messages, each with the number of attempts that were counted before the refusal. The broker may
/// have refused a message for one queue and put it into the others, so a message is not published again before the next
/// attempt.
#[derive(Debug, Clone, Default)]
struct Nacked(Arc<Mutex<HashMap<(Uuid, i64), Instant>>>);

impl Nacked {
    fn note(&self, envelope: &Envelope) {
        let now = Instant::now();
        let mut nacked = self.0.lock();
        nacked.retain(|_, at| now.duration_since(*at) < SAME_ATTEMPT);
        nacked.insert((envelope.id, envelope.attempts), now);
    }

    fn has(&self, envelope: &Envelope) -> bool {
        let nacked = self.0.lock();
        match nacked.get(&(envelope.id, envelope.attempts)) {
            Some(at) => at.elapsed() < SAME_ATTEMPT,
            None => false,
        }
    }
}

impl RabbitMq {
    /// Starts connecting in the background and returns at once.
    ///
    /// # Panics
    /// Panics outside a Tokio runtime.
    pub fn start(settings: RabbitMqSettings) -> Self {
        let topology = settings.topology();
        Self::start_on(settings, topology)
    }

    /// Like [`start`](Self::start), but also returns a sender of commands over the same connection. Give the sender to
    /// [`hand_off`](crate::dispatch::InlineBuilder::hand_off), so that messages whose delivery failed are handed over
    /// to a dispatcher at once.
    ///
    /// ```no_run
    /// # use document_outbox::{InlineDispatcher, deliver::{RabbitMq, RabbitMqSettings}};
    /// # async fn run(client: mongodb::Client, uri: &str) -> Result<(), Box<dyn std::error::Error>> {
    /// let (rabbitmq, commands) = RabbitMq::start_with_hand_off(RabbitMqSettings::new(uri)?);
    /// let inline = InlineDispatcher::builder(&client).hand_off(commands).deliver_to(rabbitmq);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The exchange and the queue for commands are declared or verified like the exchange for messages. While they are
    /// missing or refused, messages are not published either.
    ///
    /// # Panics
    /// Panics outside a Tokio runtime.
    pub fn start_with_hand_off(settings: RabbitMqSettings) -> (Self, CommandSender) {
        let exchange = settings.commands_exchange.clone();
        let commands = CommandSender::topology(&exchange, &settings.commands_queue, settings.topology);
        let mut topology = settings.topology();
        topology.exchanges.extend(commands.exchanges);
        topology.queues.extend(commands.queues);

        let rabbitmq = Self::start_on(settings, topology);
        let commands = CommandSender::new(rabbitmq.publisher.clone(), exchange);
        (rabbitmq, commands)
    }

    fn start_on(settings: RabbitMqSettings, topology: Topology) -> Self {
        Self {
            publisher: Publisher::start(settings.amqp, topology),
            exchange: settings.exchange,
            payload: settings.payload,
            attribute_prefix: settings.attribute_prefix,
            unroutable_ok: settings.unroutable_ok,
            nacked: Nacked::default(),
        }
    }

    /// Returns a receiver of the connection state and of every later change.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.publisher.subscribe()
    }

    /// Publishes the messages that are already queued, then closes the connection for all clones. Completes within
    /// seven seconds, whatever the broker does.
    pub async fn close(&self) {
        self.publisher.close().await;
    }

    fn publication(&self, envelope: &Envelope) -> Result<Publication, Outcome> {
        if self.nacked.has(envelope) {
            return Err(self.judge(envelope, Published::Nacked));
        }
        cloudevents::publication(envelope, &self.exchange, self.payload, self.attribute_prefix)
            .map_err(|error| Outcome::Permanent(error.to_string()))
    }

    fn judge(&self, envelope: &Envelope, published: Published) -> Outcome {
        let message_type = &envelope.message_type;
        if matches!(published, Published::Unroutable { .. }) && self.unroutable_ok.contains(message_type) {
            return Outcome::Delivered;
        }
        outcome(published, message_type, &self.exchange)
    }
}

#[async_trait]
impl Deliver for RabbitMq {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let mut publications = Vec::with_capacity(window.len());
        let mut unpublishable: Vec<Option<Outcome>> = Vec::with_capacity(window.len());
        for envelope in window {
            let span = span(envelope);
            span.record("messaging.system", "rabbitmq");
            let destination = format_args!("{}:{}", self.exchange, envelope.message_type);
            span.record("messaging.destination.name", tracing::field::display(destination));
            span.record("messaging.rabbitmq.destination.routing_key", envelope.message_type.as_str());
            match self.publication(envelope) {
                Ok(publication) => {
                    publications.push(publication);
                    unpublishable.push(None);
                }
                Err(outcome) => unpublishable.push(Some(outcome)),
            }
        }
        // A broker that doesn't answer in time counts as unavailable, and not as a failed attempt.
        let published = self.publisher.publish_until(publications, deadline()).await;
        let mut published = published.into_iter();
        let mut next = |envelope| match published.next() {
            Some(published) => {
                if published == Published::Nacked {
                    self.nacked.note(envelope);
                }
                self.judge(envelope, published)
            }
            None => Outcome::Unavailable("no confirm arrived before the claim expired".to_owned()),
        };
        let outcomes = window.iter().zip(unpublishable);
        outcomes.map(|(envelope, outcome)| outcome.unwrap_or_else(|| next(envelope)).into()).collect()
    }

    fn is_available(&self) -> bool {
        self.publisher.is_ready()
    }

    async fn available(&self) {
        self.publisher.ready().await;
    }
}
