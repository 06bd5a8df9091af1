//! Stored fields of an aggregate that its struct doesn't know, so that setting a field doesn't drop them.
//!
//! A save sets whole top-level fields. Unknown top-level fields need not be remembered, because no save
//! touches them; those inside a field that is set are restored, in sub-documents at their path, in arrays
//! with the element that they belong to.
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

/// An unknown part of a stored value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Unknown {
    /// A field that the struct doesn't have.
    Field(Bson),
    /// In a sub-document, by the names of its fields.
    Fields(BTreeMap<String, Unknown>),
    /// In an array, by the place of the element in the array as the struct writes it.
    Elements {
        elements: BTreeMap<usize, Unknown>,
        /// How many elements the struct has left out.
        left_out: usize,
    },
    /// It can't be determined, because some bytes there aren't BSON that can be written back, such as text
    /// that isn't UTF-8.
    Unreadable,
}
