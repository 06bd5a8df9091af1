//! Loads and saves aggregates, with the messages they send.
//!
//! # Flow
//! A save is one update of one document: the changed top-level fields, a fresh `etag`, and the new entries appended to
//! the outbox. The update's filter requires the `etag` that the aggregate was loaded with, so no concurrent change is
//! lost. The update removes only entries that this process has already delivered, and messages that the aggregate has
//! cancelled or replaced before their delivery began, so no message is lost either. The steps of a save are in
//! `save.rs`.
//!
//! # Guarantees
//! - A message exists if and only if the save that sent it is committed by the majority.
//! - Stored fields that the struct doesn't know survive a save; inside arrays, they survive in every element that can
//!   be recognised.
//! - Every stored document decodes as the same struct again, and is found by the same id.
//! - Documents without `etag` and `outbox`, written before the library was in use, are loaded and saved like all other
//!   documents.
//!
//! # Caveats
//! If the future of a save is dropped, the save may or may not happen, but it never happens partially.

mod admit;
mod assumption;
pub(crate) mod caps;
mod delete;
mod diff;
pub(crate) mod error;
mod fields;
mod identity;
mod indexes;
mod insert;
mod load;
mod loaded;
mod lookups;
mod outcome;
mod prepare;
mod revise;
mod save;
mod save_revised;
mod staged;
mod unknown;
pub(crate) mod update;
mod write;
mod write_revised;

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, atomic::AtomicUsize},
};

use mongodb::{Collection, Namespace, bson::RawDocumentBuf};
use tracing::Instrument;

pub use self::{
    caps::{Caps, MAX_TYPE_BYTES},
    error::Error,
    indexes::indexes,
    loaded::Loaded,
    outcome::{Deleted, Inserted, NotInserted, NotSaved, Receipt, Saved, Updated},
    staged::StagedMessages,
};
use crate::{
    aggregate::Aggregate,
    dispatch::InlineDispatcher,
    mongo::{Mongo, deadline::within_one_timeout},
    observe::{metrics::SaveOutcome, trace},
};

/// Loads and saves aggregates of one type in one collection.
pub struct Store<T> {
    collection: Collection<RawDocumentBuf>,
    namespace: Namespace,
    mongo: Mongo,
    inline: InlineDispatcher,
    caps: Caps,
    shard_key: Vec<String>,
    /// The number of the form in which the most recently seen `_id` was encoded.
    form: Arc<AtomicUsize>,
    aggregate: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Store<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("collection", &self.namespace.to_string())
            .field("caps", &self.caps)
            .finish_non_exhaustive()
    }
}

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self {
            collection: self.collection.clone(),
            namespace: self.namespace.clone(),
            mongo: self.mongo.clone(),
            inline: self.inline.clone(),
            caps: self.caps,
            shard_key: self.shard_key.clone(),
            form: self.form.clone(),
            aggregate: PhantomData,
        }
    }
}

impl<T: Aggregate> Store<T> {
    /// Creates a store for the collection with this name. The store uses the client that the inline dispatcher was
    /// built with, and always reads and writes with concern majority.
    #[must_use]
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a collection is a cheap handle that callers pass by value"
    )]
    pub fn new<C: Send + Sync>(collection: Collection<C>, inline: &InlineDispatcher) -> Self {
        Self {
            namespace: collection.namespace(),
            collection: collection.clone_with_type(),
            mongo: inline.mongo().clone(),
            inline: inline.clone(),
            caps: Caps::default(),
            shard_key: Vec::new(),
            form: Arc::default(),
            aggregate: PhantomData,
        }
    }

    /// Sets the limits on what a save may add.
    #[must_use]
    pub fn with_caps(mut self, caps: Caps) -> Self {
        self.caps = caps;
        self
    }

    /// Names the fields of the collection's shard key other than `_id`. These fields must be top-level fields of the
    /// aggregate.
    #[must_use]
    pub fn with_shard_key(mut self, fields: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.shard_key = fields.into_iter().map(Into::into).collect();
        self
    }

    /// Returns the collection, for updates of your own.
    #[must_use]
    pub fn collection(&self) -> &Collection<RawDocumentBuf> {
        &self.collection
    }

    /// Creates the two indexes for finding due and dead messages. Does nothing if they exist.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Unavailable`].
    pub async fn ensure_indexes(&self) -> Result<(), Error> {
        self.mongo.create_indexes(&self.namespace, indexes()).await.map_err(Error::of_read)
    }

    /// Runs a write in its own tracing span, under one timeout, and counts its outcome.
    async fn observe<R>(
        &self,
        verb: &'static str,
        write: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, Error>
    where
        SaveOutcome: for<'a> From<&'a R>,
    {
        let span = trace::save(verb, &self.namespace);
        let written = within_one_timeout(write.instrument(span.clone())).await;

        let outcome = match &written {
            Ok(written) => SaveOutcome::from(written),
            Err(Error::Unknown { .. }) => SaveOutcome::Unknown,
            Err(_) => SaveOutcome::Refused,
        };
        if let Some(error_type) = outcome.error_type() {
            trace::failed(&span, error_type);
        }
        self.inline.metrics().save(outcome);
        written
    }
}
