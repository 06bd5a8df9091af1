//! Checks existing documents for name conflicts, and creates the indexes: `cargo run --example migration`.

use document_outbox::{Aggregate, InlineDispatcher, Message, Outbox, Store, deliver::Handlers};
use mongodb::{Client, bson::Document, bson::doc, bson::oid::ObjectId};
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
    let collection = client.database("example_migration").collection::<Document>("orders");
    // Insert a document as another program wrote it, with a field that the struct doesn't know.
    let id = ObjectId::new();
    collection.insert_one(doc! { "_id": id, "paid": false, "legacy": 7 }).await?;

    // The migration checks that no document has a foreign field `outbox`, and creates the two indexes for pending and
    // dead messages.
    let taken = doc! { "outbox": { "$exists": true, "$not": { "$type": "array" } } };
    if let Some(document) = collection.find_one(taken).await? {
        return Err(format!("rename `outbox` first: {:?}", document.get("_id")).into());
    }
    let handlers = Handlers::builder().on("ship", |_: OrderPaid, _| async { Ok(()) }).build()?;
    let inline = InlineDispatcher::builder(&client).deliver_to(handlers);
    let orders = Store::<Order>::new(collection.clone(), &inline);
    orders.ensure_indexes().await?;

    // The documents themselves need no migration: the first save adds the missing fields and keeps unknown ones.
    let pay = |order: &mut Order| {
        order.paid = true;
        order.outbox.send(OrderPaid(order.id)).id()
    };
    orders.update(&id, pay).await?;
    inline.close(std::time::Duration::from_secs(10)).await;
    let stored =
        collection.find_one(doc! { "_id": id, "paid": true, "legacy": 7, "etag": { "$exists": true } });
    assert!(stored.await?.is_some());
    Ok(())
}
