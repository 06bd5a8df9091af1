//! The outcomes of a store: one enum for each verb, each variant with what to do next.
//!
//! The enums are exhaustive on purpose: code that forgets an outcome should not compile, and a new outcome
//! would change what every caller has to decide. A write's receipt can get more fields.

use std::fmt;

use mongodb::error::Error as DriverError;

use super::loaded::Loaded;
use crate::{dispatch::Dispatch, observe::metrics::SaveOutcome};

/// A write that the majority has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The ids of the messages saved, in the order sent.
    pub messages: Vec<uuid::Uuid>,
    /// The inline dispatcher's result for them.
    pub dispatch: Dispatch,
}

/// The outcome of a save.
#[derive(Debug)]
#[must_use = "a save may not have been applied"]
pub enum Saved {
    /// There was no change and no message, so nothing was written.
    Unchanged,
    /// Written, and safe. The value is as freshly loaded: it can be changed and saved again.
    Applied(Receipt),
    /// Another process saved in between; nothing was written. Load again and decide again, or use `update`.
    Conflict,
    /// The document was deleted; nothing was written.
    Gone,
    /// No clear answer arrived: it may have been written, and its messages were not dispatched inline. Load
    /// the document again; if it was written, its messages are in the outbox and the rescuer delivers them.
    Unknown(DriverError),
}

impl Saved {
    /// Whether the document now equals the aggregate, including the case that there was nothing to write.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self, Self::Applied(_) | Self::Unchanged)
    }

    /// The write, none where there was nothing to write: `orders.save(&mut order).await?.applied()?`.
    ///
    /// # Errors
    /// [`NotSaved`], for every other outcome.
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

/// A save that was not applied, or not for certain: the outcome as an error, see [`Saved::applied`].
#[derive(Debug, thiserror::Error)]
pub enum NotSaved {
    /// [`Saved::Conflict`].
    #[error(
        "another writer saved the document in between, so nothing was written: load it again and decide again, or use `update`"
    )]
    Conflict,
    /// [`Saved::Gone`].
    #[error("the document was deleted, so nothing was written")]
    Gone,
    /// [`Saved::Unknown`].
    #[error(
        "without a clear answer the save may have been written: load the document and check before you repeat it"
    )]
    Unknown(#[source] DriverError),
}

/// The outcome of an insert.
#[derive(Debug)]
#[must_use = "an insert may not have been applied"]
pub enum Inserted<T> {
    /// Written, and safe.
    Applied(Box<Loaded<T>>, Receipt),
    /// A document with this `_id` exists already; nothing was written. The aggregate is returned.
    Exists(T),
    /// No clear answer arrived: it may have been written. Load the document to find out; its messages were
    /// not dispatched inline.
    Unknown(T, DriverError),
}

impl<T> Inserted<T> {
    /// The aggregate as it was inserted, and the write: `orders.insert(order).await?.applied()?`.
    ///
    /// # Errors
    /// [`NotInserted`], for every other outcome. It hands the aggregate back.
    pub fn applied(self) -> Result<(Loaded<T>, Receipt), NotInserted<T>> {
        match self {
            Self::Applied(loaded, receipt) => Ok((*loaded, receipt)),
            Self::Exists(value) => Err(NotInserted::Exists(value)),
            Self::Unknown(value, source) => Err(NotInserted::Unknown(value, source)),
        }
    }
}

/// An insert that was not applied, or not for certain: the outcome as an error, see [`Inserted::applied`].
#[derive(thiserror::Error)]
pub enum NotInserted<T> {
    /// [`Inserted::Exists`].
    #[error("there is a document with this `_id` already, so nothing was written")]
    Exists(T),
    /// [`Inserted::Unknown`].
    #[error(
        "without a clear answer the document may have been inserted: load it and check before you repeat it"
    )]
    Unknown(T, #[source] DriverError),
}

// Without the aggregate: its content does not belong in logs of errors, and it may have no `Debug`.
impl<T> fmt::Debug for NotInserted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(_) => f.write_str("Exists"),
            Self::Unknown(_, source) => f.debug_tuple("Unknown").field(source).finish(),
        }
    }
}

/// What `update` did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Updated<T, R> {
    /// What the closure returned, the last time it ran.
    pub value: R,
    /// The aggregate as it is now.
    pub document: Loaded<T>,
    /// The write; `None` if there was no change.
    pub receipt: Option<Receipt>,
}

/// The outcome of a delete.
#[derive(Debug)]
#[must_use = "a delete may not have been applied"]
pub enum Deleted {
    /// It is gone.
    Done,
    /// Another process saved in between; the document was not deleted. Load again and decide again.
    Conflict,
    /// It was gone already.
    Gone,
    /// Its outbox still has messages, so it was not deleted. Wait for their delivery, and handle the dead
    /// ones.
    Undelivered,
    /// No clear answer arrived. Load the document to find out.
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
