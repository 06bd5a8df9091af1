//! Saving aggregates: what is written, what survives, what is said.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod support;

use document_outbox::{
    Caps, Document, Error, Inline, Mode, Outbox,
    store::{Deleted, Inserted, Saved},
};
use mongodb::bson::{Bson, Uuid, doc, oid::ObjectId};
use serde::{Deserialize, Serialize};
use support::{Order, Recorder, TestDatabase};

async fn off() -> (TestDatabase, Inline) {
    let test = TestDatabase::create().await;
    let inline = Inline::off(&test.client);
    (test, inline)
}

async fn insert(test: &TestDatabase, inline: &Inline, order: Order) {
    assert!(matches!(test.store(inline).insert(order).await.unwrap(), Inserted::Applied(..)));
}

/// P1 Atomic: a message exists if and only if the save that sent it is majority-committed.
#[tokio::test]
async fn a_message_is_saved_with_its_document_and_not_without() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let mut mine = orders.load(&"o-1".into()).await.unwrap().unwrap();
    let mut theirs = orders.load(&"o-1".into()).await.unwrap().unwrap();

    mine.add(1);
    assert!(matches!(orders.save(&mut mine).await.unwrap(), Saved::Applied(_)));
    theirs.add(2);
    assert!(matches!(orders.save(&mut theirs).await.unwrap(), Saved::Conflict));

    assert_eq!(test.stored("o-1").await.get_i64("total"), Ok(1));
    let outbox = test.outbox("o-1").await;
    assert_eq!(outbox.len(), 1);
    assert_eq!(outbox[0].get_document("payload").unwrap(), &doc! { "amount": 1i64 });
    assert_eq!(outbox[0].get_str("type"), Ok("order.added"));
    assert_eq!(theirs.outbox.len(), 1, "what was not saved is still with the aggregate");
    test.drop().await;
}

#[tokio::test]
async fn a_save_of_an_unchanged_document_writes_nothing() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let before = test.stored("o-1").await;
    let mut order = orders.load(&"o-1".into()).await.unwrap().unwrap();
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
    assert!(orders.save(&mut order).await.unwrap().is_applied());
    order.note = None;
    assert!(orders.save(&mut order).await.unwrap().is_applied());
    let stored = test.stored("o-1").await;
    assert_eq!((stored.get_i64("total"), stored.get("note")), (Ok(6), None));
    assert_eq!(test.outbox("o-1").await.len(), 3);
    test.drop().await;
}

#[tokio::test]
async fn documents_from_before_the_library_just_work_and_keep_what_the_struct_does_not_know() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let stored = doc! { "_id": "old", "total": 5, "legacy": { "a": [1, { "b": 2 }] } };
    test.orders().insert_one(&stored).await.unwrap();
    orders.update(&"old".into(), |order| order.add(1)).await.unwrap();
    let now = test.stored("old").await;
    assert_eq!(now.get("legacy"), stored.get("legacy"));
    assert_eq!(now.get_i64("total"), Ok(6));
    assert!(matches!(now.get("etag"), Some(Bson::Binary(_))));
    assert_eq!(test.outbox("old").await.len(), 1);
    test.drop().await;
}

/// Two savers of a document without an etag: only one of them may win.
#[tokio::test]
async fn the_first_save_of_an_old_document_is_guarded_too() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    test.orders().insert_one(doc! { "_id": "old", "total": 5 }).await.unwrap();
    let mut mine = orders.load(&"old".into()).await.unwrap().unwrap();
    let mut theirs = orders.load(&"old".into()).await.unwrap().unwrap();
    mine.add(1);
    theirs.add(1);
    assert!(orders.save(&mut mine).await.unwrap().is_applied());
    assert!(matches!(orders.save(&mut theirs).await.unwrap(), Saved::Conflict));
    test.drop().await;
}

#[tokio::test]
async fn a_deleted_document_is_gone_and_a_recreated_one_is_a_conflict() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let mut stale = orders.load(&"o-1".into()).await.unwrap().unwrap();
    let again = orders.load(&"o-1".into()).await.unwrap().unwrap();
    assert!(matches!(orders.delete(&again).await.unwrap(), Deleted::Done));
    assert!(matches!(orders.delete(&again).await.unwrap(), Deleted::Gone));
    stale.add(1);
    assert!(matches!(orders.save(&mut stale).await.unwrap(), Saved::Gone));
    insert(&test, &inline, Order::new("o-1")).await;
    assert!(matches!(orders.save(&mut stale).await.unwrap(), Saved::Conflict));
    assert!(matches!(orders.delete(&stale).await.unwrap(), Deleted::Conflict));
    test.drop().await;
}

/// P2: nothing leaves an outbox but by a confirmed delivery or an operator's action.
#[tokio::test]
async fn a_document_with_undelivered_messages_cannot_be_deleted() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let mut order = Order::new("o-1");
    order.add(1);
    insert(&test, &inline, order).await;
    let order = orders.load(&"o-1".into()).await.unwrap().unwrap();
    assert!(matches!(orders.delete(&order).await.unwrap(), Deleted::Undelivered));
    assert_eq!(test.outbox("o-1").await.len(), 1);
    test.drop().await;
}

#[tokio::test]
async fn an_insert_of_an_id_that_exists_hands_the_aggregate_back() {
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
async fn an_update_says_what_is_missing_and_a_refusing_closure_saves_nothing() {
    let (test, inline) = off().await;
    let orders = test.store(&inline);
    let missing = orders.update(&"nope".into(), |_| ()).await.unwrap_err();
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
async fn caps_are_checked_before_anything_is_written() {
    let (test, inline) = off().await;
    let caps = Caps { entries: 2, payload_bytes: 64, header_bytes: 64, document_bytes: 1_000, depth: 2 };
    let orders = test.store(&inline).with_caps(caps);
    let saved = |change: fn(&mut Order)| {
        let orders = &orders;
        async move { orders.update(&"o-1".to_owned(), change).await.unwrap_err() }
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

    orders.update(&"o-1".to_owned(), |order| (0..2).for_each(|_| order.add(1))).await.unwrap();
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
struct Deep(Vec<Vec<Vec<i32>>>);
impl document_outbox::Message for Deep {
    const TYPE: &'static str = "deep";
}

#[tokio::test]
async fn an_outbox_that_is_no_array_is_a_typed_error_only_where_messages_are_sent() {
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
impl Document for Any {
    type Id = Bson;
    fn id(&self) -> &Bson {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[tokio::test]
async fn every_type_of_id_is_saved_loaded_claimed_and_cleared() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = Inline::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
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
impl Document for Flat {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[tokio::test]
async fn a_flattened_map_may_hold_the_librarys_fields_but_not_change_them() {
    let (test, inline) = off().await;
    let flats = document_outbox::Store::<Flat>::new(test.orders(), &inline);
    test.store(&inline).insert(Order::new("o-1")).await.map(drop).unwrap();
    test.store(&inline).update(&"o-1".into(), |order| order.add(1)).await.unwrap();
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
async fn a_value_that_does_not_decode_names_the_document_and_the_field() {
    let (test, inline) = off().await;
    test.orders().insert_one(doc! { "_id": "bad", "total": "many" }).await.unwrap();
    let error = test.store(&inline).load(&"bad".into()).await.unwrap_err();
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

/// Bring your own update: the messages exist if and only if the caller's write is committed.
#[tokio::test]
async fn messages_ride_on_an_update_and_in_a_transaction_of_the_callers_own() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = Inline::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    insert(&test, &inline, Order::new("o-1")).await;
    let etag = test.stored("o-1").await.get("etag").cloned();

    for commit in [false, true] {
        let mut outbox = Outbox::default();
        outbox.send(support::Added { amount: 9 });
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
async fn an_update_that_writes_the_librarys_fields_itself_is_refused_by_name() {
    let (test, inline) = off().await;
    let mut outbox = Outbox::default();
    outbox.send(support::Added { amount: 1 });
    let staged = test.store(&inline).stage(&mut outbox).await.unwrap();
    for update in [doc! { "$set": { "outbox.0.type": "x" } }, doc! { "$unset": { "etag": "" } }] {
        let error = staged.onto(update).unwrap_err();
        assert!(matches!(error, Error::UpdateTouchesOutbox { .. }), "{error}");
    }
    assert!(staged.into_new(doc! { "_id": 1, "outbox": [] }).is_err());
    test.drop().await;
}

/// P1: a save that is dropped is done or not, never by half: its messages stay with the aggregate until they are saved.
#[tokio::test]
async fn a_dropped_save_keeps_its_messages_for_the_next_one() {
    let (test, inline) = off().await;
    insert(&test, &inline, Order::new("o-1")).await;
    // A store that has yet to ask the server for its time.
    let orders = test.store(&Inline::off(&test.client));
    let mut order = orders.load(&"o-1".into()).await.unwrap().unwrap();
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
async fn dropping_the_librarys_fields_from_a_flattened_map_drops_nothing_that_is_stored() {
    let (test, inline) = off().await;
    let flats = document_outbox::Store::<Flat>::new(test.orders(), &inline);
    insert(&test, &inline, Order::new("o-1")).await;
    test.store(&inline).update(&"o-1".into(), |order| order.add(1)).await.unwrap();
    let id = "o-1".to_owned();
    flats.update(&id, |flat| flat.rest.clear()).await.unwrap();
    let stored = test.stored("o-1").await;
    assert_eq!((stored.get("total"), stored.contains_key("etag")), (None, true));
    assert_eq!(test.outbox("o-1").await.len(), 1);
    test.drop().await;
}

#[tokio::test]
async fn an_aggregate_that_is_kept_and_saved_over_and_over_does_not_count_what_was_delivered() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = Inline::builder(&test.client).deliver_to(recorder.clone());
    let orders = test.store(&inline).with_caps(Caps { entries: 2, ..Caps::default() });
    let Inserted::Applied(mut order, _) = orders.insert(Order::new("o-1")).await.unwrap() else { panic!() };
    for amount in 1..=6 {
        order.add(amount);
        assert!(orders.save(&mut order).await.unwrap().is_applied(), "save {amount}");
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
    let orders = test.store(&inline).with_caps(Caps { document_bytes: 1_000, ..Caps::default() });
    orders.update(&"o-1".into(), |order| order.note = Some("x".repeat(2_000))).await.unwrap();
    let error = orders.update(&"o-1".into(), |order| order.note = Some("x".repeat(3_000))).await.unwrap_err();
    assert!(matches!(error, Error::DocumentTooLarge { .. }), "{error}");
    test.drop().await;
}

#[tokio::test]
async fn a_changed_shard_key_is_refused() {
    let (test, inline) = off().await;
    let orders = test.store(&inline).with_shard_key(["total"]);
    insert(&test, &inline, Order::new("o-1")).await;
    let error = orders.update(&"o-1".into(), |order| order.total = 5).await.unwrap_err();
    assert!(matches!(error, Error::IdChanged { .. }), "{error}");
    orders.update(&"o-1".into(), |order| order.note = Some("x".into())).await.unwrap();
    test.drop().await;
}
