//! The rescuer: finds the messages that inline dispatch did not deliver, and asks a dispatcher to deliver
//! them.
//!
//! # Flow
//! It reads the change streams of the watched collections a configurable *delay* late. A document whose
//! outbox was filled back then and still has undelivered messages gets a `ProcessDocumentMessages` command on
//! RabbitMQ. In addition, a sweep reads everything that is due, so that no message depends on a change being
//! seen or a command arriving.
//!
//! ```text
//!              ┌─ stream ─▶ follow ─ hold until `delay` old ─▶ page ─┐
//!  MongoDB ────┤                                                     ├─▶ commands ─▶ RabbitMQ
//!              └─ sweep ── by the index, every `sweep_interval` ─────┘
//! ```
//!
//! # Guarantees
//! - Every message that is committed and stays undelivered is queued: by the stream `delay` after its save, or by the sweep
//!   once it is due.
//! - The saved position is a low-water mark. A crash at any moment repeats commands, and loses none.
//! - A position that is lost, unreadable, or for other patterns loses no message (see [`OnHistoryLost`]).
//! - Memory doesn't grow with the delay, the backlog, or an outage of the broker.
//!
//! # Assumptions
//! MongoDB 6.0 or later as a replica set or a sharded cluster; the index of [`Settings`]' collections on
//! `outbox.available_at`, without which the sweep reads collections from end to end, slowly. It only needs to
//! read the watched collections and to write its state database.
//!
//! # Caveats
//! - A command is a hint. Extra commands are harmless; they occur after a crash, and for a busy document.
//! - The oplog has to reach back further than the delay.
//! - Several rescuers of a name are standbys for each other: one owns a stream, for as long as it renews its
//!   lease in the state database; the others stand by.
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

/// The decisions that the proofs share with this crate. No part of its interface: it may change in any version.
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
    };
}
