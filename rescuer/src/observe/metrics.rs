//! The rescuer's metrics: their names, their meanings, and when they are recorded.
//!
//! The metrics are recorded through the `metrics` facade, in the recorder that is installed when a
//! [`Rescuer`](crate::Rescuer) is made. Without a recorder they cost almost nothing. From the
//! moment when the rescuer is made, each series exists, with the initial value zero.

use std::{collections::HashMap, sync::Arc, time::Duration};

use document_outbox::command::Reason;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use mongodb::Namespace;
use outbox_service::NamespacePattern;

use super::{
    event::{ReopenCause, RescueEvent},
    flaws::Flaws,
};
use crate::{commands::Ability, watch_plan::Coverage};

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
const EXPIRING: &str = "outbox_expiring_collections";
const UNWATCHABLE: &str = "outbox_unwatchable";
const UNREADABLE: &str = "outbox_unreadable_total";
const UNSENDABLE: &str = "outbox_unsendable_total";
const MESSAGES: &str = "outbox_messages";
const UNDELIVERED_AGE: &str = "outbox_oldest_undelivered_age_seconds";
const FULLEST: &str = "outbox_fullest_outbox_entries";

fn describe() {
    // Commands.
    describe_counter!(COMMANDS_QUEUED, "Number of commands confirmed by RabbitMQ.");
    describe_gauge!(COMMANDS_READY, "1 while this process can send commands, 0 otherwise.");
    describe_counter!(COMMANDS_FAILED, "Number of commands that RabbitMQ did not confirm; they are retried.");
    describe_histogram!(
        RESCUE_LAG,
        Unit::Seconds,
        "Time from when a document became due for rescue until its command was confirmed."
    );

    // The stream.
    describe_counter!(STREAM_EVENTS, "Number of changes read from the change stream.");
    describe_gauge!(
        STREAM_LAG,
        Unit::Seconds,
        "Time by which the stream lags behind its configured delay; 0 means on time."
    );
    describe_gauge!(TOKEN_AGE, Unit::Seconds, "Age of the last saved position.");
    describe_gauge!(
        HEADROOM,
        Unit::Seconds,
        "Time that the oplog covers before the saved position; NaN if unknown."
    );
    describe_counter!(REOPENS, "Number of times the change stream was reopened.");
    describe_counter!(POSITIONS_LOST, "Number of lost positions, from which the stream could not resume.");
    describe_gauge!(
        TROUBLES,
        "Number of the stream's operations that currently fail and are retried; /status lists them."
    );
    describe_gauge!(LEASE_OWNER, "1 while this process owns the stream, 0 otherwise.");
    describe_counter!(LEASE_CHANGES, "Number of times this process became the owner of the stream.");

    // The sweep, and its findings about collections.
    describe_counter!(SWEEPS, "Number of completed rounds of the sweep.");
    describe_histogram!(SWEEP_SECONDS, Unit::Seconds, "Duration of a round of the sweep.");
    describe_gauge!(PENDING, "Number of documents with undelivered or dead messages, at the last count.");
    describe_gauge!(DEAD, "Number of dead messages, at the last count.");
    describe_gauge!(OLDEST, Unit::Seconds, "Age of the oldest message that is due but not delivered.");
    describe_gauge!(INDEXES_MISSING, "Number of indexes missing on collections with outboxes.");
    describe_gauge!(
        EXPIRING,
        "Number of collections with outboxes from which MongoDB deletes documents by itself, by a TTL or a cap."
    );
    describe_gauge!(
        UNWATCHABLE,
        "1 if the pattern in the setting `watch` matches no collection that can be watched, 0 otherwise."
    );
    describe_counter!(UNREADABLE, "Number of malformed outbox elements read.");
    describe_counter!(UNSENDABLE, "Number of documents for which no command can be made.");
    describe_gauge!(MESSAGES, "Number of messages in outboxes, by state, at the last count.");
    describe_gauge!(
        UNDELIVERED_AGE,
        Unit::Seconds,
        "Age of the oldest message that is due, claimed or retrying, at the last count."
    );
    describe_gauge!(FULLEST, "Number of entries in the fullest outbox, at the last count.");
}

/// The result of the last count of a collection; `None` if it could not be counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) pending: Option<u64>,
    pub(crate) dead: Option<u64>,
    /// The age of the oldest message that is due.
    pub(crate) oldest: Option<Duration>,
    pub(crate) contents: Option<Contents>,
}

/// What the non-empty outboxes of a collection contain.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Contents {
    /// The number of messages in each of [`STATES`].
    pub(crate) messages: [u64; STATES.len()],
    /// The age of the oldest message that is due, claimed or retrying.
    pub(crate) oldest: Duration,
    /// The number of entries in the fullest outbox.
    pub(crate) fullest: u64,
}

/// The states of a message, as defined in ARCHITECTURE.md.
pub(crate) const STATES: [&str; 5] = ["due", "claimed", "retrying", "scheduled", "dead"];

/// The series of one stream.
pub(crate) struct Metrics {
    queued: ByReason<Counter>,
    failed: Counter,
    ready: Gauge,
    rescue_lag: ByReason<Histogram>,
    changes: Counter,
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
    /// This gauge is the total of all streams: each stream adds and removes its own part.
    indexes_missing: Gauge,
    /// This gauge is also the total of all streams.
    expiring: Gauge,
    /// One gauge for each pattern; the key is the pattern's text.
    unwatchable: HashMap<String, Gauge>,
    unreadable: Counter,
    unsendable: Counter,
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
    /// Creates the series of a stream. For collections that `watch` names, the values are NaN until the
    /// first count.
    pub(crate) fn new(stream: &str, coverage: &Coverage) -> Self {
        describe();
        let name: Arc<str> = stream.into();
        let stream = || name.clone();
        let reopens = |cause| (cause, counter!(REOPENS, "stream" => stream(), "cause" => cause));

        let metrics = Self {
            queued: ByReason::new(|reason| counter!(COMMANDS_QUEUED, "reason" => reason)),
            failed: counter!(COMMANDS_FAILED),
            ready: gauge!(COMMANDS_READY),
            rescue_lag: ByReason::new(|reason| histogram!(RESCUE_LAG, "reason" => reason)),
            changes: counter!(STREAM_EVENTS, "stream" => stream()),
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
            expiring: gauge!(EXPIRING),
            unwatchable: coverage.patterns().map(unwatchable).collect(),
            unreadable: counter!(UNREADABLE),
            unsendable: counter!(UNSENDABLE),
        };

        // All streams share these gauges. Adding zero creates a gauge without changing the parts of other
        // streams.
        metrics.indexes_missing.increment(0.0);
        metrics.expiring.increment(0.0);
        for collection in coverage.named() {
            Self::totals(&collection, Totals::default());
        }
        metrics.ability(Ability::Unable);
        metrics.disown();
        metrics
    }

    /// Sets the series to their values for a stream that this process doesn't own.
    pub(crate) fn disown(&self) {
        self.lease_owner.set(0.0);
        self.troubles.set(0.0);
        self.lag.set(0.0);
        self.token_age.set(0.0);
        self.headroom.set(0.0);
        self.unwatchable(&[]);
    }

    pub(crate) fn record(&self, event: &RescueEvent) {
        match event {
            RescueEvent::Owned { .. } => {
                self.lease_owner.set(1.0);
                self.lease_changes.increment(1);
            }
            RescueEvent::Queued { reason, .. } => self.queued.of(*reason).increment(1),
            RescueEvent::CommandsFailed { count, .. } => self.failed.increment(*count as u64),
            RescueEvent::Unsendable { .. } => self.unsendable.increment(1),
            RescueEvent::Unreadable { count, .. } => self.unreadable.increment(*count as u64),
            RescueEvent::Reopened { cause: why } => {
                if let Some(reopens) = self.reopens.get(cause(why)) {
                    reopens.increment(1);
                }
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

    pub(crate) fn ability(&self, ability: Ability) {
        self.ready.set(match ability {
            Ability::Able => 1.0,
            Ability::Unable => 0.0,
        });
    }

    pub(crate) fn change_read(&self) {
        self.changes.increment(1);
    }

    pub(crate) fn troubles(&self, count: usize) {
        self.troubles.set(figure(count));
    }

    pub(crate) fn headroom(&self, seconds: Option<f64>) {
        self.headroom.set(seconds.unwrap_or(f64::NAN));
    }

    /// Updates the series from the previous to the current problems of the collections.
    pub(crate) fn flaws(&self, before: &Flaws, now: &Flaws) {
        self.indexes_missing.increment(figure(now.indexes_missing) - figure(before.indexes_missing));
        self.expiring.increment(figure(now.expiring) - figure(before.expiring));
    }

    /// Records which patterns match no collection.
    pub(crate) fn unwatchable(&self, patterns: &[String]) {
        for (pattern, gauge) in &self.unwatchable {
            let matches_none = patterns.contains(pattern);
            gauge.set(f64::from(u8::from(matches_none)));
        }
    }

    /// Sets the series of one collection. NaN means that the collection wasn't counted; the services'
    /// exporter omits such a series. The gauges are obtained each time instead of being kept, so that a
    /// series can be dropped together with its collection.
    pub(crate) fn totals(namespace: &Namespace, totals: Totals) {
        let collection: Arc<str> = namespace.to_string().into();
        let of = || collection.clone();
        set(&gauge!(PENDING, "collection" => of()), totals.pending.map(figure));
        set(&gauge!(DEAD, "collection" => of()), totals.dead.map(figure));
        set(&gauge!(OLDEST, "collection" => of()), totals.oldest.map(|oldest| oldest.as_secs_f64()));

        let contents = totals.contents;
        for (at, state) in STATES.into_iter().enumerate() {
            let messages = contents.map(|contents| figure(contents.messages[at]));
            set(&gauge!(MESSAGES, "collection" => of(), "state" => state), messages);
        }
        let age = contents.map(|contents| contents.oldest.as_secs_f64());
        set(&gauge!(UNDELIVERED_AGE, "collection" => of()), age);
        let fullest = contents.map(|contents| figure(contents.fullest));
        set(&gauge!(FULLEST, "collection" => of()), fullest);
    }
}

fn set(gauge: &Gauge, value: Option<f64>) {
    gauge.set(value.unwrap_or(f64::NAN));
}

/// Converts a count to a value of a series, exact up to four billion.
fn figure(count: impl TryInto<u32>) -> f64 {
    f64::from(count.try_into().unwrap_or(u32::MAX))
}

fn unwatchable(pattern: &NamespacePattern) -> (String, Gauge) {
    let name = pattern.to_string();
    let gauge = gauge!(UNWATCHABLE, "pattern" => name.clone());
    (name, gauge)
}
