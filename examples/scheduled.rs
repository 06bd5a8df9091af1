//! Sends a message that the save stores and that is delivered later: `cargo run --example scheduled`.
//!
//! There is no timer. The rescuer's sweep finds the message once it is due, by the server's clock.

use std::time::Duration;

use document_outbox::{
    Aggregate, Dispatch, Due, InlineDispatcher, Message, Outbox, Store, deliver::Handlers,
};
use mongodb::{Client, bson::oid::ObjectId};
use serde::{Deserialize, Serialize};

const THREE_DAYS: Duration = Duration::from_hours(72);

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: ObjectId,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "payment.reminder")]
struct PaymentReminder(ObjectId);

impl Order {
    fn place() -> Self {
        let mut order = Self { id: ObjectId::new(), outbox: Outbox::default() };
        order.outbox.send_after(PaymentReminder(order.id), THREE_DAYS);
        order
    }
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let handlers = Handlers::builder().on("remind", |_: PaymentReminder, _| async { Ok(()) }).build()?;
    let inline = InlineDispatcher::builder(&client).deliver_to(handlers);
    let orders =
        Store::<Order>::new(client.database("example_scheduled").collection::<Order>("orders"), &inline);

    let order = Order::place();
    assert!(order.outbox.iter().all(|message| message.due() == Due::After(THREE_DAYS)));
    let (_order, receipt) = orders.insert(order).await?.applied()?;
    assert_eq!(receipt.dispatch, Dispatch::Scheduled); // stored, and not due yet
    inline.close(Duration::from_secs(10)).await;
    Ok(())
}
