//! The stored form: how a document's outbox is read, which of its entries may be delivered now, and how a document is
//! identified.

pub(crate) mod deliverable;
pub(crate) mod document_ref;
pub(crate) mod entry;
pub(crate) mod filter;
pub(crate) mod free;
pub(crate) mod ids;
pub(crate) mod memory;
