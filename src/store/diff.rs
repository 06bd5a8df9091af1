//! The content of a save: the changes since the load, the messages sent, and the changes to stored messages.

use mongodb::bson::RawDocumentBuf;

use super::{
    Store,
    error::Error,
    fields::Changes,
    identity::check_id,
    loaded::{Loaded, check_readable, encode},
    prepare::Draft,
};
use crate::aggregate::{Aggregate, revision::Revision};

/// The content of a save.
pub(super) struct Diff {
    /// The aggregate's encoding.
    pub(super) now: RawDocumentBuf,
    pub(super) changes: Changes,
    pub(super) drafts: Vec<Draft>,
    /// The changes to stored messages.
    pub(super) revisions: Vec<Revision>,
}

impl Diff {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.drafts.is_empty() && self.revisions.is_empty()
    }

    /// Whether the save may change stored messages.
    pub(super) fn revises(&self) -> bool {
        !self.revisions.is_empty() || self.drafts.iter().any(|draft| draft.replaces().is_some())
    }
}

impl<T: Aggregate> Store<T> {
    /// Step 1 of a save: finds the changes since the load and checks the messages.
    ///
    /// # Errors
    /// An error for an aggregate or a message that can't be stored.
    pub(super) fn diff(&self, loaded: &mut Loaded<T>) -> Result<Diff, Error> {
        let now = encode(&loaded.value)?;
        loaded.check_named_alike(&now, &self.shard_key)?;
        check_id(&now, loaded.value.id())?;

        let changes = loaded.changes(&now)?;
        if !changes.is_empty() {
            check_readable::<T>(&loaded.document, &now)?;
        }
        let drafts = self.drafts(loaded.value.outbox())?;
        let revisions = loaded.value.outbox().revisions().to_vec();
        Ok(Diff { now, changes, drafts, revisions })
    }
}
