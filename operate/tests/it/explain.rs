//! Tests the explanations of single messages and documents.

use document_outbox::deliver::{AttributePrefix, Envelope, PayloadFormat, cloudevents};
use mongodb::bson::{Bson, Document, Uuid, doc};
use outbox_operate::{
    Query,
    explain::{Explanation, Reason},
    find::FoundMessage,
    list::Scan,
    message::Wire,
    redact::{Redaction, Reveal},
};

use crate::scene::{Scene, entry, id_of, new_id};

async fn found(scene: &Scene, id: Uuid) -> FoundMessage {
    let mut found = scene.operator.find_message(id, &Query::default(), Scan::Never).await.unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

async fn explained(scene: &Scene, id: Uuid) -> Explanation {
    scene.operator.explain(&found(scene, id).await).await.unwrap()
}

#[tokio::test]
async fn each_state_has_its_reason_in_words() {
    let scene = Scene::new().await;
    let cases: Vec<(Document, Reason, &str)> = vec![
        (entry("a", doc! {}), Reason::Deliverable, "Nothing blocks it"),
        (entry("a", doc! { "available_at": scene.at(-10) }), Reason::Deliverable, "has been due for 10m"),
        (
            entry("a", doc! { "via": "handlers" }),
            Reason::Deliverable,
            "only a process that serves `handlers`",
        ),
        (scene.dead("permanent", "no"), Reason::Dead, "can never succeed"),
        (
            entry("a", doc! { "available_at": scene.at(5), "claimed_by": "worker/1" }),
            Reason::Claimed,
            "worker/1 has claimed it",
        ),
        (scene.retrying("timed out"), Reason::Retrying, "2 attempts have failed"),
        (
            entry("a", doc! { "available_at": scene.at(5), "created_at": scene.at(0) }),
            Reason::Scheduled,
            "scheduled",
        ),
        (entry("a", doc! { "claims": 8 }), Reason::Crashing, "8 times without an outcome"),
        (
            entry("a", doc! { "claims": 5, "attempts": 3 }),
            Reason::Deliverable,
            "claimed it 2 times without an outcome",
        ),
    ];
    for (number, (stored, reason, words)) in cases.into_iter().enumerate() {
        let id = id_of(&stored);
        scene.insert(i32::try_from(number).unwrap(), vec![stored]).await;
        let explanation = explained(&scene, id).await;
        assert_eq!(explanation.reason, reason);
        let text = explanation.sentences.join(" ");
        assert!(text.contains(words), "{text}");
    }
    scene.drop().await;
}

#[tokio::test]
async fn an_earlier_message_is_named_as_the_blocker() {
    let scene = Scene::new().await;
    let (head, dead, blocked) =
        (scene.retrying("timed out"), scene.dead("permanent", "no"), entry("b", doc! {}));
    let (head_id, dead_id, blocked_id) = (id_of(&head), id_of(&dead), id_of(&blocked));
    let second = entry("a", doc! { "available_at": scene.at(5), "claimed_by": "worker/1" });
    let outbox: Vec<Bson> = vec![Bson::Null, dead.into(), head.into(), second.into(), blocked.into()];
    scene.insert("o-1", outbox).await;

    let explanation = explained(&scene, blocked_id).await;
    let Reason::Behind { place, id, because, .. } = explanation.reason else {
        panic!("{:?}", explanation.reason)
    };
    assert_eq!((place, id, *because), (3, Some(head_id), Reason::Retrying));
    assert_eq!(explanation.runbook, Some("Deliveries fail"));

    let unordered = scene.with_order(|settings| {
        settings.unordered = settings.watch.clone();
    });
    assert_eq!(
        unordered.explain(&found(&scene, blocked_id).await).await.unwrap().reason,
        Reason::Deliverable
    );
    let dead_blocks = scene.with_order(|settings| {
        settings.dead_blocks = settings.watch.clone();
    });
    let reason = dead_blocks.explain(&found(&scene, blocked_id).await).await.unwrap().reason;
    assert!(matches!(reason, Reason::Behind { id: Some(id), .. } if id == dead_id), "{reason:?}");
    scene.drop().await;
}

/// A process delivers only what it serves, and in order.
#[tokio::test]
async fn a_message_for_another_deliverer_blocks() {
    let scene = Scene::new().await;
    let handled = |name: &str| entry(name, doc! { "via": "handlers" });
    let (first, second, third) = (handled("a"), entry("b", doc! {}), handled("c"));
    let (first_id, second_id, third_id) = (id_of(&first), id_of(&second), id_of(&third));
    scene.insert("o-1", vec![first, second, third]).await;

    assert_eq!(explained(&scene, first_id).await.reason, Reason::Deliverable);
    let explanation = explained(&scene, second_id).await;
    let Reason::Behind { place, id, because, .. } = explanation.reason else {
        panic!("{:?}", explanation.reason)
    };
    assert_eq!((place, id, *because), (1, Some(first_id), Reason::Deliverable));
    let text = explanation.sentences.join(" ");
    assert!(text.contains("only a process that serves `handlers` delivers it"), "{text}");
    assert!(!text.contains("Nothing blocks it"), "{text}");
    let reason = explained(&scene, third_id).await.reason;
    assert!(matches!(reason, Reason::Behind { id: Some(id), .. } if id == second_id), "{reason:?}");

    let unordered = scene.with_order(|settings| settings.unordered = settings.watch.clone());
    let explanation = unordered.explain(&found(&scene, second_id).await).await.unwrap();
    assert_eq!(explanation.reason, Reason::Deliverable);
    let views = scene.operator.documents(scene.namespace(), "o-1").await.unwrap();
    assert!(matches!(views[0].messages[1].reason, Reason::Behind { place: 1, .. }));
    scene.drop().await;
}

#[tokio::test]
async fn failures_are_not_claims_without_an_outcome() {
    let scene = Scene::new().await;
    let failed = entry("a", doc! { "attempts": 3, "claims": 3 });
    let id = id_of(&failed);
    scene.insert("o-1", vec![failed]).await;
    let explanation = explained(&scene, id).await;
    assert!(!explanation.sentences.join(" ").contains("without an outcome"), "{explanation:?}");
    assert_eq!(explanation.row.lost_claims(), 0);
    scene.drop().await;
}

/// The state of a document without room is kept with its lease.
#[tokio::test]
async fn the_state_in_a_lease_is_explained() {
    let scene = Scene::new().await;
    let (dead, failed, last) = (entry("a", doc! {}), entry("b", doc! {}), entry("c", doc! {}));
    let ids = [id_of(&dead), id_of(&failed), id_of(&last)];
    scene.insert("o-1", vec![dead, failed, last]).await;
    let lease = doc! {
        "_id": { "ns": scene.namespace().to_string(), "key": { "_id": "o-1" } }, "kind": "oversized",
        "owner": "worker/1", "until": scene.at(5),
        "failed": [{ "id": ids[1], "attempts": 2, "retry_at": scene.at(3), "last_error": "busy" }],
        "dead": [{ "id": ids[0], "dead_at": scene.at(-1), "dead_reason": "permanent", "last_error": "no" }],
    };
    scene.state().collection("leases").insert_one(lease).await.unwrap();

    let dead = explained(&scene, ids[0]).await;
    assert_eq!((&dead.reason, dead.runbook), (&Reason::Dead, Some("Documents grow too large")));
    let text = dead.sentences.join(" ");
    assert!(text.contains("keeps the state of this message") && text.contains("worker/1 has"), "{text}");
    assert_eq!(explained(&scene, ids[1]).await.reason, Reason::Retrying);
    let last = explained(&scene, ids[2]).await;
    assert!(matches!(last.reason, Reason::Behind { place: 2, .. }), "{:?}", last.reason);
    assert!(last.sentences.iter().all(|sentence| !sentence.contains("this message")), "{:?}", last.sentences);
    let view =
        scene.operator.show(&found(&scene, ids[0]).await, &Redaction::default()).await.unwrap().unwrap();
    assert!(view.lease.join(" ").contains("keeps the state of this message"), "{:?}", view.lease);
    scene.drop().await;
}

#[tokio::test]
async fn a_copied_message_is_found_in_each_document() {
    let scene = Scene::new().await;
    let stored = entry("a", doc! {});
    let id = id_of(&stored);
    scene.insert("o-1", vec![stored.clone()]).await;
    scene.insert("o-2", vec![stored]).await;
    let find = async |within: &str| {
        let within: Query = within.parse().unwrap();
        scene.operator.find_message(id, &within, Scan::Never).await.unwrap().len()
    };
    assert_eq!((find("").await, find("doc:o-2").await, find("doc:o-3").await), (2, 1, 0));
    scene.drop().await;
}

#[tokio::test]
async fn a_document_shows_its_whole_outbox_and_inbox() {
    let scene = Scene::new().await;
    let (head, blocked) = (scene.retrying("timed out"), entry("b", doc! {}));
    let document = doc! {
        "_id": "o-1",
        "received": [{ "id": new_id(), "at": scene.at(-3) }, { "id": new_id(), "at": scene.at(-1) }],
        "lines": [{ "id": new_id(), "at": scene.at(-3), "sku": "x" }],
        "outbox": [Bson::Null, Bson::from(head), Bson::from(blocked), Bson::from(scene.dead("permanent", "no"))],
    };
    scene.orders().insert_one(document).await.unwrap();
    let lease = doc! {
        "_id": { "ns": scene.namespace().to_string(), "key": { "_id": "o-1" } }, "kind": "oversized",
        "owner": "worker/1", "failed": [{ "id": new_id() }], "dead": [],
    };
    scene.state().collection("leases").insert_one(lease).await.unwrap();

    let views = scene.operator.documents(scene.namespace(), "o-1").await.unwrap();
    let view = &views[0];
    let reasons: Vec<&Reason> = view.messages.iter().map(|message| &message.reason).collect();
    assert_eq!(reasons[0], &Reason::Unreadable);
    assert_eq!(reasons[1], &Reason::Retrying);
    assert!(matches!(reasons[2], Reason::Behind { place: 2, .. }));
    assert_eq!(reasons[3], &Reason::Dead, "a dead message waits for nothing");
    assert_eq!(view.inboxes.len(), 1, "only records of an id and a date are an inbox");
    assert_eq!((view.inboxes[0].field.as_str(), view.inboxes[0].records), ("received", 2));
    assert_eq!(view.oversized.as_ref().map(|lease| (lease.failed, lease.dead)), Some((1, 0)));
    assert!(scene.operator.documents(scene.namespace(), "o-2").await.unwrap().is_empty());
    scene.drop().await;
}

/// The body that is shown is the one that is published.
#[tokio::test]
async fn the_wire_and_the_stored_form_are_exact() {
    let scene = Scene::new().await;
    let mut stored = entry(
        "order.placed",
        doc! {
            "created_at": scene.at(-1), "unknown": 7_i32,
            "headers": { "tenant": "south", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" },
        },
    );
    stored.insert("payload", doc! { "total": 7_i64, "at": scene.at(0), "email": "a@b.example" });
    let id = id_of(&stored);
    scene.insert("o-1", vec![stored.clone()]).await;

    let message = found(&scene, id).await;
    let all = Redaction::new([], Reveal::Everything).unwrap();
    let view = scene.operator.show(&message, &all).await.unwrap().unwrap();
    assert_eq!(view.stored, outbox_operate::text::exact(&stored.into()));
    assert_eq!(view.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));

    let envelope = Envelope::of(&message.document, message.entry().unwrap());
    let published =
        cloudevents::publication(&envelope, "outbox.messages", PayloadFormat::Json, AttributePrefix::Colon)
            .unwrap();
    let Wire::CloudEvent { headers, body, routing_key, .. } = view.wire else { panic!("{:?}", view.wire) };
    assert_eq!(headers, published.headers);
    assert_eq!(routing_key, published.routing_key);
    assert_eq!(serde_json::to_vec(&body).unwrap(), published.body);

    let hidden = scene.operator.show(&message, &Redaction::default()).await.unwrap().unwrap();
    let text = serde_json::to_string(&hidden).unwrap();
    assert!(!text.contains("b.example"), "{text}");
    assert!(text.contains("<string of 11 characters>"), "{text}");
    scene.drop().await;
}
