//! The keys that several daemons have. Each daemon's table lists those it uses, in addition to its own.

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

/// The default of `http_listen` if a daemon has none of its own: the usual port of an OpenTelemetry program.
pub const HTTP_LISTEN: &str = "127.0.0.1:9464";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// `mongodb_uri`, required: read with [`Reader::uri`](crate::Reader::uri).
#[must_use]
pub fn mongodb_uri() -> Key {
    Key::new(
        "mongodb_uri",
        Kind::Uri(Scheme::MongoDb),
        "The URI of MongoDB, a replica set or a sharded cluster.",
    )
}

/// `rabbitmq_uri`, required: read with [`Reader::uri`](crate::Reader::uri).
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
            "PEM file of the authorities that may have signed RabbitMQ's certificate; default: those of the machine.",
        ),
        file("rabbitmq_cert_file", "PEM file of the client certificate for RabbitMQ, if it asks for one."),
        file("rabbitmq_key_file", "PEM file of that certificate's key."),
        Key::new(
            "allow_insecure",
            Kind::Boolean,
            "Allow amqp:// and unverified TLS to other machines; only for trusted networks.",
        )
        .with_default("false"),
    ]
}

/// `watch`, required: read with [`Reader::namespaces`](crate::Reader::namespaces).
#[must_use]
pub fn watch() -> Key {
    Key::new(
        "watch",
        Kind::Namespaces,
        "The collections with outboxes: shop.orders, shop.* for all of a database, tenant_*.orders; with \
         their own delay, audit.log@5m. The first that matches applies.",
    )
}

/// `unordered`, default none: read with [`Reader::namespaces`](crate::Reader::namespaces).
#[must_use]
pub fn unordered() -> Key {
    Key::new(
        "unordered",
        Kind::Namespaces,
        "The watched collections whose messages need no order within a document.",
    )
    .with_default("")
}

/// `dead_blocks`, default none: read with [`Reader::namespaces`](crate::Reader::namespaces).
#[must_use]
pub fn dead_blocks() -> Key {
    Key::new(
        "dead_blocks",
        Kind::Namespaces,
        "The watched collections in which a dead message blocks the later ones of its document.",
    )
    .with_default("")
}

/// `state_database`, default `document_outbox`: read with [`Reader::string`](crate::Reader::string).
pub fn state_database() -> Key {
    Key::new("state_database", Kind::Text(check_database), "The database for positions and leases.")
        .with_default("document_outbox")
}

/// `commands_exchange`, default `outbox.commands`: read with [`Reader::string`](crate::Reader::string).
pub fn commands_exchange() -> Key {
    Key::new("commands_exchange", Kind::Text(check_exchange), "The exchange commands are published to.")
        .with_default("outbox.commands")
}

/// `commands_queue`, default `outbox.process-document-messages`: read with [`Reader::string`](crate::Reader::string).
pub fn commands_queue() -> Key {
    Key::new("commands_queue", Kind::Text(check_queue), "The queue commands are consumed from.")
        .with_default("outbox.process-document-messages")
}

/// `messages_exchange`, default `outbox.messages`: read with [`Reader::string`](crate::Reader::string).
pub fn messages_exchange() -> Key {
    Key::new("messages_exchange", Kind::Text(check_exchange), "The exchange messages are published to.")
        .with_default("outbox.messages")
}

/// `topology`, default `declare`: read with [`Reader::choice`](crate::Reader::choice) as a
/// [`TopologyMode`].
#[must_use]
pub fn topology() -> Key {
    Key::new(
        "topology",
        Kind::choice::<TopologyMode>(),
        "Exchanges and queues: declare them, verify that they exist, or do neither.",
    )
    .with_default("declare")
}

/// `shutdown_grace`, default 25s: read with [`Reader::duration`](crate::Reader::duration).
/// [`Daemon`](crate::Daemon) adds it to every table.
#[must_use]
pub fn shutdown_grace() -> Key {
    Key::new(
        "shutdown_grace",
        Kind::Duration(Duration::ZERO..=Duration::from_hours(1)),
        "How long unfinished work may continue after SIGTERM or SIGINT. Keep it below the orchestrator's \
         grace period.",
    )
    .with_default("25s")
}

/// `http_listen`: where probes, metrics and status are served. [`Daemon`](crate::Daemon) adds it to every
/// table, with [`HTTP_LISTEN`]; daemons for the same machine need different defaults.
pub fn http_listen(default: &'static str) -> Key {
    Key::new(
        "http_listen",
        Kind::Text(check_listen),
        "The address of /livez, /readyz, /metrics and /status: an IP address and a port, or off. They ask \
         for no password, so open them to trusted networks only.",
    )
    .with_default(default)
}

/// `log_format`, default `text`: read with [`Reader::choice`](crate::Reader::choice) as [`LogFormat`].
/// [`Daemon`](crate::Daemon) adds it to every table.
#[must_use]
pub fn log_format() -> Key {
    Key::new("log_format", Kind::choice::<LogFormat>(), "The format of log lines, on standard error.")
        .with_default("text")
}

/// `log_filter`, otherwise `RUST_LOG`, otherwise `info`: read with [`Reader::string`](crate::Reader::string).
/// [`Daemon`](crate::Daemon) adds it to every table.
pub fn log_filter() -> Key {
    Key::new(
        "log_filter",
        Kind::Text(check_log_filter),
        "The levels to log: info, or info,lapin=warn and the like.",
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
            "holds the certificate or key itself; put it into a file, and the file's name here".into()
        );
    }
    Ok(())
}

/// A name without a `*`.
fn check_database(name: &str) -> Result<(), String> {
    if name.contains('*') {
        return Err("has a '*' in its name; MongoDB allows none".into());
    }
    check_database_pattern(name)
}

/// A short string of AMQP 0-9-1: at most 255 bytes.
fn check_exchange(name: &str) -> Result<(), String> {
    if name.len() > 255 {
        Err("is longer than the 255 bytes RabbitMQ allows; choose a shorter name".into())
    } else if name.contains(char::is_control) {
        Err("holds a control character; remove it".into())
    } else {
        Ok(())
    }
}

/// Exchanges named `amq.…` exist and may be used; queues can't have such names.
/// <https://www.rabbitmq.com/docs/queues#names>
fn check_queue(name: &str) -> Result<(), String> {
    if name.starts_with("amq.") {
        return Err("starts with `amq.`, which RabbitMQ reserves for itself; choose another name".into());
    }
    check_exchange(name)
}

/// A bare word that is not a level is a valid filter: the target of that name. A typing error in a level
/// would be read as a target and silence the log.
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
