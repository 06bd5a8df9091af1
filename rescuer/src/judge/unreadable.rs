//! The documents with unreadable elements that were reported, so that each is reported once.

use std::collections::HashSet;

use document_outbox::DocumentRef;

use crate::hash::hash;

/// At about 16 bytes each.
const REMEMBERED: usize = 10_000;

/// A bounded memory: forgetting costs a repeated warning.
#[derive(Debug, Default)]
pub(super) struct Unreadable(HashSet<u64>);

impl Unreadable {
    /// Whether this is the first warning, as far as is remembered.
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
