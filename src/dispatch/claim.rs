//! The writes of a delivery: claim, fail, die and release. The fifth write, clear, is in
//! [`clears`](crate::mongo::clears).
//!
//! A *claim* marks entries with a unique value and an end time. The filter of every later write requires that value, so
//! a holder can't change anything once its claim has expired and another holder has claimed the entries. Claims,
//! failures, deaths and releases wait for the majority. A clear does not, because a lost clear only causes a repeat,
//! which the guarantees allow.
//!
//! **Invariant.** A message is published only after the majority has acknowledged its claim: an entry from
//! a local read, or under an unacknowledged claim, can be rolled back, and its message would then announce
//! a change that never happened.

use std::time::Duration;

use mongodb::{
    bson::{DateTime, Document, RawDocumentBuf, Uuid, doc},
    error::Error,
};
use tokio::time::timeout;

use crate::{
    dispatch::{
        claimed_entries::{Claim, unchanged},
        due_again::due_again,
    },
    encoding::codec,
    mongo::{
        Mongo, Update, WriteOutcome,
        clock::later,
        error_codes::{self, Verdict},
    },
    stored::{
        document_ref::DocumentRef,
        entry::{DeadReason, Entry},
        filter::Filter,
        ids::new_random,
    },
};

/// Time limit for undoing a claim that got no clear answer.
const UNDO_TIMEOUT: Duration = Duration::from_secs(2);
/// The length of a UUID as text.
const HYPHENATED: usize = 36;
/// Maximum length of an error text in an entry.
const MAX_ERROR_BYTES: usize = 1024;

/// The result of an attempt to claim.
#[derive(Debug)]
pub(crate) enum Claimed {
    Held(Claim),
    /// Another claimer was faster, or the document changed, so the document must be read again.
    Lost,
    /// The document has no room for the claim's fields.
    NoRoom,
}

/// The result of writing a claim.
enum ClaimWritten {
    Done,
    Missed,
    NoRoom,
}

/// The result of a write to entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    Done,
    /// The entries are no longer in the state that the write expects: the claim expired, or another holder has claimed
    /// them.
    Missed,
}

/// Makes claims with a given name and lease.
#[derive(Debug, Clone)]
pub(crate) struct Claimer {
    pub(crate) mongo: Mongo,
    /// The prefix of every claim value, shown to operators.
    pub(crate) name: String,
    pub(crate) lease: Duration,
    /// Whether claims are counted in the field `claims`, to detect messages that kill their process.
    pub(crate) counts_claims: bool,
}

impl Claimer {
    /// The length of a new claim value.
    pub(crate) fn token_bytes(&self) -> usize {
        self.name.len() + 1 + HYPHENATED
    }

    /// Creates a fresh claim value.
    pub(crate) fn token(&self) -> String {
        format!("{}/{}", self.name, new_random())
    }

    /// Claims these entries for the time of the lease, if they have not changed since they were read.
    pub(crate) async fn claim(
        &self,
        document: &DocumentRef,
        entries: Vec<Entry>,
        now: DateTime,
    ) -> Result<Claimed, Error> {
        if entries.is_empty() {
            return Ok(Claimed::Lost);
        }
        let mut claim = Claim {
            document: document.clone(),
            token: self.token(),
            until: later(now, self.lease),
            counted: self.counts_claims,
            entries,
        };
        let mut written = self.write_claim(&claim, now).await?;

        if matches!(written, ClaimWritten::NoRoom) {
            // Use the shortest possible claim value. A document that has no room for this value has no room for any
            // claim, so a document never has a claim and a lease in the state database at the same time.
            claim.token = new_random().to_string();
            claim.counted = false;
            written = self.write_claim(&claim, now).await?;
        }
        Ok(match written {
            ClaimWritten::Done => Claimed::Held(claim),
            ClaimWritten::Missed => Claimed::Lost,
            ClaimWritten::NoRoom => Claimed::NoRoom,
        })
    }

    async fn write_claim(&self, claim: &Claim, now: DateTime) -> Result<ClaimWritten, Error> {
        match self.mongo.update(claim.update()).await {
            WriteOutcome::Done => Ok(ClaimWritten::Done),
            WriteOutcome::Missed => Ok(ClaimWritten::Missed),
            WriteOutcome::Failed(error) if error_codes::verdict(&error) == Verdict::TooLarge => {
                Ok(ClaimWritten::NoRoom)
            }
            WriteOutcome::Failed(error) => Err(error),
            WriteOutcome::Unknown(error) => {
                self.undo(claim, now).await;
                Err(error)
            }
        }
    }

    /// Tries to undo a claim that got no clear answer. A claim that was written and not undone would count as a claim
    /// whose holder died. No message was published under this claim, so a rollback of the undo is harmless.
    async fn undo(&self, claim: &Claim, now: DateTime) {
        let entries: Vec<_> = claim.entries.iter().collect();
        let Release { filter, update, elements } = Self::release_of(claim, &entries, now, &[]);
        let namespace = claim.document.namespace.clone();
        let update =
            Update { namespace, filter, operators: update.into(), array_filters: in_bytes(&elements) };
        let written = timeout(UNDO_TIMEOUT, self.mongo.update_without_majority(update)).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::debug!(document = %claim.document, "a claim that got no answer could not be undone; it ends when its lease expires");
        }
    }

    /// Marks an entry dead because the processes that claimed it kept dying, if the entry has not changed since it was
    /// read.
    pub(crate) async fn die_crashed(
        &self,
        document: &DocumentRef,
        entry: &Entry,
        now: DateTime,
    ) -> Result<Recorded, Error> {
        let filter = unchanged(document, entry);
        let error = format!("{} claims expired without an outcome", entry.claims - entry.attempts);
        let update = death(now, DeadReason::Crashed, &error);
        self.write(document, filter, update, doc! { "e.id": entry.id }).await
    }

    /// Marks an entry dead in a document that has no room for a claim. Writes only the time of death, and removes the
    /// entry's due date, which takes more room than the time of death. Returns `Recorded::Missed` if even the time of
    /// death doesn't fit, or if the entry is gone.
    pub(crate) async fn die_without_room(
        &self,
        document: &DocumentRef,
        entry: &Entry,
        now: DateTime,
    ) -> Result<Recorded, Error> {
        let update = doc! {
            "$set": { "outbox.$[e].dead_at": now },
            "$unset": { "outbox.$[e].available_at": "", "outbox.$[e].claimed_by": "" },
        };
        self.record(document, entry.id, update, now).await
    }

    /// Copies the state of an entry from the lease, where it was kept, into the document, because the
    /// document may have room again. Returns `Recorded::Missed` if there is no room, or if the entry is
    /// claimed.
    pub(crate) async fn record(
        &self,
        document: &DocumentRef,
        id: Uuid,
        update: Document,
        now: DateTime,
    ) -> Result<Recorded, Error> {
        let unclaimed = doc! { "claimed_by": null };
        let expired = doc! { "available_at": { "$not": { "$gt": now } } };
        let free = doc! { "id": id, "$or": [unclaimed, expired] };
        let filter = document.select(doc! { "outbox": { "$elemMatch": free } });

        match self.write(document, filter, update, doc! { "e.id": id }).await {
            Err(error) if error_codes::verdict(&error) == Verdict::TooLarge => Ok(Recorded::Missed),
            written => written,
        }
    }

    /// Records a failed attempt and postpones the entry until `retry_at`.
    pub(crate) async fn fail(
        &self,
        claim: &Claim,
        entry: &Entry,
        retry_at: DateTime,
        error: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        let mut set = doc! { "outbox.$[e].available_at": retry_at, "outbox.$[e].last_error": cut(error) };
        remember(&mut set, delivered_to);

        let update = doc! {
            "$set": set,
            "$inc": { "outbox.$[e].attempts": 1 },
            "$unset": { "outbox.$[e].claimed_by": "" },
        };
        self.settle(claim, entry, update).await
    }

    /// Marks an entry dead.
    pub(crate) async fn die(
        &self,
        claim: &Claim,
        entry: &Entry,
        now: DateTime,
        reason: DeadReason,
        error: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        let mut update = death(now, reason, error);
        if let Ok(set) = update.get_document_mut("$set") {
            remember(set, delivered_to);
        }

        update.insert("$inc", doc! { "outbox.$[e].attempts": 1 });
        self.settle(claim, entry, update).await
    }

    /// Releases entries so that they are due at once, without counting an attempt.
    pub(crate) async fn release(
        &self,
        claim: &Claim,
        entries: &[&Entry],
        now: DateTime,
        delivered_to: &[String],
    ) -> Result<Recorded, Error> {
        let Release { filter, update, elements } = Self::release_of(claim, entries, now, delivered_to);
        self.write_elements(&claim.document, filter, update, elements).await
    }

    fn release_of(claim: &Claim, entries: &[&Entry], now: DateTime, delivered_to: &[String]) -> Release {
        let mut set = Document::new();
        let mut unset = Document::new();
        let mut increase = Document::new();
        let mut elements = Vec::new();

        // Add one array filter for each date that is restored.
        for (index, (due, ids)) in due_again(entries, now).into_iter().enumerate() {
            let field = |name: &str| format!("outbox.$[e{index}].{name}");
            match due {
                Some(due) => set.insert(field("available_at"), due),
                None => unset.insert(field("available_at"), ""),
            };
            unset.insert(field("claimed_by"), "");
            if !delivered_to.is_empty() {
                set.insert(field("delivered_to"), delivered_to);
            }
            if claim.counted {
                increase.insert(field("claims"), -1);
            }
            elements.push(
                doc! { format!("e{index}.id"): { "$in": ids }, format!("e{index}.claimed_by"): &claim.token },
            );
        }

        let mut update = doc! { "$unset": unset };
        if !set.is_empty() {
            update.insert("$set", set);
        }
        if !increase.is_empty() {
            update.insert("$inc", increase);
        }

        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        let mine = doc! { "id": { "$in": ids }, "claimed_by": &claim.token };
        let filter = claim.document.select(doc! { "outbox": { "$elemMatch": mine } });
        Release { filter, update, elements }
    }

    async fn settle(&self, claim: &Claim, entry: &Entry, update: Document) -> Result<Recorded, Error> {
        let mine = doc! { "id": entry.id, "claimed_by": &claim.token };
        let filter = claim.document.select(doc! { "outbox": { "$elemMatch": mine } });
        let mine = doc! { "e.id": entry.id, "e.claimed_by": &claim.token };
        self.write(&claim.document, filter, update, mine).await
    }

    async fn write(
        &self,
        document: &DocumentRef,
        filter: Filter,
        update: Document,
        element: Document,
    ) -> Result<Recorded, Error> {
        self.write_elements(document, filter, update, vec![element]).await
    }

    async fn write_elements(
        &self,
        document: &DocumentRef,
        filter: Filter,
        mut update: Document,
        elements: Vec<Document>,
    ) -> Result<Recorded, Error> {
        let answer = self.send(document, filter.clone(), update.clone(), elements.clone()).await;
        let answer = match answer {
            // If the document has no room, write the state without its error text.
            WriteOutcome::Failed(error) if error_codes::verdict(&error) == Verdict::TooLarge => {
                if let Ok(set) = update.get_document_mut("$set") {
                    set.remove("outbox.$[e].last_error");
                }
                self.send(document, filter, update, elements).await
            }
            answer => answer,
        };

        match answer {
            WriteOutcome::Done => Ok(Recorded::Done),
            WriteOutcome::Missed => Ok(Recorded::Missed),
            WriteOutcome::Failed(error) | WriteOutcome::Unknown(error) => Err(error),
        }
    }

    async fn send(
        &self,
        document: &DocumentRef,
        filter: Filter,
        update: Document,
        array_filters: Vec<Document>,
    ) -> WriteOutcome {
        let namespace = document.namespace.clone();
        let array_filters = in_bytes(&array_filters);
        self.mongo.update(Update { namespace, filter, operators: update.into(), array_filters }).await
    }
}

/// The update that releases entries.
struct Release {
    filter: Filter,
    update: Document,
    elements: Vec<Document>,
}

/// Array filters that name ids and a claim, which can always be encoded.
fn in_bytes(filters: &[Document]) -> Vec<RawDocumentBuf> {
    filters.iter().map(|filter| codec::encode(filter).unwrap_or_default()).collect()
}

/// Cuts an error's text to the length that an entry may have, at a character boundary.
pub(crate) fn cut(error: &str) -> &str {
    let mut end = error.len().min(MAX_ERROR_BYTES);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    &error[..end]
}

fn remember(set: &mut Document, delivered_to: &[String]) {
    if !delivered_to.is_empty() {
        set.insert("outbox.$[e].delivered_to", delivered_to);
    }
}

fn death(now: DateTime, reason: DeadReason, error: &str) -> Document {
    doc! {
        "$set": {
            "outbox.$[e].dead_at": now,
            "outbox.$[e].dead_reason": reason.as_str(),
            "outbox.$[e].last_error": cut(error),
        },
        "$unset": { "outbox.$[e].available_at": "", "outbox.$[e].claimed_by": "" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_cut_at_a_character_boundary() {
        let text = format!("{}☃☃", "x".repeat(MAX_ERROR_BYTES - 1));
        assert_eq!(cut(&text).len(), MAX_ERROR_BYTES - 1);
        assert_eq!(cut("short"), "short");
    }
}
