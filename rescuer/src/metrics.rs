//! The rescuer's series: their names, what they count, and what is recorded when.
//!
//! They are recorded through the `metrics` facade, in the recorder that is installed when a [`Rescuer`](crate::Rescuer) is
//! made; without one they cost next to nothing. Each exists from then on, at zero.

use std::{collections::HashMap, sync::Arc, time::Duration};

use document_outbox::command::Reason;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use mongodb::Namespace;

use crate::{ReopenCause, RescueEvent};

const COMMANDS_QUEUED: &str = "outbox_commands_queued_total";
const COMMANDS_READY: &str = "outbox_commands_ready";
const COMMANDS_FAILED: &str = "outbox_commands_failed_total";
const RESCUE_LAG: &str = "outbox_rescue_lag_seconds";
const STREAM_EVENTS: &str = "outbox_stream_events_total";
const STREAM_LAG: &str = "outbox_stream_lag_seconds";
const TOKEN_AGE: &str = "outbox_stream_token_age_seconds";
const HEADROOM: &str = "outbox_oplog_headroom_seconds";
const REOPENS: &str = "outbox_stream_reopens_total";
const POSITIONS_LOST: &str = "outbox_positions_lost_total";
const TROUBLES: &str = "outbox_stream_troubles";
const LEASE_OWNER: &str = "outbox_lease_owner";
const LEASE_CHANGES: &str = "outbox_lease_changes_total";
const SWEEPS: &str = "outbox_sweeps_total";
const SWEEP_SECONDS: &str = "outbox_sweep_seconds";
const PENDING: &str = "outbox_pending_documents";
const DEAD: &str = "outbox_dead_messages";
const OLDEST: &str = "outbox_oldest_pending_age_seconds";
const INDEXES_MISSING: &str = "outbox_indexes_missing";

fn describe() {
    describe_counter!(COMMANDS_QUEUED, "Commands confirmed by RabbitMQ.");
    describe_gauge!(COMMANDS_READY, "1 where this process can send commands, 0 where it can't.");
    describe_counter!(
        COMMANDS_FAILED,
        "Commands that could not be handed to RabbitMQ; they are tried again."
    );
    describe_histogram!(
        RESCUE_LAG,
        Unit::Seconds,
        "From when a document was due for rescue to its confirmed command."
    );
    describe_counter!(STREAM_EVENTS, "Changes read.");
    describe_gauge!(
        STREAM_LAG,
        Unit::Seconds,
        "How much later than its delay the stream is read; 0 is on time."
    );
    describe_gauge!(TOKEN_AGE, Unit::Seconds, "Age of the last saved position.");
    describe_gauge!(
        HEADROOM,
        Unit::Seconds,
        "How far the oplog reaches back beyond the saved position; NaN where that isn't known."
    );
    describe_counter!(REOPENS, "How often the change stream was opened again.");
    describe_counter!(POSITIONS_LOST, "Positions that could not be gone on from.");
    describe_gauge!(TROUBLES, "What of the stream doesn't work now and is tried again, see /status.");
    describe_gauge!(LEASE_OWNER, "1 where this process owns the stream, 0 where it stands by.");
    describe_counter!(LEASE_CHANGES, "How often this process became the owner.");
    describe_counter!(SWEEPS, "Rounds of the sweep.");
    describe_histogram!(SWEEP_SECONDS, Unit::Seconds, "How long a round of the sweep took.");
    describe_gauge!(PENDING, "Documents with messages still to be delivered or dead, at the last look.");
    describe_gauge!(DEAD, "Dead messages, at the last look.");
    describe_gauge!(OLDEST, Unit::Seconds, "Age of the oldest message that is due and not delivered.");
    describe_gauge!(INDEXES_MISSING, "Collections without the index that makes their sweep cheap.");
}

/// What the last look at a collection found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) pending: u64,
    pub(crate) dead: u64,
    pub(crate) oldest: Duration,
}

/// The series of one stream.
pub(crate) struct Metrics {
    queued: ByReason<Counter>,
    failed: Counter,
    ready: Gauge,
    rescue_lag: ByReason<Histogram>,
    pub(crate) events: Counter,
    lag: Gauge,
    token_age: Gauge,
    headroom: Gauge,
    reopens: HashMap<&'static str, Counter>,
    positions_lost: Counter,
    troubles: Gauge,
    lease_owner: Gauge,
    lease_changes: Counter,
    sweeps_done: Counter,
    sweeps_cut_short: Counter,
    sweep_seconds: Histogram,
    /// Of all streams together: each adds and takes away its own.
    indexes_missing: Gauge,
}

struct ByReason<T> {
    stream: T,
    sweep: T,
}

impl<T> ByReason<T> {
    fn new(of: impl Fn(&'static str) -> T) -> Self {
        Self { stream: of("stream"), sweep: of("sweep") }
    }

    fn of(&self, reason: Reason) -> &T {
        match reason {
            Reason::Stream => &self.stream,
            _ => &self.sweep,
        }
    }
}

const CAUSES: [&str; 4] = ["error", "held", "invalidated", "ended"];

fn cause(cause: &ReopenCause) -> &'static str {
    match cause {
        ReopenCause::Error(_) => CAUSES[0],
        ReopenCause::Held => CAUSES[1],
        ReopenCause::Invalidated => CAUSES[2],
        ReopenCause::Ended => CAUSES[3],
    }
}

impl Metrics {
    /// Makes the series of a stream exist, and those of the collections that are named.
    pub(crate) fn new<'a>(stream: &str, collections: impl Iterator<Item = &'a Namespace>) -> Self {
        describe();
        let name: Arc<str> = stream.into();
        let stream = || name.clone();
        let reopens = |cause| (cause, counter!(REOPENS, "stream" => stream(), "cause" => cause));
        let metrics = Self {
            queued: ByReason::new(|reason| counter!(COMMANDS_QUEUED, "reason" => reason)),
            failed: counter!(COMMANDS_FAILED),
            ready: gauge!(COMMANDS_READY),
            rescue_lag: ByReason::new(|reason| histogram!(RESCUE_LAG, "reason" => reason)),
            events: counter!(STREAM_EVENTS, "stream" => stream()),
            lag: gauge!(STREAM_LAG, "stream" => stream()),
            token_age: gauge!(TOKEN_AGE, "stream" => stream()),
            headroom: gauge!(HEADROOM, "stream" => stream()),
            reopens: CAUSES.into_iter().map(reopens).collect(),
            positions_lost: counter!(POSITIONS_LOST, "stream" => stream()),
            troubles: gauge!(TROUBLES, "stream" => stream()),
            lease_owner: gauge!(LEASE_OWNER, "stream" => stream()),
            lease_changes: counter!(LEASE_CHANGES, "stream" => stream()),
            sweeps_done: counter!(SWEEPS, "stream" => stream(), "result" => "done"),
            sweeps_cut_short: counter!(SWEEPS, "stream" => stream(), "result" => "cut_short"),
            sweep_seconds: histogram!(SWEEP_SECONDS, "stream" => stream()),
            indexes_missing: gauge!(INDEXES_MISSING),
        };
        metrics.indexes_missing.increment(0.0);
        collections.for_each(|collection| metrics.totals(collection, Totals::default()));
        metrics.able(false);
        metrics.disown();
        metrics
    }

    /// What this process says of a stream that it doesn't own.
    pub(crate) fn disown(&self) {
        self.lease_owner.set(0.0);
        self.troubles.set(0.0);
        self.lag.set(0.0);
        self.token_age.set(0.0);
        self.headroom.set(0.0);
    }

    pub(crate) fn record(&self, event: &RescueEvent) {
        match event {
            RescueEvent::Owned { .. } => {
                self.lease_owner.set(1.0);
                self.lease_changes.increment(1);
            }
            RescueEvent::Queued { reason, .. } => self.queued.of(*reason).increment(1),
            RescueEvent::CommandsFailed { count, .. } => self.failed.increment(*count as u64),
            RescueEvent::Unsendable { .. } => self.failed.increment(1),
            RescueEvent::Reopened { cause: why } => {
                self.reopens.get(cause(why)).iter().for_each(|counter| counter.increment(1));
            }
            RescueEvent::PositionLost { .. } => self.positions_lost.increment(1),
            RescueEvent::SweepDone { cut_short, took, .. } => {
                let sweeps = if *cut_short { &self.sweeps_cut_short } else { &self.sweeps_done };
                sweeps.increment(1);
                self.sweep_seconds.record(took.as_secs_f64());
            }
            _ => {}
        }
    }

    pub(crate) fn rescue_lag(&self, reason: Reason, lag: Duration) {
        self.rescue_lag.of(reason).record(lag.as_secs_f64());
    }

    pub(crate) fn lag(&self, lag: Duration) {
        self.lag.set(lag.as_secs_f64());
    }

    pub(crate) fn token_age(&self, age: Duration) {
        self.token_age.set(age.as_secs_f64());
    }

    pub(crate) fn able(&self, is_able: bool) {
        self.ready.set(if is_able { 1.0 } else { 0.0 });
    }

    pub(crate) fn troubles(&self, count: usize) {
        self.troubles.set(count as f64);
    }

    pub(crate) fn headroom(&self, seconds: Option<f64>) {
        self.headroom.set(seconds.unwrap_or(f64::NAN));
    }

    /// How many more collections lack their index than before.
    pub(crate) fn indexes_missing(&self, more: f64) {
        self.indexes_missing.increment(more);
    }

    pub(crate) fn totals(&self, namespace: &Namespace, totals: Totals) {
        let collection: Arc<str> = namespace.to_string().into();
        gauge!(PENDING, "collection" => collection.clone()).set(totals.pending as f64);
        gauge!(DEAD, "collection" => collection.clone()).set(totals.dead as f64);
        gauge!(OLDEST, "collection" => collection).set(totals.oldest.as_secs_f64());
    }
}
