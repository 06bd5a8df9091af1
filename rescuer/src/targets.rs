//! Which collections there are to sweep.

use std::collections::BTreeSet;

use mongodb::{
    Namespace,
    bson::{Bson, Document, doc},
    error::Error,
};
use outbox_service::NamespacePattern;

use crate::{context::Context, coverage::Coverage};

/// The databases that a stream's patterns name. A query where one of them holds a `*`.
pub(crate) async fn databases(context: &Context) -> Result<BTreeSet<String>, Error> {
    let exact = |pattern: &NamespacePattern| pattern.database().exact().map(str::to_owned);
    let patterns: Vec<_> = context.plan.coverage.patterns().collect();
    let mut databases: BTreeSet<String> = patterns.iter().filter_map(|pattern| exact(pattern)).collect();
    if asks(&context.plan.coverage) {
        // Those in which this user may do something; it needs no privilege for that.
        let command = doc! { "listDatabases": 1, "nameOnly": true, "authorizedDatabases": true };
        let reply = context.client.database("admin").run_command(command).await?;
        let listed = reply.get_array("databases").into_iter().flatten().filter_map(Bson::as_document);
        let names = listed.filter_map(|database| database.get_str("name").ok());
        let wanted = |name: &&str| patterns.iter().any(|pattern| pattern.database().matches(name));
        databases.extend(names.filter(wanted).map(str::to_owned));
    }
    databases.retain(|name| *name != context.plan.coverage.state_database);
    Ok(databases)
}

/// Whether [`databases`] asks the server.
pub(crate) fn asks(coverage: &Coverage) -> bool {
    coverage.patterns().any(|pattern| pattern.database().exact().is_none())
}

/// The watched collections of one database. None where there is no such database.
pub(crate) async fn list(context: &Context, database: &str) -> Result<Vec<Namespace>, Error> {
    // These two options together need no privilege beyond those on the collections themselves.
    let command = doc! { "listCollections": 1, "nameOnly": true, "authorizedCollections": true };
    let mut cursor = context.client.database(database).run_cursor_command(command).await?;
    let mut found = Vec::new();
    while cursor.advance().await? {
        let listed: Document = cursor.deserialize_current()?;
        let namespace = sweepable(database, &listed);
        found.extend(namespace.filter(|namespace| context.plan.coverage.holds(namespace)));
    }
    Ok(found)
}

/// A plain collection: no view, no time series, nothing of the server's own.
fn sweepable(database: &str, listed: &Document) -> Option<Namespace> {
    let name = listed.get_str("name").ok()?;
    let plain = listed.get_str("type").ok() == Some("collection") && !name.starts_with("system.");
    plain.then(|| Namespace::new(database, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_time_series_and_the_servers_own_are_not_swept() {
        let sweeps =
            |name: &str, kind: &str| sweepable("shop", &doc! { "name": name, "type": kind }).is_some();
        assert!(sweeps("orders", "collection"));
        assert!(!sweeps("open_orders", "view"));
        assert!(!sweeps("clicks", "timeseries"));
        assert!(!sweeps("system.buckets.clicks", "collection"));
    }
}
