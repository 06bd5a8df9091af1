//! Tests that a worker takes commands, delivers the messages, and leaves the outboxes empty.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine};
use document_outbox::{
    command::{COMMAND_TYPE, MAX_COMMAND_BYTES, ProcessDocumentMessages, Reason},
    deliver::{HandlerError, Handlers, Outcome},
    dispatch::Processed,
    internal::Hold,
};
use mongodb::bson::{Bson, DateTime, RawDocumentBuf, Uuid, doc, oid::ObjectId};
use outbox_dispatcher::{DispatcherEvent, Left, Refusal};

use crate::{
    odd_ids::{self, named, odd_ids, stored, undelivered},
    scene::{Scene, quick_retry, slow_retry},
    support::{Added, Recorder},
};

/// P2 At least once: the command is acknowledged after the messages were delivered and cleared.
#[tokio::test]
async fn a_command_delivers_clears_and_is_acknowledged() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2, 3]).await;
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1, 2, 3]);
    assert!(scene.is_cleared("o-1").await);
    worker.running.stop().await;
    assert!(scene.queue_is_empty().await);
    scene.strike().await;
}

/// A command is a hint: if it is repeated a thousand times, each message is still delivered once.
#[tokio::test]
async fn a_thousand_duplicates_deliver_each_message_once() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2]).await;
    let recorder = Recorder::default();
    let command = ProcessDocumentMessages::new(scene.document("o-1"), Reason::Sweep);
    assert!(scene.commands.send(vec![command; 1_000]).await.iter().all(Result::is_ok));
    let mut worker = scene.start(recorder.clone());
    let mut settled = 0;
    while settled < 1_000 {
        settled += worker
            .wait(|event| match event {
                DispatcherEvent::Finished { .. } | DispatcherEvent::Coalesced { .. } => Some(1),
                _ => None,
            })
            .await;
    }
    assert_eq!(recorder.amounts(), [1, 2]);
    worker.running.stop().await;
    assert!(scene.queue_is_empty().await);
    scene.strike().await;
}

#[tokio::test]
async fn bad_commands_are_refused_and_good_ones_processed() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    let good = ProcessDocumentMessages::new(scene.document("o-1"), Reason::Stream).to_json();
    let elsewhere = br#"{"database":"other","collection":"c","document_key":{"_id":1},"reason":"stream"}"#;
    let bad: Vec<(Option<&str>, Vec<u8>)> = vec![
        (Some(COMMAND_TYPE), b"not json".to_vec()),
        (Some(COMMAND_TYPE), vec![b'x'; MAX_COMMAND_BYTES + 1]),
        (Some(COMMAND_TYPE), elsewhere.to_vec()),
        (Some("SomethingElse"), good),
    ];
    for (message_type, body) in bad {
        scene.publish_raw(message_type, body).await;
        let refusal = worker
            .wait(|event| match event {
                DispatcherEvent::Refused { refusal } => Some(refusal.clone()),
                _ => None,
            })
            .await;
        let fits = match message_type {
            Some(COMMAND_TYPE) => !matches!(refusal, Refusal::WrongType),
            _ => matches!(refusal, Refusal::WrongType),
        };
        assert!(fits, "{refusal}");
    }
    assert!(recorder.delivered().is_empty());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    worker.running.stop().await;
    assert!(scene.queue_is_empty().await, "the refused command was not requeued");
    scene.strike().await;
}

/// A command names one document by its key. A key that would select other documents in a query is refused, or
/// selects none.
#[tokio::test]
async fn a_forged_key_reaches_no_other_document() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    let forged = [
        doc! { "_id": { "$ne": 0 } },
        doc! { "_id": { "$gt": "" } },
        doc! { "_id": { "$regex": "^o" } },
        doc! { "_id": { "$in": ["o-1"] } },
        doc! { "_id": mongodb::bson::Regex { pattern: "^o".into(), options: String::new() } },
        doc! { "_id": ["o-1"] },
        doc! { "_id": "o-2", "$or": [{ "_id": "o-1" }] },
        doc! { "_id": "o-2", "$where": "true" },
        doc! { "_id": "o-2", "outbox": { "$exists": true } },
        doc! { "$or": [{ "_id": "o-1" }] },
    ];
    for key in forged {
        for field in ["key", "document_key"] {
            let written = match field {
                "key" => BASE64_STANDARD.encode(RawDocumentBuf::try_from(&key).unwrap().as_bytes()).into(),
                _ => Bson::from(key.clone()).into_canonical_extjson(),
            };
            let namespace = scene.document("o-1").namespace;
            let command = serde_json::json!({
                "database": namespace.db, "collection": namespace.coll, "reason": "sweep", field: written,
            });
            scene.publish_raw(Some(COMMAND_TYPE), command.to_string().into_bytes()).await;
            let end = worker
                .wait(|event| match event {
                    DispatcherEvent::Refused { .. } => Some(None),
                    DispatcherEvent::Finished { processed, .. } => Some(Some(*processed)),
                    _ => None,
                })
                .await;
            assert!(matches!(end, None | Some(Processed::Gone)), "{command}: {end:?}");
        }
    }
    assert!(recorder.delivered().is_empty());
    worker.running.stop().await;
    scene.strike().await;
}

#[tokio::test]
async fn documents_of_other_writers_are_processed() {
    let scene = Scene::set().await;
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    let ids: Vec<Bson> = vec![
        ObjectId::new().into(),
        Uuid::new().into(),
        "a\"b$c.d ☃ {\"$oid\": 1}\n".into(),
        Bson::Int64(1 << 60),
        Bson::Double(0.5),
        doc! { "tenant": 7, "nested": { "a": ["b"] } }.into(),
        DateTime::from_millis(-1).into(),
        true.into(),
    ];
    for id in &ids {
        let entry = doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 } };
        let document = doc! { "_id": id.clone(), "outbox": [entry] };
        scene.test.orders().insert_one(document).await.unwrap();
        scene.command(id.clone()).await;
        assert_eq!(worker.finished().await, Processed::Done, "{id:?}");
        assert!(scene.is_cleared(id.clone()).await, "{id:?}");
    }
    assert_eq!(recorder.delivered().len(), ids.len());
    scene.command("not there").await;
    assert_eq!(worker.finished().await, Processed::Gone);
    worker.running.stop().await;
    scene.strike().await;
}

/// P2 At least once: whatever names, types or bytes are in an `_id`, the document's message is claimed, fails
/// once, and is then delivered and cleared.
#[tokio::test]
async fn every_id_that_the_server_stores_is_processed() {
    let scene = Scene::set().await;
    let (orders, ids) = (scene.test.orders(), odd_ids());
    let entry = || doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 } };
    let documents: Vec<_> = ids.iter().map(|(_, id)| stored(id, vec![entry()])).collect();
    odd_ids::insert(&orders, &documents).await;
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("once".into())]);
    let mut worker = scene.start(recorder.clone());
    for (name, id) in &ids {
        let command = ProcessDocumentMessages::new(named(&orders.namespace(), id), Reason::Sweep);
        assert_eq!(scene.commands.send(vec![command]).await, [Ok(())], "{name}");
        assert_eq!(worker.finished().await, Processed::Done, "{name}");
    }
    assert_eq!(undelivered(&orders).await, 0);
    assert_eq!(recorder.delivered().len(), ids.len());
    worker.running.stop().await;
    scene.strike().await;
}

/// `keep_within` counts from when a command was taken, including the wait for another command of its
/// document.
#[tokio::test]
async fn the_wait_for_a_turn_counts_as_keeping() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let recorder = Recorder::held();
    let mut settings = scene.settings();
    settings.keep_within = Duration::from_millis(300);
    let mut worker = scene.start_with(recorder.clone(), quick_retry(), settings);
    scene.command("o-1").await;
    recorder.wait_tried(1).await;
    scene.command("o-1").await;
    // The first command cannot end before its delivery ends.
    assert_eq!(worker.left().await, Left::TookTooLong);
    assert_eq!(recorder.wait_tried(1).await.len(), 1);
    recorder.let_through(1);
    assert_eq!(worker.finished().await, Processed::Done);
    worker.running.stop().await;
    scene.strike().await;
}

/// P3 (b), P5: if the holder of a claim dies, another worker takes the claim over once it has expired, and
/// not before.
#[tokio::test]
async fn a_claim_is_taken_over_once_it_expires() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let claim = |at: i64| doc! { "$set": { "outbox.0.claimed_by": "gone/1", "outbox.0.available_at": DateTime::from_millis(at) } };
    let orders = scene.test.orders();
    orders
        .update_one(doc! { "_id": "o-1" }, claim(DateTime::now().timestamp_millis() + 600_000))
        .await
        .unwrap();
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert!(matches!(worker.left().await, Left::Held(Hold::Claimed(_))));
    assert!(recorder.delivered().is_empty());
    // The claim expires while the worker still keeps the command, so no second command is needed.
    orders.update_one(doc! { "_id": "o-1" }, claim(DateTime::now().timestamp_millis() + 500)).await.unwrap();
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1]);
    worker.running.stop().await;
    scene.strike().await;
}

/// P4: a document's first message that fails is retried before the later messages, while the command is kept.
/// Other documents continue.
#[tokio::test]
async fn a_failing_head_is_retried_in_order() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2]).await;
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("one".into()), Outcome::Transient("two".into())]);
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1, 2]);
    assert_eq!(recorder.wait_tried(4).await.len(), 4);
    worker.running.stop().await;
    scene.strike().await;
}

#[tokio::test]
async fn a_late_head_blocks_only_its_own_document() {
    let scene = Scene::set().await;
    scene.place("stuck", [1, 2]).await;
    scene.place("other", [3]).await;
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("no".into())]);
    let mut worker = scene.start_with(recorder.clone(), slow_retry(), scene.settings());
    scene.command("stuck").await;
    assert!(matches!(worker.left().await, Left::Held(Hold::Retrying(_))));
    scene.command("other").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [3]);
    let outbox = scene.test.outbox("stuck").await;
    assert_eq!((outbox[0].get_i32("attempts"), outbox[0].get_i32("claims")), (Ok(1), Ok(1)));
    assert_eq!(outbox[1].get_i32("claims"), Ok(0), "released, and so not counted");
    worker.running.stop().await;
    scene.strike().await;
}

#[tokio::test]
async fn an_unordered_failing_message_blocks_no_other() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2, 3]).await;
    let recorder = Recorder::default();
    recorder.answer([Outcome::Transient("no".into())]);
    let mut settings = scene.settings();
    settings.unordered = settings.watch.clone();
    let mut worker = scene.start_with(recorder.clone(), slow_retry(), settings);
    scene.command("o-1").await;
    assert!(matches!(worker.left().await, Left::Held(Hold::Retrying(_))));
    assert_eq!(recorder.amounts(), [2, 3]);
    worker.running.stop().await;
    scene.strike().await;
}

/// P2: a dead message is visible and never lost.
#[tokio::test]
async fn exhausted_and_permanent_failures_become_dead_entries() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2, 3]).await;
    let recorder = Recorder::default();
    recorder
        .answer((0..4).map(|_| Outcome::Transient("no".into())).chain([Outcome::Permanent("never".into())]));
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [3]);
    let outbox = scene.test.outbox("o-1").await;
    let reasons: Vec<_> = outbox.iter().map(|entry| entry.get_str("dead_reason").unwrap()).collect();
    assert_eq!(reasons, ["attempts_exhausted", "permanent"]);
    assert!(outbox.iter().all(|entry| entry.contains_key("dead_at") && !entry.contains_key("available_at")));
    worker.running.stop().await;
    scene.strike().await;
}

/// An unavailable deliverer costs no attempt: the command is kept until it is available.
#[tokio::test]
async fn a_command_is_kept_while_delivery_is_unavailable() {
    let scene = Scene::set().await;
    scene.place("o-1", [1]).await;
    let recorder = Recorder::default();
    recorder.set_available(false);
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    worker
        .wait(|event| matches!(event, DispatcherEvent::Kept { why: Left::Unavailable, .. }).then_some(()))
        .await;
    assert_eq!(scene.test.outbox("o-1").await[0].get("claims"), None, "no entry was claimed");
    recorder.set_available(true);
    assert_eq!(worker.finished().await, Processed::Done);
    worker.running.stop().await;
    scene.strike().await;
}

/// A cancelled attempt is not a failure, and an unfinished command goes to the next worker.
#[tokio::test]
async fn the_next_worker_continues_after_a_stop() {
    let scene = Scene::set().await;
    scene.place("o-1", [1, 2, 3]).await;
    let recorder = Recorder::held();
    let mut settings = scene.settings();
    settings.grace = Duration::from_secs(5);
    let worker = scene.start_with(recorder.clone(), quick_retry(), settings);
    scene.command("o-1").await;
    recorder.wait_tried(1).await;
    let mut stop = Box::pin(worker.running.stop());
    // For four fifths of the grace period, the delivery keeps its claim. Then messages whose delivery has
    // not begun are released.
    assert!(tokio::time::timeout(Duration::from_millis(4_400), &mut stop).await.is_err());
    recorder.let_through(1);
    stop.await;
    let outbox = scene.test.outbox("o-1").await;
    assert_eq!(outbox.len(), 2);
    for entry in outbox {
        assert_eq!(
            (entry.get("claimed_by"), entry.get("attempts"), entry.get_i32("claims")),
            (None, None, Ok(0))
        );
    }
    let next = Recorder::default();
    let mut worker = scene.start(next.clone());
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(next.amounts(), [2, 3]);
    worker.running.stop().await;
    scene.strike().await;
}

/// A dispatcher that can't serve an entry's `via` skips the entry, so it is never delivered to the wrong
/// destination.
#[tokio::test]
async fn a_broker_worker_leaves_entries_for_handlers_alone() {
    let scene = Scene::set().await;
    let entry =
        doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 }, "via": "handlers" };
    scene.test.orders().insert_one(doc! { "_id": "o-1", "outbox": [entry.clone()] }).await.unwrap();
    let recorder = Recorder::default();
    let mut worker = scene.start(recorder.clone());
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Held(Hold::NotMine));
    assert_eq!(scene.test.outbox("o-1").await, [entry]);
    assert!(recorder.delivered().is_empty());
    worker.running.stop().await;
    scene.strike().await;
}

/// Handlers are isolated, also over several processes: a failing handler neither stops the other handlers nor
/// makes them run again.
#[tokio::test]
async fn a_handler_is_not_repeated_for_anothers_failure() {
    let scene = Scene::set().await;
    let entry =
        doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 1i64 }, "via": "handlers" };
    scene.test.orders().insert_one(doc! { "_id": "o-1", "outbox": [entry] }).await.unwrap();
    let (good, bad) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (good_calls, bad_calls) = (good.clone(), bad.clone());
    let handlers = Handlers::builder()
        .on("good", move |_: Added, _| {
            good_calls.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        })
        .on("bad", move |_: Added, _| {
            let calls = bad_calls.fetch_add(1, Ordering::SeqCst);
            async move { if calls < 2 { Err(HandlerError::transient("not yet")) } else { Ok(()) } }
        })
        .build()
        .unwrap();
    let mut worker = scene.start(handlers);
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!((good.load(Ordering::SeqCst), bad.load(Ordering::SeqCst)), (1, 3));
    assert!(scene.is_cleared("o-1").await);
    worker.running.stop().await;
    scene.strike().await;
}
