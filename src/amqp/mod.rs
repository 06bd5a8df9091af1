//! Publishes to RabbitMQ with confirms, and consumes with acknowledgements.
//!
//! This is the only module that uses the AMQP client library, and its interface does not expose that library.
//!
//! # Flow
//!
//! A [`Publisher`] and a [`Consumer`] each own one connection and one supervisor task. The supervisor connects, opens
//! a channel, applies the [`Topology`], and works until a failure. Then it drops the connection and starts again after
//! a growing, jittered pause. The supervisor never repairs a channel, because a half-alive channel can't be
//! distinguished from a dead one, while a new channel is known to be good. Only a channel that the broker closed
//! because of a message is replaced on the same connection; the publisher then uses a separate connection to find out
//! which message was the cause.
//!
//! ```text
//!            ┌───────────── pause ◀──────────────┐
//!            ▼                                   │
//!  Connecting ── dial, channel, topology ──▶ Ready ⇄ Blocked (memory or disk alarm of the broker)
//!            └── refused ─▶ Disconnected | Misconfigured
//! ```
//!
//! # Guarantees
//!
//! - [`Published::Confirmed`] is returned only for a message that the broker acknowledged and did not return.
//! - [`Publisher::publish`] never waits for a connection. If there is no connection, the call returns
//!   [`Published::Unavailable`] at once.
//! - If the broker refuses a message by closing the channel, only that message is [`Published::Rejected`]. Each of the
//!   other messages is published again at most once.
//! - In mode [`TopologyMode::Declare`] a queue or binding that was removed is declared again when a message for it was
//!   unroutable, and whenever a consumer checks its queue.
//! - Closing and stopping complete within seconds, whatever the broker does.
//! - A [`Delivery`] whose connection is gone cannot be acknowledged by mistake. An attempt to acknowledge such a
//!   delivery is harmless.
//!
//! # Caveats
//!
//! - After `Unavailable { maybe_sent: true }` the outcome is unknown, and the message may be duplicated if it is
//!   published again.
//! - The broker announces an alarm only to connections that publish, so the first window after the alarm waits for
//!   [`AmqpSettings::confirm_timeout`].
//! - The broker does not answer acknowledgements. If an acknowledgement is sent just before the connection is closed,
//!   a busy broker can lose the acknowledgement and deliver the message again.
//! - The client logs every message that the broker returns, with its body, as a warning with the target
//!   `lapin::returned_messages`. Turn that target off if payloads must not be logged.

mod connection;
mod consume;
pub(crate) mod inspect;
pub(crate) mod publish;
mod settings;
mod state;
mod supervise;
mod topology;
mod transport;
mod trouble;

pub use consume::{Consumer, Delivery};
pub use publish::{Publication, Published, Publisher};
pub use settings::{AmqpSettings, AmqpSettingsError};
pub use state::State;
pub use topology::{ExchangeKind, ExchangeSpec, QueueSpec, Topology, TopologyMode};
