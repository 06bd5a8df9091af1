//! Outcomes: of a document's messages, of a save's messages, and of each message.

use mongodb::bson::{DateTime, Uuid};

use crate::{
    observe::event::Shed,
    stored::{
        deliverable::{Hold, hold},
        entry::{Entry, Slot},
    },
};

/// Why processing a document ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processed {
    /// There is no deliverable message left.
    Done,
    /// What is left waits.
    Held(Hold),
    /// The document does not exist.
    Gone,
    /// The destination is unavailable.
    Unavailable,
    /// Shutdown interrupted it; held messages were released.
    Interrupted,
}

/// The inline dispatcher's result for a save's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dispatch {
    /// The save had no messages.
    Nothing,
    /// They are in delivery.
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

/// The final outcome of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// It was delivered and confirmed.
    Delivered,
    /// A delivery failed; it is retried.
    Retrying {
        /// What went wrong.
        error: String,
    },
    /// It is dead, and waits for an operator.
    Dead {
        /// What went wrong.
        error: String,
    },
    /// It is not due yet; the rescuer finds it when it is.
    Scheduled,
    /// It was not tried yet, or the try was interrupted; the rescuer delivers it.
    Waiting,
    /// It has left the outbox without this process: another delivered it, or its document was deleted or
    /// overwritten by a writer that bypasses the library.
    Cleared,
}

/// The outcomes of the messages that a pass has tried, in that order.
pub(crate) type Dispositions = Vec<(Uuid, Disposition)>;

impl Disposition {
    /// The state of a message by its outbox. If elements of the outbox cannot be read, a missing message may
    /// be among them.
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
