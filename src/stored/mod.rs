//! What is stored in a document: the entries of its outbox, which of them may be delivered now, and how a document is named.

pub(crate) mod deliverable;
pub(crate) mod document_ref;
pub(crate) mod entry;
pub(crate) mod filter;
pub(crate) mod ids;
pub(crate) mod memory;
