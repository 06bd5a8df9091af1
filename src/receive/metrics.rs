//! The metrics of a receiver, as listed in docs/metrics.md. Each metric has the label `queue`.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use mongodb::bson::DateTime;
use strum::VariantArray;

use crate::receive::{
    decide::DeadCause,
    event::ReceiverEvent,
    handled::{Handled, InboxFigures},
    message::ReceivedMessage,
};

const RECEIVED: &str = "outbox_received_total";
const SETTLED: &str = "outbox_received_settled_total";
const DEAD: &str = "outbox_received_dead_total";
const RETRIES: &str = "outbox_receive_retries_total";
const ORDER_GIVEN_UP: &str = "outbox_receive_order_given_up_total";
const SECONDS: &str = "outbox_receive_seconds";
const LAG: &str = "outbox_receive_lag_seconds";
const HELD: &str = "outbox_receiver_held_messages";
const HELD_BYTES: &str = "outbox_receiver_held_bytes";
const READY: &str = "outbox_receiver_ready";
const INBOX: &str = "outbox_inbox_messages";
const FORGOTTEN: &str = "outbox_inbox_forgotten_total";

const OUTCOMES: [&str; 7] = ["applied", "repeated", "delayed", "dead", "rejected", "ignored", "returned"];
const RESULTS: [&str; 6] = ["applied", "repeated", "transient", "permanent", "undecodable", "unavailable"];

/// The metrics of one receiver.
pub(super) struct ReceiverMetrics {
    received: Counter,
    settled: [Counter; 7],
    dead: Vec<(DeadCause, Counter)>,
    retries: Counter,
    order_given_up: Counter,
    seconds: [Histogram; 6],
    lag: Histogram,
    held: Gauge,
    held_bytes: Gauge,
    ready: Gauge,
    inbox: Histogram,
    forgotten: Counter,
}

impl ReceiverMetrics {
    /// Registers every metric, at zero.
    pub(super) fn register(queue: &str) -> Self {
        describe();
        let queue = || queue.to_owned();
        let dead = DeadCause::VARIANTS
            .iter()
            .map(|cause| (*cause, counter!(DEAD, "queue" => queue(), "reason" => cause.as_str())));
        Self {
            received: counter!(RECEIVED, "queue" => queue()),
            settled: OUTCOMES.map(|outcome| counter!(SETTLED, "queue" => queue(), "outcome" => outcome)),
            dead: dead.collect(),
            retries: counter!(RETRIES, "queue" => queue()),
            order_given_up: counter!(ORDER_GIVEN_UP, "queue" => queue()),
            seconds: RESULTS.map(|result| histogram!(SECONDS, "queue" => queue(), "result" => result)),
            lag: histogram!(LAG, "queue" => queue()),
            held: gauge!(HELD, "queue" => queue()),
            held_bytes: gauge!(HELD_BYTES, "queue" => queue()),
            ready: gauge!(READY, "queue" => queue()),
            inbox: histogram!(INBOX, "queue" => queue()),
            forgotten: counter!(FORGOTTEN, "queue" => queue()),
        }
    }

    /// Counts an event.
    pub(super) fn record(&self, event: &ReceiverEvent) {
        let outcome = match event {
            ReceiverEvent::Taken(_) => return self.received.increment(1),
            ReceiverEvent::Retried { .. } => return self.retries.increment(1),
            ReceiverEvent::Unavailable { .. } => return,
            ReceiverEvent::Applied(_) => 0,
            ReceiverEvent::Repeated(_) => 1,
            ReceiverEvent::Delayed { .. } => 2,
            ReceiverEvent::Died { cause, .. } => {
                if let Some((_, counter)) = self.dead.iter().find(|(known, _)| known == cause) {
                    counter.increment(1);
                }
                3
            }
            ReceiverEvent::Rejected(_) => 4,
            ReceiverEvent::Ignored(_) => 5,
            ReceiverEvent::Returned(_) => 6,
        };
        self.settled[outcome].increment(1);
    }

    /// Records one call of a function.
    pub(super) fn call(&self, handled: &Handled, took: Duration, message: &ReceivedMessage) {
        let result = match handled {
            Handled::Applied(_) => 0,
            Handled::Repeated => 1,
            Handled::Transient(_) => 2,
            Handled::Permanent(_) => 3,
            Handled::Undecodable(_) => 4,
            Handled::Unavailable(_) => 5,
        };
        self.seconds[result].record(took);

        if let Handled::Applied(inbox) = handled {
            if let Some(time) = message.time {
                let lag = DateTime::now().timestamp_millis().saturating_sub(time.timestamp_millis());
                self.lag.record(Duration::from_millis(u64::try_from(lag).unwrap_or(0)));
            }
            if let Some(InboxFigures { remembered, forgotten }) = *inbox {
                self.inbox.record(f64::from(u32::try_from(remembered).unwrap_or(u32::MAX)));
                self.forgotten.increment(u64::try_from(forgotten).unwrap_or(u64::MAX));
            }
        }
    }

    /// Reports the number of messages that are held, and their bytes.
    pub(super) fn held(&self, messages: usize, bytes: usize) {
        self.held.set(u32::try_from(messages).unwrap_or(u32::MAX));
        self.held_bytes.set(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    pub(super) fn ready(&self, ready: bool) {
        self.ready.set(u8::from(ready));
    }

    pub(super) fn order_given_up(&self) {
        self.order_given_up.increment(1);
    }
}

fn describe() {
    describe_counter!(
        RECEIVED,
        Unit::Count,
        "number of messages taken from the queue, redeliveries included"
    );
    describe_counter!(SETTLED, Unit::Count, "number of messages taken from the queue, by outcome");
    describe_counter!(DEAD, Unit::Count, "number of messages put into the dead-letter queue, by reason");
    describe_counter!(
        RETRIES,
        Unit::Count,
        "number of failed messages that the receiver keeps and tries again"
    );
    describe_counter!(
        ORDER_GIVEN_UP,
        Unit::Count,
        "number of messages put into the delay queue that later messages of the same key may overtake"
    );
    describe_histogram!(
        SECONDS,
        Unit::Seconds,
        "duration of one call of a function, or of the load and save of an aggregate, by result"
    );
    describe_histogram!(LAG, Unit::Seconds, "time from a message's own timestamp to its durable effect");
    describe_gauge!(HELD, Unit::Count, "number of messages that are taken and not settled");
    describe_gauge!(
        HELD_BYTES,
        Unit::Bytes,
        "total size of the bodies of messages that are taken and not settled"
    );
    describe_gauge!(READY, Unit::Count, "1 while messages are taken, 0 otherwise");
    describe_histogram!(INBOX, Unit::Count, "number of messages that an aggregate's inbox remembers");
    describe_counter!(
        FORGOTTEN,
        Unit::Count,
        "number of messages removed from inboxes to make room, or because they were too old"
    );
}
