//! The whole way to a queue of the real broker.

use std::sync::Arc;

use document_outbox::{
    CommandSender, DocumentRef,
    amqp::{AmqpSettings, Consumer, Publisher, TopologyMode},
    command::{ProcessDocumentMessages, Reason},
};
use mongodb::{
    Namespace,
    bson::{doc, oid::ObjectId},
};
use outbox_rescuer::{BrokerCommands, CancellationToken, RescueEvent, Rescuer};
use tokio::time::timeout;

use crate::support::*;

#[tokio::test]
async fn a_command_waits_in_the_queue_that_the_rescuer_made_until_a_dispatcher_comes() {
    let world = World::new().await;
    let orders = world.indexed_orders().await;
    let name = unique("rescuer");
    let (exchange, queue) = (format!("{name}.commands"), format!("{name}.queue"));
    let uri = rabbitmq_uri();
    let amqp = AmqpSettings::new(&uri).unwrap();
    let topology = || CommandSender::topology(&exchange, &queue, TopologyMode::Declare);
    let publisher = Publisher::start(amqp.clone(), topology());
    let commands = Arc::new(BrokerCommands::new(publisher.clone(), &exchange));
    let rescuer = Rescuer::new(world.client.clone(), commands, world.settings()).unwrap();
    let (events, status) = (rescuer.subscribe(), rescuer.status());
    let stop = CancellationToken::new();
    let task = tokio::spawn(rescuer.run(stop.clone()));
    let mut running = Running { events, status, stop, task, begun: std::time::Instant::now() };
    let id = ObjectId::new();
    orders.insert_one(doc! { "_id": id, "outbox": [minimal()] }).await.unwrap();
    running.wait("a command", |event| matches!(event, RescueEvent::Queued { .. }).then_some(())).await;

    let consumer = Consumer::start(amqp.clone(), topology(), queue.clone(), 1, "test".into());
    let delivery = timeout(PATIENCE, consumer.next()).await.unwrap().unwrap();
    let command = ProcessDocumentMessages::from_json(&delivery.body).unwrap();
    assert_eq!(command.document, DocumentRef::by_id(Namespace::new(world.db.name(), "orders"), id));
    assert!(matches!(command.reason, Reason::Stream | Reason::Sweep));
    assert_eq!(delivery.message_type.as_deref(), Some("ProcessDocumentMessages"));
    delivery.ack().await;

    consumer.close().await;
    running.stop().await.unwrap();
    publisher.close().await;
    remove(&uri, &exchange, &queue).await;
    world.end().await;
}
