//! Tests the updates that operators make by hand. The updates run on the real server exactly as docs/operations.md and
//! docs/using.md give them.

use std::sync::Arc;

use crate::support::{Order, Recorder, TestDatabase};
use document_outbox::{
    DeliveryOrder, DocumentRef, InlineDispatcher, Mode, RetryPolicy,
    deliver::Outcome,
    dispatch::{Processed, Processor, ProcessorSettings},
    store::Inserted,
};
use mongodb::bson::{Bson, Document, Uuid, doc};
use tokio_util::sync::CancellationToken;

/// Saves `o-1` with two messages, of which the first dies and the second is delivered.
async fn with_a_dead_message(test: &TestDatabase) -> Bson {
    let recorder = Recorder::default();
    recorder.answer([Outcome::Permanent("no".into())]);
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let mut order = Order::new("o-1");
    order.add(1);
    order.add(2);
    let inserted = test.store(&inline).insert(order).await.unwrap();
    assert!(matches!(inserted, Inserted::Applied(..)));
    assert_eq!(recorder.amounts(), [2], "the dead message no longer blocks");
    let outbox = test.outbox("o-1").await;
    assert!(outbox[0].contains_key("dead_at"));
    outbox[0].get("id").unwrap().clone()
}

async fn work_off(test: &TestDatabase, recorder: &Recorder) -> Processed {
    let settings = ProcessorSettings::default().with(|settings| settings.retry = RetryPolicy::default());
    let worker = Processor::new(test.client.clone(), Arc::new(recorder.clone()), settings);
    let document = DocumentRef::by_id(test.orders().namespace(), "o-1");
    let stop = CancellationToken::new();
    worker.process(&document, DeliveryOrder::Ordered, &stop).await.unwrap()
}

fn revive() -> Document {
    doc! {
        "$currentDate": { "outbox.$[e].available_at": true },
        "$set": { "outbox.$[e].attempts": 0, "outbox.$[e].claims": 0 },
        "$unset": { "outbox.$[e].dead_at": "", "outbox.$[e].dead_reason": "", "outbox.$[e].last_error": "" },
    }
}

/// P3 (c): an operator's replay delivers a message again.
#[tokio::test]
async fn the_documented_replay_delivers_a_dead_message_once() {
    let test = TestDatabase::create().await;
    let id = with_a_dead_message(&test).await;
    let replay = async || {
        let dead =
            doc! { "_id": "o-1", "outbox": { "$elemMatch": { "id": &id, "dead_at": { "$exists": true } } } };
        let filters = vec![doc! { "e.id": &id, "e.dead_at": { "$exists": true } }];
        let orders = test.orders();
        let update = orders.update_one(dead, revive()).array_filters(filters);
        update.await.unwrap().matched_count
    };
    assert_eq!(replay().await, 1);
    assert_eq!(replay().await, 0, "repeated, it matches nothing");

    let recorder = Recorder::default();
    assert_eq!(work_off(&test, &recorder).await, Processed::Done);
    let delivered = recorder.delivered();
    assert_eq!(recorder.amounts(), [1]);
    let again = mongodb::bson::Uuid::from_bytes(delivered[0].id.into_bytes());
    assert_eq!((Bson::from(again), delivered[0].attempts), (id, 0), "the same id, without earlier attempts");
    assert!(test.outbox("o-1").await.is_empty());
    test.drop().await;
}

#[tokio::test]
async fn replay_selects_dead_messages_by_type_and_reason() {
    let test = TestDatabase::create().await;
    with_a_dead_message(&test).await;
    let junk = doc! { "$push": { "outbox": { "$each": [7, { "id": 7, "type": "order.added" }, Bson::Null], "$position": 0 } } };
    test.orders().update_one(doc! { "_id": "o-1" }, junk).await.unwrap();
    let which = |reason: &str| doc! { "type": "order.added", "dead_reason": reason, "dead_at": { "$gte": mongodb::bson::DateTime::from_millis(0) } };
    let replay = async |reason: &str| {
        let orders = test.orders();
        let of_entry = |prefix: &str| -> Document {
            which(reason).into_iter().map(|(name, value)| (format!("{prefix}.{name}"), value)).collect()
        };
        let copy = [
            doc! { "$match": { "outbox": { "$elemMatch": which(reason) } } },
            doc! { "$unwind": "$outbox" },
            doc! { "$match": of_entry("outbox") },
            doc! { "$project": { "_id": { "id": "$outbox.id", "dead_at": "$outbox.dead_at" },
            "collection": { "$literal": "shop.orders" }, "document": "$_id", "entry": "$outbox",
            "replayed_at": "$$NOW", "by": { "$literal": "your name, the ticket" } } },
            doc! { "$merge": {
                "into": { "db": test.database.name(), "coll": "replayed" }, "whenMatched": "keepExisting",
            } },
        ];
        orders.aggregate(copy).await.unwrap();

        let mut batch = Vec::new();
        let mut found = orders
            .find(doc! { "outbox": { "$elemMatch": which(reason) } })
            .projection(doc! { "_id": 1 })
            .await
            .unwrap();
        while found.advance().await.unwrap() {
            batch.push(found.deserialize_current().unwrap().get("_id").unwrap().clone());
        }
        let update =
            orders.update_many(doc! { "_id": { "$in": batch } }, revive()).array_filters(vec![of_entry("e")]);
        update.await.unwrap().modified_count
    };
    assert_eq!(replay("attempts_exhausted").await, 0, "it died for another reason");
    assert_eq!(replay("permanent").await, 1);
    let replayed = test.database.collection::<Document>("replayed").find_one(doc! {}).await.unwrap().unwrap();
    let copied = replayed.get_document("entry").unwrap();
    assert!(copied.contains_key("last_error") && copied.contains_key("dead_at"), "{copied}");

    let recorder = Recorder::default();
    assert_eq!(work_off(&test, &recorder).await, Processed::Done);
    assert_eq!(recorder.amounts(), [1]);
    assert_eq!(test.stored("o-1").await.get_array("outbox").unwrap().len(), 3, "the junk stays");
    test.drop().await;
}

/// P2: a message leaves an outbox only by a confirmed delivery or by an operator's hand, which removes only dead
/// messages.
#[tokio::test]
async fn the_documented_discard_copies_and_removes_only_dead() {
    let test = TestDatabase::create().await;
    let id = with_a_dead_message(&test).await;
    let living = Uuid::new();
    let push =
        doc! { "$push": { "outbox": { "id": living, "type": "order.added", "payload": { "amount": 3 } } } };
    test.orders().update_one(doc! { "_id": "o-1" }, push).await.unwrap();
    let discard = async |id: &Bson| {
        let copy = [
            doc! { "$match": { "_id": "o-1", "outbox.id": id } },
            doc! { "$unwind": "$outbox" },
            doc! { "$match": { "outbox.id": id, "outbox.dead_at": { "$exists": true } } },
            doc! { "$project": { "_id": "$outbox.id", "collection": { "$literal": "shop.orders" }, "document": "$_id",
            "entry": "$outbox", "discarded_at": "$$NOW", "by": { "$literal": "your name, the ticket" } } },
            doc! { "$merge": {
                "into": { "db": test.database.name(), "coll": "discarded" }, "whenMatched": "keepExisting",
            } },
        ];
        test.orders().aggregate(copy).await.unwrap();
        let discarded = test.database.collection::<Document>("discarded");
        if discarded.find_one(doc! { "_id": id, "document": "o-1" }).await.unwrap().is_none() {
            return;
        }
        let pull = doc! { "$pull": { "outbox": { "id": id, "dead_at": { "$exists": true } } } };
        test.orders().update_one(doc! { "_id": "o-1" }, pull).await.unwrap();
    };
    discard(&id).await;
    discard(&Bson::from(living)).await;

    let outbox = test.outbox("o-1").await;
    assert_eq!((outbox.len(), outbox[0].get("id")), (1, Some(&Bson::from(living))));
    let discarded = test.database.collection::<Document>("discarded");
    let kept = discarded.find_one(doc! { "_id": &id }).await.unwrap().unwrap();
    assert_eq!(kept.get_str("document"), Ok("o-1"));
    assert_eq!(discarded.count_documents(doc! {}).await.unwrap(), 1);
    test.drop().await;
}

#[tokio::test]
async fn both_foreign_ways_to_send_keep_the_order() {
    let test = TestDatabase::create().await;
    let orders = test.orders();
    orders.insert_one(doc! { "_id": "o-1" }).await.unwrap();
    let minimal = doc! {
        "$set": { "paid": true },
        "$push": { "outbox": { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1 } } },
    };
    orders.update_one(doc! { "_id": "o-1" }, minimal).await.unwrap();
    let dated = vec![doc! { "$set": {
        "paid": true,
        "outbox": { "$concatArrays": [{ "$ifNull": ["$outbox", []] }, [{
            "id": Uuid::new(), "type": "order.added", "payload": { "amount": 2 },
            "created_at": "$$NOW", "available_at": "$$NOW",
        }]] },
    } }];
    orders.update_one(doc! { "_id": "o-1" }, dated).await.unwrap();

    let recorder = Recorder::default();
    assert_eq!(work_off(&test, &recorder).await, Processed::Done);
    assert_eq!(recorder.amounts(), [1, 2]);
    test.drop().await;
}
