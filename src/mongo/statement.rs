//! Requests to MongoDB and their answers, as values that don't depend on how they are executed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use mongodb::{
    Namespace,
    bson::{Document, RawDocumentBuf, Uuid},
    error::Error as DriverError,
    options::ReadConcern,
};
use serde::Serialize;

use crate::stored::{document_ref::DocumentRef, filter::Filter};

/// Inserts a document.
#[derive(Debug, Clone)]
pub(crate) struct Insert {
    pub(crate) namespace: Namespace,
    /// As it is sent: with its `_id`.
    pub(crate) document: RawDocumentBuf,
}

/// Updates one document.
///
/// **Invariants.** The filter names `_id` by equality, and the update leaves `_id` alone. The update changes
/// the document that the filter matches: the server keeps no record of an update without changes, and could
/// not report later that it had matched.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    pub(crate) namespace: Namespace,
    pub(crate) filter: Filter,
    pub(crate) operators: Operators,
    pub(crate) array_filters: Vec<Document>,
}

/// What an update does to its document, by operators.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Operators {
    Plain(Document),
    /// Built from parts that were already encoded.
    Bytes(RawDocumentBuf),
}

impl From<Document> for Operators {
    fn from(operators: Document) -> Self {
        Self::Plain(operators)
    }
}

impl From<RawDocumentBuf> for Operators {
    fn from(operators: RawDocumentBuf) -> Self {
        Self::Bytes(operators)
    }
}

/// Updates one document, or inserts it from the filter's equalities if there is none.
#[derive(Debug, Clone)]
pub(crate) struct Upsert {
    pub(crate) namespace: Namespace,
    pub(crate) filter: Document,
    pub(crate) update: Document,
}

/// Deletes one document. The filter names `_id` by equality.
#[derive(Debug, Clone)]
pub(crate) struct Delete {
    pub(crate) namespace: Namespace,
    pub(crate) filter: Filter,
}

/// Finds one document on the primary.
#[derive(Debug, Clone)]
pub(crate) struct Find<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) filter: Filter,
    /// All fields if there is none.
    pub(crate) projection: Option<Document>,
    pub(crate) concern: ReadConcern,
}

/// Removes entries of a document that were delivered under a claim, if that claim still holds them. It
/// matches ids and the claim, so it can be repeated any number of times.
#[derive(Debug, Clone)]
pub(crate) struct Delivered {
    pub(crate) document: DocumentRef,
    /// The claim's value.
    pub(crate) token: String,
    pub(crate) ids: Vec<Uuid>,
    pub(crate) overtaken: Overtaken,
}

/// How many saves have taken out the entries that a clear is about to remove, or are trying to. Such a clear may find no entry
/// although it has not lost its claim. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overtaken(Arc<AtomicUsize>);

impl Overtaken {
    /// To be called before the save is sent.
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// The save was not written.
    pub(crate) fn give_up(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn may_be(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

/// The outcome of a write, as exact as if it had been sent alone.
#[derive(Debug)]
pub(crate) enum WriteOutcome {
    /// Done, and the majority has it.
    Done,
    /// The filter found nothing.
    Missed,
    /// Nothing was written.
    Failed(DriverError),
    /// It may have been written.
    Unknown(DriverError),
}

/// The outcome of a clear.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ClearOutcome {
    /// The server has removed them; the majority perhaps not yet.
    Done,
    /// Its claim held none of the entries.
    ClaimLost,
    /// For this reason the entries stay, and are delivered again once the claim has expired.
    Failed(String),
}
