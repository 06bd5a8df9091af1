//! The dispatcher's metrics, as in docs/metrics.md. The metrics of deliveries are recorded by the
//! library.

use document_outbox::command::{CommandError, Reason};
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use strum::VariantArray;

use crate::{
    admission::Refusal,
    event::{DispatcherEvent, Left},
};

const COMMANDS: &str = "outbox_commands_total";
const REFUSED: &str = "outbox_commands_refused_total";
const READY: &str = "outbox_consumer_ready";
const REBUILDS: &str = "outbox_consumer_rebuilds_total";
const THROTTLED: &str = "outbox_throttled_seconds_total";

const OUTCOMES: [&str; 6] = ["finished", "coalesced", "left", "put_back", "other_cluster", "given_back"];
const CAUSES: [&str; 3] = ["malformed", "not_watched", "too_large"];

/// Registers every series with the value zero.
pub(crate) fn register() {
    describe_counter!(COMMANDS, Unit::Count, "Number of commands by outcome.");
    describe_counter!(REFUSED, Unit::Count, "Number of rejected commands.");
    describe_gauge!(READY, "1 while commands are being consumed, 0 otherwise.");
    describe_counter!(REBUILDS, Unit::Count, "Number of times the consumer's connection was rebuilt.");
    describe_counter!(
        THROTTLED,
        Unit::Seconds,
        "Total time that deliveries waited because of the rate limit, in whole seconds."
    );
    for reason in Reason::VARIANTS {
        for outcome in OUTCOMES {
            counter!(COMMANDS, "reason" => reason.as_str(), "outcome" => outcome).increment(0);
        }
    }
    for cause in CAUSES {
        counter!(REFUSED, "cause" => cause).increment(0);
    }
    gauge!(READY).set(0);
    counter!(REBUILDS).increment(0);
    counter!(THROTTLED).increment(0);
}

/// Counts the command whose processing ends with `event`. `reason` is why the command was sent; it is `None`
/// for a refused command.
pub(crate) fn event(event: &DispatcherEvent, reason: Option<Reason>) {
    let outcome = match event {
        DispatcherEvent::Finished { .. } => "finished",
        DispatcherEvent::Coalesced { .. } => "coalesced",
        DispatcherEvent::LeftToSweep { .. } => "left",
        DispatcherEvent::PutBack { why: Left::OtherCluster, .. } => "other_cluster",
        DispatcherEvent::PutBack { .. } => "put_back",
        DispatcherEvent::GivenBack { .. } => "given_back",
        DispatcherEvent::Refused { refusal } => {
            return counter!(REFUSED, "cause" => cause(refusal)).increment(1);
        }
        DispatcherEvent::Taken { .. } | DispatcherEvent::Kept { .. } => return,
    };
    let reason = reason.unwrap_or(Reason::Other).as_str();
    counter!(COMMANDS, "reason" => reason, "outcome" => outcome).increment(1);
}

pub(crate) fn consumer_ready(ready: bool) {
    gauge!(READY).set(u8::from(ready));
}

pub(crate) fn consumer_rebuilt() {
    counter!(REBUILDS).increment(1);
}

pub(crate) fn throttled(seconds: u64) {
    counter!(THROTTLED).increment(seconds);
}

fn cause(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Command(CommandError::TooLong(_)) => "too_large",
        Refusal::WrongType | Refusal::Command(_) => "malformed",
        Refusal::NotWatched(_) => "not_watched",
    }
}
