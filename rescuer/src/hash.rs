//! Hashes names, so that a table of very many documents needs only eight bytes for each document's
//! name.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Returns equal hashes for equal values within one process.
pub(crate) fn hash(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
