//! Which collections there are.

use std::collections::BTreeSet;

use mongodb::{
    Namespace,
    bson::{Bson, Document, doc},
    error::Error,
};
use outbox_service::NamespacePattern;

use crate::{leadership::term::Context, sweep::budget::Turns, watch_plan::Coverage};

/// What the databases of a stream's patterns hold.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Everything, also what no pattern means.
    pub(crate) all: Vec<Listed>,
    /// The databases that could not be listed, with the reason.
    pub(crate) failed: Vec<(String, Error)>,
}

/// A collection, or what goes by a collection's name.
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
    /// The server's own, or of a kind that is not known here.
    Other,
}

impl Listing {
    /// The plain collections that a stream is for.
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

/// Lists what the patterns of this stream can mean, waiting for its turn before each query.
///
/// # Errors
/// Where not even the databases can be listed. One database that can't be is in the listing.
pub(crate) async fn list_all(context: &Context, turns: &mut Turns<'_>) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    if asks(&context.plan.coverage) {
        turns.wait(context).await;
    }
    for database in databases(context).await? {
        if context.is_over() {
            break;
        }
        turns.wait(context).await;
        match list(context, &database).await {
            Ok(found) => listing.all.extend(found),
            Err(error) => listing.failed.push((database, error)),
        }
    }
    Ok(listing)
}

/// The databases that a stream's patterns name. A query where one of them holds a `*`.
async fn databases(context: &Context) -> Result<BTreeSet<String>, Error> {
    let exact = |pattern: &NamespacePattern| pattern.database().exact().map(str::to_owned);
    let patterns: Vec<_> = context.plan.coverage.patterns().collect();
    let mut databases: BTreeSet<String> = patterns.iter().filter_map(|pattern| exact(pattern)).collect();
    if asks(&context.plan.coverage) {
        let wanted = |name: &String| patterns.iter().any(|pattern| pattern.database().matches(name));
        databases.extend(all_databases(context).await?.into_iter().filter(wanted));
    }
    databases.retain(|name| *name != context.plan.coverage.state_database);
    Ok(databases)
}

/// The databases in which this user may do something; it needs no privilege for that.
pub(crate) async fn all_databases(context: &Context) -> Result<Vec<String>, Error> {
    let command = doc! { "listDatabases": 1, "nameOnly": true, "authorizedDatabases": true };
    let reply = context.client.database("admin").run_command(command).await?;
    let listed = reply.get_array("databases").into_iter().flatten().filter_map(Bson::as_document);
    let names = listed.filter_map(|database| database.get_str("name").ok());
    Ok(names.map(str::to_owned).collect())
}

/// Whether [`databases`] asks the server.
fn asks(coverage: &Coverage) -> bool {
    coverage.patterns().any(|pattern| pattern.database().exact().is_none())
}

/// What one database holds. Nothing where there is no such database.
async fn list(context: &Context, database: &str) -> Result<Vec<Listed>, Error> {
    // These two options together need no privilege beyond those on the collections themselves.
    let command = doc! { "listCollections": 1, "nameOnly": true, "authorizedCollections": true };
    let mut cursor = context.client.database(database).run_cursor_command(command).await?;
    let mut found = Vec::new();
    while cursor.advance().await? {
        let listed: Document = cursor.deserialize_current()?;
        found.extend(read(database, &listed));
    }
    Ok(found)
}

fn read(database: &str, listed: &Document) -> Option<Listed> {
    let name = listed.get_str("name").ok()?;
    let kind = match listed.get_str("type").ok()? {
        _ if name.starts_with("system.") => ListedKind::Other,
        "collection" => ListedKind::Collection,
        "view" => ListedKind::View,
        "timeseries" => ListedKind::TimeSeries,
        _ => ListedKind::Other,
    };
    Some(Listed { namespace: Namespace::new(database, name), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_time_series_and_the_servers_own_are_not_swept() {
        let kind = |name: &str, kind: &str| read("shop", &doc! { "name": name, "type": kind }).unwrap().kind;
        assert_eq!(kind("orders", "collection"), ListedKind::Collection);
        assert_eq!(kind("open_orders", "view"), ListedKind::View);
        assert_eq!(kind("clicks", "timeseries"), ListedKind::TimeSeries);
        assert_eq!(kind("system.buckets.clicks", "collection"), ListedKind::Other);
        assert_eq!(kind("secret", "something new"), ListedKind::Other);
    }
}
