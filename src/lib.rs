//! An outbox embedded in MongoDB documents.
//!
//! A document database has no transaction across a document and a broker. So a message is written *into the document that
//! changed*, by the same update, and delivered from there. This crate is what an application links:
//!
//! | step | here |
//! |---|---|
//! | an aggregate sends | [`Document`], [`Message`], [`Outbox`] |
//! | it is saved, with its messages | [`Store`] |
//! | they are delivered right after the save | [`Inline`], [`deliver`] |
//! | a receiving aggregate tells repeats | [`Inbox`] |
//!
//! What inline delivery leaves behind (the process died, the broker was away, a handler failed) is found by the *rescuer* and
//! delivered by the *dispatcher*, two services of their own that meet only in [`command`]. They and the inline dispatcher
//! share one answer to *what may be delivered now* ([`deliverable`]) and one way to do it ([`process`]).
//!
//! ```
//! use document_outbox::{Document, Message, Outbox};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Order {
//!     #[serde(rename = "_id")]
//!     id: String,
//!     paid: bool,
//!     #[serde(skip)]
//!     outbox: Outbox,
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! struct OrderPaid {
//!     order: String,
//! }
//!
//! impl Message for OrderPaid {
//!     const TYPE: &'static str = "order.paid";
//! }
//!
//! impl Document for Order {
//!     type Id = String;
//!     fn id(&self) -> &String {
//!         &self.id
//!     }
//!     fn outbox(&mut self) -> &mut Outbox {
//!         &mut self.outbox
//!     }
//! }
//!
//! impl Order {
//!     fn pay(&mut self) {
//!         self.paid = true;
//!         self.outbox.send(OrderPaid { order: self.id.clone() });
//!     }
//! }
//!
//! let mut order = Order { id: "o-1".into(), paid: false, outbox: Outbox::default() };
//! order.pay();
//! assert_eq!(order.outbox.types(), ["order.paid"]); // no server needed to test an aggregate
//! ```
//!
//! With a server: `Store::new(collection, &inline).update(&id, Order::pay).await?` loads, pays, saves, and delivers.
//!
//! # Features
//! `bson-2` (default) and `bson-3` choose the BSON version that the driver, and so this crate, speaks. With both, the
//! driver speaks 3.
//!
//! `opentelemetry` stores the trace of a save with its messages, so that their delivery continues it. Without, a message
//! carries the `traceparent` that its sender gave it, if any.

pub mod amqp;
mod batch;
mod bytes;
mod caps;
mod claim;
mod clears;
pub mod clock;
mod codec;
pub mod codes;
pub mod command;
mod command_sender;
pub mod deliver;
pub mod deliverable;
mod delivery;
mod document;
pub mod entry;
mod error;
pub mod event;
mod filter;
mod group;
pub mod health;
mod inbox;
pub mod inline;
mod key;
mod lane;
mod linger;
mod majority;
mod memory;
mod message;
pub mod metrics;
mod outbox;
mod oversized;
mod payload;
pub mod process;
mod reads;
mod reply;
mod report;
mod request;
mod retry;
mod runtime;
mod salvage;
mod session;
mod settle;
pub mod store;
pub mod tls;
mod trace;
pub mod turns;
mod under_lease;
mod unsettled;
mod write;

pub use caps::{Caps, MAX_TYPE_BYTES};
pub use codec::CodecError;
pub use command_sender::{CommandSender, SendFailure};
pub use deliverable::Ordering;
pub use document::Document;
pub use error::Error;
pub use event::Shed;
pub use inbox::{Inbox, InboxLimits};
pub use inline::{Dispatch, Inline, Mode};
pub use key::DocumentRef;
pub use message::Message;
pub use outbox::{Due, Outbox, Staged};
pub use retry::RetryPolicy;
pub use store::{Loaded, Store};
