//! The state of a message. It is derived from the stored entry and the server's time, never stored.

use std::fmt;

use document_outbox::internal::{Entry, Hold, Slot, hold};
use mongodb::bson::DateTime;
use serde::Serialize;

/// The state of an element of an outbox.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    strum::EnumString,
    strum::EnumIter,
    strum::IntoStaticStr,
    strum::VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum MessageState {
    /// It may be delivered now, unless an earlier message of its document blocks it.
    Due,
    /// A process has claimed it, and the claim has not expired.
    Claimed,
    /// A delivery failed; the next one is at a later time.
    Retrying,
    /// It is to be delivered at a later time, and no delivery was tried.
    Scheduled,
    /// It is not delivered again, unless an operator replays it.
    Dead,
    /// The element is malformed, so it is neither delivered nor deleted.
    Unreadable,
}

impl MessageState {
    /// The state of an entry at this server time.
    pub fn of(entry: &Entry, now: DateTime) -> Self {
        if entry.dead.is_some() {
            return Self::Dead;
        }
        match hold(entry, now) {
            Some(Hold::Claimed(_)) => Self::Claimed,
            Some(Hold::Retrying(_)) => Self::Retrying,
            Some(Hold::Scheduled(_)) => Self::Scheduled,
            // The other reasons concern a deliverer or a whole document, not the entry.
            None | Some(Hold::NotMine | Hold::Dead) => Self::Due,
        }
    }

    /// The state of an element at this server time.
    pub fn of_slot(slot: &Slot, now: DateTime) -> Self {
        slot.entry().map_or(Self::Unreadable, |entry| Self::of(entry, now))
    }

    /// The name, as in queries.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for MessageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
