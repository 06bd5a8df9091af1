//! Remembers documents that were found with an empty outbox. If such a document changed many times within
//! a backlog, it is read once instead of once in every page.
//!
//! Forgetting a document only costs another read, so the number of remembered documents is bounded. If two
//! documents have equal hashes, each document can hide changes of the other document from the stream, but not
//! from the sweep.

use std::collections::HashMap;

use mongodb::bson::Timestamp;

use super::change::Filled;
use crate::hash::hash;

/// The maximum number of documents, at about 40 bytes each.
const MOST_SETTLED: usize = 100_000;

/// Maps the hash of each document to a cluster time: a read that saw all changes up to this time found the
/// document's outbox empty, so these changes need no second read.
#[derive(Debug, Default)]
pub(super) struct Settled(HashMap<u64, Timestamp>);

impl Settled {
    pub(super) fn covers(&self, key: &[u8], change: &Filled) -> bool {
        match (self.0.get(&hash(&key)), change.mark.cluster_time) {
            (Some(settled), Some(changed)) => changed <= *settled,
            _ => false,
        }
    }

    pub(super) fn note(&mut self, key: &[u8], time: Timestamp) {
        if self.0.len() >= MOST_SETTLED {
            self.0.clear();
        }
        self.0.insert(hash(&key), time);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use document_outbox::DocumentRef;
    use mongodb::{Namespace, bson::DateTime};

    use super::*;
    use crate::stream::position::Mark;

    fn change(id: i32, time: Option<u32>) -> (Vec<u8>, Filled) {
        let document = DocumentRef::by_id(Namespace::new("shop", "orders"), id);
        let cluster_time = time.map(|time| Timestamp { time, increment: 1 });
        let mark = Mark { token: None, cluster_time };
        let (at, read) = (DateTime::from_millis(0), Instant::now());
        (document.map_key(), Filled { document, at, read, mark })
    }

    #[test]
    fn changes_before_a_document_was_empty_are_covered() {
        let mut settled = Settled::default();
        let covers = |settled: &Settled, id, time| {
            let (key, change) = change(id, time);
            settled.covers(&key, &change)
        };
        assert!(!covers(&settled, 1, Some(1)));
        settled.note(&change(1, None).0, Timestamp { time: 7, increment: 1 });
        assert!(covers(&settled, 1, Some(6)) && covers(&settled, 1, Some(7)));
        assert!(!covers(&settled, 1, Some(8)), "it has changed since");
        assert!(!covers(&settled, 1, None), "its time is unknown");
        assert!(!covers(&settled, 2, Some(6)));
    }

    #[test]
    fn the_memory_of_empty_documents_is_bounded() {
        let mut settled = Settled::default();
        for number in 0..3 * MOST_SETTLED {
            settled.note(&number.to_le_bytes(), Timestamp { time: 7, increment: 1 });
        }
        assert!(settled.0.len() <= MOST_SETTLED);
    }
}
