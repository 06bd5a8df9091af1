//! What became of messages: of a document's, of a save's, and of each.

use mongodb::bson::{DateTime, Uuid};

use crate::{
    observe::event::Shed,
    stored::{
        deliverable::{Hold, hold},
        entry::{Entry, Slot},
    },
};

/// Why processing a document came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processed {
    /// Nothing is left that could be delivered.
    Done,
    /// What is left waits.
    Held(Hold),
    /// The document is not there.
    Gone,
    /// There is no way to deliver now.
    Unavailable,
    /// Shutdown interrupted it; what was held is released.
    Interrupted,
}

/// What the inline dispatcher made of a save's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dispatch {
    /// The save had no messages.
    Nothing,
    /// They are on their way.
    Background,
    /// Each was tried, in the order sent.
    Settled(Vec<(uuid::Uuid, Disposition)>),
    /// The rescuer delivers them.
    Skipped(Shed),
    /// None of them is due yet: the rescuer delivers them when they are.
    Scheduled,
    /// Switched off: the rescuer delivers them.
    Off,
}

/// What became of one message in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// It was delivered and confirmed.
    Delivered,
    /// A delivery failed; it is tried again.
    Retrying {
        /// What went wrong.
        error: String,
    },
    /// It was given up, and waits for an operator.
    Dead {
        /// What went wrong.
        error: String,
    },
    /// It is not due yet; the rescuer finds it when it is.
    Scheduled,
    /// It was not tried yet, or not to the end; the rescuer delivers it.
    Waiting,
    /// It has left the outbox without this process: another delivered it, or its document was deleted or overwritten by a
    /// writer that doesn't keep to the library.
    Cleared,
}

/// What became of the messages that a pass has tried, in that order.
pub(crate) type Dispositions = Vec<(Uuid, Disposition)>;

impl Disposition {
    /// What an outbox says of a message. While elements of it cannot be read, one that is not found may be among them.
    pub(crate) fn read(slots: &[Slot], id: Uuid, now: DateTime) -> Self {
        let Some(entry) = slots.iter().filter_map(Slot::entry).find(|entry| entry.id == id) else {
            let is_readable = slots.iter().all(|slot| slot.entry().is_some());
            return if is_readable { Self::Cleared } else { Self::Waiting };
        };

        if entry.dead.is_some() {
            Self::Dead { error: last_error(entry) }
        } else if entry.attempts > 0 {
            Self::Retrying { error: last_error(entry) }
        } else if matches!(hold(entry, now), Some(Hold::Scheduled(_))) {
            Self::Scheduled
        } else {
            Self::Waiting
        }
    }
}

fn last_error(entry: &Entry) -> String {
    entry.last_error.clone().unwrap_or_default()
}

/// A message's id as the `uuid` crate has it.
pub(crate) fn as_uuid(id: Uuid) -> uuid::Uuid {
    uuid::Uuid::from_bytes(id.bytes())
}
