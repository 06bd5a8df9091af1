//! Shows one document: its whole outbox in order, what blocks what, and its inboxes.

use document_outbox::{DeliveryOrder, DocumentRef, internal::read_outbox_of};
use mongodb::{
    Namespace,
    bson::{DateTime, Document, RawBsonRef, RawDocument, doc, spec::BinarySubtype},
    options::FindOptions,
};
use serde::Serialize;

use crate::{
    Operator,
    error::OperateError,
    explain::{Reason, reasons},
    lease::OversizedLease,
    list::{Row, ids_of},
    text,
};

/// A document, as far as messages are concerned.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DocumentView {
    /// The collection.
    #[serde(serialize_with = "text::as_text")]
    pub collection: Namespace,
    /// The `_id` as text.
    pub document: String,
    /// The exact `_id`, in canonical extended JSON.
    pub id: serde_json::Value,
    /// Its size in bytes; the server's limit is 16 MiB.
    pub bytes: usize,
    /// The order in which its messages are delivered: `ordered`, `dead_blocks` or `unordered`.
    pub ordering: &'static str,
    /// The messages, in the order of the outbox.
    pub messages: Vec<PlacedMessage>,
    /// The problem, if the field `outbox` is not an array.
    pub flaw: Option<String>,
    /// The inboxes.
    pub inboxes: Vec<InboxView>,
    /// The lease, if the document has no room for a claim.
    pub oversized: Option<OversizedLease>,
}

/// A message in its document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlacedMessage {
    /// The message.
    #[serde(flatten)]
    pub row: Row,
    /// Why it is not delivered now.
    pub reason: Reason,
}

/// A field that records received messages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InboxView {
    /// The name of the field.
    pub field: String,
    /// The number of records.
    pub records: usize,
    /// The date of the oldest record.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub oldest: Option<DateTime>,
    /// The date of the newest record.
    #[serde(serialize_with = "text::as_rfc3339")]
    pub newest: Option<DateTime>,
}

impl Operator {
    /// Shows the documents whose `_id` this text means; usually there is at most one.
    pub async fn documents(&self, namespace: Namespace, id: &str) -> Result<Vec<DocumentView>, OperateError> {
        let collection = self.collection_named(namespace.clone()).await?;
        let named: Vec<Document> = ids_of(id)
            .into_iter()
            .map(|id| DocumentRef::by_id(collection.namespace.clone(), id).filter())
            .collect();
        let mut options = FindOptions::default();
        options.max_time = Some(self.settings.max_time);

        let found = self.collection(&namespace).find(doc! { "$or": named }).with_options(options).await;
        let mut cursor = found.map_err(OperateError::reading(namespace.to_string()))?;
        let now = self.now().await?;
        let mut views = Vec::new();
        while cursor.advance().await.map_err(OperateError::reading(namespace.to_string()))? {
            let raw = cursor.current().to_owned();
            views.extend(self.document_view(&namespace, &raw, now).await?);
        }
        Ok(views)
    }

    async fn document_view(
        &self,
        namespace: &Namespace,
        raw: &RawDocument,
        now: DateTime,
    ) -> Result<Option<DocumentView>, OperateError> {
        let Some(document) = DocumentRef::of_stored(namespace.clone(), raw) else { return Ok(None) };
        let ordering = self.ordering(namespace);
        let (mut slots, flaw) = match read_outbox_of(raw) {
            Ok(slots) => (slots, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };

        let oversized = self.oversized(&document).await?;
        if let Some(lease) = &oversized {
            lease.complete(&mut slots);
        }

        let mut messages = Vec::new();
        for (index, (slot, reason)) in slots.iter().zip(reasons(&slots, ordering, now)).enumerate() {
            messages.push(PlacedMessage { row: Row::of(&document, index + 1, slot, now), reason });
        }
        Ok(Some(DocumentView {
            collection: namespace.clone(),
            document: document.subject(),
            id: text::exact(&document.id()),
            bytes: raw.as_bytes().len(),
            ordering: name_of(ordering),
            messages,
            flaw,
            inboxes: inboxes(raw),
            oversized,
        }))
    }
}

pub(crate) fn name_of(ordering: DeliveryOrder) -> &'static str {
    match ordering {
        DeliveryOrder::Ordered => "ordered",
        DeliveryOrder::DeadBlocks => "dead_blocks",
        DeliveryOrder::Unordered => "unordered",
    }
}

/// The fields that consist of records like those of an inbox: an id and a date.
fn inboxes(raw: &RawDocument) -> Vec<InboxView> {
    let mut found = Vec::new();
    for (name, value) in raw.iter().map_while(Result::ok) {
        let RawBsonRef::Array(records) = value else { continue };
        let mut dates = Vec::new();
        let mut are_records = true;
        for record in records.into_iter().map_while(Result::ok) {
            match date_of_record(record) {
                Some(date) => dates.push(date),
                None => are_records = false,
            }
        }
        if are_records && !dates.is_empty() {
            found.push(InboxView {
                field: name.to_string(),
                records: dates.len(),
                oldest: dates.iter().min().copied(),
                newest: dates.iter().max().copied(),
            });
        }
    }
    found
}

fn date_of_record(record: RawBsonRef<'_>) -> Option<DateTime> {
    let record = record.as_document()?;
    let id = record.get_binary("id").ok()?;
    let has_only_these = record.iter().count() == 2;
    (id.subtype == BinarySubtype::Uuid && has_only_these).then(|| record.get_datetime("at").ok())?
}
