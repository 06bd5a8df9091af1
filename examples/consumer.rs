//! Applies each message of a queue to an aggregate exactly once: `cargo run --example consumer`.

use document_outbox::{
    Aggregate, Inbox, InlineDispatcher, Message, Outbox, Store,
    deliver::{Deliver, RabbitMq, RabbitMqSettings},
    receive::{Receiver, ReceiverEvent, ReceiverSettings, Subscriptions},
};
use mongodb::Client;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Aggregate)]
struct Stock {
    #[serde(rename = "_id")]
    sku: String,
    available: i64,
    inbox: Inbox,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "stock.requested")]
struct StockRequested(String, i64);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let broker = RabbitMqSettings::new(&std::env::var("OUTBOX_RABBITMQ_URI")?)?;
    let rabbitmq = RabbitMq::start(broker.clone());
    let inline = InlineDispatcher::builder(&client).deliver_to(rabbitmq.clone());
    let stocks = Store::<Stock>::new(client.database("example_consumer").collection::<()>("stocks"), &inline);
    let new = |sku| Stock { sku, available: 0, inbox: Inbox::default(), outbox: Outbox::default() };

    // The consumer. `new` creates an aggregate that doesn't exist yet.
    let key = |StockRequested(sku, _): &StockRequested| sku.clone();
    let take = |stock: &mut Stock, StockRequested(_, quantity): &StockRequested| stock.available -= quantity;
    let requests = Subscriptions::new().into_aggregate(&stocks, key, new, take);
    let receiver = Receiver::new(broker.amqp, requests, ReceiverSettings::new("example.consumer"))?.start();

    let mut events = receiver.subscribe();
    rabbitmq.available().await;
    receiver.ready().await; // the queue must exist before the message is sent
    let mut shelf = new("shelf".into());
    shelf.outbox.send(StockRequested("tea".into(), 2));
    stocks.insert(shelf).await?.applied()?;
    while !matches!(events.recv().await?, ReceiverEvent::Applied(_)) {}
    println!("available: {}", stocks.load("tea").await?.ok_or("no tea")?.available);
    receiver.stop().await;
    Ok(())
}
