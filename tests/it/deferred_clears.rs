//! Tests delivered messages that stay in their document for a while, until the next save removes these messages.

use std::time::Duration;

use crate::support::{Added, LONG, Order, Recorder, TestDatabase, is_empty, uri};
use document_outbox::{
    Dispatch, InlineDispatcher, Loaded, Mode, Store,
    dispatch::{Disposition, InlineBuilder},
    store::{Deleted, Inserted, Saved},
};
use futures::future::join_all;
use mongodb::{
    Client,
    bson::{Bson, Document, Uuid, doc},
};
use tokio_util::sync::CancellationToken;

/// A time that is longer than any test.
const FOR_EVER: Duration = Duration::from_secs(600);

fn deferring(test: &TestDatabase, time: Duration) -> InlineBuilder {
    InlineDispatcher::builder(&test.client).mode(Mode::Await).inline_lease(4 * FOR_EVER).defer_clears(time)
}

/// An application that leaves delivered messages in their documents until a later save or flush clears them.
struct Shop {
    test: TestDatabase,
    recorder: Recorder,
    inline: InlineDispatcher,
    orders: Store<Order>,
}

impl Shop {
    async fn open() -> Self {
        let (test, recorder) = (TestDatabase::create().await, Recorder::default());
        let inline = deferring(&test, FOR_EVER).deliver_to(recorder.clone());
        Self { orders: test.store(&inline), test, recorder, inline }
    }

    /// Creates an order with a message that has been delivered and is still in the outbox.
    async fn with_one_that_stays(id: &str) -> (Self, Loaded<Order>) {
        let shop = Self::open().await;
        let mut order = Order::new(id);
        order.add(1);
        let Inserted::Applied(order, receipt) = shop.orders.insert(order).await.unwrap() else { panic!() };
        assert_delivered(&receipt.dispatch);
        assert_eq!(shop.amounts(id).await, [1]);
        (shop, *order)
    }

    /// The amounts of the messages in an outbox; 0 for other elements.
    async fn amounts(&self, id: &str) -> Vec<i64> {
        let stored = self.test.stored(id).await;
        let amount = |entry: &Bson| {
            let payload = entry.as_document().and_then(|entry| entry.get_document("payload").ok());
            payload.and_then(|payload| payload.get_i64("amount").ok()).unwrap_or(0)
        };
        stored.get_array("outbox").unwrap().iter().map(amount).collect()
    }

    async fn push(&self, id: &str, element: impl Into<Bson>) {
        let push = doc! { "$push": { "outbox": element.into() } };
        self.test.orders().update_one(doc! { "_id": id }, push).await.unwrap();
    }
}

fn assert_delivered(dispatch: &Dispatch) {
    let Dispatch::Settled(settled) = dispatch else { panic!("{dispatch:?}") };
    assert!(settled.iter().all(|(_, end)| *end == Disposition::Delivered), "{settled:?}");
}

async fn save(orders: &Store<Order>, order: &mut Loaded<Order>, amount: i64) {
    order.add(amount);
    match orders.save(order).await.unwrap() {
        Saved::Applied(receipt) => assert_delivered(&receipt.dispatch),
        other => panic!("{other:?}"),
    }
}

/// An entry that another program pushed.
pub(crate) fn foreign(amount: i64) -> Document {
    doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": amount } }
}

#[tokio::test]
async fn the_next_save_removes_a_delivered_message() {
    let (shop, mut order) = Shop::with_one_that_stays("o-1").await;
    for amount in 2..=4 {
        save(&shop.orders, &mut order, amount).await;
        assert_eq!(shop.amounts("o-1").await, [amount]);
    }
    // After a load, a save finds the message in the outbox and removes it too.
    shop.orders.update("o-1", |order| order.add(5)).await.unwrap();
    assert_eq!(shop.amounts("o-1").await, [5]);
    let mut order = shop.orders.load("o-1").await.unwrap().unwrap();
    order.note = Some("a save that sends no message removes no message".into());
    assert!(shop.orders.save(&mut order).await.unwrap().is_current());
    assert_eq!(shop.amounts("o-1").await, [5]);
    order.outbox.send(Added { amount: 6 });
    order.outbox.send(Added { amount: 7 });
    assert!(shop.orders.save(&mut order).await.unwrap().is_current());
    assert_eq!(shop.amounts("o-1").await, [6, 7]);
    save(&shop.orders, &mut order, 8).await;
    assert_eq!(shop.amounts("o-1").await, [8]);
    shop.inline.close(FOR_EVER).await;
    assert!(is_empty(&shop.test.stored("o-1").await));
    assert_eq!(shop.recorder.amounts(), [1, 2, 3, 4, 5, 6, 7, 8], "each message is delivered once, in order");
    shop.test.drop().await;
}

#[tokio::test]
async fn an_unsaved_document_is_cleared_after_its_time() {
    let (test, recorder) = (TestDatabase::create().await, Recorder::default());
    let inline = deferring(&test, Duration::from_millis(50)).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    let insert = |n: i64| {
        let orders = &orders;
        async move {
            let mut order = Order::new(&format!("o-{n}"));
            order.add(n);
            assert!(matches!(orders.insert(order).await.unwrap(), Inserted::Applied(..)));
        }
    };
    join_all((0..100).map(insert)).await;
    test.wait_until_all_are_empty().await;
    assert_eq!(recorder.delivered().len(), 100);
    test.drop().await;
}

#[tokio::test]
async fn the_last_handle_clears_remaining_messages() {
    let (Shop { test, inline, orders, recorder }, order) = Shop::with_one_that_stays("o-1").await;
    drop((inline, orders, order));
    test.wait_until("o-1", is_empty).await;
    assert_eq!(recorder.amounts(), [1]);
    test.drop().await;
}

/// A save removes no entry if the outbox has entries that the save does not know.
#[tokio::test]
async fn foreign_writes_next_to_a_delivered_message_are_kept() {
    let (shop, mut order) = Shop::with_one_that_stays("o-1").await;
    shop.push("o-1", foreign(2)).await;
    save(&shop.orders, &mut order, 3).await;
    shop.push("o-1", "no entry").await;
    save(&shop.orders, &mut order, 4).await;
    shop.inline.close(FOR_EVER).await;
    assert_eq!(shop.amounts("o-1").await, [0], "the unreadable element stays");
    assert_eq!(shop.recorder.amounts(), [1, 2, 3, 4]);
    shop.test.drop().await;
}

/// The claim has expired, and another process has claimed the message.
#[tokio::test]
async fn a_message_claimed_by_another_is_left_alone() {
    let (shop, mut order) = Shop::with_one_that_stays("o-1").await;
    let until =
        mongodb::bson::DateTime::from_millis(mongodb::bson::DateTime::now().timestamp_millis() + 60_000);
    let claimed = doc! { "$set": { "outbox.0.claimed_by": "another/1", "outbox.0.available_at": until } };
    shop.test.orders().update_one(doc! { "_id": "o-1" }, claimed).await.unwrap();
    order.add(2);
    let (saving, looking) = (shop.orders.save(&mut order), async {
        shop.test.wait_until("o-1", |stored| stored.get_array("outbox").unwrap().len() == 2).await
    });
    tokio::select! {
        saved = saving => panic!("the other's message came first: {saved:?}"),
        _ = looking => {}
    }
    assert_eq!(shop.amounts("o-1").await, [1, 2]);
    assert_eq!(shop.recorder.amounts(), [1]);
    shop.test.drop().await;
}

#[tokio::test]
async fn a_failed_save_still_clears_delivered_messages() {
    let (shop, mut order) = Shop::with_one_that_stays("o-1").await;
    let changed = doc! { "$set": { "etag": Uuid::new() } };
    shop.test.orders().update_one(doc! { "_id": "o-1" }, changed).await.unwrap();
    order.add(2);
    assert!(matches!(shop.orders.save(&mut order).await.unwrap(), Saved::Conflict));
    shop.test.wait_until("o-1", is_empty).await;
    shop.test.drop().await;
}

#[tokio::test]
async fn a_document_is_deletable_right_after_delivery() {
    let (shop, order) = Shop::with_one_that_stays("o-1").await;
    assert!(matches!(shop.orders.delete(&order).await.unwrap(), Deleted::Done));
    shop.test.drop().await;
}

#[tokio::test]
async fn a_callers_own_update_does_not_wait() {
    let (shop, _) = Shop::with_one_that_stays("o-1").await;
    let mut order = Order::new("o-1");
    order.add(2);
    let staged = shop.orders.stage(&mut order.outbox).await.unwrap();
    let update = staged.onto(doc! { "$inc": { "total": 2 } }).unwrap();
    shop.test.orders().update_one(doc! { "_id": "o-1" }, update).await.unwrap();
    assert_delivered(&staged.committed("o-1").await);
    assert_eq!(shop.recorder.amounts(), [1, 2]);
    shop.test.drop().await;
}

/// Two processes save the same document in turn. Each process finds the message of the other process, and
/// waits until that message has been cleared.
#[tokio::test]
async fn another_process_waits_and_keeps_the_order() {
    let (test, recorder) = (TestDatabase::create().await, Recorder::default());
    let process = || {
        let inline = deferring(&test, Duration::from_millis(20)).deliver_to(recorder.clone());
        test.store(&inline)
    };
    let (one, other) = (process(), process());
    assert!(matches!(one.insert(Order::new("o-1")).await.unwrap(), Inserted::Applied(..)));
    for amount in 0..10 {
        let orders = if amount % 2 == 0 { &one } else { &other };
        let updated = orders.update("o-1", |order| order.add(amount)).await.unwrap();
        assert_delivered(&updated.receipt.unwrap().dispatch);
    }
    assert_eq!(recorder.amounts(), (0..10).collect::<Vec<_>>());
    test.wait_until("o-1", is_empty).await;
    test.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_contention_every_message_is_delivered_once() {
    let (test, recorder) = (TestDatabase::create().await, Recorder::default());
    let inline = deferring(&test, Duration::from_millis(30)).deliver_to(recorder.clone());
    contend(test, &inline, &recorder, 10, 32).await;
}

/// Many savers and some foreign writers share a few documents, and every message is delivered once.
pub(crate) async fn contend(
    test: TestDatabase,
    inline: &InlineDispatcher,
    recorder: &Recorder,
    documents: i64,
    savers: i64,
) {
    let orders = test.store(inline);
    for document in 0..documents {
        let inserted = orders.insert(Order::new(&format!("o-{document}"))).await.unwrap();
        assert!(matches!(inserted, Inserted::Applied(..)));
    }
    let saver = |saver: i64| {
        let (orders, test) = (&orders, &test);
        async move {
            for round in 0..5 {
                let id = format!("o-{}", (saver + round * 3) % documents);
                let amount = saver * 100 + round;
                if saver % 8 == 0 {
                    let push = doc! { "$push": { "outbox": foreign(amount) } };
                    test.orders().update_one(doc! { "_id": id }, push).await.unwrap();
                } else {
                    orders.update(&id, |order| order.add(amount)).await.unwrap();
                }
            }
        }
    };
    join_all((0..savers).map(saver)).await;
    // Deliver those messages of foreign writers that no later save has delivered. In production, the rescuer finds
    // these messages.
    for document in 0..documents {
        orders.update(&format!("o-{document}"), |order| order.add(-1)).await.unwrap();
    }
    inline.close(LONG).await;
    test.wait_until_all_are_empty().await;
    let mut amounts: Vec<_> = recorder.amounts().into_iter().filter(|amount| *amount >= 0).collect();
    amounts.sort_unstable();
    let mut sent: Vec<_> =
        (0..savers).flat_map(|saver| (0..5).map(move |round| saver * 100 + round)).collect();
    sent.sort_unstable();
    assert_eq!(amounts, sent);
    test.drop().await;
}

/// Flushes while 200 savers constantly have clears in progress and every reply from MongoDB is delayed by a tenth of a
/// second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_flush_ends_among_200_savers_and_late_replies() {
    let (near, recorder) = (TestDatabase::create().await, Recorder::default());
    let (network, far) = crate::network::Network::to_mongodb(&uri("OUTBOX_MONGODB_URI"));
    let client = Client::with_uri_str(far).await.unwrap();
    let test = TestDatabase { database: client.database(near.database.name()), client, on_panic: None };
    let inline = deferring(&test, Duration::from_millis(20)).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    network.delay(Duration::from_millis(100));

    let stop = CancellationToken::new();
    let saver = |saver: i64| {
        let (orders, stop) = (&orders, &stop);
        async move {
            let id = format!("o-{saver}");
            assert!(matches!(orders.insert(Order::new(&id)).await.unwrap(), Inserted::Applied(..)));
            let mut saved = 0;
            while !stop.is_cancelled() {
                orders.update(&id, |order| order.add(saver)).await.unwrap();
                saved += 1;
            }
            saved
        }
    };
    let flushing = async {
        for round in 1..=4 {
            recorder.wait_delivered(round * 200).await;
            // The flush gives up after 30 s.
            let ended = tokio::time::timeout(Duration::from_secs(25), inline.flush()).await;
            ended.expect("a flush ends while others save");
        }
        stop.cancel();
    };
    let (saved, ()) = tokio::join!(join_all((0..200).map(saver)), flushing);
    inline.close(FOR_EVER).await;
    near.wait_until_all_are_empty().await;
    assert_eq!(recorder.delivered().len(), saved.iter().sum::<usize>(), "each once");
    near.drop().await;
}
