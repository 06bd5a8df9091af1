//! The table of settings.

use std::time::Duration;

use document_outbox::deliver::{AttributePrefix, PayloadFormat};
use outbox_service::{Key, Kind, keys};

use crate::rate::Rate;

/// No limit but what the worker can do.
const NO_RATE: &str = "off";
/// With the five minutes for which a command is kept, well within the broker's `consumer_timeout` of 30 minutes.
const LONGEST_LEASE: Duration = Duration::from_mins(15);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

/// Every key beside those that each daemon has, in the order of the documentation.
pub(super) fn table() -> Vec<Key> {
    let mut table = where_to_work();
    table.extend(how_much_at_a_time());
    table.extend(retries());
    table.extend(bounds());
    table.extend(messages());
    table.extend(commands());
    table
}

fn where_to_work() -> Vec<Key> {
    vec![keys::mongodb_uri(), keys::rabbitmq_uri(), keys::watch(), keys::unordered(), keys::dead_blocks()]
}

fn how_much_at_a_time() -> Vec<Key> {
    vec![
        Key::new(
            "concurrency",
            Kind::Integer(1..=4096),
            "At most this many documents are processed at a time; with a rate, no more than a twentieth of it, or 32 where that is more.",
        )
        .with_default("256"),
        Key::new(
            "prefetch",
            Kind::Integer(1..=65535),
            "At most this many commands are taken from the broker and not yet acknowledged.",
        )
        .with_default("512"),
        Key::new("rate", Kind::Text(check_rate), "At most this many messages a second are delivered, as in 500/s.")
            .with_default(NO_RATE),
        Key::new(
            "claim_lease",
            Kind::Duration(SECOND..=LONGEST_LEASE),
            "How long a claim on messages holds. If this worker dies, they wait for that long.",
        )
        .with_default("60s"),
    ]
}

fn retries() -> Vec<Key> {
    vec![
        Key::new("max_attempts", Kind::Integer(1..=1_000), "Failed attempts until a message is dead.")
            .with_default("10"),
        Key::new(
            "backoff_min",
            Kind::Duration(MILLISECOND..=HOUR),
            "The longest wait after the first failed attempt; doubles with each.",
        )
        .with_default("1s"),
        Key::new(
            "backoff_max",
            Kind::Duration(MILLISECOND..=24 * HOUR),
            "The longest wait after any failed attempt.",
        )
        .with_default("5m"),
    ]
}

fn bounds() -> Vec<Key> {
    vec![
        Key::new(
            "hold_within",
            Kind::Duration(Duration::ZERO..=Duration::from_mins(1)),
            "A command is kept while what holds its document back ends within this time; else it is left to the sweep.",
        )
        .with_default("5s"),
        Key::new(
            "max_repeats",
            Kind::Integer(1..=100_000),
            "At most this many messages are published and not yet cleared: so many are repeated at most when this worker is killed.",
        )
        .with_default("256"),
        Key::new(
            "memory_mib",
            Kind::Integer(1..=65_536),
            "At most this many MiB of outboxes are in memory, as estimated; one document that takes more is processed alone.",
        )
        .with_default("64"),
    ]
}

fn messages() -> Vec<Key> {
    vec![
        keys::messages_exchange(),
        Key::new("payload_format", Kind::choice::<PayloadFormat>(), "How payloads are written.")
            .with_default("json"),
        Key::new(
            "attribute_prefix",
            Kind::choice::<AttributePrefix>(),
            "What the names of CloudEvents attributes begin with, in the headers of messages.",
        )
        .with_default("cloudEvents:"),
        Key::new(
            "unroutable_ok",
            Kind::List(accept_any),
            "Message types that count as delivered when no queue is bound for them.",
        )
        .with_default(""),
    ]
}

fn commands() -> Vec<Key> {
    vec![
        keys::commands_exchange(),
        keys::commands_queue(),
        keys::topology(),
        keys::state_database(),
        // The rescuer has the usual port.
        keys::http_listen("127.0.0.1:9465"),
    ]
}

fn check_rate(text: &str) -> Result<(), String> {
    if text == NO_RATE {
        return Ok(());
    }

    match text.parse::<Rate>() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{error}, or {NO_RATE}")),
    }
}

/// The broker is asked about a type, not this table.
#[expect(clippy::unnecessary_wraps, reason = "a check, as others are")]
fn accept_any(_: &str) -> Result<(), String> {
    Ok(())
}
