//! Cancels a time-out, and keeps only the latest of several messages: `cargo run --example change_of_mind`.

use std::time::Duration;

use document_outbox::{
    Aggregate, InlineDispatcher, Message, Mode, Outbox, RevisionOutcome, Store, deliver::Handlers,
};
use mongodb::{Client, bson::oid::ObjectId};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: ObjectId,
    time_out: Option<uuid::Uuid>,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "payment.timed_out")]
struct PaymentTimedOut(ObjectId);

#[derive(Serialize, Deserialize, Message)]
#[message(type = "order.total_changed")]
struct TotalChanged(i64);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let handlers = Handlers::builder().on("print", |_: TotalChanged, _| async { Ok(()) }).build()?;
    let inline = InlineDispatcher::builder(&client).mode(Mode::Await).deliver_to(handlers);
    let orders =
        Store::<Order>::new(client.database("example_change").collection::<Order>("orders"), &inline);

    let mut order = Order { id: ObjectId::new(), time_out: None, outbox: Outbox::default() };
    order.time_out = Some(order.outbox.send_after(PaymentTimedOut(order.id), Duration::from_hours(1)).id());
    let (mut order, _) = orders.insert(order).await?.applied()?;

    for total in [10, 20] {
        order.outbox.send_keyed(TotalChanged(total), "total").when(Duration::from_mins(5));
        orders.save(&mut order).await?.applied()?; // the second save replaces the first message
    }
    let time_out = order.time_out.take().ok_or("there is a time-out")?;
    order.outbox.cancel(time_out); // the payment has arrived
    let receipt = orders.save(&mut order).await?.applied()?.ok_or("the save was written")?;
    assert_eq!(receipt.revision(time_out), Some(RevisionOutcome::Cancelled));
    inline.close(Duration::from_secs(10)).await;
    Ok(())
}
