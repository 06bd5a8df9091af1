//! What a store did: one enum for each verb, each variant with what to do next.
//!
//! The enums are exhaustive on purpose: an outcome that a caller forgets should not compile, and one more of them would change
//! what every caller has to decide. What a write brings back can grow.

use mongodb::error::Error as DriverError;

use super::loaded::Loaded;
use crate::{dispatch::Dispatch, observe::metrics::SaveOutcome};

/// A write that the majority has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The ids of the messages saved, in the order sent.
    pub messages: Vec<uuid::Uuid>,
    /// What the inline dispatcher made of them.
    pub dispatch: Dispatch,
}

/// What became of a save.
#[derive(Debug)]
#[must_use = "a save may not have been applied"]
pub enum Saved {
    /// Nothing had changed and nothing was sent, so nothing was written.
    Unchanged,
    /// Written, and safe. The value is as loaded anew: it can be changed and saved again.
    Applied(Receipt),
    /// Somebody else saved in between; nothing was written. Load again and decide anew, or use `update`.
    Conflict,
    /// The document was deleted; nothing was written.
    Gone,
    /// No clean answer came: it may have been written, and nothing was dispatched inline. Load again and look; if it was
    /// written, its messages are in the outbox and the rescuer delivers them.
    Unknown(DriverError),
}

impl Saved {
    /// Whether the document is now as the aggregate has it: also where there was nothing to write.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self, Self::Applied(_) | Self::Unchanged)
    }
}

/// What became of an insert.
#[derive(Debug)]
#[must_use = "an insert may not have been applied"]
pub enum Inserted<T> {
    /// Written, and safe.
    Applied(Box<Loaded<T>>, Receipt),
    /// A document with this `_id` is there already; nothing was written. The aggregate is handed back.
    Exists(T),
    /// No clean answer came: it may have been written. Load and look; nothing was dispatched inline.
    Unknown(T, DriverError),
}

/// What `update` did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Updated<T, R> {
    /// What the closure returned, the last time it ran.
    pub value: R,
    /// The aggregate as it now stands.
    pub document: Loaded<T>,
    /// The write; none when nothing had changed.
    pub receipt: Option<Receipt>,
}

/// What became of a delete.
#[derive(Debug)]
#[must_use = "a delete may not have been applied"]
pub enum Deleted {
    /// It is gone.
    Done,
    /// Somebody else saved in between; nothing was deleted. Load again and decide anew.
    Conflict,
    /// It was gone already.
    Gone,
    /// Its outbox still holds messages, so nothing was deleted. Wait for their delivery, and see to the dead ones.
    Undelivered,
    /// No clean answer came. Load and look.
    Unknown(DriverError),
}

impl From<&Saved> for SaveOutcome {
    fn from(saved: &Saved) -> Self {
        match saved {
            Saved::Applied(_) => Self::Applied,
            Saved::Unchanged => Self::Unchanged,
            Saved::Conflict => Self::Conflict,
            Saved::Gone => Self::Gone,
            Saved::Unknown(_) => Self::Unknown,
        }
    }
}

impl<T> From<&Inserted<T>> for SaveOutcome {
    fn from(inserted: &Inserted<T>) -> Self {
        match inserted {
            Inserted::Applied(..) => Self::Applied,
            Inserted::Exists(_) => Self::Conflict,
            Inserted::Unknown(..) => Self::Unknown,
        }
    }
}

impl From<&Deleted> for SaveOutcome {
    fn from(deleted: &Deleted) -> Self {
        match deleted {
            Deleted::Done => Self::Applied,
            Deleted::Conflict => Self::Conflict,
            Deleted::Gone => Self::Gone,
            Deleted::Undelivered => Self::Refused,
            Deleted::Unknown(_) => Self::Unknown,
        }
    }
}
