//! Decides, before anything is written, whether a save fits into its document. The check uses the sizes known from the
//! load, and measures the stored document if the save doesn't fit by those sizes.

use super::{
    Store,
    caps::claim_bytes,
    diff::Diff,
    error::Error,
    loaded::Loaded,
    prepare::{Draft, bytes_of},
};
use crate::{aggregate::Aggregate, stored::document_ref::DocumentRef};

/// How large a stored document is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Number of entries in the outbox, not counting delivered entries that are about to be removed.
    pub(super) held: usize,
    pub(super) bytes: usize,
}

/// How much larger a save makes its document.
struct Growth {
    entries: usize,
    /// The bytes that a save adds, including room for the claim of a delivery.
    added: usize,
    /// The bytes that the save replaces.
    removed: usize,
}

impl<T: Aggregate> Store<T> {
    /// Checks that a save fits and returns the size of the stored document. If the save doesn't fit by the size at load
    /// time, asks the server once for the current size, because delivered messages may have been removed since the
    /// load.
    ///
    /// # Errors
    /// [`Error::OutboxNotArray`], [`Error::OutboxFull`], [`Error::DocumentTooLarge`], or the error of the query to the
    /// server.
    pub(super) async fn admit(&self, loaded: &Loaded<T>, diff: &Diff) -> Result<Size, Error> {
        let held = match &loaded.held {
            Ok(held) => *held,
            // A save without messages doesn't touch the stored outbox.
            Err(_) if diff.drafts.is_empty() => 0,
            Err(source) => {
                let (document, source) = (loaded.document.clone(), source.clone());
                return Err(Error::OutboxNotArray { document, source });
            }
        };
        // Don't count delivered messages that this save or a pending clear will remove.
        let delivered = self.delivered_and_there(&loaded.document, &diff.drafts);
        let known = Size { held: held.saturating_sub(delivered), bytes: loaded.bytes };

        let growth = self.growth(loaded, diff);
        if self.check(&loaded.document, known, &growth).is_ok() {
            return Ok(known);
        }

        let Some(measured) = self.measure(&loaded.document).await? else {
            // The document is gone, which the write will report.
            return self.check(&loaded.document, known, &growth).map(|()| known);
        };
        let measured = Size { held: measured.held.saturating_sub(delivered), ..measured };
        self.check(&loaded.document, measured, &growth)?;
        Ok(measured)
    }

    /// Checks that a save fits into a document of this size, which was just read.
    ///
    /// # Errors
    /// [`Error::OutboxFull`] and [`Error::DocumentTooLarge`].
    pub(super) fn admit_into(&self, loaded: &Loaded<T>, diff: &Diff, size: Size) -> Result<(), Error> {
        self.check(&loaded.document, size, &self.growth(loaded, diff))
    }

    fn growth(&self, loaded: &Loaded<T>, diff: &Diff) -> Growth {
        let claim = claim_bytes(self.inline.claimer().token_bytes());
        Growth {
            entries: diff.drafts.len(),
            added: diff.now.as_bytes().len() + bytes_of(&diff.drafts, claim),
            removed: loaded.baseline.as_bytes().len(),
        }
    }

    fn delivered_and_there(&self, document: &DocumentRef, drafts: &[Draft]) -> usize {
        if drafts.is_empty() { 0 } else { self.inline.delivered_and_there(document) }
    }

    fn check(&self, document: &DocumentRef, size: Size, growth: &Growth) -> Result<(), Error> {
        self.caps.check_entries(document, size.held, growth.entries)?;
        let bytes = (size.bytes + growth.added).saturating_sub(growth.removed);
        self.caps.check_document(document, bytes, size.bytes)
    }
}
