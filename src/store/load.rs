//! Loads an aggregate by its id, in any form in which its field encodes it.

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
    /// Loads an aggregate, as the majority has it; `None` if there is no such document.
    ///
    /// The id may be any borrowed form of the aggregate's: a `&str` for a `String`. It must encode as the id itself does.
    ///
    /// # Errors
    /// [`Error::Decode`] when it doesn't fit the struct, [`Error::Unavailable`] when MongoDB can't be asked.
    pub async fn load<Q>(&self, id: &Q) -> Result<Option<Loaded<T>>, Error>
    where
        T::Id: Borrow<Q>,
        Q: Serialize + Sync + ?Sized,
    {
        let own = id_of(id)?;
        let others = other_forms(&own);

        // Most of a store's documents have their `_id` in one form, so the form that was seen last is tried
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

    /// Loads an aggregate whose field has an encoding of its own.
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

        // A struct that accepts any `_id` distinguishes a text from the ObjectId of the same digits.
        if !is_of_one_type(own, &id_of(loaded.value.id())?) {
            return Ok(None);
        }
        let place = others.iter().position(|form| *form == loaded.document.id());
        self.form.store(place.map_or(0, |place| place + 1), Ordering::Relaxed);
        Ok(Some(loaded))
    }

    /// How many entries are about to leave the document of this `_id`. Asked before the document is read: their clear may arrive
    /// between the read and the next save.
    fn leaving(&self, id: &Bson) -> usize {
        let clears = self.inline.clears_under_way();
        if clears.is_empty() {
            return 0;
        }
        clears.count(&DocumentRef::by_id(self.namespace.clone(), id.clone()))
    }

    /// Reads a stored document, which from then on is identified by its stored key.
    fn read(&self, raw: &RawDocumentBuf, leaving: usize) -> Result<Loaded<T>, Error> {
        let document = named_by(self.namespace.clone(), &self.shard_key, raw)?;
        let mut loaded = Loaded::<T>::read(document, raw)?;
        loaded.assumption.has_dispatched(leaving);
        Ok(loaded)
    }
}
