//! The series of `docs/metrics.md`, by name.
//!
//! They go through the [`metrics`](facade) facade to the process's recorder. Without a recorder, each costs a
//! branch that is not taken.
//!
//! **Caveat.** Series are registered, at zero, when an [`InlineDispatcher`](crate::InlineDispatcher) or a
//! [`Processor`](crate::dispatch::processor::Processor) is built, with the recorder of that moment. Install
//! yours first.
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
/// The facade, in the version that this library records through.
pub use metrics as facade;

use crate::{
    deliver::Outcome,
    observe::event::{Event, Shed},
    stored::entry::DeadReason,
};

/// A constant for each name, with its unit and meaning for the recorder.
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
    /// Saves, inserts and deletes by their `outcome`.
    describe_counter SAVES = "outbox_saves_total", Count;
    /// Messages that a save has made durable.
    describe_counter MESSAGES_SENT = "outbox_messages_sent_total", Count;
    /// Fields unknown to a struct that a save dropped with array elements it could not recognise.
    describe_counter UNKNOWN_FIELDS_DROPPED = "outbox_unknown_fields_dropped_total", Count;
    /// Deliveries of one message by `path` and `result`; every result except `unavailable` is an attempt.
    describe_counter DELIVERIES = "outbox_deliveries_total", Count;
    /// The time from a message's sending, or its scheduled time, to its confirmed delivery, by `path`.
    describe_histogram DELIVERY_LAG = "outbox_delivery_lag_seconds", Seconds;
    /// Messages that died, by `reason`; each waits for an operator.
    describe_counter DEAD = "outbox_dead_total", Count;
    /// Messages RabbitMQ had no queue for; each is also a `transient` delivery.
    describe_counter UNROUTABLE = "outbox_unroutable_total", Count;
    /// How often outbox elements that are not entries were read.
    describe_counter UNREADABLE = "outbox_unreadable_total", Count;
    /// How often messages were read whose `via` this process cannot serve.
    describe_counter NOT_MINE = "outbox_not_mine_total", Count;
    /// Messages the inline dispatcher left to the rescuer, by `reason`.
    describe_counter SHED = "outbox_shed_total", Count;
    /// Claims that ended while their holder still worked.
    describe_counter CLAIMS_LOST = "outbox_claims_lost_total", Count;
    /// Claimed messages released without an attempt.
    describe_counter RELEASED = "outbox_released_total", Count;
    /// Commands that the inline dispatcher sent so that a worker continues.
    describe_counter HANDED_OFF = "outbox_handed_off_total", Count;
    /// Documents too large for a claim, delivered under a lease.
    describe_counter OVERSIZED = "outbox_oversized_total", Count;
    /// 1 while deliveries wait for the broker, 0 otherwise.
    describe_gauge CIRCUIT_OPEN = "outbox_circuit_open", Count;
    /// Documents being processed now, by `path`.
    describe_gauge IN_FLIGHT = "outbox_in_flight_documents", Count;
}

/// Whose deliveries are meant.
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
    /// Its name as a failure, if nothing was written or that is unknown.
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

/// The series of one processor, registered once, so that recording needs no lookup.
pub(crate) struct Metrics {
    saves: [Counter; 6],
    messages_sent: Counter,
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
    /// Registers every series, at zero.
    pub(crate) fn register(path: DispatchPath) -> Self {
        describe();
        let path = path.as_str();
        let saves = ["applied", "unchanged", "conflict", "gone", "unknown", "refused"];
        let results = ["delivered", "transient", "permanent", "unavailable"];
        let reasons =
            [DeadReason::AttemptsExhausted, DeadReason::Permanent, DeadReason::Crashed, DeadReason::Operator];
        let sheds = [Shed::Full, Shed::Unavailable, Shed::Stopped, Shed::NotFound];

        Self {
            saves: saves.map(|outcome| counter!(SAVES, "outcome" => outcome)),
            messages_sent: counter!(MESSAGES_SENT),
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

    pub(crate) fn unknown_fields_dropped(&self, fields: usize) {
        self.unknown_fields_dropped.increment(count(fields));
    }

    /// Of one message, including quick retries in place.
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

    /// Counts an event; deliveries are counted when they have their result.
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
