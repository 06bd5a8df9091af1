//! The result of a measurement: any error ends the run.

/// What can go wrong.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Failure>;
