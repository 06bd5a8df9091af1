//! Tests processes of the binary that are killed, paused or stopped while a writer continues.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use document_outbox::{
    CommandSender,
    amqp::{AmqpSettings, Consumer, TopologyMode},
    command::ProcessDocumentMessages,
};
use futures::future::join_all;
use mongodb::bson::{Document, doc};
use tokio::time::timeout;

use crate::{
    network::{Network, host},
    private_broker::PrivateBroker,
    support::*,
};

/// A process of `outbox-rescuer`, and its log.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    fn id(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.id()]).status().unwrap();
        assert!(sent.success(), "{signal}");
    }

    fn logged(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a log line with this text, from line number `from` on.
    pub(crate) async fn logs(&self, text: &str, from: usize) {
        until(&format!("{} to log {text:?}", self.id()), || async {
            self.logged()[from..].iter().any(|line| line.contains(text)).then_some(())
        })
        .await;
    }

    /// The number of collections for which the process's metrics show a number of pending
    /// documents.
    fn series(&self) -> usize {
        let log = self.logged();
        let address = log.iter().find_map(|line| line.split_once("address=")).unwrap().1;
        let mut probes = TcpStream::connect(address.trim()).unwrap();
        probes.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        let mut metrics = String::new();
        probes.read_to_string(&mut metrics).unwrap();
        metrics.matches("\noutbox_pending_documents{").count()
    }

    pub(crate) async fn ended(&mut self) -> bool {
        let child = Mutex::new(&mut self.child);
        let ended = || async { child.lock().unwrap().try_wait().unwrap() };
        until("the process to end", ended).await.success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let told = self.logged().into_iter().filter(|line| !line.contains("queued document"));
            eprintln!("log of {}:\n{}", self.id(), told.collect::<Vec<_>>().join("\n"));
        }
    }
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Two rescuers with the same name, a writer that continues, and a consumer of commands.
pub(crate) struct Replicas {
    pub(crate) world: World,
    broker: String,
    name: String,
    lease: &'static str,
    writer: tokio::task::JoinHandle<()>,
    written: Arc<Mutex<i32>>,
    consumer: Consumer,
    seen: HashSet<i32>,
}

impl Replicas {
    pub(crate) async fn new(lease: &'static str) -> Self {
        Self::on(&rabbitmq_uri(), lease).await
    }

    /// Creates the same processes, with another broker for the commands.
    pub(crate) async fn on(broker: &str, lease: &'static str) -> Self {
        let world = World::new().await;
        let orders = world.indexed_orders().await;
        let name = world.app_name.clone();
        let amqp = AmqpSettings::new(broker).unwrap();
        let topology = CommandSender::topology(&name, &name, TopologyMode::Declare);
        let consumer = Consumer::start(amqp, topology, name.clone(), 100, "test".into());
        let written = Arc::new(Mutex::new(0));
        let writer = tokio::spawn({
            let written = written.clone();
            async move {
                for id in 0.. {
                    orders.insert_one(doc! { "_id": id, "outbox": [dated(0, 0)] }).await.unwrap();
                    *written.lock().unwrap() = id + 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
        let (broker, seen) = (broker.to_owned(), HashSet::new());
        Self { world, broker, name, lease, writer, written, consumer, seen }
    }

    pub(crate) fn start(&self) -> Process {
        self.start_with(&[])
    }

    /// Starts a process with additional environment variables for its settings.
    fn start_with(&self, environment: &[(&str, &str)]) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outbox-rescuer"))
            .env("OUTBOX_MONGODB_URI", format!("{}&appName={}", mongodb_uri(), self.world.app_name))
            .env("OUTBOX_RABBITMQ_URI", &self.broker)
            .env("OUTBOX_SHUTDOWN_GRACE", "4s")
            .env("OUTBOX_WATCH", format!("{}.*", self.world.db.name()))
            .env("OUTBOX_STATE_DATABASE", self.world.state.name())
            .env("OUTBOX_COMMANDS_EXCHANGE", &self.name)
            .env("OUTBOX_COMMANDS_QUEUE", &self.name)
            .env("OUTBOX_DELAY", "1s")
            .env("OUTBOX_LEASE", self.lease)
            .env("OUTBOX_SWEEP_INTERVAL", "1h")
            .env("OUTBOX_HTTP_LISTEN", "127.0.0.1:0")
            .env("OUTBOX_LOG_FILTER", "info,outbox_rescuer=debug")
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| into.lock().unwrap().push(line));
        });
        Process { child, log }
    }

    /// The lease, once this process owns it.
    async fn owned_by(&self, process: &Process) -> Document {
        let owner = format!("/{}/", process.id());
        let mine = doc! { "owner": { "$regex": owner } };
        let leases = self.world.leases();
        until("the process to own the stream", || async { leases.find_one(mine.clone()).await.unwrap() })
            .await
    }

    /// Waits until this many more documents have been written.
    async fn more_are_written(&self, documents: i32) {
        let enough = *self.written.lock().unwrap() + documents;
        until("more to be written", || async { (*self.written.lock().unwrap() >= enough).then_some(()) })
            .await;
    }

    /// Consumes commands until there was a command for every document that was written so far.
    async fn nothing_is_lost(&mut self) {
        let written = *self.written.lock().unwrap();
        while !(0..written).all(|id| self.seen.contains(&id)) {
            let delivery = timeout(PATIENCE, self.consumer.next()).await;
            let delivery = delivery.expect("every document has its command").unwrap();
            let command = ProcessDocumentMessages::from_json(&delivery.body).unwrap();
            self.seen.extend(command.document.id().as_i32());
            delivery.ack().await;
        }
    }

    pub(crate) async fn end(self) {
        self.writer.abort();
        let _ = self.writer.await;
        self.consumer.close().await;
        remove(&self.broker, &self.name, &self.name).await;
        self.world.end().await;
    }
}

#[tokio::test]
async fn a_killed_owner_is_replaced_without_loss() {
    let mut replicas = Replicas::new("2s").await;
    let mut first = replicas.start();
    let lease = replicas.owned_by(&first).await;
    let second = replicas.start();
    second.logs("standing by", 0).await;
    replicas.nothing_is_lost().await;
    first.child.kill().unwrap();
    let taken = replicas.owned_by(&second).await;
    assert_eq!(taken.get_i64("epoch").unwrap(), lease.get_i64("epoch").unwrap() + 1);
    replicas.nothing_is_lost().await;
    replicas.end().await;
}

#[tokio::test]
async fn a_paused_owner_neither_queues_nor_saves_on_waking() {
    let mut replicas = Replicas::new("1s").await;
    let first = replicas.start();
    replicas.owned_by(&first).await;
    let second = replicas.start();
    second.logs("standing by", 0).await;
    first.signal("-STOP");
    replicas.owned_by(&second).await;
    replicas.nothing_is_lost().await;
    let before = first.logged().len();
    first.signal("-CONT");
    first.logs(": standing by ", before).await;
    let since = first.logged()[before..].to_vec();
    let worked = |line: &&String| line.contains("queued document");
    assert_eq!(since.iter().filter(worked).collect::<Vec<_>>(), [""; 0], "{since:#?}");
    let owner = replicas.world.position().await.get_str("owner").unwrap().to_owned();
    assert!(owner.contains(&second.id()), "{owner}");
    // Then the second rescuer is paused, and the first rescuer takes over the stream.
    second.signal("-STOP");
    replicas.owned_by(&first).await;
    replicas.nothing_is_lost().await;
    second.signal("-CONT");
    second.logs("no longer the owner", 0).await;
    replicas.end().await;
}

/// The lease would last for ten minutes, so the stream changes hands only by a release.
#[tokio::test]
async fn a_stopped_owner_hands_over_immediately_without_loss() {
    let mut replicas = Replicas::new("10m").await;
    let mut first = replicas.start();
    replicas.owned_by(&first).await;
    let mut second = replicas.start();
    second.logs("standing by", 0).await;
    first.signal("-TERM");
    assert!(first.ended().await);
    replicas.owned_by(&second).await;
    replicas.nothing_is_lost().await;
    second.signal("-TERM");
    assert!(second.ended().await);
    replicas.end().await;
}

/// P5, with real connections: the first rescuer can reach no broker, and owns the stream until a rescuer
/// with a broker takes over.
#[tokio::test]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_rescuer_without_broker_yields_to_another() {
    let mut replicas = Replicas::new("15s").await;
    let wrong = replicas.broker.replace(&host(&replicas.broker), "127.0.0.1:1");
    let first = replicas.start_with(&[("OUTBOX_RABBITMQ_URI", &wrong)]);
    replicas.owned_by(&first).await;
    let second = replicas.start();
    replicas.owned_by(&second).await;
    replicas.nothing_is_lost().await;
    replicas.end().await;
}

/// These tests stop, block or boot a server.
mod outage {
    use super::*;

    /// If the broker hangs, is gone, or takes no messages while commands are in flight, SIGTERM still stops
    /// the rescuer within its grace period.
    #[tokio::test]
    #[ignore = "stress: run by scripts/stress"]
    async fn stress_a_broken_broker_delays_no_stop() {
        for trouble in ["silence", "stop", "alarm"] {
            let broker = PrivateBroker::start().await;
            let network = Network::to(&broker.uri);
            let mut replicas = Replicas::on(&broker.uri, "10m").await;
            let mut process = replicas.start_with(&[("OUTBOX_RABBITMQ_URI", &network.uri())]);
            replicas.more_are_written(1).await;
            replicas.nothing_is_lost().await;
            match trouble {
                "silence" => network.swallow(true),
                "stop" => broker.stop().await,
                _ => broker.raise_alarm().await,
            }
            // Writes at most once every 10 ms, so that the first of these documents are older than the delay
            // when the loop ends.
            for _ in 0..200 {
                replicas.more_are_written(1).await;
            }

            process.signal("-TERM");
            assert!(process.ended().await, "{trouble}: cut off");
            let lease = replicas.world.leases().find_one(doc! {}).await.unwrap().unwrap();
            assert!(!lease.contains_key("until"), "{trouble}: the lease is kept: {lease}");
            match trouble {
                "silence" => network.cut(),
                "stop" => broker.start_again().await,
                _ => broker.lift_alarm().await,
            }
            replicas.end().await;
        }
    }
}

/// P8, P7: collections are created and dropped, a hundred at a time, and their series appear and disappear
/// with them.
#[tokio::test]
#[ignore = "stress: run by scripts/stress"]
async fn stress_series_of_dropped_collections_go_with_them() {
    const ROUNDS: usize = 10;
    const COLLECTIONS: usize = 100;
    let replicas = Replicas::new("15s").await;
    let often = [("OUTBOX_TOTALS_INTERVAL", "1s"), ("OUTBOX_SWEEP_QUERIES_PER_SECOND", "10000")];
    let process = replicas.start_with(&often);
    process.logs("status are served", 0).await;
    let counts = |wanted: usize| {
        let process = &process;
        async move { (process.series() == wanted).then_some(()) }
    };
    until("the orders to be counted", || counts(1)).await;

    for round in 0..ROUNDS {
        let names: Vec<_> = (0..COLLECTIONS).map(|n| format!("daily_{round}_{n}")).collect();
        join_all(names.iter().map(|name| async {
            let daily = replicas.world.db.collection::<Document>(name);
            index(&daily).await;
            daily.insert_one(doc! { "outbox": [dated(0, 0)] }).await.unwrap();
        }))
        .await;
        until("all to be counted", || counts(1 + COLLECTIONS)).await;
        join_all(names.iter().map(|name| async {
            replicas.world.db.collection::<Document>(name).drop().await.unwrap();
        }))
        .await;
        until("none of them to be counted", || counts(1)).await;
    }
    drop(process);
    replicas.end().await;
}
