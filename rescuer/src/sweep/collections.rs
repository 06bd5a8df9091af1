//! Lists the existing collections.

use std::collections::BTreeSet;

use mongodb::{
    Namespace,
    bson::{Bson, Document, doc},
    error::Error,
};

use super::budget::Turns;
use crate::{halt::Interrupted, leadership::term::Term, mongo::Mongo, watch_plan::Coverage};

/// The contents of the databases that a stream's patterns can match.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// All listed objects, including collections that no pattern matches.
    pub(crate) all: Vec<Listed>,
    /// The databases that could not be listed, each with the error.
    pub(crate) failed: Vec<(String, Error)>,
}

/// A collection, or another object with a collection's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) namespace: Namespace,
    pub(crate) kind: ListedKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListedKind {
    Collection,
    View,
    TimeSeries,
    /// One of the server's own collections, or an object of an unknown kind.
    Other,
}

impl Listing {
    /// The plain collections that a stream covers.
    pub(crate) fn watched(&self, coverage: &Coverage) -> Vec<Namespace> {
        let mut watched = Vec::new();
        for Listed { namespace, kind } in &self.all {
            if *kind == ListedKind::Collection && coverage.holds(namespace) {
                watched.push(namespace.clone());
            }
        }
        watched
    }
}

/// Lists the databases that the patterns of this stream can match. Takes a turn of the budget before each query.
///
/// # Errors
/// Returns an error if not even the databases can be listed. If a single database can't be listed, the
/// listing records that database as failed.
pub(crate) async fn list_all(term: &Term, turns: &mut Turns<'_>) -> Result<Listing, Interrupted> {
    let mut listing = Listing::default();
    for database in databases(term, turns).await? {
        term.check()?;
        turns.wait().await?;
        match list(&term.mongo, &database).await {
            Ok(found) => listing.all.extend(found),
            Err(error) => listing.failed.push((database, error)),
        }
    }
    Ok(listing)
}

/// The databases that a stream's patterns name. Needs a query if a database pattern contains a `*`.
async fn databases(term: &Term, turns: &mut Turns<'_>) -> Result<BTreeSet<String>, Interrupted> {
    let coverage = &term.plan.coverage;
    let mut databases = BTreeSet::new();
    let mut wildcards = Vec::new();
    for pattern in coverage.patterns() {
        match pattern.database().exact() {
            Some(name) => _ = databases.insert(name.to_owned()),
            None => wildcards.push(pattern.database()),
        }
    }

    if !wildcards.is_empty() {
        turns.wait().await?;
        for name in all_databases(&term.mongo).await? {
            if wildcards.iter().any(|wildcard| wildcard.matches(&name)) {
                databases.insert(name);
            }
        }
    }
    databases.remove(&coverage.state_database);
    Ok(databases)
}

/// The databases in which the user has any privilege. Listing them needs no privilege.
pub(crate) async fn all_databases(mongo: &Mongo) -> Result<Vec<String>, Error> {
    let command = doc! { "listDatabases": 1, "nameOnly": true, "authorizedDatabases": true };
    let reply = mongo.database("admin").run_command(command).await?;
    let listed = reply.get_array("databases").into_iter().flatten().filter_map(Bson::as_document);
    let names = listed.filter_map(|database| database.get_str("name").ok());
    Ok(names.map(str::to_owned).collect())
}

/// Lists the collections and views of one database. The list is empty if there is no such database.
async fn list(mongo: &Mongo, database: &str) -> Result<Vec<Listed>, Error> {
    // With these two options, the command needs no privilege beyond the privileges on the collections
    // themselves.
    let command = doc! { "listCollections": 1, "nameOnly": true, "authorizedCollections": true };
    let mut cursor = mongo.database(database).run_cursor_command(command).await?;
    let mut found = Vec::new();
    while cursor.advance().await? {
        let listed: Document = cursor.deserialize_current()?;
        found.extend(read(database, &listed));
    }
    Ok(found)
}

fn read(database: &str, listed: &Document) -> Option<Listed> {
    let name = listed.get_str("name").ok()?;
    let is_system = name.starts_with("system.");
    let kind = match listed.get_str("type").ok()? {
        "collection" if !is_system => ListedKind::Collection,
        "view" if !is_system => ListedKind::View,
        "timeseries" if !is_system => ListedKind::TimeSeries,
        _ => ListedKind::Other,
    };
    Some(Listed { namespace: Namespace::new(database, name), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_time_series_and_system_collections_are_not_swept() {
        let kind = |name: &str, kind: &str| read("shop", &doc! { "name": name, "type": kind }).unwrap().kind;
        assert_eq!(kind("orders", "collection"), ListedKind::Collection);
        assert_eq!(kind("open_orders", "view"), ListedKind::View);
        assert_eq!(kind("clicks", "timeseries"), ListedKind::TimeSeries);
        assert_eq!(kind("system.buckets.clicks", "collection"), ListedKind::Other);
        assert_eq!(kind("secret", "something new"), ListedKind::Other);
    }
}
