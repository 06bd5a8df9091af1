//! In place of `src/observe/`.

pub(crate) mod event {
    pub(crate) use document_outbox::Shed;
}

pub(crate) mod health {
    /// Counts nothing.
    #[derive(Debug)]
    pub(crate) struct InFlight;
}
