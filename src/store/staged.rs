//! *Bring your own update*: for teams with a data layer of their own.
//!
//! ```no_run
//! # use document_outbox::{Document, Error, Outbox, Store};
//! # use mongodb::bson::doc;
//! # async fn example<T: Document>(orders: Store<T>, client: mongodb::Client, mut outbox: Outbox)
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

use mongodb::bson::{Bson, Document as BsonDocument, Uuid, doc};

use crate::{
    DocumentRef, Error,
    deliverable::Ordering,
    entry::{ETAG, OUTBOX},
    inline::{Dispatch, Inline, Work},
    outbox::new_random,
};

/// Messages ready to be written by an update, insert or transaction of the caller's.
///
/// **Guarantee.** They exist if and only if that write is committed. **Assumption.** The write is acknowledged by the majority;
/// with less, a failover can undo it. Dropping this without writing drops the messages.
#[must_use = "messages that are not written are lost"]
pub struct StagedMessages {
    pub(super) inline: Inline,
    pub(super) namespace: mongodb::Namespace,
    pub(super) ordering: Ordering,
    pub(super) ids: Vec<Uuid>,
    /// How many of them are due.
    pub(super) due: usize,
    pub(super) entries: Vec<Bson>,
}

impl StagedMessages {
    /// Adds the messages, and a fresh etag, to an update made of operators (`$set`, `$inc`, …).
    ///
    /// # Errors
    /// [`Error::UpdateTouchesOutbox`] where the update writes `outbox` or `etag` itself.
    pub fn onto(&self, mut update: BsonDocument) -> Result<BsonDocument, Error> {
        for (operator, fields) in &update {
            let fields = fields.as_document().into_iter().flat_map(BsonDocument::keys);
            let is_ours =
                |path: &&String| [ETAG, OUTBOX].contains(&path.split('.').next().unwrap_or_default());
            if let Some(path) = fields.into_iter().find(is_ours) {
                return Err(Error::UpdateTouchesOutbox { path: format!("{operator}: {path}") });
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
    /// [`Error::UpdateTouchesOutbox`] where the document has `outbox` or `etag` already.
    pub fn into_new(&self, mut document: BsonDocument) -> Result<BsonDocument, Error> {
        if let Some(path) = [ETAG, OUTBOX].into_iter().find(|field| document.contains_key(field)) {
            return Err(Error::UpdateTouchesOutbox { path: path.into() });
        }
        document.insert(ETAG, new_random());
        document.insert(OUTBOX, self.entries.clone());
        Ok(document)
    }

    /// The ids of the messages, in the order sent.
    pub fn ids(&self) -> Vec<uuid::Uuid> {
        self.ids.iter().map(|id| uuid::Uuid::from_bytes(id.bytes())).collect()
    }

    /// Starts inline delivery, once the write is committed. Left out, the rescuer delivers.
    pub async fn committed(self, id: impl Into<Bson>) -> Dispatch {
        if self.entries.is_empty() {
            return Dispatch::Nothing;
        }
        let document = DocumentRef::by_id(self.namespace, id);
        self.inline.metrics().sent(self.ids.len());
        match self.inline.seat_for(self.due, &[]) {
            Ok(seat) => self.inline.dispatch(seat, Work::Unclaimed(document), self.ids, self.ordering).await,
            Err(why) => {
                self.inline.left(&document, self.due, &why);
                why
            }
        }
    }
}

fn merge(update: &mut BsonDocument, operator: &str, fields: BsonDocument) {
    match update.get_mut(operator) {
        Some(Bson::Document(there)) => there.extend(fields),
        _ => _ = update.insert(operator, fields),
    }
}
