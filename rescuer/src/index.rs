//! The index that makes a sweep cost what is due, and not what is stored.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mongodb::{
    IndexModel, Namespace,
    bson::{Bson, Document, doc},
    error::Error,
};

use document_outbox::codes;

use crate::{context::Context, event::RescueEvent};

/// After this long a collection without the index is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What is known of the collections' indexes.
#[derive(Debug, Default)]
pub(crate) struct Indexes(HashMap<Namespace, Known>);

/// An index that the sweep can go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) name: String,
    /// Holds filled outboxes only. In one of all documents, every empty outbox stands where entries without a date do.
    pub(crate) partial: bool,
}

#[derive(Debug)]
enum Known {
    Present(Index),
    Missing { looked: Instant },
}

impl Indexes {
    /// Whether the collection's indexes needn't be listed now.
    pub(crate) fn knows(&self, namespace: &Namespace) -> bool {
        match self.0.get(namespace) {
            Some(Known::Present(_)) => true,
            Some(Known::Missing { looked }) => looked.elapsed() < LOOK_AGAIN,
            None => false,
        }
    }

    /// The collection's index, if there is one; announces once that there is none.
    pub(crate) async fn find(
        &mut self,
        context: &Context,
        namespace: &Namespace,
    ) -> Result<Option<Index>, Error> {
        match self.0.get(namespace) {
            Some(Known::Present(index)) => return Ok(Some(index.clone())),
            Some(Known::Missing { .. }) if self.knows(namespace) => return Ok(None),
            _ => {}
        }
        match list(context, namespace).await? {
            Some(index) => {
                self.0.insert(namespace.clone(), Known::Present(index.clone()));
                Ok(Some(index))
            }
            None => {
                self.miss(context, namespace);
                Ok(None)
            }
        }
    }

    /// The index is not there, or is listed and cannot be used, as while it is being built.
    pub(crate) fn miss(&mut self, context: &Context, namespace: &Namespace) {
        let before = self.0.insert(namespace.clone(), Known::Missing { looked: Instant::now() });
        if !matches!(before, Some(Known::Missing { .. })) {
            tracing::warn!(
                %namespace,
                "the index for the sweep is missing or still being built, so the collection is read from end to end, slowly; \
                 if it is missing, make it with {}",
                how_to_make(&namespace.coll),
            );
            context.report.emit(RescueEvent::IndexMissing { namespace: namespace.clone() });
        }
    }

    /// Look again next time.
    pub(crate) fn forget(&mut self, namespace: &Namespace) {
        // One that is known to be missing was announced, and is looked at again in time.
        if let Some(Known::Present(_)) = self.0.get(namespace) {
            self.0.remove(namespace);
        }
    }

    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
        self.0.retain(|namespace, _| namespaces.contains(namespace));
    }
}

/// By the name that the library gives it: under another the library could not make it any more.
fn how_to_make(collection: &str) -> String {
    format!(
        "db.getCollection({collection:?}).createIndex({{\"outbox.available_at\": 1}}, {{name: \"outbox_available_at\", \
         partialFilterExpression: {{\"outbox.id\": {{$exists: true}}}}}})"
    )
}

/// Whether the server says that there is no such index to go by.
pub(crate) fn is_refused_hint(error: &Error) -> bool {
    /// Bad value: of the sweep's own queries, only the hint can be one.
    const BAD_VALUE: i32 = 2;
    codes::code(error) == Some(BAD_VALUE)
}

async fn list(context: &Context, namespace: &Namespace) -> Result<Option<Index>, Error> {
    let mut cursor = context.collection(namespace).list_indexes().await?;
    let mut found: Option<Index> = None;
    while cursor.advance().await? {
        if let Some(index) = serves(&cursor.deserialize_current()?) {
            // The partial one is the better one.
            found = found.filter(|found| found.partial).or(Some(index));
        }
    }
    Ok(found)
}

/// The index, if the sweep can rely on it to hold every entry.
fn serves(index: &IndexModel) -> Option<Index> {
    let options = index.options.as_ref()?;
    let whole = |partial: &Document| *partial == doc! { "outbox.id": { "$exists": true } };
    let partial = options.partial_filter_expression.as_ref();
    let complete = partial.is_none_or(whole)
        // A sparse one lacks the entries without a date where no entry of the document has one.
        && options.sparse != Some(true)
        && options.hidden != Some(true);
    let ascending = match index.keys.iter().collect::<Vec<_>>()[..] {
        [(name, direction)] => name == "outbox.available_at" && is_one(direction),
        _ => false,
    };
    let name = options.name.clone().filter(|_| ascending && complete)?;
    Some(Index { name, partial: partial.is_some() })
}

fn is_one(direction: &Bson) -> bool {
    matches!(direction, Bson::Int32(1) | Bson::Int64(1)) || direction.as_f64() == Some(1.0)
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
    fn indexes_are_listed_where_nothing_is_known_and_not_every_round() {
        let (mut indexes, orders) = (Indexes::default(), Namespace::new("shop", "orders"));
        assert!(!indexes.knows(&orders));
        let index = Index { name: "i".into(), partial: true };
        indexes.0.insert(orders.clone(), Known::Present(index));
        assert!(indexes.knows(&orders));
        indexes.forget(&orders);
        assert!(!indexes.knows(&orders));
        indexes.0.insert(orders.clone(), Known::Missing { looked: Instant::now() });
        assert!(indexes.knows(&orders));
        indexes.forget(&orders);
        assert!(indexes.knows(&orders), "it was announced, and is listed again in time");
    }
}
