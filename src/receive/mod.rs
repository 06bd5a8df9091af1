//! Receives messages for functions and aggregates, from a queue of RabbitMQ or inside the process.
//!
//! The functions and aggregates are [`Subscriptions`]. A [`Receiver`] gives them the messages of a queue. Without a broker,
//! [`HandlersBuilder::subscriptions`](crate::deliver::HandlersBuilder::subscriptions) gives them the messages that the
//! process delivers itself. The rest of this page is about receivers.
//!
//! ```no_run
//! # use document_outbox::{Aggregate, Inbox, Message, Outbox, Store, amqp::AmqpSettings};
//! # use document_outbox::receive::{Receiver, ReceiverSettings, Subscriptions};
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Serialize, Deserialize, Message)]
//! # #[message(type = "stock.requested")]
//! # struct StockRequested { sku: String, quantity: i64 }
//! # #[derive(Serialize, Deserialize, Aggregate)]
//! # struct Stock {
//! #     #[serde(rename = "_id")] sku: String, available: i64,
//! #     #[serde(default)] inbox: Inbox, #[serde(skip)] outbox: Outbox,
//! # }
//! # impl Stock {
//! #     fn new(sku: String) -> Self { Self { sku, available: 0, inbox: Inbox::default(), outbox: Outbox::default() } }
//! # }
//! # async fn run(stocks: Store<Stock>) -> Result<(), Box<dyn std::error::Error>> {
//! let subscriptions = Subscriptions::new().into_aggregate(
//!     &stocks,
//!     |request: &StockRequested| request.sku.clone(),
//!     Stock::new,
//!     |stock, request| stock.available -= request.quantity,
//! );
//! let amqp = AmqpSettings::new("amqp://localhost")?;
//! let receiver = Receiver::new(amqp, subscriptions, ReceiverSettings::new("stock"))?.start();
//! // …
//! receiver.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Flow
//! A [`Receiver`] takes messages from its queue, up to its prefetch. Messages with the same [key](ReceivedMessage::key)
//! are handled one after another, messages with different keys at the same time. A message is decoded and given to the
//! function of its type, or applied to an aggregate. The outcome decides what happens next:
//!
//! | outcome | what happens to the message |
//! |---|---|
//! | the message was applied, or the aggregate had received it before | the message is acknowledged |
//! | transient failure | the receiver holds the message and tries it again with growing pauses, while later messages of the same key wait; after a while the message goes to the delay queue; after several delays it is dead |
//! | permanent failure, or undecodable body | the message is dead at once |
//! | something that the message needs is unavailable | the message is tried again until that is available; meanwhile no other messages are taken, and no failure is counted |
//! | unknown type | the message is dead, rejected or ignored, depending on the [setting](UnknownTypes) |
//!
//! A dead message is in the dead-letter queue, with the reason as headers. A dead or delayed message leaves the receiver's
//! queue only after the broker has confirmed the copy in the other queue.
//!
//! # Guarantees
//! - A message is acknowledged only after its function has returned, or after the majority of MongoDB has the aggregate's save.
//! - An aggregate applies each message once, as long as its [`Inbox`](crate::Inbox) remembers the message.
//! - A failing message delays only later messages of its own key. A message without a key delays no other message.
//! - No message is lost when a process dies: the broker delivers again every message that was not acknowledged.
//!
//! # Caveats
//! - A function that was added with [`on`](Subscriptions::on) may get a message twice.
//! - Order holds for messages of one key in one process; docs/receiving.md lists ways to keep order across several processes.
//! - A function must not block its thread; a function that blocks can't be aborted.

mod aggregate;
#[cfg(feature = "rabbitmq")]
mod copies;
#[cfg(feature = "rabbitmq")]
mod decide;
#[cfg(feature = "rabbitmq")]
mod delayed;
#[cfg(feature = "rabbitmq")]
mod event;
mod handled;
mod in_process;
#[cfg(feature = "rabbitmq")]
mod intake;
#[cfg(feature = "rabbitmq")]
mod key_order;
mod message;
#[cfg(feature = "rabbitmq")]
mod metrics;
#[cfg(feature = "rabbitmq")]
mod outage;
#[cfg(feature = "rabbitmq")]
mod read_delivery;
#[cfg(feature = "rabbitmq")]
mod receiver;
#[cfg(feature = "rabbitmq")]
mod settings;
#[cfg(feature = "rabbitmq")]
mod settle;
#[cfg(feature = "rabbitmq")]
mod status;
mod subscriptions;
#[cfg(feature = "rabbitmq")]
mod taken;
#[cfg(feature = "rabbitmq")]
mod worker;

pub use self::{
    aggregate::Applies,
    message::{ReceivedMessage, Undecodable},
    subscriptions::Subscriptions,
};
#[cfg(feature = "rabbitmq")]
pub use self::{
    decide::DeadCause,
    event::{MessageName, ReceiverEvent},
    receiver::{Receiver, RunningReceiver},
    settings::{DelayedOrder, InvalidReceiver, ReceiverSettings, UnknownTypes},
    status::{ReceiverSnapshot, ReceiverStatus},
};
