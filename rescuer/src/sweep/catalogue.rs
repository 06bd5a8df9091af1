//! Reads facts about the watched collections, and reports their problems.

use std::sync::Arc;

use document_outbox::internal::error_codes;
use mongodb::{
    Namespace,
    bson::{Document, doc},
    error::Error,
};
use parking_lot::{Mutex, MutexGuard};

use super::{
    budget::Turns,
    facts::{Facts, Holds, Review},
    index::{self, Index, how_to_make},
};
use crate::{
    halt::Interrupted,
    leadership::term::Term,
    mongo::Mongo,
    observe::{event::RescueEvent, warning::Warning},
};

const UNAUTHORISED: i32 = 13;

/// The known facts about the collections, for one leadership term. Stream, sweep and gauge all record
/// outboxes that they find.
pub(crate) struct Catalogue {
    term: Arc<Term>,
    facts: Mutex<Facts>,
}

impl Catalogue {
    pub(crate) fn new(term: Arc<Term>) -> Self {
        let facts = Facts::new(term.plan.coverage.named());
        Self { term, facts: Mutex::new(facts) }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock()
    }

    pub(crate) fn holds(&self, namespace: &Namespace) -> Holds {
        self.facts().holds(namespace)
    }

    /// The index to use for a collection, as far as is known.
    pub(crate) fn index(&self, namespace: &Namespace) -> Option<Index> {
        self.facts().index(namespace)
    }

    pub(crate) fn has_dead_index(&self, namespace: &Namespace) -> bool {
        self.facts().has_dead_index(namespace)
    }

    /// Lists the collection's indexes unless they are known. Takes a turn of the budget before each query. Reports
    /// a missing index once, and warns about a collection whose documents the server deletes.
    pub(crate) async fn learn(
        &self,
        namespace: &Namespace,
        turns: &mut Turns<'_>,
    ) -> Result<(), Interrupted> {
        if !self.facts().needs_listing(namespace) {
            return Ok(());
        }
        turns.wait().await?;
        let indexes = index::list(&self.term.mongo, namespace).await?;
        self.facts().listed(namespace, indexes);

        if self.holds(namespace) == Holds::Outboxes {
            turns.wait().await?;
            let options = options(&self.term.mongo, namespace).await?;
            self.facts().options(namespace, options.as_ref());
        }
        self.review(namespace);
        Ok(())
    }

    /// Records that a document with the field `outbox` was seen in a collection.
    pub(crate) fn found_outbox(&self, namespace: &Namespace) {
        // This function is called for every document that is read, so usually the collection is already known to
        // have outboxes.
        if self.holds(namespace) == Holds::Outboxes {
            return;
        }
        self.facts().found_outbox(namespace);
        self.review(namespace);
    }

    /// Records that a collection was read to its end, and that no document in the collection has the field
    /// `outbox`.
    pub(crate) fn found_none(&self, namespace: &Namespace) {
        self.facts().found_none(namespace);
    }

    /// Records a count of dead messages.
    pub(crate) fn counted_dead(&self, namespace: &Namespace, dead: u64) {
        self.facts().counted_dead(namespace, dead);
        self.review(namespace);
    }

    /// Records that a position was lost: the stream may have missed outboxes.
    pub(crate) fn doubt(&self) {
        self.facts().doubt();
    }

    /// Records that a collection couldn't be read, so that its indexes are listed again next time.
    pub(crate) fn forget_indexes(&self, namespace: &Namespace) {
        self.facts().forget_indexes(namespace);
    }

    /// Records that the server refuses to use the index.
    pub(crate) fn refuse_index(&self, namespace: &Namespace) {
        self.facts().refuse_index(namespace);
        self.review(namespace);
    }

    /// Forgets collections that no longer exist.
    pub(crate) fn keep_only(&self, namespaces: &[Namespace]) {
        let flaws = {
            let mut facts = self.facts();
            facts.keep_only(namespaces);
            facts.flaws()
        };
        self.term.report.flaws(flaws);
    }

    /// Logs changes in one collection's state, and reports the current problems of all collections.
    fn review(&self, namespace: &Namespace) {
        let Some(Review { is_missed, expiry, flaws }) = self.facts().review(namespace) else {
            return;
        };

        if let Some(flaws) = flaws {
            self.term.report.flaws(flaws);
        }
        if is_missed {
            tracing::warn!(
                namespace = namespace.to_string(),
                "the index for the sweep is missing or still being built, so sweeps of the collection are \
                 slow; if the index is missing, create it with {}",
                how_to_make(&namespace.coll),
            );
            self.term.report.emit(RescueEvent::IndexMissing { namespace: namespace.clone() });
        }
        if let Some(expiry) = expiry {
            self.term.report.warn(Warning::DocumentsExpire { namespace: namespace.clone(), expiry });
        }
    }
}

/// The options of a collection; `None` if the user has no permission to list them.
async fn options(mongo: &Mongo, namespace: &Namespace) -> Result<Option<Document>, Error> {
    let command = doc! { "listCollections": 1, "filter": { "name": &namespace.coll } };
    let mut cursor = match mongo.database(&namespace.db).run_cursor_command(command).await {
        Err(error) if error_codes::code(&error) == Some(UNAUTHORISED) => return Ok(None),
        cursor => cursor?,
    };
    if !cursor.advance().await? {
        return Ok(None);
    }
    let listed: Document = cursor.deserialize_current()?;
    Ok(listed.get_document("options").ok().cloned())
}
