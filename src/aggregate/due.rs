//! When a message may be delivered.

use std::time::{Duration, SystemTime};

use mongodb::bson::DateTime;

/// When a message may be delivered.
///
/// A duration, a [`SystemTime`] and a BSON date can be converted to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Due {
    /// As soon as the save has stored the message.
    #[default]
    Now,
    /// Not before this time.
    At(DateTime),
    /// Not before this much time has passed since the save.
    After(Duration),
}

impl From<Duration> for Due {
    fn from(after: Duration) -> Self {
        Self::After(after)
    }
}

impl From<SystemTime> for Due {
    fn from(at: SystemTime) -> Self {
        Self::At(at.into())
    }
}

impl From<DateTime> for Due {
    fn from(at: DateTime) -> Self {
        Self::At(at)
    }
}
