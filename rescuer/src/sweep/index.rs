//! Recognises the indexes with which a sweep reads only due documents, and the indexes by which the server
//! deletes documents.

use mongodb::{
    IndexModel, Namespace,
    bson::{Bson, Document, doc},
    error::Error,
};

use document_outbox::internal::error_codes;

use crate::mongo::Mongo;

/// The error code "bad value". In the sweep's own queries, only the hint can cause it.
const BAD_VALUE: i32 = 2;

/// An index that the sweep can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) name: String,
    /// Whether the index covers non-empty outboxes only. In an index of all documents, entries without a
    /// date share the value null with every empty outbox.
    pub(crate) partial: bool,
}

/// The indexes of a collection that matter to the sweep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Indexes {
    /// The index that the sweep uses.
    pub(crate) due: Option<Index>,
    /// Whether there is an index for dead messages.
    pub(crate) dead: bool,
    /// The name of an index that deletes documents even with messages in their outboxes.
    pub(crate) ttl: Option<String>,
}

impl Indexes {
    /// Whether the collection has an index for outboxes.
    pub(crate) fn is_of_outboxes(&self) -> bool {
        self.due.is_some() || self.dead
    }

    fn add(&mut self, index: &IndexModel) {
        if let Some(due) = serves(index) {
            // The partial index is preferred.
            match &self.due {
                Some(known) if known.partial => {}
                _ => self.due = Some(due),
            }
        }
        self.dead |= holds_dead(index);
        if let Some(name) = expires(index) {
            self.ttl.get_or_insert(name);
        }
    }
}

pub(crate) async fn list(mongo: &Mongo, namespace: &Namespace) -> Result<Indexes, Error> {
    let mut indexes = Indexes::default();
    let mut cursor = mongo.collection(namespace).list_indexes().await?;
    while cursor.advance().await? {
        indexes.add(&cursor.deserialize_current()?);
    }
    Ok(indexes)
}

/// The command that creates the index. It uses the library's name for the index, because the server
/// would refuse to create the library's own index if an equal index with another name existed.
pub(crate) fn how_to_make(collection: &str) -> String {
    format!(
        "db.getCollection({collection:?}).createIndex({{\"outbox.available_at\": 1}}, {{name: \"outbox_available_at\", \
         partialFilterExpression: {{\"outbox.id\": {{$exists: true}}}}}})"
    )
}

/// Whether the server reports that the index in the hint does not exist.
pub(crate) fn is_refused_hint(error: &Error) -> bool {
    error_codes::code(error) == Some(BAD_VALUE)
}

/// The index, if it certainly covers every entry.
fn serves(index: &IndexModel) -> Option<Index> {
    let options = index.options.as_ref()?;
    let name = options.name.clone()?;
    if !is_ascending(index, "outbox.available_at") || options.hidden == Some(true) {
        return None;
    }
    // A sparse index omits a document if none of its entries has a date.
    if options.sparse == Some(true) {
        return None;
    }

    match &options.partial_filter_expression {
        Some(filter) if *filter != doc! { "outbox.id": { "$exists": true } } => None,
        filter => Some(Index { name, partial: filter.is_some() }),
    }
}

/// Whether dead messages can be counted with this index. A sparse index also covers all dead
/// messages.
fn holds_dead(index: &IndexModel) -> bool {
    let is_usable = match &index.options {
        Some(options) => options.partial_filter_expression.is_none() && options.hidden != Some(true),
        None => true,
    };
    is_usable && is_ascending(index, "outbox.dead_at")
}

/// The name of an index that deletes documents with a non-empty outbox. An index that only covers empty
/// outboxes is allowed.
fn expires(index: &IndexModel) -> Option<String> {
    let options = index.options.as_ref()?;
    options.expire_after?;
    if let Some(filter) = &options.partial_filter_expression
        && holds_only_empty(filter)
    {
        return None;
    }
    Some(options.name.clone().unwrap_or_default())
}

fn holds_only_empty(filter: &Document) -> bool {
    let Some(outbox) = filter.get("outbox") else {
        return false;
    };
    *outbox == Bson::Array(Vec::new()) || *outbox == doc! { "$eq": [] }.into()
}

fn is_ascending(index: &IndexModel, field: &str) -> bool {
    let Some(direction) = index.keys.get(field) else {
        return false;
    };
    let is_one = match direction {
        Bson::Int32(direction) => *direction == 1,
        Bson::Int64(direction) => *direction == 1,
        Bson::Double(direction) => direction.to_bits() == 1.0_f64.to_bits(),
        _ => false,
    };
    is_one && index.keys.len() == 1
}

#[cfg(test)]
mod tests {
    use mongodb::options::IndexOptions;

    use super::*;

    fn index(keys: Document, partial: Option<Document>, sparse: bool) -> IndexModel {
        let options = IndexOptions::builder()
            .name("i".to_owned())
            .partial_filter_expression(partial)
            .sparse(sparse)
            .build();
        IndexModel::builder().keys(keys).options(options).build()
    }

    #[test]
    fn only_an_index_that_holds_every_entry_serves() {
        let keys = || doc! { "outbox.available_at": 1 };
        let partial = |field: &str| Some(doc! { field: { "$exists": true } });
        assert!(serves(&index(keys(), partial("outbox.id"), false)).is_some_and(|index| index.partial));
        assert!(serves(&index(keys(), None, false)).is_some_and(|index| !index.partial));
        assert!(serves(&index(keys(), None, true)).is_none());
        assert!(serves(&index(keys(), partial("outbox.type"), false)).is_none());
        assert!(serves(&index(doc! { "outbox.available_at": -1 }, None, false)).is_none());
        assert!(serves(&index(doc! { "outbox.available_at": 1, "x": 1 }, None, false)).is_none());
    }

    #[test]
    fn the_index_is_described_as_the_library_makes_it() {
        let [due, _] = document_outbox::store::indexes();
        let name = due.options.and_then(|options| options.name).unwrap();
        assert!(how_to_make("orders").contains(&format!("name: {name:?}")), "{}", how_to_make("orders"));
    }

    #[test]
    fn an_index_that_deletes_filled_outboxes_is_seen() {
        let ttl = |partial: Option<Document>| {
            let options = IndexOptions::builder()
                .name("expires_at_1".to_owned())
                .expire_after(std::time::Duration::ZERO)
                .partial_filter_expression(partial)
                .build();
            let mut indexes = Indexes::default();
            indexes.add(&IndexModel::builder().keys(doc! { "expires_at": 1 }).options(options).build());
            indexes.ttl
        };
        assert_eq!(ttl(None).as_deref(), Some("expires_at_1"));
        assert!(ttl(Some(doc! { "state": "done" })).is_some());
        assert_eq!(ttl(Some(doc! { "outbox": [] })), None);
        assert_eq!(ttl(Some(doc! { "state": "done", "outbox": { "$eq": [] } })), None);
    }

    #[test]
    fn the_librarys_own_indexes_serve() {
        let mut indexes = Indexes::default();
        for index in document_outbox::store::indexes() {
            indexes.add(&index);
        }
        assert!(indexes.due.is_some_and(|due| due.partial) && indexes.dead && indexes.ttl.is_none());
    }
}
