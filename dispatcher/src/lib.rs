//! The dispatcher worker of document-outbox: consumes commands and finishes what an inline dispatcher could not.
//!
//! # Flow
//! ```text
//! commands queue ─▶ admitted? ─▶ the document's turn ─▶ a pass over it ─▶ what it came to
//!                     │ no          │ another waits        ▲                 ├─ nothing left ─────────────▶ acknowledged
//!                     ▼             ▼                      │                 ├─ due in a moment, or an error
//!                  rejected    acknowledged                └──── wait ◀──────┘     that passes
//!                                                                            └─ else ─▶ left to the sweep: acknowledged
//! ```
//! A pass is the library's [`Processor`](document_outbox::dispatch::Processor): it reads, claims, delivers and settles. This
//! crate decides when: which commands are admitted, how many documents at a time, how long a command is kept.
//!
//! # Guarantees
//! - A command is acknowledged only once its processing has ended, after the delivered messages left the
//!   document.
//! - One document is processed by one task of this process at a time.
//! - A worker that cannot process commands takes none, and is not ready: while MongoDB cannot be reached, and
//!   when for a minute it had only commands of another cluster, or commands that MongoDB refuses to its user.
//!   It requeues the commands that it has.
//! - A stop lets unfinished work continue for a while, then releases the claims. An unfinished command is
//!   never acknowledged: the broker hands it to another worker.
//!
//! # Why some commands are acknowledged although messages are left
//! The document is the truth, the command a hint. The rescuer's sweep finds every document with something
//! due, so a command that can't be finished soon is let go. Requeued, it would return at once, as often as
//! the broker allows, and then be dropped; held too long it would end the consumer (RabbitMQ's
//! `consumer_timeout`, 30 minutes).
//!
//! # Assumptions
//! A rescuer runs. Without it, a command that is left to the sweep is followed by no other.
//!
//! # Use
//! The binary `outbox-dispatcher` publishes the outboxes of any collection to RabbitMQ, without knowing their
//! types. To run handlers of your own, or to run inside the application, give [`Dispatcher::new`] a processor
//! with your [`Deliver`](document_outbox::deliver::Deliver).

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
mod repeats;
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

/// The decisions that the proofs share with this crate. No part of its interface: it may change in any version.
#[doc(hidden)]
pub mod internal {
    pub use crate::{
        decision::{CommandState, Decision, Policy, Unable},
        pass::PassOutcome,
    };
}
