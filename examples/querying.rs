//! Reads lists and reports with the driver's queries instead of the store: `cargo run --example querying`.

use document_outbox::{Aggregate, InlineDispatcher, Outbox, Store};
use futures::TryStreamExt;
use mongodb::{Client, bson::doc, bson::oid::ObjectId};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: ObjectId,
    customer: String,
    total: i64,
    #[serde(skip)]
    outbox: Outbox,
}

/// A row of a list, with the fields that the list shows, and without the outbox.
#[derive(Deserialize)]
struct Row {
    #[serde(rename = "_id")]
    id: ObjectId,
    total: i64,
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let collection = client.database("example_querying").collection::<Order>("orders");
    let orders = Store::<Order>::new(collection.clone(), &InlineDispatcher::off(&client));
    let customer = ObjectId::new().to_hex();
    for total in [10, 30, 20] {
        let order =
            Order { id: ObjectId::new(), customer: customer.clone(), total, outbox: Outbox::default() };
        orders.insert(order).await?.applied()?;
    }

    let list = collection.clone_with_type::<Row>();
    let rows = list
        .find(doc! { "customer": &customer })
        .sort(doc! { "total": -1 })
        .projection(doc! { "total": 1 })
        .await?;
    let rows: Vec<Row> = rows.try_collect().await?;
    assert_eq!(rows.iter().map(|row| row.total).collect::<Vec<_>>(), [30, 20, 10]);

    // To change an order, load it by its id. A struct that a query returned has no etag, so it can't be saved.
    orders.update(&rows[0].id, |order| order.total += 1).await?;
    Ok(())
}
