//! `outbox-rescuer`: a shell around the library of the same name.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use document_outbox::{
    CommandSender,
    amqp::{self, Publisher, TopologyMode},
};
use mongodb::bson::{DateTime, Timestamp};
use outbox_rescuer::{
    BrokerCommands, LONGEST_DELAY, LONGEST_LEASE, OnHistoryLost, Rescuer, SHORTEST_DELAY, SHORTEST_LEASE,
    Settings, Status,
};
use outbox_service::{Connections, Context, Daemon, Exit, Key, Kind, Reader, Report, keys};
use tokio::time::timeout;

const NAME: &str = "outbox-rescuer";
/// In bytes.
const LONGEST_STREAM: usize = 255;
/// The time for closing the connection to RabbitMQ.
const LONGEST_CLOSE: Duration = Duration::from_secs(2);
const AGAIN: &str = "write a time as in 2026-01-31T12:00:00Z, or how long ago, as in 1h";

fn main() -> Exit {
    let about = "Finds undelivered messages in documents' outboxes and has a dispatcher deliver them. Reads \
        MongoDB's change streams with a delay, sweeps due messages, and sends commands over RabbitMQ.";
    Daemon::new(NAME, env!("CARGO_PKG_VERSION"), about).keys(keys::transport()).keys(table()).run(read, serve)
}

fn table() -> Vec<Key> {
    let mut keys = vec![
        keys::mongodb_uri(),
        keys::rabbitmq_uri(),
        keys::watch(),
        Key::new(
            "delay",
            Kind::Duration(SHORTEST_DELAY..=LONGEST_DELAY),
            "How old a message must be before it is rescued. Choose it longer than inline delivery ever \
             takes, and shorter than the lateness that a crash may cause; the oplog has to reach back further.",
        )
        .with_default("15s"),
        Key::new(
            "lease",
            Kind::Duration(SHORTEST_LEASE..=LONGEST_LEASE),
            "How long a rescuer owns a stream without renewing its lease, and so how long the others wait \
             before they take over from an owner that died.",
        )
        .with_default("15s"),
    ];
    keys.extend(sweep_keys());
    keys.extend(operation_keys());
    keys
}

fn sweep_keys() -> Vec<Key> {
    let long = Kind::Duration(Duration::from_millis(100)..=LONGEST_DELAY);
    vec![
        Key::new(
            "sweep_interval",
            long.clone(),
            "How often everything that is due is swept: retries, expired claims, scheduled messages, lost commands.",
        )
        .with_default("10s"),
        Key::new(
            "full_sweep_interval",
            long.clone(),
            "How often the sweep also reads entries without a date, as other writers may leave them.",
        )
        .with_default("1h"),
        Key::new(
            "requeue_pause",
            long,
            "How long a document whose outbox doesn't change waits before the sweep queues it again; doubles each time, up \
             to 2min.",
        )
        .with_default("30s"),
        Key::new(
            "sweep_queries_per_second",
            Kind::Integer(1..=10_000),
            "How many queries a second the sweep may send to MongoDB.",
        )
        .with_default("50"),
        Key::new(
            "totals_interval",
            Kind::Duration(Duration::from_secs(1)..=LONGEST_DELAY),
            "How often pending and dead messages are counted for the metrics, out of the sweep's queries.",
        )
        .with_default("30s"),
    ]
}

fn operation_keys() -> Vec<Key> {
    vec![
        Key::new(
            "page_size",
            Kind::Integer(1..=10_000),
            "How many changes or documents are processed at a time.",
        )
        .with_default("500"),
        Key::new(
            "on_history_lost",
            Kind::choice::<OnHistoryLost>(),
            "What to do when the change stream cannot continue from its position: sweep everything and \
             continue (loses no message), fail, or continue from the latest change.",
        )
        .with_default("sweep"),
        Key::new(
            "start_at",
            Kind::Text(check_start_at),
            "An operator's tool: at every start, ignore the position and read from this time: \
             2026-01-31T12:00:00Z, or 1h for an hour ago.",
        )
        .with_default(""),
        keys::unordered(),
        keys::dead_blocks(),
        Key::new(
            "stream",
            Kind::Text(check_stream),
            "Names position and lease in the state database. Rescuers of one name are standbys for each \
             other; those that watch different collections need different names.",
        )
        .with_default("default"),
        keys::state_database(),
        keys::commands_exchange(),
        keys::commands_queue(),
        keys::topology(),
        // It ends quickly; the others shouldn't wait long if one hangs.
        keys::shutdown_grace().with_default("10s"),
    ]
}

fn check_stream(name: &str) -> Result<(), String> {
    if name.len() > LONGEST_STREAM || name.chars().any(char::is_control) {
        return Err("is longer than 255 bytes or holds a control character; choose another name".into());
    }
    Ok(())
}

fn check_start_at(text: &str) -> Result<(), String> {
    start_at(text).map(drop)
}

/// A time, or how long before now, which must be past; `None` if the text is empty.
fn start_at(text: &str) -> Result<Option<Timestamp>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let now = SystemTime::now();
    let time = match humantime::parse_duration(text) {
        Ok(ago) => now.checked_sub(ago).ok_or_else(|| format!("is too long ago; {AGAIN}"))?,
        Err(_) => DateTime::parse_rfc3339_str(text)
            .map_err(|_| format!("is neither a time nor a duration; {AGAIN}"))?
            .to_system_time(),
    };

    let seconds = time.duration_since(UNIX_EPOCH).ok().and_then(|since| u32::try_from(since.as_secs()).ok());
    let Some(seconds) = seconds else {
        return Err(format!("is not a time that MongoDB's log can have; {AGAIN}"));
    };
    if SystemTime::now() < UNIX_EPOCH + Duration::from_secs(seconds.into()) {
        return Err("is in the future; name a time in the past".into());
    }
    Ok(Some(Timestamp { time: seconds, increment: 1 }))
}

/// The binary's settings in addition to the rescuer's own.
struct BrokerSettings {
    connections: Connections,
    exchange: String,
    queue: String,
    topology: TopologyMode,
}

fn read(read: &mut Reader<'_>) -> (BrokerSettings, Settings) {
    let mut settings = Settings::new(read.namespaces("watch"));
    settings.unordered = read.namespaces("unordered");
    settings.dead_blocks = read.namespaces("dead_blocks");
    settings.stream = read.string("stream");
    settings.delay = read.duration("delay");
    settings.ownership_lease = read.duration("lease");
    settings.totals_interval = read.duration("totals_interval");
    // Without an endpoint the metrics could not be read.
    settings.count_totals = read.string("http_listen") != "off";
    settings.shutdown_grace = Some(read.duration("shutdown_grace"));
    settings.start_at = start_at(&read.string("start_at")).ok().flatten();
    settings.sweep_interval = read.duration("sweep_interval");
    settings.full_sweep_interval = read.duration("full_sweep_interval");
    settings.requeue_pause = read.duration("requeue_pause");
    settings.sweep_queries_per_second = read.integer("sweep_queries_per_second");
    settings.page_size = read.integer("page_size");
    settings.on_history_lost = read.choice("on_history_lost");
    settings.state_database = read.string("state_database");

    for problem in settings.validate().err().unwrap_or_default().0 {
        let keys: Vec<_> = problem.settings.into_iter().map(key_of).collect();
        read.problem(&keys, problem.sentence);
    }

    let around = BrokerSettings {
        connections: Connections::read(read, NAME),
        exchange: read.string("commands_exchange"),
        queue: read.string("commands_queue"),
        topology: read.choice("topology"),
    };
    (around, settings)
}

/// The key of a setting. All but one have the setting's name: the key `lease` is older, and rescuers of earlier versions read the
/// same file.
fn key_of(setting: &'static str) -> &'static str {
    if setting == "ownership_lease" { "lease" } else { setting }
}

async fn serve(
    (around, settings): (BrokerSettings, Settings),
    context: Context,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let BrokerSettings { connections, exchange, queue, topology } = around;
    // Resolves names, which may take a while.
    let Some(client) = context.stop.run_until_cancelled(connections.mongodb()).await else {
        return Ok(());
    };
    let client = client?;

    let rabbitmq = connections.rabbitmq.ok_or("the RabbitMQ URI was accepted without being read")?;
    // Declares the queue as well: without it, commands that are sent before the first dispatcher starts would
    // be lost.
    let publisher = Publisher::start(rabbitmq, CommandSender::topology(&exchange, &queue, topology));
    let commands = Arc::new(BrokerCommands::new(publisher.clone(), &exchange));

    let last = LONGEST_CLOSE.min(settings.shutdown_grace.unwrap_or(LONGEST_CLOSE) / 4);
    let rescuer = Rescuer::new(client, commands, settings)?;
    context.probes.report(Health { status: rescuer.status(), publisher: publisher.clone() });

    let stop = context.stop.child_token();
    let rescuing = rescuer.run(stop.clone());
    tokio::pin!(rescuing);
    let result = tokio::select! {
        ended = &mut rescuing => ended.map_err(Into::into),
        () = ended(&publisher) => {
            stop.cancel();
            // The position and the lease are saved for another rescuer.
            let _ = rescuing.await;
            Err("the task that publishes commands has ended, which is a defect; please report its errors in \
                the log".into())
        }
    };

    // There is no more wait for confirms.
    let _ = timeout(last, publisher.close()).await;
    result
}

/// Waits until the publisher has ended, which it does only when it is closed or panics.
async fn ended(publisher: &Publisher) {
    let mut states = publisher.subscribe();
    while *states.borrow() != amqp::State::Closed {
        if states.changed().await.is_err() {
            return;
        }
    }
}

struct Health {
    status: Status,
    publisher: Publisher,
}

impl Report for Health {
    fn not_ready(&self) -> Vec<String> {
        let mut why = self.status.snapshot().not_ready;
        if !self.publisher.is_ready() {
            why.push("RabbitMQ takes no commands".into());
        }
        why
    }

    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.status.snapshot()).unwrap_or_default()
    }
}
