//! The interface between a rescuer and the broker.

use async_trait::async_trait;
use document_outbox::{
    CommandSender, SendFailure,
    amqp::{AmqpSettings, Publisher, TopologyMode},
    command::{COMMANDS_EXCHANGE, COMMANDS_QUEUE, ProcessDocumentMessages},
};

/// Sends commands and reports for each whether the broker confirmed it.
#[async_trait]
pub trait Commands: Send + Sync {
    /// Sends all the commands together. The result at each index is `Ok` once the broker has
    /// confirmed the command at that index.
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>>;

    /// Waits until commands can probably be sent. It may return early, and its future may be
    /// dropped.
    async fn ready(&self);

    /// Whether a command could probably be sent now, judged without sending one. A rescuer that
    /// can't send commands leaves its streams to a rescuer that can.
    fn is_ready(&self) -> bool {
        true
    }
}

/// Whether a process can send commands, as far as the process knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// The process can send commands.
    Able,
    /// The process can't send commands.
    Unable,
}

/// Sends commands through RabbitMQ.
#[derive(Debug, Clone)]
pub struct BrokerCommands {
    publisher: Publisher,
    sender: CommandSender,
}

impl BrokerCommands {
    /// Connects in the background, and makes the exchange and the queue for commands under their default names.
    ///
    /// # Panics
    /// Panics if it is called outside a Tokio runtime.
    #[must_use]
    pub fn start(amqp: AmqpSettings) -> Self {
        let topology = CommandSender::topology(COMMANDS_EXCHANGE, COMMANDS_QUEUE, TopologyMode::Declare);
        Self::new(Publisher::start(amqp, topology), COMMANDS_EXCHANGE)
    }

    /// Sends to `exchange` through `publisher`. The publisher must declare
    /// [`CommandSender::topology`], unless the broker already has that topology.
    pub fn new(publisher: Publisher, exchange: impl Into<String>) -> Self {
        let sender = CommandSender::new(publisher.clone(), exchange);
        Self { publisher, sender }
    }
}

#[async_trait]
impl Commands for BrokerCommands {
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        self.sender.send(commands).await
    }

    async fn ready(&self) {
        // The result is ignored: if the publisher is closed for good, the next send reports it.
        self.publisher.ready().await;
    }

    fn is_ready(&self) -> bool {
        self.publisher.is_ready()
    }
}
