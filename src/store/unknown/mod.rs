//! What is stored in an aggregate but unknown to its struct, so that setting a field doesn't drop it.
//!
//! A save sets whole top-level fields. Unknown fields beside them need no memory, because no save touches them; those inside a
//! field that is set are put back, in sub-documents at their path, in arrays with the element that they belong to.
//!
//! # Flow
//! A load [finds](find) what is unknown, apart from fields that were [renamed]; a save [carries](carry) it into the fields
//! that it sets. Both ask which [element](elements) of an array is which.

pub(super) mod carry;
mod elements;
mod find;
pub(super) mod path;
pub(super) mod renamed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use mongodb::bson::Bson;

/// Something unknown inside a stored value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Unknown {
    /// A field that the struct has no place for.
    Field(Bson),
    /// In a sub-document, by the names of its fields.
    Fields(BTreeMap<String, Unknown>),
    /// In an array, by the place of the element in the array as the struct writes it.
    Elements {
        elements: BTreeMap<usize, Unknown>,
        /// How many elements the struct has left out.
        left_out: usize,
    },
    /// It can't be told, because some bytes there aren't BSON that can be written back, such as text that isn't UTF-8.
    Unreadable,
}
