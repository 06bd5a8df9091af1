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

use crate::{context::Context, event::RescueEvent};

/// After this long a collection without the index is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What is known of the collections' indexes.
#[derive(Debug, Default)]
pub(crate) struct Indexes(HashMap<Namespace, Known>);

#[derive(Debug)]
enum Known {
    /// By this name.
    Present(String),
    Missing {
        looked: Instant,
    },
}

impl Indexes {
    /// The name of the collection's index, if there is one; announces once that there is none.
    pub(crate) async fn find(
        &mut self,
        context: &Context,
        namespace: &Namespace,
    ) -> Result<Option<String>, Error> {
        match self.0.get(namespace) {
            Some(Known::Present(name)) => return Ok(Some(name.clone())),
            Some(Known::Missing { looked }) if looked.elapsed() < LOOK_AGAIN => return Ok(None),
            _ => {}
        }
        let found = list(context, namespace).await?;
        let known = match &found {
            Some(name) => Known::Present(name.clone()),
            None => Known::Missing { looked: Instant::now() },
        };
        let before = self.0.insert(namespace.clone(), known);
        if found.is_none() && !matches!(before, Some(Known::Missing { .. })) {
            tracing::warn!(
                %namespace,
                "the index for the sweep is missing, so the collection is read from end to end, slowly; make it with \
                 db.getCollection({:?}).createIndex({{\"outbox.available_at\": 1}}, {{partialFilterExpression: \
                 {{\"outbox.id\": {{$exists: true}}}}}})",
                namespace.coll,
            );
            context.events.emit(RescueEvent::IndexMissing { namespace: namespace.clone() });
        }
        Ok(found)
    }

    /// Look again next time.
    pub(crate) fn forget(&mut self, namespace: &Namespace) {
        self.0.remove(namespace);
    }

    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
        self.0.retain(|namespace, _| namespaces.contains(namespace));
    }
}

async fn list(context: &Context, namespace: &Namespace) -> Result<Option<String>, Error> {
    let mut cursor = context.collection(namespace).list_indexes().await?;
    while cursor.advance().await? {
        if let Some(name) = serves(&cursor.deserialize_current()?) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The index's name, if the sweep can rely on it to hold every entry.
fn serves(index: &IndexModel) -> Option<String> {
    let options = index.options.as_ref()?;
    let whole = |partial: &Document| *partial == doc! { "outbox.id": { "$exists": true } };
    let complete = options.partial_filter_expression.as_ref().is_none_or(whole)
        // A sparse one lacks the entries without a date where no entry of the document has one.
        && options.sparse != Some(true)
        && options.hidden != Some(true);
    let ascending = match index.keys.iter().collect::<Vec<_>>()[..] {
        [(name, direction)] => name == "outbox.available_at" && is_one(direction),
        _ => false,
    };
    options.name.clone().filter(|_| ascending && complete)
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
        assert!(serves(&index(keys(), partial("outbox.id"), false)).is_some());
        assert!(serves(&index(keys(), None, false)).is_some());
        assert!(serves(&index(keys(), None, true)).is_none());
        assert!(serves(&index(keys(), partial("outbox.type"), false)).is_none());
        assert!(serves(&index(doc! { "outbox.available_at": -1 }, None, false)).is_none());
        assert!(serves(&index(doc! { "outbox.available_at": 1, "x": 1 }, None, false)).is_none());
    }
}
