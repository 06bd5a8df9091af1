//! Holds the facts about the watched collections: whether a collection has outboxes at all, which index
//! its sweep uses, and whether the server deletes its documents by itself.
//!
//! # Collections without an outbox
//! A pattern such as `shop.*` also matches sessions and logs, which never contained an outbox. Such a
//! collection must cost nothing and cause no alert. So a collection that lacks the index is read once,
//! slice by slice. If no document in it has the field `outbox`, the collection is ignored until the change
//! stream shows a document that has the field. It is also read again after a position is lost, because the
//! stream may have missed such a document. A collection that `watch` names exactly is assumed to have
//! outboxes.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use mongodb::{Namespace, bson::Document};

use super::index::{Index, Indexes};
use crate::observe::{flaws::Flaws, warning::Expiry};

/// The interval at which a collection without the index is checked again.
const MISSING_AGAIN: Duration = Duration::from_mins(1);
/// The interval at which a collection with the index is checked for an index that deletes documents. With
/// many collections the interval is longer, so that at most one collection a second is listed.
const PRESENT_AGAIN: Duration = Duration::from_mins(5);
const ONE: Duration = Duration::from_secs(1);
/// The maximum number of problems that the status lists.
const MOST_SENTENCES: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The collections that `watch` names exactly.
    named: HashSet<Namespace>,
    collections: HashMap<Namespace, CollectionFacts>,
}

/// The known facts about one collection.
#[derive(Debug, Clone, Default)]
struct CollectionFacts {
    holds: Holds,
    /// The time when the collection's indexes were listed.
    listed: Option<Instant>,
    indexes: Indexes,
    expiry: Option<Expiry>,
    /// The flaw that was last reported.
    reported: Flaw,
    /// Whether dead messages were found in the collection.
    has_dead: bool,
}

/// Whether a collection has documents with an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Holds {
    /// Unknown: the collection was not yet read to its end.
    #[default]
    Unsure,
    /// The collection has outboxes: at least one was seen, or there is an index for outboxes.
    Outboxes,
    /// The collection has no outbox: it was read to its end, and none was found.
    Nothing,
}

/// The problem of one collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Flaw {
    lacks_due: bool,
    lacks_dead: bool,
    expiry: Option<Expiry>,
}

/// The changes in a collection's state that have to be reported.
#[derive(Debug)]
pub(super) struct Review {
    /// Whether the collection lacks the index for the sweep, and did not lack it before.
    pub(super) is_missed: bool,
    pub(super) expiry: Option<Expiry>,
    /// The problems of all collections together, if the problem of this collection has changed.
    pub(super) flaws: Option<Flaws>,
}

impl Facts {
    pub(super) fn new(named: Vec<Namespace>) -> Self {
        Self { named: named.into_iter().collect(), collections: HashMap::new() }
    }

    pub(super) fn holds(&self, namespace: &Namespace) -> Holds {
        match self.collections.get(namespace) {
            Some(known) if known.holds != Holds::Unsure => known.holds,
            // A collection that `watch` names exactly is assumed to have outboxes.
            _ if self.named.contains(namespace) => Holds::Outboxes,
            _ => Holds::Unsure,
        }
    }

    /// The index to use, as far as is known.
    pub(super) fn index(&self, namespace: &Namespace) -> Option<Index> {
        self.collections.get(namespace)?.indexes.due.clone()
    }

    pub(super) fn has_dead_index(&self, namespace: &Namespace) -> bool {
        self.collections.get(namespace).is_some_and(|known| known.indexes.dead)
    }

    pub(super) fn needs_listing(&self, namespace: &Namespace) -> bool {
        let Some(known) = self.collections.get(namespace) else {
            return true;
        };
        let Some(listed) = known.listed else {
            return true;
        };
        if self.holds(namespace) == Holds::Nothing {
            return false;
        }

        let again = match known.indexes.due {
            Some(_) => PRESENT_AGAIN.max(ONE * u32::try_from(self.collections.len()).unwrap_or(u32::MAX)),
            None => MISSING_AGAIN,
        };
        listed.elapsed() >= again
    }

    /// Records that a document with the field `outbox` was seen.
    pub(super) fn found_outbox(&mut self, namespace: &Namespace) {
        let known = self.collections.entry(namespace.clone()).or_default();
        if known.holds == Holds::Nothing {
            // The index may have been created since the last listing.
            known.listed = None;
        }
        known.holds = Holds::Outboxes;
    }

    /// Records that the collection was read to its end, and that no document in the collection has the field
    /// `outbox`.
    pub(super) fn found_none(&mut self, namespace: &Namespace) {
        let named = self.named.contains(namespace);
        let known = self.collections.entry(namespace.clone()).or_default();
        if known.holds == Holds::Unsure && !named {
            known.holds = Holds::Nothing;
        }
    }

    /// Records that a position was lost: the stream may have missed outboxes.
    pub(super) fn doubt(&mut self) {
        for known in self.collections.values_mut() {
            if known.holds == Holds::Nothing {
                known.holds = Holds::Unsure;
            }
        }
    }

    /// Makes the next visit list the collection's indexes again.
    pub(super) fn forget_indexes(&mut self, namespace: &Namespace) {
        if let Some(known) = self.collections.get_mut(namespace) {
            // A missing index was already reported, and is checked again later.
            if known.indexes.due.is_some() {
                known.listed = None;
            }
        }
    }

    /// Records that the index is listed but cannot be used, for example because it is still being built.
    pub(super) fn refuse_index(&mut self, namespace: &Namespace) {
        let known = self.collections.entry(namespace.clone()).or_default();
        known.indexes.due = None;
        known.holds = Holds::Outboxes;
        known.listed = Some(Instant::now());
    }

    pub(super) fn keep_only(&mut self, namespaces: &[Namespace]) {
        let there: HashSet<&Namespace> = namespaces.iter().collect();
        self.collections.retain(|namespace, _| there.contains(namespace));
    }

    fn flaw(&self, namespace: &Namespace) -> Flaw {
        let Some(known) = self.collections.get(namespace) else {
            return Flaw::default();
        };
        if self.holds(namespace) != Holds::Outboxes || known.listed.is_none() {
            return Flaw::default();
        }
        Flaw {
            lacks_due: known.indexes.due.is_none(),
            lacks_dead: known.indexes.due.is_some() && known.has_dead && !known.indexes.dead,
            expiry: known.expiry.clone(),
        }
    }

    /// The problems of all collections together.
    pub(super) fn flaws(&self) -> Flaws {
        let mut flaws = Flaws::default();
        for namespace in self.collections.keys() {
            let flaw = self.flaw(namespace);
            if flaw.lacks_due {
                flaws.indexes_missing += 1;
                flaws.sentences.push(format!("{namespace} lacks the index on outbox.available_at"));
            }
            if flaw.lacks_dead {
                flaws.indexes_missing += 1;
                let sentence = format!("{namespace} has dead messages and lacks the index on outbox.dead_at");
                flaws.sentences.push(sentence);
            }
            if let Some(expiry) = &flaw.expiry {
                flaws.expiring += 1;
                let sentence =
                    format!("{namespace} loses documents by {expiry}, even with messages in their outboxes");
                flaws.sentences.push(sentence);
            }
        }

        flaws.sentences.sort();
        flaws.sentences.truncate(MOST_SENTENCES);
        flaws
    }

    /// Records the indexes of a collection.
    pub(super) fn listed(&mut self, namespace: &Namespace, indexes: Indexes) {
        let known = self.collections.entry(namespace.clone()).or_default();
        if indexes.is_of_outboxes() {
            known.holds = Holds::Outboxes;
        }
        known.indexes = indexes;
        known.listed = Some(Instant::now());
    }

    /// Records the options of a collection; `None` if the user has no permission to list them.
    pub(super) fn options(&mut self, namespace: &Namespace, options: Option<&Document>) {
        if let Some(known) = self.collections.get_mut(namespace) {
            known.expiry = expiry(options, &known.indexes);
        }
    }

    /// Records a count of dead messages.
    pub(super) fn counted_dead(&mut self, namespace: &Namespace, dead: u64) {
        if let Some(known) = self.collections.get_mut(namespace) {
            known.has_dead = dead > 0;
        }
    }

    /// Compares the problem of a collection with the problem that was last reported for it.
    pub(super) fn review(&mut self, namespace: &Namespace) -> Option<Review> {
        let flaw = self.flaw(namespace);
        let known = self.collections.get_mut(namespace)?;
        let before = std::mem::replace(&mut known.reported, flaw.clone());

        // `flaws` goes through the facts of all collections, so it is not called if the problem of this
        // collection has not changed.
        let flaws = if before == flaw { None } else { Some(self.flaws()) };
        let is_missed = flaw.lacks_due && !before.lacks_due;
        Some(Review { is_missed, expiry: flaw.expiry, flaws })
    }
}

fn expiry(options: Option<&Document>, indexes: &Indexes) -> Option<Expiry> {
    if let Some(name) = &indexes.ttl {
        return Some(Expiry::TtlIndex(name.clone()));
    }
    let options = options?;
    if options.get_bool("capped").unwrap_or(false) {
        return Some(Expiry::Capped);
    }
    options.contains_key("expireAfterSeconds").then_some(Expiry::Clustered)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    fn orders() -> Namespace {
        Namespace::new("shop", "orders")
    }

    fn listed(facts: &mut Facts, indexes: Indexes) {
        facts.listed(&orders(), indexes);
    }

    #[test]
    fn a_collection_without_outboxes_lacks_nothing() {
        let mut facts = Facts::new(Vec::new());
        assert!(facts.needs_listing(&orders()));
        listed(&mut facts, Indexes::default());
        assert_eq!(facts.flaws(), Flaws::default(), "unsure");
        facts.found_none(&orders());
        assert_eq!((facts.holds(&orders()), facts.flaws()), (Holds::Nothing, Flaws::default()));
        facts.found_outbox(&orders());
        assert!(facts.needs_listing(&orders()), "an index may have been made since");
        listed(&mut facts, Indexes::default());
        assert_eq!(facts.flaws().indexes_missing, 1);
    }

    #[test]
    fn a_named_collection_is_taken_to_hold_outboxes() {
        let mut facts = Facts::new(vec![orders()]);
        listed(&mut facts, Indexes::default());
        facts.found_none(&orders());
        assert_eq!((facts.holds(&orders()), facts.flaws().indexes_missing), (Holds::Outboxes, 1));
    }

    #[test]
    fn a_lost_position_makes_empty_collections_uncertain() {
        let mut facts = Facts::new(Vec::new());
        listed(&mut facts, Indexes::default());
        facts.found_none(&orders());
        facts.doubt();
        assert_eq!(facts.holds(&orders()), Holds::Unsure);
    }

    #[test]
    fn the_dead_index_is_missed_with_dead_messages() {
        let mut facts = Facts::new(vec![orders()]);
        let due = Some(Index { name: "i".into(), partial: true });
        listed(&mut facts, Indexes { due, dead: false, ttl: None });
        assert_eq!(facts.flaws().indexes_missing, 0);
        facts.counted_dead(&orders(), 1);
        assert_eq!(facts.flaws().indexes_missing, 1);
    }

    #[test]
    fn capped_and_clustered_collections_lose_documents_too() {
        let of = |options: Document| expiry(Some(&options), &Indexes::default());
        assert_eq!(of(doc! { "capped": true, "size": 4096 }), Some(Expiry::Capped));
        assert_eq!(of(doc! { "clusteredIndex": {}, "expireAfterSeconds": 60 }), Some(Expiry::Clustered));
        assert_eq!(of(doc! { "capped": false, "validator": {} }), None);
        let indexes = Indexes { ttl: Some("old".into()), ..Indexes::default() };
        assert_eq!(expiry(None, &indexes), Some(Expiry::TtlIndex("old".into())));
    }
}
