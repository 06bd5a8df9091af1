//! Inserts a new aggregate.

use std::sync::atomic::Ordering;

use mongodb::bson::{Bson, RawDocument, RawDocumentBuf};

use super::{
    Store,
    assumption::Assumption,
    error::Error,
    fields::check_reserved,
    identity::{check_id, is_unset, named_by},
    loaded::{Loaded, check_readable, encode},
    outcome::Inserted,
    prepare::{Emptiness, Prepared},
    revise::none_there,
    unknown::renamed::Differences,
    write::new_etag,
};
use crate::{
    aggregate::Aggregate,
    encoding::bytes::Builder,
    mongo::{Insert, WriteOutcome},
};

impl<T: Aggregate> Store<T> {
    /// Inserts a new aggregate with the messages it sent.
    ///
    /// # Errors
    /// [`Error`], if nothing was written or sent.
    pub async fn insert(&self, value: T) -> Result<Inserted<T>, Error> {
        self.observe("insert", self.insert_in_steps(value)).await
    }

    async fn insert_in_steps(&self, mut value: T) -> Result<Inserted<T>, Error> {
        let encoded = encode(&value)?;
        check_reserved(None, &encoded)?;
        let form = check_id(&encoded, value.id())?;
        if is_unset::<T>(&encoded) {
            return Err(Error::NoId { id: Bson::Null.to_string() });
        }

        let document = named_by(self.namespace.clone(), &self.shard_key, &encoded)?;
        let drafts = self.drafts(value.outbox())?;
        self.caps.check_entries(&document, 0, drafts.len())?;
        // The outbox of a new document is empty, so its entries can always be inserted with a claim.
        let prepared = self.prepare(&document, drafts, Emptiness::Known, Vec::new()).await?;

        let etag = new_etag();
        let new = new_document(&encoded, &etag, &prepared);
        let bytes = new.as_bytes().len();
        self.caps.check_document(&document, bytes, 0)?;
        // Check the document with the library's fields in it, because a struct that refuses those fields could not be
        // loaded.
        check_readable::<T>(&document, &new)?;

        match self.mongo.insert(Insert { namespace: self.namespace.clone(), document: new }).await {
            WriteOutcome::Done | WriteOutcome::Missed => {}
            WriteOutcome::Unknown(error) => return Ok(Inserted::Unknown(value, error)),
            WriteOutcome::Failed(error) if self.exists(&document, &error).await? => {
                return Ok(Inserted::Exists(value));
            }
            WriteOutcome::Failed(error) => return Err(Error::of_write(&document, error, bytes)),
        }

        self.form.store(form, Ordering::Relaxed);
        // A new document has no stored message that could be changed.
        let revisions = none_there(value.outbox());
        value.outbox().clear();
        self.report_revisions(&document, &revisions);
        let mut receipt = self.dispatch(&document, prepared).await;
        receipt.revisions = revisions;
        let mut loaded = Loaded {
            value,
            document,
            etag: Some(etag),
            baseline: encoded,
            differences: Differences::default(),
            held: Ok(0),
            assumption: Assumption::default(),
            bytes,
        };
        loaded.has_sent(receipt.messages.len(), 0, &receipt.dispatch);
        Ok(Inserted::Applied(Box::new(loaded), receipt))
    }
}

/// Builds the document to insert from the aggregate's fields and the library's own.
fn new_document(encoded: &RawDocument, etag: &RawDocument, prepared: &Prepared) -> RawDocumentBuf {
    let mut new = Builder::new();
    new.extend(encoded);
    new.extend(etag);
    new.extend(&prepared.encoded);
    new.build()
}
