//! Queries that a store makes while it saves.

use mongodb::{
    bson::{Document, RawDocument, RawDocumentBuf, doc},
    error::Error as DriverError,
    options::ReadConcern,
};

use super::{Store, admit::Size, error::Error, loaded::Loaded};
use crate::{
    aggregate::Aggregate,
    encoding::{bytes::element, codec},
    mongo::{
        Find,
        error_codes::{self, Verdict},
    },
    stored::{
        document_ref::DocumentRef,
        entry::{ETAG, OUTBOX},
    },
};

/// The field of a query's result that has the size of the document.
const BYTES: &str = "bytes";

/// The state of a document after a save's filter didn't match it.
pub(super) enum Found {
    /// The etag is unchanged.
    Same,
    /// Another process has saved the document.
    Changed,
    /// The document no longer exists.
    Gone,
}

impl<T: Aggregate> Store<T> {
    pub(super) async fn find(
        &self,
        document: &DocumentRef,
        projection: Option<Document>,
        concern: ReadConcern,
    ) -> Result<Option<RawDocumentBuf>, Error> {
        self.find_by(document.filter(), projection, concern).await
    }

    pub(super) async fn find_by(
        &self,
        filter: Document,
        projection: Option<Document>,
        concern: ReadConcern,
    ) -> Result<Option<RawDocumentBuf>, Error> {
        let find = Find { namespace: &self.namespace, filter: filter.into(), projection, concern };
        self.mongo.find(find).await.map_err(Error::of_read)
    }

    /// Whether an insert was refused because a document with the same `_id` exists.
    pub(super) async fn exists(&self, document: &DocumentRef, refusal: &DriverError) -> Result<bool, Error> {
        if error_codes::verdict(refusal) != Verdict::Duplicate {
            return Ok(false);
        }
        let found = self.find(document, Some(doc! { "_id": 1 }), ReadConcern::local()).await?;
        Ok(found.is_some())
    }

    /// Finds out why a save's filter didn't match. Reads the server's latest state, because the majority may still have
    /// an older state.
    pub(super) async fn look_again(&self, loaded: &Loaded<T>) -> Result<Found, Error> {
        let found = self.find(&loaded.document, Some(doc! { ETAG: 1 }), ReadConcern::local()).await?;
        let Some(raw) = found else { return Ok(Found::Gone) };

        if element(&raw, ETAG) == loaded.etag() { Ok(Found::Same) } else { Ok(Found::Changed) }
    }

    /// Reads the outbox of a document that a save revises, with the document's etag and its size in the field `bytes`.
    pub(super) async fn read_for_revision(
        &self,
        document: &DocumentRef,
    ) -> Result<Option<RawDocumentBuf>, Error> {
        let projection = doc! { "_id": 0, ETAG: 1, OUTBOX: 1, BYTES: { "$bsonSize": "$$ROOT" } };
        self.find(document, Some(projection), ReadConcern::local()).await
    }

    /// Reads the size of the stored document. Returns `None` if the document is gone.
    pub(super) async fn measure(&self, document: &DocumentRef) -> Result<Option<Size>, Error> {
        let is_array = doc! { "$isArray": "$outbox" };
        let held = doc! { "$cond": [is_array, { "$size": "$outbox" }, 0] };
        let projection = doc! { "_id": 0, "held": held, BYTES: { "$bsonSize": "$$ROOT" } };
        let found = self.find(document, Some(projection), ReadConcern::local()).await?;
        let Some(raw) = found else { return Ok(None) };

        let found = codec::to_document(&raw).unwrap_or_default();
        Ok(Some(Size { held: number(&found, "held"), bytes: number(&found, BYTES) }))
    }
}

/// The size of a document that was read for a revision.
pub(super) fn size_of(read: &RawDocument) -> usize {
    let bytes = read.get_i32(BYTES).ok().and_then(|bytes| usize::try_from(bytes).ok());
    bytes.unwrap_or(usize::MAX)
}

fn number(document: &Document, name: &str) -> usize {
    document.get_i32(name).ok().and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
}
