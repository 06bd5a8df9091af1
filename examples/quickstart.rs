//! Places an order and receives its message in the same process: `cargo run --example quickstart`.

use document_outbox::{Aggregate, InlineDispatcher, Message, Outbox, Store, deliver::Handlers};
use mongodb::{Client, bson::oid::ObjectId};

#[derive(serde::Serialize, serde::Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: ObjectId,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(serde::Serialize, serde::Deserialize, Message)]
#[message(type = "order.placed")]
struct OrderPlaced(ObjectId);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let handlers = Handlers::builder().on("print", |OrderPlaced(order), _| async move {
        println!("received order.placed {order}");
        Ok(())
    });
    let inline = InlineDispatcher::builder(&client).deliver_to(handlers.build()?);
    let orders = Store::<Order>::new(client.database("shop").collection::<Order>("orders"), &inline);
    let mut order = Order { id: ObjectId::new(), outbox: Outbox::default() };
    order.outbox.send(OrderPlaced(order.id));
    orders.insert(order).await?.applied()?; // the order and its message, in one write
    inline.close(std::time::Duration::from_secs(10)).await; // waits for deliveries in progress
    Ok(())
}
