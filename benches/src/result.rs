//! The result of a measurement: any error ends the run.

/// Any error of a measurement.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Failure>;
