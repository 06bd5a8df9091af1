//! A separate database, exchange and queue for each test, and a worker on them.

use std::{sync::Arc, time::Duration};

use document_outbox::{
    CommandSender, DocumentRef, InlineDispatcher, RetryPolicy,
    amqp::{AmqpSettings, Publication, Published, Publisher, TopologyMode},
    command::{COMMANDS_ROUTING_KEY, ProcessDocumentMessages, Reason},
    deliver::{Deliver, RabbitMq, RabbitMqSettings},
    dispatch::{Processed, Processor, ProcessorSettings},
    store::Inserted,
};
use lapin::{
    ConnectionProperties,
    options::{BasicGetOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use mongodb::{
    Client,
    bson::{Bson, Uuid, doc},
};
use outbox_dispatcher::{Dispatcher, DispatcherEvent, DispatcherSettings, Left, Running, Snapshot};
use tokio::sync::broadcast;

use crate::{
    on_panic::OnPanic,
    support::{LONG, Order, TestDatabase, uri},
};

/// A separate database, exchange and queue for the test.
pub(crate) struct Scene {
    pub(crate) test: TestDatabase,
    pub(crate) name: String,
    pub(crate) broker: String,
    pub(crate) commands: CommandSender,
    pub(crate) publisher: Publisher,
    pub(crate) outside: lapin::Channel,
    pub(crate) connection: lapin::Connection,
    _on_panic: OnPanic,
}

/// Removes from the broker everything that a test made under this name.
async fn remove(broker: String, name: String) {
    // A test's own broker may already have ended.
    let connection = lapin::Connection::connect(&broker, ConnectionProperties::default()).await;
    let Ok(connection) = connection else { return };
    let channel = connection.create_channel().await.unwrap();
    for queue in [name.clone(), format!("{name}.received")] {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    for exchange in [name.clone(), format!("{name}.messages")] {
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
}

impl Scene {
    pub(crate) async fn set() -> Self {
        Self::on(&uri("OUTBOX_RABBITMQ_URI")).await
    }

    /// Creates a scene on the broker at this URI.
    pub(crate) async fn on(broker: &str) -> Self {
        let test = TestDatabase::create().await;
        let name = format!("test-dispatcher-{}", test.database.name());
        let amqp = AmqpSettings::new(broker).unwrap();
        let publisher = Publisher::start(amqp, CommandSender::topology(&name, &name, TopologyMode::Declare));
        assert!(publisher.ready().await);
        let connection = lapin::Connection::connect(broker, ConnectionProperties::default()).await.unwrap();
        Self {
            commands: CommandSender::new(publisher.clone(), &name),
            outside: connection.create_channel().await.unwrap(),
            connection,
            _on_panic: OnPanic::new({
                let (broker, name) = (broker.to_owned(), name.clone());
                move || remove(broker, name)
            }),
            test,
            name,
            broker: broker.to_owned(),
            publisher,
        }
    }

    pub(crate) async fn strike(self) {
        self.publisher.close().await;
        self.outside.queue_delete(self.name.clone().into(), QueueDeleteOptions::default()).await.unwrap();
        self.outside
            .exchange_delete(self.name.clone().into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
        self.test.drop().await;
    }

    pub(crate) fn settings(&self) -> DispatcherSettings {
        let mut settings =
            DispatcherSettings::new([format!("{}.*", self.test.database.name()).parse().unwrap()]);
        settings.commands_exchange.clone_from(&self.name);
        settings.commands_queue.clone_from(&self.name);
        settings
    }

    pub(crate) fn processor(&self, deliver: impl Deliver, retry: RetryPolicy) -> Processor {
        let settings = ProcessorSettings::default().with(|settings| settings.retry = retry);
        Processor::new(self.test.client.clone(), Arc::new(deliver), settings)
    }

    pub(crate) fn start_with(
        &self,
        deliver: impl Deliver,
        retry: RetryPolicy,
        settings: DispatcherSettings,
    ) -> Worker {
        let amqp = AmqpSettings::new(&self.broker).unwrap();
        Worker::start(self.processor(deliver, retry), amqp, settings)
    }

    pub(crate) fn start(&self, deliver: impl Deliver) -> Worker {
        self.start_with(deliver, quick_retry(), self.settings())
    }

    pub(crate) fn document(&self, id: impl Into<Bson>) -> DocumentRef {
        DocumentRef::by_id(self.test.orders().namespace(), id)
    }

    pub(crate) async fn command(&self, id: impl Into<Bson>) {
        let command = ProcessDocumentMessages::new(self.document(id), Reason::Stream);
        assert_eq!(self.commands.send(vec![command]).await, [Ok(())]);
    }

    pub(crate) async fn publish_raw(&self, message_type: Option<&str>, body: Vec<u8>) {
        let publication = Publication {
            exchange: self.name.clone(),
            routing_key: COMMANDS_ROUTING_KEY.into(),
            message_id: Uuid::new().to_string(),
            message_type: message_type.map(Into::into),
            content_type: "application/json".into(),
            body,
            ..Publication::default()
        };
        assert_eq!(self.publisher.publish(vec![publication]).await, [Published::Confirmed]);
    }

    /// Stores an order with messages of these amounts. No process has tried to deliver them.
    pub(crate) async fn place(&self, id: &str, amounts: impl IntoIterator<Item = i64>) {
        let mut order = Order::new(id);
        amounts.into_iter().for_each(|amount| order.add(amount));
        let orders = self.test.store(&InlineDispatcher::off(&self.test.client));
        assert!(matches!(orders.insert(order).await.unwrap(), Inserted::Applied(..)));
    }

    pub(crate) async fn is_cleared(&self, id: impl Into<Bson>) -> bool {
        self.test.outbox(id).await.is_empty()
    }

    /// The number of commands in the queue.
    pub(crate) async fn depth(&self) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue =
            self.outside.queue_declare(self.name.clone().into(), options, FieldTable::default()).await;
        queue.unwrap().message_count()
    }

    /// Whether the commands queue is empty. Acknowledged commands never return.
    pub(crate) async fn queue_is_empty(&self) -> bool {
        let got =
            self.outside.basic_get(self.name.clone().into(), BasicGetOptions { no_ack: true }).await.unwrap();
        got.is_none()
    }

    pub(crate) async fn rabbitmq(&self, broker: &str) -> RabbitMq {
        let mut settings = RabbitMqSettings::new(broker).unwrap();
        settings.exchange = self.messages();
        settings.amqp.confirm_timeout = Duration::from_secs(1);
        settings.unroutable_ok = ["order.added".to_owned()].into();
        let rabbitmq = RabbitMq::start(settings);
        tokio::time::timeout(LONG, rabbitmq.available()).await.unwrap();
        rabbitmq
    }

    pub(crate) fn messages(&self) -> String {
        format!("{}.messages", self.name)
    }

    /// Creates documents as another program writes them, with this many messages each, and a command for
    /// each document.
    pub(crate) async fn strand(&self, documents: impl IntoIterator<Item = (String, i64)>) {
        let documents: Vec<_> = documents.into_iter().collect();
        let entry =
            |amount: i64| doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": amount } };
        let stored = documents.iter().map(|(id, messages)| {
            doc! { "_id": id, "outbox": (1..=*messages).map(entry).collect::<Vec<_>>() }
        });
        self.test.orders().insert_many(stored).await.unwrap();
        let commands = documents
            .iter()
            .map(|(id, _)| ProcessDocumentMessages::new(self.document(id.as_str()), Reason::Sweep));
        assert!(self.commands.send(commands.collect()).await.iter().all(Result::is_ok));
    }

    pub(crate) fn start_at(&self, deliver: impl Deliver, amqp: AmqpSettings) -> Worker {
        Worker::start(self.processor(deliver, quick_retry()), amqp, self.settings())
    }

    /// Checks that the worker continues: stores a new document, and waits until its message is delivered.
    pub(crate) async fn goes_on(&self, worker: &mut Worker, id: &str) {
        self.place(id, [1]).await;
        self.command(id).await;
        let mine = self.document(id);
        let finished = |event: &DispatcherEvent| match event {
            DispatcherEvent::Finished { document, processed } if *document == mine => Some(*processed),
            _ => None,
        };
        assert_eq!(worker.wait(finished).await, Processed::Done);
        assert!(self.is_cleared(id).await);
    }

    /// Starts a worker with this client and this state database.
    #[allow(clippy::needless_pass_by_value, reason = "callers make a client for this worker alone")]
    pub(crate) fn start_by(&self, client: Client, state_database: &str, deliver: impl Deliver) -> Worker {
        let settings = ProcessorSettings::default().with(|settings| {
            settings.retry = quick_retry();
            settings.state_database = state_database.into();
        });
        let processor = Processor::new(client.clone(), Arc::new(deliver), settings);
        Worker::start(processor, AmqpSettings::new(&self.broker).unwrap(), self.settings())
    }

    pub(crate) fn start_at_state(&self, state_database: &str, deliver: impl Deliver) -> Worker {
        self.start_by(self.test.client.clone(), state_database, deliver)
    }

    pub(crate) async fn send(&self, id: &str, cluster: uuid::Uuid) {
        let command =
            ProcessDocumentMessages::new(self.document(id), Reason::Sweep).of_cluster(Some(cluster));
        assert_eq!(self.commands.send(vec![command]).await, [Ok(())]);
    }
}

pub(crate) struct Worker {
    pub(crate) running: Running,
    pub(crate) events: broadcast::Receiver<DispatcherEvent>,
}

impl Worker {
    pub(crate) fn start(processor: Processor, amqp: AmqpSettings, settings: DispatcherSettings) -> Self {
        let dispatcher = Dispatcher::new(processor, amqp, settings).unwrap();
        let events = dispatcher.subscribe();
        Self { running: dispatcher.start(), events }
    }

    /// Waits for the first event that matches.
    pub(crate) async fn wait<T>(&mut self, fits: impl Fn(&DispatcherEvent) -> Option<T>) -> T {
        let look = async {
            loop {
                if let Some(found) = fits(&self.events.recv().await.unwrap()) {
                    return found;
                }
            }
        };
        tokio::time::timeout(LONG, look).await.expect("the worker announces it")
    }

    pub(crate) async fn finished(&mut self) -> Processed {
        self.wait(|event| match event {
            DispatcherEvent::Finished { processed, .. } => Some(*processed),
            _ => None,
        })
        .await
    }

    pub(crate) async fn left(&mut self) -> Left {
        self.wait(|event| match event {
            DispatcherEvent::LeftToSweep { why, .. } => Some(why.clone()),
            _ => None,
        })
        .await
    }
}

pub(crate) fn quick_retry() -> RetryPolicy {
    let wait = Duration::from_millis(20);
    RetryPolicy::default().with(|retry| {
        retry.quick_tries = 0;
        retry.backoff_min = wait;
        retry.backoff_max = wait;
        retry.max_attempts = 4;
    })
}

pub(crate) fn slow_retry() -> RetryPolicy {
    let wait = Duration::from_mins(10);
    RetryPolicy::default().with(|retry| {
        retry.quick_tries = 0;
        retry.backoff_min = wait;
        retry.backoff_max = wait;
    })
}

/// Waits, event by event, until the status satisfies a condition.
pub(crate) async fn until(worker: &Running, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let status = worker.status();
    let look = async {
        loop {
            let snapshot = status.snapshot();
            if wanted(&snapshot) {
                return snapshot;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(LONG, look).await;
    found.unwrap_or_else(|_elapsed| {
        panic!("the status never satisfies the condition: {:?}", status.snapshot())
    })
}

pub(crate) async fn put_back(worker: &mut Worker) -> Left {
    worker
        .wait(|event| match event {
            DispatcherEvent::PutBack { why, .. } => Some(why.clone()),
            _ => None,
        })
        .await
}

/// Settings for the broker at this URI, with which a consumer reconnects at once.
pub(crate) fn eager_amqp(broker: &str) -> AmqpSettings {
    let mut amqp = AmqpSettings::new(broker).unwrap();
    amqp.reconnect_min = Duration::from_millis(20);
    amqp.reconnect_max = Duration::from_millis(400);
    amqp
}
