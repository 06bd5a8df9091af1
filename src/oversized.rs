//! Documents that have no room for a claim.
//!
//! A document a few bytes short of the server's 16 MiB takes no update that makes it grow, and a claim makes it grow. Such
//! a document is delivered under a lease in the state database instead, one message at a time, and its failures are
//! kept with the lease. Removing a delivered message makes room, so this rarely lasts.

use std::time::Duration;

use mongodb::{
    Client, Collection,
    bson::{Bson, DateTime, Document, RawDocumentBuf, Uuid, doc},
    error::Error,
    options::{ReadConcern, ReturnDocument},
};

use crate::{
    DocumentRef, RetryPolicy,
    claim::{Claim, cut, majority, primary},
    clock::later,
    codec,
    codes::{self, Verdict},
    entry::{DeadReason, Entry, NotAnArray, Slot, read_outbox},
};

/// The collection of leases in the state database.
pub(crate) const LEASES: &str = "leases";

#[derive(Debug, Clone)]
pub(crate) struct Oversized {
    leases: Collection<Document>,
    lease: Duration,
    retry: RetryPolicy,
}

/// A lease on a document, with what is known of its head.
pub(crate) struct Lease {
    token: String,
    until: DateTime,
    state: Document,
}

impl Lease {
    /// Whether a message was given up while the document had no room to say so.
    pub(crate) fn is_dead(&self, slot: &Slot) -> bool {
        let dead = self.state.get_array("dead").map(Vec::as_slice).unwrap_or_default();
        let is = |id: Uuid| {
            dead.iter().filter_map(Bson::as_document).any(|entry| entry.get("id") == Some(&Bson::from(id)))
        };
        slot.entry().is_some_and(|entry| is(entry.id))
    }

    /// When the head may be tried again, if it failed.
    pub(crate) fn retry_at(&self, id: Uuid) -> Option<DateTime> {
        (self.attempts(id) > 0).then(|| self.state.get_datetime("retry_at").ok().copied()).flatten()
    }

    fn attempts(&self, id: Uuid) -> u32 {
        if self.state.get("entry") != Some(&Bson::from(id)) {
            return 0;
        }
        u32::try_from(self.state.get_i32("attempts").unwrap_or(0)).unwrap_or(0)
    }

    /// The lease in the shape of a claim on one entry.
    pub(crate) fn as_claim(&self, document: &DocumentRef, entry: Entry) -> Claim {
        Claim {
            document: document.clone(),
            token: self.token.clone(),
            until: self.until,
            entries: vec![entry],
        }
    }
}

impl Oversized {
    pub(crate) fn new(client: &Client, state_database: &str, lease: Duration, retry: RetryPolicy) -> Self {
        Self { leases: client.database(state_database).collection(LEASES), lease, retry }
    }

    /// Takes the lease, or says until when another holds it.
    pub(crate) async fn lease(
        &self,
        document: &DocumentRef,
        token: &str,
        now: DateTime,
    ) -> Result<Result<Lease, DateTime>, Error> {
        let until = later(now, self.lease);
        let free = doc! { "_id": id_of(document), "until": { "$not": { "$gt": now } } };
        let taken = self
            .leases
            .find_one_and_update(
                free,
                doc! { "$set": { "kind": "oversized", "owner": token, "until": until } },
            )
            .upsert(true)
            .return_document(ReturnDocument::After)
            .write_concern(majority())
            .await;
        match taken {
            Ok(state) => Ok(Ok(Lease { token: token.into(), until, state: state.unwrap_or_default() })),
            // The upsert met the lease of another.
            Err(error) if codes::verdict(&error) == Verdict::Duplicate => Ok(Err(until)),
            Err(error) => Err(error),
        }
    }

    /// Reads the outbox as the majority has it.
    pub(crate) async fn read(
        &self,
        client: &Client,
        document: &DocumentRef,
    ) -> Result<Option<Result<Vec<Slot>, NotAnArray>>, Error> {
        let found = collection(client, document)
            .find_one(document.filter())
            .projection(doc! { "outbox": 1 })
            .read_concern(ReadConcern::majority())
            .selection_criteria(primary())
            .await?;
        let outbox = found.map(|raw| codec::to_document(&raw).unwrap_or_default());
        Ok(outbox.map(|document| read_outbox(document.get("outbox"))))
    }

    /// Removes a delivered message.
    pub(crate) async fn clear(&self, client: &Client, document: &DocumentRef, id: Uuid) -> Result<(), Error> {
        let pull = doc! { "$pull": { "outbox": { "id": id } } };
        collection(client, document).update_one(document.filter(), pull).write_concern(majority()).await?;
        Ok(())
    }

    /// Counts a failed attempt: when to try again, or none when that was the last.
    pub(crate) async fn fail(
        &self,
        document: &DocumentRef,
        lease: &Lease,
        id: Uuid,
        now: DateTime,
        error: &str,
    ) -> Result<Option<DateTime>, Error> {
        let attempts = lease.attempts(id) + 1;
        if attempts >= self.retry.max_attempts {
            self.die(document, lease, id, now, DeadReason::AttemptsExhausted, error).await?;
            return Ok(None);
        }
        let retry_at = later(now, self.retry.backoff(attempts));
        let state =
            doc! { "entry": id, "attempts": attempts, "retry_at": retry_at, "last_error": cut(error) };
        self.update(document, lease, doc! { "$set": state, "$unset": { "until": "" } }).await?;
        Ok(Some(retry_at))
    }

    /// Records that a message was given up.
    pub(crate) async fn die(
        &self,
        document: &DocumentRef,
        lease: &Lease,
        id: Uuid,
        now: DateTime,
        reason: DeadReason,
        error: &str,
    ) -> Result<(), Error> {
        let dead =
            doc! { "id": id, "dead_at": now, "dead_reason": reason.as_str(), "last_error": cut(error) };
        let head = doc! { "until": "", "entry": "", "attempts": "", "retry_at": "", "last_error": "" };
        self.update(document, lease, doc! { "$push": { "dead": dead }, "$unset": head }).await
    }

    /// Gives the lease back and keeps what is known.
    pub(crate) async fn release(&self, document: &DocumentRef, lease: &Lease) -> Result<(), Error> {
        self.update(document, lease, doc! { "$unset": { "until": "" } }).await
    }

    /// Gives the lease back; nothing need be known any more, unless messages died.
    pub(crate) async fn forget(&self, document: &DocumentRef, lease: &Lease) -> Result<(), Error> {
        if lease.state.contains_key("dead") {
            return self.release(document, lease).await;
        }
        let mine = doc! { "_id": id_of(document), "owner": &lease.token };
        self.leases.delete_one(mine).write_concern(majority()).await?;
        Ok(())
    }

    async fn update(&self, document: &DocumentRef, lease: &Lease, update: Document) -> Result<(), Error> {
        let mine = doc! { "_id": id_of(document), "owner": &lease.token };
        self.leases.update_one(mine, update).write_concern(majority()).await?;
        Ok(())
    }
}

fn id_of(document: &DocumentRef) -> Document {
    doc! { "ns": document.namespace.to_string(), "key": document.key.clone() }
}

fn collection(client: &Client, document: &DocumentRef) -> Collection<RawDocumentBuf> {
    client.database(&document.namespace.db).collection(&document.namespace.coll)
}
