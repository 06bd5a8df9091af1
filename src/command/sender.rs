//! Sends `ProcessDocumentMessages` commands, with confirms.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    amqp::{
        ExchangeKind, ExchangeSpec, Publication, Published, Publisher, QueueSpec, Topology, TopologyMode,
    },
    command::{
        COMMAND_LIFETIME, COMMAND_TYPE, COMMANDS_DELIVERY_LIMIT, COMMANDS_ROUTING_KEY, MAX_COMMAND_BYTES,
        ProcessDocumentMessages,
    },
    stored::ids::new_random,
};

/// Sends commands to an exchange. Clones share the publisher's connection.
///
/// # Guarantees
/// - A command counts as sent only if the broker confirmed that a queue has it.
/// - The sender never waits for a connection. Without a broker, every command fails at once with
///   [`SendFailure::Unavailable`].
///
/// # Caveats
/// A failed command may still have arrived. That is harmless, because commands are only hints.
#[derive(Debug, Clone)]
pub struct CommandSender {
    publisher: Publisher,
    exchange: String,
}

/// Why a command was not sent, or was possibly not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendFailure {
    /// No queue is bound to the exchange for commands.
    #[error(
        "no queue is bound to exchange `{exchange}` for commands ({text}): start a dispatcher, or set the topology to \
         `declare`"
    )]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The broker's text.
        text: String,
    },
    /// The broker refused the command, for example because a full queue rejects messages.
    #[error("RabbitMQ refused the command: its queue is full, or it cannot be written to")]
    Nacked,
    /// The command can never be sent.
    #[error("the command cannot be sent: {0}")]
    Refused(String),
    /// The broker is unavailable or did not answer.
    #[error("{0}")]
    Unavailable(String),
}

impl SendFailure {
    /// Whether sending the same command later may succeed.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

impl CommandSender {
    /// Creates a sender that sends through `publisher` to `exchange`, usually
    /// [`COMMANDS_EXCHANGE`](crate::command::COMMANDS_EXCHANGE). The publisher must have been started with the
    /// [`topology`](Self::topology), or the topology must exist on the broker.
    pub fn new(publisher: Publisher, exchange: impl Into<String>) -> Self {
        Self { publisher, exchange: exchange.into() }
    }

    /// Returns the topology for commands: a direct, durable exchange, and the queue that dispatchers consume. The queue
    /// is bound to the exchange, and is a quorum queue with a delivery limit.
    pub fn topology(exchange: impl Into<String>, queue: impl Into<String>, mode: TopologyMode) -> Topology {
        let exchange = exchange.into();
        let queue = QueueSpec {
            name: queue.into(),
            quorum: true,
            delivery_limit: Some(COMMANDS_DELIVERY_LIMIT),
            bind: vec![(exchange.clone(), COMMANDS_ROUTING_KEY.to_owned())],
            ..QueueSpec::default()
        };
        let exchange = ExchangeSpec { name: exchange, kind: ExchangeKind::Direct };
        Topology { exchanges: vec![exchange], queues: vec![queue], mode }
    }

    /// Sends commands as one window and returns an answer for each, in order.
    pub async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        let bodies: Vec<_> = commands.iter().map(ProcessDocumentMessages::to_json).collect();
        let too_long: Vec<_> = bodies.iter().map(|body| too_long(body)).collect();
        let sound = bodies.into_iter().zip(&too_long).filter(|(_, flaw)| flaw.is_none());
        let publications = sound.map(|(body, _)| self.publication(body)).collect();
        let mut published = self.publisher.publish(publications).await.into_iter();
        let mut next = || match published.next() {
            Some(published) => self.judge(published),
            None => Err(SendFailure::Unavailable("the publisher gave no answer".to_owned())),
        };
        let answers = too_long.into_iter().map(|flaw| flaw.map_or_else(&mut next, Err));
        answers.collect()
    }

    fn publication(&self, body: Vec<u8>) -> Publication {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Publication {
            exchange: self.exchange.clone(),
            routing_key: COMMANDS_ROUTING_KEY.to_owned(),
            message_id: new_random().to_string(),
            message_type: Some(COMMAND_TYPE.to_owned()),
            content_type: "application/json".to_owned(),
            headers: Vec::new(),
            body,
            timestamp: since_1970.ok().map(|time| time.as_secs()),
            expiration: Some(COMMAND_LIFETIME),
        }
    }

    fn judge(&self, published: Published) -> Result<(), SendFailure> {
        match published {
            Published::Confirmed => Ok(()),
            Published::Unroutable { text, .. } => {
                Err(SendFailure::Unroutable { exchange: self.exchange.clone(), text })
            }
            Published::Nacked => Err(SendFailure::Nacked),
            Published::Refused { reason } => Err(SendFailure::Refused(reason)),
            // This failure is transient, because its cause may end, for example when a permission is restored.
            Published::Rejected { reason } | Published::Unavailable { reason, .. } => {
                Err(SendFailure::Unavailable(reason))
            }
        }
    }
}

/// Refuses a body that is too long, because every dispatcher would refuse it without reading it.
fn too_long(body: &[u8]) -> Option<SendFailure> {
    let longest = MAX_COMMAND_BYTES;
    let reason = |bytes| {
        format!("the document key makes the command {bytes} bytes long, but at most {longest} are allowed")
    };
    Some(body.len()).filter(|bytes| *bytes > longest).map(|bytes| SendFailure::Refused(reason(bytes)))
}
