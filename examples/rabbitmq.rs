//! Delivers to RabbitMQ, and hands failed deliveries to a dispatcher: `cargo run --example rabbitmq`.

use document_outbox::{
    Aggregate, InlineDispatcher, Message, Outbox, Store,
    amqp::{Consumer, QueueSpec, Topology},
    deliver::{Deliver, RabbitMq, RabbitMqSettings},
};
use mongodb::{Client, bson::oid::ObjectId};
use serde::{Deserialize, Serialize};

const NAME: &str = "example.rabbitmq"; // separate from other programs; an application can use the default names

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: ObjectId,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "order.placed")]
struct OrderPlaced(ObjectId);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let mut settings = RabbitMqSettings::new(&std::env::var("OUTBOX_RABBITMQ_URI")?)?;
    settings.exchange = NAME.into();
    let amqp = settings.amqp.clone();
    let (rabbitmq, commands) = RabbitMq::start_with_hand_off(settings); // one connection for messages and commands
    rabbitmq.available().await;
    let inline = InlineDispatcher::builder(&client).hand_off(commands).deliver_to(rabbitmq);

    let bind = vec![(NAME.into(), "order.*".into())];
    let queue = QueueSpec { name: NAME.into(), bind, ..QueueSpec::default() };
    let topology = Topology { queues: vec![queue], ..Topology::default() };
    let consumer = Consumer::start(amqp, topology, NAME.into(), 10, NAME.into());
    consumer.ready().await;
    let orders = client.database("example_rabbitmq").collection::<Order>("orders");
    let orders = Store::<Order>::new(orders, &inline);
    let mut order = Order { id: ObjectId::new(), outbox: Outbox::default() };
    order.outbox.send(OrderPlaced(order.id));
    orders.insert(order).await?.applied()?;
    let received = consumer.next().await.ok_or("the consumer was closed")?;
    println!("received {:?} {}", received.message_type, String::from_utf8_lossy(&received.body));
    received.ack().await;
    inline.close(std::time::Duration::from_secs(10)).await;
    Ok(())
}
