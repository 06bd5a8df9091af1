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
    /// The document to send, including its `_id`.
    pub(crate) document: RawDocumentBuf,
}

/// Updates one document.
///
/// **Invariants.** The filter contains an equality on `_id`, and the update doesn't change `_id`. The update always
/// changes a document that the filter matches, because the server keeps no record of an update without changes and
/// could not report later that the update had matched.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    pub(crate) namespace: Namespace,
    pub(crate) filter: Filter,
    pub(crate) operators: Operators,
    pub(crate) array_filters: Vec<RawDocumentBuf>,
}

/// The update operators, or the stages of a pipeline.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Operators {
    Plain(Document),
    /// Operators built from parts that were already encoded.
    Bytes(RawDocumentBuf),
    /// The stages of an aggregation pipeline that computes the document.
    Pipeline(Vec<RawDocumentBuf>),
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

/// Updates one document. If the filter matches no document, inserts a document with the fields from the filter's
/// equalities.
#[derive(Debug, Clone)]
pub(crate) struct Upsert {
    pub(crate) namespace: Namespace,
    pub(crate) filter: Document,
    pub(crate) update: Document,
}

/// Deletes one document. The filter contains an equality on `_id`.
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
    /// The fields to return. `None` means all fields.
    pub(crate) projection: Option<Document>,
    pub(crate) concern: ReadConcern,
}

/// Removes the entries of a document that were delivered under a claim, if they are still under that claim. The filter
/// requires the ids and the claim, so the update can be repeated any number of times.
#[derive(Debug, Clone)]
pub(crate) struct Delivered {
    pub(crate) document: DocumentRef,
    /// The claim's value.
    pub(crate) token: String,
    pub(crate) ids: Vec<Uuid>,
    pub(crate) overtaken: Overtaken,
}

/// Number of saves that have removed, or are trying to remove, the entries that a clear is about to remove. Such a
/// clear may find no entry although its claim is not lost. Clones share the number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overtaken(Arc<AtomicUsize>);

impl Overtaken {
    /// Counts a save. Must be called before the save is sent.
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Subtracts a save that was not written.
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
    /// The write was executed and acknowledged by the majority.
    Done,
    /// The filter matched no document.
    Missed,
    /// Nothing was written.
    Failed(DriverError),
    /// The write may have happened.
    Unknown(DriverError),
}

/// The outcome of a clear.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ClearOutcome {
    /// The server has removed the entries. The majority may not have acknowledged the removal yet.
    Done,
    /// None of the entries was still under the claim.
    ClaimLost,
    /// The clear failed for this reason. The entries stay and are delivered again once the claim has expired.
    Failed(String),
}
