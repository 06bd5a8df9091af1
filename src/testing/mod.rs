//! A test kit for applications: an in-memory database behind the same [`Store`](crate::Store), a deliverer that records
//! messages, and a time that is advanced by hand. Needs the feature `testing`.
//!
//! ```
//! use std::time::Duration;
//!
//! use document_outbox::{Aggregate, Message, Outbox, Store, deliver::Outcome, testing::{Kit, SaveFault}};
//! # use serde::{Deserialize, Serialize};
//!
//! # #[derive(Serialize, Deserialize, Aggregate)]
//! # struct Order { #[serde(rename = "_id")] id: String, paid: bool, #[serde(skip)] outbox: Outbox }
//! # impl Order {
//! #     fn new(id: &str) -> Self { Self { id: id.into(), paid: false, outbox: Outbox::default() } }
//! #     fn pay(&mut self) { self.paid = true; self.outbox.send(OrderPaid { order: self.id.clone() }); }
//! # }
//! # #[derive(Serialize, Deserialize, Message, Debug, PartialEq)]
//! # #[message(type = "order.paid")]
//! # struct OrderPaid { order: String }
//! // The code under test, which knows nothing of the kit.
//! async fn pay(orders: &Store<Order>, id: &str) -> Result<(), document_outbox::Error> {
//!     orders.update(id, Order::pay).await?;
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kit = Kit::new();
//! let orders: Store<Order> = kit.store("orders");
//! orders.insert(Order::new("o-1")).await?.applied()?;
//!
//! kit.fail_next_save(SaveFault::Conflict); // `update` tries again
//! kit.recorder().fail_nth(1, Outcome::Transient("no connection".into()));
//! pay(&orders, "o-1").await?;
//! assert!(kit.recorder().messages::<OrderPaid>().is_empty());
//!
//! kit.advance(Duration::from_mins(1)); // the message is due again
//! kit.until_quiet().await?;
//! assert_eq!(kit.recorder().messages::<OrderPaid>(), [OrderPaid { order: "o-1".into() }]);
//! kit.assert_nothing_left();
//! # Ok(())
//! # }
//! ```
//!
//! # Flow
//! A store of the kit sends the same statements as in production. The in-memory database interprets their filters and
//! updates, and the inline dispatcher and the workers' processor deliver the messages to the [`Recorder`]. The tests of
//! this library run on this database and on MongoDB, so that both have the same outcomes.
//!
//! # Caveats
//! The database has one server, whose writes are durable at once. It has no transactions, no raw access to collections,
//! no change streams and no unique indexes except the one on `_id`. A statement that it doesn't interpret is refused
//! with an error that names the operator. docs/testing.md has the complete list.

mod builder;
mod kit;
mod left;
mod recorder;

pub use self::{
    builder::KitBuilder,
    kit::{Kit, NotQuiet},
    left::{LeftMessage, MessageState},
    recorder::{RecordedDelivery, Recorder},
};
pub use crate::mongo::in_memory::fault::SaveFault;
