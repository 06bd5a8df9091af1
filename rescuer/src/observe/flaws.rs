//! The problems of the collections of a stream.

/// Problems of collections: counts for the metrics, and sentences for the status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flaws {
    pub(crate) indexes_missing: usize,
    pub(crate) expiring: usize,
    /// Sentences for the first problems.
    pub(crate) sentences: Vec<String>,
}
