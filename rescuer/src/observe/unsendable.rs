//! Lists the documents for which no command can be made. The list is bounded; each document is reported
//! once.

use std::collections::{HashSet, VecDeque};

use document_outbox::DocumentRef;

use crate::hash::hash;

/// The maximum number of remembered documents, at about 16 bytes each.
const REMEMBERED: usize = 10_000;
/// The maximum number of documents that the status names, namely the latest ones.
const NAMED: usize = 20;
/// The maximum length of a document's name in bytes, because an `_id` can be megabytes long.
const LONGEST_NAME: usize = 200;

#[derive(Debug, Default)]
pub(crate) struct Unsendable {
    known: HashSet<u64>,
    latest: VecDeque<String>,
}

impl Unsendable {
    /// Whether the document is new, as far as is remembered.
    pub(crate) fn add(&mut self, document: &DocumentRef, reason: &str) -> bool {
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        if !self.known.insert(hash(&document.map_key())) {
            return false;
        }
        self.latest.truncate(NAMED - 1);
        self.latest.push_front(format!("no command can be made for {}: {reason}", name(document)));
        true
    }

    pub(crate) fn sentences(&self) -> impl Iterator<Item = String> {
        self.latest.iter().cloned()
    }
}

/// The document's name, shortened to fit a log line.
pub(crate) fn name(document: &DocumentRef) -> String {
    let mut name = document.to_string();
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let mut end = LONGEST_NAME;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name.push('…');
    name
}

#[cfg(test)]
mod tests {
    use mongodb::Namespace;

    use super::*;

    fn document(id: impl Into<mongodb::bson::Bson>) -> DocumentRef {
        DocumentRef::by_id(Namespace::new("shop", "orders"), id)
    }

    #[test]
    fn each_document_is_new_once_the_latest_are_named() {
        let mut unsendable = Unsendable::default();
        assert!(unsendable.add(&document(1), "too long"));
        assert!(!unsendable.add(&document(1), "too long"));
        for id in 2..40 {
            unsendable.add(&document(id), "too long");
        }
        let sentences: Vec<String> = unsendable.sentences().collect();
        assert_eq!(sentences.len(), NAMED);
        assert!(sentences[0].contains("no command can be made for shop.orders/39: too long"));
    }

    #[test]
    fn a_name_of_megabytes_is_cut() {
        let name = name(&document("☃".repeat(1_000_000)));
        assert!(name.len() <= LONGEST_NAME + 3 && name.ends_with('…'), "{}", name.len());
    }
}
