//! Runs the shop: everything in one process, or one part of it over RabbitMQ.

use std::{error::Error, sync::Arc, time::Duration};

use async_trait::async_trait;
use document_outbox::{
    DeliveryOrder, InlineDispatcher, SendFailure,
    amqp::AmqpSettings,
    command::ProcessDocumentMessages,
    deliver::{RabbitMq, RabbitMqSettings},
    dispatch::{Processor, ProcessorSettings},
    receive::{Receiver, ReceiverSettings, RunningReceiver},
};
use futures::future::join_all;
use mongodb::{Client, Database};
use outbox_dispatcher::{Dispatcher, DispatcherSettings};
use outbox_rescuer::{CancellationToken, Commands, Rescuer, Settings};

use super::{handlers, stock::Stock, stores::Stores};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// How long saves and deliveries may take to end when the process stops.
const GRACE: Duration = Duration::from_secs(10);

/// The part of the shop that a process runs over RabbitMQ. Each part has its own queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Part {
    /// The screens, and the messages for orders.
    Orders,
    Fulfillments,
    Stocks,
}

/// A shop that is running.
pub(crate) struct Shop {
    pub(crate) stores: Stores,
    inline: InlineDispatcher,
    receiver: Option<RunningReceiver>,
    rescuer: outbox_rescuer::Running,
    dispatcher: Option<outbox_dispatcher::Running>,
}

impl Shop {
    /// Runs everything in one process, without a broker.
    pub(crate) async fn in_one_process(
        client: &Client,
        database: &Database,
        approve_within: Duration,
    ) -> Result<Self, Failure> {
        let inline = InlineDispatcher::builder(client)
            .deliver_to_with(|inline| handlers::in_process(&Stores::new(database, inline), approve_within))?;
        let stores = Stores::new(database, &inline);
        stores.set_up().await?;

        let rest = Arc::new(handlers::in_process(&stores, approve_within)?);
        let processor = Processor::new(client.clone(), rest, ProcessorSettings::default());
        let commands = Arc::new(InProcessCommands { processor });
        let rescuer = Rescuer::new(client.clone(), commands, watching(database)?)?.start();
        Ok(Self { stores, inline, receiver: None, rescuer, dispatcher: None })
    }

    /// Runs one part of the shop. Each part also runs a rescuer and a dispatcher, which stand by for those of the others.
    pub(crate) async fn over_rabbitmq(
        client: &Client,
        database: &Database,
        broker: &str,
        part: Part,
        approve_within: Duration,
    ) -> Result<Self, Failure> {
        let amqp = AmqpSettings::new(broker)?;
        let exchange = format!("{}.messages", database.name());
        let mut destination = RabbitMqSettings::new(broker)?;
        destination.exchange.clone_from(&exchange);
        let rabbitmq = RabbitMq::start(destination);
        let inline = InlineDispatcher::builder(client).deliver_to(rabbitmq.clone());
        let stores = Stores::new(database, &inline);
        stores.set_up().await?;

        let subscriptions = match part {
            Part::Orders => handlers::of_orders(&stores.orders),
            Part::Fulfillments => handlers::of_fulfillments(&stores.fulfillments, approve_within),
            Part::Stocks => handlers::of_stocks(&stores.stocks),
        };
        let name: &str = part.into();
        let settings = ReceiverSettings::new(format!("{}.{name}", database.name())).with(|settings| {
            settings.exchange = exchange;
            if part == Part::Stocks {
                settings.inbox = Stock::inbox_limits();
            }
        });
        let receiver = Receiver::new(amqp.clone(), subscriptions, settings)?.start();

        let rescuer = Rescuer::embedded(client, amqp.clone(), watching(database)?)?.start();
        let mut watched = DispatcherSettings::watching(&format!("{}.*", database.name()))?;
        // A queue of its own, because another dispatcher of this broker would ignore the commands for this shop.
        watched.commands_queue = format!("{}.process-document-messages", database.name());
        let dispatcher = Dispatcher::embedded(client, rabbitmq, amqp, watched)?.start();
        Ok(Self { stores, inline, receiver: Some(receiver), rescuer, dispatcher: Some(dispatcher) })
    }

    pub(crate) async fn stop(self) -> Result<(), Failure> {
        if let Some(receiver) = self.receiver {
            receiver.stop().await;
        }
        let stopped = self.rescuer.stop().await;
        if let Some(dispatcher) = self.dispatcher {
            dispatcher.stop().await;
        }
        self.inline.close(GRACE).await;
        Ok(stopped?)
    }
}

/// A demo should not keep its visitors waiting, so the rescuer comes sooner than by default.
fn watching(database: &Database) -> Result<Settings, Failure> {
    let settings = Settings::watching(&format!("{}.*", database.name()))?;
    Ok(settings.with(|settings| {
        database.name().clone_into(&mut settings.stream);
        settings.sweep_interval = Duration::from_secs(1);
    }))
}

/// Delivers a document's messages in this process, where a rescuer would ask a dispatcher over RabbitMQ.
struct InProcessCommands {
    processor: Processor,
}

#[async_trait]
impl Commands for InProcessCommands {
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        let never = CancellationToken::new();
        let processing = commands.into_iter().map(async |command| {
            let processed = self.processor.process(&command.document, DeliveryOrder::Ordered, &never).await;
            // A failed message waits in its document for its next attempt. Only an unreadable document is an error.
            processed.map(drop).map_err(|error| SendFailure::Unavailable(error.kind.to_string()))
        });
        join_all(processing).await
    }

    async fn ready(&self) {}
}
