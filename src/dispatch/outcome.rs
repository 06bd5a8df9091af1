//! The outcomes for a document, for a save's messages, and for a single message.

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
    /// The remaining messages can't be delivered yet.
    Held(Hold),
    /// The document does not exist.
    Gone,
    /// The destination is unavailable.
    Unavailable,
    /// Processing was interrupted by a shutdown, and claimed messages were released.
    Interrupted,
}

/// What the inline dispatcher did with a save's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dispatch {
    /// The save had no messages.
    Nothing,
    /// The messages are being delivered in the background.
    Background,
    /// The outcome of each message, in the order sent.
    Settled(Vec<(uuid::Uuid, Disposition)>),
    /// The messages are left to the rescuer, for this reason.
    Skipped(Shed),
    /// None of the messages is due yet. The rescuer delivers them when they are due.
    Scheduled,
    /// Inline delivery is switched off; the messages are left to the rescuer.
    Off,
}

/// The outcome of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// The message was delivered and confirmed.
    Delivered,
    /// The delivery failed and will be retried.
    Retrying {
        /// The error.
        error: String,
    },
    /// The message is dead and stays in the outbox until an operator handles it.
    Dead {
        /// The error.
        error: String,
    },
    /// The message is not due yet. The rescuer finds the message once it is due.
    Scheduled,
    /// The message was not tried yet, or the try was interrupted. The rescuer delivers the message.
    Waiting,
    /// The message is no longer in the outbox, but this delivery did not remove it: another process delivered it, a later
    /// save cancelled or replaced it, or a writer that bypasses the library deleted or overwrote the document.
    Cleared,
}

/// The outcomes of the messages that a pass has tried, in the order of the tries.
pub(crate) type Dispositions = Vec<(Uuid, Disposition)>;

impl Disposition {
    /// Derives a message's outcome from the stored outbox. If the outbox has malformed elements, a message that isn't
    /// found may be one of them.
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

/// Converts a message's id to the `uuid` crate's type.
pub(crate) fn as_uuid(id: Uuid) -> uuid::Uuid {
    uuid::Uuid::from_bytes(id.bytes())
}
