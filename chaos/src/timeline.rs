//! What happened when, on the one clock of the harness.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mongodb::bson::DateTime;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The faults of one run. Clones share it.
#[derive(Clone)]
pub(crate) struct Timeline {
    begun: Instant,
    date: DateTime,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// One fault, from when it took hold until it was healed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) fault: String,
    /// The process, server or thing that it hit.
    pub(crate) target: String,
    /// Seconds since the run began.
    pub(crate) from: f64,
    pub(crate) until: f64,
    /// Whether its effect was seen.
    pub(crate) took: bool,
    /// What was seen.
    pub(crate) evidence: String,
}

impl Timeline {
    pub(crate) fn begin() -> Self {
        Self { begun: Instant::now(), date: DateTime::now(), spans: Arc::default() }
    }

    /// Seconds since the run began.
    pub(crate) fn at(&self, time: Instant) -> f64 {
        time.saturating_duration_since(self.begun).as_secs_f64()
    }

    /// The date at that moment, in milliseconds: the servers have the clock of this machine.
    pub(crate) fn date(&self, time: Instant) -> i64 {
        self.date.timestamp_millis() + (self.at(time) * 1_000.0) as i64
    }

    /// When the run began.
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

/// For how much of this time at least one fault was in force.
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
