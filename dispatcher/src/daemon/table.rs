//! The keys of all settings.

use std::time::Duration;

use document_outbox::deliver::{AttributePrefix, PayloadFormat};
use outbox_service::{Key, Kind, keys};

use crate::rate::Rate;

/// The value that means no limit, so that only the worker's own speed limits the deliveries.
const NO_RATE: &str = "off";
/// The longest claim lease. Together with the five minutes for which a command is kept, it is well below
/// the broker's `consumer_timeout` of 30 minutes.
const LONGEST_LEASE: Duration = Duration::from_mins(15);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_hours(1);

/// The keys of the dispatcher's table, in the order of the documentation.
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
            "Maximum number of documents processed at a time. With a rate, the maximum is at most the \
             number of messages that the rate allows in 50ms, or 32 if that is more.",
        )
        .with_default("256"),
        Key::new(
            "prefetch",
            Kind::Integer(1..=65535),
            "Maximum number of commands that are taken from the broker and not yet acknowledged.",
        )
        .with_default("512"),
        Key::new(
            "rate",
            Kind::Text(check_rate),
            "Maximum number of messages delivered per second, for example 500/s.",
        )
        .with_default(NO_RATE),
        Key::new(
            "claim_lease",
            Kind::Duration(SECOND..=LONGEST_LEASE),
            "How long this worker's claim on messages lasts. If the worker dies, its claimed messages wait \
             for the rest of that time.",
        )
        .with_default("60s"),
    ]
}

fn retries() -> Vec<Key> {
    vec![
        Key::new(
            "max_attempts",
            Kind::Integer(1..=1_000),
            "Number of failed attempts after which a message is dead.",
        )
        .with_default("10"),
        Key::new(
            "backoff_min",
            Kind::Duration(MILLISECOND..=HOUR),
            "Maximum wait after the first failed attempt. The maximum doubles with each further attempt.",
        )
        .with_default("1s"),
        Key::new(
            "backoff_max",
            Kind::Duration(MILLISECOND..=24 * HOUR),
            "Maximum wait after any failed attempt.",
        )
        .with_default("5m"),
    ]
}

fn bounds() -> Vec<Key> {
    vec![
        Key::new(
            "hold_within",
            Kind::Duration(Duration::ZERO..=Duration::from_mins(1)),
            "If a document is claimed or not yet due, its command is kept for up to this time; if the \
             obstacle lasts longer, the document is left to the sweep.",
        )
        .with_default("5s"),
        Key::new(
            "max_repeats",
            Kind::Integer(1..=100_000),
            "Maximum number of messages that are published but not yet removed from their documents. If \
             this worker is killed, at most that many messages are delivered again.",
        )
        .with_default("256"),
        Key::new(
            "memory_mib",
            Kind::Integer(1..=65_536),
            "Estimated memory, in MiB, that outboxes may take at a time. A document that needs more is \
             processed alone.",
        )
        .with_default("64"),
    ]
}

fn messages() -> Vec<Key> {
    vec![
        keys::messages_exchange(),
        Key::new("payload_format", Kind::choice::<PayloadFormat>(), "The format of payloads.")
            .with_default("json"),
        Key::new(
            "attribute_prefix",
            Kind::choice::<AttributePrefix>(),
            "Prefix of the CloudEvents attributes in the headers of messages.",
        )
        .with_default("cloudEvents:"),
        Key::new(
            "unroutable_ok",
            Kind::List(accept_any),
            "Message types that count as delivered even if no queue is bound for them.",
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
        // The default port belongs to the rescuer.
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

/// Accepts any message type, because the broker decides which types are valid.
#[expect(clippy::unnecessary_wraps, reason = "a check, as others are")]
fn accept_any(_: &str) -> Result<(), String> {
    Ok(())
}
