//! Handles documents that have no room for a claim.
//!
//! If a document is only a few bytes below the server's limit of 16 MiB, the server refuses every update that makes
//! the document grow, and a claim makes the document grow. The messages of such a document are instead delivered one
//! at a time, under a lease in the state database. The state that would be stored in the entries (number of attempts,
//! time of the next attempt, handlers that have received the message, death) is kept with the lease. Removing a
//! delivered message makes room, so a document is rarely in this state for long.

use std::time::Duration;

use mongodb::{
    Namespace,
    bson::{Binary, Bson, DateTime, Document, Uuid, doc, spec::BinarySubtype},
    error::Error,
    options::ReadConcern,
};

use crate::{
    dispatch::{
        claim::{Recorded, cut},
        claimed_entries::Claim,
    },
    encoding::codec,
    mongo::{
        Delete, Find, Mongo, Update, Upsert, WriteOutcome,
        clock::later,
        concern::MAJORITY_TIMEOUT,
        error_codes::{self, Verdict},
    },
    stored::{
        document_ref::DocumentRef,
        entry::{Dead, DeadReason, Entry, Slot, read_outbox_of},
        filter::Filter,
        free::Freedom,
    },
};

/// The collection of leases in the state database.
pub(crate) const LEASES: &str = "leases";

#[derive(Debug, Clone)]
pub(crate) struct Oversized {
    mongo: Mongo,
    /// The collection of leases.
    leases: Namespace,
    lease: Duration,
}

/// The result of taking a lease.
pub(crate) enum Leased {
    Held(Lease),
    /// Another process has the lease, at most until `until`.
    ByAnother {
        until: DateTime,
    },
}

/// A lease on a document, which also keeps the state of messages for which the document has no room.
pub(crate) struct Lease {
    token: String,
    until: DateTime,
    /// For each message whose delivery failed: `id`, `attempts`, `retry_at`, `last_error`, `delivered_to`.
    failed: Vec<Document>,
    /// For each dead message: `id`, `dead_at`, `dead_reason`, `last_error`.
    dead: Vec<Document>,
}

impl Lease {
    fn of(state: &Document, token: &str, until: DateTime) -> Self {
        let list = |name| {
            let elements = state.get_array(name).map(Vec::as_slice).unwrap_or_default();
            elements.iter().filter_map(|element| element.as_document().cloned()).collect()
        };
        Self { token: token.into(), until, failed: list("failed"), dead: list("dead") }
    }

    /// Adds the state kept with the lease to the messages, and drops the state of messages that have left the outbox.
    pub(crate) fn complete(&mut self, slots: &mut [Slot]) {
        let mut known: Vec<Bson> = Vec::new();
        for entry in slots.iter_mut().filter_map(Slot::entry_mut) {
            let id = Bson::from(entry.id);
            let of = |list: &[Document]| list.iter().find(|of| of.get("id") == Some(&id)).cloned();

            // If the document had room after the lease was released, the state in the document may be newer.
            let is_news =
                |failed: &Document| i64::from(failed.get_i32("attempts").unwrap_or(0)) >= entry.attempts;
            if let Some(failed) = of(&self.failed).filter(is_news) {
                let strings = failed.get_array("delivered_to").map(Vec::as_slice).unwrap_or_default();
                entry.delivered_to =
                    strings.iter().filter_map(|key| key.as_str().map(str::to_owned)).collect();
                entry.attempts = i64::from(failed.get_i32("attempts").unwrap_or(0));
                entry.available_at = failed.get_datetime("retry_at").ok().copied();
                entry.claimed_by = None;
            }

            if let Some(dead) = of(&self.dead) {
                let at = dead.get_datetime("dead_at").copied().unwrap_or(self.until);
                entry.dead =
                    Some(Dead { at, reason: dead.get_str("dead_reason").unwrap_or_default().into() });
            }
            known.push(id);
        }

        let stays = |of: &Document| of.get("id").is_some_and(|id| known.contains(id));
        self.failed.retain(stays);
        self.dead.retain(stays);
    }

    /// The server time at which the lease ends.
    pub(crate) fn until(&self) -> DateTime {
        self.until
    }

    /// Whether a message whose state is kept with the lease may still be removed or rescheduled. `None` if no state of
    /// the message is kept.
    pub(crate) fn freedom_of(&self, id: Uuid) -> Option<Freedom> {
        let id = Bson::from(id);
        let is_in = |list: &[Document]| list.iter().any(|of| of.get("id") == Some(&id));
        if is_in(&self.dead) {
            return Some(Freedom::Dead);
        }
        if is_in(&self.failed) { Some(Freedom::InDelivery) } else { None }
    }

    /// Presents the lease as a claim on one entry.
    pub(crate) fn as_claim(&self, document: &DocumentRef, entry: Entry) -> Claim {
        Claim {
            document: document.clone(),
            token: self.token.clone(),
            until: self.until,
            counted: false,
            entries: vec![entry],
        }
    }

    /// Records that a message will be retried.
    pub(crate) fn put_off(
        &mut self,
        entry: &Entry,
        attempts: i64,
        retry_at: DateTime,
        error: &str,
        delivered_to: &[String],
    ) {
        self.forget(entry.id);

        // Keep the number in the range that is valid for entries.
        let attempts = i32::try_from(attempts).unwrap_or(i32::MAX);
        self.failed.push(doc! {
            "id": entry.id,
            "attempts": attempts,
            "retry_at": retry_at,
            "last_error": cut(error),
            "delivered_to": delivered_to,
        });
    }

    /// Records that a message is dead.
    pub(crate) fn die(&mut self, id: Uuid, now: DateTime, reason: DeadReason, error: &str) {
        self.forget(id);
        self.dead.push(
            doc! { "id": id, "dead_at": now, "dead_reason": reason.as_str(), "last_error": cut(error) },
        );
    }

    /// Returns the updates that write the kept state into the document once there is room.
    pub(crate) fn updates(&self) -> Vec<(Uuid, Document)> {
        let mut updates = Vec::new();
        for failed in &self.failed {
            let mut set = Document::new();
            for (kept, field) in [
                ("attempts", "attempts"),
                ("retry_at", "available_at"),
                ("last_error", "last_error"),
                ("delivered_to", "delivered_to"),
            ] {
                if let Some(value) = failed.get(kept) {
                    set.insert(format!("outbox.$[e].{field}"), value.clone());
                }
            }
            let update = doc! { "$set": set, "$unset": { "outbox.$[e].claimed_by": "" } };
            updates.extend(uuid_of(failed).map(|id| (id, update)));
        }

        for dead in &self.dead {
            let mut set = Document::new();
            for field in ["dead_at", "dead_reason", "last_error"] {
                if let Some(value) = dead.get(field) {
                    set.insert(format!("outbox.$[e].{field}"), value.clone());
                }
            }
            let unset = doc! { "outbox.$[e].available_at": "", "outbox.$[e].claimed_by": "" };
            updates.extend(uuid_of(dead).map(|id| (id, doc! { "$set": set, "$unset": unset })));
        }
        updates
    }

    /// Drops the state of a message that no longer needs it.
    pub(crate) fn forget(&mut self, id: Uuid) {
        let id = Bson::from(id);
        self.failed.retain(|of| of.get("id") != Some(&id));
    }
}

impl Oversized {
    pub(crate) fn new(mongo: Mongo, state_database: &str, lease: Duration) -> Self {
        Self { mongo, leases: Namespace::new(state_database, LEASES), lease }
    }

    /// The name of the state database.
    pub(crate) fn database(&self) -> &str {
        &self.leases.db
    }

    /// Tries to take the lease on a document.
    pub(crate) async fn lease(
        &self,
        document: &DocumentRef,
        token: &str,
        now: DateTime,
    ) -> Result<Leased, Error> {
        let until = later(now, self.lease);
        let free = doc! { "_id": id_of(document), "until": { "$not": { "$gt": now } } };
        let take = Upsert {
            namespace: self.leases.clone(),
            filter: free,
            update: doc! { "$set": { "kind": "oversized", "owner": token, "until": until } },
        };

        match self.mongo.upsert(take).await {
            Ok(state) => Ok(Leased::Held(Lease::of(&state.unwrap_or_default(), token, until))),
            // The upsert conflicted with another process's lease.
            Err(error) if error_codes::verdict(&error) == Verdict::Duplicate => {
                Ok(Leased::ByAnother { until })
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the outbox with read concern `linearizable`: the read returns this server's latest state, but not before
    /// the majority has acknowledged that state. So the read sees every claim that was written before this lease was
    /// taken, even if the majority had not acknowledged the claim at that time. Returns `None` if the document is gone.
    /// A malformed outbox counts as empty.
    pub(crate) async fn read(&self, document: &DocumentRef) -> Result<Option<Vec<Slot>>, Error> {
        let find = Find {
            namespace: &document.namespace,
            filter: document.select(Document::new()),
            // Leave out the `_id`, because it may be undecodable.
            projection: Some(doc! { "_id": 0, "outbox": 1 }),
            concern: ReadConcern::linearizable(),
        };

        // Limit the time, because without a majority the read would wait forever.
        let Ok(found) = tokio::time::timeout(MAJORITY_TIMEOUT, self.mongo.find(find)).await else {
            return Err(error_codes::lost("a read was not confirmed by the majority in time"));
        };
        Ok(found?.map(|document| read_outbox_of(&document).unwrap_or_default()))
    }

    /// Removes a delivered message.
    pub(crate) async fn clear(&self, document: &DocumentRef, id: Uuid) -> Result<(), Error> {
        let clear = Update {
            namespace: document.namespace.clone(),
            filter: document.select(doc! { "outbox.id": id }),
            operators: doc! { "$pull": { "outbox": { "id": id } } }.into(),
            array_filters: Vec::new(),
        };
        match self.mongo.update(clear).await {
            WriteOutcome::Done | WriteOutcome::Missed => Ok(()),
            WriteOutcome::Failed(error) | WriteOutcome::Unknown(error) => Err(error),
        }
    }

    /// Stores the messages' state with the lease, and releases the lease. Has no effect if another process has taken
    /// the lease.
    pub(crate) async fn give_back(&self, document: &DocumentRef, lease: Lease) -> Result<Recorded, Error> {
        let mine = doc! { "_id": id_of(document), "owner": &lease.token };
        let namespace = self.leases.clone();
        let written = if lease.failed.is_empty() && lease.dead.is_empty() {
            self.mongo.delete(Delete { namespace, filter: mine.into() }).await
        } else {
            let set = doc! { "failed": lease.failed, "dead": lease.dead };
            let operators = doc! { "$set": set, "$unset": { "until": "" } }.into();
            let filter = Filter::from(mine);
            self.mongo.update(Update { namespace, filter, operators, array_filters: Vec::new() }).await
        };

        match written {
            WriteOutcome::Done => Ok(Recorded::Done),
            WriteOutcome::Missed => Ok(Recorded::Missed),
            WriteOutcome::Failed(error) | WriteOutcome::Unknown(error) => Err(error),
        }
    }
}

fn uuid_of(known: &Document) -> Option<Uuid> {
    let Some(Bson::Binary(id)) = known.get("id") else { return None };
    Some(Uuid::from_bytes(id.bytes.as_slice().try_into().ok()?))
}

/// Builds the `_id` of a lease. If a [`Document`] can't represent the document's key, the key is stored as binary.
fn id_of(document: &DocumentRef) -> Document {
    let key = match document.select(Document::new()) {
        Filter::Plain(_) => codec::to_document(document.key()).map(Bson::Document),
        Filter::Bytes(_) => Ok(Bson::Binary(Binary {
            subtype: BinarySubtype::Generic,
            bytes: document.key().as_bytes().to_vec(),
        })),
    };
    doc! { "ns": document.namespace.to_string(), "key": key.unwrap_or(Bson::Null) }
}
