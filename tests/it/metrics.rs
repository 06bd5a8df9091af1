//! Tests that the library records all of its series in docs/metrics.md, from the start and with the right
//! values.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::flow::{Flow, Heard};
use crate::receiving::{Scene, Stock, StockRequested, Working};
use crate::support::{LONG, Order, Recorder, TestDatabase, is_empty, uri};
use document_outbox::{
    Caps, DeliveryOrder, Dispatch, DocumentRef, InlineDispatcher, Mode, RetryPolicy, Shed, Store,
    deliver::{Deliver, HandlerError, Outcome},
    dispatch::{Processed, Processor, ProcessorSettings},
    observe::{Event, metrics},
    receive::{Receiver, ReceiverEvent, Subscriptions},
    store::{Deleted, Inserted, Saved},
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use mongodb::{
    Client,
    bson::{Bson, DateTime, Document, Uuid, doc},
    event::{EventHandler, command::CommandEvent},
};
use tokio_util::sync::CancellationToken;

/// A recorder for one test. Metrics are recorded by the recorder that was installed when they were registered.
struct Recording {
    recorder: DebuggingRecorder,
    snapshotter: Snapshotter,
    /// The earlier values of counters and histograms, because a snapshot resets them.
    sums: BTreeMap<String, f64>,
}

impl Recording {
    fn new() -> Self {
        let recorder = DebuggingRecorder::new();
        Self { snapshotter: recorder.snapshotter(), recorder, sums: BTreeMap::new() }
    }

    fn during<T>(&self, build: impl FnOnce() -> T) -> T {
        metrics::facade::with_local_recorder(&self.recorder, build)
    }

    /// Every series as `name{label=value,..}` with its value; for a histogram, its number of samples.
    fn now(&mut self) -> BTreeMap<String, f64> {
        for (key, unit, description, value) in self.snapshotter.snapshot().into_vec() {
            assert!(unit.is_some() && description.is_some(), "{key:?} is described");
            let key = key.key();
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let name = match labels.is_empty() {
                true => key.name().to_owned(),
                false => format!("{}{{{}}}", key.name(), labels.join(",")),
            };
            let sum = self.sums.entry(name).or_default();
            match value {
                DebugValue::Counter(count) => *sum += count as f64,
                DebugValue::Gauge(value) => *sum = value.0,
                DebugValue::Histogram(samples) => {
                    assert!(samples.iter().all(|lag| (0.0..60.0).contains(&lag.0)), "{samples:?}");
                    *sum += samples.len() as f64;
                }
            }
        }
        self.sums.clone()
    }

    /// Returns the metrics that are not zero.
    fn counted(&mut self) -> BTreeMap<String, f64> {
        self.now().into_iter().filter(|(_, figure)| *figure != 0.0).collect()
    }
}

fn figures<const N: usize>(figures: [(&str, f64); N]) -> BTreeMap<String, f64> {
    figures.into_iter().map(|(name, figure)| (name.to_owned(), figure)).collect()
}

/// Returns the metrics that a section documents, with every value of every label. For the label `known.0`, the
/// only value is `known.1`.
fn documented(section: &str, known: (&str, &str)) -> BTreeSet<String> {
    let text = include_str!("../../docs/metrics.md");
    let section = text.split("\n## ").find(|text| text.starts_with(section)).unwrap();
    let mut all = BTreeSet::new();
    for row in section.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = row.split('|').collect();
        let mut series = vec![Vec::new()];
        for label in cells[2].split(';').filter(|label| label.contains('`')) {
            // One label with its values (`reason`: `full`, `stopped`), or two labels with the values of the second
            // (`path`, `result`: ...).
            let (names, values) = label.split_once(':').unwrap_or((label, ""));
            let words =
                |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
            for name in words(names) {
                let values = if name == known.0 { vec![known.1.to_owned()] } else { words(values) };
                let with = |labels: &Vec<String>, value: &String| {
                    [labels.clone(), vec![format!("{name}={value}")]].concat()
                };
                series = series
                    .iter()
                    .flat_map(|labels| values.iter().map(|v| with(labels, v)).collect::<Vec<_>>())
                    .collect();
            }
        }
        let name = cells[0].trim().trim_matches('`');
        all.extend(series.into_iter().map(|labels| match labels.is_empty() {
            true => name.to_owned(),
            false => format!("{name}{{{}}}", labels.join(",")),
        }));
    }
    assert!(all.len() > 20, "{all:?}");
    all
}

fn no_quick_tries() -> RetryPolicy {
    RetryPolicy::default().with(|retry| {
        retry.quick_tries = 0;
        retry.max_attempts = 2;
    })
}

fn worker(test: &TestDatabase, deliver: &Recorder) -> Processor {
    let settings = ProcessorSettings::default().with(|settings| {
        settings.state_database = format!("{}_state", test.database.name());
        settings.retry = no_quick_tries();
    });
    Processor::new(test.client.clone(), Arc::new(deliver.clone()), settings)
}

async fn process(test: &TestDatabase, worker: &Processor, id: &str) -> Processed {
    let document = DocumentRef::by_id(test.orders().namespace(), id);
    worker.process(&document, DeliveryOrder::Ordered, &CancellationToken::new()).await.unwrap()
}

/// Makes every entry due unless it is dead, as the passing of time would.
async fn make_due(test: &TestDatabase, id: &str) {
    let set = doc! { "$set": { "outbox.$[e].available_at": DateTime::from_millis(0) } };
    let orders = test.orders();
    let update = orders.update_one(doc! { "_id": id }, set);
    update.array_filters(vec![doc! { "e.id": { "$exists": true }, "e.dead_at": null }]).await.unwrap();
}

fn placed(id: &str, amounts: impl IntoIterator<Item = i64>) -> Order {
    let mut order = Order::new(id);
    amounts.into_iter().for_each(|amount| order.add(amount));
    order
}

async fn insert(orders: &Store<Order>, order: Order) -> Dispatch {
    match orders.insert(order).await.unwrap() {
        Inserted::Applied(_, receipt) => receipt.dispatch,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn documented_series_are_zero_before_any_event() {
    let test = TestDatabase::create().await;
    let application = Recording::new();
    let inline =
        application.during(|| InlineDispatcher::builder(&test.client).deliver_to(Recorder::default()));
    let service = Recording::new();
    let worker = service.during(|| worker(&test, &Recorder::default()));
    for (mut recording, path) in [(application, "inline"), (service, "dispatcher")] {
        let there = recording.now();
        let promised = documented("Wherever the library delivers", ("path", path));
        assert_eq!(there.keys().cloned().collect::<BTreeSet<_>>(), promised);
        assert!(there.values().all(|figure| *figure == 0.0), "{there:?}");
    }
    drop((inline, worker));
    test.drop().await;
}

#[tokio::test]
async fn documented_series_of_a_receiver_count_its_messages() {
    let scene = Scene::begin().await;
    let mut recording = Recording::new();
    let refuse = |stock: &mut Stock, request: &StockRequested| match request.quantity {
        0 => Err(HandlerError::permanent("nothing to take")),
        _ => {
            stock.take(request);
            Ok(())
        }
    };
    let key = |request: &StockRequested| request.sku.clone();
    let functions = Subscriptions::new().into_aggregate(&scene.stocks, key, Stock::new, refuse);
    let settings = scene.settings().with(|settings| settings.inbox.count = 2);
    let amqp = scene.flow.amqp("receiver");
    let receiver = recording.during(|| Receiver::new(amqp, functions, settings).unwrap());
    let there = recording.now();
    let queue = scene.queue();
    let promised = documented("A receiver", ("queue", &queue));
    assert_eq!(there.keys().cloned().collect::<BTreeSet<_>>(), promised);
    assert!(there.values().all(|figure| *figure == 0.0), "{there:?}");

    let events = Heard::from(receiver.subscribe());
    let mut receiver = Working { running: receiver.start(), events };
    receiver.running.ready().await;
    for quantity in [1, 2, 3, 0] {
        scene.request("a", quantity).await;
    }
    receiver.wait("the death", |event| matches!(event, ReceiverEvent::Died { .. })).await;
    receiver.stop().await;
    let counted = recording.counted();
    let figure = |name: &str, labels: &str| {
        counted.get(&format!("{name}{{queue={queue}{labels}}}")).copied().unwrap_or_default()
    };
    assert_eq!(figure("outbox_received_total", ""), 4.0);
    assert_eq!(figure("outbox_received_settled_total", ",outcome=applied"), 3.0);
    assert_eq!(figure("outbox_received_settled_total", ",outcome=dead"), 1.0);
    assert_eq!(figure("outbox_received_dead_total", ",reason=permanent"), 1.0);
    assert_eq!(figure("outbox_receive_seconds", ",result=applied"), 3.0);
    assert_eq!(figure("outbox_receive_seconds", ",result=permanent"), 1.0);
    assert_eq!(figure("outbox_inbox_messages", ""), 3.0);
    assert_eq!(figure("outbox_inbox_forgotten_total", ""), 1.0);
    assert_eq!(figure("outbox_receive_lag_seconds", ""), 3.0);
    assert_eq!(figure("outbox_receiver_held_messages", ""), 0.0);
    scene.end().await;
}

/// P8: if a save can't recognise an element of an array, it drops the element's unknown fields, and these
/// fields are counted.
#[tokio::test]
async fn unknown_fields_that_a_save_drops_are_counted() {
    let test = TestDatabase::create().await;
    let mut recording = Recording::new();
    let inline = recording.during(|| InlineDispatcher::off(&test.client));
    let carts = Store::<Cart>::new(test.orders(), &inline);
    let line = |n: i32| doc! { "n": n, "note": "by others", "x": 1 };
    test.orders().insert_one(doc! { "_id": "c-1", "lines": [line(1), line(2), line(3)] }).await.unwrap();
    let id = "c-1".to_owned();
    carts.update(&id, |cart| cart.lines.swap(0, 2)).await.unwrap();
    carts.update(&id, |cart| cart.lines.remove(1).n).await.unwrap();
    assert!(!recording.counted().contains_key("outbox_unknown_fields_dropped_total"));
    carts.update(&id, |cart| cart.lines.iter_mut().for_each(|line| line.n += 10)).await.unwrap();
    assert_eq!(recording.counted()["outbox_unknown_fields_dropped_total"], 4.0);
    test.drop().await;
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Cart {
    #[serde(rename = "_id")]
    id: String,
    lines: Vec<CartLine>,
    #[serde(skip)]
    outbox: document_outbox::Outbox,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct CartLine {
    n: i32,
}

impl document_outbox::Aggregate for Cart {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut document_outbox::Outbox {
        &mut self.outbox
    }
}

#[tokio::test]
async fn inline_deliveries_and_leftovers_show_in_the_metrics() {
    let test = TestDatabase::create().await;
    let mut recording = Recording::new();
    let recorder = Recorder::held();
    let inline =
        recording.during(|| InlineDispatcher::builder(&test.client).capacity(1).deliver_to(recorder.clone()));
    let health = inline.health();
    let orders = test.store(&inline);
    insert(&orders, placed("o-1", [1, 2])).await;
    recorder.wait_tried(1).await;
    assert_eq!(insert(&orders, placed("o-2", [3, 4])).await, Dispatch::Skipped(Shed::Full));
    assert_eq!(recording.counted()["outbox_in_flight_documents{path=inline}"], 1.0);
    let snapshot = health.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.capacity, snapshot.shed), (1, Some(1), 2));
    assert_eq!((snapshot.circuit_open_since, snapshot.last_error), (None, None));
    recorder.let_through(2);
    test.wait_until("o-1", is_empty).await;
    until("its seat is free", || health.snapshot().in_flight == 0).await;

    recorder.set_available(false);
    assert_eq!(insert(&orders, placed("o-3", [5])).await, Dispatch::Skipped(Shed::Unavailable));
    assert_eq!(recording.counted()["outbox_circuit_open"], 1.0);
    assert!(health.snapshot().circuit_open_since.is_some());
    let json = serde_json::to_value(health.snapshot()).unwrap();
    assert!(json["circuit_open_since"].as_str().is_some_and(|time| time.ends_with('Z')), "{json}");
    recorder.set_available(true);
    until("the circuit is closed", || health.snapshot().circuit_open_since.is_none()).await;

    recorder.answer([Outcome::Transient("no luck".into())]);
    recorder.let_through(3);
    let mut events = Heard::from(inline.subscribe());
    let retrying = InlineDispatcher::builder(&test.client).retry(no_quick_tries());
    let retrying = recording.during(|| retrying.mode(Mode::Await).deliver_to(recorder.clone()));
    insert(&test.store(&retrying), placed("o-4", [6])).await;
    let failed = retrying.health().snapshot().last_error.unwrap();
    assert_eq!(failed.error, "no luck");

    inline.close(LONG).await;
    assert!(health.snapshot().draining);
    let mut later = placed("o-5", [7]);
    later.outbox.send_after(crate::support::Added { amount: 8 }, LONG);
    assert_eq!(insert(&orders, later).await, Dispatch::Skipped(Shed::Stopped));
    let wanted = figures([
        ("outbox_saves_total{outcome=applied}", 5.0),
        ("outbox_messages_sent_total", 8.0),
        ("outbox_deliveries_total{path=inline,result=delivered}", 2.0),
        ("outbox_deliveries_total{path=inline,result=transient}", 1.0),
        ("outbox_delivery_lag_seconds{path=inline}", 2.0),
        ("outbox_shed_total{reason=full}", 2.0),
        ("outbox_shed_total{reason=unavailable}", 1.0),
        ("outbox_shed_total{reason=stopped}", 1.0),
    ]);
    assert_eq!(recording.counted(), wanted, "an entry that is not due is not shed");
    let shed = |event: &Event| match event {
        Event::Skipped { count, reason, .. } => Some((*count, *reason)),
        _ => None,
    };
    assert_eq!(events.wait("the last shed entry to be announced", shed).await, (1, Shed::Stopped));
    test.drop().await;
}

#[tokio::test]
async fn a_workers_outcomes_are_counted() {
    let test = TestDatabase::create().await;
    let mut recording = Recording::new();
    let recorder = Recorder::default();
    let worker = recording.during(|| worker(&test, &recorder));
    let mut events = Heard::from(worker.subscribe());
    let orders = test.store(&InlineDispatcher::off(&test.client));
    let foreign = |extra: Document| {
        let mut entry = doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 0i64 } };
        entry.extend(extra);
        Bson::from(entry)
    };

    // One document has a message that runs out of attempts, one that fails permanently, and one that is delivered.
    insert(&orders, placed("o-1", [1, 2, 3])).await;
    recorder.answer([Outcome::Transient("no".into()), Outcome::Transient("no".into())]);
    assert!(matches!(process(&test, &worker, "o-1").await, Processed::Held(_)));
    make_due(&test, "o-1").await;
    recorder.answer([Outcome::Permanent("never".into())]);
    assert_eq!(process(&test, &worker, "o-1").await, Processed::Done);

    // This document has a message whose claimers crashed, a malformed element, and a message for another deliverer.
    let odd =
        vec![foreign(doc! { "claims": 8 }), Bson::Null, Bson::Null, foreign(doc! { "via": "handlers" })];
    test.orders().insert_one(doc! { "_id": "o-2", "outbox": odd }).await.unwrap();
    process(&test, &worker, "o-2").await;

    // While the destination is unavailable, both messages are released, although only one of the messages was tried.
    insert(&orders, placed("o-3", [4, 5])).await;
    recorder.answer([Outcome::Unavailable("away".into())]);
    assert_eq!(process(&test, &worker, "o-3").await, Processed::Unavailable);
    assert_eq!(worker.health().snapshot().last_error.unwrap().error, "away");

    // This document is too large for a claim.
    let mut large = doc! { "_id": "o-4", "outbox": [foreign(doc! {})], "fill": "" };
    let bytes = mongodb::bson::RawDocumentBuf::try_from(&large).unwrap().as_bytes().len();
    large.insert("fill", "x".repeat((16 << 20) - 20 - bytes));
    test.orders().insert_one(large).await.unwrap();
    assert_eq!(process(&test, &worker, "o-4").await, Processed::Done);

    let wanted = figures([
        ("outbox_deliveries_total{path=dispatcher,result=delivered}", 2.0),
        ("outbox_deliveries_total{path=dispatcher,result=transient}", 2.0),
        ("outbox_deliveries_total{path=dispatcher,result=permanent}", 1.0),
        ("outbox_deliveries_total{path=dispatcher,result=unavailable}", 1.0),
        // The age of an entry from a foreign writer is not known.
        ("outbox_delivery_lag_seconds{path=dispatcher}", 1.0),
        ("outbox_dead_total{reason=attempts_exhausted}", 1.0),
        ("outbox_dead_total{reason=permanent}", 1.0),
        ("outbox_dead_total{reason=crashed}", 1.0),
        ("outbox_unreadable_total", 2.0),
        ("outbox_not_mine_total", 1.0),
        // Releases come from the failure and from the two messages without a destination.
        ("outbox_released_total", 4.0),
        ("outbox_oversized_total", 1.0),
    ]);
    assert_eq!(recording.counted(), wanted);
    let died = |event: &Event| matches!(event, Event::Died { .. });
    assert_eq!(events.rest().iter().filter(|event| died(event)).count(), 3);
    test.client.database(&format!("{}_state", test.database.name())).drop().await.unwrap();
    test.drop().await;
}

/// P8: a claim that expired during delivery is reported, even if the delivery succeeded and only the clear shows the
/// loss.
#[tokio::test]
async fn a_claim_lost_during_delivery_is_counted() {
    let test = TestDatabase::create().await;
    let mut recording = Recording::new();
    let slow = Recorder::held();
    let slow_worker = recording.during(|| worker(&test, &slow));
    let mut events = Heard::from(slow_worker.subscribe());
    insert(&test.store(&InlineDispatcher::off(&test.client)), placed("o-1", [1, 2])).await;
    slow.answer([Outcome::Delivered, Outcome::Permanent("never".into())]);
    let take_over = async {
        slow.wait_tried(1).await;
        make_due(&test, "o-1").await;
        assert_eq!(process(&test, &worker(&test, &Recorder::default()), "o-1").await, Processed::Done);
        slow.let_through(2);
    };
    tokio::join!(process(&test, &slow_worker, "o-1"), take_over);
    let lost = |event: &Event| matches!(event, Event::ClaimLost { .. }).then_some(());
    events.wait("the loss", lost).await;
    assert_eq!(
        recording.counted()["outbox_claims_lost_total"],
        1.0,
        "the loss is counted once, although two writes showed it"
    );
    assert!(is_empty(&test.stored("o-1").await));
    test.drop().await;
}

#[tokio::test]
async fn unroutable_messages_and_hand_offs_are_counted() {
    let flow = Flow::begin().await;
    flow.unbind().await;
    let mut recording = Recording::new();
    let (commands, rabbitmq) = (flow.command_sender().await, flow.rabbitmq("inline").await);
    let quick = RetryPolicy::default().with(|retry| retry.quick_wait = Duration::from_millis(1));
    let inline =
        InlineDispatcher::builder(&flow.test.client).mode(Mode::Await).retry(quick).hand_off(commands);
    let inline = recording.during(|| inline.deliver_to(rabbitmq.clone()));
    assert!(rabbitmq.is_available());
    insert(&flow.test.store(&inline), placed("o-1", [1])).await;
    let wanted = figures([
        ("outbox_saves_total{outcome=applied}", 1.0),
        ("outbox_messages_sent_total", 1.0),
        ("outbox_deliveries_total{path=inline,result=transient}", 1.0),
        ("outbox_unroutable_total", 1.0),
        ("outbox_handed_off_total", 1.0),
    ]);
    assert_eq!(recording.counted(), wanted, "quick tries in place are part of one delivery");
    flow.end().await;
}

async fn until(what: &str, wanted: impl Fn() -> bool) {
    let look = async {
        while !wanted() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, look).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// This test sets a fail point of MongoDB.
mod fail_point {
    use super::*;

    #[tokio::test]
    async fn saves_and_deletes_are_counted_by_their_outcomes() {
        let test = TestDatabase::create().await;
        // This client has its own name, so that the test can leave only this client's inserts without a clear answer.
        let name = format!("unsure-{}", uuid::Uuid::now_v7().simple());
        let mut options = mongodb::options::ClientOptions::parse(uri("OUTBOX_MONGODB_URI")).await.unwrap();
        options.app_name = Some(name.clone());
        let (unsure, mut doubt) = tokio::sync::mpsc::unbounded_channel();
        options.command_event_handler = Some(EventHandler::callback(move |event: CommandEvent| {
            if let CommandEvent::Succeeded(succeeded) = event
                && succeeded.reply.contains_key("writeConcernError")
            {
                let _ = unsure.send(());
            }
        }));
        let client = Client::with_options(options).unwrap();
        let mut recording = Recording::new();
        let inline = recording.during(|| InlineDispatcher::off(&client));
        let collection = client.database(test.database.name()).collection::<Document>("orders");
        let orders = Store::<Order>::new(collection, &inline);

        assert_eq!(insert(&orders, placed("o-1", [1, 2])).await, Dispatch::Off); // applied, 2 sent
        assert!(matches!(orders.insert(placed("o-1", [3])).await.unwrap(), Inserted::Exists(_))); // conflict
        let mut mine = orders.load("o-1").await.unwrap().unwrap();
        assert!(matches!(orders.save(&mut mine).await.unwrap(), Saved::Unchanged));
        orders.update("o-1", |order| order.add(4)).await.unwrap(); // applied, 1 sent
        mine.add(5);
        assert!(matches!(orders.save(&mut mine).await.unwrap(), Saved::Conflict));
        let mut mine = orders.load("o-1").await.unwrap().unwrap();
        assert!(matches!(orders.delete(&mine).await.unwrap(), Deleted::Undelivered)); // refused
        let mut caps = Caps::default();
        caps.payload_bytes = 1;
        let strict = orders.clone().with_caps(caps);
        mine.add(6);
        strict.save(&mut mine).await.unwrap_err(); // refused
        test.orders().delete_one(doc! { "_id": "o-1" }).await.unwrap();
        assert!(matches!(orders.save(&mut mine).await.unwrap(), Saved::Gone));

        let data = doc! {
            "failCommands": ["insert"], "appName": &name,
            "writeConcernError": { "code": 91, "errmsg": "shutting down" },
        };
        let fail = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
        test.client.database("admin").run_command(fail).await.unwrap();
        let shutdown = async {
            doubt.recv().await.unwrap();
            client.clone().shutdown().await;
        };
        let (unsure, ()) = tokio::join!(orders.insert(placed("o-2", [7])), shutdown);
        assert!(matches!(unsure.unwrap(), Inserted::Unknown(..)));
        let off = doc! { "configureFailPoint": "failCommand", "mode": "off" };
        test.client.database("admin").run_command(off).await.unwrap();

        let mut outbox = document_outbox::Outbox::default();
        outbox.send(crate::support::Added { amount: 8 });
        let staged = orders.stage(&mut outbox).await.unwrap();
        test.orders().insert_one(staged.into_new(doc! { "_id": "o-3" }).unwrap()).await.unwrap();
        assert_eq!(staged.committed("o-3").await, Dispatch::Off); // 1 sent

        let wanted = figures([
            ("outbox_saves_total{outcome=applied}", 2.0),
            ("outbox_saves_total{outcome=unchanged}", 1.0),
            ("outbox_saves_total{outcome=conflict}", 2.0),
            ("outbox_saves_total{outcome=gone}", 1.0),
            ("outbox_saves_total{outcome=unknown}", 1.0),
            ("outbox_saves_total{outcome=refused}", 2.0),
            ("outbox_messages_sent_total", 4.0),
        ]);
        assert_eq!(recording.counted(), wanted, "a dispatcher that is switched off sheds nothing");
        test.drop().await;
    }
}
