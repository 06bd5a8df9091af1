//! Which collections there are to sweep.

use std::collections::BTreeSet;

use mongodb::{
    Client, Namespace,
    bson::{Document, doc},
    error::Error,
};

use crate::Settings;

/// The databases that the patterns name.
pub(crate) fn databases(settings: &Settings) -> BTreeSet<String> {
    settings.watch.iter().map(|pattern| pattern.database().to_owned()).collect()
}

/// The watched collections of one database. None where there is no such database.
pub(crate) async fn list(
    client: &Client,
    database: &str,
    settings: &Settings,
) -> Result<Vec<Namespace>, Error> {
    // These two options together need no privilege beyond those on the collections themselves.
    let command = doc! { "listCollections": 1, "nameOnly": true, "authorizedCollections": true };
    let mut cursor = client.database(database).run_cursor_command(command).await?;
    let mut found = Vec::new();
    while cursor.advance().await? {
        let listed: Document = cursor.deserialize_current()?;
        found.extend(sweepable(database, &listed).filter(|namespace| settings.watches(namespace)));
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
