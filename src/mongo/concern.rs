//! The concerns that every read and write has.

use std::time::Duration;

use mongodb::options::{Acknowledgment, ReadPreference, SelectionCriteria, WriteConcern};

/// How long a write may wait for the majority before its outcome counts as unknown.
pub(crate) const MAJORITY_TIMEOUT: Duration = Duration::from_secs(10);

/// Acknowledged by the majority, or an error in bounded time.
pub(crate) fn majority() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(MAJORITY_TIMEOUT).build()
}

/// Reads and commands go to the primary, whatever the client's own preference.
pub(crate) fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}
