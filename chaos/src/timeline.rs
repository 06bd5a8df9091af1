//! Records when each fault was in force, by the clock of the harness.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mongodb::bson::DateTime;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The faults of one run, with their times. All clones share one list.
#[derive(Clone)]
pub(crate) struct Timeline {
    begun: Instant,
    date: DateTime,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// One strike (blow) of a fault, from its start until its damage was repaired.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) fault: String,
    /// The process, server or collection that the fault hit.
    pub(crate) target: String,
    /// The start and the end of the fault, in seconds since the run began.
    pub(crate) from: f64,
    pub(crate) until: f64,
    /// Whether the harness saw an effect of the fault.
    pub(crate) took: bool,
    /// A description of what the harness saw.
    pub(crate) evidence: String,
}

impl Timeline {
    pub(crate) fn begin() -> Self {
        Self { begun: Instant::now(), date: DateTime::now(), spans: Arc::default() }
    }

    /// Converts a time to seconds since the run began.
    pub(crate) fn at(&self, time: Instant) -> f64 {
        time.saturating_duration_since(self.begun).as_secs_f64()
    }

    /// Converts a time to a date in milliseconds. The result can be compared with dates of the servers, because the servers use
    /// this machine's clock.
    pub(crate) fn date(&self, time: Instant) -> i64 {
        self.date.timestamp_millis() + (self.at(time) * 1_000.0) as i64
    }

    /// Returns the date at which the run began.
    pub(crate) fn begun(&self) -> DateTime {
        self.date
    }

    pub(crate) fn now(&self) -> f64 {
        self.at(Instant::now())
    }

    pub(crate) fn add(&self, span: Span) {
        self.spans.lock().push(span);
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut spans = self.spans.lock().clone();
        spans.sort_by(|one, other| one.from.total_cmp(&other.from));
        spans
    }
}

/// Returns for how long at least one fault was in force. Faults that had no effect are not counted.
pub(crate) fn time_in_force(spans: &[Span]) -> Duration {
    let mut taken: Vec<_> =
        spans.iter().filter(|span| span.took).map(|span| (span.from, span.until)).collect();
    taken.sort_by(|one, other| one.0.total_cmp(&other.0));

    let (mut total, mut covered) = (0.0, 0.0_f64);
    for (from, until) in taken {
        let from = from.max(covered);
        if until > from {
            total += until - from;
            covered = until;
        }
    }
    Duration::from_secs_f64(total)
}
