//! Loading and saving aggregates, with their messages.
//!
//! # Flow
//! A save is one update of one document: the changed top-level fields, a fresh `etag`, and the new entries
//! appended to the outbox. It matches the `etag` the aggregate was loaded with, so no other change is lost.
//! It doesn't touch the stored entries, so no delivery is lost either, except that it removes entries that
//! this process has delivered and left there. The steps of a save are in `save.rs`.
//!
//! # Guarantees
//! - A message exists if and only if the save that sent it is committed by the majority.
//! - Stored fields that the struct doesn't know survive, in arrays those of every element that can be recognised.
//! - Every stored document decodes as the same struct again, and is found by the same id.
//! - Documents from before the library, without `etag` and `outbox`, are loaded and saved like the rest.
//!
//! # Caveats
//! A save future that is dropped leaves the save undecided: done or not, never by half.

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
mod save;
mod staged;
mod unknown;
mod update;
mod write;

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

/// Aggregates of one type in one collection.
pub struct Store<T> {
    collection: Collection<RawDocumentBuf>,
    namespace: Namespace,
    mongo: Mongo,
    inline: InlineDispatcher,
    caps: Caps,
    shard_key: Vec<String>,
    /// The form of the `_id` that was seen last.
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
    /// A store of the aggregates in the collection of this name. It reads and writes through the client that
    /// the inline dispatcher was built with, with its own concerns: majority.
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "a collection is a handle, made to be handed over")]
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

    /// Bounds on what a save may add.
    #[must_use]
    pub fn with_caps(mut self, caps: Caps) -> Self {
        self.caps = caps;
        self
    }

    /// The fields of the collection's shard key besides `_id`: top-level fields of the aggregate.
    #[must_use]
    pub fn with_shard_key(mut self, fields: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.shard_key = fields.into_iter().map(Into::into).collect();
        self
    }

    /// The collection, for updates of your own.
    #[must_use]
    pub fn collection(&self) -> &Collection<RawDocumentBuf> {
        &self.collection
    }

    /// Creates the two indexes that find due and dead messages; does nothing if they exist.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Unavailable`].
    pub async fn ensure_indexes(&self) -> Result<(), Error> {
        self.mongo.create_indexes(&self.namespace, indexes()).await.map_err(Error::of_read)
    }

    /// Runs a write in a separate span, within one timeout, and counts its outcome.
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
