//! The read and write concerns of every operation.

use std::time::Duration;

use mongodb::options::{Acknowledgment, ReadPreference, SelectionCriteria, WriteConcern};

/// How long a write may wait for the majority before its outcome counts as unknown.
pub(crate) const MAJORITY_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the write concern that waits for the majority, with a time limit.
pub(crate) fn majority() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(MAJORITY_TIMEOUT).build()
}

/// Selects the primary for reads and commands, whatever the client's own preference is.
pub(crate) fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}
