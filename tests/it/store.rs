//! Tests saves of aggregates: the fields that are written, the fields that are kept, and the outcomes.

use std::collections::HashMap;

use crate::support::{Order, Recorder, TestDatabase};
use document_outbox::{
    Aggregate, Caps, Dispatch, Error, InlineDispatcher, Loaded, Mode, Outbox, Shed,
    store::{Deleted, Inserted, NotInserted, NotSaved, Saved},
};
use futures::future::join_all;
use mongodb::bson::{Bson, Uuid, doc, oid::ObjectId};
use serde::{Deserialize, Serialize};

async fn off() -> (TestDatabase, InlineDispatcher) {
    let test = TestDatabase::create().await;
    let inline = InlineDispatcher::off(&test.client);
    (test, inline)
}

async fn insert(test: &TestDatabase, inline: &InlineDispatcher, order: Order) {
    assert!(matches!(test.store(inline).insert(order).await.unwrap(), Inserted::Applied(..)));
}

/// P1 Atomic: a message exists if and only if the save that sent it is majority-committed.
#[tokio::test]
async fn messages_are_saved_only_with_their_document() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let mut mine = orders.load("o-1").await.unwrap().unwrap();
    let mut theirs = orders.load("o-1").await.unwrap().unwrap();

    mine.add(1);
    assert!(matches!(orders.save(&mut mine).await.unwrap(), Saved::Applied(_)));
    theirs.add(2);
    assert!(matches!(orders.save(&mut theirs).await.unwrap(), Saved::Conflict));

    assert_eq!(test.stored("o-1").await.get_i64("total"), Ok(1));
    let outbox = test.outbox("o-1").await;
    assert_eq!(outbox.len(), 1);
    assert_eq!(outbox[0].get_document("payload").unwrap(), &doc! { "amount": 1i64 });
    assert_eq!(outbox[0].get_str("type"), Ok("order.added"));
    assert_eq!(theirs.outbox.len(), 1, "a message that was not saved is still in the aggregate");
    test.drop().await;
}

#[tokio::test]
async fn a_save_of_an_unchanged_document_writes_nothing() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let before = test.stored("o-1").await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Unchanged));
    order.total += 1;
    order.total -= 1;
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Unchanged));
    assert_eq!(test.stored("o-1").await, before);
    test.drop().await;
}

#[tokio::test]
async fn a_saved_aggregate_can_be_changed_and_saved_again() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let Inserted::Applied(mut order, receipt) = orders.insert(Order::new("o-1")).await.unwrap() else {
        panic!()
    };
    assert!(receipt.messages.is_empty());
    for amount in 1..=3 {
        order.add(amount);
        let Saved::Applied(receipt) = orders.save(&mut order).await.unwrap() else { panic!("save {amount}") };
        assert_eq!(receipt.messages.len(), 1);
        assert!(order.outbox.is_empty());
    }
    order.note = Some("x".into());
    assert!(orders.save(&mut order).await.unwrap().is_current());
    order.note = None;
    assert!(orders.save(&mut order).await.unwrap().is_current());
    let stored = test.stored("o-1").await;
    assert_eq!((stored.get_i64("total"), stored.get("note")), (Ok(6), None));
    assert_eq!(test.outbox("o-1").await.len(), 3);
    test.drop().await;
}

#[tokio::test]
async fn older_documents_work_and_keep_unknown_fields() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let stored = doc! { "_id": "old", "total": 5, "legacy": { "a": [1, { "b": 2 }] } };
    test.orders().insert_one(&stored).await.unwrap();
    orders.update("old", |order| order.add(1)).await.unwrap();
    let now = test.stored("old").await;
    assert_eq!(now.get("legacy"), stored.get("legacy"));
    assert_eq!(now.get_i64("total"), Ok(6));
    assert!(matches!(now.get("etag"), Some(Bson::Binary(_))));
    assert_eq!(test.outbox("old").await.len(), 1);
    test.drop().await;
}

/// If two savers save a document without an etag, only one of them may succeed.
#[tokio::test]
async fn the_first_save_of_old_documents_is_guarded() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    test.orders().insert_one(doc! { "_id": "old", "total": 5 }).await.unwrap();
    let mut mine = orders.load("old").await.unwrap().unwrap();
    let mut theirs = orders.load("old").await.unwrap().unwrap();
    mine.add(1);
    theirs.add(1);
    assert!(orders.save(&mut mine).await.unwrap().is_current());
    assert!(matches!(orders.save(&mut theirs).await.unwrap(), Saved::Conflict));
    test.drop().await;
}

#[tokio::test]
async fn deleted_documents_are_gone_and_recreated_ones_conflict() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let mut stale = orders.load("o-1").await.unwrap().unwrap();
    let again = orders.load("o-1").await.unwrap().unwrap();
    assert!(matches!(orders.delete(&again).await.unwrap(), Deleted::Done));
    assert!(matches!(orders.delete(&again).await.unwrap(), Deleted::Gone));
    stale.add(1);
    assert!(matches!(orders.save(&mut stale).await.unwrap(), Saved::Gone));
    insert(&test, &inline, Order::new("o-1")).await;
    assert!(matches!(orders.save(&mut stale).await.unwrap(), Saved::Conflict));
    assert!(matches!(orders.delete(&stale).await.unwrap(), Deleted::Conflict));
    test.drop().await;
}

/// P2: a message leaves an outbox only by a confirmed delivery or an operator's action.
#[tokio::test]
async fn a_document_with_undelivered_messages_cannot_be_deleted() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let mut order = Order::new("o-1");
    order.add(1);
    insert(&test, &inline, order).await;
    let order = orders.load("o-1").await.unwrap().unwrap();
    assert!(matches!(orders.delete(&order).await.unwrap(), Deleted::Undelivered));
    assert_eq!(test.outbox("o-1").await.len(), 1);
    test.drop().await;
}

#[tokio::test]
async fn inserting_an_existing_id_returns_the_aggregate() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let mut second = Order::new("o-1");
    second.add(7);
    let Inserted::Exists(back) = orders.insert(second.clone()).await.unwrap() else { panic!("exists") };
    assert_eq!(back, second);
    test.drop().await;
}

#[tokio::test]
async fn an_update_loads_again_until_it_wins() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let id = "o-1".to_owned();
    let all = (0..4).map(|_| async {
        for _ in 0..5 {
            orders.update(&id, |order| order.add(1)).await.unwrap();
        }
    });
    futures::future::join_all(all).await;
    assert_eq!(test.stored("o-1").await.get_i64("total"), Ok(20));
    assert_eq!(test.outbox("o-1").await.len(), 20);
    test.drop().await;
}

#[tokio::test]
async fn an_update_reports_absence_and_honours_refusal() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let missing = orders.update("nope", |_| ()).await.unwrap_err();
    assert!(missing.to_string().contains("nope"), "{missing}");
    insert(&test, &inline, Order::new("o-1")).await;
    let before = test.stored("o-1").await;
    let id = "o-1".to_owned();
    let refused = orders.try_update(&id, |order| {
        order.add(1);
        Err::<(), _>("not today")
    });
    assert_eq!(refused.await.unwrap().unwrap_err(), "not today");
    assert_eq!(test.stored("o-1").await, before);
    test.drop().await;
}

#[tokio::test]
async fn an_async_update_runs_again_after_a_conflict() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;

    let mut runs = 0;
    let add = |mut order: Loaded<Order>| {
        runs += 1;
        let (orders, is_first) = (&orders, runs == 1);
        async move {
            if is_first {
                orders.update("o-1", |other| other.add(10)).await?;
            }
            order.add(1);
            Ok::<_, document_outbox::Error>(order)
        }
    };
    let updated = orders.update_async("o-1", add).await.unwrap().unwrap();
    assert_eq!((runs, updated.document.total), (2, 11));
    assert_eq!(test.stored("o-1").await.get_i64("total"), Ok(11));
    assert_eq!(test.outbox("o-1").await.len(), 2);

    let refused = orders.update_async("o-1", async |_| Err("not today")).await.unwrap().unwrap_err();
    assert_eq!(refused, "not today");
    let missing = orders.update_async("nope", async |order| Ok::<_, ()>(order)).await.unwrap_err();
    assert!(missing.to_string().contains("nope"), "{missing}");
    test.drop().await;
}

#[tokio::test]
async fn applied_makes_errors_of_other_outcomes() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let (mut first, receipt) = orders.insert(Order::new("o-1")).await.unwrap().applied().unwrap();
    assert!(receipt.messages.is_empty());
    let exists = orders.insert(Order::new("o-1")).await.unwrap().applied().unwrap_err();
    assert!(exists.to_string().contains("a document with this `_id` already"), "{exists}");
    assert!(matches!(exists, NotInserted::Exists(order) if order == Order::new("o-1")));

    let mut second = orders.load("o-1").await.unwrap().unwrap();
    first.add(1);
    assert_eq!(orders.save(&mut first).await.unwrap().applied().unwrap().unwrap().messages.len(), 1);
    assert_eq!(orders.save(&mut first).await.unwrap().applied().unwrap(), None);
    second.add(1);
    let conflict = orders.save(&mut second).await.unwrap().applied().unwrap_err();
    assert!(matches!(conflict, NotSaved::Conflict), "{conflict}");

    test.orders().delete_one(doc! { "_id": "o-1" }).await.unwrap();
    let gone = orders.save(&mut second).await.unwrap().applied().unwrap_err();
    assert!(matches!(gone, NotSaved::Gone), "{gone}");
    test.drop().await;
}

#[tokio::test]
async fn caps_are_checked_before_anything_is_written() {
    let (test, inline) = off().await;
    let mut caps = Caps::default();
    (caps.entries, caps.payload_bytes, caps.header_bytes, caps.document_bytes, caps.depth) =
        (2, 64, 64, 1_000, 2);
    let orders = test.store(&inline).with_caps(caps);
    let saved = |change: fn(&mut Order)| {
        let orders = &orders;
        async move { orders.update("o-1", change).await.unwrap_err() }
    };
    insert(&test, &inline, Order::new("o-1")).await;
    let before = test.stored("o-1").await;

    let full = saved(|order| (0..3).for_each(|_| order.add(1))).await;
    assert!(matches!(full, Error::OutboxFull { sent: 3, cap: 2, .. }), "{full}");
    let large = saved(|order| _ = order.outbox.send(Text("x".repeat(100)))).await;
    assert!(matches!(large, Error::MessageTooLarge { what: "payload", .. }), "{large}");
    let headers =
        saved(|order| _ = order.outbox.send(Text(String::new())).header("h", "x".repeat(100))).await;
    assert!(matches!(headers, Error::MessageTooLarge { what: "headers", .. }), "{headers}");
    let deep = saved(|order| _ = order.outbox.send(Deep(vec![vec![vec![1]]]))).await;
    assert!(matches!(deep, Error::NestedTooDeep { .. }), "{deep}");
    let document = saved(|order| {
        order.note = Some("x".repeat(2_000));
        order.add(1);
    });
    let document = document.await;
    assert!(matches!(document, Error::DocumentTooLarge { .. }), "{document}");
    assert_eq!(test.stored("o-1").await, before);

    orders.update("o-1", |order| (0..2).for_each(|_| order.add(1))).await.unwrap();
    let full = saved(|order| order.add(1)).await;
    assert!(matches!(full, Error::OutboxFull { held: 2, .. }), "{full}");
    test.drop().await;
}

#[derive(Serialize, Deserialize)]
struct Text(String);
impl document_outbox::Message for Text {
    const TYPE: &'static str = "text";
}
#[derive(Serialize, Deserialize)]
struct Count(u64);
impl document_outbox::Message for Count {
    const TYPE: &'static str = "count";
}

#[tokio::test]
async fn a_message_that_bson_cannot_hold_fails_its_save() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let before = test.stored("o-1").await;
    let refused = |change: fn(&mut Order), named: &'static str| {
        let orders = &orders;
        async move {
            let error = orders.update("o-1", change).await.unwrap_err();
            assert!(matches!(error, Error::Encode { .. }) && error.to_string().contains(named), "{error}");
        }
    };
    refused(|order| _ = order.outbox.send(Count(u64::MAX)), "message `count`").await;
    refused(|order| _ = order.outbox.send(Count(1)).header("a\0b", "x"), r#"header "a\0b""#).await;
    assert_eq!(test.stored("o-1").await, before);
    test.drop().await;
}

#[tokio::test]
async fn invalid_utf8_outside_the_aggregate_still_loads() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let entry = doc! { "id": Uuid::new(), "type": "x", "payload": "##", "headers": { "##": "##" } };
    for (id, extra) in [
        ("payload", doc! { "outbox": [entry] }),
        ("value", doc! { "legacy": "##" }),
        ("name", doc! { "legacy##": 1 }),
        ("deep", doc! { "legacy": [{ "a": ["##", { "##": 1 }] }] }),
    ] {
        let mut document = doc! { "_id": id };
        document.extend(extra);
        document.extend(doc! { "total": 1, "note": "mine", "etag": 7 });
        test.insert_damaged(document).await;

        let mut loaded = orders.load(&id.to_owned()).await.unwrap().unwrap();
        assert_eq!((loaded.total, loaded.note.as_deref()), (1, Some("mine")), "{id}");
        loaded.total = 2;
        assert!(matches!(orders.save(&mut loaded).await.unwrap(), Saved::Applied(_)), "{id}");
        let again = orders.load(&id.to_owned()).await.unwrap().unwrap();
        assert_eq!(again.total, 2, "{id}");
    }
    test.drop().await;
}

#[tokio::test]
async fn invalid_utf8_in_the_aggregate_names_its_field() {
    let (test, inline) = off().await;
    test.insert_damaged(doc! { "_id": "o-1", "total": 1, "note": "##" }).await;
    let error = test.store(&inline).load("o-1").await.unwrap_err();
    assert!(matches!(error, Error::Decode { .. }) && error.to_string().contains("`note`"), "{error}");
    test.drop().await;
}

#[derive(Serialize, Deserialize)]
struct Deep(Vec<Vec<Vec<i32>>>);
impl document_outbox::Message for Deep {
    const TYPE: &'static str = "deep";
}

#[tokio::test]
async fn a_non_array_outbox_fails_only_when_sending() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    for (id, outbox) in [("null", Bson::Null), ("text", Bson::from("x")), ("object", Bson::from(doc! {}))] {
        test.orders().insert_one(doc! { "_id": id, "total": 1i64, "outbox": outbox.clone() }).await.unwrap();
        orders.update(&id.to_owned(), |order| order.total = 2).await.unwrap();
        let error = orders.update(&id.to_owned(), |order| order.add(1)).await.unwrap_err();
        assert!(matches!(error, Error::OutboxNotArray { .. }), "{error}");
        assert!(error.to_string().contains(id), "{error}");
        assert_eq!(test.stored(id).await.get("outbox"), Some(&outbox));
    }
    test.drop().await;
}

#[derive(Serialize, Deserialize)]
struct Any {
    #[serde(rename = "_id")]
    id: Bson,
    n: i32,
    #[serde(skip)]
    outbox: Outbox,
}
impl Aggregate for Any {
    type Id = Bson;
    fn id(&self) -> &Bson {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[tokio::test]
async fn every_id_type_survives_save_claim_and_clear() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let store = document_outbox::Store::<Any>::new(test.orders(), &inline);
    let ids: Vec<Bson> = vec![
        ObjectId::new().into(),
        Uuid::new().into(),
        "a\"b$c.d ☃ {}".into(),
        "".into(),
        Bson::Int64(1 << 60),
        Bson::Double(0.5),
        Bson::from(doc! { "tenant": 1, "n": { "x": "y" } }),
        mongodb::bson::DateTime::from_millis(123).into(),
        true.into(),
        Bson::Null,
    ];
    for id in ids {
        let mut new = Any { id: id.clone(), n: 0, outbox: Outbox::default() };
        new.outbox.send(Text(format!("{id:?}")));
        assert!(matches!(store.insert(new).await.unwrap(), Inserted::Applied(..)), "{id:?}");
        let updated = store.update(&id, |any| {
            any.n += 1;
            any.outbox.send(Text("again".into()));
        });
        updated.await.unwrap_or_else(|error| panic!("{id:?}: {error}"));
        let stored = test.stored(id.clone()).await;
        assert_eq!(stored.get_array("outbox").unwrap().len(), 0, "{id:?}");
    }
    assert_eq!(recorder.delivered().len(), 20);
    test.drop().await;
}

#[derive(Debug, Serialize, Deserialize)]
struct Flat {
    #[serde(rename = "_id")]
    id: String,
    #[serde(flatten)]
    rest: std::collections::BTreeMap<String, Bson>,
    #[serde(skip)]
    outbox: Outbox,
}
impl Aggregate for Flat {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[tokio::test]
async fn a_flattened_map_cannot_change_library_fields() {
    let (test, inline) = off().await;
    let flats = document_outbox::Store::<Flat>::new(test.orders(), &inline);
    test.store(&inline).insert(Order::new("o-1")).await.map(drop).unwrap();
    test.store(&inline).update("o-1", |order| order.add(1)).await.unwrap();
    let id = "o-1".to_owned();
    flats.update(&id, |flat| drop(flat.rest.insert("extra".into(), Bson::Boolean(true)))).await.unwrap();
    assert_eq!(test.stored("o-1").await.get_bool("extra"), Ok(true));
    let error =
        flats.update(&id, |flat| drop(flat.rest.insert("etag".into(), Bson::Int32(1)))).await.unwrap_err();
    assert!(matches!(error, Error::ReservedField { field: "etag" }), "{error}");
    assert_eq!(test.outbox("o-1").await.len(), 1);
    test.drop().await;
}

#[tokio::test]
async fn a_decoding_error_names_document_and_field() {
    let (test, inline) = off().await;
    test.orders().insert_one(doc! { "_id": "bad", "total": "many" }).await.unwrap();
    let error = test.store(&inline).load("bad").await.unwrap_err();
    assert!(error.to_string().contains("bad"), "{error}");
    test.drop().await;
}

#[tokio::test]
async fn indexes_are_made_on_request_and_again_without_harm() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    orders.ensure_indexes().await.unwrap();
    orders.ensure_indexes().await.unwrap();
    let mut names = test.orders().list_index_names().await.unwrap();
    names.sort();
    assert_eq!(names, ["_id_", "outbox_available_at", "outbox_dead_at"]);
    test.drop().await;
}

/// If a caller adds messages to its own update, the messages exist if and only if the update is committed.
#[tokio::test]
async fn updates_and_transactions_of_callers_carry_messages() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let etag = test.stored("o-1").await.get("etag").cloned();

    for commit in [false, true] {
        let mut outbox = Outbox::default();
        outbox.send(crate::support::Added { amount: 9 });
        let staged = orders.stage(&mut outbox).await.unwrap();
        let update = staged.onto(doc! { "$inc": { "total": 9i64 }, "$set": { "note": "byo" } }).unwrap();
        let mut session = test.client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        orders.collection().update_one(doc! { "_id": "o-1" }, update).session(&mut session).await.unwrap();
        if commit {
            session.commit_transaction().await.unwrap();
            staged.committed("o-1").await;
        } else {
            session.abort_transaction().await.unwrap();
            assert!(recorder.delivered().is_empty());
            assert_eq!(test.outbox("o-1").await.len(), 0);
        }
    }
    assert_eq!(recorder.amounts(), [9]);
    let stored = test.stored("o-1").await;
    assert_eq!((stored.get_i64("total"), stored.get_str("note")), (Ok(9), Ok("byo")));
    assert_ne!(stored.get("etag").cloned(), etag, "a saver that loaded before must see the change");
    test.drop().await;
}

#[tokio::test]
async fn updates_that_write_library_fields_are_refused() {
    let (test, inline) = off().await;
    let mut outbox = Outbox::default();
    outbox.send(crate::support::Added { amount: 1 });
    let staged = test.store(&inline).stage(&mut outbox).await.unwrap();
    for update in [
        doc! { "$set": { "outbox.0.type": "x" } },
        doc! { "$unset": { "etag": "" } },
        doc! { "$rename": { "outbox": "x" } },
        doc! { "$rename": { "x": "outbox" } },
        doc! { "$rename": { "x": "etag.y" } },
    ] {
        let error = staged.onto(update).unwrap_err();
        assert!(matches!(error, Error::UpdateTouchesOutbox { .. }), "{error}");
    }
    assert!(staged.onto(doc! { "$set": { "x": "outbox" }, "$rename": { "x": "outboxes" } }).is_ok());
    assert!(staged.into_new(doc! { "_id": 1, "outbox": [] }).is_err());
    test.drop().await;
}

/// P1: a dropped save happens completely or not at all. The messages of the save stay in the aggregate until they are
/// saved.
#[tokio::test]
async fn a_dropped_save_keeps_messages_for_the_next() {
    let (test, inline) = off().await;
    insert(&test, &inline, Order::new("o-1")).await;
    // This store has not yet asked the server for its time.
    let orders = test.store(&InlineDispatcher::off(&test.client));
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    order.add(1);
    {
        let mut dropped = Box::pin(orders.save(&mut order));
        let begun = std::future::poll_fn(|context| {
            std::task::Poll::Ready(dropped.as_mut().poll(context).is_pending())
        });
        assert!(begun.await);
    }
    assert_eq!(order.outbox.len(), 1);
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Applied(_)));
    assert_eq!((order.outbox.len(), test.outbox("o-1").await.len()), (0, 1));
    test.drop().await;
}

/// P6: saving never rewrites the stored outbox, and never removes it.
#[tokio::test]
async fn a_flattened_map_cannot_drop_library_fields() {
    let (test, inline) = off().await;
    let flats = document_outbox::Store::<Flat>::new(test.orders(), &inline);
    insert(&test, &inline, Order::new("o-1")).await;
    test.store(&inline).update("o-1", |order| order.add(1)).await.unwrap();
    let id = "o-1".to_owned();
    flats.update(&id, |flat| flat.rest.clear()).await.unwrap();
    let stored = test.stored("o-1").await;
    assert_eq!((stored.get("total"), stored.contains_key("etag")), (None, true));
    assert_eq!(test.outbox("o-1").await.len(), 1);
    test.drop().await;
}

#[tokio::test]
async fn repeated_saves_do_not_count_delivered_messages() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).deliver_to(recorder.clone());
    let mut caps = Caps::default();
    caps.entries = 2;
    let orders = test.store(&inline).with_caps(caps);
    let Inserted::Applied(mut order, _) = orders.insert(Order::new("o-1")).await.unwrap() else { panic!() };
    for amount in 1..=6 {
        order.add(amount);
        assert!(orders.save(&mut order).await.unwrap().is_current(), "save {amount}");
        test.wait_until("o-1", |stored| stored.get_array("outbox").is_ok_and(Vec::is_empty)).await;
    }
    assert_eq!(recorder.amounts(), [1, 2, 3, 4, 5, 6]);
    test.drop().await;
}

#[tokio::test]
async fn a_document_above_its_cap_may_shrink() {
    let (test, inline) = off().await;
    let mut large = Order::new("o-1");
    large.note = Some("x".repeat(5_000));
    insert(&test, &inline, large).await;
    let mut caps = Caps::default();
    caps.document_bytes = 1_000;
    let orders = test.store(&inline).with_caps(caps);
    orders.update("o-1", |order| order.note = Some("x".repeat(2_000))).await.unwrap();
    let error = orders.update("o-1", |order| order.note = Some("x".repeat(3_000))).await.unwrap_err();
    assert!(matches!(error, Error::DocumentTooLarge { .. }), "{error}");
    test.drop().await;
}

#[tokio::test]
async fn a_changed_shard_key_is_refused() {
    let (test, inline) = off().await;
    let orders = test.store(&inline).with_shard_key(["total"]);
    insert(&test, &inline, Order::new("o-1")).await;
    let error = orders.update("o-1", |order| order.total = 5).await.unwrap_err();
    assert!(matches!(error, Error::IdChanged { .. }), "{error}");
    orders.update("o-1", |order| order.note = Some("x".into())).await.unwrap();
    test.drop().await;
}

/// Defines an aggregate whose field `_id` has this type and encoding.
macro_rules! aggregate {
    ($name:ident, $id:ty $(, $with:literal)?) => {
        #[derive(Debug, Serialize, Deserialize)]
        struct $name {
            #[serde(rename = "_id" $(, with = $with)?)]
            id: $id,
            n: i32,
            #[serde(skip)]
            outbox: Outbox,
        }
        impl Aggregate for $name {
            type Id = $id;
            fn id(&self) -> &$id {
                &self.id
            }
            fn outbox(&mut self) -> &mut Outbox {
                &mut self.outbox
            }
        }
        impl With<$id> for $name {
            fn with(id: $id) -> Self {
                Self { id, n: 0, outbox: Outbox::default() }
            }
        }
    };
}

trait With<I> {
    fn with(id: I) -> Self;
}

/// The same encoding as `uuid_1_as_binary`, which `bson` only offers with a feature.
mod uuid_as_binary {
    use mongodb::bson::Uuid;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &uuid::Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        Uuid::from_bytes(id.into_bytes()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<uuid::Uuid, D::Error> {
        Uuid::deserialize(deserializer).map(|id| uuid::Uuid::from_bytes(id.bytes()))
    }
}

/// The same encoding as `uuid_1_as_java_legacy_binary` of `bson`.
mod uuid_of_java {
    use mongodb::bson::{Binary, Uuid, uuid::UuidRepresentation};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    const JAVA: UuidRepresentation = UuidRepresentation::JavaLegacy;

    pub(super) fn serialize<S: Serializer>(id: &uuid::Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        Binary::from_uuid_with_representation(Uuid::from_bytes(id.into_bytes()), JAVA).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<uuid::Uuid, D::Error> {
        let id = Binary::deserialize(deserializer)?.to_uuid_with_representation(JAVA);
        id.map(|id| uuid::Uuid::from_bytes(id.bytes())).map_err(D::Error::custom)
    }
}

/// The same encoding as `hex_string_as_object_id` of `bson`.
mod hex_as_object_id {
    use mongodb::bson::oid::ObjectId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error};

    pub(super) fn serialize<S: Serializer>(id: &str, serializer: S) -> Result<S::Ok, S::Error> {
        ObjectId::parse_str(id).map_err(S::Error::custom)?.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        ObjectId::deserialize(deserializer).map(|id| id.to_hex())
    }
}

/// An encoding that no other program knows.
mod prefixed {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("order-{id}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer).map(|id| id.trim_start_matches("order-").to_owned())
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
struct Name(String);
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
struct Key {
    tenant: i64,
    order: uuid::Uuid,
}

aggregate!(ByUuid, uuid::Uuid);
aggregate!(ByBinaryUuid, uuid::Uuid, "uuid_as_binary");
aggregate!(ByJavaUuid, uuid::Uuid, "uuid_of_java");
aggregate!(BySimpleUuid, uuid::Uuid, "uuid::serde::simple");
aggregate!(ByBsonUuid, Uuid);
aggregate!(ByObjectId, ObjectId);
aggregate!(ByHex, String, "hex_as_object_id");
aggregate!(ByName, Name);
aggregate!(ByKey, Key);
aggregate!(ByNumber, u32);
aggregate!(ByPrefixed, String, "prefixed");
aggregate!(ByOption, Option<ObjectId>);

/// Inserts, loads, updates, delivers, clears and deletes an aggregate. Returns the stored `_id`.
async fn lives<T, I>(test: &TestDatabase, id: I) -> Bson
where
    T: Aggregate<Id = I> + With<I> + std::fmt::Debug,
    I: Clone + std::fmt::Debug + Serialize + Send + Sync + 'static,
{
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let store = || document_outbox::Store::<T>::new(test.orders(), &inline);
    let mut new = T::with(id.clone());
    new.outbox().send(Text("inserted".into()));
    let Inserted::Applied(mut inserted, _) = store().insert(new).await.unwrap() else { panic!("{id:?}") };
    inserted.outbox().send(Text("saved".into()));
    assert!(store().save(&mut inserted).await.unwrap().is_current(), "{id:?}");
    // The test uses a store that has not read any document yet, and a store that has read a document.
    let fresh = store();
    for text in ["updated", "again"] {
        fresh.update(&id, |it| _ = it.outbox().send(Text(text.into()))).await.unwrap();
    }
    let stored = test.orders().find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(stored.get_array("outbox").unwrap().len(), 0, "{id:?}");
    assert_eq!(recorder.delivered().len(), 4, "{id:?}");
    assert!(recorder.delivered().iter().all(|it| it.document.id() == *stored.get("_id").unwrap()));
    let loaded = fresh.load(&id).await.unwrap().unwrap();
    assert!(matches!(fresh.delete(&loaded).await.unwrap(), Deleted::Done), "{id:?}");
    assert!(fresh.load(&id).await.unwrap().is_none());
    stored.get("_id").unwrap().clone()
}

/// P3: each message of an aggregate is delivered once and cleared, whatever its `_id` is.
#[tokio::test]
async fn every_natural_way_of_having_an_id_works() {
    let test = TestDatabase::create().await;
    let (uuid, oid) = (uuid::Uuid::new_v4(), ObjectId::new());
    let subtype = |stored: Bson| match stored {
        Bson::Binary(binary) => u8::from(binary.subtype),
        other => panic!("{other:?}"),
    };
    assert_eq!(subtype(lives::<ByUuid, _>(&test, uuid).await), 0);
    assert_eq!(subtype(lives::<ByBinaryUuid, _>(&test, uuid).await), 4);
    assert_eq!(subtype(lives::<ByJavaUuid, _>(&test, uuid).await), 3);
    assert_eq!(lives::<BySimpleUuid, _>(&test, uuid).await, uuid.simple().to_string().into());
    assert_eq!(subtype(lives::<ByBsonUuid, _>(&test, Uuid::new()).await), 4);
    assert_eq!(lives::<ByObjectId, _>(&test, oid).await, oid.into());
    assert_eq!(lives::<ByHex, _>(&test, oid.to_hex()).await, oid.into());
    assert_eq!(lives::<ByName, _>(&test, Name("n".into())).await, "n".into());
    assert!(lives::<ByKey, _>(&test, Key { tenant: 1, order: uuid }).await.as_document().is_some());
    assert_eq!(lives::<ByNumber, _>(&test, 7).await, Bson::Int64(7));
    assert_eq!(lives::<ByOption, _>(&test, Some(oid)).await, oid.into());
    test.drop().await;
}

/// The identity of these aggregates can't be derived from their encoding.
#[derive(Debug, Serialize, Deserialize)]
struct Unnamed {
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}
#[derive(Debug, Serialize, Deserialize)]
struct Misnamed {
    #[serde(rename = "_id")]
    id: String,
    number: String,
    #[serde(skip)]
    outbox: Outbox,
}
#[derive(Debug, Serialize, Deserialize)]
struct Absent {
    #[serde(rename = "_id", skip_serializing_if = "Option::is_none")]
    id: Option<ObjectId>,
    #[serde(skip)]
    outbox: Outbox,
}
macro_rules! named_by {
    ($name:ident, $field:ident: $id:ty) => {
        impl Aggregate for $name {
            type Id = $id;
            #[allow(clippy::misnamed_getters, reason = "some of these are wrong on purpose")]
            fn id(&self) -> &$id {
                &self.$field
            }
            fn outbox(&mut self) -> &mut Outbox {
                &mut self.outbox
            }
        }
    };
}
named_by!(Unnamed, id: String);
named_by!(Misnamed, number: String);
named_by!(Absent, id: Option<ObjectId>);

async fn refused<T: Aggregate + std::fmt::Debug>(test: &TestDatabase, mut value: T, texts: [&str; 2]) {
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    value.outbox().send(Text("never".into()));
    let refused = document_outbox::Store::<T>::new(test.orders(), &inline).insert(value).await.unwrap_err();
    assert!(matches!(refused, Error::NoId { .. } | Error::IdMismatch { .. }), "{refused}");
    assert!(texts.iter().all(|text| refused.to_string().contains(text)), "{refused}");
    assert_eq!(test.orders().count_documents(doc! {}).await.unwrap(), 0);
    assert!(recorder.delivered().is_empty());
}

/// P3: if two parts of the library disagreed about an identity, every message would be delivered twice.
#[tokio::test]
async fn an_aggregate_without_one_key_is_never_written() {
    let test = TestDatabase::create().await;
    let outbox = Outbox::default;
    let (id, number) = ("o-1".to_owned(), "n-1".to_owned());
    refused(&test, Unnamed { id: id.clone(), outbox: outbox() }, ["o-1", "no `_id`"]).await;
    refused(&test, Misnamed { id: id.clone(), number, outbox: outbox() }, ["o-1", "n-1"]).await;
    refused(&test, ByPrefixed::with(id), ["\"o-1\"", "\"order-o-1\""]).await;
    refused(&test, Absent { id: None, outbox: outbox() }, ["null", "`Option`"]).await;
    refused(&test, ByOption::with(None), ["null", "`Option`"]).await;
    test.drop().await;
}

/// Of 300 concurrent inserts, either all are refused, or each message is delivered once and each document is
/// found.
#[tokio::test]
#[ignore = "stress: run by scripts/stress"]
async fn stress_three_hundred_inserts_are_refused_or_found() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let unnamed = document_outbox::Store::<Unnamed>::new(test.orders(), &inline);
    let refused = (0..300).map(|n| {
        let mut value = Unnamed { id: format!("o-{n}"), outbox: Outbox::default() };
        value.outbox.send(Text("never".into()));
        unnamed.insert(value)
    });
    let refused = join_all(refused).await;
    assert!(refused.iter().all(|refused| matches!(refused, Err(Error::NoId { .. }))), "{refused:?}");
    assert_eq!(test.orders().count_documents(doc! {}).await.unwrap(), 0);
    assert!(recorder.delivered().is_empty());

    insert_and_find::<ByBinaryUuid, _>(&test, uuid::Uuid::new_v4).await;
    insert_and_find::<ByHex, _>(&test, || ObjectId::new().to_hex()).await;
    test.drop().await;
}

async fn insert_and_find<T, I>(test: &TestDatabase, new_id: impl Fn() -> I)
where
    T: Aggregate<Id = I> + With<I> + std::fmt::Debug,
    I: Clone + std::fmt::Debug + Serialize + Send + Sync + 'static,
{
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let store = document_outbox::Store::<T>::new(test.orders(), &inline);
    let ids: Vec<I> = (0..300).map(|_| new_id()).collect();
    let inserted = ids.iter().map(|id| {
        let mut value = T::with(id.clone());
        value.outbox().send(Text("inserted".into()));
        store.insert(value)
    });
    let inserted = join_all(inserted).await;
    assert!(inserted.iter().all(|inserted| matches!(inserted, Ok(Inserted::Applied(..)))), "{inserted:?}");
    assert_eq!(recorder.delivered().len(), 300, "each once");
    for id in &ids {
        assert!(store.load(id).await.unwrap().is_some(), "{id:?}");
    }
    test.wait_until_all_are_empty().await;
}

#[tokio::test]
async fn a_save_checks_the_key_that_it_writes() {
    let (test, inline) = off().await;
    test.orders().insert_one(doc! { "_id": "o-1", "number": "o-1", "id": "x", "n": 0 }).await.unwrap();
    let misnamed = document_outbox::Store::<Misnamed>::new(test.orders(), &inline);
    let mut loaded = misnamed.load("o-1").await.unwrap().unwrap();
    loaded.number = "n-1".into();
    let error = misnamed.save(&mut loaded).await.unwrap_err();
    assert!(matches!(error, Error::IdMismatch { .. }), "{error}");
    let unnamed = document_outbox::Store::<Unnamed>::new(test.orders(), &inline);
    let mut loaded = unnamed.load("o-1").await.unwrap().unwrap();
    loaded.outbox.send(Text("never".into()));
    let error = unnamed.save(&mut loaded).await.unwrap_err();
    assert!(matches!(error, Error::NoId { .. }), "{error}");
    let names = document_outbox::Store::<ByName>::new(test.orders(), &inline);
    let error = names.update(&Name("o-1".into()), |it| it.id = Name("o-2".into())).await.unwrap_err();
    assert!(matches!(error, Error::IdChanged { .. }), "{error}");
    assert!(error.to_string().contains("o-1") && error.to_string().contains("o-2"), "{error}");
    assert_eq!(test.outbox("o-1").await.len(), 0);
    test.drop().await;
}

#[tokio::test]
async fn a_document_is_saved_under_its_stored_id() {
    let (test, inline) = off().await;
    let id = uuid::Uuid::new_v4();
    // The documents are stored as earlier versions and other programs stored them.
    let generic = mongodb::bson::Binary {
        subtype: mongodb::bson::spec::BinarySubtype::Generic,
        bytes: id.as_bytes().to_vec(),
    };
    let oid = ObjectId::new();
    for id in [Bson::from(generic), oid.to_hex().into(), Bson::Int32(5)] {
        test.orders().insert_one(doc! { "_id": id, "n": 0 }).await.unwrap();
    }
    let uuids = document_outbox::Store::<ByUuid>::new(test.orders(), &inline);
    uuids.update(&id, |it| it.n = 1).await.unwrap();
    let oids = document_outbox::Store::<ByObjectId>::new(test.orders(), &inline);
    oids.update(&oid, |it| it.n = 1).await.unwrap();
    let numbers = document_outbox::Store::<ByNumber>::new(test.orders(), &inline);
    numbers.update(&5, |it| it.n = 1).await.unwrap();
    assert_eq!(test.orders().count_documents(doc! { "n": 1 }).await.unwrap(), 3);
    // A struct that accepts any `_id` asks for the text form, which no document has.
    test.orders().insert_one(doc! { "_id": oid, "n": 0 }).await.unwrap();
    test.orders().delete_one(doc! { "_id": oid.to_hex() }).await.unwrap();
    let any = document_outbox::Store::<Any>::new(test.orders(), &inline);
    assert!(any.load(&oid.to_hex().into()).await.unwrap().is_none());
    test.drop().await;
}

#[tokio::test]
async fn an_id_found_by_collation_saves_and_deletes() {
    let (test, inline) = off().await;
    let collation = mongodb::options::Collation::builder()
        .locale("en")
        .strength(mongodb::options::CollationStrength::Secondary)
        .build();
    test.database.create_collection("orders").collation(collation).await.unwrap();
    insert(&test, &inline, Order::new("abc")).await;
    let orders = test.store(&inline);
    orders.update("ABC", |order| order.add(1)).await.unwrap();
    assert_eq!(test.outbox("abc").await.len(), 1);
    test.orders().update_one(doc! { "_id": "abc" }, doc! { "$set": { "outbox": [] } }).await.unwrap();
    let loaded = orders.load("ABC").await.unwrap().unwrap();
    assert!(matches!(orders.delete(&loaded).await.unwrap(), Deleted::Done));
    test.drop().await;
}

#[tokio::test]
async fn a_shard_key_of_another_numeric_type_is_saved() {
    let (test, inline) = off().await;
    let orders = test.store(&inline).with_shard_key(["total"]);
    test.orders().insert_one(doc! { "_id": "o-1", "total": 5_i32 }).await.unwrap();
    orders.update("o-1", |order| order.note = Some("x".into())).await.unwrap();
    let error = orders.update("o-1", |order| order.total = 6).await.unwrap_err();
    assert!(matches!(&error, Error::IdChanged { field, .. } if field == "total"), "{error}");
    test.drop().await;
}

#[tokio::test]
async fn staged_messages_are_delivered_only_from_their_document() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let uuids = document_outbox::Store::<ByUuid>::new(test.orders(), &inline);
    let id = uuid::Uuid::new_v4();
    assert!(matches!(uuids.insert(ByUuid::with(id)).await.unwrap(), Inserted::Applied(..)));
    // The struct stores binary subtype 0, whereas `bson::Uuid` uses subtype 4.
    let given = [(Bson::from("o-1"), false), (Uuid::from_bytes(id.into_bytes()).into(), true)];
    for (given, found) in given {
        let mut outbox = Outbox::default();
        outbox.send(Text("staged".into()));
        let staged = uuids.stage(&mut outbox).await.unwrap();
        let update = staged.onto(doc! { "$inc": { "n": 1 } }).unwrap();
        uuids.collection().update_one(doc! {}, update).await.unwrap();
        let dispatch = staged.committed(given).await;
        assert_eq!(matches!(dispatch, Dispatch::Settled(_)), found, "{dispatch:?}");
        assert_eq!(dispatch == Dispatch::Skipped(Shed::NotFound), !found, "{dispatch:?}");
    }
    assert_eq!(recorder.delivered().len(), 2);
    test.drop().await;
}

/// A struct that can't read the document that it writes, like the structs that follow.
#[derive(Debug, Serialize, Deserialize)]
#[allow(dead_code, reason = "the test is about a field that is written and never read")]
struct Secret {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip_serializing)]
    secret: String,
    #[serde(skip)]
    outbox: Outbox,
}
named_by!(Secret, id: String);
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Strict {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}
named_by!(Strict, id: String);
#[derive(Debug, Serialize, Deserialize)]
struct Dated {
    #[serde(rename = "_id")]
    id: String,
    #[serde(with = "maybe", skip_serializing_if = "Option::is_none")]
    at: Option<i64>,
    #[serde(skip)]
    outbox: Outbox,
}
named_by!(Dated, id: String);
mod maybe {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
        at.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
        Option::deserialize(deserializer)
    }
}

/// P1: an aggregate that can't be read again is refused together with its messages, before anything is written.
#[tokio::test]
async fn values_the_struct_cannot_reread_are_refused() {
    let (test, inline) = off().await;
    let (id, outbox) = ("o-1".to_owned(), Outbox::default);
    let secrets = document_outbox::Store::<Secret>::new(test.orders(), &inline);
    let secret = Secret { id: id.clone(), secret: "s".into(), outbox: outbox() };
    let error = secrets.insert(secret).await.unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }) && error.to_string().contains("secret"), "{error}");
    let strict = document_outbox::Store::<Strict>::new(test.orders(), &inline);
    let error = strict.insert(Strict { id: id.clone(), outbox: outbox() }).await.unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }) && error.to_string().contains("etag"), "{error}");
    assert_eq!(test.orders().count_documents(doc! {}).await.unwrap(), 0);

    // Whether this struct can be read again depends on the value of its field.
    let dated = document_outbox::Store::<Dated>::new(test.orders(), &inline);
    let new = Dated { id: id.clone(), at: Some(1), outbox: outbox() };
    assert!(matches!(dated.insert(new).await.unwrap(), Inserted::Applied(..)));
    let before = test.stored("o-1").await;
    let absent = dated.update(&id, |it| {
        it.at = None;
        it.outbox.send(Text("never".into()));
    });
    let error = absent.await.unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }) && error.to_string().contains("`at`"), "{error}");
    let flats = document_outbox::Store::<Flat>::new(test.orders(), &inline);
    let twice = |flat: &mut Flat| drop(flat.rest.insert("_id".into(), "o-2".into()));
    assert!(flats.update(&id, twice).await.is_err());
    assert_eq!(test.stored("o-1").await, before);
    test.drop().await;
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Basket {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    lines: Vec<Line>,
    #[serde(default)]
    parcels: Vec<Parcel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<Address>,
    #[serde(skip)]
    outbox: Outbox,
}
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    sku: String,
    qty: i64,
}
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Parcel {
    id: i64,
    lines: Vec<Line>,
}
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Address {
    street: String,
}
impl Aggregate for Basket {
    type Id = String;
    const ELEMENT_KEYS: &'static [(&'static str, &'static str)] = &[("parcels.lines", "sku")];
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

fn line(sku: &str, qty: i64) -> Line {
    Line { sku: sku.into(), qty }
}

/// P6: a save loses no stored field that its struct doesn't know; inside arrays, this applies to every element that can
/// be recognised.
#[tokio::test]
async fn fields_unknown_to_the_struct_survive_in_arrays() {
    let (test, inline) = off().await;
    let baskets = document_outbox::Store::<Basket>::new(test.orders(), &inline);
    let (discount, gift) =
        (doc! { "sku": "a", "qty": 1, "discount": 5 }, doc! { "sku": "b", "qty": 1, "gift": true });
    let stored = doc! {
        "_id": "o-1",
        "lines": [discount.clone(), gift.clone()],
        "parcels": [{ "id": 1, "lines": [discount.clone(), gift.clone()], "seal": "x" }, { "id": 2, "lines": [], "seal": "y" }],
        "address": { "street": "s", "geo": [1, 2] },
    };
    test.orders().insert_one(&stored).await.unwrap();
    let id = "o-1".to_owned();
    let same = |stored: &Bson, expected: Bson| assert_eq!(canonical(stored), canonical(&expected));

    // A line and a street are added.
    baskets.update(&id, |it| it.lines.push(line("c", 3))).await.unwrap();
    baskets.update(&id, |it| it.address.as_mut().unwrap().street = "t".into()).await.unwrap();
    let now = test.stored("o-1").await;
    same(&now["lines"], vec![discount.clone(), gift.clone(), doc! { "sku": "c", "qty": 3 }].into());
    same(&now["address"], doc! { "street": "t", "geo": [1, 2] }.into());

    // One line is removed, and another line is changed but keeps its position. Two parcels swap positions;
    // parcels are matched by id, and their lines by the declared key.
    let changed = baskets.update(&id, |it| {
        it.lines.remove(0);
        it.parcels.swap(0, 1);
        it.parcels[1].lines.reverse();
        it.parcels[1].lines.iter_mut().for_each(|line| line.qty = 9);
    });
    changed.await.unwrap();
    baskets.update(&id, |it| it.lines[0].qty = 7).await.unwrap();
    let now = test.stored("o-1").await;
    same(
        &now["lines"],
        vec![doc! { "sku": "b", "qty": 7, "gift": true }, doc! { "sku": "c", "qty": 3 }].into(),
    );
    let lines =
        vec![doc! { "sku": "b", "qty": 9, "gift": true }, doc! { "sku": "a", "qty": 9, "discount": 5 }];
    same(
        &now["parcels"],
        vec![doc! { "id": 2, "lines": [], "seal": "y" }, doc! { "id": 1, "lines": lines, "seal": "x" }]
            .into(),
    );
    test.drop().await;
}

/// Normalizes the order of fields and the width of numbers.
fn canonical(value: &Bson) -> Bson {
    match value {
        Bson::Document(document) => {
            let mut fields: Vec<_> = document.iter().collect();
            fields.sort_by_key(|(name, _)| name.as_str());
            let fields = fields.into_iter().map(|(name, value)| (name.clone(), canonical(value)));
            fields.collect::<mongodb::bson::Document>().into()
        }
        Bson::Array(items) => Bson::Array(items.iter().map(canonical).collect()),
        Bson::Int32(number) => Bson::Int64((*number).into()),
        other => other.clone(),
    }
}

#[tokio::test]
async fn no_save_restores_fields_that_an_earlier_one_removed() {
    let (test, inline) = off().await;
    let baskets = document_outbox::Store::<Basket>::new(test.orders(), &inline);
    let stored = doc! {
        "_id": "o-1",
        "lines": [{ "sku": "a", "qty": 1, "discount": 5 }, { "sku": "b", "qty": 1, "gift": true }],
        "address": { "street": "s", "geo": 1 },
    };
    test.orders().insert_one(stored).await.unwrap();
    let mut basket = baskets.load("o-1").await.unwrap().unwrap();
    let address = basket.address.take();
    let removed = basket.lines.remove(0);
    assert!(baskets.save(&mut basket).await.unwrap().is_current());
    basket.address = address;
    basket.lines.push(removed);
    assert!(baskets.save(&mut basket).await.unwrap().is_current());
    let now = test.stored("o-1").await;
    assert_eq!(now.get_document("address").unwrap(), &doc! { "street": "s" });
    let lines = [doc! { "sku": "b", "qty": 1_i64, "gift": true }, doc! { "sku": "a", "qty": 1_i64 }];
    assert_eq!(now.get_array("lines").unwrap(), &lines.map(Bson::from));
    test.drop().await;
}

/// A struct with renamed fields. The stored documents were written before the fields got their present names.
#[derive(Debug, Serialize, Deserialize)]
struct Renamed {
    #[serde(rename = "_id")]
    id: String,
    #[serde(alias = "oldNote")]
    note: String,
    #[serde(default)]
    paid: bool,
    address: RenamedStreet,
    lines: Vec<RenamedLine>,
    by_shelf: HashMap<String, RenamedLine>,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Debug, Serialize, Deserialize)]
struct RenamedStreet {
    #[serde(alias = "road")]
    street: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct RenamedLine {
    sku: String,
    #[serde(alias = "count")]
    qty: i64,
}

impl Aggregate for Renamed {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

/// The same struct can read every accepted save, and an unknown field next to a renamed one survives.
#[tokio::test]
async fn fields_read_under_an_old_name_move() {
    let (test, inline) = off().await;
    let orders = document_outbox::Store::<Renamed>::new(test.orders(), &inline);
    let line = |sku: &str| doc! { "sku": sku, "count": 1, "u": sku };
    let stored = |id: &str| {
        doc! {
            "_id": id, "oldNote": "x", "other": 7, "address": { "road": "r", "u": 1 },
            "lines": [line("a"), line("b")], "by_shelf": { "k": line("c") },
        }
    };
    let changes: [fn(&mut Renamed); 6] = [
        |it| it.note = "y".into(),
        |it| it.paid = true,
        |it| it.address.street = "s".into(),
        |it| it.lines.push(RenamedLine { sku: "d".into(), qty: 1 }),
        |it| it.lines[0].qty = 2,
        |it| it.by_shelf.get_mut("k").unwrap().qty = 2,
    ];
    for (nth, change) in changes.into_iter().enumerate() {
        let id = format!("o-{nth}");
        test.orders().insert_one(stored(&id)).await.unwrap();
        orders.update(&id, change).await.unwrap();

        let mut expected = Renamed {
            id: id.clone(),
            note: "x".into(),
            paid: false,
            address: RenamedStreet { street: "r".into() },
            lines: ["a", "b"].map(|sku| RenamedLine { sku: sku.into(), qty: 1 }).into(),
            by_shelf: HashMap::from([("k".into(), RenamedLine { sku: "c".into(), qty: 1 })]),
            outbox: Outbox::default(),
        };
        change(&mut expected);
        let loaded = orders.load(&id).await.unwrap().unwrap();
        assert_eq!(format!("{:?}", *loaded), format!("{expected:?}"), "change {nth}");

        let now = test.stored(id.as_str()).await;
        assert_eq!(
            (now.get_i32("other"), now.contains_key("oldNote")),
            (Ok(7), false),
            "change {nth}: {now}"
        );
        assert_eq!(now.get_document("address").unwrap().get_i32("u"), Ok(1), "change {nth}: {now}");
        let kept = now.get_array("lines").unwrap().iter().take(2).map(|it| it.as_document().unwrap());
        assert!(kept.into_iter().all(|it| it.contains_key("u")), "change {nth}: {now}");
    }
    test.drop().await;
}
