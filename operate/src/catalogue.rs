//! The collections that may have outboxes, with the facts that matter for reading them.

use std::time::Duration;

use document_outbox::internal::error_codes;
use mongodb::{
    IndexModel, Namespace,
    bson::{Bson, Document, doc},
};
use serde::Serialize;

use crate::{Operator, error::OperateError, query::Query, text};

const UNAUTHORISED: i32 = 13;

/// A collection that the operator watches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WatchedCollection {
    /// Its name.
    #[serde(serialize_with = "text::as_text")]
    pub namespace: Namespace,
    /// The index for messages by the time at which they are due.
    pub due_index: Option<String>,
    /// The index for dead messages.
    pub dead_index: Option<String>,
    /// An index by which the server deletes documents, even with messages in their outboxes.
    pub ttl_index: Option<String>,
    /// Whether the server drops the oldest documents when the collection is full.
    pub capped: bool,
    /// The number of documents, estimated from metadata.
    pub documents: u64,
}

/// The collections of a system.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Catalogue {
    /// The collections, sorted by name.
    pub collections: Vec<WatchedCollection>,
    /// The patterns that match no collection.
    pub unmatched: Vec<String>,
    /// The views and time series that a pattern without `*` names; they can't have outboxes.
    pub unwatchable: Vec<String>,
}

impl Operator {
    /// Finds the watched collections and their indexes.
    pub async fn catalogue(&self) -> Result<Catalogue, OperateError> {
        let mut found = Catalogue::default();
        let mut namespaces = Vec::new();
        for database in self.databases().await? {
            self.list_collections(&database, &mut found, &mut namespaces).await?;
        }

        namespaces.sort_by_key(|(namespace, _)| namespace.to_string());
        for pattern in &self.settings.watch {
            let is_met = |(namespace, _): &(Namespace, bool)| pattern.matches(&namespace.db, &namespace.coll);
            if !namespaces.iter().any(is_met) && !found.unwatchable.contains(&pattern.to_string()) {
                found.unmatched.push(pattern.to_string());
            }
        }
        for (namespace, capped) in namespaces {
            found.collections.push(self.facts(namespace, capped).await?);
        }
        Ok(found)
    }

    /// The watched collections that a query includes.
    pub(crate) async fn collections_of(&self, query: &Query) -> Result<Vec<WatchedCollection>, OperateError> {
        let mut collections = self.catalogue().await?.collections;
        collections.retain(|collection| {
            let Namespace { db, coll } = &collection.namespace;
            query.collections.is_empty() || query.collections.iter().any(|pattern| pattern.matches(db, coll))
        });
        if collections.is_empty() {
            return Err(OperateError::Argument(
                "no watched collection exists with such a name: correct `watch` (OUTBOX_WATCH) or the query's `collection`"
                    .to_owned(),
            ));
        }
        Ok(collections)
    }

    /// The facts of one watched collection.
    pub(crate) async fn collection_named(
        &self,
        namespace: Namespace,
    ) -> Result<WatchedCollection, OperateError> {
        if !self.is_watched(&namespace) {
            return Err(OperateError::Argument(format!(
                "{namespace} is not watched: correct its name, or add it to `watch` (OUTBOX_WATCH)"
            )));
        }
        self.facts(namespace, false).await
    }

    /// The databases that the patterns can match.
    async fn databases(&self) -> Result<Vec<String>, OperateError> {
        let mut databases: Vec<String> = Vec::new();
        for pattern in &self.settings.watch {
            if let Some(name) = pattern.database().exact() {
                databases.push(name.to_owned());
            }
        }

        if self.settings.watch.iter().any(|pattern| pattern.database().exact().is_none()) {
            let names = self.client.list_database_names().authorized_databases(true);
            databases.extend(names.await.map_err(OperateError::reading("the list of databases"))?);
        }
        databases.sort();
        databases.dedup();
        databases.retain(|name| *name != self.settings.state_database);
        Ok(databases)
    }

    /// Adds the watched collections of one database.
    async fn list_collections(
        &self,
        database: &str,
        found: &mut Catalogue,
        namespaces: &mut Vec<(Namespace, bool)>,
    ) -> Result<(), OperateError> {
        let command = doc! {
            "listCollections": 1,
            "authorizedCollections": true,
            "cursor": {},
            "maxTimeMS": self.max_time_ms(),
        };
        let listed = self.client.database(database).run_cursor_command(command).await;
        let mut cursor = listed.map_err(OperateError::reading(format!("the collections of {database}")))?;

        while cursor.advance().await.map_err(OperateError::reading("the list of collections"))? {
            let listed: Document =
                cursor.deserialize_current().map_err(OperateError::reading("the list of collections"))?;
            let Ok(name) = listed.get_str("name") else { continue };
            let namespace = Namespace::new(database, name);
            if !self.is_watched(&namespace) {
                continue;
            }
            if listed.get_str("type").is_ok_and(|kind| kind == "collection") {
                let options = listed.get_document("options");
                let capped = options.is_ok_and(|options| options.get_bool("capped").unwrap_or(false));
                namespaces.push((namespace, capped));
            } else {
                found.unwatchable.push(namespace.to_string());
            }
        }
        Ok(())
    }

    async fn facts(&self, namespace: Namespace, capped: bool) -> Result<WatchedCollection, OperateError> {
        let collection = self.collection(&namespace);
        let count = collection.estimated_document_count().max_time(self.settings.max_time);
        let documents = count.await.map_err(OperateError::reading(format!("the size of {namespace}")))?;
        let mut facts = WatchedCollection {
            namespace,
            due_index: None,
            dead_index: None,
            ttl_index: None,
            capped,
            documents,
        };

        let what = || format!("the indexes of {}", facts.namespace);
        let mut indexes = match collection.list_indexes().max_time(self.settings.max_time).await {
            Ok(indexes) => indexes,
            // Some servers report that a collection without documents does not exist.
            Err(error) if error_codes::code(&error) == Some(26) => return Ok(facts),
            Err(error) => return Err(OperateError::reading(what())(error)),
        };
        let mut models = Vec::new();
        while indexes.advance().await.map_err(OperateError::reading(what()))? {
            models.push(indexes.deserialize_current().map_err(OperateError::reading(what()))?);
        }
        for index in &models {
            facts.add(index);
        }
        Ok(facts)
    }

    pub(crate) fn max_time_ms(&self) -> i64 {
        i64::try_from(self.settings.max_time.max(Duration::from_millis(1)).as_millis()).unwrap_or(i64::MAX)
    }
}

impl WatchedCollection {
    fn add(&mut self, index: &IndexModel) {
        let Some(options) = &index.options else { return };
        let Some(name) = options.name.clone() else { return };
        let is_usable = options.hidden != Some(true);
        let filter = options.partial_filter_expression.as_ref();

        // A sparse index omits documents without a date; another filter may omit any.
        let covers_filled = filter.is_none_or(|filter| *filter == doc! { "outbox.id": { "$exists": true } });
        if is_usable && is_on(index, "outbox.available_at") && covers_filled && options.sparse != Some(true) {
            self.due_index = Some(name.clone());
        }
        if is_usable && is_on(index, "outbox.dead_at") && filter.is_none() {
            self.dead_index = Some(name.clone());
        }
        if options.expire_after.is_some() && !filter.is_some_and(leaves_filled) {
            self.ttl_index = Some(name);
        }
    }
}

/// Whether an index has this field, ascending, and no other.
fn is_on(index: &IndexModel, field: &str) -> bool {
    let direction = match index.keys.get(field) {
        Some(Bson::Int32(direction)) => i64::from(*direction),
        Some(Bson::Int64(direction)) => *direction,
        Some(Bson::Double(direction)) if direction.to_bits() == 1.0_f64.to_bits() => 1,
        _ => 0,
    };
    index.keys.len() == 1 && direction == 1
}

/// Whether a filter selects only documents with an empty outbox.
fn leaves_filled(filter: &Document) -> bool {
    let empty = Bson::Array(Vec::new());
    match filter.get("outbox") {
        Some(Bson::Document(condition)) => condition.get("$eq") == Some(&empty),
        Some(value) => *value == empty,
        None => false,
    }
}

/// Whether the user lacks the privilege for a read.
pub(crate) fn is_unauthorised(error: &mongodb::error::Error) -> bool {
    error_codes::code(error) == Some(UNAUTHORISED)
}
