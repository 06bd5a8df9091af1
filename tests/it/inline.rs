//! Tests delivery right after the save: which messages are delivered at once, which messages wait, and in
//! which order.

use std::{sync::Arc, time::Duration};

use crate::support::{Added, LONG, Order, Recorder, TestDatabase, is_empty, uri};
use document_outbox::{
    DeliveryOrder, Dispatch, InlineDispatcher, Mode, RetryPolicy, Shed, Store,
    deliver::{Deliver, HandlerError, Handlers, Outcome},
    dispatch::{Disposition, Processed, Processor, ProcessorSettings},
    internal::{Hold, ServerClock},
    observe::Event,
    store::{Inserted, Receipt, Saved},
};
use mongodb::{
    Client,
    bson::{Bson, Document, doc},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

fn background(test: &TestDatabase, recorder: &Recorder) -> InlineDispatcher {
    InlineDispatcher::builder(&test.client).deliver_to(recorder.clone())
}

/// A policy without quick retries, and with a first backoff that is longer than any test.
fn slow_retry() -> RetryPolicy {
    RetryPolicy::default().with(|retry| {
        retry.quick_tries = 0;
        retry.backoff_min = Duration::from_secs(600);
        retry.backoff_max = Duration::from_secs(600);
    })
}

async fn insert(orders: &Store<Order>, order: Order) -> Receipt {
    match orders.insert(order).await.unwrap() {
        Inserted::Applied(_, receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

fn placed(id: &str) -> Order {
    let mut order = Order::new(id);
    order.add(1);
    order
}

/// Creates a processor like that of a dispatcher worker.
fn worker(test: &TestDatabase, deliver: &Recorder) -> Processor {
    let settings = ProcessorSettings::default().with(|settings| {
        settings.name = "worker".into();
        settings.retry = slow_retry();
    });
    Processor::new(test.client.clone(), Arc::new(deliver.clone()), settings)
}

async fn process(test: &TestDatabase, worker: &Processor, id: &str) -> Processed {
    let document = document_outbox::DocumentRef::by_id(test.orders().namespace(), id);
    worker.process(&document, DeliveryOrder::Ordered, &CancellationToken::new()).await.unwrap()
}

/// Makes every claim of a document expire, as the passing of time would.
async fn expire_claims(test: &TestDatabase, id: &str) {
    let past = mongodb::bson::DateTime::from_millis(0);
    let set = doc! { "$set": { "outbox.$[].available_at": past } };
    test.orders().update_one(doc! { "_id": id }, set).await.unwrap();
}

#[tokio::test]
async fn a_message_is_delivered_and_cleared_after_the_save() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let orders = test.store(&background(&test, &recorder));
    let receipt = insert(&orders, placed("o-1")).await;
    assert_eq!(receipt.dispatch, Dispatch::Background);
    let delivered = recorder.wait_delivered(1).await;
    assert_eq!(delivered[0].id, receipt.messages[0]);
    test.wait_until("o-1", is_empty).await;
    test.drop().await;
}

#[tokio::test]
async fn entries_are_born_claimed_only_in_empty_outboxes() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let orders = test.store(&background(&test, &recorder));
    insert(&orders, placed("o-1")).await;
    orders.update("o-1", |order| order.add(2)).await.unwrap();
    let outbox = test.outbox("o-1").await;
    assert!(outbox[0].get_str("claimed_by").is_ok());
    assert_eq!(outbox[1].get("claimed_by"), None);
    assert_eq!(outbox[1].get("available_at"), outbox[1].get("created_at"));
    recorder.let_through(2);
    recorder.wait_delivered(2).await;
    assert_eq!(recorder.amounts(), [1, 2]);
    test.wait_until("o-1", is_empty).await;
    test.drop().await;
}

/// An aggregate that a process keeps in memory uses the fast path again once its own messages have been delivered.
#[tokio::test]
async fn a_kept_aggregate_is_born_claimed_again() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).retry(slow_retry()).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    let Inserted::Applied(mut order, _) = orders.insert(placed("o-1")).await.unwrap() else { panic!() };
    let mut changes = test.orders().watch().await.unwrap();
    for _ in 0..3 {
        test.wait_until("o-1", is_empty).await;
        is_idle(&inline).await;
        order.add(1);
        assert!(orders.save(&mut order).await.unwrap().is_current());
        let pushed = timeout(LONG, pushed_entry(&mut changes)).await.unwrap();
        assert!(pushed.get_str("claimed_by").is_ok(), "{pushed}");
    }

    // A message that could not be delivered is still in the outbox, and the next save doesn't assume an empty outbox.
    recorder.answer([Outcome::Transient("no luck".into())]);
    for amount in [2, 3] {
        is_idle(&inline).await;
        order.add(amount);
        assert!(orders.save(&mut order).await.unwrap().is_current());
    }
    is_idle(&inline).await;
    let outbox = test.outbox("o-1").await;
    assert_eq!((outbox.len(), outbox[1].get("claimed_by")), (2, None));
    assert_eq!(recorder.amounts(), [1, 1, 1, 1]);
    test.drop().await;
}

async fn is_idle(inline: &InlineDispatcher) {
    let idle = async {
        while inline.health().snapshot().in_flight > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, idle).await.unwrap();
}

/// The first entry that a save pushes onto an empty outbox, as it was written.
async fn pushed_entry(
    changes: &mut mongodb::change_stream::ChangeStream<
        mongodb::change_stream::event::ChangeStreamEvent<Document>,
    >,
) -> Document {
    loop {
        let Some(change) = changes.next_if_any().await.unwrap() else { continue };
        let Some(update) = change.update_description else { continue };
        if let Ok([Bson::Document(entry)]) = update.updated_fields.get_array("outbox").map(Vec::as_slice) {
            return entry.clone();
        }
    }
}

/// A foreign entry that arrives between load and save comes before the save's own entries, so it must be delivered
/// first.
#[tokio::test]
async fn an_entry_pushed_before_a_save_stays_first() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let orders = test.store(&background(&test, &recorder));
    insert(&orders, Order::new("o-1")).await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    let foreign =
        doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": 7i64 } };
    test.orders().update_one(doc! { "_id": "o-1" }, doc! { "$push": { "outbox": foreign } }).await.unwrap();
    order.add(8);
    assert!(orders.save(&mut order).await.unwrap().is_current());
    recorder.wait_delivered(2).await;
    assert_eq!(recorder.amounts(), [7, 8]);
    test.drop().await;
}

#[tokio::test]
async fn awaiting_reports_the_outcome_of_each_message() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client)
        .mode(Mode::Await)
        .retry(slow_retry())
        .deliver_to(recorder.clone());
    let orders = test.store(&inline);
    let outcomes = |dispatch: Dispatch| match dispatch {
        Dispatch::Settled(settled) => {
            settled.into_iter().map(|(_, disposition)| disposition).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };

    assert_eq!(outcomes(insert(&orders, placed("good")).await.dispatch), [Disposition::Delivered]);

    recorder.answer([Outcome::Delivered, Outcome::Transient("later".into())]);
    let mut order = Order::new("late");
    (1..=3).for_each(|amount| order.add(amount));
    let settled = outcomes(insert(&orders, order).await.dispatch);
    let retrying = Disposition::Retrying { error: "later".into() };
    assert_eq!(settled, [Disposition::Delivered, retrying, Disposition::Waiting]);
    let outbox = test.outbox("late").await;
    assert_eq!((outbox[0].get_i32("attempts"), outbox[0].get_str("last_error")), (Ok(1), Ok("later")));
    assert_eq!((outbox[0].get("claimed_by"), outbox[1].get("claimed_by")), (None, None));

    recorder.answer([Outcome::Permanent("never".into())]);
    let mut order = Order::new("dead");
    (1..=2).for_each(|amount| order.add(amount));
    let settled = outcomes(insert(&orders, order).await.dispatch);
    assert_eq!(settled, [Disposition::Dead { error: "never".into() }, Disposition::Delivered]);
    let outbox = test.outbox("dead").await;
    assert_eq!((outbox.len(), outbox[0].get_str("dead_reason")), (1, Ok("permanent")));
    assert_eq!(outbox[0].get("available_at"), None);

    // There are earlier entries, so the claim is made in a separate write, and the outcome is read from the document.
    let updated = orders.update("dead", |order| order.add(5)).await.unwrap();
    assert_eq!(outcomes(updated.receipt.unwrap().dispatch), [Disposition::Delivered]);
    let updated = orders.update("late", |order| order.add(5)).await.unwrap();
    assert_eq!(outcomes(updated.receipt.unwrap().dispatch), [Disposition::Waiting]);
    test.drop().await;
}

/// P2: every committed message is delivered, or is dead and visible.
#[tokio::test]
async fn a_message_dies_after_its_last_attempt() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let retry = slow_retry().with(|retry| retry.max_attempts = 1);
    let inline =
        InlineDispatcher::builder(&test.client).mode(Mode::Await).retry(retry).deliver_to(recorder.clone());
    recorder.answer([Outcome::Transient("no".into())]);
    let mut order = placed("o-1");
    order.add(2);
    insert(&test.store(&inline), order).await;
    let outbox = test.outbox("o-1").await;
    assert_eq!((outbox.len(), outbox[0].get_str("dead_reason")), (1, Ok("attempts_exhausted")));
    assert_eq!(recorder.amounts(), [2]);
    test.drop().await;
}

#[tokio::test]
async fn brief_failures_are_retried_without_counting_an_attempt() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    recorder.answer([Outcome::Transient("once".into()), Outcome::Transient("twice".into())]);
    let receipt = insert(&test.store(&inline), placed("o-1")).await;
    assert_eq!(receipt.dispatch, Dispatch::Settled(vec![(receipt.messages[0], Disposition::Delivered)]));
    assert_eq!(recorder.wait_tried(3).await.len(), 3);
    test.drop().await;
}

/// An unavailable broker is not an attempt, and a save does not fail because of it.
#[tokio::test]
async fn saves_continue_without_a_connection_or_attempts() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = background(&test, &recorder);
    let orders = test.store(&inline);
    recorder.set_available(false);
    assert_eq!(insert(&orders, placed("away")).await.dispatch, Dispatch::Skipped(Shed::Unavailable));
    let entry = &test.outbox("away").await[0];
    assert_eq!((entry.get("claimed_by"), entry.get("attempts")), (None, None));

    recorder.set_available(true);
    recorder.answer([Outcome::Unavailable("just gone".into())]);
    let mut events = inline.subscribe();
    assert_eq!(insert(&orders, placed("lost")).await.dispatch, Dispatch::Background);
    assert!(matches!(events.recv().await.unwrap(), Event::Released { count: 1, .. }));
    let entry = &test.outbox("lost").await[0];
    assert_eq!((entry.get("claimed_by"), entry.get("attempts")), (None, None));
    test.drop().await;
}

/// If the destination becomes unavailable while a message is in flight, for example by a broker's alarm, no attempt is
/// counted.
#[tokio::test]
async fn a_claim_expired_by_an_outage_counts_no_attempt() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&test.client)
        .mode(Mode::Await)
        .inline_lease(Duration::from_secs(1))
        .deliver_to(recorder.clone());
    let mut events = inline.subscribe();
    let orders = test.store(&inline);
    let lose_the_way = async {
        recorder.wait_tried(1).await;
        recorder.set_available(false);
    };
    let (receipt, ()) = tokio::join!(insert(&orders, placed("o-1")), lose_the_way);
    assert_eq!(receipt.dispatch, Dispatch::Settled(vec![(receipt.messages[0], Disposition::Waiting)]));
    assert!(matches!(events.recv().await.unwrap(), Event::Released { count: 1, .. }));
    let entry = &test.outbox("o-1").await[0];
    assert_eq!((entry.get("claimed_by"), entry.get("attempts")), (None, None));
    test.drop().await;
}

#[tokio::test]
async fn a_full_dispatcher_skips_and_the_save_succeeds() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&test.client).capacity(1).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    assert_eq!(insert(&orders, placed("first")).await.dispatch, Dispatch::Background);
    let mut events = inline.subscribe();
    assert_eq!(insert(&orders, placed("second")).await.dispatch, Dispatch::Skipped(Shed::Full));
    assert!(
        matches!(events.recv().await.unwrap(), Event::Skipped { document, count: 1, reason: Shed::Full } if document.subject() == "second")
    );
    recorder.let_through(1);
    recorder.wait_delivered(1).await;
    test.drop().await;
}

#[tokio::test]
async fn closing_waits_for_deliveries_and_leaves_later_saves() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = background(&test, &recorder);
    let orders = test.store(&inline);
    insert(&orders, placed("o-1")).await;
    recorder.wait_tried(1).await;
    let closing = tokio::spawn({
        let inline = inline.clone();
        async move { inline.close(LONG).await }
    });
    recorder.let_through(1);
    closing.await.unwrap();
    assert!(is_empty(&test.stored("o-1").await));
    assert_eq!(insert(&orders, placed("o-2")).await.dispatch, Dispatch::Skipped(Shed::Stopped));
    test.drop().await;
}

/// An attempt that is cancelled does not count as a failed attempt.
#[tokio::test]
async fn closing_past_its_grace_releases_unstarted_messages() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = background(&test, &recorder);
    let orders = test.store(&inline);
    let mut order = placed("o-1");
    order.add(2);
    insert(&orders, order).await;
    recorder.wait_tried(1).await;
    let mut closing = Box::pin(inline.close(Duration::ZERO));
    // The timer of the grace period was started earlier than the timer of 10 ms, so it has expired when the 10 ms
    // are over.
    assert!(tokio::time::timeout(Duration::from_millis(10), &mut closing).await.is_err());
    recorder.let_through(1);
    closing.await;
    let outbox = test.outbox("o-1").await;
    assert_eq!(outbox.len(), 1, "the first was delivered");
    assert_eq!((outbox[0].get("claimed_by"), outbox[0].get("attempts")), (None, None));
    test.drop().await;
}

/// P3 (a): a process dies between save and publish. The claim expires, and a worker delivers the message once.
#[tokio::test]
async fn a_crash_between_save_and_publish_loses_nothing() {
    let test = TestDatabase::create().await;
    let dying = Recorder::held();
    insert(&test.store(&background(&test, &dying)), placed("o-1")).await;
    dying.wait_tried(1).await;

    let recorder = Recorder::default();
    let worker = worker(&test, &recorder);
    assert!(matches!(process(&test, &worker, "o-1").await, Processed::Held(_)), "the claim is alive");
    assert!(recorder.delivered().is_empty());
    expire_claims(&test, "o-1").await;
    assert_eq!(process(&test, &worker, "o-1").await, Processed::Done);
    assert_eq!(recorder.amounts(), [1]);
    assert!(is_empty(&test.stored("o-1").await));
    test.drop().await;
}

/// P3 (b): a holder that outlives its lease can't change the next holder's work.
#[tokio::test]
async fn an_expired_claim_never_touches_the_next_holders() {
    let test = TestDatabase::create().await;
    let slow = Recorder::held();
    let slow_worker = worker(&test, &slow);
    insert(&test.store(&InlineDispatcher::off(&test.client)), placed("o-1")).await;
    let slow_run = async {
        let processed = process(&test, &slow_worker, "o-1").await;
        (processed, "late")
    };
    let next = Recorder::default();
    let next_worker = worker(&test, &next);
    let take_over = async {
        slow.wait_tried(1).await;
        expire_claims(&test, "o-1").await;
        next.answer([Outcome::Transient("retry".into())]);
        let processed = process(&test, &next_worker, "o-1").await;
        slow.let_through(1);
        processed
    };
    let ((_, _), taken) = tokio::join!(slow_run, take_over);
    assert!(matches!(taken, Processed::Held(_)));
    let outbox = test.outbox("o-1").await;
    assert_eq!(outbox.len(), 1, "the late clear did not match");
    assert_eq!(outbox[0].get_i32("attempts"), Ok(1));
    test.drop().await;
}

/// P4 Ordered per document: a failing message blocks only the later ones of its own document.
#[tokio::test]
async fn a_failing_message_blocks_only_its_document() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client)
        .mode(Mode::Await)
        .retry(slow_retry())
        .deliver_to(recorder.clone());
    let orders = test.store(&inline);
    recorder.answer([Outcome::Transient("no".into())]);
    insert(&orders, placed("stuck")).await;
    orders.update("stuck", |order| order.add(2)).await.unwrap();
    insert(&orders, placed("other")).await;
    let delivered: Vec<_> = recorder.delivered().iter().map(|envelope| envelope.document.subject()).collect();
    assert_eq!(delivered, ["other"]);
    assert_eq!(test.outbox("stuck").await.len(), 2);
    test.drop().await;
}

/// P6 Independent: concurrent saves and clears lose no push and bring no cleared message back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_saves_and_clears_neither_lose_nor_resurrect() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = background(&test, &recorder);
    let orders = test.store(&inline);
    insert(&orders, Order::new("o-1")).await;
    let savers = (0..4i64).map(|saver| {
        let orders = orders.clone();
        tokio::spawn(async move {
            for n in 0..50 {
                orders.update("o-1", |order| order.add(saver * 1_000 + n)).await.unwrap();
            }
        })
    });
    for saver in savers.collect::<Vec<_>>() {
        saver.await.unwrap();
    }
    recorder.wait_delivered(200).await;
    test.wait_until("o-1", is_empty).await;
    let amounts = recorder.amounts();
    assert_eq!(amounts.len(), 200, "each message is delivered exactly once");
    for saver in 0..4i64 {
        let of_saver: Vec<_> = amounts.iter().filter(|amount| *amount / 1_000 == saver).copied().collect();
        let in_order: Vec<_> = (0..50).map(|n| saver * 1_000 + n).collect();
        assert_eq!(of_saver, in_order, "in the order saved");
    }
    let total: i64 = amounts.iter().sum();
    assert_eq!(test.stored("o-1").await.get_i64("total"), Ok(total));
    test.drop().await;
}

#[tokio::test]
async fn a_thousand_entries_are_delivered_in_order() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let mut order = Order::new("o-1");
    (0..1_000).for_each(|amount| order.add(amount));
    insert(&test.store(&InlineDispatcher::off(&test.client)), order).await;
    assert_eq!(process(&test, &worker(&test, &recorder), "o-1").await, Processed::Done);
    assert_eq!(recorder.amounts(), (0..1_000).collect::<Vec<_>>());
    assert!(is_empty(&test.stored("o-1").await));
    test.drop().await;
}

/// Malformed elements stay unchanged, byte for byte, and block no entry.
#[tokio::test]
async fn unreadable_neighbours_survive_and_block_nothing() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let twice = mongodb::bson::Uuid::new();
    let added = |id: mongodb::bson::Uuid, amount: i64| doc! { "id": id, "type": "order.added", "payload": { "amount": amount } };
    let strange: Vec<Bson> = vec![
        Bson::Null,
        "text".into(),
        Bson::Array(vec![added(twice, 0).into()]),
        doc! {}.into(),
        doc! { "id": "no uuid", "type": "x" }.into(),
        doc! { "id": mongodb::bson::Uuid::new(), "type": 5 }.into(),
        added(twice, 1).into(),
    ];
    let mut outbox = strange.clone();
    outbox.insert(3, added(mongodb::bson::Uuid::new(), 10).into());
    outbox.push(added(mongodb::bson::Uuid::new(), 11).into());
    test.orders().insert_one(doc! { "_id": "o-1", "total": 0, "outbox": outbox }).await.unwrap();
    let worker = worker(&test, &recorder);
    let mut events = worker.subscribe();
    assert_eq!(process(&test, &worker, "o-1").await, Processed::Done);
    assert_eq!(recorder.amounts(), [10, 11]);
    assert_eq!(test.stored("o-1").await.get_array("outbox").unwrap(), &strange);
    assert!(matches!(events.recv().await.unwrap(), Event::Unreadable { count: 7, .. }));
    assert_eq!(
        process(&test, &worker, "o-1").await,
        Processed::Done,
        "the second pass has nothing to do either"
    );
    test.drop().await;
}

/// A document with no room for a claim is delivered under a lease in the state database.
#[tokio::test]
async fn a_document_near_sixteen_megabytes_is_delivered() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let state = format!("{}_state", test.database.name());
    let settings = ProcessorSettings::default().with(|settings| {
        settings.state_database = state.clone();
        settings.retry = slow_retry();
    });
    let worker = Processor::new(test.client.clone(), Arc::new(recorder.clone()), settings);
    let entries: Vec<_> = (0..3i64)
        .map(|amount| doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": amount } })
        .collect();
    let mut document = doc! { "_id": "big", "total": 0, "outbox": entries, "fill": "" };
    let bytes = bytes_of(&document);
    document.insert("fill", "x".repeat((16 << 20) - 20 - bytes));
    test.orders().insert_one(document).await.unwrap();
    let mut events = worker.subscribe();
    assert_eq!(process(&test, &worker, "big").await, Processed::Done);
    assert!(matches!(events.recv().await.unwrap(), Event::Oversized { .. }));
    assert_eq!(recorder.amounts(), [0, 1, 2]);
    assert!(is_empty(&test.stored("big").await));
    let leases = test.client.database(&state).collection::<Document>("leases");
    assert_eq!(leases.count_documents(doc! {}).await.unwrap(), 0);
    test.client.database(&state).drop().await.unwrap();
    test.drop().await;
}

/// Creates a worker whose claims are so long that a nearly full document has no room for them. Returns the
/// worker and the collection of its leases.
fn worker_with_long_claims(
    test: &TestDatabase,
    deliver: impl Deliver,
) -> (Processor, mongodb::Collection<Document>) {
    let state = format!("{}_state", test.database.name());
    let settings = ProcessorSettings::default().with(|settings| {
        settings.name = "x".repeat(1_000);
        settings.state_database = state.clone();
        settings.retry = slow_retry();
    });
    let worker = Processor::new(test.client.clone(), Arc::new(deliver), settings);
    (worker, test.client.database(&state).collection("leases"))
}

/// Creates a document that has no room for a claim and contains these messages.
async fn insert_large(test: &TestDatabase, amounts: impl IntoIterator<Item = i64>) {
    insert_with_room(test, 20, amounts).await;
}

/// Creates a document that can grow by this many bytes and contains these messages.
async fn insert_with_room(test: &TestDatabase, room: usize, amounts: impl IntoIterator<Item = i64>) {
    let entry = |amount| doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": amount } };
    let entries: Vec<_> = amounts.into_iter().map(entry).collect();
    let mut document = doc! { "_id": "big", "total": 0, "outbox": entries, "fill": "" };
    document.insert("fill", "x".repeat((16 << 20) - room - bytes_of(&document)));
    test.orders().insert_one(document).await.unwrap();
}

#[tokio::test]
async fn a_failing_message_blocks_no_large_unordered_document() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let (worker, leases) = worker_with_long_claims(&test, recorder.clone());
    insert_large(&test, 0..3).await;
    recorder.answer([Outcome::Transient("no".into()), Outcome::Permanent("never".into())]);
    let document = document_outbox::DocumentRef::by_id(test.orders().namespace(), "big");
    let processed =
        worker.process(&document, DeliveryOrder::Unordered, &CancellationToken::new()).await.unwrap();
    assert!(matches!(processed, Processed::Held(Hold::Retrying(_))), "{processed:?}");
    assert_eq!(recorder.amounts(), [2]);
    let lease = leases.find_one(doc! {}).await.unwrap().unwrap();
    let known = |name: &str| lease.get_array(name).unwrap()[0].as_document().unwrap().clone();
    assert_eq!(known("failed").get_i32("attempts"), Ok(1));
    assert_eq!(known("dead").get_str("dead_reason"), Ok("permanent"));
    leases.drop().await.unwrap();
    test.drop().await;
}

/// As in any document, a handler doesn't get a message again that it has already received.
#[tokio::test]
async fn large_documents_remember_their_finished_handlers() {
    let test = TestDatabase::create().await;
    let calls = Arc::new(std::sync::Mutex::new(Vec::new()));
    let called = |name: &'static str| {
        let calls = calls.clone();
        move || {
            let mut calls = calls.lock().unwrap();
            calls.push(name);
            calls.iter().filter(|call| **call == name).count()
        }
    };
    let (mail, bill) = (called("mail"), called("bill"));
    let handlers = Handlers::builder()
        .on("mail", move |_: Added, _| {
            mail();
            async { Ok(()) }
        })
        .on("bill", move |_: Added, _| {
            let first = bill() == 1;
            async move { if first { Err(HandlerError::transient("no")) } else { Ok(()) } }
        });
    let (worker, leases) = worker_with_long_claims(&test, AnyVia(handlers.build().unwrap()));
    insert_large(&test, [1]).await;
    assert!(matches!(process(&test, &worker, "big").await, Processed::Held(Hold::Retrying(_))));
    let past = mongodb::bson::DateTime::from_millis(0);
    leases.update_one(doc! {}, doc! { "$set": { "failed.0.retry_at": past } }).await.unwrap();
    assert_eq!(process(&test, &worker, "big").await, Processed::Done);
    let mut calls = calls.lock().unwrap().clone();
    calls.sort_unstable();
    assert_eq!(calls, ["bill", "bill", "mail"]);
    assert!(is_empty(&test.stored("big").await));
    assert_eq!(leases.count_documents(doc! {}).await.unwrap(), 0);
    test.drop().await;
}

/// Handlers that serve messages without `via`, as the broker does.
struct AnyVia(Handlers);

#[async_trait::async_trait]
impl Deliver for AnyVia {
    async fn deliver(
        &self,
        window: &[document_outbox::deliver::Envelope],
    ) -> Vec<document_outbox::deliver::Answer> {
        self.0.deliver(window).await
    }
}

fn bytes_of(document: &Document) -> usize {
    mongodb::bson::RawDocumentBuf::try_from(document).unwrap().as_bytes().len()
}

/// If a deliverer hangs, panics or returns the wrong number of answers, the attempts fail, but no message is
/// stuck or lost.
#[tokio::test]
async fn a_broken_deliverer_costs_attempts_but_no_message() {
    struct Broken;
    #[async_trait::async_trait]
    impl Deliver for Broken {
        async fn deliver(
            &self,
            window: &[document_outbox::deliver::Envelope],
        ) -> Vec<document_outbox::deliver::Answer> {
            match window[0].document.subject().as_str() {
                "panic" => panic!("on purpose"),
                "hang" => std::future::pending().await,
                _ => Vec::new(),
            }
        }
    }
    let test = TestDatabase::create().await;
    let settings = |lease| {
        ProcessorSettings::default().with(|settings| {
            settings.retry = slow_retry();
            settings.claim_lease = lease;
        })
    };
    for (id, lease) in [("panic", LONG), ("miscount", LONG), ("hang", Duration::from_secs(1))] {
        insert(&test.store(&InlineDispatcher::off(&test.client)), placed(id)).await;
        let worker = Processor::new(test.client.clone(), Arc::new(Broken), settings(lease));
        assert!(matches!(process(&test, &worker, id).await, Processed::Held(_)), "{id}");
        let outbox = test.outbox(id).await;
        assert_eq!(outbox[0].get_i32("attempts"), Ok(1), "{id}");
    }
    test.drop().await;
}

#[tokio::test]
async fn a_save_that_lost_is_not_reported_applied() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let orders = test.store(&background(&test, &recorder));
    insert(&orders, Order::new("o-1")).await;
    let mut one = orders.load("o-1").await.unwrap().unwrap();
    let mut two = orders.load("o-1").await.unwrap().unwrap();
    one.add(1);
    two.add(2);
    let (one, two) = tokio::join!(orders.save(&mut one), orders.save(&mut two));
    let applied =
        [one.unwrap(), two.unwrap()].iter().filter(|saved| matches!(saved, Saved::Applied(_))).count();
    assert_eq!(applied, 1);
    recorder.wait_delivered(1).await;
    test.wait_until("o-1", is_empty).await;
    assert_eq!(recorder.delivered().len(), 1);
    test.drop().await;
}

/// A message that the deliverer doesn't serve is not written with a claim, so it can't go to the wrong destination.
#[tokio::test]
async fn a_message_for_another_deliverer_is_left_unclaimed() {
    let test = TestDatabase::create().await;
    let handlers = Handlers::builder().build().unwrap();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(handlers);
    let receipt = insert(&test.store(&inline), placed("o-1")).await;
    assert_eq!(receipt.dispatch, Dispatch::Settled(vec![(receipt.messages[0], Disposition::Waiting)]));
    let entry = &test.outbox("o-1").await[0];
    assert_eq!((entry.get("claimed_by"), entry.get("attempts"), entry.get("via")), (None, None, None));
    test.drop().await;
}

/// If one of two handlers hangs, a failed attempt is counted, and the message is recorded as delivered to the other
/// handler.
#[tokio::test]
async fn a_handler_that_hangs_does_not_repeat_the_other() {
    let test = TestDatabase::create().await;
    let hang = |_: Added, _| std::future::pending::<Result<(), HandlerError>>();
    let handlers =
        Handlers::builder().on("quick", |_: Added, _| async { Ok(()) }).on("hangs", hang).build().unwrap();
    let inline = InlineDispatcher::builder(&test.client)
        .mode(Mode::Await)
        .inline_lease(Duration::from_secs(1))
        .retry(slow_retry())
        .deliver_to(handlers);
    insert(&test.store(&inline), placed("o-1")).await;
    let entry = &test.outbox("o-1").await[0];
    assert_eq!(entry.get_i32("attempts"), Ok(1));
    assert_eq!(entry.get_array("delivered_to").unwrap(), &[Bson::from("quick")]);
    assert!(entry.get_str("last_error").unwrap().contains("hangs"));
    test.drop().await;
}

/// A handler saves the document whose message it handles. Neither the save nor the delivery may wait for the other.
#[tokio::test]
async fn a_handler_may_save_its_own_document() {
    let test = TestDatabase::create().await;
    let store: Arc<std::sync::OnceLock<Store<Order>>> = Arc::default();
    let (seen, mut amounts) = tokio::sync::mpsc::unbounded_channel();
    let orders = store.clone();
    let handlers = Handlers::builder().on("again", move |added: Added, _| {
        let (orders, seen) = (orders.clone(), seen.clone());
        async move {
            if added.amount == 1 {
                orders.get().unwrap().update("o-1", |order| order.add(2)).await?;
            }
            seen.send(added.amount)?;
            Ok(())
        }
    });
    let inline =
        InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(handlers.build().unwrap());
    let orders = store.get_or_init(|| test.store(&inline));
    let receipt = insert(orders, placed("o-1")).await;
    assert_eq!(receipt.dispatch, Dispatch::Settled(vec![(receipt.messages[0], Disposition::Delivered)]));
    assert_eq!((amounts.recv().await, amounts.recv().await), (Some(1), Some(2)));
    test.wait_until("o-1", is_empty).await;
    assert!(amounts.is_empty(), "each once");
    test.drop().await;
}

/// A clear that waits for a transaction doesn't delay other clears.
#[tokio::test]
async fn a_locked_document_delays_no_other_clears() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let orders = test.store(&background(&test, &recorder));
    for id in ["locked", "free"] {
        insert(&orders, placed(id)).await;
    }
    recorder.wait_tried(2).await;
    let mut session = test.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let touch = doc! { "$set": { "note": "mine" } };
    test.orders().update_one(doc! { "_id": "locked" }, touch).session(&mut session).await.unwrap();
    recorder.let_through(2);
    test.wait_until("free", is_empty).await;
    assert_eq!(test.outbox("locked").await.len(), 1);
    session.commit_transaction().await.unwrap();
    test.wait_until("locked", is_empty).await;
    assert_eq!(recorder.delivered().len(), 2);
    test.drop().await;
}

/// Closes the dispatcher during a save whose future is not polled for this long. Returns the save's answer once the
/// future is polled again.
async fn close_beside_a_forgotten_save(grace: Duration, forgotten: Duration) -> Saved {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = background(&test, &recorder);
    let orders = test.store(&inline);
    insert(&orders, Order::new("o-1")).await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    order.add(1);
    // A transaction locks the document, so the save is still in progress when its future is leaked.
    let mut session = test.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let touch = doc! { "$set": { "note": "mine" } };
    test.orders().update_one(doc! { "_id": "o-1" }, touch).session(&mut session).await.unwrap();
    let mut save = Box::pin(orders.save(&mut order));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut save).await.is_err());

    tokio::time::timeout(LONG, inline.close(grace)).await.expect("closing ends");
    session.abort_transaction().await.unwrap();
    tokio::time::sleep(forgotten).await;
    let saved = save.await.unwrap();
    test.drop().await;
    saved
}

#[tokio::test]
async fn closing_ends_with_a_forgotten_save() {
    let saved = close_beside_a_forgotten_save(Duration::ZERO, Duration::ZERO).await;
    assert!(saved.is_current(), "the save can still be finished");
}

#[tokio::test]
#[ignore = "stress: run by scripts/stress"]
async fn stress_closing_ends_with_a_save_forgotten_for_90_seconds() {
    let saved = close_beside_a_forgotten_save(Duration::from_secs(2), Duration::from_secs(90)).await;
    assert!(
        matches!(saved, Saved::Applied(_) | Saved::Unknown(_)),
        "the save had a time limit of 30 s: {saved:?}"
    );
}

/// P1 Atomic: *If a save's future is dropped, the save may or may not have happened.* A save that is dropped
/// while it waits for its delivery has happened, and its message is not sent again.
#[tokio::test]
async fn a_save_dropped_during_its_delivery_sends_nothing_twice() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    test.orders().insert_one(doc! { "_id": "o-1", "total": 0 }).await.unwrap();
    let mut order = orders.load("o-1").await.unwrap().unwrap();

    order.add(1);
    tokio::select! {
        saved = orders.save(&mut order) => panic!("its message is held: {saved:?}"),
        _ = recorder.wait_tried(1) => {}
    }
    recorder.let_through(1);
    test.wait_until("o-1", is_empty).await;

    recorder.let_through(1);
    order.add(2);
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Applied(_)));
    assert_eq!(recorder.amounts(), [1, 2]);
    test.drop().await;
}

#[tokio::test]
async fn closing_may_take_forever() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = background(&test, &recorder);
    let orders = test.store(&inline);
    insert(&orders, placed("o-1")).await;
    recorder.wait_tried(1).await;
    let close = inline.close(Duration::MAX);
    let deliver = async { recorder.let_through(1) };
    tokio::time::timeout(LONG, async { tokio::join!(close, deliver) }).await.unwrap();
    assert!(is_empty(&test.stored("o-1").await));
    test.drop().await;
}

/// While the broker is blocked, messages in flight get no answer. These messages are released, and so are the messages
/// whose delivery has not begun.
#[tokio::test]
async fn closing_releases_everything_during_an_outage() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&test.client).inline_lease(LONG).deliver_to(recorder.clone());
    let mut order = placed("o-1");
    order.add(2);
    insert(&test.store(&inline), order).await;
    recorder.wait_tried(1).await;
    recorder.set_available(false);
    tokio::time::timeout(LONG / 2, inline.close(Duration::ZERO)).await.unwrap();
    for entry in test.outbox("o-1").await {
        assert_eq!((entry.get("claimed_by"), entry.get("attempts")), (None, None));
    }
    test.drop().await;
}

/// Delivered messages cannot be cleared, because MongoDB no longer answers.
#[tokio::test]
async fn closing_ends_while_mongodb_is_silent() {
    let test = TestDatabase::create().await;
    let (network, far) = crate::network::Network::to_mongodb(&uri("OUTBOX_MONGODB_URI"));
    let client = Client::with_uri_str(far).await.unwrap();
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&client).deliver_to(recorder.clone());
    let orders =
        Store::<Order>::new(client.database(test.database.name()).collection::<Document>("orders"), &inline);
    insert(&orders, placed("o-1")).await;
    recorder.wait_tried(1).await;
    network.swallow(true);
    recorder.let_through(1);
    tokio::time::timeout(LONG / 2, inline.close(Duration::ZERO)).await.expect("closing ends");
    network.cut();
    test.drop().await;
}

/// Messages whose delivery has not begun don't wait for messages in delivery, which may take as long as a lease.
#[tokio::test]
async fn a_stop_releases_unstarted_messages_immediately() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let worker = worker(&test, &recorder);
    let mut order = placed("o-1");
    order.add(2);
    insert(&test.store(&InlineDispatcher::off(&test.client)), order).await;
    let stop = CancellationToken::new();
    let document = document_outbox::DocumentRef::by_id(test.orders().namespace(), "o-1");
    let process = worker.process(&document, DeliveryOrder::Ordered, &stop);
    let stopping = async {
        recorder.wait_tried(1).await;
        stop.cancel();
        let second_is_free = |stored: &Document| {
            let entry = stored.get_array("outbox").unwrap()[1].as_document().unwrap();
            !entry.contains_key("claimed_by")
        };
        test.wait_until("o-1", second_is_free).await;
        recorder.let_through(1);
    };
    let (processed, ()) = tokio::join!(process, stopping);
    assert_eq!(processed.unwrap(), Processed::Interrupted);
    assert_eq!((recorder.amounts(), test.outbox("o-1").await.len()), (vec![1], 1));
    test.drop().await;
}

/// Entries of other writers have no date that a process could compare with its clock, and a release adds no date.
#[tokio::test]
async fn a_released_entry_has_the_date_it_had_before() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let at = mongodb::bson::DateTime::from_millis;
    let entry = |extra: Document| {
        let mut entry =
            doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 } };
        entry.extend(extra);
        entry
    };
    let outbox = vec![
        entry(doc! {}),
        entry(doc! { "available_at": at(5) }),
        entry(doc! { "created_at": at(7), "available_at": at(7) }),
        entry(doc! { "created_at": at(7), "available_at": at(9) }),
        entry(doc! { "available_at": at(6), "claimed_by": "gone" }),
    ];
    test.orders().insert_one(doc! { "_id": "o-1", "total": 0, "outbox": outbox }).await.unwrap();
    recorder.answer([Outcome::Unavailable("away".into())]);
    assert_eq!(process(&test, &worker(&test, &recorder), "o-1").await, Processed::Unavailable);
    let outbox = test.outbox("o-1").await;
    let dates: Vec<_> = outbox.iter().map(|entry| entry.get_datetime("available_at").ok().copied()).collect();
    assert_eq!(dates, [None, Some(at(5)), Some(at(7)), Some(at(9)), None]);
    assert!(outbox.iter().all(|entry| !entry.contains_key("claimed_by")));
    test.drop().await;
}

/// Between read and claim, another process claims the entry, delivers it to one of its handlers and releases it, so
/// that its date appears unchanged.
#[tokio::test]
async fn a_claim_skips_entries_that_reached_a_handler() {
    struct Half;
    #[async_trait::async_trait]
    impl Deliver for Half {
        async fn deliver(
            &self,
            _: &[document_outbox::deliver::Envelope],
        ) -> Vec<document_outbox::deliver::Answer> {
            let outcome = Outcome::Unavailable("half of it".into());
            vec![document_outbox::deliver::Answer { outcome, delivered_to: vec!["mail".into()] }]
        }
    }
    /// The processor calls this limiter between the read and the claim.
    struct Meanwhile(Processor, document_outbox::DocumentRef, std::sync::atomic::AtomicBool);
    #[async_trait::async_trait]
    impl document_outbox::dispatch::Pace for Meanwhile {
        async fn permits(&self, wanted: usize) -> usize {
            if !self.2.swap(true, std::sync::atomic::Ordering::SeqCst) {
                let stop = CancellationToken::new();
                self.0.process(&self.1, DeliveryOrder::Ordered, &stop).await.unwrap();
            }
            wanted
        }
    }
    let test = TestDatabase::create().await;
    insert(&test.store(&InlineDispatcher::off(&test.client)), placed("o-1")).await;
    let document = document_outbox::DocumentRef::by_id(test.orders().namespace(), "o-1");
    let settings = ProcessorSettings::default().with(|settings| settings.retry = slow_retry());
    let other = Processor::new(test.client.clone(), Arc::new(Half), settings);
    // This pass opens the connections, so that the next pass is quick.
    process(&test, &other, "nobody").await;

    let recorder = Recorder::default();
    let worker = worker(&test, &recorder).paced(Arc::new(Meanwhile(other, document, false.into())));
    assert_eq!(process(&test, &worker, "o-1").await, Processed::Done);
    assert_eq!(recorder.delivered()[0].delivered_to, ["mail"], "the state that the other process left");
    test.drop().await;
}

/// P3, P6: each of ten attempts takes as long as the claim allows, and none of them includes the document's other
/// message.
#[tokio::test]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_route_that_hangs_repeats_no_other_message() {
    struct Hangs;
    #[async_trait::async_trait]
    impl Deliver for Hangs {
        async fn deliver(
            &self,
            _: &[document_outbox::deliver::Envelope],
        ) -> Vec<document_outbox::deliver::Answer> {
            std::future::pending().await
        }
    }
    let test = TestDatabase::create().await;
    let entry = || doc! { "id": mongodb::bson::Uuid::new(), "type": "any", "payload": {} };
    let mut hanging = entry();
    hanging.insert("via", "hanging");
    test.orders().insert_one(doc! { "_id": "o-1", "outbox": [entry(), hanging] }).await.unwrap();
    let recorder = Recorder::default();
    let router = document_outbox::deliver::Router::new(recorder.clone()).route("hanging", Hangs, ["hanging"]);
    let wait = Duration::from_millis(1);
    let retry = slow_retry().with(|retry| {
        retry.quick_tries = 0;
        retry.backoff_min = wait;
        retry.backoff_max = wait;
    });
    let lease = Duration::from_secs(2);
    let settings = ProcessorSettings::default().with(|settings| {
        settings.retry = retry;
        settings.claim_lease = lease;
    });
    let worker = Processor::new(test.client.clone(), Arc::new(router), settings);

    let document = document_outbox::DocumentRef::by_id(test.orders().namespace(), "o-1");
    let until_dead = async {
        let stop = CancellationToken::new();
        while !test.outbox("o-1").await.iter().any(|entry| entry.contains_key("dead_at")) {
            worker.process(&document, DeliveryOrder::Unordered, &stop).await.unwrap();
        }
    };
    tokio::time::timeout(2 * LONG, until_dead).await.expect("the attempts are exhausted");
    let left = test.outbox("o-1").await;
    assert_eq!((left.len(), left[0].get_str("via")), (1, Ok("hanging")));
    assert_eq!(
        (left[0].get_str("dead_reason"), left[0].get_i32("attempts")),
        (Ok("attempts_exhausted"), Ok(10))
    );
    assert_eq!(recorder.delivered().len(), 1, "delivered only in the first round");
    test.drop().await;
}

/// P3 (a): the number of messages that are published and not yet cleared is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_repeats_no_more_than_the_bound() {
    const DOCUMENTS: usize = 8;
    const MESSAGES: usize = 20;
    const BOUND: usize = 5;
    let test = TestDatabase::create().await;
    let ids: Vec<_> = (0..DOCUMENTS).map(|n| format!("o-{n}")).collect();
    for id in &ids {
        let mut order = Order::new(id);
        (0..MESSAGES).for_each(|amount| order.add(amount.try_into().unwrap()));
        insert(&test.store(&InlineDispatcher::off(&test.client)), order).await;
    }
    let recorder = Recorder::held();
    let settings = ProcessorSettings::default().with(|settings| settings.max_repeats = BOUND);
    let dying = Processor::new(test.client.clone(), Arc::new(recorder.clone()), settings);
    let tasks = ids.iter().map(|id| {
        let document = document_outbox::DocumentRef::by_id(test.orders().namespace(), id.as_str());
        let dying = dying.clone();
        tokio::spawn(async move {
            dying.process(&document, DeliveryOrder::Ordered, &CancellationToken::new()).await.unwrap()
        })
    });
    let tasks: Vec<_> = tasks.collect();
    recorder.let_through(50);
    recorder.wait_delivered(50).await;
    for task in tasks {
        task.abort();
        // Some deliveries may have ended before the process was killed.
        drop(task.await);
    }

    let next = worker(&test, &recorder);
    recorder.let_through(DOCUMENTS * MESSAGES);
    for id in &ids {
        expire_claims(&test, id).await;
        assert_eq!(process(&test, &next, id).await, Processed::Done);
    }
    let delivered = recorder.delivered();
    let distinct: std::collections::HashSet<_> = delivered.iter().map(|envelope| envelope.id).collect();
    assert_eq!(distinct.len(), DOCUMENTS * MESSAGES);
    let repeats = delivered.len() - distinct.len();
    assert!(repeats <= BOUND, "{repeats} repeats");
    test.drop().await;
}

/// A handler waits for a task that saves the handler's document, and the delivery of that save waits for the handler.
#[tokio::test]
async fn a_handler_may_wait_for_a_spawned_save() {
    let test = TestDatabase::create().await;
    let store: Arc<std::sync::OnceLock<Store<Order>>> = Arc::default();
    let orders = store.clone();
    let handlers = Handlers::builder().on("again", move |added: Added, _| {
        let orders = orders.clone();
        async move {
            if added.amount == 1 {
                let save = async move {
                    orders.get().unwrap().update("o-1", |order| order.add(2)).await.unwrap();
                };
                tokio::spawn(save).await?;
            }
            Ok(())
        }
    });
    let inline = InlineDispatcher::builder(&test.client)
        .mode(Mode::Await)
        .inline_lease(Duration::from_secs(2))
        .retry(slow_retry())
        .deliver_to(handlers.build().unwrap());
    let orders = store.get_or_init(|| test.store(&inline));
    let receipt = insert(orders, placed("o-1")).await;
    assert_eq!(receipt.dispatch, Dispatch::Settled(vec![(receipt.messages[0], Disposition::Delivered)]));
    test.wait_until("o-1", is_empty).await;
    test.drop().await;
}

/// The user's code may also panic when its future is created, and not only when it is polled.
#[tokio::test]
async fn a_deliverer_that_panics_at_once_costs_an_attempt() {
    struct Panics;
    impl Deliver for Panics {
        fn deliver<'a, 'b, 'c>(
            &'a self,
            _: &'b [document_outbox::deliver::Envelope],
        ) -> futures::future::BoxFuture<'c, Vec<document_outbox::deliver::Answer>>
        where
            'a: 'c,
            'b: 'c,
            Self: 'c,
        {
            panic!("on purpose")
        }
    }
    let test = TestDatabase::create().await;
    let inline =
        InlineDispatcher::builder(&test.client).mode(Mode::Await).retry(slow_retry()).deliver_to(Panics);
    let receipt = insert(&test.store(&inline), placed("o-1")).await;
    let retrying = Disposition::Retrying { error: "the deliverer panicked".into() };
    assert_eq!(receipt.dispatch, Dispatch::Settled(vec![(receipt.messages[0], retrying)]));
    test.drop().await;
}

/// These tests use several runtimes in one process, as tests that share a `static` do.
mod runtimes {
    use document_outbox::Error;
    use tokio::runtime::Runtime;

    use super::*;

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    fn assert_says_so(error: &Error) {
        let Error::Unavailable(source) = error else { panic!("nothing was written: {error:?}") };
        assert!(source.to_string().contains("runtime"), "{source}");
    }

    #[test]
    fn a_store_reports_that_its_runtime_has_ended() {
        let first = runtime();
        let (test, orders, mut order) = first.block_on(async {
            let test = TestDatabase::create().await;
            let orders = test.store(&background(&test, &Recorder::default()));
            insert(&orders, Order::new("o-1")).await;
            let order = orders.load("o-1").await.unwrap().unwrap();
            (test, orders, order)
        });
        drop(first);

        let second = runtime();
        second.block_on(async {
            order.add(1);
            let tries = async {
                assert_says_so(&orders.load("o-1").await.unwrap_err());
                assert_says_so(&orders.insert(placed("o-2")).await.unwrap_err());
                assert_says_so(&orders.insert(Order::new("o-3")).await.unwrap_err());
                assert_says_so(&orders.save(&mut order).await.unwrap_err());
                assert_says_so(&orders.delete(&order).await.unwrap_err());
                let saves = (0..20).map(|n| orders.insert(placed(&format!("s-{n}"))));
                for saved in futures::future::join_all(saves).await {
                    assert_says_so(&saved.unwrap_err());
                }
            };
            tokio::time::timeout(2 * LONG, tries).await.expect("each has an answer");
            let client = Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
            let database = client.database(test.database.name());
            let stored = database.collection::<Document>("orders");
            assert_eq!(stored.count_documents(doc! {}).await.unwrap(), 1, "no other document was written");
            database.drop().await.unwrap();
        });
    }

    /// The client's runtime still runs, but the runtime of the inline dispatcher's tasks has ended.
    #[test]
    fn a_dispatcher_of_an_ended_runtime_delivers_or_reports() {
        let of_client = runtime();
        let test = of_client.block_on(TestDatabase::create());
        let recorder = Recorder::default();
        let first = runtime();
        let inline = first.block_on(async {
            let inline = InlineDispatcher::builder(&test.client)
                .mode(Mode::Await)
                .defer_clears(Duration::from_millis(200))
                .deliver_to(recorder.clone());
            insert(&test.store(&inline), placed("o-1")).await;
            inline
        });
        drop(first);

        runtime().block_on(async {
            let orders = test.store(&inline);
            let saves = (0..20).map(|n| {
                let orders = orders.clone();
                tokio::spawn(async move { orders.insert(placed(&format!("s-{n}"))).await })
            });
            let saves: Vec<_> = saves.collect();
            let mut written = 1;
            for save in saves {
                match tokio::time::timeout(LONG, save).await.expect("an answer").unwrap() {
                    Ok(Inserted::Applied(_, receipt)) => {
                        let delivered = vec![(receipt.messages[0], Disposition::Delivered)];
                        assert_eq!(receipt.dispatch, Dispatch::Settled(delivered));
                        written += 1;
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => assert_says_so(&error),
                }
            }
            assert_eq!(test.orders().count_documents(doc! {}).await.unwrap(), written);
            for of_one in 0..10 {
                orders.update("o-1", |order| order.add(of_one)).await.unwrap();
            }
            tokio::time::timeout(LONG, inline.close(LONG / 2)).await.unwrap();
            test.wait_until_all_are_empty().await;
            assert_eq!(recorder.delivered().len() as u64, written + 10, "each once");
        });
        of_client.block_on(test.drop());
    }

    /// Messages whose delivery ended with the runtime are not delivered by this process, and are reported.
    #[test]
    fn a_delivery_that_ends_with_its_runtime_is_announced() {
        let of_client = runtime();
        let test = of_client.block_on(TestDatabase::create());
        let recorder = Recorder::held();
        let first = runtime();
        let inline = first.block_on(async {
            let inline = background(&test, &recorder);
            insert(&test.store(&inline), placed("o-1")).await;
            recorder.wait_tried(1).await;
            inline
        });
        let mut events = inline.subscribe();
        drop(first);
        assert!(matches!(
            events.try_recv().unwrap(),
            Event::Skipped { document, count: 1, reason: Shed::Stopped } if document.subject() == "o-1"
        ));
        let health = inline.health().snapshot();
        assert_eq!((health.shed, health.in_flight), (1, 0));
        of_client.block_on(test.drop());
    }

    #[test]
    fn a_deliverer_whose_runtime_has_ended_is_unavailable() {
        use document_outbox::deliver::{RabbitMq, RabbitMqSettings};
        let first = runtime();
        let exchange = format!("t-{}", uuid::Uuid::now_v7().simple());
        let rabbitmq = first.block_on(async {
            let settings = RabbitMqSettings::new(&uri("OUTBOX_RABBITMQ_URI")).unwrap();
            let topology = document_outbox::amqp::TopologyMode::Off;
            let rabbitmq = RabbitMq::start(RabbitMqSettings { exchange, topology, ..settings });
            tokio::time::timeout(LONG, rabbitmq.available()).await.unwrap();
            assert!(rabbitmq.is_available());
            rabbitmq
        });
        drop(first);
        assert!(!rabbitmq.is_available());

        runtime().block_on(async {
            let test = TestDatabase::create().await;
            let inline =
                InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(rabbitmq.clone());
            let receipt = insert(&test.store(&inline), placed("o-1")).await;
            assert_eq!(receipt.dispatch, Dispatch::Skipped(Shed::Unavailable));
            tokio::time::timeout(LONG, inline.close(LONG)).await.unwrap();
            tokio::time::timeout(LONG, rabbitmq.close()).await.unwrap();
            test.drop().await;
        });
    }
}

/// A lease has a minimum duration, as a claim has, because no delivery could end in time within a shorter
/// lease.
#[tokio::test]
async fn a_full_document_gets_a_long_enough_lease() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let state = test.client.database(&format!("{}_state", test.database.name()));
    let settings = ProcessorSettings::default().with(|settings| {
        settings.state_database = state.name().to_owned();
        settings.claim_lease = Duration::from_millis(1);
        settings.retry = slow_retry();
    });
    let clock = ServerClock::new(test.client.clone());
    let worker = Processor::new(test.client.clone(), Arc::new(recorder.clone()), settings);
    insert_large(&test, [1]).await;
    let before = clock.now().await.unwrap();
    let look = async {
        recorder.wait_tried(1).await;
        let lease = state.collection::<Document>("leases").find_one(doc! {}).await.unwrap().unwrap();
        recorder.let_through(1);
        lease.get_datetime("until").unwrap().timestamp_millis() - before.timestamp_millis()
    };
    let (_, length) = tokio::join!(process(&test, &worker, "big"), look);
    assert!(length >= 500, "a lease of {length} ms");
    state.drop().await.unwrap();
    test.drop().await;
}

/// A lease and a claim in the document don't exclude each other, so a worker takes no lease if the document
/// has room for any claim, even a shorter one.
#[tokio::test]
async fn a_shorter_claim_comes_before_a_lease() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let (worker, leases) = worker_with_long_claims(&test, recorder.clone());
    insert_with_room(&test, 200, [1]).await;
    let look = async {
        recorder.wait_tried(1).await;
        let claimed = test.outbox("big").await[0].contains_key("claimed_by");
        let leases = leases.count_documents(doc! {}).await.unwrap();
        recorder.let_through(1);
        (claimed, leases)
    };
    let (processed, found) = tokio::join!(process(&test, &worker, "big"), look);
    assert_eq!(processed, Processed::Done);
    assert_eq!(found, (true, 0), "claimed in the document, without a lease");
    leases.drop().await.unwrap();
    test.drop().await;
}

/// A result is ignored if another process has taken the lease before the result is recorded.
#[tokio::test]
async fn a_death_under_a_lost_lease_is_not_reported() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let (worker, leases) = worker_with_long_claims(&test, recorder.clone());
    let mut events = worker.subscribe();
    // Recording a death needs less room than an entry's date, which it replaces. This entry has no date, so there
    // is no room.
    insert_with_room(&test, 0, [1]).await;
    recorder.answer([Outcome::Permanent("never".into())]);
    let steal = async {
        recorder.wait_tried(1).await;
        let another = doc! { "$set": { "owner": "another" } };
        assert_eq!(leases.update_one(doc! {}, another).await.unwrap().matched_count, 1);
        recorder.let_through(1);
    };
    let document = document_outbox::DocumentRef::by_id(test.orders().namespace(), "big");
    let stop = CancellationToken::new();
    let (processed, ()) = tokio::join!(worker.process(&document, DeliveryOrder::Ordered, &stop), steal);
    processed.unwrap();
    let mut heard = Vec::new();
    while let Ok(event) = events.try_recv() {
        heard.push(event);
    }
    assert!(heard.iter().any(|event| matches!(event, Event::ClaimLost { .. })), "{heard:?}");
    assert!(!heard.iter().any(|event| matches!(event, Event::Died { .. })), "{heard:?}");
    assert!(!test.outbox("big").await[0].contains_key("dead_at"));
    leases.drop().await.unwrap();
    test.drop().await;
}

/// A message died while the document had no room to record the death. Once there is room, a worker finds the
/// message dead.
#[tokio::test]
async fn a_dead_message_in_a_large_document_stays() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let (worker, leases) = worker_with_long_claims(&test, recorder.clone());
    insert_large(&test, [1]).await;
    recorder.answer([Outcome::Permanent("never".into())]);
    assert_eq!(process(&test, &worker, "big").await, Processed::Done);
    let room = doc! { "$unset": { "fill": "" } };
    test.orders().update_one(doc! { "_id": "big" }, room).await.unwrap();
    assert_eq!(process(&test, &worker, "big").await, Processed::Done);
    assert_eq!(recorder.amounts(), Vec::<i64>::new());
    assert!(test.outbox("big").await[0].contains_key("dead_at"));
    leases.drop().await.unwrap();
    test.drop().await;
}

#[tokio::test]
async fn an_invalid_utf8_entry_spares_its_neighbours() {
    let test = TestDatabase::create().await;
    let bad = [
        doc! { "payload": "##" },
        doc! { "payload": { "a": [{ "##": 1 }] } },
        doc! { "headers": { "h": "##" } },
        doc! { "headers": { "##": "h" } },
        doc! { "type": "##" },
    ];
    for (number, bad) in bad.into_iter().enumerate() {
        let recorder = Recorder::default();
        let worker = worker(&test, &recorder);
        let mut events = worker.subscribe();
        let id = format!("o-{number}");
        let mut middle = entry(2);
        middle.extend(bad);
        let outbox = vec![entry(1), middle, entry(3)];
        test.insert_damaged(doc! { "_id": &id, "##": 1, "name": "##", "outbox": outbox }).await;

        assert_eq!(process(&test, &worker, &id).await, Processed::Done);
        assert_eq!(recorder.amounts(), [1, 3], "{id}");
        let unreadable = loop {
            if let Event::Unreadable { count, reason, .. } = events.recv().await.unwrap() {
                break (count, reason);
            }
        };
        assert_eq!(unreadable.0, 1);
        assert!(unreadable.1.starts_with("element 1: `"), "{}", unreadable.1);
        let left =
            test.orders().count_documents(doc! { "_id": &id, "outbox": { "$size": 1 } }).await.unwrap();
        assert_eq!(left, 1, "the unreadable one stays");
    }
    test.drop().await;
}

#[tokio::test]
async fn a_message_that_was_pushed_twice_is_delivered_once() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let off = InlineDispatcher::off(&test.client);
    let orders = test.store(&off);
    insert(&orders, Order::new("o-1")).await;

    let mut outbox = document_outbox::Outbox::default();
    outbox.send(Added { amount: 1 });
    let staged = orders.stage(&mut outbox).await.unwrap();
    for _repeated_after_an_error in 0..2 {
        let update = staged.onto(doc! { "$set": { "total": 1 } }).unwrap();
        test.orders().update_one(doc! { "_id": "o-1" }, update).await.unwrap();
    }
    let mut loaded = orders.load("o-1").await.unwrap().unwrap();
    loaded.add(2);
    let copied = loaded.outbox.clone();
    assert!(matches!(orders.save(&mut loaded).await.unwrap(), Saved::Applied(_)));
    loaded.total += 1;
    loaded.outbox = copied;
    assert!(matches!(orders.save(&mut loaded).await.unwrap(), Saved::Applied(_)));
    assert_eq!(test.outbox("o-1").await.len(), 4);

    assert_eq!(process(&test, &worker(&test, &recorder), "o-1").await, Processed::Done);
    assert_eq!(recorder.amounts(), [1, 2]);
    assert!(is_empty(&test.stored("o-1").await));
    test.drop().await;
}

#[tokio::test]
async fn a_message_pushed_twice_fails_as_one() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let twice = entry(1);
    let mut claimed = twice.clone();
    claimed.extend(doc! { "claimed_by": "gone", "available_at": mongodb::bson::DateTime::from_millis(0) });
    test.orders().insert_one(doc! { "_id": "o-1", "outbox": [claimed, entry(2), twice] }).await.unwrap();

    recorder.answer([Outcome::Permanent("no".into())]);
    assert_eq!(process(&test, &worker(&test, &recorder), "o-1").await, Processed::Done);
    assert_eq!(recorder.amounts(), [2]);
    let left = test.outbox("o-1").await;
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|entry| entry.contains_key("dead_at") && !entry.contains_key("claimed_by")));
    test.drop().await;
}

/// An entry with only the fields that a foreign writer has to push.
fn entry(amount: i64) -> Document {
    doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": amount } }
}

/// These tests set a fail point of MongoDB.
mod fail_point {
    use super::*;

    /// P3 (a): a message is delivered again only if its process dies between confirm and clear.
    #[tokio::test]
    async fn a_crash_before_the_clear_repeats_messages_once() {
        let test = TestDatabase::create().await;
        // The fail point makes the server refuse the updates of clients with this name, so the clear never
        // takes effect.
        let name = format!("dying-{}", uuid::Uuid::now_v7().simple());
        let mut options = mongodb::options::ClientOptions::parse(uri("OUTBOX_MONGODB_URI")).await.unwrap();
        options.app_name = Some(name.clone());
        let client = Client::with_options(options).unwrap();
        let fail = |mode: Bson| {
            let data = doc! { "failCommands": ["update"], "errorCode": 13, "appName": &name };
            let admin = test.client.database("admin");
            async move {
                admin
                    .run_command(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data })
                    .await
                    .unwrap()
            }
        };
        let recorder = Recorder::default();
        let inline = InlineDispatcher::builder(&client).mode(Mode::Await).deliver_to(recorder.clone());
        let orders = Store::<Order>::new(
            client.database(test.database.name()).collection::<Document>("orders"),
            &inline,
        );
        fail("alwaysOn".into()).await;
        insert(&orders, placed("o-1")).await;
        fail("off".into()).await;
        assert_eq!(recorder.amounts(), [1]);
        assert_eq!(test.outbox("o-1").await.len(), 1, "the clear did not happen");

        expire_claims(&test, "o-1").await;
        assert_eq!(process(&test, &worker(&test, &recorder), "o-1").await, Processed::Done);
        assert_eq!(recorder.amounts(), [1, 1]);
        let delivered = recorder.delivered();
        assert_eq!(delivered[0].id, delivered[1].id, "a receiver's inbox recognises the repeat");
        assert!(is_empty(&test.stored("o-1").await));
        test.drop().await;
    }

    /// If one write of a delivery fails, the outcomes of the other writes are still known.
    #[tokio::test]
    async fn a_failed_write_hides_no_other_result() {
        let test = TestDatabase::create().await;
        let name = format!("failing-{}", uuid::Uuid::now_v7().simple());
        let mut options = mongodb::options::ClientOptions::parse(uri("OUTBOX_MONGODB_URI")).await.unwrap();
        options.app_name = Some(name.clone());
        let client = Client::with_options(options).unwrap();
        let recorder = Recorder::default();
        recorder.answer([Outcome::Delivered, Outcome::Transient("no".into())]);
        let inline = InlineDispatcher::builder(&client)
            .mode(Mode::Await)
            .retry(slow_retry())
            .deliver_to(recorder.clone());
        let orders = Store::<Order>::new(
            client.database(test.database.name()).collection::<Document>("orders"),
            &inline,
        );
        // The fail point acts twice, because the library tries this write in two forms.
        let data = doc! { "failCommands": ["update"], "errorCode": 13, "appName": &name };
        let fail = doc! { "configureFailPoint": "failCommand", "mode": { "times": 2 }, "data": data };
        test.client.database("admin").run_command(fail).await.unwrap();

        let mut order = placed("o-1");
        order.add(2);
        let receipt = insert(&orders, order).await;
        let Dispatch::Settled(settled) = receipt.dispatch else { panic!("{:?}", receipt.dispatch) };
        let dispositions: Vec<_> = settled.into_iter().map(|(_, disposition)| disposition).collect();
        assert_eq!(dispositions, [Disposition::Delivered, Disposition::Waiting]);
        test.drop().await;
    }
}
