//! Tests the groups of failures.

use mongodb::bson::{Bson, doc};
use outbox_operate::{MessageState, Query};

use crate::scene::Scene;

#[tokio::test]
async fn failures_that_differ_in_numbers_are_one_group() {
    let scene = Scene::new().await;
    for number in 0..5 {
        let outbox: Vec<Bson> = vec![
            scene.dead("attempts_exhausted", &format!("timed out after {number}00 ms")).into(),
            scene.retrying(&format!("order 0190a0a1-0000-7000-8000-00000000000{number} is locked")).into(),
            Bson::Null,
        ];
        scene.insert(number, outbox).await;
    }
    scene.insert("other", vec![scene.dead("permanent", "timed out after 1 ms")]).await;
    scene.insert("fine", vec![crate::scene::entry("order.placed", doc! {})]).await;

    let failures = scene.operator.groups(&Query::default()).await.unwrap();
    let found: Vec<(MessageState, Option<&str>, &str, u64)> = failures
        .groups
        .iter()
        .map(|group| (group.state, group.reason.as_deref(), group.error.as_str(), group.messages))
        .collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.contains(&(MessageState::Retrying, None, "order <id> is locked", 5)), "{found:?}");
    assert!(
        found.contains(&(MessageState::Dead, Some("attempts_exhausted"), "timed out after # ms", 5)),
        "{found:?}"
    );
    assert_eq!(found[2], (MessageState::Dead, Some("permanent"), "timed out after # ms", 1));
    assert_eq!(failures.groups[2].sample.document, "other");
    assert_eq!(failures.groups[2].first, Some(scene.at(-20)));

    let only_dead: Query = "state:dead since:1h".parse().unwrap();
    assert_eq!(scene.operator.groups(&only_dead).await.unwrap().groups.len(), 2);
    let later: Query = "state:dead since:1m".parse().unwrap();
    assert!(scene.operator.groups(&later).await.unwrap().groups.is_empty());
    scene.drop().await;
}

#[tokio::test]
async fn collections_without_an_index_are_named() {
    let scene = Scene::without_indexes().await;
    let failures = scene.operator.groups(&Query::default()).await.unwrap();
    assert_eq!(failures.left_out.len(), 2, "{:?}", failures.left_out);
    scene.drop().await;
}
