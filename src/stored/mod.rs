//! The stored form: the entries of a document's outbox, which of them may be delivered now, and the key of a
//! document.

pub(crate) mod deliverable;
pub(crate) mod document_ref;
pub(crate) mod entry;
pub(crate) mod filter;
pub(crate) mod ids;
pub(crate) mod memory;
