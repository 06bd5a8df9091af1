//! Runs a whole system in one test: an application, a rescuer and a dispatcher with their own names on a real
//! broker, and a receiver that is independent of the library.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use document_outbox::{
    CommandSender, InlineDispatcher, RetryPolicy,
    amqp::{AmqpSettings, Publisher, TopologyMode},
    deliver::{Deliver, RabbitMq, RabbitMqSettings},
    dispatch::{Processor, ProcessorSettings},
    observe::Event,
};
use futures::StreamExt;
use lapin::{
    BasicProperties, ConnectionProperties, ExchangeKind,
    options::{
        BasicAckOptions, BasicConsumeOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
        QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable},
};
use mongodb::Client;
use outbox_dispatcher::{Dispatcher, DispatcherEvent, DispatcherSettings};
use outbox_rescuer::{
    BrokerCommands, CancellationToken, RescueEvent, Rescuer, RescuerError, Settings, StartedFrom,
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinHandle,
};

use crate::support::{LONG, TestDatabase, uri};

/// A database, a state database, an exchange for messages with one queue, and an exchange for commands with its queue.
pub struct Flow {
    pub test: TestDatabase,
    pub broker: String,
    /// Time limit for the broker's confirms.
    pub confirm_timeout: Duration,
}

impl Flow {
    /// Sets the flow up on the servers that `scripts/services` started, with a queue for every message.
    pub async fn begin() -> Self {
        Self::on(&uri("OUTBOX_RABBITMQ_URI")).await
    }

    /// Sets the flow up on the broker at this URI.
    pub async fn on(broker: &str) -> Self {
        let flow = Self::of(TestDatabase::create().await, broker);
        flow.test.database.create_collection("orders").await.unwrap();
        flow.test.store(&InlineDispatcher::off(&flow.test.client)).ensure_indexes().await.unwrap();
        flow.declare().await;
        flow.bind().await;
        flow
    }

    /// Creates a flow from an existing database and broker, without setting anything up on the servers.
    pub fn of(test: TestDatabase, broker: &str) -> Self {
        Self { test, broker: broker.to_owned(), confirm_timeout: Duration::from_secs(15) }
    }

    /// The names of everything on the servers begin with the name of the test's database.
    pub fn name(&self) -> &str {
        self.test.database.name()
    }

    pub fn messages(&self) -> String {
        format!("{}.messages", self.name())
    }

    /// The exchange for commands, and their queue.
    pub fn commands(&self) -> String {
        format!("{}.commands", self.name())
    }

    /// The queue that receives every message.
    pub fn queue(&self) -> String {
        format!("{}.received", self.name())
    }

    pub fn state(&self) -> mongodb::Database {
        self.test.client.database(&format!("{}_state", self.name()))
    }

    /// A connection that is independent of the library.
    pub async fn outside(&self) -> Outside {
        let connection =
            lapin::Connection::connect(&self.broker, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Outside { channel, _connection: connection }
    }

    /// Declares the exchange for messages, and an unbound queue that survives a restart of its broker.
    pub async fn declare(&self) {
        let outside = self.outside().await;
        let exchange = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let queue = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        outside
            .channel
            .exchange_declare(self.messages().into(), ExchangeKind::Topic, exchange, FieldTable::default())
            .await
            .unwrap();
        outside.channel.queue_declare(self.queue().into(), queue, FieldTable::default()).await.unwrap();
    }

    /// Makes every message routable.
    pub async fn bind(&self) {
        let (queue, exchange) = (self.queue().into(), self.messages().into());
        let outside = self.outside().await;
        outside
            .channel
            .queue_bind(queue, exchange, "#".into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }

    /// Makes every message unroutable.
    pub async fn unbind(&self) {
        let (queue, exchange) = (self.queue().into(), self.messages().into());
        let outside = self.outside().await;
        outside.channel.queue_unbind(queue, exchange, "#".into(), FieldTable::default()).await.unwrap();
    }

    pub async fn delete_exchange(&self, name: String) {
        let delete = ExchangeDeleteOptions::default();
        let outside = self.outside().await;
        outside.channel.exchange_delete(name.into(), delete).await.unwrap();
    }

    /// Drops every waiting command and returns the number of commands.
    pub async fn lose_commands(&self) -> u32 {
        let purge = QueuePurgeOptions::default();
        let outside = self.outside().await;
        outside.channel.queue_purge(self.commands().into(), purge).await.unwrap()
    }

    /// Starts receiving from the queue.
    pub async fn receiver(&self) -> Receiver {
        Receiver::start(self.outside().await, self.queue()).await
    }

    /// The broker settings of this test's processes. `name` is the `app_id` of their messages.
    pub fn amqp(&self, name: &str) -> AmqpSettings {
        let mut amqp = AmqpSettings::new(&self.broker).unwrap().named(name);
        amqp.reconnect_min = Duration::from_millis(20);
        amqp.reconnect_max = Duration::from_millis(500);
        amqp.confirm_timeout = self.confirm_timeout;
        amqp
    }

    /// Returns the connected deliverer of a process with this name.
    pub async fn rabbitmq(&self, name: &str) -> RabbitMq {
        let rabbitmq = RabbitMq::start(RabbitMqSettings {
            amqp: self.amqp(name),
            exchange: self.messages(),
            ..RabbitMqSettings::new(&self.broker).unwrap()
        });
        soon("the deliverer to be ready", rabbitmq.available()).await;
        rabbitmq
    }

    /// Returns the connected sender of hand-off commands.
    pub async fn command_sender(&self) -> CommandSender {
        let publisher = self.command_publisher("handing-off");
        soon("the sender of commands to be ready", publisher.ready()).await;
        CommandSender::new(publisher, self.commands())
    }

    fn command_publisher(&self, name: &str) -> Publisher {
        let topology = CommandSender::topology(self.commands(), self.commands(), TopologyMode::Declare);
        Publisher::start(self.amqp(name), topology)
    }

    /// Starts a worker that consumes commands and delivers to the broker.
    pub async fn dispatcher(&self, retry: RetryPolicy) -> Worker {
        self.dispatcher_with(retry, self.dispatcher_settings()).await
    }

    pub fn dispatcher_settings(&self) -> DispatcherSettings {
        let mut settings = DispatcherSettings::new([self.pattern()]);
        settings.commands_exchange = self.commands();
        settings.commands_queue = self.commands();
        settings
    }

    pub async fn dispatcher_with(
        &self,
        retry: RetryPolicy,
        dispatcher_settings: DispatcherSettings,
    ) -> Worker {
        let settings = ProcessorSettings::default().with(|settings| {
            settings.name = "worker".into();
            settings.retry = retry;
            settings.state_database = self.state().name().to_owned();
        });
        let client = self.test.client.clone();
        let rabbitmq = Arc::new(self.rabbitmq(WORKER).await);
        let processor = Processor::new(client, rabbitmq, settings);
        let messages = Heard::from(processor.subscribe());
        let dispatcher = Dispatcher::new(processor, self.amqp(WORKER), dispatcher_settings).unwrap();
        let events = Heard::from(dispatcher.subscribe());
        let running = dispatcher.start();
        soon("the dispatcher to be ready", running.ready()).await;
        Worker { running, events, messages }
    }

    pub fn pattern(&self) -> outbox_rescuer::NamespacePattern {
        format!("{}.*", self.name()).parse().unwrap()
    }

    /// Returns settings for a rescuer that rescues messages when they are `delay` old, and sweeps every 200
    /// ms.
    pub fn rescuer_settings(&self, delay: Duration) -> Settings {
        Settings::new(vec![self.pattern()]).with(|settings| {
            settings.delay = delay;
            settings.sweep_interval = Duration::from_millis(200);
            settings.state_database = self.state().name().to_owned();
        })
    }

    /// Starts a rescuer with its own client, and waits until its stream is open and its first sweep has ended.
    pub async fn rescuer(&self, settings: Settings) -> Rescue {
        let client = Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
        let publisher = self.command_publisher("rescuer");
        let commands = BrokerCommands::new(publisher.clone(), self.commands());
        let rescuer = Rescuer::new(client, Arc::new(commands), settings).unwrap();
        let mut events = Heard::from(rescuer.subscribe());
        let stop = CancellationToken::new();
        let task = tokio::spawn(rescuer.run(stop.clone()));
        let (mut from, mut swept) = (None, false);
        let started = |event: &RescueEvent| {
            match event {
                RescueEvent::Opened { from: opened } => from = Some(*opened),
                RescueEvent::SweepDone { .. } => swept = true,
                _ => {}
            }
            from.filter(|_| swept)
        };
        let from = events.wait("the stream to open and the first sweep to end", started).await;
        Rescue { from, events, stop, task, publisher }
    }

    /// Removes everything from the servers.
    pub async fn end(self) {
        let outside = self.outside().await;
        for queue in [self.queue(), self.commands()] {
            let delete = QueueDeleteOptions::default();
            outside.channel.queue_delete(queue.into(), delete).await.unwrap();
        }
        self.delete_exchange(self.messages()).await;
        self.delete_exchange(self.commands()).await;
        self.state().drop().await.unwrap();
        self.test.drop().await;
    }
}

/// The `app_id` of the dispatcher's messages.
pub const WORKER: &str = "worker";

/// Waits until `work` ends, and fails with a message if that takes too long.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub struct Outside {
    pub channel: lapin::Channel,
    _connection: lapin::Connection,
}

/// A message as it was received from the queue.
#[derive(Debug, Clone)]
pub struct Received {
    pub routing_key: String,
    pub properties: BasicProperties,
    pub body: serde_json::Value,
    pub bytes: Vec<u8>,
}

impl Received {
    pub fn app_id(&self) -> String {
        let app_id = self.properties.app_id().as_ref();
        app_id.map(ToString::to_string).unwrap_or_default()
    }

    pub fn message_id(&self) -> String {
        let id = self.properties.message_id().as_ref();
        id.map(ToString::to_string).unwrap_or_default()
    }

    pub fn headers(&self) -> BTreeMap<String, String> {
        let headers = self.properties.headers().as_ref();
        let text = |value: &AMQPValue| match value {
            AMQPValue::LongString(text) => text.to_string(),
            other => panic!("a header that is not a string: {other:?}"),
        };
        let all = headers.into_iter().flat_map(|table| table.inner());
        all.map(|(name, value)| (name.to_string(), text(value))).collect()
    }

    pub fn subject(&self) -> String {
        self.headers().get("cloudEvents:subject").cloned().unwrap_or_default()
    }

    /// The amount of an `order.added`.
    pub fn amount(&self) -> i64 {
        self.body["amount"].as_i64().unwrap()
    }
}

/// The messages that were received from a queue, in order.
pub struct Receiver {
    received: watch::Receiver<Vec<Received>>,
    _task: JoinHandle<()>,
}

impl Receiver {
    async fn start(outside: Outside, queue: String) -> Self {
        let mut deliveries = outside
            .channel
            .basic_consume(
                queue.into(),
                "receiver".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        let (sender, received) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            let _outside = outside;
            while let Some(Ok(delivery)) = deliveries.next().await {
                let acknowledged = delivery.acker.ack(BasicAckOptions::default()).await;
                assert!(matches!(acknowledged, Ok(true)), "{acknowledged:?}");
                let message = Received {
                    routing_key: delivery.routing_key.to_string(),
                    body: serde_json::from_slice(&delivery.data).unwrap(),
                    bytes: delivery.data,
                    properties: delivery.properties,
                };
                sender.send_modify(|received| received.push(message));
            }
        });
        Self { received, _task: task }
    }

    pub fn all(&self) -> Vec<Received> {
        self.received.borrow().clone()
    }

    /// Waits until `count` messages were received.
    pub async fn wait(&self, count: usize) -> Vec<Received> {
        self.wait_until(&format!("{count} messages"), |received| received.len() >= count).await
    }

    pub async fn wait_until(&self, what: &str, enough: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let mut received = self.received.clone();
        let waited = tokio::time::timeout(LONG, received.wait_for(|received| enough(received))).await;
        match waited {
            Ok(received) => received.unwrap().clone(),
            Err(_) => panic!("waited in vain for {what}; {} came", self.all().len()),
        }
    }
}

/// A dispatcher that runs in this process.
pub struct Worker {
    pub running: outbox_dispatcher::Running,
    pub events: Heard<DispatcherEvent>,
    /// The events of the messages that this dispatcher delivers.
    pub messages: Heard<Event>,
}

impl Worker {
    /// Waits until `pick` accepts one of the events.
    pub async fn wait<T>(&mut self, what: &str, pick: impl FnMut(&DispatcherEvent) -> Option<T>) -> T {
        self.events.wait(what, pick).await
    }
}

/// A rescuer that runs in this process.
pub struct Rescue {
    /// The position from which the rescuer began to read.
    pub from: StartedFrom,
    pub events: Heard<RescueEvent>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RescuerError>>,
    publisher: Publisher,
}

impl Rescue {
    /// Waits until `pick` accepts one of the events.
    pub async fn wait<T>(&mut self, what: &str, pick: impl FnMut(&RescueEvent) -> Option<T>) -> T {
        self.events.wait(what, pick).await
    }

    pub async fn stop(self) {
        self.stop.cancel();
        soon("the rescuer to stop", self.task).await.unwrap().unwrap();
        self.publisher.close().await;
    }

    /// Stops the rescuer at once, as a crash would.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.stop.cancel();
    }
}

/// Keeps every event since it subscribed until the event is read.
pub struct Heard<E> {
    events: mpsc::UnboundedReceiver<E>,
}

impl<E: Clone + Send + 'static> Heard<E> {
    pub fn from(mut events: broadcast::Receiver<E>) -> Self {
        let (sender, heard) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => drop(sender.send(event)),
                    Err(broadcast::error::RecvError::Closed) => break,
                    Err(lagged) => panic!("{lagged}"),
                }
            }
        });
        Self { events: heard }
    }

    /// Waits until `pick` accepts an event.
    pub async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&E) -> Option<T>) -> T {
        let look = async {
            loop {
                let event = self.events.recv().await.expect("the events continue");
                if let Some(found) = pick(&event) {
                    return found;
                }
            }
        };
        soon(what, look).await
    }

    /// Returns the events so far that were not awaited.
    pub fn rest(&mut self) -> Vec<E> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}
