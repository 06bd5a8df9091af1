//! Tests the binary: several processes run at a time, are killed, and are stopped under load.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::Duration,
};

use futures::StreamExt;
use lapin::{
    options::{
        BasicConsumeOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
};
use mongodb::bson::{DateTime, Uuid, doc};
use tokio::{
    process::{Child, Command},
    sync::watch,
};

use crate::{
    scene::Scene,
    support::{LONG, uri},
};

/// One worker process.
struct Process {
    child: Child,
    /// A text that only this worker's `claimed_by` values contain.
    name: String,
}

impl Process {
    fn start(scene: &Scene, arguments: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_outbox-dispatcher"))
            .env("OUTBOX_MONGODB_URI", uri("OUTBOX_MONGODB_URI"))
            .env("OUTBOX_RABBITMQ_URI", &scene.broker)
            .env("OUTBOX_WATCH", format!("{}.*", scene.test.database.name()))
            .env("OUTBOX_COMMANDS_EXCHANGE", &scene.name)
            .env("OUTBOX_COMMANDS_QUEUE", &scene.name)
            .env("OUTBOX_MESSAGES_EXCHANGE", scene.messages())
            .env("OUTBOX_STATE_DATABASE", format!("{}_state", scene.test.database.name()))
            .env("OUTBOX_HTTP_LISTEN", "127.0.0.1:0")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let name = format!(":{}/", child.id().unwrap());
        Self { child, name }
    }

    /// Sends SIGTERM, and returns whether the process ended within its grace period.
    async fn terminate(mut self) -> bool {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        tokio::time::timeout(LONG, self.child.wait()).await.expect("it ends").unwrap().success()
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Receives the messages of all types from a queue, in the queue's order. Each message is recorded
/// by its id, with its document and its amount.
struct Receiver {
    received: watch::Receiver<Vec<(String, String, i64)>>,
}

impl Receiver {
    async fn start(scene: &Scene) -> Self {
        let (exchange, queue) = (scene.messages(), format!("{}.received", scene.name));
        let channel = &scene.outside;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default;
        channel
            .exchange_declare(exchange.clone().into(), lapin::ExchangeKind::Topic, durable, none())
            .await
            .unwrap();
        channel.queue_declare(queue.clone().into(), QueueDeclareOptions::default(), none()).await.unwrap();
        channel
            .queue_bind(
                queue.clone().into(),
                exchange.into(),
                "#".into(),
                QueueBindOptions::default(),
                none(),
            )
            .await
            .unwrap();
        let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut deliveries = channel.basic_consume(queue.into(), "".into(), consume, none()).await.unwrap();
        let (sender, received) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = deliveries.next().await {
                let id = delivery.properties.message_id().as_ref().unwrap().to_string();
                let headers = delivery.properties.headers().as_ref().unwrap();
                let subject = headers.inner().get("cloudEvents:subject").unwrap();
                let subject = subject.as_long_string().unwrap().to_string();
                let body: serde_json::Value = serde_json::from_slice(&delivery.data).unwrap();
                sender.send_modify(|all| all.push((id, subject, body["amount"].as_i64().unwrap())));
            }
        });
        Self { received }
    }

    /// Waits until `different` distinct messages have arrived, and returns all messages, including repeats.
    async fn wait(&self, different: usize) -> Vec<(String, String, i64)> {
        let mut received = self.received.clone();
        let ids =
            |all: &[(String, String, i64)]| all.iter().map(|one| one.0.clone()).collect::<BTreeSet<_>>();
        let enough = tokio::time::timeout(LONG, received.wait_for(|all| ids(all).len() >= different)).await;
        let Ok(all) = enough else { panic!("{} of {different} came", ids(&self.received.borrow()).len()) };
        all.unwrap().clone()
    }
}

/// P4: the first deliveries of messages are in their document's order.
fn assert_in_order(received: &[(String, String, i64)], messages: i64) {
    let mut seen = BTreeSet::new();
    let mut documents = BTreeMap::<&str, Vec<i64>>::new();
    for (id, document, amount) in received {
        if seen.insert(id) {
            documents.entry(document).or_default().push(*amount);
        }
    }
    for (document, amounts) in documents {
        assert_eq!(amounts, (1..=messages).collect::<Vec<_>>(), "{document}");
    }
}

/// Collects every `claimed_by` that is written from now on.
async fn claims(scene: &Scene) -> watch::Receiver<Vec<String>> {
    let mut changes = scene.test.orders().watch().await.unwrap();
    let (sender, claims) = watch::channel(Vec::new());
    tokio::spawn(async move {
        loop {
            let Some(change) = changes.next_if_any().await.unwrap() else {
                if sender.is_closed() {
                    return;
                }
                continue;
            };
            let updated = change.update_description.map(|update| update.updated_fields).unwrap_or_default();
            sender.send_modify(|claims| claims.push(updated.to_string()));
        }
    });
    claims
}

async fn until_claimed(claims: &watch::Receiver<Vec<String>>, by: &Process) {
    let mut claims = claims.clone();
    let by_it = |claims: &Vec<String>| claims.iter().any(|claim| claim.contains(&by.name));
    drop(tokio::time::timeout(LONG, claims.wait_for(by_it)).await.expect("it claims").unwrap());
}

impl Scene {
    async fn until_consumed_by(&self, workers: u32) {
        let look = async {
            loop {
                let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                let queue = self
                    .outside
                    .queue_declare(self.name.clone().into(), passive, FieldTable::default())
                    .await
                    .unwrap();
                if queue.consumer_count() == workers {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, look).await.expect("this many workers consume commands");
    }

    async fn strike_binary(self) {
        let queue = format!("{}.received", self.name);
        self.outside.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        self.outside.exchange_delete(self.messages().into(), ExchangeDeleteOptions::default()).await.unwrap();
        self.test.client.database(&format!("{}_state", self.test.database.name())).drop().await.unwrap();
        self.strike().await;
    }
}

fn documents(prefix: &str, count: i64) -> impl Iterator<Item = (String, i64)> {
    (0..count).map(move |nth| (format!("{prefix}-{nth}"), MESSAGES))
}

const MESSAGES: i64 = 5;

/// Runs two dispatchers on a backlog of `documents_each` documents, twice, and kills one dispatcher
/// in the middle of the second backlog. Returns the number of messages that arrived twice.
async fn one_of_two_is_killed(documents_each: i64, concurrency: usize, lease: &str) -> usize {
    let messages = documents_each as usize * MESSAGES as usize;
    let scene = Scene::set().await;
    let receiver = Receiver::start(&scene).await;
    let claims = claims(&scene).await;
    // There is no rescuer, so the remaining dispatcher must have room to keep all commands of the killed
    // dispatcher for longer than the killed dispatcher's claims last.
    let (prefetch, concurrency) =
        (format!("--prefetch={}", 4 * concurrency), format!("--concurrency={concurrency}"));
    let arguments = [prefetch.as_str(), concurrency.as_str(), "--hold-within=1m", lease];
    let (one, other) = (Process::start(&scene, &arguments), Process::start(&scene, &arguments));
    scene.until_consumed_by(2).await;

    scene.strand(documents("first", documents_each)).await;
    let received = receiver.wait(messages).await;
    scene.test.wait_until_all_are_empty().await;
    assert_eq!(received.len(), messages, "no message arrives twice");
    assert_in_order(&received, MESSAGES);
    until_claimed(&claims, &one).await;
    until_claimed(&claims, &other).await;

    let before = claims.borrow().len();
    scene.strand(documents("second", documents_each)).await;
    let at_work = |claims: &Vec<String>| claims[before..].iter().any(|claim| claim.contains(&one.name));
    drop(tokio::time::timeout(LONG, claims.clone().wait_for(at_work)).await.unwrap().unwrap());
    receiver.wait(messages + messages / 2).await;
    one.kill().await;
    let received = receiver.wait(2 * messages).await;
    scene.test.wait_until_all_are_empty().await;
    assert_in_order(&received, MESSAGES);

    assert!(other.terminate().await);
    assert!(scene.queue_is_empty().await);
    scene.strike_binary().await;
    received.len() - 2 * messages
}

/// P2, P3, P4 with several dispatchers: every message arrives once and in order, or at least once if a
/// dispatcher is killed at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_dispatcher_continues_when_another_is_killed() {
    one_of_two_is_killed(200, 4, "--claim-lease=2s").await;
}

/// P3 (a): a killed dispatcher repeats at most `max_repeats` messages, which is 256 by default. The backlog
/// has 4,500 messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_killed_dispatcher_repeats_no_more_than_its_bound() {
    let repeats = one_of_two_is_killed(900, 256, "--claim-lease=10s").await;
    println!("{repeats} messages came twice");
    assert!(repeats <= 256, "{repeats}");
}

/// On SIGTERM, unfinished commands are finished or returned, and claims are released, within the grace
/// period. No message is lost or repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_loses_and_repeats_no_message() {
    const DOCUMENTS: i64 = 1_000;
    let scene = Scene::set().await;
    let receiver = Receiver::start(&scene).await;
    scene.strand(documents("o", DOCUMENTS)).await;
    // The deliveries are so slow that the worker can't finish before the signal.
    for stop_after in [20, 100] {
        let process = Process::start(&scene, &["--rate=100/s"]);
        receiver.wait(stop_after).await;
        assert!(process.terminate().await, "the process ended within its grace period");
        let claimed = doc! { "outbox.claimed_by": { "$exists": true } };
        assert_eq!(scene.test.orders().count_documents(claimed).await.unwrap(), 0, "nothing stays claimed");
        let counted =
            doc! { "$or": [{ "outbox.attempts": { "$gt": 0 } }, { "outbox.claims": { "$gt": 0 } }] };
        assert_eq!(scene.test.orders().count_documents(counted).await.unwrap(), 0, "a stop costs no attempt");
        let left = doc! { "outbox.0": { "$exists": true } };
        assert!(
            scene.test.orders().count_documents(left).await.unwrap() > 0,
            "otherwise the worker was not under load"
        );
    }
    // Now the worker is stopped at full speed, with the maximum number of messages in flight.
    let process = Process::start(&scene, &[]);
    receiver.wait(300).await;
    assert!(process.terminate().await);
    let process = Process::start(&scene, &[]);
    let received = receiver.wait((DOCUMENTS * MESSAGES) as usize).await;
    scene.test.wait_until_all_are_empty().await;
    assert!(process.terminate().await);
    assert_eq!(received.len(), (DOCUMENTS * MESSAGES) as usize, "no message arrives twice");
    assert_in_order(&received, MESSAGES);
    assert!(scene.queue_is_empty().await);
    scene.strike_binary().await;
}

impl Process {
    /// The process's peak memory, in MiB, according to the kernel.
    fn peak(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id().unwrap());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }
}

/// Makes one worker deliver documents of ten messages of this many bytes, and returns its peak memory.
async fn peak_of(documents: usize, bytes: usize, arguments: &[&str]) -> u64 {
    let scene = Scene::set().await;
    let (exchange, queue) = (scene.messages(), format!("{}.received", scene.name));
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default;
    let topic = lapin::ExchangeKind::Topic;
    scene.outside.exchange_declare(exchange.clone().into(), topic, durable, none()).await.unwrap();
    // The queue keeps only the latest message.
    let mut newest = FieldTable::default();
    newest.insert("x-max-length".into(), 1.into());
    let declare = QueueDeclareOptions::default();
    scene.outside.queue_declare(queue.clone().into(), declare, newest).await.unwrap();
    let bind = QueueBindOptions::default();
    scene.outside.queue_bind(queue.into(), exchange.into(), "#".into(), bind, none()).await.unwrap();

    let payload = doc! { "text": "x".repeat(bytes) };
    for nth in 0..documents {
        let now = DateTime::now();
        let entry = || {
            doc! { "id": Uuid::new(), "type": "order.added", "payload": &payload, "created_at": now, "available_at": now }
        };
        let outbox: Vec<_> = (0..10).map(|_| entry()).collect();
        let id = format!("o-{nth}");
        scene.test.orders().insert_one(doc! { "_id": &id, "outbox": outbox }).await.unwrap();
        scene.command(id).await;
    }
    let process = Process::start(&scene, arguments);
    let emptied = async {
        let mut changes = scene.test.orders().watch().await.unwrap();
        while scene.test.orders().count_documents(doc! { "outbox.0": { "$exists": true } }).await.unwrap() > 0
        {
            changes.next_if_any().await.unwrap();
        }
    };
    tokio::time::timeout(10 * LONG, emptied).await.expect("every outbox becomes empty");
    let peak = process.peak();
    println!("peak: {peak} MiB");
    assert!(process.terminate().await);
    scene.strike_binary().await;
    peak
}

/// The limit is in bytes, not in documents. Together these documents take up 120 MB, and memory
/// holds several copies of each document that is being processed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_large_documents_is_bounded_in_bytes() {
    let peak = peak_of(24, 500_000, &["--memory-mib=16"]).await;
    assert!(peak < 192, "{peak} MiB");
}

/// A document that exceeds the whole memory limit is processed alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_larger_than_the_memory_allowed_is_delivered() {
    let peak = peak_of(2, 1_400_000, &["--memory-mib=1"]).await;
    assert!(peak < 256, "{peak} MiB");
}

/// The messages take up 1.5 GB, and the worker stays below half a gigabyte of memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_large_documents_stay_within_memory() {
    let peak = peak_of(150, 1_000_000, &[]).await;
    assert!(peak < 512, "{peak} MiB");
}
