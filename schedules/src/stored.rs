//! The files of the library's `src/stored/` that the schedules need.

#[path = "../../src/stored/memory.rs"]
pub(crate) mod memory;

pub(crate) mod document_ref {
    pub(crate) use document_outbox::DocumentRef;
}

pub(crate) mod entry {
    pub(crate) use document_outbox::internal::Entry;
}

pub(crate) mod filter {
    use serde::Serialize;

    /// Replaces the library's `Filter`; the schedules send no statement that needs a filter.
    #[derive(Debug, Clone, Serialize)]
    pub(crate) struct Filter;
}
