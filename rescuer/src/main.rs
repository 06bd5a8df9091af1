//! Runs the library `outbox-rescuer` as a program of the same name.

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
/// The maximum length of a stream's name, in bytes.
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
            "How old a message must be before it is rescued. Choose a delay longer than inline delivery \
             ever takes, and shorter than the lateness you accept after a crash. The oplog must cover more \
             time than the delay.",
        )
        .with_default("15s"),
        Key::new(
            "lease",
            Kind::Duration(SHORTEST_LEASE..=LONGEST_LEASE),
            "How long a rescuer owns a stream after each renewal of its lease. If the owner dies, another \
             rescuer takes over after at most this time.",
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
            "Interval between sweeps, which find everything that is due: retries, expired claims, scheduled \
             messages, lost commands.",
        )
        .with_default("10s"),
        Key::new(
            "full_sweep_interval",
            long.clone(),
            "Interval at which the sweep also reads entries without a date, which other programs may write.",
        )
        .with_default("1h"),
        Key::new(
            "requeue_pause",
            long,
            "How long the sweep waits before it queues a document again, unless the document's outbox \
             changes. The pause doubles each time, up to 2min.",
        )
        .with_default("30s"),
        Key::new(
            "sweep_queries_per_second",
            Kind::Integer(1..=10_000),
            "Maximum number of queries per second that the sweep sends to MongoDB.",
        )
        .with_default("50"),
        Key::new(
            "totals_interval",
            Kind::Duration(Duration::from_secs(1)..=LONGEST_DELAY),
            "Interval between counts of pending and dead messages for the metrics. Counting uses part of \
             sweep_queries_per_second.",
        )
        .with_default("30s"),
    ]
}

fn operation_keys() -> Vec<Key> {
    vec![
        Key::new(
            "page_size",
            Kind::Integer(1..=10_000),
            "Maximum number of changes or documents that are processed together.",
        )
        .with_default("500"),
        Key::new(
            "on_history_lost",
            Kind::choice::<OnHistoryLost>(),
            "What to do when the change stream cannot continue from its saved position: sweep everything \
             and continue (loses no message), fail, or continue from the latest change.",
        )
        .with_default("sweep"),
        Key::new(
            "start_at",
            Kind::Text(check_start_at),
            "For operators: at every start, ignore the saved position and read changes from this time, for \
             example 2026-01-31T12:00:00Z, or 1h for an hour ago.",
        )
        .with_default(""),
        keys::unordered(),
        keys::dead_blocks(),
        Key::new(
            "stream",
            Kind::Text(check_stream),
            "The name under which the position and the lease are stored in the state database. Rescuers \
             with the same name are standbys for each other; rescuers that watch different collections need \
             different names.",
        )
        .with_default("default"),
        keys::state_database(),
        keys::commands_exchange(),
        keys::commands_queue(),
        keys::topology(),
        // The default is short, because the process ends quickly, and because standbys shouldn't
        // wait long for a process that hangs.
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

/// Parses a time in the past, or a duration that says how long ago the time was. An empty text means `None`.
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

/// The settings of the binary that the rescuer itself doesn't have.
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
    // Without the endpoint no scraper can read the metrics, so messages are not counted.
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

/// The key of a setting. It equals the setting's name, with one exception: the key of `ownership_lease` is
/// `lease`, because earlier rescuers read that key from the same file.
fn key_of(setting: &'static str) -> &'static str {
    if setting == "ownership_lease" { "lease" } else { setting }
}

async fn serve(
    (around, settings): (BrokerSettings, Settings),
    context: Context,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let BrokerSettings { connections, exchange, queue, topology } = around;
    // Resolves host names, which may take a while.
    let Some(client) = context.stop.run_until_cancelled(connections.mongodb()).await else {
        return Ok(());
    };
    let client = client?;

    let rabbitmq = connections.rabbitmq.ok_or("the RabbitMQ URI was accepted without being read")?;
    // The publisher also declares the queue. Without a queue, commands sent before the first
    // dispatcher starts would be lost.
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
            // Waits until the rescuer has saved its positions and released its leases.
            let _ = rescuing.await;
            Err("the task that publishes commands has ended, which is a defect; please report its errors in \
                the log".into())
        }
    };

    // The rescuer has ended, so no task waits for confirms of commands any longer.
    let _ = timeout(last, publisher.close()).await;
    result
}

/// Waits until the publisher has ended. A publisher ends only when it is closed or panics.
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
