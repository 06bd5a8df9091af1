//! Loads an aggregate by its id, in whichever form the field encodes the id.

use std::{borrow::Borrow, sync::atomic::Ordering};

use mongodb::{
    bson::{Bson, RawDocumentBuf, doc},
    options::ReadConcern,
};
use serde::Serialize;

use super::{
    Store,
    error::Error,
    identity::{ID, id_of, is_of_one_type, named_by, other_forms},
    loaded::Loaded,
};
use crate::{
    aggregate::Aggregate,
    stored::{document_ref::DocumentRef, filter::equal_to},
};

impl<T: Aggregate> Store<T> {
    /// Loads an aggregate with read concern majority. Returns `None` if there is no such document.
    ///
    /// The argument may be any borrowed form of the id, such as a `&str` for a `String`, if that form encodes in the
    /// same way as the id itself.
    ///
    /// # Errors
    /// [`Error::Decode`] if the document doesn't fit the struct, [`Error::Unavailable`] if MongoDB can't be reached.
    pub async fn load<Q>(&self, id: &Q) -> Result<Option<Loaded<T>>, Error>
    where
        T::Id: Borrow<Q>,
        Q: Serialize + Sync + ?Sized,
    {
        let own = id_of(id)?;
        let others = other_forms(&own);

        // The documents of one store usually all have their `_id` in the same form, so try the most recently seen form
        // first.
        let last = self.form.load(Ordering::Relaxed);
        if let Some(form) = last.checked_sub(1).and_then(|place| others.get(place))
            && let Some(loaded) = self.load_other(&own, &others, equal_to(form), self.leaving(form)).await?
        {
            return Ok(Some(loaded));
        }

        let document = DocumentRef::by_id(self.namespace.clone(), own.clone());
        let leaving = self.leaving(&own);
        if let Some(raw) = self.find(&document, None, ReadConcern::majority()).await? {
            self.form.store(0, Ordering::Relaxed);
            return self.read(&raw, leaving).map(Some);
        }

        if others.is_empty() {
            return Ok(None);
        }
        let any = Bson::from(doc! { "$in": others.clone() });
        self.load_other(&own, &others, any, 0).await
    }

    /// Loads an aggregate whose field `_id` is not encoded in the id type's own form.
    async fn load_other(
        &self,
        own: &Bson,
        others: &[Bson],
        id: Bson,
        leaving: usize,
    ) -> Result<Option<Loaded<T>>, Error> {
        let found = self.find_by(doc! { ID: id }, None, ReadConcern::majority()).await?;
        let Some(raw) = found else { return Ok(None) };
        let loaded = self.read(&raw, leaving)?;

        // A struct that accepts any `_id` treats a string and an ObjectId with the same digits as different ids.
        if !is_of_one_type(own, &id_of(loaded.value.id())?) {
            return Ok(None);
        }
        let place = others.iter().position(|form| *form == loaded.document.id());
        self.form.store(place.map_or(0, |place| place + 1), Ordering::Relaxed);
        Ok(Some(loaded))
    }

    /// Number of entries that are about to be removed from the document with this `_id`. Call this function before
    /// reading the document, because the entries may be cleared between the read and the next save.
    fn leaving(&self, id: &Bson) -> usize {
        let clears = self.inline.clears_under_way();
        if clears.is_empty() {
            return 0;
        }
        clears.count(&DocumentRef::by_id(self.namespace.clone(), id.clone()))
    }

    /// Decodes a stored document. The aggregate is then identified by the stored key.
    fn read(&self, raw: &RawDocumentBuf, leaving: usize) -> Result<Loaded<T>, Error> {
        let document = named_by(self.namespace.clone(), &self.shard_key, raw)?;
        let mut loaded = Loaded::<T>::read(document, raw)?;
        loaded.assumption.has_dispatched(leaving);
        Ok(loaded)
    }
}
