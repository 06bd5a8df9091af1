//! The dispatcher worker of document-outbox: consumes commands and finishes deliveries that an inline
//! dispatcher did not finish.
//!
//! # Flow
//! ```text
//! commands queue ─▶ admitted? ─▶ the document's turn ─▶ a pass over it ─▶ the result
//!                     │ no          │ another waits        ▲                 ├─ nothing left ─────────────▶ acknowledged
//!                     ▼             ▼                      │                 ├─ due in a moment, or an error
//!                  rejected    acknowledged                └──── wait ◀──────┘     that passes
//!                                                                            └─ else ─▶ left to the sweep: acknowledged
//! ```
//! A pass is the library's [`Processor`](document_outbox::dispatch::Processor) at work: it reads, claims,
//! delivers and settles. This crate decides which commands are admitted, how many documents are processed
//! at a time, and how long a command is kept.
//!
//! # Guarantees
//! - A command is acknowledged only after its processing has ended and the delivered messages have left
//!   the document.
//! - At most one task of a process works on a document at a time.
//! - A worker that cannot process commands takes none, and is not ready. This applies while MongoDB cannot
//!   be reached, and after a minute in which all commands were from another cluster or were for
//!   collections that MongoDB denies to the worker's user. The worker requeues the commands that it
//!   already has.
//! - During a stop, unfinished work continues for a while; then the claims are released. An unfinished
//!   command is never acknowledged, so the broker hands it to another worker.
//!
//! # Why some commands are acknowledged although messages remain
//! The document is the truth; the command is only a hint. The rescuer's sweep finds every document with a due
//! message, so a command that can't be finished soon is acknowledged anyway. If it were requeued, it would
//! return at once, again and again, until the broker drops it at the delivery limit; if it were kept too
//! long, the broker would end the consumer (RabbitMQ's `consumer_timeout`, 30 minutes).
//!
//! # Assumptions
//! The dispatcher assumes that a rescuer is running. Without a rescuer, no further command is sent for
//! messages that were left to the sweep.
//!
//! # Use
//! The binary `outbox-dispatcher` publishes the outboxes of any collection to RabbitMQ, without knowing
//! the message types. To run your own handlers, or to run the worker inside an application, use
//! [`Dispatcher::embedded`], or give [`Dispatcher::new`] a processor with your
//! [`Deliver`](document_outbox::deliver::Deliver).

mod ability;
mod admission;
mod cluster;
mod consumer;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod daemon;
mod decision;
mod dispatcher;
mod event;
mod intake;
mod metrics;
mod mongodb_errors;
mod pass;
mod put_back;
mod rate;
mod reach;
mod settings;
mod status;
mod stops;
mod worker;

pub use admission::Refusal;
pub use consumer::ConsumerSnapshot;
pub use dispatcher::{Dispatcher, Ended, Running};
pub use event::{DispatcherEvent, Left};
pub use outbox_service::{InvalidPattern, InvalidSettings, NamespacePattern, SettingsProblem};
pub use rate::{InvalidRate, Rate};
pub use settings::DispatcherSettings;
pub use status::{Snapshot, Status};

/// The decisions that the proofs share with this crate. This module is not part of the crate's interface
/// and may change in any version.
#[doc(hidden)]
pub mod internal {
    pub use crate::{
        decision::{CommandState, Decision, Policy, Unable},
        pass::PassOutcome,
    };
}
