//! Tests saves that return as soon as the broker has confirmed their messages, while the clear of these
//! messages is still in progress. The next save of the document may arrive before or after the clear.
//!
//! The tests hold requests between library and MongoDB by their content: only clears contain `$pull`, only a save that
//! overtakes a clear contains `$or`, other saves contain `$push`, a claim contains `arrayFilters`, and `find` is sent
//! by a save that matched no document.

use std::{future::Future, pin::pin, time::Duration};

use crate::{
    deferred_clears::{contend, foreign},
    network::Network,
    support::{LONG, Order, Recorder, TestDatabase, is_empty, uri},
};
use document_outbox::{
    DeliveryOrder, Dispatch, DocumentRef, InlineDispatcher, Loaded, Mode, Store,
    dispatch::{Disposition, InlineBuilder, Processed, Processor, ProcessorSettings},
    observe::Event,
    store::{Deleted, Inserted, Saved},
};
use mongodb::{
    Client,
    bson::{Bson, DateTime, Document, Uuid, doc},
};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

const CLEAR: &str = "$pull";
const OVERTAKING_SAVE: &str = "$or";
const OTHER_SAVE: &str = "$push";
const CLAIM: &str = "arrayFilters";
const QUESTION: &str = "find";

fn at_confirm(client: &Client) -> InlineBuilder {
    InlineDispatcher::builder(client).mode(Mode::AwaitConfirm).inline_lease(2 * LONG)
}

/// An application whose requests to MongoDB the test can delay.
struct Shop {
    /// The same database through a client that doesn't use the delayed network.
    near: TestDatabase,
    network: Network,
    recorder: Recorder,
    inline: InlineDispatcher,
    orders: Store<Order>,
    events: broadcast::Receiver<Event>,
}

impl Shop {
    async fn open() -> Self {
        let (near, recorder) = (TestDatabase::create().await, Recorder::default());
        let (network, far) = Network::to_mongodb(&uri("OUTBOX_MONGODB_URI"));
        let client = Client::with_uri_str(far).await.unwrap();
        let inline = at_confirm(&client).deliver_to(recorder.clone());
        let documents = client.database(near.database.name()).collection::<Document>("orders");
        let orders = Store::new(documents, &inline);
        let events = inline.subscribe();
        Self { near, network, recorder, inline, orders, events }
    }

    /// Creates an order with a message that was delivered and whose clear is delayed.
    async fn with_a_clear_held() -> (Self, Loaded<Order>) {
        let shop = Self::open().await;
        shop.network.hold_those_with(CLEAR);
        let mut order = Order::new("o-1");
        order.add(1);
        let Inserted::Applied(order, receipt) = soon(shop.orders.insert(order)).await.unwrap() else {
            panic!()
        };
        assert_delivered(&receipt.dispatch);
        assert_eq!(shop.amounts().await, [1]);
        (shop, *order)
    }

    /// The amounts of the messages that are stored.
    async fn amounts(&self) -> Vec<i64> {
        let outbox = self.near.outbox("o-1").await;
        outbox.iter().map(|entry| entry.get_document("payload").unwrap().get_i64("amount").unwrap()).collect()
    }

    async fn update_beside(&self, update: Document) {
        self.near.orders().update_one(doc! { "_id": "o-1" }, update).await.unwrap();
    }

    async fn save(&self, order: &mut Loaded<Order>, amount: i64) {
        order.add(amount);
        match soon(self.orders.save(order)).await.unwrap() {
            Saved::Applied(receipt) => assert_delivered(&receipt.dispatch),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until no delivery is in progress. A delivery includes its clear.
    async fn wait_until_idle(&self, deliveries: usize) {
        let idle = async {
            while self.inline.health().snapshot().in_flight > deliveries {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon(idle).await;
    }

    /// Lets the clear pass only after a save has tried to overtake it and has matched no document.
    async fn let_the_clear_pass_after_a_miss(&self) {
        self.network.holds_one_with(QUESTION).await;
        self.network.let_those_pass_with(QUESTION);
        self.network.let_those_pass_with(CLEAR);
    }

    /// Number of claims reported as lost so far.
    fn claims_lost(&mut self) -> usize {
        let mut lost = 0;
        while let Ok(event) = self.events.try_recv() {
            lost += usize::from(matches!(event, Event::ClaimLost { .. }));
        }
        lost
    }

    async fn close(self) {
        soon(self.inline.close(LONG)).await;
        assert!(is_empty(&self.near.stored("o-1").await));
        self.near.drop().await;
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.expect("it ends")
}

fn assert_delivered(dispatch: &Dispatch) {
    let Dispatch::Settled(settled) = dispatch else { panic!("{dispatch:?}") };
    assert!(settled.iter().all(|(_, end)| *end == Disposition::Delivered), "{settled:?}");
}

#[tokio::test]
async fn a_save_overtakes_its_predecessors_clear() {
    let (mut shop, mut order) = Shop::with_a_clear_held().await;
    for amount in 2..=4 {
        shop.save(&mut order, amount).await;
        assert_eq!(shop.amounts().await, [amount], "the save removed the messages that it found");
    }
    shop.network.let_those_pass_with(CLEAR);
    shop.wait_until_idle(0).await;
    assert_eq!(shop.recorder.amounts(), [1, 2, 3, 4], "each message is delivered once, in order");
    assert_eq!(shop.claims_lost(), 0, "an overtaken clear is not a lost claim");
    shop.close().await;
}

#[tokio::test]
async fn a_late_clear_leaves_the_next_saves_message() {
    let (mut shop, mut order) = Shop::with_a_clear_held().await;
    let (recorder, orders) = (shop.recorder.clone(), shop.orders.clone());
    recorder.hold();
    order.add(2);
    let mut save = pin!(soon(orders.save(&mut order)));
    tokio::select! {
        saved = &mut save => panic!("the save ended although its answer is withheld: {saved:?}"),
        _ = recorder.wait_tried(2) => {}
    }
    shop.network.let_those_pass_with(CLEAR);
    shop.wait_until_idle(1).await;
    assert_eq!(shop.amounts().await, [2]);
    recorder.let_through(1);
    assert!(save.await.unwrap().is_current());
    shop.wait_until_idle(0).await;
    assert_eq!(shop.recorder.amounts(), [1, 2]);
    assert_eq!(shop.claims_lost(), 0);
    shop.close().await;
}

#[tokio::test]
async fn a_save_right_behind_the_clear_needs_no_second_try() {
    let (shop, mut order) = Shop::with_a_clear_held().await;
    shop.network.hold_those_with(OVERTAKING_SAVE);
    shop.network.hold_those_with(OTHER_SAVE); // until the test ends
    let save = shop.save(&mut order, 2);
    let clear_first = async {
        shop.network.holds_one_with(OVERTAKING_SAVE).await;
        shop.network.let_those_pass_with(CLEAR);
        shop.near.wait_until("o-1", is_empty).await;
        shop.network.let_those_pass_with(OVERTAKING_SAVE);
    };
    tokio::join!(save, clear_first);
    assert_eq!(shop.recorder.amounts(), [1, 2]);
    shop.close().await;
}

#[tokio::test]
async fn a_document_loaded_before_the_clear_needs_no_claim() {
    let (shop, _) = Shop::with_a_clear_held().await;
    let mut order = soon(shop.orders.load("o-1")).await.unwrap().unwrap();
    shop.network.let_those_pass_with(CLEAR);
    shop.wait_until_idle(0).await;
    shop.network.hold_those_with(CLAIM); // until the test ends
    shop.save(&mut order, 2).await;
    assert_eq!(shop.recorder.amounts(), [1, 2]);
    shop.close().await;
}

/// If a save finds entries that it must not remove, the save removes no entries, and waits for its turn.
#[tokio::test]
async fn a_foreign_message_survives_an_overtaken_clear() {
    let (shop, mut order) = Shop::with_a_clear_held().await;
    shop.update_beside(doc! { "$push": { "outbox": foreign(2) } }).await;
    shop.network.hold_those_with(QUESTION);
    tokio::join!(shop.save(&mut order, 3), shop.let_the_clear_pass_after_a_miss());
    assert_eq!(shop.recorder.amounts(), [1, 2, 3]);
    shop.close().await;
}

#[tokio::test]
async fn a_foreign_value_instead_of_the_outbox_survives() {
    let (shop, mut order) = Shop::with_a_clear_held().await;
    shop.update_beside(doc! { "$set": { "outbox": { "foreign": 1 } } }).await;
    shop.network.hold_those_with(QUESTION);
    order.add(2);
    let (saved, ()) =
        tokio::join!(soon(shop.orders.save(&mut order)), shop.let_the_clear_pass_after_a_miss());
    saved.unwrap_err();
    assert_eq!(shop.near.stored("o-1").await.get_document("outbox").unwrap(), &doc! { "foreign": 1 });
    soon(shop.inline.close(LONG)).await;
    shop.near.drop().await;
}

/// The claim expired before the clear arrived, and another process has claimed the message.
#[tokio::test]
async fn a_conflict_hides_no_claim_that_was_lost() {
    let (mut shop, mut order) = Shop::with_a_clear_held().await;
    let until = DateTime::from_millis(DateTime::now().timestamp_millis() + 60_000);
    let taken_over = doc! {
        "etag": Uuid::new(), "outbox.0.claimed_by": "another/1", "outbox.0.available_at": until,
    };
    shop.update_beside(doc! { "$set": taken_over }).await;
    order.add(2);
    assert!(matches!(soon(shop.orders.save(&mut order)).await.unwrap(), Saved::Conflict));
    assert_eq!(shop.amounts().await, [1], "the message of the other process stays");
    shop.network.let_those_pass_with(CLEAR);
    shop.wait_until_idle(0).await;
    assert_eq!(shop.amounts().await, [1]);
    assert_eq!(shop.claims_lost(), 1);
    shop.near.drop().await;
}

#[tokio::test]
async fn closing_waits_for_clears_under_way() {
    let (shop, _) = Shop::with_a_clear_held().await;
    let inline = shop.inline.clone();
    let mut close = pin!(inline.close(LONG));
    tokio::select! {
        biased;
        () = &mut close => panic!("closed before the clear"),
        () = several_turns() => {}
    }
    shop.network.let_those_pass_with(CLEAR);
    soon(close).await;
    assert!(is_empty(&shop.near.stored("o-1").await));
    shop.near.drop().await;
}

#[tokio::test]
async fn a_flush_waits_for_clears_under_way() {
    let (shop, _) = Shop::with_a_clear_held().await;
    let inline = shop.inline.clone();
    let mut flush = pin!(inline.flush());
    tokio::select! {
        biased;
        () = &mut flush => panic!("flushed before the clear"),
        () = several_turns() => {}
    }
    shop.network.let_those_pass_with(CLEAR);
    soon(flush).await;
    assert!(is_empty(&shop.near.stored("o-1").await));
    shop.close().await;
}

/// Yields many times, so that every task runs, except tasks that wait for something outside this process.
async fn several_turns() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_document_is_deletable_right_after_its_confirm() {
    let (shop, order) = Shop::with_a_clear_held().await;
    let orders = shop.orders.clone();
    let mut delete = pin!(orders.delete(&order));
    tokio::select! {
        biased;
        deleted = &mut delete => panic!("the delete must wait for the clear: {deleted:?}"),
        () = several_turns() => {}
    }
    shop.network.let_those_pass_with(CLEAR);
    assert!(matches!(soon(delete).await.unwrap(), Deleted::Done));
    shop.near.drop().await;
}

/// The scheduled message stays, so the next save could not remove the delivered message.
#[tokio::test]
async fn a_save_with_scheduled_messages_waits_for_its_clear() {
    let shop = Shop::open().await;
    shop.network.hold_those_with(CLEAR);
    let mut order = Order::new("o-1");
    order.add(1);
    order.outbox.send_after(crate::support::Added { amount: 2 }, 100 * LONG);
    let orders = shop.orders.clone();
    let mut insert = pin!(soon(orders.insert(order)));
    tokio::select! {
        _ = &mut insert => panic!("it waits for the clear"),
        () = shop.network.holds_one_with(CLEAR) => {}
    }
    shop.network.let_those_pass_with(CLEAR);
    assert!(matches!(insert.await.unwrap(), Inserted::Applied(..)));
    assert_eq!(shop.amounts().await, [2]);
    shop.near.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contended_saves_at_the_confirm_deliver_messages_once() {
    let (test, recorder) = (TestDatabase::create().await, Recorder::default());
    let inline = at_confirm(&test.client).deliver_to(recorder.clone());
    contend(test, &inline, &recorder, 5, 24).await;
}

mod ended_runtimes {
    use super::*;

    const DOCUMENTS: i64 = 12;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    fn id(document: i64) -> String {
        format!("o-{document}")
    }

    /// Returns the amounts of all deliveries in order. The processes end as soon as a save has returned, after one, two
    /// or three saves. Messages that they leave behind are delivered at the end.
    fn deliveries(database: &str, client_of: impl Fn() -> String) -> Vec<i64> {
        let recorder = Recorder::default();
        for document in 0..DOCUMENTS {
            let process = runtime();
            process.block_on(async {
                let client = Client::with_uri_str(client_of()).await.unwrap();
                let inline = at_confirm(&client).deliver_to(recorder.clone());
                let orders: Store<Order> =
                    Store::new(client.database(database).collection::<Document>("orders"), &inline);
                let mut order = Order::new(&id(document));
                order.add(document * 10);
                let Inserted::Applied(mut order, _) = soon(orders.insert(order)).await.unwrap() else {
                    panic!()
                };
                for further in 1..=document % 3 {
                    order.add(document * 10 + further);
                    assert!(soon(orders.save(&mut order)).await.unwrap().is_current());
                }
            });
            drop(process);
        }

        runtime().block_on(rescue(database, &recorder));
        recorder.amounts()
    }

    /// Delivers the remaining messages, as a worker does after their claims have expired.
    async fn rescue(database: &str, recorder: &Recorder) {
        let client = Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
        let documents = client.database(database).collection::<Document>("orders");
        let claims_over = doc! { "$set": { "outbox.$[].available_at": DateTime::from_millis(0) } };
        documents.update_many(doc! {}, claims_over).await.unwrap();

        let settings = ProcessorSettings::default();
        let processor = Processor::new(client, std::sync::Arc::new(recorder.clone()), settings);
        let stop = CancellationToken::new();
        for document in 0..DOCUMENTS {
            let document =
                DocumentRef::by_id(mongodb::Namespace::new(database, "orders"), Bson::from(id(document)));
            let processed = soon(processor.process(&document, DeliveryOrder::Ordered, &stop)).await;
            assert_eq!(processed.unwrap(), Processed::Done);
        }
    }

    /// Checks that all messages were delivered in order, and returns those that were delivered again.
    fn repeats(delivered: &[i64]) -> Vec<i64> {
        let mut repeats = Vec::new();
        for document in 0..DOCUMENTS {
            let of_document = delivered.iter().copied().filter(|amount| amount / 10 == document);
            let mut first = Vec::new();
            for amount in of_document {
                if first.contains(&amount) {
                    repeats.push(amount);
                } else {
                    first.push(amount);
                }
            }
            let sent: Vec<_> = (0..=document % 3).map(|further| document * 10 + further).collect();
            assert_eq!(first, sent, "none lost, in order");
        }
        repeats
    }

    fn last_of_each() -> Vec<i64> {
        (0..DOCUMENTS).map(|document| document * 10 + document % 3).collect()
    }

    /// Each save removes the message of the previous save, so only the last message of a process remains.
    #[test]
    fn a_runtime_that_ends_before_its_clear_repeats_one() {
        let of_test = runtime();
        let test = of_test.block_on(TestDatabase::create());
        let (network, far) = Network::to_mongodb(&uri("OUTBOX_MONGODB_URI"));
        network.hold_those_with(CLEAR);
        let delivered = deliveries(test.database.name(), || far.clone());
        assert_eq!(repeats(&delivered), last_of_each());
        of_test.block_on(test.drop());
    }

    #[test]
    fn a_runtime_that_ends_during_its_clear_loses_none() {
        let of_test = runtime();
        let test = of_test.block_on(TestDatabase::create());
        let delivered = deliveries(test.database.name(), || uri("OUTBOX_MONGODB_URI"));
        let last = last_of_each();
        let repeats = repeats(&delivered);
        assert!(repeats.iter().all(|amount| last.contains(amount)), "{repeats:?}");
        assert!(repeats.len() <= last.len(), "{repeats:?}");
        of_test.block_on(test.drop());
    }
}
