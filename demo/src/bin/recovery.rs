//! Measures a recovery. `scripts/measure-recovery` builds the services and runs this program.
//!
//! The program creates documents with undelivered messages, as after a long outage, and lets the processes
//! `outbox-rescuer` and `outbox-dispatcher` deliver these messages at a limited rate. Meanwhile an application saves
//! 50 new documents per second and delivers their messages inline. The program prints how long such a save takes until
//! its message is confirmed and cleared, without and with a concurrent recovery. It also prints the maximum number of
//! recovered messages that a consumer received in one second.
//!
//! Needs MongoDB (a replica set) and RabbitMQ, and uses separate names in both.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers of a demonstration are small"
)]

use std::{
    collections::HashSet,
    error::Error,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use document_outbox::{
    Aggregate, InlineDispatcher, Message, Mode, Outbox, Store,
    amqp::{AmqpSettings, Consumer, ExchangeKind, ExchangeSpec, QueueSpec, Topology, TopologyMode},
    deliver::{RabbitMq, RabbitMqSettings},
    store::Inserted,
};
use mongodb::{
    Client, Collection, Database,
    bson::{DateTime, Uuid, doc},
};
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};

type Failure = Box<dyn Error + Send + Sync>;

const NAME: &str = "measure_recovery";
const STATE: &str = "measure_recovery_state";
const EVERY: Duration = Duration::from_millis(20);

/// A document that the application saves, and whose message the application delivers inline.
#[derive(Serialize, Deserialize, Aggregate)]
struct Order {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize, Message)]
#[message(type = "fresh")]
struct Fresh {
    order: String,
}

/// The type of the undelivered messages.
const STRANDED: &str = "stranded";

struct Options {
    documents: usize,
    rate: String,
    idle: Duration,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let Options { documents, rate, idle } = options()?;
    let (mongodb, rabbitmq) = (std::env::var("OUTBOX_MONGODB_URI")?, std::env::var("OUTBOX_RABBITMQ_URI")?);
    let client = Client::with_uri_str(&mongodb).await?;
    let database = client.database(NAME);
    database.drop().await?;
    client.database(STATE).drop().await?;

    let consumer = Received::start(&rabbitmq).await?;
    let deliver =
        RabbitMq::start(RabbitMqSettings { exchange: NAME.into(), ..RabbitMqSettings::new(&rabbitmq)? });
    let inline = InlineDispatcher::builder(&client).mode(Mode::Await).deliver_to(deliver);
    let orders = Store::<Order>::new(database.collection::<Order>("orders"), &inline);
    orders.ensure_indexes().await?;
    println!("stranding {documents} documents");
    strand(&database, documents).await?;

    let saves = Saves::start(orders);
    println!("{}", saves.measure("idle, before", tokio::time::sleep(idle)).await);

    consumer.forget();
    let started = Instant::now();
    let environment = [("OUTBOX_RATE", rate.as_str()), ("OUTBOX_MESSAGES_EXCHANGE", NAME)];
    let _dispatcher = service("outbox-dispatcher", &environment)?;
    let _rescuer = service("outbox-rescuer", &[])?;
    println!("{}", saves.measure(&format!("recovery at {rate}"), consumer.wait(documents)).await);
    let took = started.elapsed();

    println!("{}", saves.measure("idle, after", tokio::time::sleep(idle)).await);
    println!("{}", consumer.report(took));
    saves.stop().await;
    database.drop().await?;
    client.database(STATE).drop().await?;
    Ok(())
}

fn options() -> Result<Options, Failure> {
    let mut options = Options { documents: 100_000, rate: "500/s".into(), idle: Duration::from_secs(30) };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} takes a value"))?;
        match flag.as_str() {
            "--documents" => options.documents = value.parse()?,
            "--rate" => options.rate = value,
            "--idle" => options.idle = Duration::from_secs(value.parse()?),
            _ => return Err("usage: recovery [--documents 100000] [--rate 500/s] [--idle SECONDS]".into()),
        }
    }
    Ok(options)
}

/// Creates documents as if the process that saved them had died an hour ago, between the save and the delivery.
async fn strand(database: &Database, documents: usize) -> Result<(), Failure> {
    let collection: Collection<mongodb::bson::Document> = database.collection("orders");
    let then = DateTime::from_millis(DateTime::now().timestamp_millis() - 3_600_000);
    let stranded = |nth: usize| {
        let entry = doc! {
            "id": Uuid::new(), "type": STRANDED, "payload": { "order": nth as i64, "note": "x".repeat(500) },
            "created_at": then, "available_at": then,
        };
        doc! { "_id": format!("stranded-{nth}"), "outbox": [entry] }
    };
    let all: Vec<usize> = (0..documents).collect();
    for batch in all.chunks(1_000) {
        collection.insert_many(batch.iter().map(|nth| stranded(*nth))).await?;
    }
    Ok(())
}

/// Starts a service whose executable is in the same folder as this program.
fn service(name: &str, environment: &[(&str, &str)]) -> Result<Child, Failure> {
    let this = std::env::current_exe()?;
    let folder = this.parent().ok_or("the folder of this program is unknown")?;
    let child = Command::new(folder.join(name))
        .env("OUTBOX_WATCH", format!("{NAME}.orders"))
        .env("OUTBOX_STATE_DATABASE", STATE)
        .env("OUTBOX_COMMANDS_EXCHANGE", format!("{NAME}.commands"))
        .env("OUTBOX_COMMANDS_QUEUE", format!("{NAME}.commands"))
        .env("OUTBOX_LOG_FILTER", "warn")
        .env("OUTBOX_HTTP_LISTEN", "127.0.0.1:0")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    child.map_err(|error| {
        format!("{name} could not be started ({error}): run scripts/measure-recovery").into()
    })
}

/// An application that makes saves at a fixed pace, however long each save takes.
struct Saves {
    /// The start and duration of each save.
    taken: Arc<Mutex<Vec<(Instant, Duration)>>>,
    task: JoinHandle<()>,
}

impl Saves {
    fn start(orders: Store<Order>) -> Self {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let notes = taken.clone();
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            let mut pace = interval(EVERY);
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for nth in 0u64.. {
                let due = pace.tick().await;
                let (orders, taken) = (orders.clone(), notes.clone());
                tasks.spawn(async move {
                    let mut order = Order { id: format!("fresh-{nth}"), outbox: Outbox::default() };
                    order.outbox.send(Fresh { order: order.id.clone() });
                    match orders.insert(order).await {
                        Ok(Inserted::Applied(..)) => {
                            let one = (due.into_std(), due.elapsed());
                            taken.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                        }
                        other => eprintln!("a save failed: {:?}", other.err()),
                    }
                });
                while tasks.try_join_next().is_some() {}
            }
        });
        Self { taken, task }
    }

    async fn stop(self) {
        self.task.abort();
        // An error means that the task was aborted.
        let _ = self.task.await;
    }

    /// Measures the saves that begin while `until` runs.
    async fn measure(&self, phase: &str, until: impl Future<Output = ()>) -> String {
        let begun = Instant::now();
        until.await;
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken: Vec<_> = taken.iter().filter(|one| one.0 >= begun).map(|one| one.1).collect();
        taken.sort_unstable();
        let at = |share: f64| taken.get((taken.len() as f64 * share) as usize).copied().unwrap_or_default();
        let (p50, p99, count) = (at(0.5), at(0.99), taken.len());
        format!("{phase:<20} {count:>6} saves  p50 {p50:>9.2?}  p99 {p99:>9.2?}  load {}", load())
    }
}

/// The stranded messages that a consumer of all messages has received.
struct Received {
    received: watch::Sender<Vec<(Instant, String)>>,
}

impl Received {
    async fn start(rabbitmq: &str) -> Result<Self, Failure> {
        let queue = format!("{NAME}.received");
        let topology = Topology {
            exchanges: vec![ExchangeSpec { name: NAME.into(), kind: ExchangeKind::Topic }],
            queues: vec![QueueSpec {
                name: queue.clone(),
                bind: vec![(NAME.into(), "#".into())],
                ..QueueSpec::default()
            }],
            mode: TopologyMode::Declare,
        };
        let consumer = Consumer::start(AmqpSettings::new(rabbitmq)?, topology, queue, 1_000, NAME.into());
        consumer.ready().await;
        let received = watch::Sender::new(Vec::new());
        let sender = received.clone();
        tokio::spawn(async move {
            while let Some(delivery) = consumer.next().await {
                if delivery.message_type.as_deref() == Some(STRANDED) {
                    let one = (Instant::now(), delivery.message_id.clone().unwrap_or_default());
                    sender.send_modify(|received| received.push(one));
                }
                delivery.ack().await;
            }
        });
        Ok(Self { received })
    }

    /// Forgets messages that an earlier run left in the queue.
    fn forget(&self) {
        self.received.send_modify(Vec::clear);
    }

    async fn wait(&self, count: usize) {
        // The wait can't fail, because the channel's sender lives as long as this program.
        let _ = self.received.subscribe().wait_for(|received| received.len() >= count).await;
    }

    fn report(&self, took: Duration) -> String {
        let received = self.received.borrow();
        let (mut most, mut first) = (0, 0);
        for (last, (at, _)) in received.iter().enumerate() {
            while received.get(first).is_some_and(|one| *at - one.0 >= Duration::from_secs(1)) {
                first += 1;
            }
            most = most.max(last - first + 1);
        }
        let different = received.iter().map(|one| &one.1).collect::<HashSet<_>>().len();
        let (count, twice) = (received.len(), received.len() - different);
        let rate = count as f64 / took.as_secs_f64();
        format!(
            "recovered {count} in {took:.1?}, {rate:.0}/s; at most {most} came in any one second; {twice} arrived twice"
        )
    }
}

/// Describes the machine's load and number of cores.
fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} on {cores} cores", load.split(' ').next().unwrap_or("unknown"))
}
