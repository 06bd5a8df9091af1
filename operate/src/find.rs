//! Finds a message by its id.

use document_outbox::{
    DocumentRef,
    internal::{Entry, Slot, read_outbox_of},
};
use mongodb::{
    bson::{Bson, Document, RawDocumentBuf, Uuid, doc},
    options::{FindOptions, Hint},
};

use crate::{
    Operator, Query,
    catalogue::WatchedCollection,
    error::OperateError,
    list::{Scan, ids_of},
};

/// The number of documents with the same message that are reported.
const MOST: i64 = 10;

/// A message, with the outbox that contains it.
#[derive(Debug, Clone)]
pub struct FoundMessage {
    /// The document.
    pub document: DocumentRef,
    /// The document's outbox.
    pub outbox: Vec<Slot>,
    /// The index of the message in `outbox`.
    pub index: usize,
    /// The element as it is stored; `None` if it can't be read as BSON.
    pub stored: Option<Document>,
}

impl FoundMessage {
    /// The entry.
    pub fn entry(&self) -> Option<&Entry> {
        self.outbox.get(self.index).and_then(Slot::entry)
    }
}

impl Operator {
    /// Finds the documents whose outbox has this message. `within` can name collections and documents. Usually there is
    /// one document; there are several if documents were copied.
    pub async fn find_message(
        &self,
        id: Uuid,
        within: &Query,
        scan: Scan,
    ) -> Result<Vec<FoundMessage>, OperateError> {
        let mut found = Vec::new();
        for collection in self.collections_of(within).await? {
            self.find_in(&collection, id, within, scan, &mut found).await?;
        }
        Ok(found)
    }

    async fn find_in(
        &self,
        collection: &WatchedCollection,
        id: Uuid,
        within: &Query,
        scan: Scan,
        found: &mut Vec<FoundMessage>,
    ) -> Result<(), OperateError> {
        let mut options = FindOptions::default();
        options.projection = Some(doc! { "outbox": 1 });
        options.max_time = Some(self.settings.max_time);
        options.limit = Some(MOST);
        let mut filter = doc! { "outbox.id": { "$exists": true }, "outbox": { "$elemMatch": { "id": id } } };

        if !within.documents.is_empty() {
            let ids: Vec<Bson> = within.documents.iter().flat_map(|text| ids_of(text)).collect();
            let named: Vec<Document> = ids
                .into_iter()
                .map(|id| DocumentRef::by_id(collection.namespace.clone(), id).filter())
                .collect();
            filter.insert("$or", named);
        } else if let Some(index) = &collection.due_index {
            options.hint = Some(Hint::Name(index.clone()));
        } else if scan == Scan::Never {
            return Err(OperateError::NeedsScan {
                namespace: collection.namespace.clone(),
                reason: "the index outbox_available_at is missing".to_owned(),
                documents: collection.documents,
            });
        }

        let what = || collection.namespace.to_string();
        let sought = self.collection(&collection.namespace).find(filter).with_options(options).await;
        let mut cursor = sought.map_err(OperateError::reading(what()))?;
        while cursor.advance().await.map_err(OperateError::reading(what()))? {
            let raw = cursor.current().to_owned();
            found.extend(of_document(collection, &raw, id));
        }
        Ok(())
    }
}

fn of_document(collection: &WatchedCollection, raw: &RawDocumentBuf, id: Uuid) -> Option<FoundMessage> {
    let document = DocumentRef::of_stored(collection.namespace.clone(), raw)?;
    let outbox = read_outbox_of(raw).ok()?;
    let index = outbox.iter().position(|slot| slot.entry().is_some_and(|entry| entry.id == id))?;
    Some(FoundMessage { document, index, stored: stored(raw, id), outbox })
}

/// The first element with this id.
pub(crate) fn stored(raw: &RawDocumentBuf, id: Uuid) -> Option<Document> {
    let wanted = Bson::from(id);
    let outbox = raw.get_array("outbox").ok()?;
    for element in outbox.into_iter().map_while(Result::ok) {
        let Ok(Bson::Document(element)) = Bson::try_from(element) else { continue };
        if element.get("id") == Some(&wanted) {
            return Some(element);
        }
    }
    None
}
