//! The writes of a delivery: claim, fail, die, release. The fifth, clear, is in [`clears`](crate::clears).
//!
//! A *claim* marks entries with a value of its own and a time until which it holds; every later write matches that value,
//! so a holder whose claim has run out and gone to another changes nothing. Claims, failures, deaths and releases wait
//! for the majority. A clear does not: a lost clear is a repeat, and a repeat is within the promises.
//!
//! **Invariant.** Nothing is published before the majority has acknowledged its claim: what a local read or an
//! unacknowledged claim shows can be rolled back, and a message from it would be a phantom.

use std::time::Duration;

use mongodb::{
    Client,
    bson::{DateTime, Document, doc},
    error::Error,
    options::WriteConcern,
};

use crate::{
    DocumentRef,
    clock::later,
    codes::{self, Verdict},
    entry::{DeadReason, Entry},
    filter::{self, Filter},
    group::{Statement, Writes},
    outbox::new_random,
    write::Answer,
};

/// How long a write may wait for the majority before its outcome counts as unknown.
pub(crate) const MAJORITY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a claim without an answer is tried to be taken back.
const UNDO_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest error text kept in an entry.
const MAX_ERROR_BYTES: usize = 1024;

/// Acknowledged by the majority, or an error in bounded time.
pub(crate) fn majority() -> WriteConcern {
    WriteConcern::builder().w(mongodb::options::Acknowledgment::Majority).w_timeout(MAJORITY_TIMEOUT).build()
}

/// Entries held until a time.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) document: DocumentRef,
    /// The value of `claimed_by`.
    pub(crate) token: String,
    /// Server time at which it ends.
    pub(crate) until: DateTime,
    pub(crate) entries: Vec<Entry>,
}

/// What came of an attempt to claim.
#[derive(Debug)]
pub(crate) enum Claimed {
    Held(Claim),
    /// Somebody else was faster, or the document changed: look again.
    Lost,
    /// The document has no room for the claim's fields.
    NoRoom,
}

/// Who claims, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Claimer {
    pub(crate) client: Client,
    pub(crate) writes: Writes,
    /// The first part of every token; shown to operators.
    pub(crate) name: String,
    pub(crate) lease: Duration,
    /// Whether a claim is counted in `claims`, to notice messages that kill their process.
    pub(crate) counts_claims: bool,
}

impl Claimer {
    /// A fresh claim value.
    pub(crate) fn token(&self) -> String {
        format!("{}/{}", self.name, new_random())
    }

    /// Claims these entries, as read, for the lease.
    pub(crate) async fn claim(
        &self,
        document: &DocumentRef,
        entries: &[&Entry],
        now: DateTime,
    ) -> Result<Claimed, Error> {
        if entries.is_empty() {
            return Ok(Claimed::Lost);
        }
        let (token, until) = (self.token(), later(now, self.lease));
        let unchanged = entries.iter().map(|entry| doc! { "$elemMatch": as_read(entry) });
        let filter = document.select(doc! { "outbox": { "$all": unchanged.collect::<Vec<_>>() } });
        let mut update = doc! { "$set": {
            "outbox.$[e].claimed_by": &token,
            "outbox.$[e].available_at": until,
        } };
        if self.counts_claims {
            update.insert("$inc", doc! { "outbox.$[e].claims": 1 });
        }
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        // It starts from the ids: a filter on types or absence would select unreadable neighbours too, and the server would
        // refuse the whole update.
        let array_filters = vec![doc! { "e.id": { "$in": ids } }];
        let namespace = document.namespace.clone();
        let entries = entries.iter().map(|entry| (*entry).clone()).collect();
        let claim = Claim { document: document.clone(), token, until, entries };
        match self.writes.update(Statement { namespace, filter, update, array_filters }).await {
            Answer::Done => Ok(Claimed::Held(claim)),
            Answer::Missed => Ok(Claimed::Lost),
            Answer::Failed(error) if codes::verdict(&error) == Verdict::TooLarge => Ok(Claimed::NoRoom),
            Answer::Failed(error) => Err(error),
            Answer::Unknown(error) => {
                self.undo(&claim, now).await;
                Err(error)
            }
        }
    }

    /// Takes back a claim that has no clean answer, as far as it can be: it may stand all the same, and would count as one whose
    /// holder died. Nothing was published under it, so that this may be rolled back does no harm.
    async fn undo(&self, claim: &Claim, now: DateTime) {
        let entries: Vec<_> = claim.entries.iter().collect();
        let write = self.release_with(claim, &entries, now, &[], WriteConcern::nodes(1));
        match tokio::time::timeout(UNDO_TIMEOUT, write).await {
            Ok(Ok(_)) => {}
            _ => {
                tracing::debug!(document = %claim.document, "a claim without an answer was not taken back; it ends with its lease")
            }
        }
    }

    /// Gives up an entry whose claimers kept dying, if it is still as read.
    pub(crate) async fn die_crashed(
        &self,
        document: &DocumentRef,
        entry: &Entry,
        now: DateTime,
    ) -> Result<bool, Error> {
        let filter = document.select(doc! { "outbox": { "$elemMatch": as_read(entry) } });
        let error = format!("{} claims ended without an answer", entry.claims - entry.attempts);
        let update = death(now, DeadReason::Crashed, &error);
        self.write(document, filter, update, doc! { "e.id": entry.id }).await
    }

    /// Records a failed attempt and puts the entry off until `retry_at`. False when the claim was lost.
    pub(crate) async fn fail(
        &self,
        claim: &Claim,
        entry: &Entry,
        retry_at: DateTime,
        error: &str,
        delivered_to: &[String],
    ) -> Result<bool, Error> {
        let mut set = doc! { "outbox.$[e].available_at": retry_at, "outbox.$[e].last_error": cut(error) };
        remember(&mut set, delivered_to);
        let update = doc! {
            "$set": set,
            "$inc": { "outbox.$[e].attempts": 1 },
            "$unset": { "outbox.$[e].claimed_by": "" },
        };
        self.settle(claim, entry, update).await
    }

    /// Gives an entry up. False when the claim was lost.
    pub(crate) async fn die(
        &self,
        claim: &Claim,
        entry: &Entry,
        now: DateTime,
        reason: DeadReason,
        error: &str,
        delivered_to: &[String],
    ) -> Result<bool, Error> {
        let mut update = death(now, reason, error);
        if let Ok(set) = update.get_document_mut("$set") {
            remember(set, delivered_to);
        }
        update.insert("$inc", doc! { "outbox.$[e].attempts": 1 });
        self.settle(claim, entry, update).await
    }

    /// Gives entries back, due at once, with no attempt counted. False when the claim was lost.
    pub(crate) async fn release(
        &self,
        claim: &Claim,
        entries: &[&Entry],
        now: DateTime,
        delivered_to: &[String],
    ) -> Result<bool, Error> {
        self.release_with(claim, entries, now, delivered_to, majority()).await
    }

    async fn release_with(
        &self,
        claim: &Claim,
        entries: &[&Entry],
        now: DateTime,
        delivered_to: &[String],
        concern: WriteConcern,
    ) -> Result<bool, Error> {
        let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        // Not after any of them was sent: with clocks apart, that would look like a schedule.
        let due = entries.iter().filter_map(|entry| entry.created_at).fold(now, DateTime::min);
        let mut set = doc! { "outbox.$[e].available_at": due };
        remember(&mut set, delivered_to);
        let mut update = doc! { "$set": set, "$unset": { "outbox.$[e].claimed_by": "" } };
        if self.counts_claims {
            update.insert("$inc", doc! { "outbox.$[e].claims": -1 });
        }
        let mine = doc! { "id": { "$in": &ids }, "claimed_by": &claim.token };
        let filter = claim.document.select(doc! { "outbox": { "$elemMatch": mine } });
        let mine = doc! { "e.id": { "$in": ids }, "e.claimed_by": &claim.token };
        self.write_with(&claim.document, filter, update, mine, concern).await
    }

    async fn settle(&self, claim: &Claim, entry: &Entry, update: Document) -> Result<bool, Error> {
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
    ) -> Result<bool, Error> {
        self.write_with(document, filter, update, element, majority()).await
    }

    async fn write_with(
        &self,
        document: &DocumentRef,
        filter: Filter,
        mut update: Document,
        element: Document,
        concern: WriteConcern,
    ) -> Result<bool, Error> {
        let send = |update: Document| {
            let (filter, elements) = (filter.clone(), vec![element.clone()]);
            filter::update(&self.client, &document.namespace, filter, update, elements, concern.clone())
        };
        match send(update.clone()).await {
            // In a document without room, the state is worth more than the text about it.
            Err(error) if codes::verdict(&error) == Verdict::TooLarge => {
                if let Ok(set) = update.get_document_mut("$set") {
                    set.remove("outbox.$[e].last_error");
                }
                send(update).await
            }
            other => other,
        }
    }
}

/// Reads and commands go to the primary, whatever the client's own preference.
pub(crate) fn primary() -> mongodb::options::SelectionCriteria {
    mongodb::options::SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary)
}

/// Cuts an error's text to what an entry may hold, at a character's boundary.
pub(crate) fn cut(error: &str) -> &str {
    let mut end = error.len().min(MAX_ERROR_BYTES);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    &error[..end]
}

/// The entry's moving fields as they were read; null matches an absent field.
fn as_read(entry: &Entry) -> Document {
    doc! { "id": entry.id, "available_at": entry.available_at, "claimed_by": &entry.claimed_by, "dead_at": null }
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
