//! The collections of the in-memory database, and the statements on them.

use std::collections::BTreeMap;

use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, RawDocumentBuf},
};

use super::{
    compare::equal,
    expression::Scope,
    filter::{check, matches},
    refused::{DOLLAR_IN_ID, DUPLICATE_KEY, INVALID_ID, Refused, TOO_LARGE},
    update::{Updates, Updating, new_document},
};
use crate::encoding::codec;

const ID: &str = "_id";
/// The condition of a filter that is an aggregation expression.
const EXPRESSION: &str = "$expr";
/// The largest document that a server stores.
const MOST_BYTES: usize = 16 << 20;

/// The documents, by collection, in the order of their inserts.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// The key has the names of the database and of the collection.
    collections: BTreeMap<(String, String), Vec<Document>>,
}

/// Whether an update found a document, and whether it changed that document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matched {
    Nothing,
    Unchanged,
    Changed,
}

/// An update of one document.
pub(super) struct UpdateParts<'a> {
    pub(super) filter: &'a Document,
    /// A document of operators, or an array of stages.
    pub(super) update: &'a Bson,
    pub(super) array_filters: &'a [Document],
}

impl Documents {
    /// The documents of a collection.
    pub(super) fn of(&self, namespace: &Namespace) -> &[Document] {
        self.collections.get(&key(namespace)).map(Vec::as_slice).unwrap_or_default()
    }

    /// All documents, with their collections.
    pub(super) fn all(&self) -> Vec<(Namespace, Document)> {
        let mut all = Vec::new();
        for ((database, collection), documents) in &self.collections {
            let namespace = Namespace::new(database, collection);
            all.extend(documents.iter().map(|document| (namespace.clone(), document.clone())));
        }
        all
    }

    pub(super) fn find(
        &self,
        namespace: &Namespace,
        filter: &Document,
        now: DateTime,
    ) -> Result<Option<&Document>, Refused> {
        let place = self.place_of(namespace, filter, now)?;
        Ok(place.and_then(|place| self.of(namespace).get(place)))
    }

    fn place_of(
        &self,
        namespace: &Namespace,
        filter: &Document,
        now: DateTime,
    ) -> Result<Option<usize>, Refused> {
        let mut conditions = filter.clone();
        let expression = conditions.remove(EXPRESSION);
        check(&conditions)?;

        for (place, document) in self.of(namespace).iter().enumerate() {
            if !matches(&conditions, document) {
                continue;
            }
            match &expression {
                Some(expression) if !Scope::of(document, now).is_true(expression)? => {}
                _ => return Ok(Some(place)),
            }
        }
        Ok(None)
    }

    pub(super) fn insert(&mut self, namespace: &Namespace, document: Document) -> Result<(), Refused> {
        let document = with_id_first(document)?;
        let id = document.get(ID).unwrap_or(&Bson::Null);
        let is_same = |stored: &Document| equal(stored.get(ID).unwrap_or(&Bson::Null), id);
        if self.of(namespace).iter().any(is_same) {
            let text = format!("E11000 duplicate key error collection: {namespace} index: _id_");
            return Err(Refused::new(DUPLICATE_KEY, text));
        }
        check_size(&document)?;
        self.collections.entry(key(namespace)).or_default().push(document);
        Ok(())
    }

    pub(super) fn update(
        &mut self,
        namespace: &Namespace,
        parts: &UpdateParts<'_>,
        now: DateTime,
    ) -> Result<Matched, Refused> {
        let updates = Updates::check(parts.update, parts.array_filters, now, Updating::Stored)?;
        let Some(place) = self.place_of(namespace, parts.filter, now)? else { return Ok(Matched::Nothing) };
        let Some(stored) = self.stored(namespace, place) else { return Ok(Matched::Nothing) };
        let after = updates.apply_to(stored)?;
        check_size(&after)?;

        let is_changed = bytes_of(stored) != bytes_of(&after);
        *stored = after;
        Ok(if is_changed { Matched::Changed } else { Matched::Unchanged })
    }

    /// Updates the document that matches the filter, or inserts one. Returns the document after that.
    pub(super) fn upsert(
        &mut self,
        namespace: &Namespace,
        filter: &Document,
        update: &Bson,
        now: DateTime,
    ) -> Result<Document, Refused> {
        let parts = UpdateParts { filter, update, array_filters: &[] };
        if self.update(namespace, &parts, now)? == Matched::Nothing {
            let new = Updates::check(update, &[], now, Updating::New)?.apply_to(&new_document(filter))?;
            self.insert(namespace, new.clone())?;
            return Ok(new);
        }
        // The update may have changed a field that the filter requires, so find the document by its `_id`.
        let by_id = Document::from_iter([(ID.to_owned(), filter.get(ID).cloned().unwrap_or(Bson::Null))]);
        Ok(self.find(namespace, &by_id, now)?.cloned().unwrap_or_default())
    }

    /// Deletes one document.
    pub(super) fn delete(
        &mut self,
        namespace: &Namespace,
        filter: &Document,
        now: DateTime,
    ) -> Result<Matched, Refused> {
        let Some(place) = self.place_of(namespace, filter, now)? else { return Ok(Matched::Nothing) };
        if let Some(documents) = self.collections.get_mut(&key(namespace)) {
            documents.remove(place);
        }
        Ok(Matched::Changed)
    }

    fn stored(&mut self, namespace: &Namespace, place: usize) -> Option<&mut Document> {
        self.collections.get_mut(&key(namespace))?.get_mut(place)
    }
}

fn key(namespace: &Namespace) -> (String, String) {
    (namespace.db.clone(), namespace.coll.clone())
}

/// A server stores the `_id` as the first field, and refuses some values as an `_id`.
fn with_id_first(mut document: Document) -> Result<Document, Refused> {
    let Some(id) = document.remove(ID) else {
        return Err(Refused::not_interpreted("the insert of a document without an `_id`"));
    };
    match &id {
        Bson::Array(_) | Bson::RegularExpression(_) | Bson::Undefined => {
            return Err(Refused::new(INVALID_ID, "the '_id' value cannot be of this type"));
        }
        Bson::Document(fields) if fields.keys().any(|name| name.starts_with('$')) => {
            return Err(Refused::new(DOLLAR_IN_ID, "_id fields may not contain '$'-prefixed fields"));
        }
        _ => {}
    }

    let mut ordered = Document::from_iter([(ID.to_owned(), id)]);
    ordered.extend(document);
    Ok(ordered)
}

fn check_size(document: &Document) -> Result<(), Refused> {
    if bytes_of(document).len() > MOST_BYTES {
        return Err(Refused::new(TOO_LARGE, "the document would be larger than 16 MiB"));
    }
    Ok(())
}

fn bytes_of(document: &Document) -> Vec<u8> {
    codec::encode(document).map(RawDocumentBuf::into_bytes).unwrap_or_default()
}
