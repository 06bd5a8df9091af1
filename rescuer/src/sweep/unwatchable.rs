//! Finds patterns of `watch` that match no watchable collection, because the name doesn't exist, or
//! belongs to a view or a time series.
//!
//! MongoDB opens a change stream on a name that doesn't exist and reports no error. So a typing error in
//! `watch` would appear as a collection without changes.

use outbox_service::{NamespacePattern, did_you_mean};

use super::{
    budget::Turns,
    collections::{self, Listed, ListedKind, Listing},
};
use crate::{
    halt::Run,
    leadership::term::Term,
    observe::warning::{Unwatchable, Warning},
    watch_plan::Coverage,
};

/// Databases that are never suggested as corrections.
const OF_THE_SERVER: [&str; 3] = ["admin", "config", "local"];

/// Reports the patterns that match no watchable collection. If this needs a query, a turn of the budget is
/// taken before the query.
pub(crate) async fn report(term: &Term, listing: &Listing, turns: &mut Turns<'_>) -> Run<()> {
    let coverage = &term.plan.coverage;
    let mut found = find(coverage, &listing.all, &[]);

    // The databases' names reveal, for example, a name that differs from the pattern only in case. The names are
    // queried only if there is a problem.
    if found.iter().any(lacks_hint) {
        turns.wait().await?;
        // Without the names there is no hint, but there is still a warning.
        let databases = collections::all_databases(&term.mongo).await.unwrap_or_default();
        found = find(coverage, &listing.all, &databases);
    }

    term.report.unwatchable(&found);
    for (pattern, why) in found {
        term.report.warn(Warning::Unwatchable { pattern, why });
    }
    Ok(())
}

fn lacks_hint((_, why): &(NamespacePattern, Unwatchable)) -> bool {
    match why {
        Unwatchable::Missing { hint } => hint.is_empty(),
        Unwatchable::View | Unwatchable::TimeSeries => false,
    }
}

/// The problem of each pattern that matches no plain collection. `databases` contains the names of all
/// databases, if known.
fn find(
    coverage: &Coverage,
    listed: &[Listed],
    databases: &[String],
) -> Vec<(NamespacePattern, Unwatchable)> {
    let mut found = Vec::new();
    for pattern in coverage.patterns() {
        let mut kinds = Vec::new();
        for Listed { namespace, kind } in listed {
            if pattern.matches(&namespace.db, &namespace.coll) {
                kinds.push(*kind);
            }
        }
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

/// A suggestion of the name that may have been intended.
fn hint(pattern: &NamespacePattern, listed: &[Listed], databases: &[String], state_database: &str) -> String {
    let given = format!("{}.{}", pattern.database(), pattern.collection());
    let mut names = Vec::new();
    for Listed { namespace, kind } in listed {
        if *kind == ListedKind::Collection {
            names.push(namespace.to_string());
        }
    }
    let of_collections = did_you_mean(&given, names.iter().map(String::as_str));

    // Databases are only suggested if the named database doesn't exist.
    let Some(database) = pattern.database().exact() else {
        return of_collections;
    };
    if !of_collections.is_empty() || databases.iter().any(|name| name == database) {
        return of_collections;
    }
    let is_candidate = |name: &&str| *name != state_database && !OF_THE_SERVER.contains(name);
    did_you_mean(database, databases.iter().map(String::as_str).filter(is_candidate))
}

#[cfg(test)]
mod tests {
    use mongodb::Namespace;

    use super::*;
    use crate::settings::Settings;

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
    fn a_slip_is_reported_with_a_similar_name() {
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
