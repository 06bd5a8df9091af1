//! Tests the test kit: its time, its faults, its recorder, and the errors for anything that it refuses.

use std::time::Duration;

use document_outbox::{
    Aggregate, Dispatch, Error, Inbox, InlineDispatcher, Message, Mode, Outbox, ReceivingAggregate,
    RetryPolicy, Store,
    deliver::{Handlers, Outcome},
    receive::Subscriptions,
    store::{Deleted, Inserted, Saved},
    testing::{Kit, MessageState, NotQuiet, Recorder, SaveFault},
};
use mongodb::bson::{DateTime, doc};
use serde::{Deserialize, Serialize};

use crate::support::{Added, Order, TestDatabase};

const DAY: Duration = Duration::from_hours(24);

async fn with_order(kit: &Kit) -> Store<Order> {
    let orders = kit.store::<Order>("orders");
    orders.insert(Order::new("o-1")).await.unwrap().applied().unwrap();
    orders
}

fn amounts(recorder: &Recorder) -> Vec<i64> {
    recorder.messages::<Added>().into_iter().map(|added| added.amount).collect()
}

#[tokio::test]
async fn a_conflict_on_demand_is_retried_by_update() {
    let kit = Kit::new();
    let orders = with_order(&kit).await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    order.add(1);
    kit.fail_next_save(SaveFault::Conflict);
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Conflict));

    (0..3).for_each(|_| kit.fail_next_save(SaveFault::Conflict));
    let mut runs = 0;
    let updated = orders.update("o-1", |order| {
        runs += 1;
        order.add(2);
    });
    updated.await.unwrap();
    assert_eq!((runs, amounts(kit.recorder())), (4, vec![2]));

    (0..40).for_each(|_| kit.fail_next_save(SaveFault::Conflict));
    let contended = orders.update("o-1", |order| order.add(3)).await.unwrap_err();
    assert!(matches!(contended, Error::Contended { .. }), "{contended}");
}

#[tokio::test]
async fn gone_and_exists_on_demand_are_real() {
    let kit = Kit::new();
    let orders = with_order(&kit).await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    order.add(1);
    kit.fail_next_save(SaveFault::Gone);
    orders.insert(Order::new("o-2")).await.unwrap().applied().unwrap();
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Gone));
    assert!(kit.document("orders", "o-1").is_none());

    kit.fail_next_save(SaveFault::Conflict);
    assert!(matches!(orders.insert(Order::new("o-3")).await.unwrap(), Inserted::Exists(_)));
    assert!(orders.load("o-3").await.unwrap().is_some());
    let loaded = orders.load("o-2").await.unwrap().unwrap();
    kit.fail_next_save(SaveFault::Conflict);
    assert!(matches!(orders.delete(&loaded).await.unwrap(), Deleted::Conflict));
}

#[tokio::test]
async fn an_unknown_save_is_written_or_not() {
    let kit = Kit::new();
    let orders = with_order(&kit).await;
    for (fault, written) in [(SaveFault::UnknownWritten, 1), (SaveFault::UnknownNotWritten, 0)] {
        kit.recorder().forget();
        let mut order = orders.load("o-1").await.unwrap().unwrap();
        order.add(1);
        kit.fail_next_save(fault);
        assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Unknown(_)));
        assert_eq!(kit.left().len(), written);

        kit.until_quiet().await.unwrap();
        assert!(amounts(kit.recorder()).is_empty(), "the claim of the save has not ended");
        kit.run_for(Duration::from_secs(10)).await.unwrap();
        assert_eq!(amounts(kit.recorder()).len(), written);
        kit.assert_nothing_left();
    }

    let mut order = orders.load("o-1").await.unwrap().unwrap();
    order.add(2);
    kit.fail_next_save(SaveFault::Unavailable);
    let unavailable = orders.save(&mut order).await.unwrap_err();
    assert!(unavailable.is_transient(), "{unavailable}");
    assert!(orders.save(&mut order).await.unwrap().is_current());
}

#[tokio::test]
async fn a_lost_clear_repeats_the_message() {
    let kit = Kit::new();
    let orders = with_order(&kit).await;
    kit.fail_next_clear();
    orders.update("o-1", |order| order.add(1)).await.unwrap();
    assert!(matches!(kit.left()[0].state, MessageState::Claimed(_)));
    kit.until_quiet().await.unwrap();
    kit.advance(Duration::from_secs(10));
    kit.until_quiet().await.unwrap();
    let delivered = kit.recorder().delivered();
    assert_eq!((delivered.len(), delivered[0].id), (2, delivered[1].id));
    kit.assert_nothing_left();
    assert_eq!(kit.redeliver().await, [Outcome::Delivered, Outcome::Delivered]);
    assert_eq!(amounts(kit.recorder()), [1; 4]);
}

#[tokio::test]
async fn the_time_is_advanced_by_hand() {
    let kit = Kit::builder().starting_at(DateTime::from_millis(0)).build();
    let orders = with_order(&kit).await;
    let send = |order: &mut Order| {
        order.outbox.send_after(Added { amount: 3 }, 3 * DAY);
        order.outbox.send_after(Added { amount: 1 }, DAY);
    };
    orders.update("o-1", send).await.unwrap();
    kit.until_quiet().await.unwrap();
    let states: Vec<_> = kit.left().into_iter().map(|message| message.state).collect();
    let at = |days: u32| {
        MessageState::Scheduled(DateTime::from_millis(i64::try_from((days * DAY).as_millis()).unwrap()))
    };
    assert_eq!(states, [at(3), at(1)]);

    kit.advance(DAY - Duration::from_millis(1));
    kit.until_quiet().await.unwrap();
    assert!(amounts(kit.recorder()).is_empty());
    kit.run_for(4 * DAY).await.unwrap();
    assert_eq!(amounts(kit.recorder()), [1, 3]);
    assert_eq!(kit.now().timestamp_millis(), i64::try_from((5 * DAY).as_millis()).unwrap() - 1);
}

#[tokio::test]
async fn failures_follow_the_retry_policy() {
    let retry = RetryPolicy::default().with(|retry| retry.max_attempts = 3);
    let kit = Kit::builder().retry(retry).build();
    let orders = with_order(&kit).await;
    kit.recorder().fail_all(Outcome::Transient("down".into()));
    orders.update("o-1", |order| order.add(1)).await.unwrap();
    assert_eq!(kit.recorder().deliveries().len(), 3, "two quick retries, without a pause");
    kit.run_for(DAY).await.unwrap();
    assert_eq!(kit.recorder().deliveries().len(), 9);
    let left = kit.left();
    assert_eq!(left[0].state, MessageState::Dead("attempts_exhausted".into()));
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kit.assert_nothing_left()));
    let text = *failed.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("in_memory.orders/o-1: `order.added` is dead (attempts_exhausted)"), "{text}");
    assert!(text.contains("after 3 failed attempts: down"), "{text}");
}

#[tokio::test]
async fn messages_left_by_a_dead_process_are_delivered() {
    let kit = Kit::builder().mode(Mode::Off).build();
    let orders = with_order(&kit).await;
    for amount in 1..=3 {
        let updated = orders.update("o-1", |order| order.add(amount)).await.unwrap();
        assert_eq!(updated.receipt.unwrap().dispatch, Dispatch::Off);
    }
    assert_eq!(kit.left().len(), 3);
    kit.recorder().set_available(false);
    let unavailable = kit.until_quiet().await.unwrap_err();
    assert!(matches!(unavailable, NotQuiet::Unavailable { .. }), "{unavailable}");
    kit.recorder().set_available(true);
    kit.until_quiet().await.unwrap();
    assert_eq!(
        (amounts(kit.recorder()), kit.recorder().types()),
        (vec![1, 2, 3], vec!["order.added".to_owned(); 3])
    );
    kit.assert_nothing_left();
}

#[derive(Serialize, Deserialize)]
struct Invoice {
    #[serde(rename = "_id")]
    id: String,
    lines: i64,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Invoice {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Billed {
    lines: i64,
}

impl Message for Billed {
    const TYPE: &'static str = "invoice.billed";
}

/// A handler saves another aggregate, whose message goes to the broker.
#[tokio::test]
async fn handlers_run_in_the_process() {
    let kit = Kit::new();
    let (orders, invoices) = (with_order(&kit).await, kit.store::<Invoice>("invoices"));
    let new = Invoice { id: "i-1".into(), lines: 0, outbox: Outbox::default() };
    invoices.insert(new).await.unwrap().applied().unwrap();
    let handler = move |added: Added, _| {
        let invoices = invoices.clone();
        async move {
            let bill = |invoice: &mut Invoice| {
                invoice.lines += added.amount;
                invoice.outbox.send(Billed { lines: invoice.lines });
            };
            invoices.update("i-1", bill).await?;
            Ok(())
        }
    };
    kit.deliver_to(Handlers::builder().on("billing", handler).build().unwrap());

    orders.update("o-1", |order| order.add(2)).await.unwrap();
    orders.update("o-1", |order| order.add(3)).await.unwrap();
    kit.until_quiet().await.unwrap();
    assert_eq!(kit.recorder().messages::<Billed>(), [Billed { lines: 2 }, Billed { lines: 5 }]);
    assert_eq!(kit.document("invoices", "i-1").unwrap().get_i64("lines"), Ok(5));
    kit.assert_nothing_left();
}

#[derive(Serialize, Deserialize)]
struct Ledger {
    #[serde(rename = "_id")]
    id: String,
    sum: i64,
    #[serde(default)]
    inbox: Inbox,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Ledger {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

impl ReceivingAggregate for Ledger {
    fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }
}

impl Ledger {
    fn new(id: String) -> Self {
        Self { id, sum: 0, inbox: Inbox::default(), outbox: Outbox::default() }
    }

    fn add(&mut self, added: &Added) {
        self.sum += added.amount;
        self.outbox.send(Billed { lines: self.sum });
    }
}

/// The subscriptions of a receiver apply each message once, even after a conflict or a repeat.
#[tokio::test]
async fn subscriptions_apply_a_repeated_message_once() {
    let kit = Kit::builder().mode(Mode::Off).build();
    let (orders, ledgers) = (with_order(&kit).await, kit.store::<Ledger>("ledgers"));
    let key = |_: &Added| "all".to_owned();
    let subscriptions = Subscriptions::new().into_aggregate(&ledgers, key, Ledger::new, Ledger::add);
    kit.deliver_to(Handlers::builder().subscriptions("ledger", subscriptions).build().unwrap());
    for amount in [2, 3] {
        orders.update("o-1", |order| order.add(amount)).await.unwrap();
        kit.fail_next_save(SaveFault::Conflict);
        kit.until_quiet().await.unwrap();
    }

    assert!(kit.redeliver().await.iter().all(|outcome| *outcome == Outcome::Delivered));
    kit.until_quiet().await.unwrap();
    assert_eq!(kit.document("ledgers", "all").unwrap().get_i64("sum"), Ok(5));
    let billed = kit.recorder().messages::<Billed>();
    assert_eq!(billed, [2, 5, 2, 5].map(|lines| Billed { lines }));
    kit.assert_nothing_left();
}

/// Each message causes the next one.
#[tokio::test]
async fn an_endless_chain_of_messages_is_an_error() {
    for mode in [Mode::Await, Mode::Off] {
        let kit = Kit::builder().mode(mode).most_deliveries(50).build();
        let orders = with_order(&kit).await;
        let again = orders.clone();
        let handler = move |added: Added, _| {
            let orders = again.clone();
            async move {
                orders.update("o-1", |order| order.add(added.amount + 1)).await?;
                Ok(())
            }
        };
        kit.deliver_to(Handlers::builder().on("again", handler).build().unwrap());
        orders.update("o-1", |order| order.add(1)).await.unwrap();
        let endless = kit.until_quiet().await.unwrap_err();
        assert!(endless.to_string().contains("not quiet after 50 deliveries"), "{endless}");
        assert!(endless.to_string().contains("order.added"), "{endless}");
    }
}

#[tokio::test]
async fn raw_access_says_that_there_is_no_server() {
    let kit = Kit::new();
    let orders = with_order(&kit).await;
    let own = Store::<Order>::new(kit.database().collection::<Order>("orders"), kit.inline());
    assert!(own.load("o-1").await.unwrap().is_some(), "a store works on the kit's database");
    let raw = orders.collection().find_one(doc! {}).await.unwrap_err().to_string();
    assert!(
        raw.contains("in-memory database of the test kit") && raw.contains("real MongoDB server"),
        "{raw}"
    );
    let own =
        kit.update_one("orders", doc! { "total": { "$mod": [2, 0] } }, doc! {}).unwrap_err().to_string();
    assert!(own.contains("`$mod`") && own.contains("real MongoDB server"), "{own}");
    orders.ensure_indexes().await.unwrap();
}

/// The recorder is a deliverer like any other.
#[tokio::test]
async fn a_recorder_works_with_a_real_server() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::new();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    orders.insert(Order::new("o-1")).await.unwrap().applied().unwrap();
    orders.update("o-1", |order| order.add(1)).await.unwrap();
    assert_eq!(amounts(&recorder), [1]);
    test.drop().await;
}
