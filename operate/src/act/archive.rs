//! The archive of discarded messages: the collection `archive` of the state database, to which records are only added.

use document_outbox::{DocumentRef, internal::read_outbox_of};
use mongodb::{
    Collection,
    bson::{Bson, DateTime, Document, RawBsonRef, RawDocumentBuf, Uuid, doc},
    options::{ReadConcern, WriteConcern},
};
use serde::Serialize;

use super::{
    Act, ActOutcome, ActSum, Acted, Target,
    audit::{Author, Operation, document_of, key_of, new_id, text_of, uuid_of},
};
use crate::{Operator, error::OperateError, list::Row, text};

const ARCHIVE: &str = "archive";
/// The server's code for a duplicate key.
const DUPLICATE: i32 = 11000;
/// The number of times that a place in an outbox is determined, while the outbox changes.
const TRIES: usize = 5;

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
}

impl Operator {
    fn archive(&self) -> Collection<Document> {
        self.state_database().collection(ARCHIVE)
    }

    /// Keeps the exact entry of a target. An entry that is there already, from a discard that was interrupted, counts as
    /// kept. Returns the outcome that ends the discard, if it must not continue.
    pub(super) async fn keep(
        &self,
        target: &Target,
        operation: &Operation,
        now: DateTime,
    ) -> Result<Option<ActOutcome>, OperateError> {
        let Some(found) = self.stored_entry(&target.document, target.shown.id).await? else {
            return Ok(Some(ActOutcome::Changed));
        };
        if !found.is_exact {
            let sentence = "the archive could not keep this entry exactly, because it has invalid text or repeated fields";
            return Ok(Some(ActOutcome::Failed(sentence.to_owned())));
        }
        let id = doc! {
            "ns": target.document.namespace.to_string(),
            "key": key_of(&target.document),
            "message": target.shown.id,
            "dead_at": target.shown.dead_at,
        };
        let record = doc! {
            "_id": id.clone(),
            "ns": target.document.namespace.to_string(),
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

        let insert = self.archive().insert_one(record).write_concern(WriteConcern::majority()).await;
        match insert {
            Ok(_) => Ok(None),
            Err(error) if is_duplicate(&error) => {
                let kept =
                    self.archive().find_one(doc! { "_id": id }).read_concern(ReadConcern::majority()).await;
                let kept = kept.map_err(OperateError::reading("the archive"))?;
                let is_same = kept
                    .is_some_and(|kept| kept.get_document("entry").is_ok_and(|entry| *entry == found.entry));
                let differs =
                    "the archive has another entry of this message, discarded at the same time of death";
                Ok((!is_same).then(|| ActOutcome::Failed(differs.to_owned())))
            }
            Err(error) => Err(OperateError::of_mongodb("writing the archive".to_owned(), &error)),
        }
    }

    /// The exact entry with this id, and its neighbours.
    async fn stored_entry(
        &self,
        document: &DocumentRef,
        id: Option<Uuid>,
    ) -> Result<Option<StoredEntry>, OperateError> {
        let Some(raw) = self.read_outbox(document).await? else { return Ok(None) };
        let Ok(array) = raw.get_array("outbox") else { return Ok(None) };
        let mut elements = Vec::new();
        for element in array.into_iter().map_while(Result::ok) {
            elements.push(Bson::try_from(element).ok());
        }

        let id_at = |index: usize| -> Option<Uuid> {
            elements.get(index)?.as_ref()?.as_document()?.get("id").and_then(uuid_of)
        };
        let Some(index) = (0..elements.len()).find(|index| id_at(*index) == id) else { return Ok(None) };
        let Some(Bson::Document(entry)) = elements[index].clone() else { return Ok(None) };
        let previous = index.checked_sub(1).and_then(id_at);
        let is_exact = array.into_iter().nth(index).is_some_and(|element| is_same(element.ok(), &entry));
        Ok(Some(StoredEntry { is_exact, entry, previous, next: id_at(index + 1) }))
    }

    async fn read_outbox(&self, document: &DocumentRef) -> Result<Option<RawDocumentBuf>, OperateError> {
        let collection = self
            .client
            .database(&document.namespace.db)
            .collection::<RawDocumentBuf>(&document.namespace.coll);
        let found = collection
            .find_one(document.filter())
            .projection(doc! { "outbox": 1 })
            .max_time(self.settings.max_time)
            .await;
        found.map_err(OperateError::reading(document.namespace.to_string()))
    }

    /// Lists discarded messages, the newest first.
    pub async fn archived(&self, limit: i64) -> Result<Vec<ArchivedMessage>, OperateError> {
        let archive = self.archive();
        let found = archive
            .find(doc! {})
            .projection(doc! { "entry": 0 })
            .sort(doc! { "archived_at": -1 })
            .limit(limit)
            .max_time(self.settings.max_time)
            .await;
        let mut cursor = found.map_err(OperateError::reading("the archive"))?;
        let mut archived = Vec::new();
        while cursor.advance().await.map_err(OperateError::reading("the archive"))? {
            let record: Document =
                cursor.deserialize_current().map_err(OperateError::reading("the archive"))?;
            archived.push(ArchivedMessage {
                message: record.get("message").and_then(uuid_of),
                message_type: text_of(&record, "type"),
                collection: text_of(&record, "ns").unwrap_or_default(),
                key: record.get("key").map_or(serde_json::Value::Null, text::exact),
                archived_at: record.get_datetime("archived_at").ok().copied(),
                by: text_of(&record, "by").unwrap_or_default(),
                reason: text_of(&record, "reason").unwrap_or_default(),
            });
        }
        Ok(archived)
    }

    /// Returns discarded messages to their places. The archive keeps its records.
    pub async fn restore(
        &self,
        ids: &[Uuid],
        author: Author,
        mut report: impl FnMut(&Acted),
    ) -> Result<ActSum, OperateError> {
        let operation = Operation {
            id: new_id(),
            act: Act::Restore,
            author,
            mongodb_user: self.mongodb_user().await?,
            query: None,
        };
        let mut sum = ActSum { operation: operation.id, done: 0, changed: 0, failed: 0, left: 0 };
        for id in ids {
            let archived = self
                .archive()
                .find_one(doc! { "message": *id })
                .sort(doc! { "archived_at": -1 })
                .max_time(self.settings.max_time)
                .await;
            let Some(record) = archived.map_err(OperateError::reading("the archive"))? else {
                return Err(OperateError::Argument(format!("the archive has no message {id}")));
            };
            let acted = self.restore_one(&record, &operation).await?;
            sum.add(&acted.outcome);
            report(&acted);
        }
        Ok(sum)
    }

    async fn restore_one(&self, record: &Document, operation: &Operation) -> Result<Acted, OperateError> {
        let damaged = || OperateError::Argument("the record in the archive is damaged".to_owned());
        let document = document_of(record).ok_or_else(damaged)?;
        let entry = record.get_document("entry").map_err(|_| damaged())?;
        let now = self.now().await?;
        let shown = shown(&document, entry, now).ok_or_else(damaged)?;

        let intent = new_id();
        let target = Target { document, shown };
        self.record(&[operation.intent(intent, &target, now)]).await?;
        let outcome = self.push_back(&target.document, entry, record).await;
        self.record(&[operation.outcome(intent, &outcome, self.now().await?)]).await?;
        Ok(Acted { shown: target.shown, outcome })
    }

    /// Puts an entry back, if the outbox has no element with its id.
    async fn push_back(&self, document: &DocumentRef, entry: &Document, record: &Document) -> ActOutcome {
        let neighbour = |name: &str| record.get(name).and_then(uuid_of);
        for _ in 0..TRIES {
            let raw = match self.read_outbox(document).await {
                Ok(Some(raw)) => raw,
                Ok(None) => return ActOutcome::Failed("its document no longer exists".to_owned()),
                Err(error) => return ActOutcome::Failed(error.to_string()),
            };
            let place = place(&raw, neighbour("previous"), neighbour("next"));
            let mut filter = document.filter();
            filter.insert("outbox.id", doc! { "$ne": entry.get("id").cloned() });
            if let Some((index, id)) = place.known {
                filter.insert(format!("outbox.{index}.id"), id);
            }
            let push = doc! { "$each": [entry.clone()], "$position": place.index };
            match self.update(document, filter, doc! { "$push": { "outbox": push } }, None).await {
                ActOutcome::Changed if !has(&raw, entry) => {}
                outcome => return outcome,
            }
        }
        ActOutcome::Failed("its outbox changed during every try; try again".to_owned())
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

/// A place in an outbox.
struct PlaceInOutbox {
    index: i64,
    /// The neighbour that must still be at its index.
    known: Option<(usize, Uuid)>,
}

/// The place before the former successor, or behind the former predecessor, or at the end.
fn place(raw: &RawDocumentBuf, previous: Option<Uuid>, next: Option<Uuid>) -> PlaceInOutbox {
    let mut ids = Vec::new();
    if let Ok(array) = raw.get_array("outbox") {
        for element in array.into_iter().map_while(Result::ok) {
            let id = element.as_document().and_then(|element| element.get_binary("id").ok());
            ids.push(id.and_then(|id| id.bytes.try_into().ok().map(Uuid::from_bytes)));
        }
    }

    let find = |wanted: Option<Uuid>| ids.iter().position(|id| id.is_some() && *id == wanted);
    let index = |at: usize| i64::try_from(at).unwrap_or(i64::MAX);
    match (find(next), find(previous)) {
        (Some(at), _) => PlaceInOutbox { index: index(at), known: next.map(|id| (at, id)) },
        (None, Some(at)) => PlaceInOutbox { index: index(at + 1), known: previous.map(|id| (at, id)) },
        (None, None) => PlaceInOutbox { index: index(ids.len()), known: None },
    }
}

/// Whether a decoded entry is encoded as the bytes from which it was decoded.
fn is_same(stored: Option<RawBsonRef<'_>>, entry: &Document) -> bool {
    let Some(RawBsonRef::Document(stored)) = stored else { return false };
    RawDocumentBuf::try_from(entry).is_ok_and(|again| again.as_bytes() == stored.as_bytes())
}

/// Whether an outbox has an element with the id of an entry.
fn has(raw: &RawDocumentBuf, entry: &Document) -> bool {
    let id = entry.get("id").and_then(uuid_of);
    place(raw, None, id).known.is_some()
}

/// The row of an archived entry.
fn shown(document: &DocumentRef, entry: &Document, now: DateTime) -> Option<Row> {
    let outbox = RawDocumentBuf::try_from(&doc! { "outbox": [entry.clone()] }).ok()?;
    let slots = read_outbox_of(&outbox).ok()?;
    Some(Row::of(document, 1, slots.first()?, now))
}

fn is_duplicate(error: &mongodb::error::Error) -> bool {
    document_outbox::internal::error_codes::code(error) == Some(DUPLICATE)
}
