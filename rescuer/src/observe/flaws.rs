//! The problems of all collections of a stream.

/// Counts for the series, sentences for the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flaws {
    pub(crate) indexes_missing: usize,
    pub(crate) expiring: usize,
    /// The first of them, in sentences.
    pub(crate) sentences: Vec<String>,
}
