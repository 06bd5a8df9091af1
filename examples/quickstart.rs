//! An order is paid, and the message that says so arrives: `cargo run --example quickstart`.
//!
//! Needs MongoDB (a replica set) and RabbitMQ: `scripts/services up`, then `eval "$(scripts/services env)"`.

use std::{error::Error, time::Duration};

use document_outbox::{
    Document, Inline, Message, Outbox, Store,
    amqp::{Consumer, ExchangeKind, ExchangeSpec, QueueSpec, Topology, TopologyMode},
    deliver::{Deliver, RabbitMq, RabbitMqSettings},
};
use mongodb::Client;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

#[derive(Serialize, Deserialize)]
struct Order {
    #[serde(rename = "_id")]
    id: String,
    paid: bool,
    #[serde(skip)]
    outbox: Outbox,
}

impl Order {
    fn pay(&mut self) {
        self.paid = true;
        self.outbox.send(OrderPaid { order: self.id.clone() });
    }
}

impl Document for Order {
    type Id = String;

    fn id(&self) -> &String {
        &self.id
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[derive(Serialize, Deserialize)]
struct OrderPaid {
    order: String,
}

impl Message for OrderPaid {
    const TYPE: &'static str = "order.paid";
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::with_uri_str(setting("OUTBOX_MONGODB_URI", MONGODB)).await?;
    let broker = RabbitMqSettings::new(&setting("OUTBOX_RABBITMQ_URI", RABBITMQ))?;
    let receiver = receiver(&broker).await?;
    let inline = Inline::builder(&client).deliver_to(connected(broker).await?);
    let orders = Store::<Order>::new(client.database("shop").collection::<Order>("orders"), &inline);

    let id = uuid::Uuid::now_v7().to_string();
    let order = Order { id: id.clone(), paid: false, outbox: Outbox::default() };
    let _ = orders.insert(order).await?; // sends nothing, and cannot exist yet
    let saved = orders.update(&id, Order::pay).await?; // load, save, again on conflict
    let message = saved.receipt.ok_or("nothing was saved")?.messages[0];

    println!("saved      order.paid {message}, in order {id}");
    let body = receive(&receiver, &message.to_string()).await?;
    println!("delivered  order.paid {message}: {body}");

    inline.close(PATIENCE).await; // waits for what is in flight
    Ok(())
}

// --- what a receiver does, and where the servers are -----------------------------------------------------------------

const MONGODB: &str = "mongodb://127.0.0.1:27017/?replicaSet=rs0";
const RABBITMQ: &str = "amqp://127.0.0.1:5672";
const PATIENCE: Duration = Duration::from_secs(15);

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.into())
}

async fn connected(broker: RabbitMqSettings) -> Result<RabbitMq, Box<dyn Error>> {
    let broker = RabbitMq::start(broker);
    timeout(PATIENCE, broker.available()).await?;
    Ok(broker)
}

/// A queue of the receiver's own, bound to the exchange for messages. It stays, and collects what the receiver has yet to take.
async fn receiver(broker: &RabbitMqSettings) -> Result<Consumer, Box<dyn Error>> {
    let queue = QueueSpec {
        name: "quickstart".into(),
        quorum: false,
        delivery_limit: None,
        bind: vec![(broker.exchange.clone(), OrderPaid::TYPE.into())],
    };
    let exchange = ExchangeSpec { name: broker.exchange.clone(), kind: ExchangeKind::Topic };
    let topology = Topology { exchanges: vec![exchange], queues: vec![queue], mode: TopologyMode::Declare };
    let receiver =
        Consumer::start(broker.amqp.clone(), topology, "quickstart".into(), 10, "quickstart".into());
    let late = format!("RabbitMQ at {} did not answer within {PATIENCE:?}", broker.amqp.endpoint());
    timeout(PATIENCE, receiver.ready()).await.map_err(|_| late)?;
    Ok(receiver)
}

/// Takes messages off the queue until the one with this id, and gives its body.
async fn receive(receiver: &Consumer, id: &str) -> Result<String, Box<dyn Error>> {
    loop {
        let delivery = timeout(PATIENCE, receiver.next()).await?.ok_or("the receiver was closed")?;
        let (found, body) = (delivery.message_id.as_deref() == Some(id), delivery.body.clone());
        delivery.ack().await;
        if found {
            return Ok(String::from_utf8_lossy(&body).into_owned());
        }
    }
}
