//! The settings: from the environment, or from a profile.
//!
//! # Profiles
//! A profile is a TOML file `NAME.toml` in the directory of profiles. It has the keys of the services' settings, and two
//! more: `redact`, and `production`. A profile is complete: with a profile, no `OUTBOX_` variable is read, so that a
//! variable of one system can't mix with the profile of another.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use document_outbox::{
    amqp::AmqpSettings,
    deliver::{AttributePrefix, PayloadFormat},
};
use mongodb::Client;
use outbox_operate::{
    Operator, OperatorSettings, ReadFrom,
    redact::{Redaction, Reveal},
};
use outbox_service::{
    Connections, Key, Kind, NamespacePattern, Program, Reader, Resolution, Sources, keys, settings::resolve,
};

use crate::{args::General, exit::Failure};

const NAME: &str = "outboxctl";
/// The value that means that no broker was given. No virtual host of a user has this name.
const NO_BROKER: &str = "amqp://localhost/outboxctl-has-no-broker";

/// Everything that a command needs.
#[derive(Debug)]
pub struct Setup {
    /// The operations.
    pub operator: Operator,
    /// The rules for payloads.
    pub redaction: Redaction,
    /// Whether the profile is marked as production.
    pub production: bool,
}

/// The settings, before anything connects.
struct Given {
    connections: Connections,
    operator: OperatorSettings,
    redact: Vec<String>,
    production: bool,
}

impl Setup {
    /// Reads the settings and creates the client. Nothing connects yet.
    pub async fn of(general: &General) -> Result<Self, Failure> {
        let given = read(general, &sources(general)?)?;
        let client: Client =
            given.connections.mongodb().await.map_err(|error| Failure::Settings(error.to_string()))?;
        let reveal = if general.reveal { Reveal::Everything } else { Reveal::Hidden };
        let redaction = redaction(&given.redact, reveal).map_err(Failure::Settings)?;

        Ok(Self { operator: Operator::new(client, given.operator), redaction, production: given.production })
    }
}

fn table() -> Vec<Key> {
    let mut table = vec![
        keys::mongodb_uri(),
        keys::rabbitmq_uri().with_default(NO_BROKER),
        keys::watch(),
        keys::unordered(),
        keys::dead_blocks(),
        keys::state_database(),
        keys::commands_queue(),
        keys::messages_exchange(),
        Key::new("payload_format", Kind::choice::<PayloadFormat>(), "The format of payloads.")
            .with_default("json"),
        Key::new("attribute_prefix", Kind::choice::<AttributePrefix>(), "Prefix of the CloudEvents attributes.")
            .with_default("cloudEvents:"),
        Key::new(
            "redact",
            Kind::List(check_rule),
            "The hidden values of payloads, as TYPES POINTER, for example order.* /customer/email. The values of \
             types without a rule are all hidden.",
        )
        .with_default(""),
        Key::new("production", Kind::Boolean, "Whether this is a production system.").with_default("false"),
    ];
    table.extend(keys::transport());
    table
}

/// The sources of the settings: a profile, or the environment.
fn sources(general: &General) -> Result<Sources, Failure> {
    let mut sources = Sources {
        args: Vec::new(),
        env: env::vars_os().collect(),
        read_file: |path| fs::read_to_string(path),
    };
    if let Some(profile) = general.profile() {
        let path = profile_path(profile, general.profiles.clone().or_else(home))?;
        sources.env.clear();
        sources.args = vec!["--config".into(), path.into()];
    }
    if let Some(watch) = &general.watch {
        sources.args.extend(["--watch".into(), watch.into()]);
    }
    Ok(sources)
}

fn profile_path(profile: &str, directory: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let is_name =
        !profile.is_empty() && profile.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if !is_name {
        return Err(Failure::Argument(
            "the name of a profile consists of letters, digits, - and _; its file is NAME.toml".to_owned(),
        ));
    }
    let directory = directory.ok_or_else(|| {
        Failure::Argument("there is no home directory; name one with --profiles".to_owned())
    })?;
    Ok(directory.join(format!("{profile}.toml")))
}

fn home() -> Option<PathBuf> {
    let configuration = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let configuration =
        configuration.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(configuration.join(NAME))
}

fn read(general: &General, sources: &Sources) -> Result<Given, Failure> {
    let program = Program { name: NAME, version: env!("CARGO_PKG_VERSION"), about: "" };
    let resolved = match resolve(&program, &table(), sources) {
        Resolution::Run(resolved) | Resolution::Check(resolved) => resolved,
        Resolution::Print(text) => return Err(Failure::Settings(text)),
    };

    let mut reader = Reader::new(&resolved);
    let has_broker = reader.uri("rabbitmq_uri").expose() != NO_BROKER;
    let mut connections = Connections::read(&mut reader, NAME);
    let watch: Vec<NamespacePattern> = reader.namespaces("watch");
    let rabbitmq: Option<AmqpSettings> = connections.rabbitmq.take().filter(|_| has_broker);
    let operator = OperatorSettings::new(watch).with(|settings| {
        settings.unordered = reader.namespaces("unordered");
        settings.dead_blocks = reader.namespaces("dead_blocks");
        settings.state_database = reader.string("state_database");
        settings.commands_queue = reader.string("commands_queue");
        settings.messages_exchange = reader.string("messages_exchange");
        settings.payload_format = reader.choice("payload_format");
        settings.attribute_prefix = reader.choice("attribute_prefix");
        settings.rabbitmq = rabbitmq;
        settings.max_time = general.max_time;
        settings.read_from = if general.secondary { ReadFrom::Secondary } else { ReadFrom::Primary };
    });
    let given = Given {
        connections,
        operator,
        redact: reader.strings("redact"),
        production: reader.boolean("production"),
    };
    reader.finish(given).map_err(|problems| Failure::Settings(problems.to_string()))
}

fn check_rule(rule: &str) -> Result<(), String> {
    match rule.split_once(' ') {
        Some((_, pointer)) if pointer.trim().is_empty() || pointer.trim().starts_with('/') => Ok(()),
        _ => Err("needs TYPES, a blank, and a JSON pointer, as in order.* /customer/email".to_owned()),
    }
}

/// The rules by patterns of types. Of several patterns that match a type, the longest applies.
fn redaction(rules: &[String], reveal: Reveal) -> Result<Redaction, String> {
    let mut by_types: Vec<(&str, Vec<String>)> = Vec::new();
    for rule in rules {
        let Some((types, pointer)) = rule.split_once(' ') else { continue };
        let pointer = pointer.trim().to_owned();
        match by_types.iter_mut().find(|(known, _)| *known == types) {
            Some((_, pointers)) => pointers.push(pointer),
            None => by_types.push((types, vec![pointer])),
        }
    }
    by_types.sort_by_key(|(types, _)| std::cmp::Reverse(types.len()));
    Redaction::new(by_types.iter().map(|(types, pointers)| (*types, &pointers[..])), reveal)
}
