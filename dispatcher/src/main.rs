//! `outbox-dispatcher`: a shell around the library of the same name.

use std::{error::Error, sync::Arc, time::Duration};

use document_outbox::{
    RetryPolicy,
    amqp::{State, TopologyMode},
    deliver::{AttributePrefix, PayloadFormat, RabbitMq, RabbitMqSettings},
    dispatch::{Processor, ProcessorSettings},
};
use outbox_dispatcher::{Dispatcher, DispatcherSettings, Problem, Rate, Status};
use outbox_service::{Connections, Context, Daemon, Exit, Key, Kind, Reader, Report, host_name, keys};
use tokio::sync::watch;

const NAME: &str = "outbox-dispatcher";
const SECOND: Duration = Duration::from_secs(1);
/// With the five minutes for which a command is kept, well within the broker's `consumer_timeout` of 30 minutes.
const LONGEST_LEASE: Duration = Duration::from_mins(15);
const HOUR: Duration = Duration::from_hours(1);
/// The part of the grace that the worker has; the rest is for closing the connections.
const GRACE_OF_THE_WORKER: f64 = 0.9;

fn main() -> Exit {
    let about = "Consumes commands and publishes the messages that stand in documents' outboxes to RabbitMQ, for any \
                 collection, without knowing the types. Leaves alone what is for an application's own handlers.";
    Daemon::new(NAME, env!("CARGO_PKG_VERSION"), about).keys(keys::transport()).keys(table()).run(read, serve)
}

fn table() -> Vec<Key> {
    let any = |_: &str| Ok(());
    vec![
        keys::mongodb_uri(),
        keys::rabbitmq_uri(),
        keys::watch(),
        keys::unordered(),
        keys::dead_blocks(),
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
        Key::new("max_attempts", Kind::Integer(1..=1_000), "Failed attempts until a message is dead.").with_default("10"),
        Key::new(
            "backoff_min",
            Kind::Duration(Duration::from_millis(1)..=HOUR),
            "The longest wait after the first failed attempt; doubles with each.",
        )
        .with_default("1s"),
        Key::new(
            "backoff_max",
            Kind::Duration(Duration::from_millis(1)..=24 * HOUR),
            "The longest wait after any failed attempt.",
        )
        .with_default("5m"),
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
        keys::messages_exchange(),
        Key::new("payload_format", Kind::choice::<PayloadFormat>(), "How payloads are written.").with_default("json"),
        Key::new(
            "attribute_prefix",
            Kind::choice::<AttributePrefix>(),
            "What the names of CloudEvents attributes begin with, in the headers of messages.",
        )
        .with_default("cloudEvents:"),
        Key::new(
            "unroutable_ok",
            Kind::List(any),
            "Message types that count as delivered when no queue is bound for them.",
        )
        .with_default(""),
        keys::commands_exchange(),
        keys::commands_queue(),
        keys::topology(),
        keys::state_database(),
        // The rescuer has the usual port.
        keys::http_listen("127.0.0.1:9465"),
    ]
}

/// No limit but what the worker can do.
const NO_RATE: &str = "off";

fn check_rate(text: &str) -> Result<(), String> {
    match text {
        NO_RATE => Ok(()),
        rate => rate.parse::<Rate>().map(drop).map_err(|error| format!("{error}, or {NO_RATE}")),
    }
}

/// Everything read, and nothing connected.
struct Settings {
    connections: Connections,
    /// None only beside a problem that keeps the worker from starting.
    rabbitmq: Option<RabbitMqSettings>,
    processor: ProcessorSettings,
    dispatcher: DispatcherSettings,
}

fn read(read: &mut Reader<'_>) -> Settings {
    let topology: TopologyMode = read.choice("topology");
    let connections = Connections::read(read, NAME);
    let rabbitmq = connections.rabbitmq.clone().map(|amqp| RabbitMqSettings {
        amqp,
        exchange: read.string("messages_exchange"),
        topology,
        payload: read.choice("payload_format"),
        attribute_prefix: read.choice("attribute_prefix"),
        accept_unroutable: read.strings("unroutable_ok").into_iter().collect(),
    });
    let retry = RetryPolicy {
        max_attempts: read.integer("max_attempts"),
        backoff_min: read.duration("backoff_min"),
        backoff_max: read.duration("backoff_max"),
        ..RetryPolicy::default()
    };
    if retry.backoff_min > retry.backoff_max {
        read.problem(&["backoff_min", "backoff_max"], "must not be longer than backoff_max");
    }
    let processor = ProcessorSettings {
        name: format!("{NAME}@{}:{}", host_name(), std::process::id()),
        lease: read.duration("claim_lease"),
        retry,
        state_database: read.string("state_database"),
        max_repeats: read.integer("max_repeats"),
        memory_bytes: read.integer::<usize>("memory_mib") << 20,
        ..ProcessorSettings::default()
    };

    let dispatcher = read_dispatcher(read, topology);
    for Problem { settings, sentence, .. } in dispatcher.validate().err().unwrap_or_default() {
        read.problem(&settings, sentence);
    }

    Settings { connections, rabbitmq, processor, dispatcher }
}

fn read_dispatcher(read: &mut Reader<'_>, topology: TopologyMode) -> DispatcherSettings {
    let mut settings = DispatcherSettings::new(read.namespaces("watch"));
    settings.unordered = read.namespaces("unordered");
    settings.dead_blocks = read.namespaces("dead_blocks");
    settings.commands_exchange = read.string("commands_exchange");
    settings.commands_queue = read.string("commands_queue");
    settings.topology = topology;
    settings.concurrency = read.integer("concurrency");
    settings.rate = read.string("rate").parse().ok();
    settings.prefetch = read.integer("prefetch");
    settings.hold_within = read.duration("hold_within");
    settings.grace = read.duration("shutdown_grace").mul_f64(GRACE_OF_THE_WORKER);
    settings
}

async fn serve(settings: Settings, context: Context) -> Result<(), Box<dyn Error + Send + Sync>> {
    let rabbitmq = settings.rabbitmq.ok_or("the RabbitMQ URI was accepted without being read")?;
    let amqp = rabbitmq.amqp.clone();
    let client = settings.connections.mongodb().await?;
    let deliver = RabbitMq::start(rabbitmq);
    let processor = Processor::new(client, Arc::new(deliver.clone()), settings.processor);
    let mut worker = Dispatcher::new(processor, amqp, settings.dispatcher)?.start();
    context.probes.report(Worker(worker.status()));
    // Without these it would live on and do nothing.
    let ended: Result<(), Box<dyn Error + Send + Sync>> = tokio::select! {
        () = context.stop.cancelled() => Ok(()),
        ended = worker.ended() => Err(ended.into()),
        () = closed(deliver.subscribe()) => Err("the task that publishes messages has ended".into()),
    };
    worker.stop().await;
    deliver.close().await;
    ended
}

/// Waits until a connection's supervisor has ended.
async fn closed(mut states: watch::Receiver<State>) {
    // An error says so too.
    let _ = states.wait_for(|state| *state == State::Closed).await;
}

struct Worker(Status);

impl Report for Worker {
    fn not_ready(&self) -> Vec<String> {
        self.0.snapshot().not_ready
    }

    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.0.snapshot()).unwrap_or_default()
    }
}
