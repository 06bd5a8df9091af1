//! Tests lists: which messages they find, by which index, and how their pages continue.

use std::collections::BTreeSet;

use mongodb::bson::{Binary, Bson, Document, Uuid, doc, oid::ObjectId, spec::BinarySubtype};
use outbox_operate::{
    MessageState, OperateError, Query,
    list::{ListRequest, Row, Scan},
};

use crate::scene::{Scene, documents, entry, id_of};

#[tokio::test]
async fn each_state_is_found_by_its_index() {
    let scene = Scene::new().await;
    scene.with_every_state().await;
    for (query, index, found) in [
        ("state:due", "outbox_available_at", vec!["dead", "due", "undated"]),
        ("state:claimed", "outbox_available_at", vec!["claimed"]),
        ("state:retrying", "outbox_available_at", vec!["retrying"]),
        ("state:scheduled", "outbox_available_at", vec!["scheduled"]),
        ("state:dead", "outbox_dead_at", vec!["dead"]),
        ("state:dead,claimed", "outbox_available_at and outbox_dead_at", vec!["claimed", "dead"]),
        (
            "",
            "outbox_available_at and outbox_dead_at",
            vec!["claimed", "dead", "dead", "due", "retrying", "scheduled", "undated"],
        ),
        ("type:order.paid", "outbox_available_at and outbox_dead_at", vec!["dead", "dead"]),
        ("reason:permanent", "outbox_dead_at", vec!["dead"]),
        ("error:timed", "outbox_available_at and outbox_dead_at", vec!["retrying"]),
        ("attempts:>2", "outbox_available_at and outbox_dead_at", vec!["dead"]),
        ("state:dead since:30m", "outbox_dead_at", vec!["dead"]),
        ("state:dead since:10m", "outbox_dead_at", vec![]),
    ] {
        let page = scene.list(query).await;
        assert_eq!(documents(&page.rows), found, "{query}");
        assert_eq!(page.plans[0].index.as_deref(), Some(index), "{query}");
        assert_eq!(page.next, None, "{query}");
    }
    scene.drop().await;
}

#[tokio::test]
async fn a_scan_finds_malformed_elements_and_outboxes() {
    let scene = Scene::new().await;
    scene.with_every_state().await;
    let page = scene.page("state:unreadable", 100, None, Scan::Allowed).await;
    assert_eq!(documents(&page.rows), ["mixed", "mixed", "mixed", "not_an_array"]);
    assert!(page.rows.iter().all(|row| row.state == MessageState::Unreadable));
    let flaws: Vec<&str> = page.rows.iter().filter_map(|row| row.flaw.as_deref()).collect();
    assert!(flaws.iter().any(|flaw| flaw.contains("`attempts`")), "{flaws:?}");
    assert!(flaws.iter().any(|flaw| flaw.contains("not an array")), "{flaws:?}");

    let named = scene.list("doc:mixed").await;
    assert_eq!(named.rows.len(), 3, "a document that is named is read whole");
    let all = scene.page("", 100, None, Scan::Allowed).await;
    assert_eq!(all.rows.len(), 11);
    scene.drop().await;
}

#[tokio::test]
async fn without_an_index_a_scan_must_be_allowed() {
    let scene = Scene::without_indexes().await;
    scene.with_every_state().await;
    let ask = async |query: &str, scan| {
        let query: Query = query.parse().unwrap();
        scene.operator.list(ListRequest { query, limit: 10, after: None, scan }).await
    };
    for (query, hint) in [
        ("state:due", "outbox_available_at"),
        ("state:dead", "outbox_dead_at"),
        ("state:unreadable", "malformed"),
    ] {
        let refused = ask(query, Scan::Never).await.unwrap_err();
        assert!(matches!(refused, OperateError::NeedsScan { .. }), "{refused}");
        let text = refused.to_string();
        assert!(
            text.contains(hint) && text.contains("about 9 documents") && text.contains("--scan"),
            "{text}"
        );
    }
    let page = ask("state:dead", Scan::Allowed).await.unwrap();
    assert_eq!(documents(&page.rows), ["dead"]);
    assert_eq!(page.plans[0].index, None);
    scene.drop().await;
}

/// A page of due messages must not skip all dead ones first.
#[tokio::test]
async fn messages_without_a_date_are_listed_last() {
    let scene = Scene::new().await;
    scene.insert("undated", vec![entry("a", doc! {})]).await;
    scene.insert("dead", vec![scene.dead("permanent", "no")]).await;
    scene.insert("late", vec![entry("a", doc! { "available_at": scene.at(-1) })]).await;
    scene.insert("early", vec![entry("a", doc! { "available_at": scene.at(-2) })]).await;
    let order = |rows: &[Row]| rows.iter().map(|row| row.document.clone()).collect::<Vec<_>>();
    assert_eq!(order(&scene.list("state:due").await.rows), ["early", "late", "undated"]);
    assert_eq!(order(&scene.list("").await.rows), ["early", "late", "dead", "undated"]);
    scene.drop().await;
}

/// Messages that share a millisecond, several in a document, and documents that are in two parts of the list.
async fn with_many(scene: &Scene) -> BTreeSet<Uuid> {
    let mut ids = BTreeSet::new();
    let mut inserted: Vec<Document> = Vec::new();
    for number in 0..24_i64 {
        let date = scene.at(-(number % 3) - 1);
        let mut outbox = Vec::new();
        for place in 0..number % 4 + 1 {
            let extra = match place {
                0 => doc! { "available_at": date, "created_at": date },
                1 => doc! { "dead_at": date, "dead_reason": "permanent" },
                2 => doc! {},
                _ => doc! { "available_at": scene.at(-9 + number % 2), "created_at": date },
            };
            outbox.push(entry("order.placed", extra));
        }
        ids.extend(outbox.iter().map(id_of));
        // The order of ids is not the order of insertion.
        inserted.push(doc! { "_id": (number * 17) % 25, "outbox": outbox });
    }
    scene.orders().insert_many(inserted).await.unwrap();
    ids
}

async fn read_in_pages(scene: &Scene, query: &str, limit: usize, scan: Scan) -> Vec<Uuid> {
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let page = scene.page(query, limit, after, scan).await;
        assert!(page.rows.len() <= limit);
        ids.extend(page.rows.iter().filter_map(|row| row.id));
        assert!(ids.len() < 1_000, "the pages don't end");
        match page.next {
            Some(next) => after = Some(next),
            None => return ids,
        }
    }
}

#[tokio::test]
async fn pages_list_every_message_exactly_once() {
    let scene = Scene::new().await;
    let ids = with_many(&scene).await;
    for scan in [Scan::Never, Scan::Allowed] {
        let whole: Vec<Uuid> =
            scene.page("", 1_000, None, scan).await.rows.iter().filter_map(|row| row.id).collect();
        assert_eq!(whole.len(), ids.len(), "{scan:?}");
        assert_eq!(whole.iter().copied().collect::<BTreeSet<_>>(), ids, "{scan:?}");
        for limit in [1, 3, 7, 100] {
            assert_eq!(read_in_pages(&scene, "", limit, scan).await, whole, "{scan:?}, {limit}");
        }
    }
    scene.drop().await;
}

#[tokio::test]
async fn pages_continue_although_messages_leave() {
    let scene = Scene::new().await;
    with_many(&scene).await;
    let query = "state:due";
    let whole: Vec<Uuid> = scene.list(query).await.rows.iter().filter_map(|row| row.id).collect();

    let mut listed = Vec::new();
    let mut after = None;
    let mut gone = BTreeSet::new();
    loop {
        let page = scene.page(query, 4, after, Scan::Never).await;
        // The last message is delivered before the next page is read.
        if let Some(last) = page.rows.last().and_then(|row| row.id) {
            scene
                .orders()
                .update_many(doc! {}, doc! { "$pull": { "outbox": { "id": last } } })
                .await
                .unwrap();
            gone.insert(last);
        }
        listed.extend(page.rows.iter().filter_map(|row| row.id));
        assert!(listed.len() < 1_000, "the pages don't end");
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let distinct: BTreeSet<Uuid> = listed.iter().copied().collect();
    assert_eq!(distinct, whole.iter().copied().collect(), "no message is left out");
    assert!(listed.len() - distinct.len() <= gone.len(), "only neighbours of a lost place are repeated");
    scene.drop().await;
}

#[tokio::test]
async fn a_token_belongs_to_its_query() {
    let scene = Scene::new().await;
    with_many(&scene).await;
    let token = scene.page("state:due", 2, None, Scan::Never).await.next.unwrap();
    let ask = async |query: &str, token: &str| {
        let query: Query = query.parse().unwrap();
        let request = ListRequest { query, limit: 2, after: Some(token.to_owned()), scan: Scan::Never };
        scene.operator.list(request).await
    };
    assert!(ask("state:due", &token).await.is_ok());
    for (query, token) in [("state:dead", token.as_str()), ("state:due", "junk!"), ("state:due", "AAAA")] {
        let refused = ask(query, token).await.unwrap_err();
        assert!(matches!(refused, OperateError::PageToken(_)), "{query}: {refused}");
    }
    scene.drop().await;
}

#[tokio::test]
async fn documents_are_named_by_any_kind_of_id() {
    let scene = Scene::new().await;
    let (oid, uuid) = (ObjectId::new(), Uuid::new());
    let generic = Binary { subtype: BinarySubtype::Generic, bytes: uuid.bytes().to_vec() };
    let ids: Vec<(String, Bson)> = vec![
        ("o-1".into(), "o-1".into()),
        (oid.to_hex(), oid.into()),
        ("42".into(), 42_i32.into()),
        (uuid.to_string(), uuid.into()),
        (r#"{"tenant":{"$numberInt":"1"}}"#.into(), doc! { "tenant": 1_i32 }.into()),
        (r#"{"$gt":""}"#.into(), "a document, not a condition".into()),
    ];
    for (_, id) in &ids {
        scene.insert(id.clone(), vec![entry("order.placed", doc! {})]).await;
    }
    for (text, id) in &ids[..5] {
        let quoted = format!("doc:\"{}\"", text.replace('"', "\\\""));
        let page = scene.list(&quoted).await;
        assert_eq!(page.rows.len(), 1, "{text}");
        let views = scene.operator.documents(scene.namespace(), text).await.unwrap();
        assert_eq!(views.len(), 1, "{text}");
        assert_eq!(views[0].id, outbox_operate::text::exact(id));
    }
    assert!(scene.list("doc:\"{\\\"$gt\\\":\\\"\\\"}\"").await.rows.is_empty(), "a key is never a condition");

    scene.insert(generic, vec![entry("order.placed", doc! {})]).await;
    assert_eq!(scene.list(&format!("doc:{uuid}")).await.rows.len(), 2, "both kinds of UUID");
    scene.drop().await;
}
