//! Of `src/stored/`.

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

    /// No statement is sent.
    #[derive(Debug, Clone, Serialize)]
    pub(crate) struct Filter;
}
