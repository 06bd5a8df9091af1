//! The rescuer: finds the messages that inline dispatch did not deliver, and asks a dispatcher to deliver
//! them.
//!
//! # Flow
//! The rescuer reads the change streams of the watched collections with a configurable *delay*. If a change
//! filled a document's outbox and the document still has undelivered messages after the delay, the rescuer
//! sends a `ProcessDocumentMessages` command for the document to RabbitMQ. In addition, a sweep reads every
//! entry that is due, so that a message is delivered even if its change was missed or its command was lost.
//!
//! ```text
//!              ┌─ stream ─▶ follow ─ hold until `delay` old ─▶ page ─┐
//!  MongoDB ────┤                                                     ├─▶ commands ─▶ RabbitMQ
//!              └─ sweep ── by the index, every `sweep_interval` ─────┘
//! ```
//!
//! # Guarantees
//! - For every message that is committed and stays undelivered, a command is queued: by the stream, `delay`
//!   after the save, or by the sweep, once the message is due.
//! - The saved position is a low-water mark. A crash at any moment may repeat commands, but loses
//!   none.
//! - No message is lost if a position is lost, is unreadable, or was saved for other patterns (see
//!   [`OnHistoryLost`]).
//! - Memory doesn't grow with the delay, the backlog, or an outage of the broker.
//!
//! # Assumptions
//! The rescuer needs MongoDB 6.0 or later as a replica set or a sharded cluster. The watched collections
//! should have the index on `outbox.available_at`; without it the sweep is slow, because it reads the
//! collections from end to end. The rescuer only needs permission to read the watched collections, and to
//! read and write its state database.
//!
//! # Caveats
//! - A command is only a hint, so extra commands are harmless. The rescuer may send them after a crash, and
//!   for a document that changes often.
//! - The oplog must cover more time than the delay.
//! - Several rescuers with the same name are standbys for each other: one rescuer owns a stream for as long
//!   as it renews its lease in the state database, and the other rescuers wait.
//!
//! # Example
//! ```no_run
//! use document_outbox::amqp::AmqpSettings;
//! use outbox_rescuer::{Rescuer, Settings};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = mongodb::Client::with_uri_str("mongodb://localhost/?replicaSet=rs0").await?;
//! let amqp = AmqpSettings::new("amqp://localhost")?;
//! let rescuer = Rescuer::embedded(&client, amqp, Settings::watching("shop.*")?)?.start();
//! // …
//! rescuer.stop().await?;
//! # Ok(())
//! # }
//! ```

mod classify;
mod commands;
mod error;
mod halt;
mod hash;
mod judge;
mod leadership;
mod lineage;
mod mongo;
mod observe;
mod owner;
mod pauses;
mod process;
mod rescuer;
mod send;
mod serve;
mod settings;
mod stream;
mod sweep;
mod watch_plan;

pub use commands::{BrokerCommands, Commands};
pub use error::RescuerError;
pub use observe::event::{ReopenCause, RescueEvent, StartedFrom};
pub use observe::snapshot::{LastError, LastSweep, Role, Snapshot, StreamStatus};
pub use observe::status::Status;
pub use observe::warning::{Expiry, Unwatchable, Warning};
pub use outbox_service::{
    CancellationToken, InvalidPattern, InvalidSettings, NamespacePattern, SettingsProblem,
};
pub use rescuer::{Rescuer, Running};
pub use settings::{LONGEST_DELAY, LONGEST_LEASE, OnHistoryLost, SHORTEST_DELAY, SHORTEST_LEASE, Settings};
pub use stream::filter::pipelines;

/// The decisions that the proofs share with this crate. This module is not part of the crate's interface
/// and may change in any version.
#[doc(hidden)]
pub mod internal {
    pub use crate::{
        commands::Ability,
        judge::verdict::{Head, Moment, Verdict, judge},
        leadership::{
            lease::{AbleStandby, Seen},
            watch::{Next, Watch, may_yield},
        },
        send::recently_queued::{Admission, RecentlyQueued, SweptEntries},
        stream::{
            low_water::{InHand, LowWater, Page, fill_page},
            position::{FoundPosition, Here, Mark, Start, start},
        },
        sweep::query::{due_by, undated},
    };
}
