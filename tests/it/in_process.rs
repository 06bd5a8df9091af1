//! Tests that the subscriptions of a receiver also receive messages inside the process, without a broker, on a real MongoDB.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{
    Aggregate, DeliveryOrder, Dispatch, DocumentRef, Inbox, InboxLimits, InlineDispatcher, Message, Mode,
    Outbox, RetryPolicy, Store,
    deliver::{
        Deliver, Envelope, HANDLERS, HandlerError, Handlers, HandlersError, Outcome, Unhandled,
        conformance::{self, Harness, envelope},
    },
    dispatch::{Disposition, Processor, ProcessorSettings},
    receive::Subscriptions,
};
use mongodb::{
    Namespace,
    bson::{Bson, Document, doc},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    flow::soon,
    receiving::{Stock, StockRequested},
    support::{TestDatabase, is_empty},
};

/// An aggregate that passes a message on until its count is zero.
#[derive(Debug, Serialize, Deserialize, Aggregate)]
struct Runner {
    #[serde(rename = "_id")]
    name: String,
    laps: i64,
    #[serde(default)]
    inbox: Inbox,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Debug, Clone, Serialize, Deserialize, Message)]
#[message(type = "baton.passed")]
struct BatonPassed {
    to: String,
    left: i64,
}

impl Runner {
    fn new(name: String) -> Self {
        Self { name, laps: 0, inbox: Inbox::default(), outbox: Outbox::default() }
    }

    fn run(&mut self, baton: &BatonPassed) {
        self.laps += 1;
        let next = match baton.left {
            0 => return,
            left if left % 3 == 0 => self.name.clone(),
            _ if self.name == "a" => "b".to_owned(),
            _ => "a".to_owned(),
        };
        self.outbox.send(BatonPassed { to: next, left: baton.left - 1 });
    }
}

fn runners_receiving(runners: &Store<Runner>) -> Subscriptions {
    Subscriptions::new().into_aggregate(
        runners,
        |baton: &BatonPassed| baton.to.clone(),
        Runner::new,
        Runner::run,
    )
}

fn stocks_receiving(stocks: &Store<Stock>) -> Subscriptions {
    let key = |request: &StockRequested| request.sku.clone();
    Subscriptions::new().into_aggregate(stocks, key, Stock::new, Stock::take)
}

/// The stores of one test, whose messages are delivered in the process.
struct Shop {
    test: TestDatabase,
    inline: InlineDispatcher,
    stocks: Store<Stock>,
    runners: Store<Runner>,
}

impl Shop {
    async fn open(mode: Mode, handlers: impl FnOnce(&Store<Stock>, &Store<Runner>) -> Handlers) -> Self {
        let test = TestDatabase::create().await;
        let stores = |inline: &InlineDispatcher| {
            let stocks = Store::new(test.database.collection::<Document>("stocks"), inline);
            let runners = Store::new(test.database.collection::<Document>("runners"), inline);
            (stocks, runners)
        };
        let made = InlineDispatcher::builder(&test.client).mode(mode).retry(slow_retry()).deliver_to_with(
            |inline| {
                let (stocks, runners) = stores(inline);
                Ok::<_, HandlersError>(handlers(&stocks, &runners))
            },
        );
        let inline = made.unwrap();
        let (stocks, runners) = stores(&inline);
        Self { test, inline, stocks, runners }
    }

    /// Saves a shelf that sends these messages.
    async fn send<M: Message>(&self, shelf: &str, messages: Vec<M>) -> Dispatch {
        let mut new = Stock::new(shelf.into());
        for message in messages {
            new.outbox.send(message);
        }
        let (_shelf, receipt) = self.stocks.insert(new).await.unwrap().applied().unwrap();
        receipt.dispatch
    }

    async fn stored(&self, collection: &str, id: &str) -> Document {
        let stored = self.test.database.collection::<Document>(collection);
        stored.find_one(doc! { "_id": id }).await.unwrap().unwrap()
    }

    /// The only entry in the outbox of a shelf.
    async fn entry(&self, shelf: &str) -> Document {
        let stored = self.stored("stocks", shelf).await;
        let entries = stored.get_array("outbox").unwrap();
        assert_eq!(entries.len(), 1, "{stored}");
        entries[0].as_document().unwrap().clone()
    }

    async fn close(self) {
        self.inline.close(Duration::from_secs(10)).await;
        self.test.drop().await;
    }
}

/// A policy without quick retries, and with a first backoff that is longer than any test.
fn slow_retry() -> RetryPolicy {
    RetryPolicy::default().with(|retry| {
        retry.quick_tries = 0;
        retry.backoff_min = Duration::from_secs(600);
        retry.backoff_max = Duration::from_secs(600);
    })
}

fn dispositions(dispatch: Dispatch) -> Vec<Disposition> {
    match dispatch {
        Dispatch::Settled(settled) => settled.into_iter().map(|(_, disposition)| disposition).collect(),
        other => panic!("{other:?}"),
    }
}

fn request(sku: &str, quantity: i64) -> StockRequested {
    StockRequested { sku: sku.into(), quantity }
}

#[tokio::test]
async fn an_aggregate_receives_in_the_process_and_applies_once() {
    let test = TestDatabase::create().await;
    let inline = InlineDispatcher::off(&test.client);
    let stocks = Store::new(test.database.collection::<Document>("stocks"), &inline);
    let handlers = Handlers::builder().subscriptions("stock", stocks_receiving(&stocks)).build().unwrap();
    let payload = doc! { "sku": "tea", "quantity": 3i64 };
    let window = [envelope("stock.requested", payload.clone()), envelope("stock.asked", payload)];
    for _delivery in 0..2 {
        let answers = handlers.deliver(&window).await;
        assert!(answers.iter().all(|answer| answer.outcome == Outcome::Delivered), "{answers:?}");
        assert!(answers.iter().all(|answer| answer.delivered_to == ["stock"]), "{answers:?}");
    }
    let stock = stocks.load("tea").await.unwrap().unwrap();
    assert_eq!((stock.available, stock.inbox.len()), (-6, 2));
    assert!(window.iter().all(|message| stock.inbox.contains(message.id)));
    test.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_messages_of_one_aggregate_are_all_applied() {
    let shop = Shop::open(Mode::Await, |stocks, _| {
        Handlers::builder().subscriptions("stock", stocks_receiving(stocks)).build().unwrap()
    })
    .await;
    // Each conflict is the success of another message, so that 15 messages never use up the 20 tries.
    let shelves: Vec<_> = (0..15).map(|nth| format!("shelf-{nth}")).collect();
    let sending = shelves.iter().map(|shelf| shop.send(shelf, vec![request("tea", 1)]));
    for dispatch in futures::future::join_all(sending).await {
        assert_eq!(dispositions(dispatch), [Disposition::Delivered]);
    }
    assert_eq!(shop.stocks.load("tea").await.unwrap().unwrap().available, -15);
    shop.close().await;
}

/// Each set of subscriptions is tried again by itself: the sets that have received the message are not called again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_subscription_repeats_no_other() {
    let (mails, posts) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let build = {
        let (mails, posts) = (mails.clone(), posts.clone());
        move |stocks: &Store<Stock>| {
            let (mails, posts) = (mails.clone(), posts.clone());
            let mail = Subscriptions::new().on(move |_: StockRequested, _| {
                let first = mails.fetch_add(1, Ordering::SeqCst) == 0;
                async move { if first { Err(HandlerError::transient("no mail server")) } else { Ok(()) } }
            });
            let post = Subscriptions::new().on(move |_: StockRequested, received| {
                assert_eq!(received.routing_key, "stock.requested");
                posts.fetch_add(1, Ordering::SeqCst);
                async { Ok(()) }
            });
            Handlers::builder()
                .subscriptions("stock", stocks_receiving(stocks))
                .subscriptions("mail", mail)
                .subscriptions("post", post)
                .build()
                .unwrap()
        }
    };
    let shop = Shop::open(Mode::Await, |stocks, _| build(stocks)).await;
    let dispatch = shop.send("shelf", vec![request("tea", 2)]).await;
    let failed = dispositions(dispatch);
    assert!(
        matches!(&failed[..], [Disposition::Retrying { error }] if error.contains("no mail server")),
        "{failed:?}"
    );
    let entry = shop.entry("shelf").await;
    let mut reached: Vec<_> =
        entry.get_array("delivered_to").unwrap().iter().filter_map(Bson::as_str).collect();
    reached.sort_unstable();
    assert_eq!(reached, ["post", "stock"]);
    assert_eq!(entry.get_i32("attempts").ok(), Some(1), "{entry}");

    // The backoff ends, as time would end it, and a worker continues.
    let stored = shop.test.database.collection::<Document>("stocks");
    let past = doc! { "$set": { "outbox.0.available_at": mongodb::bson::DateTime::from_millis(0) } };
    stored.update_one(doc! { "_id": "shelf" }, past).await.unwrap();
    let worker =
        Processor::new(shop.test.client.clone(), Arc::new(build(&shop.stocks)), ProcessorSettings::default());
    let document = DocumentRef::by_id(stored.namespace(), "shelf");
    worker.process(&document, DeliveryOrder::Ordered, &CancellationToken::new()).await.unwrap();
    assert!(is_empty(&shop.stored("stocks", "shelf").await));
    assert_eq!((mails.load(Ordering::SeqCst), posts.load(Ordering::SeqCst)), (2, 1));
    let tea = shop.stocks.load("tea").await.unwrap().unwrap();
    assert_eq!((tea.available, tea.inbox.len()), (-2, 1));
    shop.close().await;
}

#[tokio::test]
async fn each_failure_has_its_outcome() {
    let test = TestDatabase::create().await;
    let inline = InlineDispatcher::off(&test.client);
    let stocks = Store::<Stock>::new(test.database.collection::<Document>("stocks"), &inline);
    let key = |request: &StockRequested| request.sku.clone();
    let refuse = |_: &mut Stock, request: &StockRequested| match request.quantity {
        1 => Err(HandlerError::permanent("discontinued")),
        2 => Err(HandlerError::transient("closed for lunch")),
        _ => Err(HandlerError::unavailable("the warehouse burns")),
    };
    let refusing = Subscriptions::new().into_aggregate(&stocks, key, Stock::new, refuse);
    let handlers = Handlers::builder().subscriptions("stock", refusing).build().unwrap();
    let of = |quantity: Bson| envelope("stock.requested", doc! { "sku": "tea", "quantity": quantity });
    let window = [of(1i64.into()), of(2i64.into()), of(3i64.into()), of("s3cret".into())];
    let answers = handlers.deliver(&window).await;
    let outcomes: Vec<_> = answers.into_iter().map(|answer| answer.outcome).collect();
    assert!(
        matches!(&outcomes[0], Outcome::Permanent(text) if text.contains("discontinued")),
        "{outcomes:?}"
    );
    assert!(matches!(&outcomes[1], Outcome::Transient(text) if text.contains("lunch")), "{outcomes:?}");
    assert!(matches!(&outcomes[2], Outcome::Unavailable(text) if text.contains("burns")), "{outcomes:?}");
    let Outcome::Permanent(text) = &outcomes[3] else { panic!("{outcomes:?}") };
    assert!(text.contains("expected i64") && !text.contains("s3cret"), "{text}");
    assert!(stocks.load("tea").await.unwrap().is_none(), "it was not saved");
    test.drop().await;
}

#[tokio::test]
async fn messages_without_a_receiver_are_left_dead_or_ignored() {
    for (unhandled, via) in
        [(Unhandled::Leave, None), (Unhandled::Dead, Some(HANDLERS)), (Unhandled::Ignore, Some(HANDLERS))]
    {
        let shop = Shop::open(Mode::Await, |stocks, _| {
            let receiving = stocks_receiving(stocks);
            Handlers::builder().subscriptions("stock", receiving).unhandled(unhandled).build().unwrap()
        })
        .await;
        let dispatch = shop.send("shelf", vec![BatonPassed { to: "a".into(), left: 0 }]).await;
        let settled = dispositions(dispatch);
        match unhandled {
            Unhandled::Leave => assert_eq!(settled, [Disposition::Waiting]),
            Unhandled::Dead => assert!(matches!(&settled[..], [Disposition::Dead { .. }]), "{settled:?}"),
            _ => assert_eq!(settled, [Disposition::Delivered]),
        }
        if unhandled != Unhandled::Ignore {
            assert_eq!(shop.entry("shelf").await.get_str("via").ok(), via);
        }
        shop.close().await;
    }
}

/// Each handler saves an aggregate that sends the next message, also to itself. No save waits for its own delivery, although
/// the mode is to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_sent_inside_handlers_are_delivered_in_turn() {
    const PASSES: i64 = 60;
    let shop = Shop::open(Mode::Await, |_, runners| {
        Handlers::builder().subscriptions("race", runners_receiving(runners)).build().unwrap()
    })
    .await;
    shop.send("shelf", vec![BatonPassed { to: "a".into(), left: PASSES }]).await;
    let runners = shop.test.database.collection::<Document>("runners");
    let ended = async {
        let mut changes = runners.watch().await.unwrap();
        loop {
            let (mut laps, mut open) = (0, 0);
            let mut all = runners.find(doc! {}).await.unwrap();
            while all.advance().await.unwrap() {
                let runner = all.deserialize_current().unwrap();
                laps += runner.get_i64("laps").unwrap();
                open += runner.get_array("outbox").map_or(0, Vec::len);
            }
            if laps > PASSES && open == 0 {
                return laps;
            }
            changes.next_if_any().await.unwrap();
        }
    };
    assert_eq!(soon("the last lap", ended).await, PASSES + 1);
    let inbox = shop.runners.load("a").await.unwrap().unwrap().inbox.len();
    assert!(inbox > 1);
    shop.close().await;
}

#[tokio::test]
async fn a_repeat_after_eviction_has_its_effect_again() {
    let test = TestDatabase::create().await;
    let inline = InlineDispatcher::off(&test.client);
    let stocks = Store::new(test.database.collection::<Document>("stocks"), &inline);
    let mut limits = InboxLimits::default();
    limits.count = 1;
    let receiving = stocks_receiving(&stocks);
    let handlers = Handlers::builder().subscriptions_within(limits, "stock", receiving).build().unwrap();
    let of = || envelope("stock.requested", doc! { "sku": "tea", "quantity": 1i64 });
    let (first, second) = (of(), of());
    for message in [&first, &second, &first] {
        assert_eq!(handlers.deliver(std::slice::from_ref(message)).await[0].outcome, Outcome::Delivered);
    }
    let stock = stocks.load("tea").await.unwrap().unwrap();
    assert_eq!((stock.available, stock.inbox.len()), (-3, 1));
    test.drop().await;
}

#[test]
fn wrong_subscriptions_are_refused() {
    let empty = Handlers::builder().subscriptions("mail", Subscriptions::new()).build();
    let text = empty.unwrap_err().to_string();
    assert!(text.contains("`mail`") && text.contains("no function"), "{text}");
    let once = || Subscriptions::new().on(|_: StockRequested, _| async { Ok(()) });
    let twice =
        Handlers::builder().subscriptions("mail", once().on(|_: StockRequested, _| async { Ok(()) })).build();
    let text = twice.unwrap_err().to_string();
    assert!(text.contains("`stock.requested` has two functions"), "{text}");
    let shared = Handlers::builder().subscriptions("mail", once()).subscriptions("mail", once()).build();
    assert_eq!(shared.unwrap_err(), HandlersError::DuplicateKey("mail".into()));
}

/// Stocks that are refused have a negative quantity. Each message has a stock of its own, because the suite delivers more
/// messages at once than one aggregate can receive within its tries.
struct StocksHarness {
    handlers: Handlers,
    stocks: Store<Stock>,
}

#[async_trait]
impl Harness for StocksHarness {
    fn deliverer(&self) -> &dyn Deliver {
        &self.handlers
    }

    fn accepted(&self) -> Envelope {
        handled(&Uuid::now_v7().to_string(), 1)
    }

    fn rejected(&self) -> Option<Envelope> {
        Some(handled(&Uuid::now_v7().to_string(), -1))
    }

    async fn arrived(&self) -> Vec<Uuid> {
        let stored = self.stocks.collection().clone_with_type::<Document>();
        let mut all = stored.find(doc! {}).await.unwrap();
        let mut ids = Vec::new();
        while all.advance().await.unwrap() {
            for received in all.deserialize_current().unwrap().get_array("inbox").unwrap() {
                let Bson::Binary(id) = received.as_document().unwrap().get("id").unwrap() else { panic!() };
                ids.push(Uuid::from_slice(&id.bytes).unwrap());
            }
        }
        ids
    }
}

fn handled(sku: &str, quantity: i64) -> Envelope {
    let mut message = envelope("stock.requested", doc! { "sku": sku, "quantity": quantity });
    message.via = Some(HANDLERS.into());
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_pass_the_suite_of_deliverers() {
    let test = TestDatabase::create().await;
    let inline = InlineDispatcher::off(&test.client);
    let stocks = Store::new(test.database.collection::<Document>("stocks"), &inline);
    let take = |stock: &mut Stock, request: &StockRequested| {
        if request.quantity < 0 {
            return Err(HandlerError::transient("negative"));
        }
        stock.take(request);
        Ok(())
    };
    let key = |request: &StockRequested| request.sku.clone();
    let receiving = Subscriptions::new().into_aggregate(&stocks, key, Stock::new, take);
    let mut limits = InboxLimits::default();
    limits.count = 10_000;
    let handlers = Handlers::builder().subscriptions_within(limits, "stock", receiving).build().unwrap();
    conformance::check(&StocksHarness { handlers, stocks }).await;
    test.drop().await;
}

/// A function sees the message as a receiver of a queue would see it.
#[tokio::test]
async fn a_function_sees_who_sent_the_message() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let functions = Subscriptions::new().on(move |request: StockRequested, received| {
        sender.send((request.quantity, received)).unwrap();
        async { Ok(()) }
    });
    let handlers = Handlers::builder().subscriptions("any", functions).build().unwrap();
    let mut message = envelope("stock.requested", doc! { "sku": "tea", "quantity": 4i64 });
    message.document = DocumentRef::by_id(Namespace::new("shop", "till rolls"), "t-1");
    message.created_at = Some(mongodb::bson::DateTime::from_millis(7));
    message.headers.insert("dataschema".into(), "https://example.test/s".into());
    assert_eq!(handlers.deliver(std::slice::from_ref(&message)).await[0].outcome, Outcome::Delivered);
    let (quantity, received) = seen.recv().await.unwrap();
    assert_eq!((quantity, received.id), (4, Some(message.id)));
    assert_eq!(received.source.as_deref(), Some("/shop/till%20rolls"));
    assert_eq!(received.subject.as_deref(), Some("t-1"));
    assert_eq!(received.key().as_deref(), Some("/shop/till%20rolls\nt-1"));
    assert_eq!(received.time, message.created_at);
    assert_eq!(received.headers.keys().collect::<Vec<_>>(), ["tenant"]);
    assert!(!received.redelivered);
}

#[tokio::test]
async fn an_error_while_making_handlers_is_returned() {
    let test = TestDatabase::create().await;
    let made = InlineDispatcher::builder(&test.client)
        .deliver_to_with(|_| Handlers::builder().subscriptions("mail", Subscriptions::new()).build());
    assert!(matches!(made, Err(HandlersError::Subscriptions { key, .. }) if key == "mail"));
    test.drop().await;
}

/// The tests in this module slow down a server.
mod outage {
    use super::*;
    use crate::majority::StalledReplication;

    const RS3: &str = "OUTBOX_TEST_MONGODB_RS3_URI";

    /// A delivery counts only after the majority has the save of the receiving aggregate.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_message_is_delivered_after_the_majority_has_it() {
        let test = TestDatabase::on(RS3).await;
        let inline = InlineDispatcher::off(&test.client);
        let stored = test.database.collection::<Document>("stocks");
        let stocks = Store::new(stored.clone(), &inline);
        let handlers = Handlers::builder().subscriptions("stock", stocks_receiving(&stocks)).build().unwrap();
        assert_eq!(handlers.deliver(&[handled("tea", 1)]).await[0].outcome, Outcome::Delivered);

        let stalled = StalledReplication::begin().await;
        let answered = watch::Sender::new(None);
        let delivery = {
            let (handlers, answered, message) = (handlers.clone(), answered.clone(), handled("tea", 2));
            tokio::spawn(async move {
                let answers = handlers.deliver(&[message]).await;
                answered.send_replace(Some(answers[0].outcome.clone()));
            })
        };
        // The primary has the save, and the majority doesn't.
        let written = doc! { "_id": "tea", "available": -3i64 };
        let on_the_primary = async { while stored.find_one(written.clone()).await.unwrap().is_none() {} };
        soon("the save", on_the_primary).await;
        let mut answer = answered.subscribe();
        let early = tokio::time::timeout(Duration::from_secs(2), answer.wait_for(Option::is_some)).await;
        assert!(early.is_err(), "the answer is premature");

        drop(stalled);
        soon("the delivery", delivery).await.unwrap();
        assert_eq!(*answered.borrow(), Some(Outcome::Delivered));
        assert_eq!(stocks.load("tea").await.unwrap().unwrap().taken, [1, 2]);
        test.drop().await;
    }
}
