//! Patterns of `watch` that no collection can be watched by: a name that isn't there, a view, a time series.
//!
//! MongoDB opens a change stream on a name that doesn't exist, and lists no error for it, so a slip in `watch` would look
//! like a collection in which nothing happens.

use std::fmt;

use mongodb::Namespace;
use outbox_service::{NamespacePattern, settings::did_you_mean};

use crate::{
    Warning,
    leadership::term::Context,
    sweep::budget::Turns,
    sweep::collections::{self, Listed, ListedKind, Listing},
    watch_plan::Coverage,
};

/// Why no collection is watched by a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unwatchable {
    /// No collection has such a name.
    Missing {
        /// A name that is there and nearly the same, as ` (did you mean …?)`, or nothing.
        hint: String,
    },
    /// It is a view: what is written is another collection.
    View,
    /// It is a time series: its measurements take no updates, and it has no change stream.
    TimeSeries,
}

impl fmt::Display for Unwatchable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { hint } => {
                write!(f, "matches no collection{hint}; correct it, or create the collection")
            }
            Self::View => f.write_str("is a view; watch the collection that it reads"),
            Self::TimeSeries => {
                f.write_str("is a time series, which has no change stream; watch a plain collection")
            }
        }
    }
}

/// Reports which patterns match nothing that can be watched, waiting for its turn before a query.
pub(crate) async fn report(context: &Context, listing: &Listing, turns: &mut Turns<'_>) {
    let coverage = &context.plan.coverage;
    let mut found = find(coverage, &listing.all, &[]);
    // Another case of a database's name, for example. Not asked for when all is well.
    let lacks_hint = |(_, why): &(_, Unwatchable)| *why == Unwatchable::Missing { hint: String::new() };
    if found.iter().any(lacks_hint) {
        turns.wait(context).await;
        // Without the names there is no hint, and a warning all the same.
        let databases = collections::all_databases(context).await.unwrap_or_default();
        found = find(coverage, &listing.all, &databases);
    }
    context.report.unwatchable(&found);
    for (pattern, why) in found {
        context.report.warn(Warning::Unwatchable { pattern, why });
    }
}

/// What is wrong with each pattern that matches no plain collection. `databases` are the names of all databases, where
/// they are known.
pub(crate) fn find(
    coverage: &Coverage,
    listed: &[Listed],
    databases: &[String],
) -> Vec<(NamespacePattern, Unwatchable)> {
    let mut found = Vec::new();
    for pattern in coverage.patterns() {
        let matches = |namespace: &Namespace| pattern.matches(&namespace.db, &namespace.coll);
        let kinds: Vec<ListedKind> =
            listed.iter().filter(|listed| matches(&listed.namespace)).map(|listed| listed.kind).collect();
        if kinds.contains(&ListedKind::Collection) {
            continue;
        }
        let is_exact = pattern.database().exact().is_some() && pattern.collection().exact().is_some();
        let why = match kinds.first() {
            Some(ListedKind::View) if is_exact => Unwatchable::View,
            Some(ListedKind::TimeSeries) if is_exact => Unwatchable::TimeSeries,
            _ => Unwatchable::Missing { hint: hint(pattern, listed, databases, &coverage.state_database) },
        };
        found.push((pattern.clone(), why));
    }
    found
}

/// A name that the pattern may have been meant for.
fn hint(pattern: &NamespacePattern, listed: &[Listed], databases: &[String], state_database: &str) -> String {
    let given = format!("{}.{}", pattern.database(), pattern.collection());
    let mut names = Vec::new();
    for Listed { namespace, kind } in listed {
        if *kind == ListedKind::Collection {
            names.push(namespace.to_string());
        }
    }
    let of_collections = did_you_mean(&given, names.iter().map(String::as_str));
    let Some(database) = pattern.database().exact().filter(|_| of_collections.is_empty()) else {
        return of_collections;
    };
    if databases.iter().any(|name| name == database) {
        return of_collections;
    }
    let own = [state_database, "admin", "config", "local"];
    let others = databases.iter().map(String::as_str).filter(|name| !own.contains(name));
    did_you_mean(database, others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    fn listed(name: &str, kind: ListedKind) -> Listed {
        Listed { namespace: Namespace::new("bugs", name), kind }
    }

    fn problems(watch: &[&str]) -> Vec<String> {
        let settings = Settings::new(watch.iter().map(|text| text.parse().unwrap()).collect());
        let there = [
            listed("orders", ListedKind::Collection),
            listed("open_orders", ListedKind::View),
            listed("clicks", ListedKind::TimeSeries),
        ];
        let plan = crate::watch_plan::plans(&settings).remove(0);
        let found = find(&plan.coverage, &there, &["bugs".into()]);
        found.into_iter().map(|(pattern, why)| format!("{pattern} {why}")).collect()
    }

    #[test]
    fn a_pattern_that_matches_a_collection_has_no_problem() {
        assert_eq!(problems(&["bugs.orders", "bugs.*", "*.ord*"]), [""; 0]);
    }

    #[test]
    fn a_slip_is_reported_with_the_name_it_is_close_to() {
        assert!(problems(&["bugs.order"])[0].contains("did you mean bugs.orders?"));
        assert!(problems(&["bugs.Orders"])[0].contains("did you mean bugs.orders?"));
        assert!(problems(&["Bugs.orders"])[0].contains("did you mean bugs"));
        let found = problems(&["Bugs.*"]);
        assert!(found[0].contains("Bugs.* matches no collection (did you mean bugs?)"), "{found:?}");
        assert!(!problems(&["bugs.payments"])[0].contains("did you mean"));
    }

    #[test]
    fn views_and_time_series_are_named_as_such() {
        assert!(problems(&["bugs.open_orders"])[0].contains("is a view"));
        assert!(problems(&["bugs.clicks"])[0].contains("is a time series"));
        assert!(problems(&["bugs.open_*"])[0].contains("matches no collection"));
    }
}
