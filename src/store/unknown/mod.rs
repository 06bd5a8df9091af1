//! Keeps stored fields that the aggregate's struct doesn't know, when a save sets the field that contains them.
//!
//! A save sets whole top-level fields. Unknown top-level fields need no care, because no save touches them. Unknown
//! fields inside a field that is set are restored: a sub-document gets its unknown fields back at their paths, and each
//! recognised array element gets its own unknown fields back.
//!
//! # Flow
//! A load [finds](find) the unknown fields, apart from fields that were [renamed]. A save [carries](carry) the unknown
//! fields over into the fields that it sets. Both a load and a save match the [elements](elements) of arrays.

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
    /// A sub-document with unknown parts, by the names of its fields.
    Fields(BTreeMap<String, Unknown>),
    /// An array with unknown parts, by the index of their element in the array that the struct writes.
    Elements {
        elements: BTreeMap<usize, Unknown>,
        /// Number of elements that the struct has left out.
        left_out: usize,
    },
    /// The unknown parts can't be determined, because the value contains bytes that can't be written back as BSON, such
    /// as invalid UTF-8.
    Unreadable,
}
