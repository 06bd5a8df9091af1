//! Tests code that saves and sends, without servers: `cargo run --example testing --features testing`. See
//! docs/testing.md.

use std::time::Duration;

use document_outbox::{Aggregate, Error, Message, Outbox, Store, deliver::Outcome, testing::Kit};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: String,
    paid: bool,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(type = "order.paid")]
struct OrderPaid(String);

/// The code under test.
async fn pay(orders: &Store<Order>, id: &str) -> Result<(), Error> {
    let pay = |order: &mut Order| {
        order.paid = true;
        order.outbox.send(OrderPaid(order.id.clone()));
    };
    orders.update(id, pay).await?;
    Ok(())
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kit = Kit::new(); // in-memory database, recording deliverer, time that is advanced by hand
    let orders = kit.store::<Order>("orders");
    let new = Order { id: "o-1".into(), paid: false, outbox: Outbox::default() };
    orders.insert(new).await?.applied()?;

    kit.recorder().fail_nth(1, Outcome::Transient("no connection".into()));
    pay(&orders, "o-1").await?; // the save succeeds, although the delivery fails
    assert!(kit.recorder().messages::<OrderPaid>().is_empty());

    kit.advance(Duration::from_mins(1)); // now the message is due again
    kit.until_quiet().await?;
    assert_eq!(kit.recorder().messages::<OrderPaid>(), [OrderPaid("o-1".into())]);
    kit.assert_nothing_left();
    Ok(())
}
