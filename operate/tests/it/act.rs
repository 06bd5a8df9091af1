//! Tests acts on messages, and their audit trail.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mongodb::{
    Client,
    bson::{Bson, Document, RawDocumentBuf, Uuid, doc},
    event::{EventHandler, command::CommandEvent},
    options::ClientOptions,
};
use outbox_operate::{
    OperateError, Operator, Query,
    act::{Act, ActOutcome, ActRequest, ActSum, Acted, AuditRecord, AuditRequest, Author, Force},
    list::Scan,
};

use crate::scene::{Scene, entry, id_of};

pub(crate) fn author() -> Author {
    Author { name: "alice".into(), host: "laptop".into(), tool: "test".into(), reason: "ticket 4711".into() }
}

pub(crate) fn request(act: Act, query: &str) -> ActRequest {
    let mut request = ActRequest::new(act, query.parse::<Query>().unwrap());
    request.force = Force::Accepted;
    request
}

pub(crate) async fn execute(scene: &Scene, act: Act, query: &str) -> (ActSum, Vec<Acted>) {
    let mut acted = Vec::new();
    let sum = scene.operator.execute(&request(act, query), author(), |one| acted.push(one.clone())).await;
    (sum.unwrap_or_else(|error| panic!("{error}")), acted)
}

pub(crate) async fn outbox(scene: &Scene, id: &str) -> Vec<Document> {
    let stored = scene.orders().find_one(doc! { "_id": id }).await.unwrap().unwrap();
    let elements = stored.get_array("outbox").unwrap().iter();
    elements.filter_map(|element| element.as_document().cloned()).collect()
}

pub(crate) async fn audit(scene: &Scene) -> Vec<AuditRecord> {
    let mut records =
        scene.operator.audit(&AuditRequest { limit: 1_000, ..AuditRequest::default() }).await.unwrap();
    records.reverse();
    records
}

pub(crate) fn results(records: &[AuditRecord]) -> Vec<(&str, Option<&str>)> {
    records.iter().map(|record| (record.act.as_str(), record.result.as_deref())).collect()
}

#[tokio::test]
async fn a_replay_makes_a_message_due_and_is_recorded() {
    let scene = Scene::new().await;
    let mut dead = scene.dead("permanent", "no route");
    dead.extend(doc! { "claims": 2, "unknown": 7_i32, "delivered_to": ["a"] });
    let id = id_of(&dead);
    scene.insert("o-1", vec![Bson::Null, entry("a", doc! {}).into(), dead.clone().into()]).await;

    let (sum, _) = execute(&scene, Act::Replay, &format!("id:{id}")).await;
    assert_eq!((sum.done, sum.changed, sum.failed), (1, 0, 0));
    let mut replayed = outbox(&scene, "o-1").await.remove(1);
    let at = *replayed.get_datetime("replayed_at").unwrap();
    assert!(
        at >= scene.now && *replayed.get_datetime("available_at").unwrap() == at,
        "by the server's clock"
    );
    for name in ["dead_at", "dead_reason", "last_error"] {
        assert!(!replayed.contains_key(name), "{name}");
        dead.remove(name);
    }
    for name in ["replayed_at", "available_at"] {
        replayed.remove(name);
    }
    dead.extend(doc! { "attempts": 0, "claims": 0 });
    assert_eq!(replayed.remove("replayed_by"), Some("alice".into()));
    let sorted = |document: Document| {
        document.into_iter().map(|(name, value)| (name, value.to_string())).collect::<BTreeSet<_>>()
    };
    assert_eq!(sorted(replayed), sorted(dead), "all other fields are kept");

    let records = audit(&scene).await;
    assert_eq!(results(&records), [("replay", Some("done"))]);
    let record = &records[0];
    assert_eq!(
        (record.by.as_str(), record.host.as_str(), record.reason.as_str()),
        ("alice", "laptop", "ticket 4711")
    );
    assert_eq!(record.message, Some(id));
    assert_eq!(record.operation, Some(sum.operation));
    assert_eq!(record.query.as_deref(), Some(format!("id:{id}").as_str()));
    assert_eq!(record.shown["last_error"], "no route", "the evidence is kept");
    assert_eq!(record.shown["dead_reason"], "permanent");
    scene.drop().await;
}

#[tokio::test]
async fn acts_take_only_messages_in_valid_states() {
    let scene = Scene::new().await;
    scene.with_every_state().await;
    for (act, taken) in [
        (Act::Replay, vec!["dead"]),
        (Act::Discard, vec!["dead"]),
        (Act::Kill, vec!["dead", "due", "retrying", "scheduled", "undated"]),
        (Act::Release, vec!["claimed"]),
    ] {
        let preview = scene.operator.preview(&request(act, "type:order.*")).await.unwrap();
        assert_eq!(crate::scene::documents(&preview.sample), taken, "{act}");
    }

    // A message that is named by its id is left out with the reason.
    let living = scene.list("doc:due").await.rows[0].id.unwrap();
    let preview = scene.operator.preview(&request(Act::Discard, &format!("id:{living}"))).await.unwrap();
    assert_eq!(preview.messages, 0);
    assert_eq!(preview.skipped[0].because, "it is due; discard takes messages that are dead");
    let (sum, _) = execute(&scene, Act::Discard, &format!("id:{living}")).await;
    assert_eq!((sum.done, audit(&scene).await.len()), (0, 0));
    scene.drop().await;
}

#[tokio::test]
async fn a_killed_message_is_dead_and_can_be_replayed() {
    let scene = Scene::new().await;
    let mut expired = scene.retrying("timed out");
    expired.extend(doc! { "available_at": scene.at(-1) });
    scene.insert("o-1", vec![expired]).await;
    let (sum, _) = execute(&scene, Act::Kill, "doc:o-1").await;
    assert_eq!(sum.done, 1);
    let killed = outbox(&scene, "o-1").await.remove(0);
    assert_eq!(killed.get_str("dead_reason"), Ok("operator"));
    assert!(!killed.contains_key("claimed_by") && !killed.contains_key("available_at"));
    assert_eq!(killed.get_i32("attempts"), Ok(2));
    assert_eq!(killed.get_str("last_error"), Ok("timed out"));
    assert_eq!(execute(&scene, Act::Replay, "reason:operator").await.0.done, 1);
    scene.drop().await;
}

#[tokio::test]
async fn a_claim_is_released_only_by_force() {
    let scene = Scene::new().await;
    let claimed = entry("a", doc! { "available_at": scene.at(5), "claimed_by": "worker/1", "claims": 1 });
    scene.insert("o-1", vec![claimed]).await;
    let mut gently = request(Act::Release, "doc:o-1");
    gently.force = Force::Never;
    let refused = scene.operator.execute(&gently, author(), |_| {}).await.unwrap_err();
    assert!(
        matches!(refused, OperateError::Forbidden(_)) && refused.to_string().contains("twice"),
        "{refused}"
    );

    assert_eq!(execute(&scene, Act::Release, "doc:o-1").await.0.done, 1);
    let released = outbox(&scene, "o-1").await.remove(0);
    assert!(!released.contains_key("claimed_by"));
    assert_eq!(released.get_i32("claims"), Ok(1), "a crash that it counts stays counted");
    assert_eq!(scene.list("state:due").await.rows.len(), 1);
    scene.drop().await;
}

/// The bytes of a stored array.
async fn bytes(scene: &Scene, id: &str) -> Vec<u8> {
    let orders = scene.database.collection::<RawDocumentBuf>("orders");
    let stored = orders.find_one(doc! { "_id": id }).await.unwrap().unwrap();
    stored.get_array("outbox").unwrap().as_bytes().to_vec()
}

#[tokio::test]
async fn a_restore_returns_the_exact_entry_to_its_place() {
    let scene = Scene::new().await;
    let mut dead = scene.dead("permanent", "no");
    dead.insert(
        "payload",
        doc! { "zero": -0.0, "nan": f64::INFINITY, "long": 1_i64, "odd": { "$set": 1 }, "none": Bson::Null },
    );
    dead.insert("unknown", Bson::Array(vec![Bson::MinKey, Bson::Null]));
    let id = id_of(&dead);
    let (first, last) = (entry("a", doc! {}), entry("b", doc! {}));
    scene.insert("o-1", vec![Bson::from(first.clone()), dead.into(), Bson::from(last.clone())]).await;
    let before = bytes(&scene, "o-1").await;

    let (sum, _) = execute(&scene, Act::Discard, "state:dead").await;
    assert_eq!(sum.done, 1);
    assert_eq!(outbox(&scene, "o-1").await, [first.clone(), last.clone()]);
    let archived = scene.operator.archived(10).await.unwrap();
    assert_eq!((archived.len(), archived[0].message, archived[0].by.as_str()), (1, Some(id), "alice"));

    let restored = scene.operator.restore(&[id], author(), |_| {}).await.unwrap();
    assert_eq!(restored.done, 1);
    assert_eq!(bytes(&scene, "o-1").await, before, "byte by byte, at its place");
    let again = scene.operator.restore(&[id], author(), |_| {}).await.unwrap();
    assert_eq!((again.done, again.failed), (0, 1), "it was restored");
    let forced = scene.operator.restore_by_force(&[id], author(), |_| {}).await.unwrap();
    assert_eq!((forced.done, forced.changed), (0, 1), "it is there already");
    assert_eq!(bytes(&scene, "o-1").await, before);
    scene.drop().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_kept_exactly_stays() {
    let scene = Scene::new().await;
    let mut dead = scene.dead("permanent", "no");
    dead.extend(doc! { "field_a": 1, "field_b": 2 });
    // Two fields of the same name, which only another driver can write.
    let document = RawDocumentBuf::try_from(&doc! { "_id": "o-1", "outbox": [dead] }).unwrap();
    let mut bytes = document.into_bytes();
    let at = bytes.windows(7).position(|name| name == b"field_b").unwrap();
    bytes[at + 6] = b'a';
    let orders = scene.database.collection::<RawDocumentBuf>("orders");
    orders.insert_one(RawDocumentBuf::from_bytes(bytes).unwrap()).await.unwrap();

    let (sum, acted) = execute(&scene, Act::Discard, "state:dead").await;
    assert_eq!(sum.failed, 1);
    assert!(acted[0].outcome.detail().is_some_and(|why| why.contains("exactly")), "{acted:?}");
    assert_eq!(outbox(&scene, "o-1").await.len(), 1);
    scene.drop().await;
}

#[tokio::test]
async fn a_restore_finds_its_place_by_either_neighbour() {
    let scene = Scene::new().await;
    let dead = scene.dead("permanent", "no");
    let id = id_of(&dead);
    let others: Vec<Document> = (0..4).map(|_| entry("a", doc! {})).collect();
    let ids: Vec<Uuid> = others.iter().map(id_of).collect();
    for (gone, expected) in [
        (vec![0], vec![1, 9, 2, 3]),
        (vec![0, 2], vec![1, 9, 3]),
        (vec![0, 1], vec![9, 2, 3]),
        (vec![0, 1, 2], vec![3, 9]),
    ] {
        let outbox_before: Vec<Bson> = vec![
            others[0].clone().into(),
            others[1].clone().into(),
            dead.clone().into(),
            others[2].clone().into(),
            others[3].clone().into(),
        ];
        scene.orders().delete_many(doc! {}).await.unwrap();
        scene.insert("o-1", outbox_before).await;
        assert_eq!(execute(&scene, Act::Discard, "state:dead").await.0.done, 1);
        for at in gone {
            let delivered = doc! { "$pull": { "outbox": { "id": ids[at] } } };
            scene.orders().update_one(doc! { "_id": "o-1" }, delivered).await.unwrap();
        }
        scene.operator.restore(&[id], author(), |_| {}).await.unwrap();
        let found: Vec<Uuid> = outbox(&scene, "o-1").await.iter().map(id_of).collect();
        let expected: Vec<Uuid> = expected.into_iter().map(|at| if at == 9 { id } else { ids[at] }).collect();
        assert_eq!(found, expected);
    }

    execute(&scene, Act::Discard, "state:dead").await;
    scene.orders().delete_many(doc! {}).await.unwrap();
    let mut outcomes = Vec::new();
    scene.operator.restore(&[id], author(), |acted| outcomes.push(acted.outcome.clone())).await.unwrap();
    assert_eq!(outcomes, [ActOutcome::Failed("its document no longer exists".into())]);
    scene.drop().await;
}

#[tokio::test]
async fn an_act_is_bounded_and_needs_a_reason() {
    let scene = Scene::new().await;
    for number in 0..3 {
        scene.insert(number, vec![scene.dead("permanent", "no")]).await;
    }
    let refused = async |request: &ActRequest, author: Author| {
        scene.operator.execute(request, author, |_| {}).await.unwrap_err().to_string()
    };
    assert!(refused(&request(Act::Replay, ""), author()).await.contains("would take every message"));
    let mut bounded = request(Act::Replay, "state:dead");
    bounded.ceiling = 2;
    assert!(refused(&bounded, author()).await.contains("more than 2 messages match"));
    assert!(scene.operator.preview(&bounded).await.unwrap().is_above_ceiling);
    let mut moved = request(Act::Replay, "state:dead");
    moved.expected = Some(2);
    assert!(refused(&moved, author()).await.contains("3 messages match, and 2 were expected"));
    let silent = Author { reason: " ".into(), ..author() };
    assert!(refused(&request(Act::Replay, "state:dead"), silent).await.contains("needs a reason"));
    assert_eq!(scene.list("state:dead").await.rows.len(), 3, "none was changed");
    assert!(audit(&scene).await.is_empty());

    moved.expected = Some(3);
    let sum = scene.operator.execute(&moved, author(), |_| {}).await.unwrap();
    assert_eq!(sum.done, 3);
    scene.drop().await;
}

#[tokio::test]
async fn crashing_messages_are_replayed_only_by_name() {
    let scene = Scene::new().await;
    scene.insert("crashed", vec![scene.dead("crashed", "8 claims expired")]).await;
    scene.insert("other", vec![scene.dead("permanent", "no")]).await;
    let preview = scene.operator.preview(&request(Act::Replay, "state:dead")).await.unwrap();
    assert_eq!(crate::scene::documents(&preview.sample), ["other"]);
    assert_eq!(preview.skipped[0].message.document, "crashed");
    assert!(preview.skipped[0].because.contains("reason:crashed"));
    let named = scene.operator.preview(&request(Act::Replay, "reason:crashed")).await.unwrap();
    assert_eq!(named.messages, 1);
    scene.drop().await;
}

#[tokio::test]
async fn messages_of_a_document_are_taken_in_order() {
    let scene = Scene::new().await;
    let mut expected = Vec::new();
    for number in 0..3 {
        let outbox: Vec<Document> = (0..4).map(|_| scene.dead("permanent", "no")).collect();
        expected.extend(outbox.iter().map(id_of));
        scene.insert(number, outbox).await;
    }
    let (sum, acted) = execute(&scene, Act::Replay, "state:dead").await;
    assert_eq!(sum.done, 12);
    let found: Vec<Uuid> = acted.iter().filter_map(|acted| acted.shown.id).collect();
    assert_eq!(found, expected);
    scene.drop().await;
}

#[tokio::test]
async fn two_operators_discard_each_message_once() {
    let scene = Scene::new().await;
    for number in 0..30 {
        scene.insert(number, vec![scene.dead("permanent", "no")]).await;
    }
    let other = scene.with_order(|_| {});
    let request = request(Act::Discard, "state:dead");
    let (one, two) = tokio::join!(
        scene.operator.execute(&request, author(), |_| {}),
        other.execute(&request, author(), |_| {}),
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.done + two.done, one.failed + two.failed), (30, 0), "{one:?} {two:?}");
    let archived = scene.operator.archived(1_000).await.unwrap();
    let removed = archived.iter().filter(|message| message.objection.is_none()).count();
    assert_eq!(removed, 30, "one record of each message can be restored");
    let ids: Vec<Uuid> =
        archived.iter().filter_map(|message| message.message).collect::<BTreeSet<_>>().into_iter().collect();
    let restored = scene.operator.restore(&ids, author(), |_| {}).await.unwrap();
    assert_eq!(restored.done, 30);
    let done = audit(&scene).await.iter().filter(|record| record.result.as_deref() == Some("done")).count();
    assert_eq!(done, 60, "30 discards and 30 restores");
    scene.drop().await;
}

/// An act changes a message only as it was shown.
#[tokio::test]
async fn a_message_that_changed_meanwhile_is_left_alone() {
    let scene = Scene::new().await;
    for change in [
        doc! { "$set": { "outbox.0.dead_at": scene.at(-1) } },
        doc! { "$set": { "outbox.0.attempts": 11 } },
        doc! { "$set": { "outbox.0.claims": 1 } },
        doc! { "$set": { "outbox.0.claimed_by": "worker/1" } },
        doc! { "$set": { "outbox.0.available_at": scene.at(0) } },
        doc! { "$unset": { "outbox.0.dead_at": "" } },
        doc! { "$set": { "outbox": [] } },
    ] {
        for act in [Act::Replay, Act::Discard] {
            scene.orders().delete_many(doc! {}).await.unwrap();
            scene.insert("o-1", vec![scene.dead("permanent", "no")]).await;
            // The message changes after it was selected, right before the first write.
            let operator = meddling(&scene, 1, change.clone()).await;
            let mut outcomes = Vec::new();
            let request = request(act, "state:dead");
            let acted = operator.execute(&request, author(), |acted| outcomes.push(acted.outcome.clone()));
            acted.await.unwrap();
            assert_eq!(outcomes, [ActOutcome::Changed], "{act} after {change}");
            assert!(outbox(&scene, "o-1").await.iter().all(|entry| !entry.contains_key("replayed_at")));
            assert!(scene.operator.archived(1).await.unwrap().is_empty(), "{act} after {change}");
        }
    }
    scene.drop().await;
}

/// An operator whose insert with this number, from 1, is preceded by another program's update.
pub(crate) async fn meddling(scene: &Scene, number: usize, change: Document) -> Operator {
    let orders = scene.orders();
    let done = Arc::new(AtomicUsize::new(0));
    let handler = move |event: CommandEvent| {
        let CommandEvent::Started(started) = event else { return };
        if started.command_name != "insert" || done.fetch_add(1, Ordering::SeqCst) + 1 != number {
            return;
        }
        let (orders, change) = (orders.clone(), change.clone());
        // The driver waits for this handler, so the update is written before the command is sent.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let client = Client::with_uri_str(uri()).await.unwrap();
                let namespace = orders.namespace();
                let orders = client.database(&namespace.db).collection::<Document>(&namespace.coll);
                orders.update_one(doc! { "_id": "o-1" }, change).await.unwrap();
            });
        })
        .join()
        .unwrap();
    };
    operator_with(scene, handler).await
}

fn uri() -> String {
    std::env::var("OUTBOX_MONGODB_URI").unwrap()
}

pub(crate) async fn operator_with(
    scene: &Scene,
    handler: impl Fn(CommandEvent) + Send + Sync + 'static,
) -> Operator {
    let mut options = ClientOptions::parse(uri()).await.unwrap();
    options.command_event_handler = Some(EventHandler::callback(handler));
    Operator::new(Client::with_options(options).unwrap(), scene.operator.settings().clone())
}

/// An operator that dies when it is about to send its write with this number, from 1.
pub(crate) async fn dying_before(scene: &Scene, number: usize) -> Operator {
    let writes = AtomicUsize::new(0);
    operator_with(scene, move |event| {
        let CommandEvent::Started(started) = event else { return };
        let is_write = ["insert", "update"].contains(&started.command_name.as_str());
        if is_write && writes.fetch_add(1, Ordering::SeqCst) + 1 == number {
            panic!("killed before write {number}");
        }
    })
    .await
}

pub(crate) async fn settle(scene: &Scene) {
    scene.operator.settle_before(scene.operator.now().await.unwrap()).await.unwrap();
}

/// Whether the message is in the outbox, and whether it is in the archive.
async fn places(scene: &Scene, id: Uuid) -> (bool, bool) {
    let filter = doc! { "outbox.id": id };
    let stored = scene.orders().count_documents(filter).await.unwrap() > 0;
    let archive = scene.state().collection::<Document>("archive");
    (stored, archive.count_documents(doc! { "message": id }).await.unwrap() > 0)
}

/// No act without an intent, no entry in both outbox and archive after the next run, no act twice.
#[tokio::test]
async fn a_discard_killed_at_any_write_is_completed() {
    for number in 1..=4 {
        let scene = Scene::new().await;
        let dead = scene.dead("permanent", "no");
        let id = id_of(&dead);
        scene.insert("o-1", vec![dead]).await;
        let dying = dying_before(&scene, number).await;
        let killed = tokio::spawn(async move {
            dying.execute(&request(Act::Discard, "state:dead"), author(), |_| {}).await
        });
        assert!(killed.await.unwrap_err().is_panic(), "{number}");

        let (stored, archived) = places(&scene, id).await;
        assert_eq!((stored, archived), (number < 4, number > 2), "killed before write {number}");
        let intents = audit(&scene).await;
        assert_eq!(intents.len(), usize::from(number > 1), "{number}");
        assert!(intents.iter().all(|intent| intent.result.is_none()));

        let (sum, _) = execute(&scene, Act::Discard, "state:dead").await;
        assert_eq!(sum.done, usize::from(number < 4), "{number}");
        assert_eq!(places(&scene, id).await, (false, true), "{number}");
        settle(&scene).await;
        let done =
            audit(&scene).await.iter().filter(|record| record.result.as_deref() == Some("done")).count();
        assert!(done >= 1, "{number}");
        assert!(audit(&scene).await.iter().all(|record| record.result.is_some()), "{number}");
        scene.drop().await;
    }
}

#[tokio::test]
async fn a_replay_killed_at_any_write_happens_once() {
    for number in 1..=3 {
        let scene = Scene::new().await;
        scene.insert("o-1", vec![scene.dead("permanent", "no")]).await;
        let dying = dying_before(&scene, number).await;
        let killed = tokio::spawn(async move {
            dying.execute(&request(Act::Replay, "state:dead"), author(), |_| {}).await
        });
        assert!(killed.await.unwrap_err().is_panic(), "{number}");
        let replayed = outbox(&scene, "o-1").await[0].contains_key("replayed_at");
        assert_eq!(replayed, number > 2, "{number}");

        settle(&scene).await;
        let expected: Vec<(&str, Option<&str>)> = match number {
            1 => vec![],
            2 => vec![("replay", Some("not_done"))],
            _ => vec![("replay", Some("done"))],
        };
        assert_eq!(results(&audit(&scene).await), expected, "{number}");
        let (sum, _) = execute(&scene, Act::Replay, "state:dead").await;
        assert_eq!(sum.done, usize::from(number < 3), "{number}");
        scene.drop().await;
    }
}

#[tokio::test]
async fn a_restore_killed_at_any_write_is_completed() {
    for number in 1..=3 {
        let scene = Scene::new().await;
        let dead = scene.dead("permanent", "no");
        let id = id_of(&dead);
        scene.insert("o-1", vec![dead.clone()]).await;
        execute(&scene, Act::Discard, "state:dead").await;
        let dying = dying_before(&scene, number).await;
        let killed = tokio::spawn(async move { dying.restore(&[id], author(), |_| {}).await });
        assert!(killed.await.unwrap_err().is_panic(), "{number}");
        assert_eq!(places(&scene, id).await.0, number > 2, "{number}");

        let again = scene.operator.restore(&[id], author(), |_| {}).await.unwrap();
        assert_eq!(again.done, usize::from(number < 3), "{number}");
        assert_eq!(outbox(&scene, "o-1").await, [dead], "{number}");
        settle(&scene).await;
        assert!(audit(&scene).await.iter().all(|record| record.result.is_some()), "{number}");
        scene.drop().await;
    }
}

#[tokio::test]
async fn reading_a_payload_is_recorded_before_it_is_shown() {
    let scene = Scene::new().await;
    let dead = scene.dead("permanent", "no");
    let id = id_of(&dead);
    scene.insert("o-1", vec![dead]).await;
    let found = scene.operator.find_message(id, &Query::default(), Scan::Never).await.unwrap().remove(0);
    scene.operator.record_reveal(&found, author()).await.unwrap();
    let records = audit(&scene).await;
    assert_eq!(results(&records), [("reveal", Some("done"))]);
    assert_eq!((records[0].message, records[0].by.as_str()), (Some(id), "alice"));
    scene.drop().await;
}

#[tokio::test]
async fn the_trail_is_found_by_message_and_operation() {
    let scene = Scene::new().await;
    let (one, two) = (scene.dead("permanent", "no"), scene.dead("permanent", "no"));
    let id = id_of(&one);
    scene.insert("o-1", vec![one, two]).await;
    let (sum, _) = execute(&scene, Act::Replay, "state:dead").await;
    let (killed, _) = execute(&scene, Act::Kill, &format!("id:{id}")).await;

    let ask = async |request: AuditRequest| {
        let records = scene.operator.audit(&AuditRequest { limit: 10, ..request }).await.unwrap();
        records.into_iter().map(|record| record.act).collect::<Vec<_>>()
    };
    let by_message = AuditRequest { message: Some(id), ..AuditRequest::default() };
    assert_eq!(ask(by_message).await, ["kill", "replay"], "the newest first");
    let by_operation = AuditRequest { operation: Some(sum.operation), ..AuditRequest::default() };
    assert_eq!(ask(by_operation).await, ["replay", "replay"]);
    assert_ne!(killed.operation, sum.operation);
    let recent = AuditRequest { since: Some(scene.at(60)), ..AuditRequest::default() };
    assert!(ask(recent).await.is_empty());
    scene.drop().await;
}
