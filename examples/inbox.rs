//! Shows that a message that arrives twice takes effect once: `cargo run --example inbox`.

use document_outbox::{Aggregate, Error, Inbox, InlineDispatcher, Message, Outbox, Store};
use mongodb::Client;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Serialize, Deserialize, Aggregate)]
struct Stock {
    #[serde(rename = "_id")]
    sku: String,
    available: i64,
    #[serde(default)]
    inbox: Inbox,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "stock.requested")]
struct StockRequested {
    sku: String,
    quantity: i64,
}

/// Handles a message. `id` is the message's id: `envelope.id` or the CloudEvents `id`.
async fn receive(stocks: &Store<Stock>, id: Uuid, message: StockRequested) -> Result<(), Error> {
    let take = |stock: &mut Stock| {
        if stock.inbox.receive(id) {
            stock.available -= message.quantity;
        }
    };
    stocks.update(message.sku.as_str(), take).await.map(|_saved| ())
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::with_uri_str(std::env::var("OUTBOX_MONGODB_URI")?).await?;
    let inline = InlineDispatcher::off(&client);
    let stocks = Store::<Stock>::new(client.database("example_inbox").collection::<Stock>("stocks"), &inline);
    let sku = Uuid::now_v7().to_string();
    let stock = Stock { sku: sku.clone(), available: 5, inbox: Inbox::default(), outbox: Outbox::default() };
    stocks.insert(stock).await?.applied()?;
    let id = Uuid::now_v7();
    for _delivery in 0..2 {
        receive(&stocks, id, StockRequested { sku: sku.clone(), quantity: 2 }).await?;
    }
    assert_eq!(stocks.load(sku.as_str()).await?.map(|stock| stock.available), Some(3));
    Ok(())
}
