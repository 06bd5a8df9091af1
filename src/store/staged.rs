//! Prepares messages for an update that the caller writes, for teams with their own data layer.
//!
//! ```no_run
//! # use document_outbox::{Aggregate, Error, Outbox, Store};
//! # use mongodb::bson::doc;
//! # async fn example<T: Aggregate>(orders: Store<T>, client: mongodb::Client, mut outbox: Outbox)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let id = "o-1";
//! let staged = orders.stage(&mut outbox).await?;
//! let update = staged.onto(doc! { "$set": { "paid": true } })?;
//!
//! let mut session = client.start_session().await?;
//! session.start_transaction().await?;
//! orders.collection().update_one(doc! { "_id": id }, update).session(&mut session).await?;
//! session.commit_transaction().await?;
//!
//! staged.committed(id).await; // only now: inline delivery starts after the commit, with a claim
//! # Ok(()) }
//! ```

use std::fmt;

use mongodb::{
    Namespace,
    bson::{Bson, Document, Uuid, doc},
    error::Error as DriverError,
    options::ReadConcern,
};

use super::{
    Store,
    error::Error,
    identity::{ID, named_by, other_forms},
};
use crate::{
    aggregate::{Aggregate, outbox::Outbox},
    dispatch::{Dispatch, InlineDispatcher, deliveries::Work},
    encoding::codec,
    mongo::{Find, Mongo},
    observe::event::Shed,
    stored::{
        deliverable::DeliveryOrder,
        document_ref::DocumentRef,
        entry::{ETAG, OUTBOX},
        filter::equal_to,
        ids::new_random,
    },
};

/// Messages ready to be written by the caller's update, insert or transaction.
///
/// **Guarantee.** The messages exist if and only if the caller's write is committed. **Assumption.** The write is
/// acknowledged by the majority; with a weaker write concern, a failover can undo the write. If this value is dropped
/// without being written, the messages are dropped.
#[must_use = "messages that are not written are lost"]
pub struct StagedMessages {
    mongo: Mongo,
    inline: InlineDispatcher,
    namespace: Namespace,
    shard_key: Vec<String>,
    ordering: DeliveryOrder,
    ids: Vec<Uuid>,
    /// Number of messages that are due now.
    due: usize,
    entries: Vec<Bson>,
}

/// Leaves out the entries, because they contain payloads.
impl fmt::Debug for StagedMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedMessages")
            .field("collection", &self.namespace.to_string())
            .field("ids", &self.ids)
            .finish_non_exhaustive()
    }
}

impl<T: Aggregate> Store<T> {
    /// Prepares messages for your own update, insert or transaction: see [`StagedMessages`].
    ///
    /// # Errors
    /// [`Error`] for messages that exceed their caps, and [`Error::NotStaged`] for an outbox that also cancels,
    /// reschedules or replaces stored messages. On an error the messages stay in the outbox.
    pub async fn stage(&self, outbox: &mut Outbox) -> Result<StagedMessages, Error> {
        if !outbox.revisions().is_empty() {
            return Err(Error::NotStaged { what: "`cancel` or `reschedule` of a stored message" });
        }
        if outbox.iter().any(|message| message.key.is_some()) {
            return Err(Error::NotStaged { what: "`send_keyed`" });
        }
        let unnamed = DocumentRef::by_id(self.namespace.clone(), Bson::Null);
        let drafts = self.drafts(outbox)?;
        self.caps.check_entries(&unnamed, 0, drafts.len())?;
        let prepared = self.prepare_for_others(&unnamed, drafts).await?;
        let mut stored = codec::to_document(&prepared.encoded).map_err(Error::of_encoding)?;
        let entries = match stored.remove(OUTBOX) {
            Some(Bson::Array(entries)) => entries,
            _ => Vec::new(),
        };

        outbox.clear();
        Ok(StagedMessages {
            mongo: self.mongo.clone(),
            inline: self.inline.clone(),
            namespace: self.namespace.clone(),
            shard_key: self.shard_key.clone(),
            ordering: T::ORDERING,
            ids: prepared.ids(),
            due: prepared.due,
            entries,
        })
    }
}

impl StagedMessages {
    /// Adds the messages, and a fresh etag, to an update made of operators (`$set`, `$inc`, …).
    ///
    /// # Errors
    /// [`Error::UpdateTouchesOutbox`] if the update writes `outbox` or `etag` itself.
    pub fn onto(&self, mut update: Document) -> Result<Document, Error> {
        for (operator, fields) in &update {
            for (path, value) in fields.as_document().into_iter().flatten() {
                let renamed_to = value.as_str().filter(|_| operator == "$rename");
                if is_ours(path) || renamed_to.is_some_and(is_ours) {
                    return Err(Error::UpdateTouchesOutbox { path: format!("{operator}: {path}") });
                }
            }
        }
        merge(&mut update, "$set", doc! { ETAG: new_random() });
        if !self.entries.is_empty() {
            merge(&mut update, "$push", doc! { OUTBOX: { "$each": self.entries.clone() } });
        }
        Ok(update)
    }

    /// Adds the messages, and an etag, to a document to be inserted.
    ///
    /// # Errors
    /// [`Error::UpdateTouchesOutbox`] if the document has `outbox` or `etag` already.
    pub fn into_new(&self, mut document: Document) -> Result<Document, Error> {
        if let Some(path) = [ETAG, OUTBOX].into_iter().find(|field| document.contains_key(field)) {
            return Err(Error::UpdateTouchesOutbox { path: path.into() });
        }
        document.insert(ETAG, new_random());
        document.insert(OUTBOX, self.entries.clone());
        Ok(document)
    }

    /// The ids of the messages, in the order sent.
    #[must_use]
    pub fn ids(&self) -> Vec<uuid::Uuid> {
        self.ids.iter().map(|id| uuid::Uuid::from_bytes(id.bytes())).collect()
    }

    /// Starts inline delivery. Call this function once the write is committed; without this call, the rescuer delivers
    /// the messages.
    ///
    /// `id` is the `_id` of the document that was written. A UUID or `ObjectId` may be given in any form in which a
    /// document can store it. If no document with that `_id` has the messages, a warning is logged and inline delivery
    /// is left to the rescuer.
    pub async fn committed(self, id: impl Into<Bson>) -> Dispatch {
        let Some(first) = self.ids.first() else { return Dispatch::Nothing };
        let id = id.into();
        let named = DocumentRef::by_id(self.namespace.clone(), id.clone());
        self.inline.metrics().sent(self.ids.len());
        let seat = match self.inline.seat_for(self.due, 0) {
            Ok(seat) => seat,
            Err(why) => {
                self.inline.left(&named, self.due, &why);
                return why;
            }
        };

        let document = match self.find(&id, *first).await {
            Ok(Some(document)) => document,
            Ok(None) => {
                tracing::warn!(
                    document = %named,
                    "no document with this `_id` has the staged messages: either another document was \
                     written, or the write is not committed; if it was committed, the rescuer delivers them"
                );
                let why = Dispatch::Skipped(Shed::NotFound);
                self.inline.left(&named, self.due, &why);
                return why;
            }
            // The server didn't answer the query. The delivery will fail in the same way and report the error.
            Err(_unasked) => named,
        };
        self.inline.dispatch(seat, Work::Unclaimed(document), self.ids, self.ordering).await
    }

    /// Finds the document that has the messages, and returns its stored key.
    async fn find(&self, id: &Bson, message: Uuid) -> Result<Option<DocumentRef>, DriverError> {
        let mut any = vec![doc! { ID: equal_to(id) }];
        any.extend(other_forms(id).into_iter().map(|form| doc! { ID: form }));
        let filter = doc! { "$or": any, "outbox.id": message };
        let mut projection = doc! { ID: 1 };
        projection.extend(self.shard_key.iter().map(|field| (field.clone(), Bson::Int32(1))));
        let find = Find {
            namespace: &self.namespace,
            filter: filter.into(),
            projection: Some(projection),
            concern: ReadConcern::local(),
        };
        let found = self.mongo.find(find).await?;
        Ok(found.and_then(|found| named_by(self.namespace.clone(), &self.shard_key, &found).ok()))
    }
}

fn is_ours(path: &str) -> bool {
    let field = path.split('.').next().unwrap_or_default();
    [ETAG, OUTBOX].contains(&field)
}

fn merge(update: &mut Document, operator: &str, fields: Document) {
    match update.get_mut(operator) {
        Some(Bson::Document(there)) => there.extend(fields),
        _ => _ = update.insert(operator, fields),
    }
}
