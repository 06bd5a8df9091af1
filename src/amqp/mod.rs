//! RabbitMQ: publishing with confirms, consuming with acknowledgements.
//!
//! The only module that names the AMQP client; nothing of the client appears in what it offers.
//!
//! # Flow
//!
//! A [`Publisher`] and a [`Consumer`] each own one connection and one supervisor task. The supervisor
//! dials, opens a channel, applies the [`Topology`], serves until anything at all goes wrong, drops the
//! connection and starts again with a growing, jittered pause. Nothing is repaired in place: a half-alive
//! channel and a dead one look the same from outside, a fresh one is known to be good. Only a channel that the broker
//! closed over a message is replaced on the same connection; the publisher then finds that message on a connection for
//! suspects.
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
//! - [`Published::Confirmed`] is said only of a message that the broker acknowledged and did not return.
//! - [`Publisher::publish`] never waits for a connection: without one it answers
//!   [`Published::Unavailable`] at once.
//! - A message that the broker refuses by closing the channel is [`Published::Rejected`] by itself. Each of the others is
//!   published once more at most.
//! - In mode [`TopologyMode::Declare`] a queue or binding that was removed is made again: when a message for it was
//!   unroutable, and whenever a consumer checks its queue.
//! - Closing and stopping end within seconds, whatever the broker does.
//! - A [`Delivery`] of a connection that is gone cannot be acknowledged by mistake; trying is harmless.
//!
//! # Caveats
//!
//! - `Unavailable { maybe_sent: true }` is a message of unknown fate: publishing it again may double it.
//! - The broker announces an alarm only to connections that publish: the first window after the alarm
//!   waits for [`AmqpSettings::confirm_timeout`].
//! - An acknowledgement has no answer. One that is sent just before the connection is closed can be lost on a busy broker,
//!   so that the message is delivered again.
//! - The client logs every message that the broker returns, with its body, as a warning of the target
//!   `lapin::returned_messages`: turn that target off where payloads must not be logged.

mod connection;
mod consume;
mod publish;
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
