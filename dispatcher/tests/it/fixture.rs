//! Tests the tests' own fixture.

use lapin::{options::QueueDeclareOptions, types::FieldTable};
use mongodb::bson::doc;
use tokio::sync::oneshot;

use crate::scene::Scene;

/// Tests the cleanup, without which each failed test would leave a database, and a queue of
/// commands without a consumer.
#[tokio::test]
async fn a_failed_test_is_cleaned_up_after() {
    let other = Scene::set().await;
    let (tell, told) = oneshot::channel();
    let failing = tokio::spawn(async move {
        let scene = Scene::set().await;
        scene.test.orders().insert_one(doc! { "_id": "o-1" }).await.unwrap();
        tell.send((scene.name.clone(), scene.test.database.name().to_owned())).unwrap();
        panic!("a simulated failure of a test");
    });
    let (queue, database) = told.await.unwrap();
    assert!(failing.await.unwrap_err().is_panic());

    let databases = other.test.client.list_database_names().await.unwrap();
    assert!(!databases.contains(&database), "{database} is still there");
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let channel = other.connection.create_channel().await.unwrap();
    let found = channel.queue_declare(queue.clone().into(), passive, FieldTable::default()).await;
    assert!(found.is_err(), "{queue} is still there");
    other.strike().await;
}
