//! Tests that the archive and the audit trail say only what happened.

use std::sync::{Arc, Mutex};

use mongodb::{
    bson::{Document, Uuid, doc},
    event::command::CommandEvent,
};
use outbox_operate::{
    ReadFrom,
    act::{Act, ActOutcome, Acted, Author, Force},
};

use crate::{
    act::{audit, author, dying_before, execute, meddling, operator_with, outbox, request, results, settle},
    scene::{Scene, entry, id_of},
};

async fn restore(scene: &Scene, id: Uuid, force: Force) -> ActOutcome {
    let mut outcomes = Vec::new();
    let report = |acted: &Acted| outcomes.push(acted.outcome.clone());
    let restored = match force {
        Force::Never => scene.operator.restore(&[id], author(), report).await,
        Force::Accepted => scene.operator.restore_by_force(&[id], author(), report).await,
    };
    restored.unwrap_or_else(|error| panic!("{error}"));
    outcomes.remove(0)
}

fn is_refused(outcome: &ActOutcome, why: &str) -> bool {
    matches!(outcome, ActOutcome::Failed(reason) if reason.contains(why) && reason.contains("--force"))
}

/// An operator that is killed before its write with this number, from 1.
async fn killed(scene: &Scene, number: usize, act: Act, query: &'static str) {
    let dying = dying_before(scene, number).await;
    let killed = tokio::spawn(async move { dying.execute(&request(act, query), author(), |_| {}).await });
    assert!(killed.await.unwrap_err().is_panic());
}

/// A message leaves its outbox, as after a delivery.
async fn deliver(scene: &Scene, id: Uuid) {
    let delivered = doc! { "$pull": { "outbox": { "id": id } } };
    let updated = scene.orders().update_one(doc! { "_id": "o-1" }, delivered).await.unwrap();
    assert_eq!(updated.modified_count, 1);
}

async fn with_dead() -> (Scene, Uuid) {
    let scene = Scene::new().await;
    let dead = scene.dead("permanent", "no");
    let id = id_of(&dead);
    scene.insert("o-1", vec![dead]).await;
    (scene, id)
}

#[tokio::test]
async fn each_discard_adds_a_record_of_its_own() {
    let (scene, id) = with_dead().await;
    execute(&scene, Act::Discard, "state:dead").await;
    let first = scene.operator.archived(10).await.unwrap().remove(0);
    assert_eq!(restore(&scene, id, Force::Never).await, ActOutcome::Done);
    let mut request = request(Act::Discard, "state:dead");
    request.force = Force::Never;
    let bob = Author { name: "bob".into(), ..author() };
    assert_eq!(scene.operator.execute(&request, bob, |_| {}).await.unwrap().done, 1);

    let archived = scene.operator.archived(10).await.unwrap();
    assert_eq!(archived.len(), 2);
    assert!(archived[0].archived_at > first.archived_at, "it is as young as the second discard");
    assert_eq!((archived[0].by.as_str(), archived[1].by.as_str()), ("bob", "alice"));
    assert_eq!(archived[0].objection, None);
    assert!(
        archived[1].objection.as_ref().is_some_and(|why| why.contains("restore by alice")),
        "{archived:?}"
    );
    assert_eq!(restore(&scene, id, Force::Never).await, ActOutcome::Done);
    scene.drop().await;
}

#[tokio::test]
async fn a_delivered_message_is_restored_only_by_force() {
    let (scene, id) = with_dead().await;
    execute(&scene, Act::Discard, "state:dead").await;
    assert_eq!(restore(&scene, id, Force::Never).await, ActOutcome::Done);
    execute(&scene, Act::Replay, "state:dead").await;
    deliver(&scene, id).await;

    let again = restore(&scene, id, Force::Never).await;
    assert!(is_refused(&again, "after its discard (restore by alice"), "{again:?}");
    assert!(outbox(&scene, "o-1").await.is_empty());
    assert_eq!(audit(&scene).await.len(), 3, "a refused restore leaves no record");
    assert_eq!(restore(&scene, id, Force::Accepted).await, ActOutcome::Done);
    scene.drop().await;
}

#[tokio::test]
async fn a_discard_that_ended_early_is_not_restored() {
    let (scene, id) = with_dead().await;
    // The archive has the record, and the message is still in the outbox.
    killed(&scene, 3, Act::Discard, "state:dead").await;
    execute(&scene, Act::Replay, "state:dead").await;
    deliver(&scene, id).await;

    let refused = restore(&scene, id, Force::Never).await;
    assert!(is_refused(&refused, "its discard is not done"), "{refused:?}");
    settle(&scene).await;
    assert_eq!(results(&audit(&scene).await), [("discard", Some("unknown")), ("replay", Some("done"))]);
    let refused = restore(&scene, id, Force::Never).await;
    assert!(is_refused(&refused, "its discard is not done"), "{refused:?}");
    assert!(outbox(&scene, "o-1").await.is_empty());
    scene.drop().await;
}

#[tokio::test]
async fn a_discard_that_missed_its_message_is_not_restored() {
    let (scene, id) = with_dead().await;
    // The message is replayed after it was read for the archive, and before the record is written.
    let operator = meddling(&scene, 2, doc! { "$unset": { "outbox.0.dead_at": "" } }).await;
    let sum = operator.execute(&request(Act::Discard, "state:dead"), author(), |_| {}).await.unwrap();
    assert_eq!((sum.done, sum.changed), (0, 1));
    assert_eq!(scene.operator.archived(10).await.unwrap().len(), 1);
    deliver(&scene, id).await;
    let refused = restore(&scene, id, Force::Never).await;
    assert!(is_refused(&refused, "its discard is not done"), "{refused:?}");
    scene.drop().await;
}

#[tokio::test]
async fn a_restore_passes_over_a_discard_without_effect() {
    let (scene, id) = with_dead().await;
    // Another person removes the message after this discard has selected it.
    let operator = meddling(&scene, 2, doc! { "$set": { "outbox.0.attempts": 11 } }).await;
    operator.execute(&request(Act::Discard, "state:dead"), author(), |_| {}).await.unwrap();
    let late = scene.state().collection::<Document>("archive");
    execute(&scene, Act::Discard, "state:dead").await;
    // Its record is the newest of both.
    late.update_one(doc! { "entry.attempts": 10 }, doc! { "$set": { "archived_at": scene.at(5) } })
        .await
        .unwrap();
    assert_eq!(restore(&scene, id, Force::Never).await, ActOutcome::Done);
    assert_eq!(outbox(&scene, "o-1").await[0].get_i32("attempts"), Ok(11));
    scene.drop().await;
}

#[tokio::test]
async fn the_archive_keeps_the_element_that_was_shown() {
    let scene = Scene::new().await;
    let dead = scene.dead("permanent", "no");
    let id = id_of(&dead);
    // An element whose id is another kind of binary, with the same bytes.
    let mut alike = entry("a", doc! {});
    let bytes = id.bytes().to_vec();
    alike.insert("id", mongodb::bson::Binary { subtype: mongodb::bson::spec::BinarySubtype::Generic, bytes });
    scene.insert("o-1", vec![alike.clone(), dead.clone()]).await;
    let (sum, _) = execute(&scene, Act::Discard, "state:dead").await;
    assert_eq!(sum.done, 1);
    let record = scene.state().collection::<Document>("archive").find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(record.get_document("entry"), Ok(&dead));
    assert_eq!(outbox(&scene, "o-1").await, [alike]);
    scene.drop().await;
}

/// A push that was repeated after the death leaves a second element without the date.
#[tokio::test]
async fn a_discard_removes_a_repeated_element_too() {
    let (scene, id) = with_dead().await;
    let mut repeated = outbox(&scene, "o-1").await.remove(0);
    for name in ["dead_at", "dead_reason", "last_error", "attempts"] {
        repeated.remove(name);
    }
    scene.orders().update_one(doc! { "_id": "o-1" }, doc! { "$push": { "outbox": repeated } }).await.unwrap();
    assert_eq!(execute(&scene, Act::Discard, "state:dead").await.0.done, 1);
    assert!(outbox(&scene, "o-1").await.is_empty(), "no element of it is left to be delivered");
    assert_eq!(restore(&scene, id, Force::Never).await, ActOutcome::Done);
    assert_eq!(outbox(&scene, "o-1").await.len(), 1);
    scene.drop().await;
}

#[tokio::test]
async fn an_archived_entry_that_is_alive_is_not_restored() {
    let (scene, id) = with_dead().await;
    execute(&scene, Act::Discard, "state:dead").await;
    let archive = scene.state().collection::<Document>("archive");
    archive.update_one(doc! {}, doc! { "$unset": { "entry.dead_at": "" } }).await.unwrap();
    let refused = restore(&scene, id, Force::Never).await;
    assert!(is_refused(&refused, "not dead"), "{refused:?}");
    assert!(outbox(&scene, "o-1").await.is_empty());
    scene.drop().await;
}

#[tokio::test]
async fn both_copies_of_a_message_are_restored() {
    let (scene, id) = with_dead().await;
    let copy = outbox(&scene, "o-1").await;
    scene.insert("o-2", copy).await;
    assert_eq!(execute(&scene, Act::Discard, "state:dead").await.0.done, 2);
    for left in [1, 0] {
        assert_eq!(restore(&scene, id, Force::Never).await, ActOutcome::Done);
        let absent = doc! { "outbox": [] };
        assert_eq!(scene.orders().count_documents(absent).await.unwrap(), left);
    }
    scene.drop().await;
}

/// A change by another program or person does not count as the act.
#[tokio::test]
async fn only_evidence_settles_an_act_as_done() {
    let (scene, id) = with_dead().await;
    killed(&scene, 2, Act::Replay, "state:dead").await;
    let bob = Author { name: "bob".into(), ..author() };
    scene.operator.execute(&request(Act::Replay, "state:dead"), bob, |_| {}).await.unwrap();
    settle(&scene).await;
    assert_eq!(results(&audit(&scene).await), [("replay", Some("unknown")), ("replay", Some("done"))]);

    killed(&scene, 2, Act::Kill, "doc:o-1").await;
    deliver(&scene, id).await;
    settle(&scene).await;
    assert_eq!(audit(&scene).await[2].result.as_deref(), Some("unknown"), "it was delivered, not killed");

    scene.orders().delete_many(doc! {}).await.unwrap();
    scene.insert("o-1", vec![entry("a", doc! {})]).await;
    killed(&scene, 3, Act::Kill, "doc:o-1").await;
    settle(&scene).await;
    assert_eq!(audit(&scene).await[3].result.as_deref(), Some("done"), "it is dead by an operator");

    // Somebody replays it without this program.
    killed(&scene, 2, Act::Replay, "doc:o-1").await;
    let by_hand = doc! {
        "$set": { "outbox.0.replayed_at": scene.at(5), "outbox.0.replayed_by": "carol" },
        "$unset": { "outbox.0.dead_at": "", "outbox.0.dead_reason": "" },
    };
    scene.orders().update_one(doc! { "_id": "o-1" }, by_hand).await.unwrap();
    settle(&scene).await;
    assert_eq!(audit(&scene).await[4].result.as_deref(), Some("unknown"), "carol did it");

    scene.orders().delete_many(doc! {}).await.unwrap();
    scene.insert("o-1", vec![scene.dead("permanent", "no")]).await;
    killed(&scene, 2, Act::Discard, "doc:o-1").await;
    let dead = outbox(&scene, "o-1").await;
    deliver(&scene, id_of(&dead[0])).await;
    settle(&scene).await;
    assert_eq!(audit(&scene).await[5].result.as_deref(), Some("unknown"), "the archive has no record of it");
    scene.drop().await;
}

#[tokio::test]
async fn a_release_leaves_no_evidence() {
    let scene = Scene::new().await;
    let claimed = entry("a", doc! { "available_at": scene.at(5), "claimed_by": "worker/1" });
    scene.insert("o-1", vec![claimed]).await;
    killed(&scene, 2, Act::Release, "doc:o-1").await;
    let finished =
        doc! { "$set": { "outbox.0.available_at": scene.at(1) }, "$unset": { "outbox.0.claimed_by": "" } };
    scene.orders().update_one(doc! { "_id": "o-1" }, finished).await.unwrap();
    settle(&scene).await;
    assert_eq!(results(&audit(&scene).await), [("release", Some("unknown"))]);
    scene.drop().await;
}

/// A secondary that is behind would make `not_done` of an act that was done.
#[tokio::test]
async fn evidence_is_read_from_the_primary_by_majority() {
    let (scene, _) = with_dead().await;
    killed(&scene, 2, Act::Replay, "state:dead").await;
    let scene = scene.with(|settings| settings.read_from = ReadFrom::Secondary);
    let reads = Arc::new(Mutex::new(Vec::new()));
    let seen = reads.clone();
    let watching = operator_with(&scene, move |event| {
        let CommandEvent::Started(started) = event else { return };
        if ["find", "aggregate"].contains(&started.command_name.as_str()) {
            seen.lock().unwrap().push(started.command);
        }
    })
    .await;
    assert_eq!(watching.settle_before(watching.now().await.unwrap()).await.unwrap(), 1);

    let reads = reads.lock().unwrap().clone();
    assert!(reads.iter().any(|read| read.get_str("find") == Ok("orders")), "{reads:?}");
    for read in &reads {
        let level = read.get_document("readConcern").and_then(|concern| concern.get_str("level"));
        assert_eq!(level, Ok("majority"), "{read}");
        let preference =
            read.get_document("$readPreference").and_then(|preference| preference.get_str("mode"));
        assert!(preference.is_err() || preference == Ok("primary"), "{read}");
    }
    scene.drop().await;
}
