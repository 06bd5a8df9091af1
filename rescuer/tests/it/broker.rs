//! Tests the whole path to a queue of the real broker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::{
    CommandSender, DocumentRef,
    amqp::{AmqpSettings, Consumer, Publisher, Topology, TopologyMode},
    command::{ProcessDocumentMessages, Reason},
};
use lapin::{Connection, ConnectionProperties, options::QueueDeclareOptions, types::FieldTable};
use mongodb::{
    Namespace,
    bson::{doc, oid::ObjectId},
};
use outbox_rescuer::{BrokerCommands, RescueEvent, Settings};
use tokio::time::timeout;

use crate::support::*;

/// A rescuer that sends its commands to a separate queue on the real broker.
struct Queueing {
    running: Running,
    publisher: Publisher,
    exchange: String,
    queue: String,
}

impl Queueing {
    async fn start(world: &World, settings: Settings) -> Self {
        let name = unique("rescuer");
        let (exchange, queue) = (format!("{name}.commands"), format!("{name}.queue"));
        let publisher = Publisher::start(amqp(), topology(&exchange, &queue));
        let commands = Arc::new(BrokerCommands::new(publisher.clone(), &exchange));
        let running = world.start(&commands, settings).await;
        Self { running, publisher, exchange, queue }
    }

    async fn stop(self) {
        self.running.stop().await.unwrap();
        self.publisher.close().await;
        remove(&rabbitmq_uri(), &self.exchange, &self.queue).await;
    }
}

fn amqp() -> AmqpSettings {
    AmqpSettings::new(&rabbitmq_uri()).unwrap()
}

fn topology(exchange: &str, queue: &str) -> Topology {
    CommandSender::topology(exchange, queue, TopologyMode::Declare)
}

#[tokio::test]
async fn commands_wait_in_the_queue_for_a_dispatcher() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let mut real = Queueing::start(&world, world.settings()).await;
    let id = ObjectId::new();
    orders.insert_one(doc! { "_id": id, "outbox": [minimal()] }).await.unwrap();
    let queued = |event: &RescueEvent| matches!(event, RescueEvent::Queued { .. }).then_some(());
    real.running.wait("a command", queued).await;

    let topology = topology(&real.exchange, &real.queue);
    let consumer = Consumer::start(amqp(), topology, real.queue.clone(), 1, "test".into());
    let delivery = timeout(PATIENCE, consumer.next()).await.unwrap().unwrap();
    let command = ProcessDocumentMessages::from_json(&delivery.body).unwrap();
    assert_eq!(command.document, DocumentRef::by_id(Namespace::new(world.db.name(), "orders"), id));
    assert!(matches!(command.reason, Reason::Stream | Reason::Sweep));
    assert_eq!(delivery.message_type.as_deref(), Some("ProcessDocumentMessages"));
    delivery.ack().await;

    consumer.close().await;
    real.stop().await;
    world.end().await;
}

/// No dispatcher takes the commands for 5,000 documents: the commands are repeated after 30, 60 and 120 s,
/// and each command disappears after 5 minutes.
#[tokio::test]
#[ignore = "stress: run by scripts/stress"]
async fn stress_untaken_commands_stay_bounded() {
    const DOCUMENTS: u32 = 5_000;
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let stuck = |_| doc! { "outbox": [dated(60_000, 60_000)] };
    orders.insert_many((0..DOCUMENTS).map(stuck)).await.unwrap();
    // Each leadership term remembers only its own commands, so no term may end before this test does, even
    // on a busy machine.
    let lease = Duration::from_mins(1);
    let settings = world.settings().with(|settings| {
        settings.ownership_lease = lease;
        settings.sweep_interval = Duration::from_secs(15);
    });
    let real = Queueing::start(&world, settings).await;
    assert!(real.publisher.ready().await, "a ready publisher has declared its queue");

    let connection = Connection::connect(&rabbitmq_uri(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (begun, mut before, mut most, mut expired) = (Instant::now(), 0_u32, 0, 0);
    // Waits until the commands of two rounds are gone.
    while expired < 2 * DOCUMENTS {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(real.queue.clone().into(), passive, FieldTable::default()).await;
        let depth = queue.unwrap().message_count();
        assert!(begun.elapsed() < Duration::from_mins(10), "{depth} commands, {expired} have expired");
        expired += before.saturating_sub(depth);
        most = most.max(depth);
        before = depth;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!("at most {most} commands for {DOCUMENTS} documents");
    assert!((DOCUMENTS..=4 * DOCUMENTS).contains(&most), "{most}");
    connection.close(200, "done".into()).await.unwrap();
    real.stop().await;
    world.end().await;
}
