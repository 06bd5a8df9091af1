//! The metrics that are listed in `docs/metrics.md`.
//!
//! The metrics are recorded through the [`metrics`](facade) facade with the process's recorder. Without a recorder,
//! each metric costs only a branch that is not taken.
//!
//! **Caveat.** Metrics are registered at zero when an [`InlineDispatcher`](crate::InlineDispatcher) or a
//! [`Processor`](crate::dispatch::processor::Processor) is built, with the recorder that is installed at that moment.
//! Install your recorder first.
//!
//! ```
//! use document_outbox::observe::metrics::facade;
//!
//! # fn example(recorder: impl facade::Recorder + Sync + 'static) {
//! facade::set_global_recorder(recorder).ok(); // such as that of metrics-exporter-prometheus; then build the `InlineDispatcher`
//! # }
//! ```

use std::time::Duration;

use facade::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};
/// The facade crate, in the version that this library uses.
pub use metrics as facade;

use crate::{
    aggregate::revision::RevisionOutcome,
    deliver::Outcome,
    observe::event::{Event, Shed},
    stored::entry::DeadReason,
};

/// Defines a constant for each metric name, with the unit and description for the recorder.
macro_rules! series {
    ($(#[doc = $text:literal] $describe:ident $name:ident = $series:literal, $unit:ident;)+) => {
        $(
            #[doc = $text]
            pub const $name: &str = $series;
        )+

        fn describe() {
            $(facade::$describe!($series, Unit::$unit, $text.trim_start());)+
        }
    };
}

series! {
    /// Number of saves, inserts and deletes, by `outcome`.
    describe_counter SAVES = "outbox_saves_total", Count;
    /// Number of messages that saves have made durable.
    describe_counter MESSAGES_SENT = "outbox_messages_sent_total", Count;
    /// Number of stored messages that saves were to cancel, reschedule or replace, by `outcome`.
    describe_counter REVISIONS = "outbox_revisions_total", Count;
    /// Number of fields unknown to their struct that saves dropped because the array element was not recognised.
    describe_counter UNKNOWN_FIELDS_DROPPED = "outbox_unknown_fields_dropped_total", Count;
    /// Number of message deliveries, by `path` and `result`. Every result except `unavailable` counts as an attempt.
    describe_counter DELIVERIES = "outbox_deliveries_total", Count;
    /// Time from sending a message (or from its scheduled time) to its confirmed delivery, by `path`.
    describe_histogram DELIVERY_LAG = "outbox_delivery_lag_seconds", Seconds;
    /// Number of messages that died, by `reason`. Each stays in its document for an operator.
    describe_counter DEAD = "outbox_dead_total", Count;
    /// Number of message deliveries for which RabbitMQ had no queue. Each is also counted as a `transient` delivery.
    describe_counter UNROUTABLE = "outbox_unroutable_total", Count;
    /// Number of malformed outbox elements read.
    describe_counter UNREADABLE = "outbox_unreadable_total", Count;
    /// Number of messages read whose `via` this process cannot serve.
    describe_counter NOT_MINE = "outbox_not_mine_total", Count;
    /// Number of messages that the inline dispatcher left to the rescuer, by `reason`.
    describe_counter SHED = "outbox_shed_total", Count;
    /// Number of claims that ended while their holder was still delivering.
    describe_counter CLAIMS_LOST = "outbox_claims_lost_total", Count;
    /// Number of claimed messages that were released without counting an attempt.
    describe_counter RELEASED = "outbox_released_total", Count;
    /// Number of commands that the inline dispatcher sent to hand a document to a worker.
    describe_counter HANDED_OFF = "outbox_handed_off_total", Count;
    /// Number of deliveries under a lease because the document was too large for a claim.
    describe_counter OVERSIZED = "outbox_oversized_total", Count;
    /// 1 while deliveries wait for the broker, 0 otherwise.
    describe_gauge CIRCUIT_OPEN = "outbox_circuit_open", Count;
    /// Number of documents being processed now, by `path`.
    describe_gauge IN_FLIGHT = "outbox_in_flight_documents", Count;
}

/// The component that made a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum DispatchPath {
    Inline,
    Dispatcher,
}

impl DispatchPath {
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The outcome of a save, an insert or a delete.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SaveOutcome {
    Applied,
    Unchanged,
    Conflict,
    Gone,
    Unknown,
    Refused,
}

impl SaveOutcome {
    /// Returns the error type, if nothing was written or the outcome is unknown.
    pub(crate) fn error_type(self) -> Option<&'static str> {
        match self {
            Self::Applied | Self::Unchanged => None,
            Self::Conflict => Some("conflict"),
            Self::Gone => Some("gone"),
            Self::Unknown => Some("unknown"),
            Self::Refused => Some("refused"),
        }
    }
}

/// The metrics of one processor, which are registered once, so that recording needs no lookup.
pub(crate) struct Metrics {
    saves: [Counter; 6],
    messages_sent: Counter,
    revisions: [Counter; 7],
    unknown_fields_dropped: Counter,
    deliveries: [Counter; 4],
    delivery_lag: Histogram,
    dead: [Counter; 4],
    unroutable: Counter,
    unreadable: Counter,
    not_mine: Counter,
    shed: [Counter; 4],
    pub(crate) claims_lost: Counter,
    released: Counter,
    handed_off: Counter,
    oversized: Counter,
    pub(crate) circuit_open: Gauge,
    pub(crate) in_flight: Gauge,
}

impl Metrics {
    /// Registers every metric at zero.
    pub(crate) fn register(path: DispatchPath) -> Self {
        describe();
        let path = path.as_str();
        let saves = ["applied", "unchanged", "conflict", "gone", "unknown", "refused"];
        let results = ["delivered", "transient", "permanent", "unavailable"];
        let reasons =
            [DeadReason::AttemptsExhausted, DeadReason::Permanent, DeadReason::Crashed, DeadReason::Operator];
        let revisions = [
            RevisionOutcome::Cancelled,
            RevisionOutcome::Rescheduled,
            RevisionOutcome::Replaced,
            RevisionOutcome::TooLate,
            RevisionOutcome::Dead,
            RevisionOutcome::NotThere,
            RevisionOutcome::Unreadable,
        ];
        let sheds = [Shed::Full, Shed::Unavailable, Shed::Stopped, Shed::NotFound];

        Self {
            saves: saves.map(|outcome| counter!(SAVES, "outcome" => outcome)),
            messages_sent: counter!(MESSAGES_SENT),
            revisions: revisions.map(|outcome| counter!(REVISIONS, "outcome" => outcome.as_str())),
            unknown_fields_dropped: counter!(UNKNOWN_FIELDS_DROPPED),
            deliveries: results.map(|result| counter!(DELIVERIES, "path" => path, "result" => result)),
            delivery_lag: histogram!(DELIVERY_LAG, "path" => path),
            dead: reasons.map(|reason| counter!(DEAD, "reason" => reason.as_str())),
            unroutable: counter!(UNROUTABLE),
            unreadable: counter!(UNREADABLE),
            not_mine: counter!(NOT_MINE),
            shed: sheds.map(|reason| counter!(SHED, "reason" => reason.as_str())),
            claims_lost: counter!(CLAIMS_LOST),
            released: counter!(RELEASED),
            handed_off: counter!(HANDED_OFF),
            oversized: counter!(OVERSIZED),
            circuit_open: gauge!(CIRCUIT_OPEN),
            in_flight: gauge!(IN_FLIGHT, "path" => path),
        }
    }

    pub(crate) fn save(&self, outcome: SaveOutcome) {
        self.saves[outcome as usize].increment(1);
    }

    pub(crate) fn sent(&self, messages: usize) {
        self.messages_sent.increment(count(messages));
    }

    pub(crate) fn revised(&self, outcome: RevisionOutcome) {
        self.revisions[outcome as usize].increment(1);
    }

    pub(crate) fn unknown_fields_dropped(&self, fields: usize) {
        self.unknown_fields_dropped.increment(count(fields));
    }

    /// Counts the delivery of one message. Quick retries are included in the same delivery.
    pub(crate) fn delivery(&self, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Delivered => 0,
            Outcome::Transient(_) | Outcome::Unroutable(_) => 1,
            Outcome::Permanent(_) => 2,
            Outcome::Unavailable(_) => 3,
        };
        self.deliveries[result].increment(1);
        if matches!(outcome, Outcome::Unroutable(_)) {
            self.unroutable.increment(1);
        }
    }

    pub(crate) fn lag(&self, lag: Duration) {
        self.delivery_lag.record(lag);
    }

    /// Counts an event. Deliveries are not counted here, because they are counted when their result is known.
    pub(crate) fn record(&self, event: &Event) {
        match event {
            Event::Delivered { .. } | Event::Failed { .. } => {}
            Event::Died { reason, .. } => self.dead[*reason as usize].increment(1),
            Event::Released { count: messages, .. } => self.released.increment(count(*messages)),
            Event::ClaimLost { .. } => self.claims_lost.increment(1),
            Event::Unreadable { count: elements, .. } => self.unreadable.increment(count(*elements)),
            Event::NotMine { count: messages, .. } => self.not_mine.increment(count(*messages)),
            Event::Skipped { count: messages, reason, .. } => {
                self.shed[*reason as usize].increment(count(*messages));
            }
            Event::HandedOff { .. } => self.handed_off.increment(1),
            Event::Oversized { .. } => self.oversized.increment(1),
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
