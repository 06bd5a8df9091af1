//! The archive of discarded messages: the collection `archive` of the state database, to which records are only added.

use document_outbox::DocumentRef;
use mongodb::{
    Collection,
    bson::{Bson, DateTime, Document, RawBsonRef, RawDocumentBuf, Uuid, doc},
};
use serde::Serialize;

use super::{
    ActOutcome, Target,
    audit::{Operation, key_of, text_of, uuid_of},
    concern::primary,
    restore,
};
use crate::{Operator, error::OperateError, text};

const ARCHIVE: &str = "archive";

/// A discarded message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArchivedMessage {
    /// The message.
    pub message: Option<Uuid>,
    /// Its type.
    #[serde(rename = "type")]
    pub message_type: Option<String>,
    /// The collection.
    pub collection: String,
    /// The document's key in canonical extended JSON.
    pub key: serde_json::Value,
    /// When it was discarded.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub archived_at: Option<DateTime>,
    /// Who discarded it.
    pub by: String,
    /// The reason.
    pub reason: String,
    /// Why it can't be restored without force, in words: it was restored, or never left its outbox.
    pub objection: Option<String>,
}

impl Operator {
    pub(super) fn archive(&self) -> Collection<Document> {
        self.evidence(ARCHIVE)
    }

    /// Keeps the exact entry of a target, if the entry is still as it was shown. Each discard adds a record of its own, so
    /// that the record is as young as the discard: an index that deletes old records must not delete the only copy of a
    /// message. Returns the outcome that ends the discard, if it must not continue.
    pub(super) async fn keep(
        &self,
        target: &Target,
        operation: &Operation,
        now: DateTime,
    ) -> Result<Option<ActOutcome>, OperateError> {
        let Some(found) = self.stored_entry(target).await? else {
            return Ok(Some(ActOutcome::Changed));
        };
        if !found.is_exact {
            let sentence = "the archive could not keep this entry exactly, because it has invalid text or repeated fields";
            return Ok(Some(ActOutcome::Failed(sentence.to_owned())));
        }
        let namespace = target.document.namespace.to_string();
        let id = doc! {
            "ns": &namespace,
            "key": key_of(&target.document),
            "message": target.shown.id,
            "dead_at": target.shown.dead_at,
            "operation": operation.id,
        };
        let record = doc! {
            "_id": id,
            "ns": &namespace,
            "key": key_of(&target.document),
            "message": target.shown.id,
            "type": &target.shown.message_type,
            "entry": &found.entry,
            "previous": found.previous,
            "next": found.next,
            "archived_at": now,
            "by": &operation.author.name,
            "reason": &operation.author.reason,
            "operation": operation.id,
        };

        let insert = self.archive().insert_one(record).await;
        insert
            .map(|_| None)
            .map_err(|error| OperateError::of_mongodb("writing the archive".to_owned(), &error))
    }

    /// The exact entry of a target, if it is still as it was shown, and its neighbours.
    async fn stored_entry(&self, target: &Target) -> Result<Option<StoredEntry>, OperateError> {
        let Some(raw) = self.read_outbox(&target.document).await? else { return Ok(None) };
        let Ok(array) = raw.get_array("outbox") else { return Ok(None) };
        let mut elements = Vec::new();
        for element in array.into_iter().map_while(Result::ok) {
            elements.push(Bson::try_from(element).ok());
        }

        let document_at = |index: usize| elements.get(index)?.as_ref()?.as_document();
        let id_at = |index: usize| document_at(index)?.get("id").and_then(uuid_of);
        let is_target = |index: &usize| document_at(*index).is_some_and(|entry| is_as_shown(entry, target));
        let Some(index) = (0..elements.len()).find(is_target) else { return Ok(None) };
        let Some(entry) = document_at(index).cloned() else { return Ok(None) };
        let previous = index.checked_sub(1).and_then(id_at);
        let is_exact = array.into_iter().nth(index).is_some_and(|element| is_same(element.ok(), &entry));
        Ok(Some(StoredEntry { is_exact, entry, previous, next: id_at(index + 1) }))
    }

    /// Reads an outbox from the primary.
    pub(super) async fn read_outbox(
        &self,
        document: &DocumentRef,
    ) -> Result<Option<RawDocumentBuf>, OperateError> {
        let collection = self
            .client
            .database(&document.namespace.db)
            .collection::<RawDocumentBuf>(&document.namespace.coll);
        let found = collection
            .find_one(document.filter())
            .projection(doc! { "outbox": 1 })
            .selection_criteria(primary())
            .max_time(self.settings.max_time)
            .await;
        found.map_err(OperateError::reading(document.namespace.to_string()))
    }

    /// Lists discarded messages, the newest first.
    pub async fn archived(&self, limit: i64) -> Result<Vec<ArchivedMessage>, OperateError> {
        let archive = self.archive();
        // Without the payloads. The date of death says whether the entry can be restored.
        let found = archive
            .find(doc! {})
            .projection(doc! {
                "message": 1, "type": 1, "ns": 1, "key": 1, "archived_at": 1, "by": 1, "reason": 1, "operation": 1,
                "entry.dead_at": 1,
            })
            .sort(doc! { "archived_at": -1 })
            .limit(limit)
            .max_time(self.settings.max_time)
            .await;
        let mut cursor = found.map_err(OperateError::reading("the archive"))?;
        let mut records: Vec<Document> = Vec::new();
        while cursor.advance().await.map_err(OperateError::reading("the archive"))? {
            records.push(cursor.deserialize_current().map_err(OperateError::reading("the archive"))?);
        }

        let ids: Vec<Uuid> =
            records.iter().filter_map(|record| record.get("message").and_then(uuid_of)).collect();
        let trail = self.trail(&ids).await?;
        let archived = records.iter().map(|record| ArchivedMessage {
            message: record.get("message").and_then(uuid_of),
            message_type: text_of(record, "type"),
            collection: text_of(record, "ns").unwrap_or_default(),
            key: record.get("key").map_or(serde_json::Value::Null, text::exact),
            archived_at: record.get_datetime("archived_at").ok().copied(),
            by: text_of(record, "by").unwrap_or_default(),
            reason: text_of(record, "reason").unwrap_or_default(),
            objection: restore::objection(record, &trail),
        });
        Ok(archived.collect())
    }
}

/// An entry as it is stored.
struct StoredEntry {
    /// Whether `entry` is encoded as the same bytes.
    is_exact: bool,
    entry: Document,
    previous: Option<Uuid>,
    next: Option<Uuid>,
}

/// Whether an element is the message of a target, and in the state that was shown.
fn is_as_shown(element: &Document, target: &Target) -> bool {
    let shown = &target.shown;
    // The id must be a UUID; other binaries can have the same bytes.
    if element.get("id").cloned() != shown.id.map(Bson::from) {
        return false;
    }
    let now = DateTime::from_millis(0);
    let found = restore::shown(&target.document, element, now);
    found.is_some_and(|found| {
        found.id == shown.id
            && found.dead_at == shown.dead_at
            && found.available_at == shown.available_at
            && found.claimed_by == shown.claimed_by
            && (found.attempts, found.claims) == (shown.attempts, shown.claims)
    })
}

/// Whether a decoded entry is encoded as the bytes from which it was decoded.
fn is_same(stored: Option<RawBsonRef<'_>>, entry: &Document) -> bool {
    let Some(RawBsonRef::Document(stored)) = stored else { return false };
    RawDocumentBuf::try_from(entry).is_ok_and(|again| again.as_bytes() == stored.as_bytes())
}
