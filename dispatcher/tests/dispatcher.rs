//! The worker on a real broker and a real database: commands in, messages out, outboxes empty.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "dispatcher/ability.rs"]
mod ability;
#[path = "dispatcher/binary.rs"]
mod binary;
#[path = "../../tests/support/network.rs"]
mod network;
#[path = "../../tests/support/odd_ids.rs"]
mod odd_ids;
#[path = "../../tests/support/private_broker.rs"]
mod private_broker;
#[path = "dispatcher/rate.rs"]
mod rate;
#[path = "dispatcher/status.rs"]
mod status;
#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "dispatcher/watchdog.rs"]
mod watchdog;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{
    CommandSender, DocumentRef, InlineDispatcher, RetryPolicy,
    amqp::{AmqpSettings, Publication, Published, Publisher, TopologyMode},
    command::{COMMAND_TYPE, COMMANDS_ROUTING_KEY, MAX_COMMAND_BYTES, ProcessDocumentMessages, Reason},
    deliver::{Answer, Deliver, Envelope, HandlerError, Handlers, Outcome},
    dispatch::{Processed, Processor, ProcessorSettings},
    internal::{Hold, ServerClock},
    store::Inserted,
};
use lapin::options::{BasicGetOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use mongodb::bson::{Bson, DateTime, Document, Uuid, doc, oid::ObjectId};
use odd_ids::{named, odd_ids, stored, undelivered};
use outbox_dispatcher::{Dispatcher, DispatcherEvent, DispatcherSettings, Left, Refusal, Running};
use support::{Added, LONG, Order, Recorder, TestDatabase, uri};
use tokio::sync::broadcast;

/// A database, an exchange and a queue of the test's own.
struct Scene {
    test: TestDatabase,
    name: String,
    broker: String,
    commands: CommandSender,
    publisher: Publisher,
    outside: lapin::Channel,
    _connection: lapin::Connection,
}

impl Scene {
    async fn set() -> Self {
        Self::on(&uri("OUTBOX_RABBITMQ_URI")).await
    }

    /// On another broker.
    async fn on(broker: &str) -> Self {
        let test = TestDatabase::create().await;
        let name = format!("test-dispatcher-{}", test.database.name());
        let amqp = AmqpSettings::new(broker).unwrap();
        let publisher = Publisher::start(amqp, CommandSender::topology(&name, &name, TopologyMode::Declare));
        assert!(publisher.ready().await);
        let connection = lapin::Connection::connect(broker, Default::default()).await.unwrap();
        Self {
            commands: CommandSender::new(publisher.clone(), &name),
            outside: connection.create_channel().await.unwrap(),
            _connection: connection,
            test,
            name,
            broker: broker.to_owned(),
            publisher,
        }
    }

    async fn strike(self) {
        self.publisher.close().await;
        self.outside.queue_delete(self.name.clone().into(), QueueDeleteOptions::default()).await.unwrap();
        self.outside
            .exchange_delete(self.name.clone().into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
        self.test.drop().await;
    }

    fn settings(&self) -> DispatcherSettings {
        DispatcherSettings {
            commands_exchange: self.name.clone(),
            commands_queue: self.name.clone(),
            ..DispatcherSettings::new([format!("{}.*", self.test.database.name()).parse().unwrap()])
        }
    }

    fn processor(&self, deliver: impl Deliver, retry: RetryPolicy) -> Processor {
        let settings = ProcessorSettings { retry, ..ProcessorSettings::default() };
        let clock = ServerClock::new(self.test.client.clone());
        Processor::new(self.test.client.clone(), clock, Arc::new(deliver), settings)
    }

    fn start_with(&self, deliver: impl Deliver, retry: RetryPolicy, settings: DispatcherSettings) -> Worker {
        let amqp = AmqpSettings::new(&self.broker).unwrap();
        Worker::start(self.processor(deliver, retry), amqp, settings)
    }

    fn start(&self, deliver: impl Deliver) -> Worker {
        self.start_with(deliver, quick_retry(), self.settings())
    }

    fn document(&self, id: impl Into<Bson>) -> DocumentRef {
        DocumentRef::by_id(self.test.orders().namespace(), id)
    }

    async fn command(&self, id: impl Into<Bson>) {
        let command = ProcessDocumentMessages::new(self.document(id), Reason::Stream);
        assert_eq!(self.commands.send(vec![command]).await, [Ok(())]);
    }

    async fn publish_raw(&self, message_type: Option<&str>, body: Vec<u8>) {
        let publication = Publication {
            exchange: self.name.clone(),
            routing_key: COMMANDS_ROUTING_KEY.into(),
            message_id: Uuid::new().to_string(),
            message_type: message_type.map(Into::into),
            content_type: "application/json".into(),
            body,
            ..Publication::default()
        };
        assert_eq!(self.publisher.publish(vec![publication]).await, [Published::Confirmed]);
    }

    /// An order whose messages nobody has tried to deliver.
    async fn place(&self, id: &str, amounts: impl IntoIterator<Item = i64>) {
        let mut order = Order::new(id);
        amounts.into_iter().for_each(|amount| order.add(amount));
        let orders = self.test.store(&InlineDispatcher::off(&self.test.client));
        assert!(matches!(orders.insert(order).await.unwrap(), Inserted::Applied(..)));
    }

    async fn is_cleared(&self, id: impl Into<Bson>) -> bool {
        self.test.outbox(id).await.is_empty()
    }

    /// How many commands wait in the queue.
    async fn depth(&self) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.outside.queue_declare(self.name.clone().into(), options, Default::default()).await;
        queue.unwrap().message_count()
    }

    /// Whether the commands queue holds nothing; what was acknowledged is gone for good.
    async fn queue_is_empty(&self) -> bool {
        let got =
            self.outside.basic_get(self.name.clone().into(), BasicGetOptions { no_ack: true }).await.unwrap();
        got.is_none()
    }
}

struct Worker {
    running: Running,
    events: broadcast::Receiver<DispatcherEvent>,
}

impl Worker {
    fn start(processor: Processor, amqp: AmqpSettings, settings: DispatcherSettings) -> Self {
        let dispatcher = Dispatcher::new(processor, amqp, settings).unwrap();
        let events = dispatcher.events().subscribe();
        Self { running: dispatcher.start(), events }
    }

    /// Waits for the first event that fits.
    async fn wait<T>(&mut self, fits: impl Fn(&DispatcherEvent) -> Option<T>) -> T {
        let look = async {
            loop {
                if let Some(found) = fits(&self.events.recv().await.unwrap()) {
                    return found;
                }
            }
        };
        tokio::time::timeout(LONG, look).await.expect("the worker announces it")
    }

    async fn finished(&mut self) -> Processed {
        self.wait(|event| match event {
            DispatcherEvent::Finished { processed, .. } => Some(*processed),
            _ => None,
        })
        .await
    }

    async fn left(&mut self) -> Left {
        self.wait(|event| match event {
            DispatcherEvent::LeftToSweep { why, .. } => Some(why.clone()),
            _ => None,
        })
        .await
    }
}

fn quick_retry() -> RetryPolicy {
    let wait = Duration::from_millis(20);
    RetryPolicy {
        quick_tries: 0,
        backoff_min: wait,
        backoff_max: wait,
        max_attempts: 4,
        ..RetryPolicy::default()
    }
}

fn slow_retry() -> RetryPolicy {
    let wait = Duration::from_secs(600);
    RetryPolicy { quick_tries: 0, backoff_min: wait, backoff_max: wait, ..RetryPolicy::default() }
}

/// P2 At least once: the command is acknowledged after the messages were delivered and cleared.
#[tokio::test]
async fn a_command_delivers_clears_and_is_acknowledged() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2, 3]).await;
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1, 2, 3]);
    assert!(scene.is_cleared("o-1").await);
    worker.running.stop().await;
    assert!(scene.queue_is_empty().await);
    scene.strike().await;
}

/// A command is a hint: repeated a thousand times, each message is still delivered once.
#[tokio::test]
async fn a_thousand_duplicates_of_a_command_deliver_each_message_once() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2]).await;
    let recorder = Recorder::default();
    let command = ProcessDocumentMessages::new(scene.document("o-1"), Reason::Sweep);
    assert!(scene.commands.send(vec![command; 1_000]).await.iter().all(Result::is_ok));
    let mut worker = scene.start(recorder.clone());
    let mut settled = 0;
    while settled < 1_000 {
        settled += worker
            .wait(|event| match event {
                DispatcherEvent::Finished { .. } | DispatcherEvent::Coalesced { .. } => Some(1),
                _ => None,
            })
            .await;
    }
    assert_eq!(recorder.amounts(), [1, 2]);
    worker.running.stop().await;
    assert!(scene.queue_is_empty().await);
    scene.strike().await;
}

#[tokio::test]
async fn forged_malformed_and_huge_commands_are_refused_and_the_next_good_one_is_processed() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    let good = ProcessDocumentMessages::new(scene.document("o-1"), Reason::Stream).to_json();
    let elsewhere = br#"{"database":"other","collection":"c","document_key":{"_id":1},"reason":"stream"}"#;
    let bad: Vec<(Option<&str>, Vec<u8>)> = vec![
        (Some(COMMAND_TYPE), b"not json".to_vec()),
        (Some(COMMAND_TYPE), vec![b'x'; MAX_COMMAND_BYTES + 1]),
        (Some(COMMAND_TYPE), elsewhere.to_vec()),
        (Some("SomethingElse"), good),
    ];
    for (message_type, body) in bad {
        scene.publish_raw(message_type, body).await;
        let refusal = worker
            .wait(|event| match event {
                DispatcherEvent::Refused { refusal } => Some(refusal.clone()),
                _ => None,
            })
            .await;
        let fits = match message_type {
            Some(COMMAND_TYPE) => !matches!(refusal, Refusal::WrongType),
            _ => matches!(refusal, Refusal::WrongType),
        };
        assert!(fits, "{refusal}");
    }
    assert!(recorder.delivered().is_empty());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    worker.running.stop().await;
    assert!(scene.queue_is_empty().await, "what was refused was not put back");
    scene.strike().await;
}

#[tokio::test]
async fn a_document_with_any_type_of_id_and_a_minimal_foreign_entry_is_processed() {
    let scene = Scene::set().await;
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    let ids: Vec<Bson> = vec![
        ObjectId::new().into(),
        Uuid::new().into(),
        "a\"b$c.d ☃ {\"$oid\": 1}\n".into(),
        Bson::Int64(1 << 60),
        Bson::Double(0.5),
        doc! { "tenant": 7, "nested": { "a": ["b"] } }.into(),
        DateTime::from_millis(-1).into(),
        true.into(),
    ];
    for id in &ids {
        let entry = doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 } };
        let document = doc! { "_id": id.clone(), "outbox": [entry] };
        scene.test.orders().insert_one(document).await.unwrap();
        scene.command(id.clone()).await;
        assert_eq!(worker.finished().await, Processed::Done, "{id:?}");
        assert!(scene.is_cleared(id.clone()).await, "{id:?}");
    }
    assert_eq!(recorder.delivered().len(), ids.len());
    scene.command("not there").await;
    assert_eq!(worker.finished().await, Processed::Gone);
    worker.running.stop().await;
    scene.strike().await;
}

/// P2 At least once, whatever names, types or bytes are in an `_id`: claimed, failed once, delivered and cleared.
#[tokio::test]
async fn every_id_that_the_server_stores_is_processed() {
    let scene = Scene::set().await;
    let (orders, ids) = (scene.test.orders(), odd_ids());
    let entry = || doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 } };
    let documents: Vec<_> = ids.iter().map(|(_, id)| stored(id, vec![entry()])).collect();
    odd_ids::insert(&orders, &documents).await;
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("once".into())]);
    let mut worker = scene.start(recorder.clone());
    for (name, id) in &ids {
        let command = ProcessDocumentMessages::new(named(&orders.namespace(), id), Reason::Sweep);
        assert_eq!(scene.commands.send(vec![command]).await, [Ok(())], "{name}");
        assert_eq!(worker.finished().await, Processed::Done, "{name}");
    }
    assert_eq!(undelivered(&orders).await, 0);
    assert_eq!(recorder.delivered().len(), ids.len());
    worker.running.stop().await;
    scene.strike().await;
}

/// `keep_within` counts from when a command was taken: waiting for another of its document is part of it.
#[tokio::test]
async fn the_wait_for_a_turn_counts_as_keeping() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let recorder = Recorder::held();
    let settings = DispatcherSettings { keep_within: Duration::from_millis(300), ..scene.settings() };
    let mut worker = scene.start_with(recorder.clone(), quick_retry(), settings);
    scene.command("o-1").await;
    recorder.wait_tried(1).await;
    scene.command("o-1").await;
    // The first cannot end before its delivery does.
    assert_eq!(worker.left().await, Left::TookTooLong);
    assert_eq!(recorder.wait_tried(1).await.len(), 1);
    recorder.let_through(1);
    assert_eq!(worker.finished().await, Processed::Done);
    worker.running.stop().await;
    scene.strike().await;
}

/// P3 (b), P5: a claim that outlives its holder is taken over once it has run out, and not before.
#[tokio::test]
async fn a_claim_is_respected_while_it_lives_and_taken_over_when_its_holder_is_gone() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let claim = |at: i64| doc! { "$set": { "outbox.0.claimed_by": "gone/1", "outbox.0.available_at": DateTime::from_millis(at) } };
    let orders = scene.test.orders();
    orders
        .update_one(doc! { "_id": "o-1" }, claim(DateTime::now().timestamp_millis() + 600_000))
        .await
        .unwrap();
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert!(matches!(worker.left().await, Left::Held(Hold::Claimed(_))));
    assert!(recorder.delivered().is_empty());
    // Runs out within the time for which a command is kept: nobody has to send another.
    orders.update_one(doc! { "_id": "o-1" }, claim(DateTime::now().timestamp_millis() + 500)).await.unwrap();
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1]);
    worker.running.stop().await;
    scene.strike().await;
}

/// P4: the failing head is tried again while the command is kept, in order, and other documents go on.
#[tokio::test]
async fn a_failing_head_is_tried_again_in_order_with_the_command_kept() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2]).await;
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("one".into()), Outcome::Transient("two".into())]);
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1, 2]);
    assert_eq!(recorder.wait_tried(4).await.len(), 4);
    worker.running.stop().await;
    scene.strike().await;
}

#[tokio::test]
async fn a_head_due_much_later_is_left_to_the_sweep_and_holds_back_its_own_document_only() {
    let scene = Scene::set().await;
    scene.place("stuck", [1, 2]).await;
    scene.place("other", [3]).await;
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("no".into())]);
    let mut worker = scene.start_with(recorder.clone(), slow_retry(), scene.settings());
    scene.command("stuck").await;
    assert!(matches!(worker.left().await, Left::Held(Hold::Retrying(_))));
    scene.command("other").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [3]);
    let outbox = scene.test.outbox("stuck").await;
    assert_eq!((outbox[0].get_i32("attempts"), outbox[0].get_i32("claims")), (Ok(1), Ok(1)));
    assert_eq!(outbox[1].get_i32("claims"), Ok(0), "given back, and so not counted");
    worker.running.stop().await;
    scene.strike().await;
}

#[tokio::test]
async fn in_an_unordered_collection_a_failing_message_holds_back_nothing() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2, 3]).await;
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("no".into())]);
    let mut settings = scene.settings();
    settings.unordered = settings.watch.clone();
    let mut worker = scene.start_with(recorder.clone(), slow_retry(), settings);
    scene.command("o-1").await;
    assert!(matches!(worker.left().await, Left::Held(Hold::Retrying(_))));
    assert_eq!(recorder.amounts(), [2, 3]);
    worker.running.stop().await;
    scene.strike().await;
}

/// P2: given up is dead and visible, never gone.
#[tokio::test]
async fn the_last_attempt_and_a_permanent_failure_make_dead_entries() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2, 3]).await;
    let recorder = Recorder::default();
    recorder
        .answer((0..4).map(|_| Outcome::Transient("no".into())).chain([Outcome::Permanent("never".into())]));
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [3]);
    let outbox = scene.test.outbox("o-1").await;
    let reasons: Vec<_> = outbox.iter().map(|entry| entry.get_str("dead_reason").unwrap()).collect();
    assert_eq!(reasons, ["attempts_exhausted", "permanent"]);
    assert!(outbox.iter().all(|entry| entry.contains_key("dead_at") && !entry.contains_key("available_at")));
    worker.running.stop().await;
    scene.strike().await;
}

/// An unavailable deliverer is no attempt: the command is kept until there is a way.
#[tokio::test]
async fn a_command_is_kept_while_there_is_no_way_to_deliver() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let recorder = Recorder::default();
    recorder.set_available(false);
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    worker
        .wait(|event| matches!(event, DispatcherEvent::Kept { why: Left::Unavailable, .. }).then_some(()))
        .await;
    assert_eq!(scene.test.outbox("o-1").await[0].get("claims"), None, "nothing was claimed");
    recorder.set_available(true);
    assert_eq!(worker.finished().await, Processed::Done);
    worker.running.stop().await;
    scene.strike().await;
}

/// A cancelled attempt is not a failure, and an unfinished command goes to the next worker.
#[tokio::test]
async fn a_stop_gives_back_what_was_not_delivered_and_the_next_worker_goes_on() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2, 3]).await;
    let recorder = Recorder::held();
    let mut settings = scene.settings();
    settings.grace = Duration::from_millis(500);
    let worker = scene.start_with(recorder.clone(), quick_retry(), settings);
    scene.command("o-1").await;
    recorder.wait_tried(1).await;
    let mut stop = Box::pin(worker.running.stop());
    // The first four fifths of the grace, with the delivery still held: then what is not begun is given back.
    assert!(tokio::time::timeout(Duration::from_millis(450), &mut stop).await.is_err());
    recorder.let_through(1);
    stop.await;
    let outbox = scene.test.outbox("o-1").await;
    assert_eq!(outbox.len(), 2);
    for entry in outbox {
        assert_eq!(
            (entry.get("claimed_by"), entry.get("attempts"), entry.get_i32("claims")),
            (None, None, Ok(0))
        );
    }
    let next = Recorder::default();
    let mut worker = scene.start(next.clone());
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(next.amounts(), [2, 3]);
    worker.running.stop().await;
    scene.strike().await;
}

/// A dispatcher that can't serve an entry's `via` leaves it: it never goes to the wrong place.
#[tokio::test]
async fn an_entry_for_handlers_is_left_alone_by_a_worker_that_only_has_a_broker() {
    let scene = Scene::set().await;
    let entry =
        doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 }, "via": "handlers" };
    scene.test.orders().insert_one(doc! { "_id": "o-1", "outbox": [entry.clone()] }).await.unwrap();
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Held(Hold::NotMine));
    assert_eq!(scene.test.outbox("o-1").await, [entry]);
    assert!(recorder.delivered().is_empty());
    worker.running.stop().await;
    scene.strike().await;
}

/// Handlers are isolated: one that fails neither stops nor repeats the others, over processes too.
#[tokio::test]
async fn a_handler_that_was_served_is_not_called_again_for_anothers_failure() {
    let scene = Scene::set().await;
    let entry =
        doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 }, "via": "handlers" };
    scene.test.orders().insert_one(doc! { "_id": "o-1", "outbox": [entry] }).await.unwrap();
    let (good, bad) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (good_calls, bad_calls) = (good.clone(), bad.clone());
    let handlers = Handlers::builder()
        .on("good", move |_: Added, _| {
            good_calls.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        })
        .on("bad", move |_: Added, _| {
            let calls = bad_calls.fetch_add(1, Ordering::SeqCst);
            async move { if calls < 2 { Err(HandlerError::transient("not yet")) } else { Ok(()) } }
        })
        .build()
        .unwrap();
    let mut worker = scene.start(handlers);
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!((good.load(Ordering::SeqCst), bad.load(Ordering::SeqCst)), (1, 3));
    assert!(scene.is_cleared("o-1").await);
    worker.running.stop().await;
    scene.strike().await;
}

/// Kills its process at one message, and notes the others in a collection.
struct Killer {
    notes: mongodb::Collection<Document>,
}

#[async_trait]
impl Deliver for Killer {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let mut answers = Vec::new();
        for envelope in window {
            let amount = envelope.decode::<Added>().unwrap().amount;
            if amount == 13 {
                std::process::abort();
            }
            // A crash behind it repeats it: P3 (a).
            let note = doc! { "$set": { "amount": amount } };
            self.notes.update_one(doc! { "_id": envelope.id }, note).upsert(true).await.unwrap();
            answers.push(Outcome::Delivered.into());
        }
        answers
    }
}

/// The worker process of the next test; it does nothing when run by itself.
#[tokio::test]
async fn a_worker_process_that_a_message_kills() {
    let Ok(name) = std::env::var("OUTBOX_TEST_KILLER_DATABASE") else {
        return;
    };
    let client = mongodb::Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
    let database = client.database(&name);
    let killer = Killer { notes: database.collection("notes") };
    let clock = ServerClock::new(client.clone());
    let processor = Processor::new(client, clock, Arc::new(killer), ProcessorSettings::default());
    let document = DocumentRef::by_id(database.collection::<Document>("orders").namespace(), "o-1");
    let stop = tokio_util::sync::CancellationToken::new();
    let ordering = document_outbox::DeliveryOrder::Ordered;
    processor.process(&document, ordering, &stop).await.unwrap();
}

/// A message that kills its process writes no failure; it is noticed by its claims, claimed alone, and dies at last.
#[tokio::test]
async fn a_message_that_kills_its_process_dies_and_its_neighbours_are_delivered() {
    let test = TestDatabase::create().await;
    let mut order = Order::new("o-1");
    [12, 13, 14].into_iter().for_each(|amount| order.add(amount));
    let orders = test.store(&InlineDispatcher::off(&test.client));
    assert!(matches!(orders.insert(order).await.unwrap(), Inserted::Applied(..)));
    let mut crashes = 0;
    loop {
        // Every claim of the process before has run out.
        let due = doc! { "$set": { "outbox.$[e].available_at": DateTime::from_millis(0) } };
        let living = vec![doc! { "e.id": { "$exists": true }, "e.dead_at": null }];
        test.orders().update_one(doc! { "_id": "o-1" }, due).array_filters(living).await.unwrap();
        let status = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_process_that_a_message_kills"])
            .env("OUTBOX_TEST_KILLER_DATABASE", test.database.name())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .await
            .unwrap();
        if status.success() {
            break;
        }
        crashes += 1;
        assert!(crashes < 20, "it never ends");
        let claims: Vec<_> =
            test.outbox("o-1").await.iter().map(|entry| entry.get_i32("claims").unwrap_or(0)).collect();
        assert!(claims.last() <= Some(&5), "the neighbour is no longer claimed with it: {claims:?}");
    }
    assert_eq!(crashes, 8);
    let outbox = test.outbox("o-1").await;
    assert_eq!(outbox.len(), 1);
    assert_eq!(outbox[0].get_str("dead_reason"), Ok("crashed"));
    assert_eq!(outbox[0].get_document("payload"), Ok(&doc! { "amount": 13i64 }));
    let mut noted =
        test.database.collection::<Document>("notes").find(doc! {}).sort(doc! { "amount": 1 }).await.unwrap();
    let mut amounts = Vec::new();
    while noted.advance().await.unwrap() {
        amounts.push(noted.deserialize_current().unwrap().get_i64("amount").unwrap());
    }
    assert_eq!(amounts, [12, 14]);
    test.drop().await;
}
