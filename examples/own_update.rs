//! Adds messages to an update of your own: `cargo run --example own_update`.
//!
//! A repository that writes single fields can continue to write them. The library adds the messages and a fresh etag to
//! the update.

use document_outbox::{
    Aggregate, Dispatch, InlineDispatcher, Message, Mode, Outbox, Store, deliver::Handlers,
};
use mongodb::{Client, bson::doc, bson::oid::ObjectId, options::WriteConcern};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: ObjectId,
    paid: bool,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "order.paid")]
struct OrderPaid(ObjectId);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let handlers = Handlers::builder().on("ship", |_: OrderPaid, _| async { Ok(()) }).build()?;
    let inline = InlineDispatcher::builder(&client).mode(Mode::Await).deliver_to(handlers);
    let collection = client.database("example_own_update").collection::<Order>("orders");
    let orders = Store::<Order>::new(collection.clone(), &inline);
    let id = ObjectId::new();
    orders.insert(Order { id, paid: false, outbox: Outbox::default() }).await?.applied()?;

    let mut outbox = Outbox::default();
    outbox.send(OrderPaid(id));
    let staged = orders.stage(&mut outbox).await?; // writes nothing
    let update = staged.onto(doc! { "$set": { "paid": true } })?; // adds a `$push` of the messages
    let unpaid = doc! { "_id": id, "paid": false };
    let updated = collection.update_one(unpaid, update).write_concern(WriteConcern::majority()).await?;
    assert_eq!(updated.matched_count, 1); // otherwise drop `staged`, because its messages were not written

    let dispatch = staged.committed(id).await; // delivers the messages; without this call, the rescuer does
    assert!(matches!(dispatch, Dispatch::Settled(messages) if messages.len() == 1));
    Ok(())
}
