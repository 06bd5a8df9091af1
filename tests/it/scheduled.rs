//! Tests messages that are sent now and delivered later.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::flow::{Flow, Heard, Received, WORKER};
use crate::support::{Added, LONG, Order, Recorder, TestDatabase, is_empty};
use document_outbox::{
    DeliveryOrder, Dispatch, InlineDispatcher, Mode, Outbox, RetryPolicy, Store,
    command::Reason,
    dispatch::{Disposition, Processed, Processor, ProcessorSettings},
    internal::ServerClock,
    observe::Event,
    store::{Deleted, Inserted, Receipt},
};
use mongodb::bson::{DateTime, Document, doc};
use outbox_rescuer::RescueEvent;
use tokio_util::sync::CancellationToken;

const DELAY: Duration = Duration::from_secs(1);
/// The time until a scheduled message is due. It is longer than the delay, so that the change stream reads
/// the message before it is due.
const LATER: Duration = Duration::from_secs(3);

/// Creates an order whose first message is scheduled for later and whose other messages are due now.
fn placed(id: &str, later: i64, now: impl IntoIterator<Item = i64>, after: Duration) -> Order {
    let mut order = Order::new(id);
    order.outbox.send_after(Added { amount: later }, after);
    now.into_iter().for_each(|amount| order.add(amount));
    order
}

async fn insert(orders: &Store<Order>, order: Order) -> Receipt {
    match orders.insert(order).await.unwrap() {
        Inserted::Applied(_, receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

fn date(entry: &Document, name: &str) -> i64 {
    entry.get_datetime(name).unwrap().timestamp_millis()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap()
}

fn amounts(received: &[Received]) -> Vec<i64> {
    received.iter().map(Received::amount).collect()
}

/// P4: *a scheduled message takes its turn when it is due*, and blocks no other message until then. P5: the message is
/// late by at most the sweep's interval and its time in the queue. The change stream reads the message earlier, but
/// queues no command for it.
#[tokio::test]
async fn a_due_scheduled_message_is_delivered_by_the_sweep() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let worker = flow.dispatcher(RetryPolicy::default()).await;
    let mut rescuer = flow.rescuer(flow.rescuer_settings(DELAY)).await;
    let inline = InlineDispatcher::builder(&flow.test.client).mode(Mode::Await);
    let orders = flow.test.store(&inline.deliver_to(flow.rabbitmq("inline").await));

    let receipt = insert(&orders, placed("o-1", 1, [2, 3], LATER)).await;
    let dispositions = [Disposition::Scheduled, Disposition::Delivered, Disposition::Delivered];
    let settled = receipt.messages.into_iter().zip(dispositions).collect();
    assert_eq!(receipt.dispatch, Dispatch::Settled(settled));
    let updated = orders.update("o-1", |order| order.add(4)).await.unwrap();
    let settled = updated.receipt.unwrap().dispatch;
    assert!(matches!(&settled, Dispatch::Settled(all) if all[0].1 == Disposition::Delivered), "{settled:?}");
    assert_eq!(amounts(&receiver.wait(3).await), [2, 3, 4]);
    let entry = flow.test.outbox("o-1").await.remove(0);
    assert_eq!(date(&entry, "available_at") - date(&entry, "created_at"), millis(LATER));
    assert_eq!((entry.get("claimed_by"), entry.get("attempts")), (None, None));
    assert!(matches!(orders.delete(&updated.document).await.unwrap(), Deleted::Undelivered));

    let queued = |event: &RescueEvent| match event {
        RescueEvent::Queued { reason, .. } => Some(*reason),
        _ => None,
    };
    assert_eq!(rescuer.wait("its first command", queued).await, Reason::Sweep);
    let clock = ServerClock::new(flow.test.client.clone());
    let late = clock.now().await.unwrap().timestamp_millis() - date(&entry, "available_at");
    // Two readings of the server's clock differ by their round trips.
    assert!(late > -50, "queued {late} ms after it was due");
    let received = receiver.wait(4).await;
    assert_eq!(amounts(&received), [2, 3, 4, 1]);
    assert_eq!(received[3].app_id(), WORKER);
    flow.test.wait_until("o-1", is_empty).await;

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}

/// A due message that the sweep has not found yet is delivered, at its place in the outbox, by the next delivery
/// of its document.
#[tokio::test]
async fn the_next_save_delivers_due_scheduled_messages() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let orders = test.store(&InlineDispatcher::builder(&test.client).deliver_to(recorder.clone()));
    assert_eq!(insert(&orders, placed("o-1", 1, [], LONG)).await.dispatch, Dispatch::Scheduled);
    let entry = test.outbox("o-1").await.remove(0);
    let due = entry.get_datetime("created_at").unwrap();
    let set = doc! { "$set": { "outbox.0.available_at": due } };
    test.orders().update_one(doc! { "_id": "o-1" }, set).await.unwrap();
    orders.update("o-1", |order| order.add(2)).await.unwrap();
    recorder.wait_delivered(2).await;
    assert_eq!(recorder.amounts(), [1, 2]);
    test.drop().await;
}

#[tokio::test]
async fn saving_only_scheduled_messages_takes_no_capacity() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&test.client).capacity(1).deliver_to(recorder.clone());
    let mut events = Heard::from(inline.subscribe());
    let orders = test.store(&inline);
    assert_eq!(insert(&orders, placed("o-1", 1, [2], LONG)).await.dispatch, Dispatch::Background);
    assert_eq!(insert(&orders, placed("o-2", 3, [], LONG)).await.dispatch, Dispatch::Scheduled);
    let mut outbox = Outbox::default();
    outbox.send_after(Added { amount: 4 }, LONG);
    let staged = orders.stage(&mut outbox).await.unwrap();
    test.orders().insert_one(staged.into_new(doc! { "_id": "o-3" }).unwrap()).await.unwrap();
    assert_eq!(staged.committed("o-3").await, Dispatch::Scheduled);
    for id in ["o-2", "o-3"] {
        let entry = test.outbox(id).await.remove(0);
        assert_eq!(date(&entry, "available_at") - date(&entry, "created_at"), millis(LONG));
    }
    let outbox = test.outbox("o-1").await;
    let claimed: Vec<_> = outbox.iter().map(|entry| entry.contains_key("claimed_by")).collect();
    assert_eq!(claimed, [false, true], "only a due message is born claimed");
    recorder.let_through(1);
    recorder.wait_delivered(1).await;
    assert_eq!(recorder.amounts(), [2]);
    inline.close(LONG).await;
    assert!(!events.rest().iter().any(|event| matches!(event, Event::Skipped { .. })));
    test.drop().await;
}

/// If another writer's entry arrives before the save, the messages are written without a claim, and the
/// scheduled time stays.
#[tokio::test]
async fn a_schedule_survives_an_outbox_filled_meanwhile() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    insert(&orders, Order::new("o-1")).await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    let foreign =
        doc! { "id": mongodb::bson::Uuid::new(), "type": "order.added", "payload": { "amount": 7i64 } };
    test.orders().update_one(doc! { "_id": "o-1" }, doc! { "$push": { "outbox": foreign } }).await.unwrap();
    order.outbox.send_after(Added { amount: 8 }, LONG);
    order.add(9);
    assert!(orders.save(&mut order).await.unwrap().is_current());
    assert_eq!(recorder.amounts(), [7, 9]);
    let entry = test.outbox("o-1").await.remove(0);
    assert_eq!(date(&entry, "available_at") - date(&entry, "created_at"), millis(LONG));
    test.drop().await;
}

#[tokio::test]
async fn past_times_mean_now_and_infinite_ones_never() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let mut order = Order::new("o-1");
    order.outbox.send_after(Added { amount: 1 }, Duration::MAX);
    order.outbox.send_at(Added { amount: 2 }, DateTime::MAX);
    order.outbox.send_at(Added { amount: 3 }, UNIX_EPOCH);
    order.outbox.send_at(Added { amount: 4 }, SystemTime::now() + LONG);
    order.outbox.send_after(Added { amount: 5 }, Duration::ZERO);
    insert(&test.store(&inline), order).await;
    assert_eq!(recorder.amounts(), [3, 5]);
    let left = test.outbox("o-1").await;
    assert_eq!(left.len(), 3);
    assert!(left.iter().all(|entry| !entry.contains_key("claimed_by")));
    test.drop().await;
}

/// A scheduled message that failed is retried like any other. After a release it is due at once.
#[tokio::test]
async fn an_overdue_scheduled_message_counts_as_retrying() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let orders = test.store(&InlineDispatcher::off(&test.client));
    insert(&orders, placed("o-1", 1, [2], Duration::from_millis(1))).await;
    let clock = ServerClock::new(test.client.clone());
    let processor = Processor::new(
        test.client.clone(),
        std::sync::Arc::new(recorder.clone()),
        ProcessorSettings::default(),
    );
    let document = document_outbox::DocumentRef::by_id(test.orders().namespace(), "o-1");
    let process = || async {
        processor.process(&document, DeliveryOrder::Ordered, &CancellationToken::new()).await.unwrap()
    };
    let due = test.outbox("o-1").await[0].get_datetime("available_at").copied().unwrap();
    while clock.now().await.unwrap() < due {
        tokio::task::yield_now().await;
    }
    recorder.answer([document_outbox::deliver::Outcome::Unavailable("away".into())]);
    assert_eq!(process().await, Processed::Unavailable);
    assert_eq!(process().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1, 2]);
    test.drop().await;
}

/// The rescuer sends no command for a scheduled message before its time.
#[tokio::test]
async fn a_scheduled_message_is_not_queued_before_its_time() {
    let flow = Flow::begin().await;
    let settings =
        flow.rescuer_settings(DELAY).with(|settings| settings.requeue_pause = Duration::from_millis(100));
    let mut rescuer = flow.rescuer(settings).await;
    let orders = flow.test.store(&InlineDispatcher::off(&flow.test.client));
    insert(&orders, placed("o-1", 1, [], LONG)).await;
    // A command for the scheduled message would precede the command for a later message.
    let mut order = Order::new("o-2");
    order.add(2);
    insert(&orders, order).await;
    let queued = |event: &RescueEvent| match event {
        RescueEvent::Queued { document, .. } => Some(document.subject()),
        _ => None,
    };
    for _ in 0..3 {
        assert_eq!(rescuer.wait("a command", queued).await, "o-2");
    }
    rescuer.stop().await;
    flow.end().await;
}
