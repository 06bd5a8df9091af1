//! Delivers some message types to functions of this process and the others to RabbitMQ: `cargo run --example router`.

use document_outbox::{
    Aggregate, InlineDispatcher, Message, Outbox, Store,
    deliver::{Deliver, Handlers, RabbitMq, RabbitMqSettings, Router},
};
use mongodb::{Client, bson::oid::ObjectId};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: ObjectId,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(prefix = "order")]
enum OrderEvent {
    Placed { order: ObjectId },
    Paid { order: ObjectId },
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "mail.confirmation")]
struct Confirmation(ObjectId);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let rabbitmq = RabbitMq::start(RabbitMqSettings {
        exchange: "example.router".into(),
        unroutable_ok: OrderEvent::TYPES.iter().map(ToString::to_string).collect(), // no queue receives these
        ..RabbitMqSettings::new(&std::env::var("OUTBOX_RABBITMQ_URI")?)?
    });
    rabbitmq.available().await;
    let mails = Handlers::builder().on("mail", |_: Confirmation, _| async { Ok(()) }).build()?;
    let inline = InlineDispatcher::builder(&client).deliver_to(Router::new(rabbitmq).handlers(mails));
    let orders = client.database("example_router").collection::<Order>("orders");
    let orders = Store::<Order>::new(orders, &inline);

    let mut order = Order { id: ObjectId::new(), outbox: Outbox::default() };
    order.outbox.send(OrderEvent::Placed { order: order.id });
    order.outbox.send(Confirmation(order.id));
    order.outbox.send(OrderEvent::Paid { order: order.id });
    orders.insert(order).await?.applied()?;
    inline.close(std::time::Duration::from_secs(10)).await;
    Ok(())
}
