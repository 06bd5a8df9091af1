//! Remembers the documents whose malformed elements were reported, so that each document is
//! reported once.

use std::collections::HashSet;

use document_outbox::DocumentRef;

use crate::hash::hash;

/// The maximum number of remembered documents, at about 16 bytes each.
const REMEMBERED: usize = 10_000;

/// A bounded set of document hashes. Forgetting a document only causes a repeated warning.
#[derive(Debug, Default)]
pub(super) struct Unreadable(HashSet<u64>);

impl Unreadable {
    /// Whether this document has not been reported before, as far as is remembered.
    pub(super) fn is_new(&mut self, document: &DocumentRef) -> bool {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(hash(&document.map_key()))
    }
}

#[cfg(test)]
mod tests {
    use mongodb::Namespace;

    use super::*;

    #[test]
    fn a_document_is_warned_of_once_in_bounded_memory() {
        let mut unreadable = Unreadable::default();
        let of = |id: i64| DocumentRef::by_id(Namespace::new("shop", "orders"), id);
        assert!(unreadable.is_new(&of(1)));
        assert!(!unreadable.is_new(&of(1)));
        for id in 0..3 * i64::try_from(REMEMBERED).unwrap() {
            unreadable.is_new(&of(id));
        }
        assert!(unreadable.0.len() <= REMEMBERED);
    }
}
