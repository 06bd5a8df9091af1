//! Runs application, rescuer and dispatcher in one process: `cargo run --example in_process`.

use document_outbox::{
    Aggregate, InlineDispatcher, Message, Mode, Outbox, Store, amqp::AmqpSettings, deliver::Handlers,
};
use mongodb::{Client, bson::oid::ObjectId};
use outbox_dispatcher::{Dispatcher, DispatcherSettings};
use outbox_rescuer::{Rescuer, Settings};
use serde::{Deserialize, Serialize};

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
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    let handlers = Handlers::builder().on("ship", move |OrderPlaced(order), _| {
        let sent = sender.send(order);
        async move { Ok(sent?) }
    });
    let handlers = handlers.build()?;
    let amqp = AmqpSettings::new(&std::env::var("OUTBOX_RABBITMQ_URI")?)?;
    let watch = Settings::watching("example_in_process.*")?;
    let watch = watch.with(|settings| settings.delay = std::time::Duration::from_secs(1));
    let rescuer = Rescuer::embedded(&client, amqp.clone(), watch)?.start();
    let watch = DispatcherSettings::watching("example_in_process.*")?;
    let dispatcher = Dispatcher::embedded(&client, handlers.clone(), amqp, watch)?.start();

    // Turn inline delivery off, as if the process had died after the save. The services find the message.
    let inline = InlineDispatcher::builder(&client).mode(Mode::Off).deliver_to(handlers);
    let orders = client.database("example_in_process").collection::<Order>("orders");
    let orders = Store::<Order>::new(orders, &inline);
    let mut order = Order { id: ObjectId::new(), outbox: Outbox::default() };
    order.outbox.send(OrderPlaced(order.id));
    let (order, _receipt) = orders.insert(order).await?.applied()?;
    while received.recv().await.ok_or("the handler is gone")? != order.id {}

    let (stopped, ()) = tokio::join!(rescuer.stop(), dispatcher.stop());
    Ok(stopped?)
}
