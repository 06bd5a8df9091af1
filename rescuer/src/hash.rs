//! A hash in the place of a name: memories of very many documents hold eight bytes for each.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Equal for equal values within one process.
pub(crate) fn hash(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
