//! The table of settings.

use std::time::Duration;

use document_outbox::deliver::{AttributePrefix, PayloadFormat};
use outbox_service::{Key, Kind, keys};

use crate::rate::Rate;

/// No limit except the worker's own speed.
const NO_RATE: &str = "off";
/// With the five minutes for which a command is kept, well within the broker's `consumer_timeout` of 30 minutes.
const LONGEST_LEASE: Duration = Duration::from_mins(15);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

/// Every key in addition to those of all daemons, in the order of the documentation.
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
            "The most documents that are processed at a time; with a rate, at most a twentieth of it, or 32 \
             if that is more.",
        )
        .with_default("256"),
        Key::new(
            "prefetch",
            Kind::Integer(1..=65535),
            "The most commands that are taken from the broker and not yet acknowledged.",
        )
        .with_default("512"),
        Key::new(
            "rate",
            Kind::Text(check_rate),
            "The most messages that are delivered in a second, as in 500/s.",
        )
        .with_default(NO_RATE),
        Key::new(
            "claim_lease",
            Kind::Duration(SECOND..=LONGEST_LEASE),
            "How long a claim on messages lasts. If this worker dies, they wait that long.",
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
            "The longest wait after the first failed attempt; it doubles with each attempt.",
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
            "A command is kept if its document will be free within this time; otherwise it is left to the sweep.",
        )
        .with_default("5s"),
        Key::new(
            "max_repeats",
            Kind::Integer(1..=100_000),
            "The most messages that are published and not yet cleared. If this worker is killed, at most \
             that many are repeated.",
        )
        .with_default("256"),
        Key::new(
            "memory_mib",
            Kind::Integer(1..=65_536),
            "The most memory, in MiB, for outboxes at a time, as estimated; a document that needs more is \
             processed alone.",
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
            "The prefix of CloudEvents attributes in the headers of messages.",
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

/// The broker decides about a type, not this table.
#[expect(clippy::unnecessary_wraps, reason = "a check, as others are")]
fn accept_any(_: &str) -> Result<(), String> {
    Ok(())
}
