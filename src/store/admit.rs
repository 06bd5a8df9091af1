//! Whether a save fits into its document: decided before anything is written, by known sizes, or otherwise by
//! measured ones.

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
    /// Entries in its outbox, without delivered ones that wait to be removed.
    pub(super) held: usize,
    pub(super) bytes: usize,
}

/// How much larger a save makes its document.
struct Growth {
    entries: usize,
    /// The bytes that a save adds, including room for the claim of a delivery.
    added: usize,
    /// What is replaced.
    removed: usize,
}

impl<T: Aggregate> Store<T> {
    /// Checks that a save fits; returns the size of the stored document. If it doesn't fit by the size at the
    /// load, asks the server, at most once, because delivered messages have left meanwhile.
    ///
    /// # Errors
    /// [`Error::OutboxNotArray`], [`Error::OutboxFull`], [`Error::DocumentTooLarge`], or that of the question.
    pub(super) async fn admit(&self, loaded: &Loaded<T>, diff: &Diff) -> Result<Size, Error> {
        let held = match &loaded.held {
            Ok(held) => *held,
            // A save without messages leaves the stored outbox alone.
            Err(_) if diff.drafts.is_empty() => 0,
            Err(source) => {
                let (document, source) = (loaded.document.clone(), source.clone());
                return Err(Error::OutboxNotArray { document, source });
            }
        };
        // Not counted: delivered messages that wait for this save to remove them, or for their clear.
        let delivered = self.delivered_and_there(&loaded.document, &diff.drafts);
        let known = Size { held: held.saturating_sub(delivered), bytes: loaded.bytes };

        let claim = claim_bytes(self.inline.claimer().token_bytes());
        let growth = Growth {
            entries: diff.drafts.len(),
            added: diff.now.as_bytes().len() + bytes_of(&diff.drafts, claim),
            removed: loaded.baseline.as_bytes().len(),
        };
        if self.check(&loaded.document, known, &growth).is_ok() {
            return Ok(known);
        }

        let Some(measured) = self.measure(&loaded.document).await? else {
            // It is gone, which the write will report.
            return self.check(&loaded.document, known, &growth).map(|()| known);
        };
        let measured = Size { held: measured.held.saturating_sub(delivered), ..measured };
        self.check(&loaded.document, measured, &growth)?;
        Ok(measured)
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
