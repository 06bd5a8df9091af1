//! The concerns of every read and write that the audit trail relies on.

use std::time::Duration;

use mongodb::{
    Collection,
    bson::Document,
    options::{
        Acknowledgment, CollectionOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern,
    },
};

use crate::Operator;

/// How long a write may wait for the majority before its outcome counts as unknown, as in the library.
const MAJORITY_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the majority, with a time limit: without a majority, an act would otherwise never end.
pub(super) fn majority() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(MAJORITY_TIMEOUT).build()
}

/// The primary, whatever the client's own preference is.
pub(super) fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::Primary)
}

impl Operator {
    /// A collection of the state database that is read as evidence: from the primary, as the majority has acknowledged
    /// it.
    pub(super) fn evidence(&self, name: &str) -> Collection<Document> {
        let options = CollectionOptions::builder()
            .selection_criteria(primary())
            .read_concern(ReadConcern::majority())
            .write_concern(majority())
            .build();
        self.state_database().collection_with_options(name, options)
    }
}
