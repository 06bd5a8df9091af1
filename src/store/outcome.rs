//! The outcomes of a store's operations, one enum for each operation. Each variant says what to do next.
//!
//! The enums are exhaustive on purpose: code that forgets an outcome should not compile, and a new outcome would affect
//! every caller. `Receipt` is not exhaustive and may gain fields.

use std::fmt;

use mongodb::error::Error as DriverError;

use super::loaded::Loaded;
use crate::{
    aggregate::revision::{Revised, RevisionOutcome},
    dispatch::Dispatch,
    observe::metrics::SaveOutcome,
};

/// A write that the majority has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The ids of the saved messages, in the order sent.
    pub messages: Vec<uuid::Uuid>,
    /// What the inline dispatcher did with the messages.
    pub dispatch: Dispatch,
    /// The outcome for each stored message that the save was to cancel, to reschedule or to replace.
    pub revisions: Vec<Revised>,
}

impl Receipt {
    /// Returns the outcome for a stored message that the save was to cancel, to reschedule or to replace. `None` if the save did
    /// not concern this message.
    #[must_use]
    pub fn revision(&self, message: uuid::Uuid) -> Option<RevisionOutcome> {
        let revised = self.revisions.iter().find(|revised| revised.message == message);
        revised.map(|revised| revised.outcome)
    }
}

/// The outcome of a save.
#[derive(Debug)]
#[must_use = "a save may not have been applied"]
pub enum Saved {
    /// There was no change and no message, so nothing was written.
    Unchanged,
    /// The save was written and acknowledged by the majority. The aggregate now counts as freshly loaded, so it can be
    /// changed and saved again.
    Applied(Receipt),
    /// Nothing was written, because another process saved the document after the load. Load the document again and
    /// repeat the decision, or use `update`.
    Conflict,
    /// Nothing was written, because the document was deleted.
    Gone,
    /// No clear answer arrived: the save may have been written, and its messages were not dispatched inline. Load the
    /// document again. If the save was written, its messages are in the outbox and the rescuer delivers them.
    Unknown(DriverError),
}

impl Saved {
    /// Whether the document now equals the aggregate. Also true if there was nothing to write.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self, Self::Applied(_) | Self::Unchanged)
    }

    /// Returns an error unless the save was applied or there was nothing to write: `orders.save(&mut
    /// order).await?.applied()?`. Returns `None` if there was nothing to write.
    ///
    /// # Errors
    /// [`NotSaved`] for every other outcome.
    pub fn applied(self) -> Result<Option<Receipt>, NotSaved> {
        match self {
            Self::Applied(receipt) => Ok(Some(receipt)),
            Self::Unchanged => Ok(None),
            Self::Conflict => Err(NotSaved::Conflict),
            Self::Gone => Err(NotSaved::Gone),
            Self::Unknown(source) => Err(NotSaved::Unknown(source)),
        }
    }
}

/// The outcome of a save that was not applied, or may not have been applied, as an error. See [`Saved::applied`].
#[derive(Debug, thiserror::Error)]
pub enum NotSaved {
    /// [`Saved::Conflict`].
    #[error(
        "nothing was written, because another writer saved the document in the meantime; load it again and repeat the decision, or use `update`"
    )]
    Conflict,
    /// [`Saved::Gone`].
    #[error("nothing was written, because the document was deleted")]
    Gone,
    /// [`Saved::Unknown`].
    #[error(
        "no clear answer arrived, so the save may have been written; load the document and check before you repeat the save"
    )]
    Unknown(#[source] DriverError),
}

/// The outcome of an insert.
#[derive(Debug)]
#[must_use = "an insert may not have been applied"]
pub enum Inserted<T> {
    /// The document was inserted and acknowledged by the majority.
    Applied(Box<Loaded<T>>, Receipt),
    /// Nothing was written, because a document with this `_id` already exists. Contains the aggregate.
    Exists(T),
    /// No clear answer arrived: the document may have been inserted, and its messages were not dispatched inline. Load
    /// the document to find out.
    Unknown(T, DriverError),
}

impl<T> Inserted<T> {
    /// Returns the inserted aggregate and the receipt, and turns every other outcome into an error:
    /// `orders.insert(order).await?.applied()?`.
    ///
    /// # Errors
    /// [`NotInserted`] for every other outcome. The error contains the aggregate.
    pub fn applied(self) -> Result<(Loaded<T>, Receipt), NotInserted<T>> {
        match self {
            Self::Applied(loaded, receipt) => Ok((*loaded, receipt)),
            Self::Exists(value) => Err(NotInserted::Exists(value)),
            Self::Unknown(value, source) => Err(NotInserted::Unknown(value, source)),
        }
    }
}

/// The outcome of an insert that was not applied, or may not have been applied, as an error. See [`Inserted::applied`].
#[derive(thiserror::Error)]
pub enum NotInserted<T> {
    /// [`Inserted::Exists`].
    #[error("nothing was written, because a document with this `_id` already exists")]
    Exists(T),
    /// [`Inserted::Unknown`].
    #[error(
        "no clear answer arrived, so the document may have been inserted; load it and check before you repeat the insert"
    )]
    Unknown(T, #[source] DriverError),
}

// Leaves out the aggregate, because its content does not belong in error logs and its type may not implement `Debug`.
impl<T> fmt::Debug for NotInserted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(_) => f.write_str("Exists"),
            Self::Unknown(_, source) => f.debug_tuple("Unknown").field(source).finish(),
        }
    }
}

/// The result of `update`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Updated<T, R> {
    /// The value that the last run of the closure returned.
    pub value: R,
    /// The aggregate after the update.
    pub document: Loaded<T>,
    /// The receipt of the write. `None` if there was no change.
    pub receipt: Option<Receipt>,
}

/// The outcome of a delete.
#[derive(Debug)]
#[must_use = "a delete may not have been applied"]
pub enum Deleted {
    /// The document was deleted.
    Done,
    /// The document was not deleted, because another process saved it after the load. Load the document again and
    /// repeat the decision.
    Conflict,
    /// The document no longer existed.
    Gone,
    /// The document was not deleted, because its outbox still has messages. Wait until the messages are delivered, and
    /// handle the dead messages.
    Undelivered,
    /// No clear answer arrived, so the document may have been deleted. Load the document to find out.
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
