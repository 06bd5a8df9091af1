//! An outbox embedded in MongoDB documents.
//!
//! A document database has no transaction that spans a document and a broker. So a message is written *into the
//! document that changed*, by the same update, and delivered from that document. An application links this crate,
//! which has the following parts:
//!
//! | step | here |
//! |---|---|
//! | an aggregate sends | [`Aggregate`], [`Message`], [`Outbox`] |
//! | the aggregate is saved, with its messages | [`Store`] |
//! | the messages are delivered right after the save | [`InlineDispatcher`], [`deliver`] |
//! | a receiving aggregate recognises repeats | [`Inbox`] |
//! | messages are received, from RabbitMQ or inside the process | [`receive`] |
//!
//! Messages that inline delivery misses (the process died, the broker was unavailable, a handler failed) are found by
//! the *rescuer* and delivered by the *dispatcher*. The rescuer and the dispatcher are separate services: the rescuer
//! sends commands (see [`command`]) to the dispatcher. The services and the inline dispatcher use the same rules about
//! *which messages may be delivered now*, and the same implementation of delivery
//! ([`Processor`](dispatch::Processor)).
//!
//! ```
//! use document_outbox::{Aggregate, Message, Outbox};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, Aggregate)]
//! struct Order {
//!     #[serde(rename = "_id")]
//!     id: String,
//!     paid: bool,
//!     #[serde(skip)]
//!     outbox: Outbox,
//! }
//!
//! #[derive(Serialize, Deserialize, Message)]
//! #[message(type = "order.paid")]
//! struct OrderPaid {
//!     order: String,
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
//! `derive` (default) provides the derive macros [`Aggregate`](macro@Aggregate) and [`Message`](macro@Message).
//!
//! `rabbitmq` (default) provides the destination [`deliver::RabbitMq`], [`CommandSender`], the receiver of [`receive`],
//! [`amqp`], and the description of messages by [`asyncapi`].
//! Without this feature no AMQP client is linked. Turn the feature off if all messages go to handlers or to your own
//! destination.
//!
//! `rustls-ring` (default) and `rustls-aws-lc` choose the library that encrypts connections. If both are on, AWS-LC is
//! used. `dns-resolver` (default) resolves `mongodb+srv` names.
//!
//! `bson-2` (default) and `bson-3` choose the BSON version of the driver, and so of this crate. If both are on, or if
//! another crate turns on the driver's `bson-3`, version 3 is used.
//!
//! `testing` provides the module `testing`, a test kit for applications with an in-memory database.
//!
//! `schemars` adds the schemas of payloads to AsyncAPI documents.
//!
//! `opentelemetry` stores the trace context of a save with its messages, so that the delivery continues that trace.
//! Without this feature, a message carries only a `traceparent` header that its sender added.

#![cfg_attr(test, allow(clippy::pedantic, reason = "these lints apply to product code, not to tests"))]

#[cfg(all(feature = "rabbitmq", not(any(feature = "rustls-ring", feature = "rustls-aws-lc"))))]
compile_error!(
    "the feature `rabbitmq` also needs `rustls-ring` or `rustls-aws-lc`, which encrypts connections"
);

mod aggregate;
#[cfg(feature = "rabbitmq")]
pub mod amqp;
#[cfg(feature = "rabbitmq")]
pub mod asyncapi;
pub mod command;
pub mod deliver;
pub mod dispatch;
mod encoding;
mod mongo;
pub mod observe;
pub mod receive;
pub mod store;
mod stored;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "rabbitmq")]
pub mod tls;

pub use aggregate::{
    Aggregate, ReceivingAggregate,
    due::Due,
    inbox::{Inbox, InboxLimits},
    message::Message,
    outbox::{Outbox, PendingMessage},
    revision::{Revised, Revision, RevisionOutcome},
};
#[cfg(feature = "rabbitmq")]
pub use command::sender::{CommandSender, SendFailure};
pub use dispatch::{Dispatch, InlineDispatcher, Mode, RetryPolicy};
#[cfg(feature = "derive")]
pub use document_outbox_derive::{Aggregate, Message};
pub use encoding::codec::CodecError;
pub use observe::Shed;
pub use store::{Caps, Error, Loaded, MAX_TYPE_BYTES, Store};
pub use stored::{deliverable::DeliveryOrder, document_ref::DocumentRef};

/// The bounds that derived implementations put on type parameters. Not part of the interface.
#[cfg(feature = "derive")]
#[doc(hidden)]
pub mod derived {
    pub use serde::Serialize;
    use serde::de::DeserializeOwned;

    /// The requirements that an [`Aggregate`](crate::Aggregate) struct must meet.
    pub trait Stored: Serialize + DeserializeOwned + Send + Sync {}
    impl<T: Serialize + DeserializeOwned + Send + Sync> Stored for T {}

    /// The requirements that the id of an [`Aggregate`](crate::Aggregate) must meet.
    pub trait Id: Serialize + Send + Sync {}
    impl<T: Serialize + Send + Sync> Id for T {}
}

/// Items that the rescuer, the dispatcher, their services and the proofs share with this crate. These items are not
/// part of the crate's interface and may change in any version.
#[doc(hidden)]
pub mod internal {
    #[cfg(feature = "rabbitmq")]
    pub use crate::{
        amqp::{
            inspect::{BrokerQueue, queue_state},
            publish::window::{Confirm, Returned, judge as judge_window},
        },
        deliver::published::outcome,
        tls::provider,
    };
    pub use crate::{
        dispatch::{
            attempt::is_enough,
            document_locks::{DocumentLock, DocumentLocks},
            due_again::due_again,
            settlement::{Settlement, settlement},
        },
        encoding::{
            codec::rfc3339,
            extended_json::{canonical, read as read_extended_json, relaxed_text},
            one_line::{Keep, one_line},
            payload::encode as encode_payload,
        },
        mongo::{
            clock::{ServerClock, later, until},
            doubt::{AfterFailure, GivenUp, after_failure, given_up},
            error_codes,
        },
        observe::repeats::Repeats,
        stored::{
            deliverable::{Deliverable, Hold, Rules, deliverable, hold},
            entry::{Dead, DeadReason, Entry, NotAnArray, Slot, Unreadable, read_outbox, read_outbox_of},
        },
    };
}
