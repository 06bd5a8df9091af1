//! Tests that the operations only read.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use outbox_operate::{
    OperateError, Query, ReadFrom,
    advise::Times,
    list::{ListRequest, Scan},
    redact::Redaction,
};

use crate::scene::{Scene, id_of};

async fn hash(scene: &Scene) -> Document {
    let mut hash = scene.database.run_command(doc! { "dbHash": 1 }).await.unwrap();
    hash.get_document_mut("collections").unwrap().clone()
}

#[tokio::test]
async fn no_operation_writes_anything() {
    let scene = Scene::new().await;
    scene.with_every_state().await;
    let stored = scene.dead("permanent", "no");
    let id = id_of(&stored);
    scene.insert("shown", vec![stored]).await;
    let before = hash(&scene).await;

    let operator = &scene.operator;
    let query = Query::default();
    operator.status().await.unwrap();
    for scan in [Scan::Never, Scan::Allowed] {
        let request = ListRequest { query: query.clone(), limit: 3, after: None, scan };
        operator.list(request).await.unwrap();
    }
    let found = operator.find_message(id, &query, Scan::Never).await.unwrap().remove(0);
    operator.show(&found, &Redaction::default()).await.unwrap();
    operator.explain(&found).await.unwrap();
    operator.documents(scene.namespace(), "mixed").await.unwrap();
    operator.groups(&query).await.unwrap();
    operator.doctor().await.unwrap();
    operator.advise(Duration::from_secs(60), Times::default()).await.unwrap();

    assert_eq!(hash(&scene).await, before);
    let databases = scene.client.list_database_names().await.unwrap();
    assert!(!databases.contains(&scene.state().name().to_owned()), "no state database was created");
    scene.drop().await;
}

#[tokio::test]
async fn a_secondary_answers_when_asked_to() {
    let scene = Scene::new().await.with(|settings| settings.read_from = ReadFrom::Secondary);
    scene.with_every_state().await;
    // A secondary can be behind, so only the answer itself is certain.
    scene
        .operator
        .list(ListRequest { query: Query::default(), limit: 3, after: None, scan: Scan::Never })
        .await
        .unwrap();
    scene.drop().await;
}

#[tokio::test]
async fn a_collection_that_is_not_watched_is_refused() {
    let scene = Scene::new().await;
    let other = mongodb::Namespace::new("elsewhere", "orders");
    let refused = scene.operator.documents(other, "o-1").await.unwrap_err();
    assert!(matches!(refused, OperateError::Argument(_)) && refused.to_string().contains("not watched"));
    let query: Query = "collection:elsewhere.*".parse().unwrap();
    let request = ListRequest { query, limit: 3, after: None, scan: Scan::Never };
    assert!(matches!(scene.operator.list(request).await.unwrap_err(), OperateError::Argument(_)));
    scene.drop().await;
}
