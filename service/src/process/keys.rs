//! The keys that several daemons have. Each daemon's table lists the keys of this module that the daemon
//! uses, in addition to its own keys.

use std::time::Duration;

use document_outbox::amqp::TopologyMode;

use crate::{
    namespace::check_database_pattern,
    process::{
        http::Listen,
        settings::{Key, Kind, Scheme},
        telemetry::{LogFormat, parse_filter},
    },
    suggestion::did_you_mean,
};

/// The default of `http_listen` for a daemon without its own default. The port is the one that programs with
/// OpenTelemetry usually take.
pub const HTTP_LISTEN: &str = "127.0.0.1:9464";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The required key `mongodb_uri`. Read it with [`Reader::uri`](crate::Reader::uri).
#[must_use]
pub fn mongodb_uri() -> Key {
    Key::new(
        "mongodb_uri",
        Kind::Uri(Scheme::MongoDb),
        "The URI of MongoDB, which must be a replica set or a sharded cluster.",
    )
}

/// The required key `rabbitmq_uri`. Read it with [`Reader::uri`](crate::Reader::uri).
#[must_use]
pub fn rabbitmq_uri() -> Key {
    Key::new("rabbitmq_uri", Kind::Uri(Scheme::Amqp), "The URI of RabbitMQ.")
}

/// The keys of [`transport`](crate::transport): certificates for RabbitMQ, and which connections may be
/// unencrypted.
#[must_use]
pub fn transport() -> [Key; 4] {
    let file = |name, help| Key::new(name, Kind::Text(check_path), help).with_default("");
    [
        file(
            "rabbitmq_ca_file",
            "PEM file of the certificate authorities that are trusted for RabbitMQ's certificate. By \
             default, the machine's authorities are trusted.",
        ),
        file("rabbitmq_cert_file", "PEM file of the client certificate, if RabbitMQ requires one."),
        file("rabbitmq_key_file", "PEM file of the client certificate's private key."),
        Key::new(
            "allow_insecure",
            Kind::Boolean,
            "Allow amqp:// and unverified TLS to other machines. Use it only on trusted networks.",
        )
        .with_default("false"),
    ]
}

/// The required key `watch`. Read it with [`Reader::namespaces`](crate::Reader::namespaces).
#[must_use]
pub fn watch() -> Key {
    Key::new(
        "watch",
        Kind::Namespaces,
        "The collections with outboxes, for example shop.orders, tenant_*.orders, or shop.* for all \
         collections of a database. A pattern can have its own delay: audit.log@5m. If several patterns \
         match a collection, the first one applies.",
    )
}

/// The key `unordered`, which is empty by default. Read it with
/// [`Reader::namespaces`](crate::Reader::namespaces).
#[must_use]
pub fn unordered() -> Key {
    Key::new(
        "unordered",
        Kind::Namespaces,
        "The watched collections whose messages may be delivered out of order within a document.",
    )
    .with_default("")
}

/// The key `dead_blocks`, which is empty by default. Read it with
/// [`Reader::namespaces`](crate::Reader::namespaces).
#[must_use]
pub fn dead_blocks() -> Key {
    Key::new(
        "dead_blocks",
        Kind::Namespaces,
        "The watched collections in which a dead message blocks the later messages of its document.",
    )
    .with_default("")
}

/// The key `state_database`, with the default `document_outbox`. Read it with
/// [`Reader::string`](crate::Reader::string).
pub fn state_database() -> Key {
    Key::new("state_database", Kind::Text(check_database), "The database for positions and leases.")
        .with_default("document_outbox")
}

/// The key `commands_exchange`, with the default `outbox.commands`. Read it with
/// [`Reader::string`](crate::Reader::string).
pub fn commands_exchange() -> Key {
    Key::new("commands_exchange", Kind::Text(check_exchange), "The exchange to which commands are published.")
        .with_default("outbox.commands")
}

/// The key `commands_queue`, with the default `outbox.process-document-messages`. Read it with
/// [`Reader::string`](crate::Reader::string).
pub fn commands_queue() -> Key {
    Key::new("commands_queue", Kind::Text(check_queue), "The queue from which commands are consumed.")
        .with_default("outbox.process-document-messages")
}

/// The key `messages_exchange`, with the default `outbox.messages`. Read it with
/// [`Reader::string`](crate::Reader::string).
pub fn messages_exchange() -> Key {
    Key::new("messages_exchange", Kind::Text(check_exchange), "The exchange to which messages are published.")
        .with_default("outbox.messages")
}

/// The key `topology`, with the default `declare`. Read it with [`Reader::choice`](crate::Reader::choice) as
/// a [`TopologyMode`].
#[must_use]
pub fn topology() -> Key {
    Key::new(
        "topology",
        Kind::choice::<TopologyMode>(),
        "What to do with exchanges and queues at the start: declare them, verify that they exist, or do neither.",
    )
    .with_default("declare")
}

/// The key `shutdown_grace`, with the default `25s`. Read it with
/// [`Reader::duration`](crate::Reader::duration).
/// [`Daemon`](crate::Daemon) adds it to every table.
#[must_use]
pub fn shutdown_grace() -> Key {
    Key::new(
        "shutdown_grace",
        Kind::Duration(Duration::ZERO..=Duration::from_hours(1)),
        "How long unfinished work may continue after SIGTERM or SIGINT. Choose a time below the \
         orchestrator's grace period.",
    )
    .with_default("25s")
}

/// `http_listen`: the address at which probes, metrics and status are served. [`Daemon`](crate::Daemon)
/// adds it to every table, with [`HTTP_LISTEN`] as its default; daemons on the same machine need different
/// defaults.
pub fn http_listen(default: &'static str) -> Key {
    Key::new(
        "http_listen",
        Kind::Text(check_listen),
        "The address of /livez, /readyz, /metrics and /status: an IP address and a port, or off. These \
         endpoints ask for no password, so open them to trusted networks only.",
    )
    .with_default(default)
}

/// The key `log_format`, with the default `text`. Read it with [`Reader::choice`](crate::Reader::choice) as
/// [`LogFormat`].
/// [`Daemon`](crate::Daemon) adds it to every table.
#[must_use]
pub fn log_format() -> Key {
    Key::new(
        "log_format",
        Kind::choice::<LogFormat>(),
        "The format of log lines, which are written to standard error.",
    )
    .with_default("text")
}

/// The key `log_filter`, whose fallback is the variable `RUST_LOG`, with the default `info`. Read it with
/// [`Reader::string`](crate::Reader::string). [`Daemon`](crate::Daemon) adds it to every table.
pub fn log_filter() -> Key {
    Key::new(
        "log_filter",
        Kind::Text(check_log_filter),
        "The log levels, for example info, or info,lapin=warn.",
    )
    .with_fallback_env("RUST_LOG")
    .with_default("info")
}

fn check_listen(text: &str) -> Result<(), String> {
    text.parse::<Listen>().map(drop)
}

fn check_path(path: &str) -> Result<(), String> {
    if path.contains("-----BEGIN") {
        return Err(
            "holds the certificate or key itself; store it in a file, and write the file's path here".into(),
        );
    }
    Ok(())
}

/// Checks a database's name, which must not contain a `*`.
fn check_database(name: &str) -> Result<(), String> {
    if name.contains('*') {
        return Err("has a '*' in its name, which MongoDB does not allow".into());
    }
    check_database_pattern(name)
}

/// Checks a short string of AMQP 0-9-1, which has at most 255 bytes.
fn check_exchange(name: &str) -> Result<(), String> {
    if name.len() > 255 {
        Err("is longer than the 255 bytes RabbitMQ allows; choose a shorter name".into())
    } else if name.contains(char::is_control) {
        Err("holds a control character; remove it".into())
    } else {
        Ok(())
    }
}

/// Checks a queue's name. Names that start with `amq.` are allowed for exchanges but not for
/// queues. <https://www.rabbitmq.com/docs/queues#names>
fn check_queue(name: &str) -> Result<(), String> {
    if name.starts_with("amq.") {
        return Err("starts with `amq.`, which RabbitMQ reserves for itself; choose another name".into());
    }
    check_exchange(name)
}

/// Checks a log filter. A single word that is not a level is refused. It would be a valid filter,
/// namely the name of a target, so a typing error in a level would silence the log.
fn check_log_filter(filter: &str) -> Result<(), String> {
    for word in filter.split(',').map(str::trim).filter(|word| word.chars().all(char::is_alphabetic)) {
        let hint = did_you_mean(word, LEVELS);
        if !hint.is_empty() && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) {
            return Err(format!("has the unknown level {word}{hint}; write one of {}", LEVELS.join(", ")));
        }
    }
    parse_filter(filter).map(drop).map_err(|error| {
        format!("is not a filter ({error}); write a level, or target=level pairs with commas")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_and_queues_take_the_names_rabbitmq_takes() {
        assert_eq!(check_exchange("amq.topic"), Ok(()));
        assert_eq!(check_queue("outbox.commands"), Ok(()));
        assert!(check_queue("amq.gen").is_err_and(|flaw| flaw.contains("reserves for itself")));
        assert!(check_queue(&"x".repeat(256)).is_err_and(|flaw| flaw.contains("255 bytes")));
        assert!(check_exchange("a\nb").is_err_and(|flaw| flaw.contains("control character")));
    }

    #[test]
    fn a_log_filter_is_levels_by_target() {
        for filter in
            ["info", "WARN", "info,lapin=warn", "outbox_rescuer=debug", "off", "info,[span{field=1}]=debug"]
        {
            assert_eq!(check_log_filter(filter), Ok(()), "{filter}");
        }
    }

    #[test]
    fn a_slip_in_a_level_is_refused() {
        assert!(check_log_filter("debg").unwrap_err().contains("did you mean debug?"));
        assert!(check_log_filter("info,lapin=wran").unwrap_err().contains("is not a filter"));
        assert!(check_log_filter("info,[").is_err());
    }
}
