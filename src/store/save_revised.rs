//! A save that cancels, reschedules or replaces stored messages.
//!
//! # Flow
//! ```text
//! read the outbox ─▶ decide ─▶ admit ─▶ prepare ─▶ write, if the outbox still permits the decision ─▶ dispatch
//!        ▲                                                       │ missed
//!        └───────────────────────────────────────────────────────┘
//! ```
//! The update requires that every message that it removes or reschedules is still free. So an applied save has done
//! exactly what was decided, and its receipt needs no second answer of the server.
//!
//! # Guarantees
//! - A message that is reported as cancelled or replaced was not claimed, and has left the outbox.
//! - A message that is reported otherwise is still there, or had left the outbox before.
//!
//! # Caveats
//! The messages of a document that has no room for a claim are delivered under a lease in the state database, without a
//! claim in the document. So the save of a large document takes this lease itself. For a smaller document, the update
//! requires that the document is still small.
//!
//! A message that was cancelled or replaced can still arrive:
//! - if an earlier publish of it got no answer, because such a message is released and then free;
//! - if its document was delivered under a lease and became small during the delivery;
//! - if the lease of a killed or frozen process has ended, because an ended lease leaves the message free.

use mongodb::bson::RawDocumentBuf;

use super::{
    Store,
    admit::Size,
    diff::Diff,
    error::Error,
    loaded::Loaded,
    lookups::size_of,
    outcome::Saved,
    prepare::Prepared,
    revise::{ReadOutbox, RevisionPlan},
    save::AppliedSave,
    write::SaveWrite,
    write_revised::{RevisionWrite, RoomCondition},
};
use crate::{
    aggregate::{
        Aggregate,
        revision::{Revised, RevisionOutcome},
    },
    dispatch::oversized::{Lease, Leased},
    encoding::bytes::element,
    mongo::deadline::until_deadline,
    stored::{document_ref::DocumentRef, entry::ETAG},
};

/// Number of decisions that a save makes before it counts as a conflict, because deliveries keep changing the messages.
const TRIES: u32 = 8;
/// A document of at most this size has so much room for claims that no process delivers its messages under a lease. The
/// server's limit is 16 MiB.
const ROOMY: usize = 8 << 20;

/// A document that a save revises.
struct ReadDocument {
    outbox: ReadOutbox,
    bytes: usize,
}

/// The result of reading a document for a save.
enum RevisionRead {
    Same(ReadDocument),
    /// The save can't be applied, for this reason.
    Other(Saved),
}

impl<T: Aggregate> Store<T> {
    /// Saves an aggregate that cancels, reschedules or replaces messages.
    pub(super) async fn save_revised(&self, loaded: &mut Loaded<T>, diff: Diff) -> Result<Saved, Error> {
        // Messages that this process has delivered must not count as claimed, and the update doesn't remove them.
        until_deadline(self.inline.flush_document(&loaded.document)).await;

        let mut lease = None;
        let saved = self.save_under(loaded, diff, &mut lease).await;
        if let Some(lease) = lease
            && let Err(error) = self.inline.oversized().give_back(&loaded.document, lease).await
        {
            tracing::debug!(document = %loaded.document, %error, "the lease on a large document was not released; it ends by itself");
        }
        saved
    }

    async fn save_under(
        &self,
        loaded: &mut Loaded<T>,
        diff: Diff,
        lease: &mut Option<Lease>,
    ) -> Result<Saved, Error> {
        let mut read = match self.read_revised(loaded, &diff, lease).await? {
            RevisionRead::Same(read) => read,
            RevisionRead::Other(saved) => return Ok(saved),
        };
        let mut plan = self.plan_revisions(&read, &diff).await?;
        let size = Size { held: plan.left, bytes: read.bytes.saturating_sub(plan.bytes) };
        self.admit_into(loaded, &diff, size)?;

        let outbox = plan.emptiness();
        // A later decision needs the types and keys of the messages.
        let drafts = diff.drafts.clone();
        let mut prepared = self.prepare(&loaded.document, drafts, outbox, plan.made_due()).await?;

        for _ in 0..TRIES {
            let bytes = (read.bytes + diff.now.as_bytes().len() + prepared.bytes())
                .saturating_sub(plan.bytes + loaded.baseline.as_bytes().len());
            let written = self.write_plan(loaded, &diff, &mut prepared, &plan, lease.as_ref()).await?;
            match written {
                RevisionWrite::Missed => {}
                RevisionWrite::Ended(SaveWrite::Applied { etag }) => {
                    let others = if prepared.is_claimed() { 0 } else { plan.left };
                    return Ok(self
                        .finish_revised(loaded, diff, prepared, plan, AppliedSave { etag, bytes, others })
                        .await);
                }
                RevisionWrite::Ended(SaveWrite::Conflict) => return Ok(Saved::Conflict),
                RevisionWrite::Ended(SaveWrite::Gone) => return Ok(Saved::Gone),
                RevisionWrite::Ended(SaveWrite::Unknown(error)) => return Ok(Saved::Unknown(error)),
                RevisionWrite::Ended(SaveWrite::Failed(error)) => {
                    return Err(Error::of_write(&loaded.document, error, bytes));
                }
            }

            read = match self.read_revised(loaded, &diff, lease).await? {
                RevisionRead::Same(read) => read,
                RevisionRead::Other(saved) => return Ok(saved),
            };
            plan = self.plan_revisions(&read, &diff).await?;
            prepared.made_due = plan.made_due();
        }
        Ok(Saved::Conflict)
    }

    /// Reads the document's outbox. Takes the lease on a large document first.
    async fn read_revised(
        &self,
        loaded: &Loaded<T>,
        diff: &Diff,
        lease: &mut Option<Lease>,
    ) -> Result<RevisionRead, Error> {
        let document = &loaded.document;
        let mut is_anothers = false;
        let mut found = self.read_for_revision(document).await?;
        if lease.is_none() && found.as_deref().is_some_and(|found| size_of(found) > ROOMY) {
            let now = self.mongo.now().await.map_err(Error::of_read)?;
            let token = self.inline.claimer().token();
            match self.inline.oversized().lease(document, &token, now).await.map_err(Error::of_read)? {
                Leased::Held(held) => *lease = Some(held),
                Leased::ByAnother { .. } => is_anothers = true,
            }
            // Only from here on no other process takes the lease.
            found = self.read_for_revision(document).await?;
        }

        let Some(found) = found else { return Ok(RevisionRead::Other(Saved::Gone)) };
        if element(&found, ETAG) != loaded.etag() {
            return Ok(RevisionRead::Other(Saved::Conflict));
        }
        let mut outbox = outbox_of(document, &found, diff)?;
        if is_anothers {
            outbox.note_other_lease();
        }
        if let Some(lease) = lease {
            outbox.note_lease(lease);
        }
        Ok(RevisionRead::Same(ReadDocument { outbox, bytes: size_of(&found) }))
    }

    async fn plan_revisions(&self, read: &ReadDocument, diff: &Diff) -> Result<RevisionPlan, Error> {
        let now = self.mongo.now().await.map_err(Error::of_read)?;
        Ok(read.outbox.plan(&diff.revisions, &diff.drafts, now))
    }

    async fn write_plan(
        &self,
        loaded: &mut Loaded<T>,
        diff: &Diff,
        prepared: &mut Prepared,
        plan: &RevisionPlan,
        lease: Option<&Lease>,
    ) -> Result<RevisionWrite, Error> {
        // No stored message changes, so the save is written like any other.
        if !plan.changes_entries() {
            let outbox = plan.emptiness();
            return Ok(RevisionWrite::Ended(self.write(loaded, &diff.changes, prepared, outbox).await?));
        }
        if plan.left > 0 && prepared.is_claimed() {
            prepared.unclaim(&loaded.document)?;
        }
        let room = match lease {
            Some(lease) => RoomCondition::LeasedUntil(lease.until()),
            None => RoomCondition::AtMost(ROOMY),
        };
        self.write_revised(loaded, &diff.changes, prepared, plan, room).await
    }

    async fn finish_revised(
        &self,
        loaded: &mut Loaded<T>,
        diff: Diff,
        prepared: Prepared,
        plan: RevisionPlan,
        applied: AppliedSave,
    ) -> Saved {
        self.report_revisions(&loaded.document, &plan.revised);
        let mut receipt = self.finish(loaded, diff, prepared, applied).await;
        receipt.revisions = plan.revised;
        Saved::Applied(receipt)
    }

    /// Counts and logs what became of stored messages.
    pub(super) fn report_revisions(&self, document: &DocumentRef, revised: &[Revised]) {
        for Revised { message, outcome } in revised {
            self.inline.metrics().revised(*outcome);
            if matches!(outcome, RevisionOutcome::Cancelled | RevisionOutcome::Replaced) {
                tracing::info!(%document, id = %message, outcome = outcome.as_str(), "a save removed an undelivered message");
            } else {
                tracing::debug!(%document, id = %message, outcome = outcome.as_str(), "a save was to revise a stored message");
            }
        }
    }
}

/// Reads the outbox of a stored document. An outbox that is not an array has no messages.
fn outbox_of(document: &DocumentRef, found: &RawDocumentBuf, diff: &Diff) -> Result<ReadOutbox, Error> {
    match ReadOutbox::of(found) {
        Ok(outbox) => Ok(outbox),
        Err(_) if diff.drafts.is_empty() => Ok(ReadOutbox::default()),
        Err(source) => Err(Error::OutboxNotArray { document: document.clone(), source }),
    }
}
