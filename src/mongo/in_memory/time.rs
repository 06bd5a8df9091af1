//! A time that is advanced by hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use mongodb::bson::DateTime;

/// A time that only changes when it is advanced. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ManualTime(Arc<AtomicI64>);

impl ManualTime {
    pub(crate) fn starting_at(start: DateTime) -> Self {
        Self(Arc::new(AtomicI64::new(start.timestamp_millis())))
    }

    pub(crate) fn now(&self) -> DateTime {
        DateTime::from_millis(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        // The closure always returns a time, so the update always succeeds.
        let _before =
            self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(now.saturating_add(by)));
    }
}
