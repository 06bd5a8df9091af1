//! Tests acts on servers that refuse or fail, and on messages that a process may still deliver.

use std::sync::{Arc, Mutex};

use mongodb::{
    bson::{Document, doc},
    event::command::CommandEvent,
};
use outbox_operate::{
    OperateError,
    act::{Act, ActOutcome},
};

use crate::{
    act::{audit, author, execute, operator_with, outbox, request},
    scene::{Scene, entry, id_of, new_id},
};

/// The server refuses every document that does not meet this condition.
async fn demand(database: &mongodb::Database, collection: &str, condition: Document) {
    let exists = database.list_collection_names().await.unwrap().contains(&collection.to_owned());
    if !exists {
        database.create_collection(collection).await.unwrap();
    }
    database.run_command(doc! { "collMod": collection, "validator": condition }).await.unwrap();
}

#[tokio::test]
async fn the_rest_is_left_after_five_failures() {
    let scene = Scene::new().await;
    for number in 0..60 {
        scene.insert(number, vec![scene.dead("permanent", "no")]).await;
    }
    demand(&scene.database, "orders", doc! { "outbox.replayed_at": { "$exists": false } }).await;
    let (sum, acted) = execute(&scene, Act::Replay, "state:dead").await;
    assert_eq!((sum.done, sum.failed, sum.left), (0, 5, 55), "{sum:?}");
    assert_eq!(acted.len(), 5);
    let records = audit(&scene).await;
    let results: Vec<&str> = records.iter().map(|record| record.result.as_deref().unwrap()).collect();
    assert_eq!(results[..5], ["failed"; 5]);
    assert_eq!(results[5..], ["not_done"; 45], "an intent that was not tried has an outcome");
    scene.drop().await;
}

#[tokio::test]
async fn what_was_done_is_reported_before_an_error() {
    let scene = Scene::new().await;
    for number in 0..60 {
        scene.insert(number, vec![scene.dead("permanent", "no")]).await;
    }
    demand(&scene.state(), "audit", doc! { "kind": { "$ne": "outcome" } }).await;
    let (sum, acted) = execute(&scene, Act::Replay, "state:dead").await;
    assert_eq!((sum.done, sum.left, acted.len()), (50, 10, 50), "{sum:?}");
    assert!(sum.error.as_ref().is_some_and(|error| error.contains("the audit trail")), "{sum:?}");
    assert_eq!(scene.list("state:dead").await.rows.len(), 10);

    demand(&scene.state(), "audit", doc! { "kind": "nothing" }).await;
    let refused = scene.operator.execute(&request(Act::Replay, "state:dead"), author(), |_| {}).await;
    assert!(matches!(refused, Err(OperateError::MongoDb { .. })), "{refused:?}");
    assert_eq!(scene.list("state:dead").await.rows.len(), 10, "without an intent there is no act");
    scene.drop().await;
}

#[tokio::test]
async fn an_unknown_id_keeps_all_from_being_restored() {
    let scene = Scene::new().await;
    let dead = scene.dead("permanent", "no");
    let id = id_of(&dead);
    scene.insert("o-1", vec![dead]).await;
    execute(&scene, Act::Discard, "state:dead").await;
    let refused = scene.operator.restore(&[id, new_id()], author(), |_| {}).await;
    assert!(matches!(refused, Err(OperateError::NotFound(_))), "{refused:?}");
    assert!(outbox(&scene, "o-1").await.is_empty());
    scene.drop().await;
}

/// Without a majority, an act would wait forever.
#[tokio::test]
async fn every_write_waits_for_a_limited_time() {
    let scene = Scene::new().await;
    let dead = scene.dead("permanent", "no");
    let id = id_of(&dead);
    scene.insert("o-1", vec![dead]).await;
    let writes = Arc::new(Mutex::new(Vec::new()));
    let seen = writes.clone();
    let operator = operator_with(&scene, move |event| {
        let CommandEvent::Started(started) = event else { return };
        if ["insert", "update"].contains(&started.command_name.as_str()) {
            seen.lock().unwrap().push(started.command);
        }
    })
    .await;
    operator.execute(&request(Act::Discard, "state:dead"), author(), |_| {}).await.unwrap();
    operator.restore(&[id], author(), |_| {}).await.unwrap();
    operator.execute(&request(Act::Replay, "state:dead"), author(), |_| {}).await.unwrap();

    let writes = writes.lock().unwrap().clone();
    assert_eq!(writes.len(), 10);
    for write in &writes {
        let concern = write.get_document("writeConcern").unwrap();
        assert_eq!(concern.get_str("w"), Ok("majority"), "{write}");
        assert!(concern.get("wtimeout").is_some(), "{write}");
    }
    scene.drop().await;
}

/// The holder of a claim may work on after its end.
#[tokio::test]
async fn a_message_whose_claim_has_ended_is_not_killed() {
    let scene = Scene::new().await;
    let ended = entry("a", doc! { "available_at": scene.at(-1), "claimed_by": "worker/1", "claims": 1 });
    scene.insert("o-1", vec![ended.clone()]).await;
    let preview = scene.operator.preview(&request(Act::Kill, "doc:o-1")).await.unwrap();
    assert_eq!(preview.messages, 0);
    assert!(preview.skipped[0].because.contains("may still deliver it"), "{:?}", preview.skipped);
    assert_eq!(execute(&scene, Act::Kill, "doc:o-1").await.0.done, 0);
    assert_eq!(outbox(&scene, "o-1").await, [ended]);
    scene.drop().await;
}

#[tokio::test]
async fn a_documents_lease_forbids_kills_and_replays() {
    let scene = Scene::new().await;
    let (alive, dead) = (entry("a", doc! {}), scene.dead("permanent", "no"));
    let dead_id = id_of(&dead);
    scene.insert("o-1", vec![alive.clone(), dead.clone()]).await;
    let leases = scene.state().collection::<Document>("leases");
    let id = doc! { "ns": scene.namespace().to_string(), "key": { "_id": "o-1" } };
    let lease = doc! { "_id": id, "kind": "oversized", "owner": "worker/1", "until": scene.at(5) };
    leases.insert_one(lease).await.unwrap();
    let tried = async |act, query: &str| execute(&scene, act, query).await.1.remove(0).outcome;
    let is_refused =
        |outcome: &ActOutcome| outcome.detail().is_some_and(|why| why.contains("no room for a claim"));

    let killed = tried(Act::Kill, "type:a").await;
    assert!(is_refused(&killed), "its holder may deliver the message: {killed:?}");
    let kept =
        doc! { "$unset": { "until": "" }, "$set": { "dead": [{ "id": dead_id, "dead_at": scene.at(-1) }] } };
    leases.update_one(doc! {}, kept).await.unwrap();
    let replayed = tried(Act::Replay, "state:dead").await;
    assert!(is_refused(&replayed), "the lease would make it dead again: {replayed:?}");
    assert_eq!(outbox(&scene, "o-1").await, [alive, dead]);
    assert_eq!(tried(Act::Kill, "type:a").await, ActOutcome::Done, "no process has the lease");
    scene.drop().await;
}
