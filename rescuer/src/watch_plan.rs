//! Decides which collections each stream covers.
//!
//! `watch` is a list of patterns, some with their own delay, and the first pattern that matches a
//! collection applies. There is one stream for each delay. A stream covers its own patterns, except
//! for the collections that an earlier pattern with another delay also matches.

use std::time::Duration;

use mongodb::Namespace;
use outbox_service::{NamespacePattern, written};

use crate::settings::Settings;

/// The collections that one stream covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Sorted, so that equal coverages compare as equal.
    pub(crate) parts: Vec<CoveredPattern>,
    /// The state database, which is never watched: the rescuer would read its own positions and leases
    /// forever.
    pub(crate) state_database: String,
}

/// One pattern, together with the earlier patterns that have another delay. The collections that one of these
/// earlier patterns matches belong to another stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CoveredPattern {
    pub(crate) pattern: NamespacePattern,
    pub(crate) except: Vec<NamespacePattern>,
}

/// One stream, with its name in the state database, its delay and its collections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) delay: Duration,
    pub(crate) coverage: Coverage,
}

/// Creates one stream for each delay, the shortest first. The stream whose delay is
/// `settings.delay` has the name `settings.stream`; the name of every other stream is longer.
pub(crate) fn plans(settings: &Settings) -> Vec<Plan> {
    let mut delays = Vec::new();
    for pattern in &settings.watch {
        delays.push(delay_of(pattern, settings));
    }
    delays.sort();
    delays.dedup();

    delays.into_iter().map(|delay| plan(delay, settings)).collect()
}

fn plan(delay: Duration, settings: &Settings) -> Plan {
    let mut parts = Vec::new();
    for (at, pattern) in settings.watch.iter().enumerate() {
        if delay_of(pattern, settings) != delay {
            continue;
        }
        let mut except = Vec::new();
        for earlier in &settings.watch[..at] {
            if delay_of(earlier, settings) != delay && earlier.overlaps(pattern) {
                except.push(earlier.clone());
            }
        }
        except.sort();
        parts.push(CoveredPattern { pattern: pattern.clone(), except });
    }
    parts.sort();

    let name = if delay == settings.delay {
        settings.stream.clone()
    } else {
        format!("{}@{}", settings.stream, written(delay))
    };
    Plan { name, delay, coverage: Coverage { parts, state_database: settings.state_database.clone() } }
}

fn delay_of(pattern: &NamespacePattern, settings: &Settings) -> Duration {
    pattern.delay().unwrap_or(settings.delay)
}

impl CoveredPattern {
    fn holds(&self, namespace: &Namespace) -> bool {
        let matches = |pattern: &NamespacePattern| pattern.matches(&namespace.db, &namespace.coll);
        matches(&self.pattern) && !self.except.iter().any(matches)
    }
}

impl Coverage {
    pub(crate) fn holds(&self, namespace: &Namespace) -> bool {
        namespace.db != self.state_database && self.parts.iter().any(|part| part.holds(namespace))
    }

    /// The collections that `watch` names without a wildcard.
    pub(crate) fn named(&self) -> Vec<Namespace> {
        let mut named = Vec::new();
        for pattern in self.patterns() {
            let (Some(database), Some(collection)) =
                (pattern.database().exact(), pattern.collection().exact())
            else {
                continue;
            };
            let namespace = Namespace::new(database, collection);
            if self.holds(&namespace) {
                named.push(namespace);
            }
        }
        named
    }

    pub(crate) fn patterns(&self) -> impl Iterator<Item = &NamespacePattern> {
        self.parts.iter().map(|part| &part.pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(watch: &[&str]) -> Settings {
        Settings::new(watch.iter().map(|text| text.parse().unwrap()).collect())
    }

    /// The names of the streams that cover the collection.
    fn streams(watch: &[&str], collection: &str) -> Vec<String> {
        let (db, coll) = collection.split_once('.').unwrap();
        let plans = plans(&settings(watch)).into_iter();
        let of = plans.filter(|plan| plan.coverage.holds(&Namespace::new(db, coll)));
        of.map(|plan| plan.name).collect()
    }

    #[test]
    fn each_delay_has_its_own_stream() {
        let watch = ["shop.*@2s", "audit.log@5m", "tenant_*.orders", "mail.sent@15s"];
        let plans = plans(&settings(&watch));
        let names: Vec<_> = plans.iter().map(|plan| (plan.name.as_str(), plan.delay.as_secs())).collect();
        assert_eq!(names, [("default@2s", 2), ("default", 15), ("default@5m", 300)]);
        assert_eq!(streams(&watch, "tenant_9.orders"), ["default"]);
        assert_eq!(streams(&watch, "mail.sent"), ["default"]);
        assert_eq!(streams(&watch, "elsewhere.orders"), [""; 0]);
    }

    #[test]
    fn no_collection_is_in_two_streams() {
        let watch = ["shop.orders@2s", "*.orders@1m", "shop.*"];
        assert_eq!(streams(&watch, "shop.orders"), ["default@2s"]);
        assert_eq!(streams(&watch, "other.orders"), ["default@1m"]);
        assert_eq!(streams(&watch, "shop.stock"), ["default"]);
    }

    #[test]
    fn system_collections_and_the_state_are_never_watched() {
        let watch = ["*.*"];
        for name in ["document_outbox.positions", "admin.users", "local.oplog.rs", "config.shards"] {
            assert_eq!(streams(&watch, name), [""; 0], "{name}");
        }
        assert_eq!(streams(&watch, "shop.orders"), ["default"]);
    }
}
