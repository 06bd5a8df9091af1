//! What is known of the watched collections: whether one holds outboxes at all, by which index it is swept, and whether the
//! server deletes its documents by itself.
//!
//! # Collections without an outbox
//! A pattern such as `shop.*` also means sessions and logs, which never held an outbox. Such a collection must cost nothing
//! and alert nobody. So one that lacks the index is read once, slice by slice. If no document in it has the field `outbox`, it
//! is left alone until the change stream shows one that has, or a position is lost, after which nobody can say what the
//! stream would have shown. A collection that `watch` names is taken to hold outboxes.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::{Duration, Instant},
};

use mongodb::{
    Namespace,
    bson::{Document, doc},
    error::Error,
};

use document_outbox::internal::error_codes;

use crate::{
    Warning,
    leadership::term::Context,
    observe::event::RescueEvent,
    sweep::budget::Turns,
    sweep::index::{self, Index, Indexes, how_to_make},
};

/// After this long a collection without the index is looked at again.
const MISSING_AGAIN: Duration = Duration::from_secs(60);
/// After this long one that has it is, for an index that has the server delete documents. With many collections it takes
/// longer, so that no more than one a second is listed.
const PRESENT_AGAIN: Duration = Duration::from_secs(300);

/// The status names no more flaws than these.
const MOST_SENTENCES: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    /// What `watch` names one by one.
    named: HashSet<Namespace>,
    collections: HashMap<Namespace, Known>,
}

/// What is known of one collection.
#[derive(Debug, Clone, Default)]
struct Known {
    holds: Holds,
    /// When its indexes were listed.
    listed: Option<Instant>,
    indexes: Indexes,
    expiry: Option<Expiry>,
    /// What was last reported of it.
    reported: Flaw,
    /// Dead messages were found in it.
    has_dead: bool,
}

/// Whether a collection has documents with an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Holds {
    /// It was not yet read to its end.
    #[default]
    Unsure,
    /// At least one was seen, or there is an index for them.
    Outboxes,
    /// It was read to its end without one.
    Nothing,
}

/// How the server deletes documents by itself, whatever is in their outboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expiry {
    /// By an index with `expireAfterSeconds`, of this name.
    TtlIndex(String),
    /// By `expireAfterSeconds` of a clustered collection.
    Clustered,
    /// The oldest documents of a capped collection give way to new ones.
    Capped,
}

/// What is wrong with one collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Flaw {
    lacks_due: bool,
    lacks_dead: bool,
    expiry: Option<Expiry>,
}

/// What all collections of a stream amount to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flaws {
    pub(crate) indexes_missing: usize,
    pub(crate) expiring: usize,
    /// In sentences.
    pub(crate) sentences: Vec<String>,
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TtlIndex(name) => write!(f, "its TTL index {name:?}"),
            Self::Clustered => f.write_str("its expireAfterSeconds"),
            Self::Capped => f.write_str("being capped"),
        }
    }
}

impl Catalogue {
    pub(crate) fn new(named: Vec<Namespace>) -> Self {
        Self { named: named.into_iter().collect(), collections: HashMap::new() }
    }

    pub(crate) fn holds(&self, namespace: &Namespace) -> Holds {
        match self.collections.get(namespace) {
            Some(known) if known.holds != Holds::Unsure => known.holds,
            _ if self.named.contains(namespace) => Holds::Outboxes,
            Some(known) => known.holds,
            None => Holds::Unsure,
        }
    }

    /// The index to go by, as far as is known.
    pub(crate) fn index(&self, namespace: &Namespace) -> Option<Index> {
        self.collections.get(namespace)?.indexes.due.clone()
    }

    pub(crate) fn has_dead_index(&self, namespace: &Namespace) -> bool {
        self.collections.get(namespace).is_some_and(|known| known.indexes.dead)
    }

    fn needs_listing(&self, namespace: &Namespace) -> bool {
        let Some(Known { listed: Some(listed), indexes, .. }) = self.collections.get(namespace) else {
            return true;
        };
        if self.holds(namespace) == Holds::Nothing {
            return false;
        }
        let many = Duration::from_secs(self.collections.len() as u64);
        let again = if indexes.due.is_some() { PRESENT_AGAIN.max(many) } else { MISSING_AGAIN };
        listed.elapsed() >= again
    }

    /// A document with the field `outbox` was seen.
    fn found_outbox(&mut self, namespace: &Namespace) {
        let known = self.collections.entry(namespace.clone()).or_default();
        if known.holds == Holds::Nothing {
            // The index may have been made since.
            known.listed = None;
        }
        known.holds = Holds::Outboxes;
    }

    /// The collection was read to its end, and no document of it has the field `outbox`.
    pub(crate) fn found_none(&mut self, namespace: &Namespace) {
        let named = self.named.contains(namespace);
        let known = self.collections.entry(namespace.clone()).or_default();
        if known.holds == Holds::Unsure && !named {
            known.holds = Holds::Nothing;
        }
    }

    /// A position was lost: nobody can say what the stream would have shown.
    pub(crate) fn doubt(&mut self) {
        for known in self.collections.values_mut() {
            if known.holds == Holds::Nothing {
                known.holds = Holds::Unsure;
            }
        }
    }

    /// List its indexes the next time.
    pub(crate) fn forget_indexes(&mut self, namespace: &Namespace) {
        if let Some(known) = self.collections.get_mut(namespace) {
            // One that is known to be missing was announced, and is looked at again in time.
            if known.indexes.due.is_some() {
                known.listed = None;
            }
        }
    }

    /// The index is listed and cannot be used, as while it is being built.
    fn refuse_index(&mut self, namespace: &Namespace) {
        let known = self.collections.entry(namespace.clone()).or_default();
        known.indexes.due = None;
        known.holds = Holds::Outboxes;
        known.listed = Some(Instant::now());
    }

    pub(crate) fn keep_only(&mut self, namespaces: &[Namespace]) {
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

    fn flaws(&self) -> Flaws {
        let mut flaws = Flaws::default();
        for namespace in self.collections.keys() {
            let flaw = self.flaw(namespace);
            if flaw.lacks_due {
                flaws.indexes_missing += 1;
                flaws.sentences.push(format!("{namespace} lacks the index on outbox.available_at"));
            }
            if flaw.lacks_dead {
                flaws.indexes_missing += 1;
                flaws
                    .sentences
                    .push(format!("{namespace} has dead messages and lacks the index on outbox.dead_at"));
            }
            if let Some(expiry) = &flaw.expiry {
                flaws.expiring += 1;
                flaws
                    .sentences
                    .push(format!("{namespace} loses documents by {expiry}, whatever is in their outboxes"));
            }
        }
        flaws.sentences.sort();
        flaws.sentences.truncate(MOST_SENTENCES);
        flaws
    }
}

/// Lists the collection's indexes unless they are known, waiting for its turn before each query. Announces a missing index
/// once, and warns of a collection whose documents the server deletes.
pub(crate) async fn learn(
    context: &Context,
    namespace: &Namespace,
    turns: &mut Turns<'_>,
) -> Result<(), Error> {
    if !context.catalogue().needs_listing(namespace) {
        return Ok(());
    }
    turns.wait(context).await;
    let indexes = index::list(context, namespace).await?;
    let holds = {
        let mut catalogue = context.catalogue();
        let known = catalogue.collections.entry(namespace.clone()).or_default();
        if indexes.is_of_outboxes() {
            known.holds = Holds::Outboxes;
        }
        (known.indexes, known.listed) = (indexes, Some(Instant::now()));
        catalogue.holds(namespace)
    };
    if holds == Holds::Outboxes {
        turns.wait(context).await;
        let options = options(context, namespace).await?;
        let mut catalogue = context.catalogue();
        if let Some(known) = catalogue.collections.get_mut(namespace) {
            known.expiry = expiry(options.as_ref(), &known.indexes);
        }
    }
    review(context, namespace);
    Ok(())
}

/// A document with the field `outbox` was seen in a collection.
pub(crate) fn found_outbox(context: &Context, namespace: &Namespace) {
    if context.catalogue().holds(namespace) == Holds::Outboxes {
        return;
    }
    context.catalogue().found_outbox(namespace);
    review(context, namespace);
}

/// Dead messages were counted, or none was.
pub(crate) fn found_dead(context: &Context, namespace: &Namespace, has_dead: bool) {
    {
        let mut catalogue = context.catalogue();
        let Some(known) = catalogue.collections.get_mut(namespace) else {
            return;
        };
        if known.has_dead == has_dead {
            return;
        }
        known.has_dead = has_dead;
    }
    review(context, namespace);
}

/// The server refuses to go by the index.
pub(crate) fn refuse_index(context: &Context, namespace: &Namespace) {
    context.catalogue().refuse_index(namespace);
    review(context, namespace);
}

/// Forgets collections that are gone.
pub(crate) fn keep_only(context: &Context, namespaces: &[Namespace]) {
    context.catalogue().keep_only(namespaces);
    let flaws = context.catalogue().flaws();
    context.report.flaws(flaws);
}

/// Announces what is new about a collection, and reports what all of them amount to.
fn review(context: &Context, namespace: &Namespace) {
    let (flaw, is_missed, flaws) = {
        let mut catalogue = context.catalogue();
        let flaw = catalogue.flaw(namespace);
        let Some(known) = catalogue.collections.get_mut(namespace) else {
            return;
        };
        let before = std::mem::replace(&mut known.reported, flaw.clone());
        // Counted over all collections, so not for each of thousands that have nothing new.
        let flaws = (before != flaw).then(|| catalogue.flaws());
        let is_missed = flaw.lacks_due && !before.lacks_due;
        (flaw, is_missed, flaws)
    };
    if let Some(flaws) = flaws {
        context.report.flaws(flaws);
    }
    if is_missed {
        tracing::warn!(
            namespace = namespace.to_string(),
            "the index for the sweep is missing or still being built, so the collection is read from end to end, slowly; \
             if it is missing, create it with {}",
            how_to_make(&namespace.coll),
        );
        context.report.emit(RescueEvent::IndexMissing { namespace: namespace.clone() });
    }
    if let Some(expiry) = flaw.expiry {
        context.report.warn(Warning::DocumentsExpire { namespace: namespace.clone(), expiry });
    }
}

/// The options of a collection; none where this user may not list them.
async fn options(context: &Context, namespace: &Namespace) -> Result<Option<Document>, Error> {
    const UNAUTHORIZED: i32 = 13;
    let command = doc! { "listCollections": 1, "filter": { "name": &namespace.coll } };
    let database = context.client.database(&namespace.db);
    let mut cursor = match database.run_cursor_command(command).await {
        Ok(cursor) => cursor,
        Err(error) if error_codes::code(&error) == Some(UNAUTHORIZED) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !cursor.advance().await? {
        return Ok(None);
    }
    let listed: Document = cursor.deserialize_current()?;
    Ok(listed.get_document("options").ok().cloned())
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
    use super::*;

    fn orders() -> Namespace {
        Namespace::new("shop", "orders")
    }

    fn listed(catalogue: &mut Catalogue, indexes: Indexes) {
        let known = catalogue.collections.entry(orders()).or_default();
        (known.indexes, known.listed) = (indexes, Some(Instant::now()));
    }

    #[test]
    fn a_collection_without_outboxes_lacks_nothing() {
        let mut catalogue = Catalogue::new(Vec::new());
        assert!(catalogue.needs_listing(&orders()));
        listed(&mut catalogue, Indexes::default());
        assert_eq!(catalogue.flaws(), Flaws::default(), "unsure");
        catalogue.found_none(&orders());
        assert_eq!((catalogue.holds(&orders()), catalogue.flaws()), (Holds::Nothing, Flaws::default()));
        catalogue.found_outbox(&orders());
        assert!(catalogue.needs_listing(&orders()), "an index may have been made since");
        listed(&mut catalogue, Indexes::default());
        assert_eq!(catalogue.flaws().indexes_missing, 1);
    }

    #[test]
    fn a_named_collection_is_taken_to_hold_outboxes() {
        let mut catalogue = Catalogue::new(vec![orders()]);
        listed(&mut catalogue, Indexes::default());
        catalogue.found_none(&orders());
        assert_eq!((catalogue.holds(&orders()), catalogue.flaws().indexes_missing), (Holds::Outboxes, 1));
    }

    #[test]
    fn a_lost_position_makes_unsure_what_was_found_empty() {
        let mut catalogue = Catalogue::new(Vec::new());
        listed(&mut catalogue, Indexes::default());
        catalogue.found_none(&orders());
        catalogue.doubt();
        assert_eq!(catalogue.holds(&orders()), Holds::Unsure);
    }

    #[test]
    fn the_index_for_dead_messages_is_missed_where_there_are_any() {
        let mut catalogue = Catalogue::new(vec![orders()]);
        let due = Some(Index { name: "i".into(), partial: true });
        listed(&mut catalogue, Indexes { due, dead: false, ttl: None });
        assert_eq!(catalogue.flaws().indexes_missing, 0);
        catalogue.collections.get_mut(&orders()).unwrap().has_dead = true;
        assert_eq!(catalogue.flaws().indexes_missing, 1);
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
