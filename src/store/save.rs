//! A save, in five steps.
//!
//! # Flow
//! 1. *diff* finds the changes since the load and checks the sent messages against the caps.
//! 2. *admit* checks that the save fits into the document. This step asks the server at most once.
//! 3. *prepare* turns the messages into dated and encoded entries, and takes a seat of the inline dispatcher for them.
//!    Messages that can be delivered at once get a claim.
//! 4. *write* writes the save, trying the strictest [condition](super::write::Condition) first.
//! 5. *dispatch* hands the entries to the inline dispatcher.
//!
//! The steps before *write* have no effects, and each of them may refuse the save. A save that changes stored messages
//! [reads the outbox](super::save_revised) before these steps.

use mongodb::bson::RawDocumentBuf;

use super::{
    Store,
    admit::Size,
    diff::Diff,
    error::Error,
    loaded::Loaded,
    outcome::{Receipt, Saved},
    prepare::{Emptiness, Prepared},
    unknown::carry::warn_of,
    write::SaveWrite,
};
use crate::aggregate::Aggregate;

/// What is known of a document after a save was written.
pub(super) struct AppliedSave {
    pub(super) etag: RawDocumentBuf,
    /// The size of the document.
    pub(super) bytes: usize,
    /// Number of entries in the outbox that the save has not written.
    pub(super) others: usize,
}

impl<T: Aggregate> Store<T> {
    /// Saves the changes since the aggregate was loaded, and the messages it sent.
    ///
    /// On any outcome except [`Saved::Applied`], the messages stay in the aggregate's outbox.
    ///
    /// # Errors
    /// [`Error`], if nothing was written.
    pub async fn save(&self, loaded: &mut Loaded<T>) -> Result<Saved, Error> {
        self.observe("save", self.save_in_steps(loaded)).await
    }

    async fn save_in_steps(&self, loaded: &mut Loaded<T>) -> Result<Saved, Error> {
        let mut diff = self.diff(loaded)?;
        if diff.is_empty() {
            return Ok(Saved::Unchanged);
        }
        if diff.revises() {
            // On the heap, because other saves should not reserve space for this rare path.
            return Box::pin(self.save_revised(loaded, diff)).await;
        }

        let size = self.admit(loaded, &diff).await?;

        let outbox = self.emptiness(loaded, size);
        let drafts = std::mem::take(&mut diff.drafts);
        let mut prepared = self.prepare(&loaded.document, drafts, outbox, Vec::new()).await?;

        let bytes = (size.bytes + diff.now.as_bytes().len() + prepared.bytes())
            .saturating_sub(loaded.baseline.as_bytes().len());
        let etag = match self.write(loaded, &diff.changes, &mut prepared, outbox).await? {
            SaveWrite::Applied { etag } => etag,
            SaveWrite::Conflict => return Ok(Saved::Conflict),
            SaveWrite::Gone => return Ok(Saved::Gone),
            SaveWrite::Unknown(error) => return Ok(Saved::Unknown(error)),
            SaveWrite::Failed(error) => return Err(Error::of_write(&loaded.document, error, bytes)),
        };

        let others = if prepared.is_claimed() { 0 } else { size.held };
        let receipt = self.finish(loaded, diff, prepared, AppliedSave { etag, bytes, others }).await;
        Ok(Saved::Applied(receipt))
    }

    /// Step 5 of a save, after it was written. From here on the aggregate counts as freshly loaded, even if the caller
    /// doesn't wait for the deliveries.
    pub(super) async fn finish(
        &self,
        loaded: &mut Loaded<T>,
        diff: Diff,
        prepared: Prepared,
        applied: AppliedSave,
    ) -> Receipt {
        loaded.etag = Some(applied.etag);
        loaded.bytes = applied.bytes;
        self.forget_changes(loaded, diff);
        let receipt = self.dispatch(&loaded.document, prepared).await;
        loaded.has_sent(receipt.messages.len(), applied.others, &receipt.dispatch);
        receipt
    }

    /// Whether the stored outbox is empty, as far as is known before the write.
    fn emptiness(&self, loaded: &mut Loaded<T>, size: Size) -> Emptiness {
        if size.held == 0 {
            return Emptiness::Known;
        }
        // The outbox can't be empty while a delivery is in progress.
        if loaded.assumption.covers(size.held) && !self.inline.works_on(&loaded.document) {
            Emptiness::Hoped
        } else {
            Emptiness::Unlikely
        }
    }

    /// Marks the aggregate's changes as stored and empties its outbox. This function is called only after the write,
    /// because a dropped save must not lose messages.
    fn forget_changes(&self, loaded: &mut Loaded<T>, diff: Diff) {
        let Diff { now, changes, .. } = diff;
        loaded.value.outbox().clear();
        loaded.baseline = now;
        loaded.now_knows(changes.unknown, &changes.unset);

        if !changes.dropped.is_empty() {
            warn_of(&self.namespace, &changes.dropped);
            self.inline.metrics().unknown_fields_dropped(changes.dropped.values().sum());
        }
    }
}
