//! The contract of a store and its deliveries. Each test runs on the in-memory database of the test kit and on a real
//! MongoDB server, so that a test with the kit has the outcomes of production.

use std::time::Duration;

use document_outbox::{
    Aggregate, Caps, Dispatch, Error, Message, Mode, Outbox, RevisionOutcome, Store,
    deliver::Outcome,
    store::{Deleted, Inserted, Saved},
};
use futures::future::join_all;
use mongodb::bson::{Bson, DateTime, Document, Uuid, doc};
use serde::{Deserialize, Serialize};

use crate::{
    backends::{Backend, Which},
    support::{Added, Order},
};

/// Runs each test on both databases.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Which::InMemory).await;
            })*
        }

        mod on_mongodb {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Which::MongoDb).await;
            })*
        }
    };
}

on_both! {
    an_inserted_document_exists_once
    a_stale_save_is_a_conflict
    a_save_of_a_deleted_document_is_gone
    a_first_save_guards_an_old_document
    unknown_fields_and_their_order_survive
    an_absent_value_is_removed
    messages_are_appended_in_order
    messages_of_a_save_are_delivered_and_cleared
    a_save_finds_messages_of_another_writer
    saves_remove_what_is_being_cleared
    saves_remove_what_was_deferred
    a_failed_message_is_retried_and_then_dies
    a_permanent_failure_blocks_no_later_message
    an_unavailable_destination_costs_no_attempt
    a_scheduled_message_waits_for_its_time
    malformed_elements_are_kept_and_block_nothing
    a_message_pushed_twice_is_one_message
    an_outbox_of_another_type_is_refused
    a_crashing_message_dies
    a_document_without_room_is_delivered_under_a_lease
    only_an_empty_document_is_deleted
    an_own_update_takes_messages_along
    concurrent_updates_are_all_applied
    caps_are_checked_against_the_stored_document
    ids_of_any_type_are_found
    an_aggregate_is_found_by_other_forms
    a_waiting_message_is_cancelled_or_rescheduled
    a_message_replaces_the_earlier_one_of_its_key
    a_message_in_delivery_is_not_cancelled
    a_large_document_is_revised_under_its_lease
}

/// The entries' fields without the values that differ each time.
fn names(entry: &Document) -> Vec<&str> {
    entry.keys().map(String::as_str).collect()
}

fn amounts(backend: &Backend) -> Vec<i64> {
    backend.recorder.messages::<Added>().into_iter().map(|added| added.amount).collect()
}

async fn insert(orders: &Store<Order>, id: &str) {
    orders.insert(Order::new(id)).await.unwrap().applied().unwrap();
}

fn entry(amount: i64, further: Document) -> Document {
    let mut entry = doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": amount } };
    entry.extend(further);
    entry
}

async fn an_inserted_document_exists_once(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    assert_eq!(orders.load("o-1").await.unwrap().unwrap().total, 0);
    assert!(orders.load("o-2").await.unwrap().is_none());

    let mut again = Order::new("o-1");
    again.add(1);
    let Inserted::Exists(again) = orders.insert(again).await.unwrap() else { panic!("it exists") };
    assert_eq!(again.outbox.len(), 1, "the messages stay in the aggregate");
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn a_stale_save_is_a_conflict(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let mut mine = orders.load("o-1").await.unwrap().unwrap();
    let mut theirs = orders.load("o-1").await.unwrap().unwrap();
    assert!(matches!(orders.save(&mut mine).await.unwrap(), Saved::Unchanged));

    mine.add(1);
    assert!(matches!(orders.save(&mut mine).await.unwrap(), Saved::Applied(_)));
    theirs.add(2);
    assert!(matches!(orders.save(&mut theirs).await.unwrap(), Saved::Conflict));
    assert_eq!((theirs.outbox.len(), backend.outbox("o-1").await.len()), (1, 1));

    mine.add(3);
    assert!(matches!(orders.save(&mut mine).await.unwrap(), Saved::Applied(_)), "it can be saved again");
    assert_eq!(backend.document("o-1").await.unwrap().get_i64("total"), Ok(4));
    backend.end().await;
}

async fn a_save_of_a_deleted_document_is_gone(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    assert!(matches!(orders.delete(&order).await.unwrap(), Deleted::Done));
    order.add(1);
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Gone));
    assert!(matches!(orders.delete(&order).await.unwrap(), Deleted::Gone));

    insert(&orders, "o-1").await;
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Conflict));
    let missing = orders.update("o-2", |order| order.add(1)).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    backend.end().await;
}

async fn a_first_save_guards_an_old_document(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    backend.insert(doc! { "_id": "old", "total": 5 }).await;
    let mut mine = orders.load("old").await.unwrap().unwrap();
    let mut theirs = orders.load("old").await.unwrap().unwrap();
    mine.add(1);
    theirs.add(1);
    assert!(orders.save(&mut mine).await.unwrap().is_current());
    assert!(matches!(orders.save(&mut theirs).await.unwrap(), Saved::Conflict));
    assert_eq!(names(&backend.document("old").await.unwrap()), ["_id", "total", "etag", "outbox"]);
    backend.end().await;
}

#[derive(Serialize, Deserialize)]
struct Basket {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    zone: i32,
    address: Address,
    lines: Vec<Line>,
    #[serde(default)]
    count: i32,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Serialize, Deserialize)]
struct Address {
    city: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    id: i32,
    quantity: i32,
}

impl Aggregate for Basket {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

async fn unknown_fields_and_their_order_survive(which: Which) {
    let backend = which.start(Mode::Off).await;
    let stored = doc! {
        "_id": "b-1", "legacy": { "a": 1 }, "address": { "zip": "1", "city": "here" },
        "lines": [{ "id": 1, "quantity": 1, "note": "x" }, { "note": "y", "id": 2, "quantity": 2 }],
    };
    backend.insert(stored).await;
    let change = |basket: &mut Basket| {
        (basket.zone, basket.count) = (7, 9);
        basket.address.city = "there".into();
        basket.lines[1].quantity = 3;
    };
    backend.store::<Basket>().update("b-1", change).await.unwrap();

    let mut now = backend.document("b-1").await.unwrap();
    now.remove("etag").unwrap();
    let expected = doc! {
        "_id": "b-1", "legacy": { "a": 1 }, "address": { "city": "there", "zip": "1" },
        "lines": [{ "id": 1, "quantity": 1, "note": "x" }, { "id": 2, "quantity": 3, "note": "y" }],
        "count": 9, "zone": 7,
    };
    assert_eq!(now.to_string(), expected.to_string());
    backend.end().await;
}

async fn an_absent_value_is_removed(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    let mut order = Order::new("o-1");
    order.note = Some("soon".into());
    orders.insert(order).await.unwrap().applied().unwrap();
    orders.update("o-1", |order| order.note = None).await.unwrap();
    assert_eq!(names(&backend.document("o-1").await.unwrap()), ["_id", "total", "etag"]);
    backend.end().await;
}

async fn messages_are_appended_in_order(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let send = |order: &mut Order| {
        order.add(1);
        order.outbox.send(Added { amount: 2 }).header("tenant", "north");
    };
    let receipt = orders.update("o-1", send).await.unwrap().receipt.unwrap();
    assert_eq!((receipt.messages.len(), receipt.dispatch), (2, Dispatch::Off));
    orders.update("o-1", |order| order.add(3)).await.unwrap();

    let entries = backend.entries("o-1").await;
    let sent: Vec<_> = entries.iter().map(|entry| entry.get_document("payload").unwrap().clone()).collect();
    assert_eq!(sent, [1_i64, 2, 3].map(|amount| doc! { "amount": amount }));
    assert_eq!(names(&entries[0]), ["id", "type", "payload", "created_at", "available_at"]);
    assert_eq!(names(&entries[1]), ["id", "type", "payload", "headers", "created_at", "available_at"]);
    assert_eq!(entries[0].get("created_at"), entries[0].get("available_at"));
    backend.end().await;
}

async fn messages_of_a_save_are_delivered_and_cleared(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let send = |order: &mut Order| (1..=3).for_each(|amount| order.add(amount));
    let receipt = orders.update("o-1", send).await.unwrap().receipt.unwrap();
    assert!(matches!(receipt.dispatch, Dispatch::Settled(settled) if settled.len() == 3));
    assert_eq!(amounts(&backend), [1, 2, 3]);
    assert!(backend.outbox("o-1").await.is_empty());
    let delivered = backend.recorder.delivered();
    assert_eq!(delivered.iter().map(|message| message.id).collect::<Vec<_>>(), receipt.messages);
    backend.end().await;
}

/// A save can't write its messages with a claim if another writer's message is in the outbox.
async fn a_save_finds_messages_of_another_writer(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    let push = doc! { "$push": { "outbox": entry(1, doc! {}) } };
    backend.update(doc! { "_id": "o-1" }, push).await.unwrap();
    order.add(2);
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Applied(_)));
    assert_eq!(amounts(&backend), [1, 2]);
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn saves_remove_what_is_being_cleared(which: Which) {
    let backend = which.start(Mode::AwaitConfirm).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    for amount in 1..=20 {
        order.add(amount);
        assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Applied(_)));
    }
    backend.dispatch().await;
    assert_eq!(amounts(&backend), (1..=20).collect::<Vec<_>>());
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn saves_remove_what_was_deferred(which: Which) {
    let backend = which.start_deferring(Mode::Await, Duration::from_mins(1)).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    for amount in 1..=3 {
        orders.update("o-1", |order| order.add(amount)).await.unwrap();
        assert_eq!(backend.outbox("o-1").await.len(), 1, "the delivered message stays until the next save");
    }
    backend.inline.flush().await;
    assert_eq!(amounts(&backend), [1, 2, 3]);
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn a_failed_message_is_retried_and_then_dies(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    backend.recorder.fail_all(Outcome::Transient("no route".into()));
    orders.update("o-1", |order| order.add(1)).await.unwrap();
    let failed = backend.entries("o-1").await.remove(0);
    let fields = ["id", "type", "payload", "created_at", "available_at", "attempts", "last_error"];
    assert_eq!(names(&failed), fields);
    assert_eq!((failed.get_i32("attempts"), failed.get_str("last_error")), (Ok(1), Ok("no route")));
    assert!(failed.get_datetime("available_at").unwrap() > failed.get_datetime("created_at").unwrap());

    backend.dispatch().await;
    assert_eq!(backend.recorder.deliveries().len(), 1, "it is not due");
    backend.make_due("o-1").await;
    backend.dispatch().await;
    let dead = backend.entries("o-1").await.remove(0);
    assert_eq!((dead.get_i32("attempts"), dead.get_str("dead_reason")), (Ok(2), Ok("attempts_exhausted")));
    assert!(!dead.contains_key("available_at") && !dead.contains_key("claimed_by"));

    backend.recorder.succeed();
    backend.dispatch().await;
    assert_eq!((backend.recorder.deliveries().len(), backend.outbox("o-1").await.len()), (2, 1));
    backend.end().await;
}

async fn a_permanent_failure_blocks_no_later_message(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    backend.recorder.fail_nth(2, Outcome::Permanent("never".into()));
    let send = |order: &mut Order| (1..=3).for_each(|amount| order.add(amount));
    orders.update("o-1", send).await.unwrap();
    assert_eq!(amounts(&backend), [1, 3]);
    let left = backend.entries("o-1").await;
    assert_eq!(left.len(), 1);
    assert_eq!(
        (left[0].get_str("dead_reason"), left[0].get_str("last_error")),
        (Ok("permanent"), Ok("never"))
    );
    let kept = orders.load("o-1").await.unwrap().unwrap();
    assert!(matches!(orders.delete(&kept).await.unwrap(), Deleted::Undelivered));
    backend.end().await;
}

async fn an_unavailable_destination_costs_no_attempt(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    backend.recorder.fail_nth(2, Outcome::Unavailable("blocked".into()));
    let send = |order: &mut Order| (1..=3).for_each(|amount| order.add(amount));
    orders.update("o-1", send).await.unwrap();
    assert_eq!(amounts(&backend), [1]);
    let released = backend.entries("o-1").await;
    assert_eq!(released.len(), 2);
    assert_eq!(names(&released[0]), ["id", "type", "payload", "created_at", "available_at"]);
    assert!(released[1].get_datetime("available_at").is_ok());
    backend.dispatch().await;
    assert_eq!(amounts(&backend), [1, 2, 3]);
    backend.end().await;
}

async fn a_scheduled_message_waits_for_its_time(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let later = Duration::from_hours(1);
    let send = |order: &mut Order| {
        order.outbox.send_after(Added { amount: 1 }, later);
        order.add(2);
    };
    orders.update("o-1", send).await.unwrap();
    backend.dispatch().await;
    assert_eq!(amounts(&backend), [2]);
    let only = |order: &mut Order| {
        order.outbox.send_after(Added { amount: 3 }, later);
    };
    let receipt = orders.update("o-1", only).await.unwrap().receipt.unwrap();
    assert_eq!(receipt.dispatch, Dispatch::Scheduled);

    backend.make_due("o-1").await;
    backend.dispatch().await;
    assert_eq!(amounts(&backend), [2, 1, 3]);
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn malformed_elements_are_kept_and_block_nothing(which: Which) {
    let backend = which.start(Mode::Await).await;
    let twice = Uuid::new();
    let malformed = [
        Bson::Int32(5),
        Bson::Null,
        doc! { "type": "order.added" }.into(),
        doc! { "id": "no uuid", "type": "order.added" }.into(),
        doc! { "id": twice, "type": "order.added", "payload": 1 }.into(),
        doc! { "id": twice, "type": "order.added", "payload": 2 }.into(),
        Bson::Array(vec![entry(9, doc! {}).into()]),
        entry(9, doc! { "attempts": "many" }).into(),
    ];
    let mut outbox = malformed.to_vec();
    outbox.insert(3, entry(1, doc! {}).into());
    backend.insert(doc! { "_id": "o-1", "total": 0, "outbox": outbox }).await;
    let orders = backend.store::<Order>();
    orders.update("o-1", |order| order.add(2)).await.unwrap();
    backend.dispatch().await;
    assert_eq!(amounts(&backend), [1, 2]);
    assert_eq!(backend.outbox("o-1").await, malformed);
    backend.end().await;
}

async fn a_message_pushed_twice_is_one_message(which: Which) {
    let backend = which.start(Mode::Off).await;
    let entry = entry(1, doc! {});
    let outbox = vec![entry.clone(), entry];
    backend.insert(doc! { "_id": "o-1", "total": 0, "outbox": outbox }).await;
    backend.dispatch().await;
    assert_eq!(amounts(&backend), [1]);
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn an_outbox_of_another_type_is_refused(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    backend.insert(doc! { "_id": "o-1", "total": 0, "outbox": { "0": "x" } }).await;
    let refused = orders.update("o-1", |order| order.add(1)).await.unwrap_err();
    assert!(matches!(refused, Error::OutboxNotArray { .. }), "{refused}");
    orders.update("o-1", |order| order.total = 5).await.unwrap();
    assert_eq!(backend.document("o-1").await.unwrap().get_i64("total"), Ok(5));

    insert(&orders, "o-2").await;
    let mut loaded = orders.load("o-2").await.unwrap().unwrap();
    backend.update(doc! { "_id": "o-2" }, doc! { "$set": { "outbox": "text" } }).await.unwrap();
    loaded.add(1);
    let refused = orders.save(&mut loaded).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    backend.end().await;
}

async fn a_crashing_message_dies(which: Which) {
    let backend = which.start(Mode::Off).await;
    let past = DateTime::from_millis(1);
    let crashing = entry(1, doc! { "claims": 8, "claimed_by": "w/1", "available_at": past });
    let outbox = vec![crashing, entry(2, doc! {})];
    backend.insert(doc! { "_id": "o-1", "total": 0, "outbox": outbox }).await;
    backend.dispatch().await;
    assert_eq!(amounts(&backend), [2]);
    let left = backend.entries("o-1").await;
    assert_eq!((left.len(), left[0].get_str("dead_reason")), (1, Ok("crashed")));
    backend.end().await;
}

async fn a_document_without_room_is_delivered_under_a_lease(which: Which) {
    let backend = which.start(Mode::Off).await;
    let outbox: Vec<_> = (1..=2).map(|amount| entry(amount, doc! {})).collect();
    let mut document = doc! { "_id": "big", "total": 0, "outbox": outbox, "fill": "" };
    let bytes = mongodb::bson::RawDocumentBuf::try_from(&document).unwrap().as_bytes().len();
    document.insert("fill", "x".repeat((16 << 20) - 20 - bytes));
    backend.insert(document).await;

    backend.recorder.fail_nth(1, Outcome::Transient("no route".into()));
    backend.dispatch().await;
    assert!(amounts(&backend).is_empty() && backend.recorder.deliveries().len() == 1);
    let entries = backend.entries("big").await;
    assert_eq!(names(&entries[0]), ["id", "type", "payload"], "the attempt is kept with the lease");
    backend.end().await;
}

async fn only_an_empty_document_is_deleted(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let before = orders.load("o-1").await.unwrap().unwrap();
    let updated = orders.update("o-1", |order| order.add(1)).await.unwrap();
    assert!(matches!(orders.delete(&before).await.unwrap(), Deleted::Conflict));
    assert!(matches!(orders.delete(&updated.document).await.unwrap(), Deleted::Undelivered));
    backend.dispatch().await;
    assert!(matches!(orders.delete(&updated.document).await.unwrap(), Deleted::Done));
    assert!(backend.document("o-1").await.is_none());
    backend.end().await;
}

async fn an_own_update_takes_messages_along(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    backend.insert(doc! { "_id": "o-1", "total": 1, "tags": ["a"], "old": 1 }).await;
    let mut outbox = Outbox::default();
    outbox.send(Added { amount: 1 });
    let staged = orders.stage(&mut outbox).await.unwrap();
    let own = doc! {
        "$inc": { "total": 2 }, "$set": { "paid.at": 5 }, "$unset": { "old": "" },
        "$addToSet": { "tags": { "$each": ["a", "b"] } },
    };
    let update = staged.onto(own).unwrap();
    assert_eq!(backend.update(doc! { "_id": "o-1", "total": 9 }, update.clone()).await.unwrap(), 0);
    assert_eq!(backend.update(doc! { "_id": "o-1", "total": 1 }, update).await.unwrap(), 1);
    assert!(matches!(staged.committed("o-1").await, Dispatch::Settled(settled) if settled.len() == 1));

    assert_eq!(amounts(&backend), [1]);
    let mut stored = backend.document("o-1").await.unwrap();
    stored.remove("etag").unwrap();
    let expected = doc! { "_id": "o-1", "total": 3, "tags": ["a", "b"], "outbox": [], "paid": { "at": 5 } };
    assert_eq!(stored.to_string(), expected.to_string());
    backend.end().await;
}

async fn concurrent_updates_are_all_applied(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let updates = (0..6).map(|_| orders.update("o-1", |order| order.add(1)));
    for updated in join_all(updates).await {
        updated.unwrap();
    }
    backend.dispatch().await;
    assert_eq!(amounts(&backend), [1; 6]);
    assert_eq!(backend.document("o-1").await.unwrap().get_i64("total"), Ok(6));
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn caps_are_checked_against_the_stored_document(which: Which) {
    let backend = which.start(Mode::Off).await;
    let mut caps = Caps::default();
    caps.entries = 2;
    let orders = backend.store::<Order>().with_caps(caps);
    insert(&orders, "o-1").await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    for amount in 1..=2 {
        order.add(amount);
        assert!(orders.save(&mut order).await.unwrap().is_current());
    }
    order.add(3);
    let full = orders.save(&mut order).await.unwrap_err();
    assert!(matches!(full, Error::OutboxFull { held: 2, sent: 1, cap: 2, .. }), "{full}");
    // The aggregate doesn't know that its messages were delivered, so the store measures the stored document.
    backend.dispatch().await;
    assert!(orders.save(&mut order).await.unwrap().is_current());

    let stored = backend.document("o-1").await.unwrap();
    let bytes = mongodb::bson::RawDocumentBuf::try_from(&stored).unwrap().as_bytes().len();
    caps.document_bytes = bytes + 10;
    let orders = orders.with_caps(caps);
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    order.add(4);
    let large = orders.save(&mut order).await.unwrap_err();
    assert!(matches!(large, Error::DocumentTooLarge { .. }), "{large}");
    backend.end().await;
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Anything {
    #[serde(rename = "_id")]
    id: Bson,
    total: i32,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Anything {
    type Id = Bson;
    fn id(&self) -> &Bson {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

async fn ids_of_any_type_are_found(which: Which) {
    let backend = which.start(Mode::Await).await;
    let store = backend.store::<Anything>();
    let ids: [Bson; 7] = [
        1.into(),
        2.5.into(),
        "text".into(),
        doc! { "tenant": 1, "number": 2 }.into(),
        Uuid::new().into(),
        DateTime::from_millis(7).into(),
        true.into(),
    ];
    for id in &ids {
        let new = Anything { id: id.clone(), total: 0, outbox: Outbox::default() };
        store.insert(new).await.unwrap().applied().unwrap();
        let send = |value: &mut Anything| {
            value.total += 1;
            value.outbox.send(Added { amount: 1 });
        };
        let updated = store.update(id, send).await.unwrap();
        assert_eq!(updated.document.document().id(), *id);
    }
    assert_eq!(amounts(&backend), [1; 7]);

    let again = Anything { id: 1_i64.into(), total: 0, outbox: Outbox::default() };
    assert!(matches!(store.insert(again).await.unwrap(), Inserted::Exists(_)), "1 and 1_i64 are one `_id`");
    for id in [doc! { "$gt": "" }.into(), Bson::Array(Vec::new())] {
        let refused = store.insert(Anything { id, total: 0, outbox: Outbox::default() }).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(_)), "{refused}");
    }
    let by_number = store.load(&Bson::Double(1.0)).await.unwrap().unwrap();
    assert_eq!(by_number.document().id(), Bson::Int32(1));
    let turned = doc! { "number": 2, "tenant": 1 };
    assert!(store.load(&turned.into()).await.unwrap().is_none(), "fields of an `_id` have an order");
    backend.end().await;
}

#[derive(Debug, Serialize, Deserialize)]
struct Hex {
    #[serde(rename = "_id", with = "mongodb::bson::serde_helpers::hex_string_as_object_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Hex {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

async fn an_aggregate_is_found_by_other_forms(which: Which) {
    let backend = which.start(Mode::Await).await;
    let store = backend.store::<Hex>();
    let id = mongodb::bson::oid::ObjectId::new();
    let new = Hex { id: id.to_hex(), outbox: Outbox::default() };
    store.insert(new).await.unwrap().applied().unwrap();
    assert!(backend.document(id).await.is_some(), "the text is stored as an ObjectId");
    let another = backend.store::<Hex>();
    assert_eq!(another.load(&id.to_hex()).await.unwrap().unwrap().id, id.to_hex());
    let mut outbox = Outbox::default();
    outbox.send(Added { amount: 1 });
    let staged = store.stage(&mut outbox).await.unwrap();
    let update = staged.onto(doc! {}).unwrap();
    assert_eq!(backend.update(doc! { "_id": id }, update).await.unwrap(), 1);
    assert!(matches!(staged.committed(id.to_hex()).await, Dispatch::Settled(_)));
    assert_eq!(amounts(&backend), [1]);
    assert_eq!(Added::TYPE, backend.recorder.types()[0]);
    backend.end().await;
}

const DAY: Duration = Duration::from_hours(24);

async fn a_waiting_message_is_cancelled_or_rescheduled(which: Which) {
    let backend = which.start(Mode::Await).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    let send =
        |order: &mut Order| (1..=3).for_each(|amount| _ = order.outbox.send_after(Added { amount }, DAY));
    let [first, second, third] =
        orders.update("o-1", send).await.unwrap().receipt.unwrap().messages.try_into().unwrap();
    let entries = backend.entries("o-1").await;

    let revise = |order: &mut Order| {
        order.note = Some("$total".into());
        order.outbox.cancel(first);
        order.outbox.reschedule(third, 2 * DAY);
        order.outbox.cancel(uuid::Uuid::nil());
        order.outbox.send_after(Added { amount: 4 }, DAY);
    };
    let receipt = orders.update("o-1", revise).await.unwrap().receipt.unwrap();
    assert_eq!(receipt.revision(first), Some(RevisionOutcome::Cancelled));
    assert_eq!(receipt.revision(third), Some(RevisionOutcome::Rescheduled));
    assert_eq!(receipt.revision(uuid::Uuid::nil()), Some(RevisionOutcome::NotThere));
    let stored = backend.document("o-1").await.unwrap();
    assert_eq!(names(&stored), ["_id", "total", "etag", "outbox", "note"]);
    assert_eq!(stored.get_str("note"), Ok("$total"));
    let revised = backend.entries("o-1").await;
    assert_eq!((revised.len(), &revised[0]), (3, &entries[1]));
    assert_eq!(names(&revised[1]), names(&entries[2]));

    // The last two are cancelled together, so the new message is written with a claim and delivered at once.
    let Some(Bson::Binary(new)) = revised[2].get("id") else { panic!("{revised:?}") };
    let new = uuid::Uuid::from_slice(&new.bytes).unwrap();
    let revise = |order: &mut Order| {
        order.note = None;
        [second, third, new].into_iter().for_each(|id| order.outbox.cancel(id));
        order.add(5);
    };
    orders.update("o-1", revise).await.unwrap();
    assert_eq!(amounts(&backend), [5]);
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn a_message_replaces_the_earlier_one_of_its_key(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    insert(&orders, "o-1").await;
    for amount in 1..=3 {
        let send = |order: &mut Order| {
            order.outbox.send_keyed(Added { amount }, "total");
            order.outbox.send_keyed(Added { amount: -amount }, format!("own {amount}"));
        };
        orders.update("o-1", send).await.unwrap();
    }
    backend.dispatch().await;
    assert_eq!(amounts(&backend), [-1, -2, 3, -3]);
    assert!(backend.outbox("o-1").await.is_empty());
    backend.end().await;
}

async fn a_message_in_delivery_is_not_cancelled(which: Which) {
    let backend = which.start(Mode::Off).await;
    let (claimed, dead, reached) = (Uuid::new(), Uuid::new(), Uuid::new());
    let of = |id: Uuid, further: Document| {
        let mut entry = entry(1, further);
        entry.insert("id", id);
        entry
    };
    let past = DateTime::from_millis(1);
    let outbox = vec![
        of(claimed, doc! { "claimed_by": "w/1", "available_at": past }),
        of(dead, doc! { "dead_at": past, "dead_reason": "permanent" }),
        of(reached, doc! { "delivered_to": ["mail"] }),
    ];
    backend.insert(doc! { "_id": "o-1", "total": 0, "outbox": outbox.clone() }).await;
    let orders = backend.store::<Order>();
    let ids = [claimed, dead, reached].map(|id| uuid::Uuid::from_bytes(id.bytes()));
    let cancel = |order: &mut Order| ids.into_iter().for_each(|id| order.outbox.cancel(id));
    let receipt = orders.update("o-1", cancel).await.unwrap().receipt.unwrap();
    let outcomes = ids.map(|id| receipt.revision(id).unwrap());
    assert_eq!(outcomes, [RevisionOutcome::TooLate, RevisionOutcome::Dead, RevisionOutcome::TooLate]);
    assert_eq!(backend.entries("o-1").await, outbox);
    backend.end().await;
}

async fn a_large_document_is_revised_under_its_lease(which: Which) {
    let backend = which.start(Mode::Off).await;
    let orders = backend.store::<Order>();
    let mut order = Order::new("big");
    order.outbox.send_after(Added { amount: 1 }, DAY);
    let message = orders.insert(order).await.unwrap().applied().unwrap().1.messages[0];
    let fill = doc! { "$set": { "fill": "x".repeat(9 << 20) } };
    assert_eq!(backend.update(doc! { "_id": "big" }, fill).await.unwrap(), 1);
    let cancel = |order: &mut Order| order.outbox.cancel(message);
    let receipt = orders.update("big", cancel).await.unwrap().receipt.unwrap();
    assert_eq!(receipt.revision(message), Some(RevisionOutcome::Cancelled));
    assert!(backend.outbox("big").await.is_empty());
    backend.end().await;
}
