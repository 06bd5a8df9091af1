//! RabbitMQ: publishing with confirms, consuming with acknowledgements.
//!
//! The only module that names the AMQP client; its interface does not expose the client.
//!
//! # Flow
//!
//! A [`Publisher`] and a [`Consumer`] each own one connection and one supervisor task. The supervisor
//! connects, opens a channel, applies the [`Topology`], serves until any failure, drops the connection and
//! starts again with a growing, jittered pause. It never repairs a channel: a half-alive channel and a dead
//! one can't be distinguished from outside, a new one is known to be good. Only a channel that the broker
//! closed because of a message is replaced on the same connection; the publisher then finds that message on a
//! connection for suspects.
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
//! - [`Published::Confirmed`] is answered only for a message that the broker acknowledged and did not return.
//! - [`Publisher::publish`] never waits for a connection: without one it answers
//!   [`Published::Unavailable`] at once.
//! - If the broker refuses a message by closing the channel, only that message is [`Published::Rejected`].
//!   Each of the others is published again at most once.
//! - In mode [`TopologyMode::Declare`] a queue or binding that was removed is declared again: when a message
//!   for it was unroutable, and whenever a consumer checks its queue.
//! - Closing and stopping end within seconds, whatever the broker does.
//! - A [`Delivery`] of a connection that is gone cannot be acknowledged by mistake; trying is harmless.
//!
//! # Caveats
//!
//! - With `Unavailable { maybe_sent: true }` the outcome is unknown: publishing the message again may
//!   duplicate it.
//! - The broker announces an alarm only to connections that publish: the first window after the alarm
//!   waits for [`AmqpSettings::confirm_timeout`].
//! - An acknowledgement has no answer. One that is sent just before the connection is closed can be lost on a busy broker,
//!   so that the message is delivered again.
//! - The client logs every message that the broker returns, with its body, as a warning of the target
//!   `lapin::returned_messages`: turn that target off if payloads must not be logged.

mod connection;
mod consume;
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
