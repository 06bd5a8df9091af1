//! Tests saves that cancel, reschedule and replace stored messages.

use std::time::{Duration, SystemTime};

use crate::support::{Added, LONG, Order, Recorder, TestDatabase};
use document_outbox::{
    Aggregate, Due, Error, InlineDispatcher, Message, Mode, Outbox, RevisionOutcome, Store,
    dispatch::{Dispatch, Disposition},
    store::{Deleted, Inserted, Receipt, Saved},
};
use mongodb::bson::{Binary, Bson, DateTime, Document, RawDocumentBuf, Uuid, doc, spec::BinarySubtype};
use serde::{Deserialize, Serialize};

const DAY: Duration = Duration::from_hours(24);

async fn off() -> (TestDatabase, Store<Order>) {
    let test = TestDatabase::create().await;
    let orders = test.store(&InlineDispatcher::off(&test.client));
    (test, orders)
}

async fn insert(orders: &Store<Order>, order: Order) -> Receipt {
    match orders.insert(order).await.unwrap() {
        Inserted::Applied(_, receipt) => receipt,
        other => panic!("{other:?}"),
    }
}

/// Inserts an order with one message that is due in a day, and returns the message's id.
async fn insert_scheduled(orders: &Store<Order>, id: &str) -> uuid::Uuid {
    let mut order = Order::new(id);
    order.outbox.send_after(Added { amount: 1 }, DAY);
    insert(orders, order).await.messages[0]
}

async fn change(orders: &Store<Order>, id: &str, mut change: impl FnMut(&mut Order)) -> Receipt {
    orders.update(id, |order| change(order)).await.unwrap().receipt.expect("the save was written")
}

fn as_bson(id: uuid::Uuid) -> Uuid {
    Uuid::from_bytes(id.into_bytes())
}

fn as_uuid(id: Uuid) -> uuid::Uuid {
    uuid::Uuid::from_bytes(id.bytes())
}

/// P2: *a save of its own aggregate removes a message that no process has claimed*, in the update that also changes the
/// aggregate and sends.
#[tokio::test]
async fn a_cancelled_message_leaves_with_the_change() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    let timeout = insert_scheduled(&orders, "o-1").await;
    test.orders().update_one(doc! { "_id": "o-1" }, doc! { "$set": { "unknown": "$total" } }).await.unwrap();

    let receipt = change(&orders, "o-1", |order| {
        order.note = Some("$total".into());
        order.outbox.cancel(timeout);
        order.add(2);
    })
    .await;
    assert_eq!(receipt.revision(timeout), Some(RevisionOutcome::Cancelled));
    let settled = vec![(receipt.messages[0], Disposition::Delivered)];
    assert_eq!(receipt.dispatch, Dispatch::Settled(settled));
    assert_eq!(recorder.amounts(), [2]);

    let stored = test.stored("o-1").await;
    assert_eq!((stored.get_str("note"), stored.get_str("unknown")), (Ok("$total"), Ok("$total")));
    assert_eq!((stored.get_i64("total"), stored.get_array("outbox")), (Ok(2), Ok(&Vec::new())));

    let again = change(&orders, "o-1", |order| order.outbox.cancel(timeout)).await;
    assert_eq!(again.revision(timeout), Some(RevisionOutcome::NotThere));
    let loaded = orders.load("o-1").await.unwrap().unwrap();
    assert!(matches!(orders.delete(&loaded).await.unwrap(), Deleted::Done));
    test.drop().await;
}

/// The new message of a save that cancels the only stored one is written with a claim.
#[tokio::test]
async fn a_message_is_born_claimed_in_place_of_another() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&test.client).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    let first = insert_scheduled(&orders, "o-1").await;
    change(&orders, "o-1", |order| {
        order.outbox.cancel(first);
        order.add(2);
    })
    .await;
    let outbox = test.outbox("o-1").await;
    assert!(outbox.len() == 1 && outbox[0].contains_key("claimed_by"), "{outbox:#?}");

    // Next to another message, the new one gets no claim with the save.
    let second = insert_scheduled(&orders, "o-2").await;
    change(&orders, "o-2", |order| {
        order.outbox.send_after(Added { amount: 3 }, DAY);
    })
    .await;
    let receipt = change(&orders, "o-2", |order| {
        order.outbox.cancel(second);
        order.outbox.send_after(Added { amount: 4 }, DAY);
    })
    .await;
    assert_eq!(receipt.revision(second), Some(RevisionOutcome::Cancelled));
    let outbox = test.outbox("o-2").await;
    assert!(outbox.len() == 2 && outbox.iter().all(|entry| !entry.contains_key("claimed_by")), "{outbox:#?}");
    recorder.let_through(1);
    inline.close(LONG).await;
    assert_eq!(recorder.amounts(), [2]);
    test.drop().await;
}

#[tokio::test]
async fn a_message_in_delivery_is_too_late_to_cancel() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&test.client).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    let mut order = Order::new("o-1");
    order.add(1);
    let id = insert(&orders, order).await.messages[0];
    recorder.wait_tried(1).await;

    let receipt = change(&orders, "o-1", |order| order.outbox.cancel(id)).await;
    assert_eq!(receipt.revision(id), Some(RevisionOutcome::TooLate));
    let receipt = change(&orders, "o-1", |order| order.outbox.reschedule(id, DAY)).await;
    assert_eq!(receipt.revision(id), Some(RevisionOutcome::TooLate));

    recorder.let_through(1);
    inline.close(LONG).await;
    assert_eq!(recorder.amounts(), [1]);
    assert_eq!(test.outbox("o-1").await.len(), 0);
    test.drop().await;
}

/// An entry as it is stored, with its id and further fields.
fn entry(id: Uuid, further: Document) -> Document {
    let mut entry = doc! { "id": id, "type": "order.added", "payload": { "amount": 1i64 } };
    entry.extend(further);
    entry
}

/// Each state has its outcome, and the elements that stay are the same, byte for byte.
#[tokio::test]
async fn each_state_of_a_message_has_its_outcome() {
    let (test, orders) = off().await;
    let ids: Vec<Uuid> = (0..9).map(|_| Uuid::new()).collect();
    let past = DateTime::from_millis(1);
    let damaged = entry(Uuid::new(), doc! { "payload": "##", "more": "$total" });
    let odd: Vec<Bson> = vec![
        Bson::Null,
        Bson::Undefined,
        Bson::from(vec![doc! { "id": ids[0] }]),
        Bson::from(vec![Bson::from(1), Bson::from("$total")]),
        doc! { "id": Binary { subtype: BinarySubtype::Generic, bytes: ids[0].bytes().to_vec() } }.into(),
        doc! { "id": [ids[8]], "type": "t" }.into(),
        doc! { "n": f64::NAN, "z": -0.0, "s": Bson::Symbol("s".into()), "$x": { "$add": [1, 2] } }.into(),
        entry(Uuid::new(), doc! { "key": 5, "unknown": { "a": [] } }).into(),
    ];
    let mut elements: Vec<Bson> = vec![
        entry(ids[1], doc! { "attempts": 3, "available_at": DateTime::MAX, "last_error": "e" }).into(),
        entry(ids[2], doc! { "claimed_by": "p/1", "available_at": DateTime::MAX }).into(),
        entry(ids[3], doc! { "claimed_by": "p/1", "available_at": past }).into(),
        entry(ids[4], doc! { "dead_at": past, "dead_reason": "permanent" }).into(),
        entry(ids[5], doc! { "delivered_to": ["a"] }).into(),
        // One message that was pushed twice, and two messages with the same id.
        entry(ids[6], doc! {}).into(),
        entry(ids[6], doc! { "created_at": past }).into(),
        entry(ids[7], doc! {}).into(),
        entry(ids[7], doc! { "payload": 2 }).into(),
        damaged.into(),
    ];
    elements.extend(odd);
    test.insert_damaged(doc! { "_id": "o-1", "total": 1i64, "outbox": elements }).await;
    let before = raw_outbox(&test).await;

    let receipt =
        change(&orders, "o-1", |order| ids.iter().for_each(|id| order.outbox.cancel(as_uuid(*id)))).await;
    let outcomes: Vec<_> = ids.iter().map(|id| receipt.revision(as_uuid(*id)).unwrap()).collect();
    use RevisionOutcome::*;
    // Elements with the first and the last id are only hidden in arrays, or have another binary type.
    let expected = [NotThere, Cancelled, TooLate, TooLate, Dead, TooLate, Cancelled, Unreadable, NotThere];
    assert_eq!(outcomes, expected);

    let mut expected = before;
    for gone in [6, 5, 0] {
        expected.remove(gone);
    }
    assert_eq!(raw_outbox(&test).await, expected);
    test.drop().await;
}

/// The bytes of each element of the stored outbox.
async fn raw_outbox(test: &TestDatabase) -> Vec<Vec<u8>> {
    let orders = test.orders().clone_with_type::<RawDocumentBuf>();
    let stored = orders.find_one(doc! { "_id": "o-1" }).await.unwrap().unwrap();
    let outbox = stored.get_array("outbox").unwrap().as_bytes();
    // Skip the length of the array. Each element has a type, its place as text, and a value.
    let mut elements = Vec::new();
    let mut rest = &outbox[4..outbox.len() - 1];
    while !rest.is_empty() {
        let kind = rest[0];
        let name = rest[1..].iter().position(|byte| *byte == 0).unwrap();
        let value = &rest[name + 2..];
        let length = match kind {
            0x03 | 0x04 => i32::from_le_bytes(value[..4].try_into().unwrap()) as usize,
            _ => 0,
        };
        elements.push([&[kind], &value[..length]].concat());
        rest = &value[length..];
    }
    elements
}

#[tokio::test]
async fn a_rescheduled_message_is_due_at_its_new_time() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    let id = insert_scheduled(&orders, "o-1").await;
    let before = test.outbox("o-1").await.remove(0);

    let at = DateTime::from_system_time(SystemTime::now() + 9 * DAY);
    let receipt = change(&orders, "o-1", |order| order.outbox.reschedule(id, at)).await;
    assert_eq!(receipt.revision(id), Some(RevisionOutcome::Rescheduled));
    assert_eq!(receipt.dispatch, Dispatch::Nothing);
    let mut expected = before;
    expected.insert("available_at", at);
    assert_eq!(test.outbox("o-1").await, [expected]);

    let receipt = change(&orders, "o-1", |order| order.outbox.reschedule(id, Due::Now)).await;
    assert_eq!(receipt.revision(id), Some(RevisionOutcome::Rescheduled));
    assert_eq!(receipt.dispatch, Dispatch::Settled(vec![(id, Disposition::Delivered)]));
    assert_eq!(recorder.amounts(), [1]);
    test.drop().await;
}

#[tokio::test]
async fn only_the_latest_message_of_a_key_is_kept() {
    let test = TestDatabase::create().await;
    let inline = InlineDispatcher::builder(&test.client).deliver_to(Recorder::default());
    let orders = test.store(&inline);
    let mut order = Order::new("o-1");
    order.outbox.send_keyed(Added { amount: 1 }, "a").when(DAY);
    order.outbox.send_keyed(Added { amount: 2 }, "b").when(DAY);
    order.outbox.send_after(Added { amount: 3 }, DAY);
    let sent = insert(&orders, order).await.messages;

    let receipt = change(&orders, "o-1", |order| {
        order.outbox.send_keyed(Added { amount: 4 }, "a").when(DAY);
    })
    .await;
    assert_eq!(receipt.revision(sent[0]), Some(RevisionOutcome::Replaced));
    let kept: Vec<_> = test.outbox("o-1").await.iter().map(|entry| (id_of(entry), key_of(entry))).collect();
    let expected = [(sent[1], Some("b".into())), (sent[2], None), (receipt.messages[0], Some("a".into()))];
    assert_eq!(kept, expected);
    inline.close(LONG).await;
    test.drop().await;
}

fn id_of(entry: &Document) -> uuid::Uuid {
    match entry.get("id") {
        Some(Bson::Binary(id)) => as_uuid(id.to_uuid().unwrap()),
        other => panic!("{other:?}"),
    }
}

fn key_of(entry: &Document) -> Option<String> {
    entry.get_str("key").ok().map(str::to_owned)
}

#[tokio::test]
async fn a_claimed_message_of_a_key_arrives_too() {
    let test = TestDatabase::create().await;
    let recorder = Recorder::held();
    let inline = InlineDispatcher::builder(&test.client).deliver_to(recorder.clone());
    let orders = test.store(&inline);
    let mut order = Order::new("o-1");
    order.outbox.send_keyed(Added { amount: 1 }, "a");
    let first = insert(&orders, order).await.messages[0];
    recorder.wait_tried(1).await;

    let receipt = change(&orders, "o-1", |order| {
        order.outbox.send_keyed(Added { amount: 2 }, "a");
    })
    .await;
    assert_eq!(receipt.revision(first), Some(RevisionOutcome::TooLate));
    recorder.let_through(2);
    recorder.wait_delivered(2).await;
    inline.close(LONG).await;
    assert_eq!(recorder.amounts(), [1, 2]);
    test.drop().await;
}

/// An aggregate whose data could be taken for expressions.
#[derive(Debug, Serialize, Deserialize)]
struct Bag {
    #[serde(rename = "_id")]
    id: String,
    data: Bson,
    more: Option<Bson>,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Bag {
    type Id = String;

    fn id(&self) -> &String {
        &self.id
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Any(Bson);

impl Message for Any {
    const TYPE: &'static str = "any";
}

/// A save with a cancel stores the same fields and messages as a save without one.
#[tokio::test]
async fn texts_that_begin_with_a_dollar_are_stored_unchanged() {
    let test = TestDatabase::create().await;
    let bags =
        Store::<Bag>::new(test.database.collection::<Bag>("orders"), &InlineDispatcher::off(&test.client));
    let data = Bson::from(doc! {
        "text": "$total", "twice": "$$ROOT", "remove": "$$REMOVE", "nested": { "list": ["$a", { "b": "$c" }] },
        "operators": { "$add": [1, 2], "$literal": 3, "$function": "f" }, "n": f64::NAN, "z": -0.0, "i": 1, "l": 1i64,
        "u": Uuid::new(), "d": DateTime::MAX, "e": {}, "f": [],
    });
    for (id, cancels) in [("plain", false), ("cancels", true)] {
        let mut bag =
            Bag { id: id.into(), data: Bson::Null, more: Some(1.into()), outbox: Outbox::default() };
        let first = bag.outbox.send_after(Any(Bson::Null), DAY).id();
        let (mut bag, _) = bags.insert(bag).await.unwrap().applied().unwrap();
        bag.data = data.clone();
        bag.more = None;
        bag.outbox.send_after(Any(data.clone()), DAY).header("$add", "$total");
        if cancels {
            bag.outbox.cancel(first);
        }
        let receipt = bags.save(&mut bag).await.unwrap().applied().unwrap().unwrap();
        assert_eq!(receipt.revision(first), cancels.then_some(RevisionOutcome::Cancelled));
    }

    let (plain, cancels) = (test.stored("plain").await, test.stored("cancels").await);
    for field in ["data", "more"] {
        let bytes = |stored: &Document| {
            let value = stored.get(field).cloned().unwrap_or(Bson::Undefined);
            RawDocumentBuf::try_from(&doc! { "v": value }).unwrap().into_bytes()
        };
        assert_eq!(bytes(&plain), bytes(&cancels), "{field}");
    }
    let (plain, cancels) = (test.outbox("plain").await, test.outbox("cancels").await);
    assert_eq!((plain.len(), cancels.len()), (2, 1));
    for field in ["payload", "headers", "type"] {
        let bytes = |entry: &Document| RawDocumentBuf::try_from(&doc! { "v": entry.get(field) }).unwrap();
        assert_eq!(bytes(&plain[1]), bytes(&cancels[0]), "{field}");
    }
    test.drop().await;
}

#[tokio::test]
async fn a_staged_update_refuses_revisions() {
    let (test, orders) = off().await;
    let id = uuid::Uuid::now_v7();
    let mut cancels = Outbox::default();
    cancels.cancel(id);
    let mut reschedules = Outbox::default();
    reschedules.reschedule(id, DAY);
    let mut replaces = Outbox::default();
    replaces.send_keyed(Added { amount: 1 }, "a");
    for outbox in [&mut cancels, &mut reschedules, &mut replaces] {
        let before = outbox.clone();
        let error = orders.stage(outbox).await.unwrap_err();
        assert!(matches!(error, Error::NotStaged { .. }), "{error}");
        assert_eq!(*outbox, before);
    }
    test.drop().await;
}

#[tokio::test]
async fn an_insert_finds_no_message_to_revise() {
    let (test, orders) = off().await;
    let mut order = Order::new("o-1");
    let id = uuid::Uuid::now_v7();
    order.outbox.cancel(id);
    let receipt = insert(&orders, order).await;
    assert_eq!(receipt.revision(id), Some(RevisionOutcome::NotThere));
    test.drop().await;
}

/// After a conflict, `update` runs the closure again on the document as it is then.
#[tokio::test]
async fn a_conflict_cancels_nothing_until_the_next_try() {
    let (test, orders) = off().await;
    let id = insert_scheduled(&orders, "o-1").await;
    let mut tries = 0;
    let updated = orders.update_async("o-1", |mut order| {
        tries += 1;
        let (first, orders) = (tries == 1, orders.clone());
        async move {
            if first {
                change(&orders, "o-1", |order| order.total = 7).await;
            }
            order.outbox.cancel(id);
            Ok::<_, std::convert::Infallible>(order)
        }
    });
    let receipt = updated.await.unwrap().unwrap().receipt.unwrap();
    assert_eq!((receipt.revision(id), tries), (Some(RevisionOutcome::Cancelled), 2));
    assert_eq!(test.stored("o-1").await.get_i64("total"), Ok(7));

    let id = insert_scheduled(&orders, "o-2").await;
    let mut order = orders.load("o-2").await.unwrap().unwrap();
    change(&orders, "o-2", |order| order.total = 7).await;
    order.outbox.cancel(id);
    assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Conflict));
    assert_eq!(test.outbox("o-2").await.len(), 1);
    assert_eq!(order.outbox.revisions().len(), 1);
    test.drop().await;
}

/// A full outbox takes a message that replaces another one.
#[tokio::test]
async fn replaced_messages_make_room_for_new_ones() {
    let (test, orders) = off().await;
    let mut caps = document_outbox::Caps::default();
    caps.entries = 2;
    let orders = orders.with_caps(caps);
    let mut order = Order::new("o-1");
    order.outbox.send_keyed(Added { amount: 1 }, "a");
    order.outbox.send_keyed(Added { amount: 2 }, "b");
    insert(&orders, order).await;
    change(&orders, "o-1", |order| {
        order.outbox.send_keyed(Added { amount: 3 }, "a");
    })
    .await;
    let mut order = orders.load("o-1").await.unwrap().unwrap();
    order.outbox.send_keyed(Added { amount: 4 }, "c");
    assert!(matches!(orders.save(&mut order).await.unwrap_err(), Error::OutboxFull { held: 2, .. }));
    test.drop().await;
}

/// The messages of a document without room for a claim are delivered under a lease. While another process has the lease,
/// no message is cancelled, and a save that cancels takes the lease itself.
#[tokio::test]
async fn a_large_document_is_revised_under_its_lease() {
    let test = TestDatabase::create().await;
    let state = format!("{}_state", test.database.name());
    let recorder = Recorder::default();
    let inline =
        InlineDispatcher::builder(&test.client).state_database(&state).mode(Mode::Off).deliver_to(recorder);
    let orders = test.store(&inline);
    let id = insert_scheduled(&orders, "o-1").await;
    let fill = "x".repeat((16 << 20) - 1000);
    test.orders().update_one(doc! { "_id": "o-1" }, doc! { "$set": { "fill": fill } }).await.unwrap();

    let leases = test.client.database(&state).collection::<Document>("leases");
    let ns = test.orders().namespace().to_string();
    let another = doc! { "_id": { "ns": ns, "key": { "_id": "o-1" } }, "kind": "oversized", "owner": "p/1", "until": DateTime::MAX };
    leases.insert_one(another).await.unwrap();
    let receipt = change(&orders, "o-1", |order| order.outbox.cancel(id)).await;
    assert_eq!(receipt.revision(id), Some(RevisionOutcome::TooLate));
    assert_eq!(test.outbox("o-1").await.len(), 1);

    // The state that is kept with a free lease counts.
    let dead = doc! { "$set": { "dead": [{ "id": as_bson(id), "dead_at": DateTime::now() }] }, "$unset": { "until": "" } };
    leases.update_one(doc! {}, dead).await.unwrap();
    let receipt = change(&orders, "o-1", |order| order.outbox.cancel(id)).await;
    assert_eq!(receipt.revision(id), Some(RevisionOutcome::Dead));

    leases.update_one(doc! {}, doc! { "$set": { "dead": [] } }).await.unwrap();
    let receipt = change(&orders, "o-1", |order| order.outbox.cancel(id)).await;
    assert_eq!(receipt.revision(id), Some(RevisionOutcome::Cancelled));
    assert_eq!(test.outbox("o-1").await.len(), 0);
    assert_eq!(leases.count_documents(doc! {}).await.unwrap(), 0, "the lease was released");
    test.client.database(&state).drop().await.unwrap();
    test.drop().await;
}

/// After a save whose outcome is unknown, the next one finds out whether the message is still there.
#[cfg(feature = "testing")]
#[tokio::test]
async fn an_unknown_cancel_is_found_out_by_the_next() {
    use document_outbox::testing::{Kit, SaveFault};
    for (fault, expected) in [
        (SaveFault::UnknownWritten, RevisionOutcome::NotThere),
        (SaveFault::UnknownNotWritten, RevisionOutcome::Cancelled),
    ] {
        let kit = Kit::new();
        let orders = kit.store::<Order>("orders");
        let id = insert_scheduled(&orders, "o-1").await;
        let mut order = orders.load("o-1").await.unwrap().unwrap();
        order.outbox.cancel(id);
        kit.fail_next_save(fault);
        assert!(matches!(orders.save(&mut order).await.unwrap(), Saved::Unknown(_)));
        assert_eq!(order.outbox.revisions().len(), 1);
        let receipt = change(&orders, "o-1", |order| order.outbox.cancel(id)).await;
        assert_eq!(receipt.revision(id), Some(expected));
        kit.assert_nothing_left();
    }
}

mod fail_point {
    use super::*;
    use mongodb::{Client, options::ClientOptions};

    /// A store whose updates fail as the test says.
    struct Failing {
        test: TestDatabase,
        name: String,
        orders: Store<Order>,
    }

    impl Failing {
        async fn open() -> Self {
            let test = TestDatabase::create().await;
            let name = format!("revisions-{}", uuid::Uuid::now_v7().simple());
            let mut options = ClientOptions::parse(crate::support::uri("OUTBOX_MONGODB_URI")).await.unwrap();
            options.app_name = Some(name.clone());
            let client = Client::with_options(options).unwrap();
            let orders = client.database(test.database.name()).collection::<Document>("orders");
            let orders = Store::new(orders, &InlineDispatcher::off(&client));
            Self { test, name, orders }
        }

        async fn fail(&self, mode: impl Into<Bson>, data: Document) {
            crate::isolation::assert_in("fail_point");
            let mut all = doc! { "failCommands": ["update"], "appName": &self.name };
            all.extend(data);
            let command = doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": all };
            self.test.client.database("admin").run_command(command).await.unwrap();
        }
    }

    /// The server executes the update, but its answer shows only that it is shutting down. The answer to the
    /// repeated command shows that the first one was executed.
    #[tokio::test]
    async fn a_cancel_without_a_clear_answer_is_reported_exactly() {
        let failing = Failing::open().await;
        let id = insert_scheduled(&failing.orders, "o-1").await;
        let concern = doc! { "code": 91, "errmsg": "shutting down" };
        failing.fail(doc! { "times": 2 }, doc! { "writeConcernError": concern }).await;
        let receipt = change(&failing.orders, "o-1", |order| {
            order.outbox.cancel(id);
            order.add(2);
        })
        .await;
        assert_eq!(receipt.revision(id), Some(RevisionOutcome::Cancelled));
        let outbox = failing.test.outbox("o-1").await;
        assert_eq!((outbox.len(), id_of(&outbox[0])), (1, receipt.messages[0]));
        failing.test.drop().await;
    }

    /// Simulates a server that knows no updates with pipelines.
    #[tokio::test]
    async fn a_server_that_refuses_pipelines_changes_nothing() {
        let failing = Failing::open().await;
        let id = insert_scheduled(&failing.orders, "o-1").await;
        let before = failing.test.stored("o-1").await;
        failing.fail("alwaysOn", doc! { "errorCode": 9 }).await;
        let mut order = failing.orders.load("o-1").await.unwrap().unwrap();
        order.outbox.cancel(id);
        order.add(2);
        let refused = failing.orders.save(&mut order).await.unwrap_err();
        failing.fail("off", doc! {}).await;
        assert!(matches!(refused, Error::Refused(_)), "{refused}");
        assert_eq!(failing.test.stored("o-1").await, before);
        assert_eq!((order.outbox.len(), order.outbox.revisions().len()), (1, 1));
        failing.test.drop().await;
    }
}
